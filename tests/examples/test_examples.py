"""The example scripts run as they are printed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("mode", ["sync", "rolling", "async"])
def test_the_example_of_each_mode_trains_and_measures(
    warm: Callable[..., subprocess.CompletedProcess[str]], mode: str, tmp_path: Path
) -> None:
    result = warm(EXAMPLES / f"train_{mode}.py", tmp_path, "--steps", 3, "--passages", 120)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert 0 < report["dev"]["R@100"] <= 1
    assert report["seconds"]["refresh"] > 0
    assert (tmp_path / mode / "final" / "modules.json").is_file()
