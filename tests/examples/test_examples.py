"""The example scripts run as they are printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("mode", ["sync", "rolling", "async"])
def test_the_example_of_each_mode_trains_and_measures(mode: str, tmp_path: Path) -> None:
    arguments = [sys.executable, EXAMPLES / f"train_{mode}.py", tmp_path, "--steps", "4", "--passages", "200"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert 0 < report["dev"]["R@100"] <= 1
    assert report["seconds"]["refresh"] > 0
    assert (tmp_path / mode / "final" / "modules.json").is_file()
