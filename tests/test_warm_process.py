"""A program in a process forked from the warm one ends as it would in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys
print(__name__, sys.argv[1:], sys.stdin.read())
print("to the other side", file=sys.stderr)
"""
ENDS = {
    "by itself": "",
    "with a status": "sys.exit(3)",
    "with a message": "sys.exit('so it goes')",
    "by a signal": "sys.stdout.flush(); sys.stderr.flush(); os.kill(os.getpid(), signal.SIGKILL)",
    "at once": "sys.stdout.flush(); sys.stderr.flush(); os._exit(130)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_it_would_in_a_process_of_its_own(
    warm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, end: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + ENDS[end] + "\n")
    command = [sys.executable, str(script), "-x", "two words"]
    alone = subprocess.run(command, input="typed\n", capture_output=True, text=True, check=False)
    forked = warm(script, "-x", "two words", stdin="typed\n")
    assert (forked.returncode, forked.stdout, forked.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def test_an_error_is_a_traceback_and_status_1(
    warm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text("raise ValueError('what went wrong')\n")
    ended = warm(tmp_path / "script.py")
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: what went wrong\n")
