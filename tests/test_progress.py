"""Progress in a log: counts, rates of what is new, and numbers that people can read."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ance_fast import progress
from ance_fast.progress import plain_number, progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (7, "7"), (1234, "1,234"), (1234.5, "1,234"), (99.96, "100"), (9.999, "10.0"), (53.14, "53.1"),
     (0.5341, "0.534"), (0.00002, "0.0000200"), (-0.25, "-0.250"), (8841823.0, "8,841,823"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert plain_number(value) == shown


@settings(deadline=None)
@given(st.floats(1e-9, 1e12))
def test_a_number_is_shown_to_three_digits(value: float) -> None:
    shown = plain_number(value)
    assert "e" not in shown
    assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.00501)


def test_a_log_line_has_count_rate_note_and_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("encoding", 40_000, "passages") as advance:
        clock[0] = 1.0
        advance(10_000, "5 tokens/s")
        assert capsys.readouterr().err == ""
        clock[0] = 40.0
        advance(10_000)
        line = "encoding: 20,000 of 40,000 passages, 500 passages/s, 5 tokens/s, 40 s left\n"
        assert capsys.readouterr().err == line
        advance(20_000)
    assert capsys.readouterr().err == "encoding: 40,000 passages, 1,000 passages/s, 5 tokens/s\n"


def test_what_was_there_already_counts_for_no_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("encoding", 400, "passages") as advance:
        advance(300, found=True)
        clock[0] = 40.0
        advance(20)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 320 of 400 passages, 0.500 passages/s, 160 s left",
        "encoding: 320 of 400 passages, 0.500 passages/s, 160 s left",
    ]
    with progress_bar("encoding", 400, "passages") as advance:
        advance(400, found=True)
    assert capsys.readouterr().err == "encoding: 400 passages, nothing new\n"


def test_a_bar_shows_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=200)
    monkeypatch.setattr(progress, "stderr_console", lambda: terminal)
    with progress_bar("encoding", 4000, "passages") as advance:
        advance(3000, found=True)
        assert "3,000 of 4,000" in _last(terminal, screen)
        advance(0)
    assert "passages/s" not in screen.getvalue()
    with progress_bar("encoding", None, "passages") as advance:
        for _ in range(3):
            advance(1500, "7 tokens/s")
    assert "4,500" in screen.getvalue()
    assert "passages/s, 7 tokens/s" in screen.getvalue()


def _last(terminal: Console, screen: io.StringIO) -> str:
    assert terminal._live_stack
    terminal._live_stack[-1].refresh()
    return screen.getvalue().splitlines()[-1]
