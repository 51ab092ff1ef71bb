"""Pictures as SVG text: what they show, and that they can be read without seeing them."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast import charts
from ance_fast.charts import Series, bar_chart, data_table, line_chart, series_table, thinned

SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(-1e12, 1e12) | st.sampled_from([0.0, 1e-30, -1e-300, math.nan, math.inf])
points = st.lists(st.tuples(st.integers(0, 10**7).map(float), numbers), max_size=30)


def drawn(chart: str) -> list[tuple[float, float]]:
    """The places of the first line's points."""
    tree = ElementTree.fromstring(chart)
    line = next(path for path in tree.iter(f"{SVG}path") if path.get("fill") == "none")
    numbers = [float(part) for part in re.findall(r"[-\d.]+", str(line.get("d")))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@settings(deadline=None)
@given(st.lists(points, max_size=4))
def test_a_picture_of_any_numbers_is_well_formed_and_nothing_lies_outside_its_frame(lines: list) -> None:
    series = [Series(f"line {place}", line) for place, line in enumerate(lines)]
    chart = line_chart("any", "Any", "Whatever.", series, x_label="step", y_label="value")
    if not any(one.finite() for one in series):
        assert chart == ""
        return
    tree = ElementTree.fromstring(chart)
    for path in tree.iter(f"{SVG}path"):
        if path.get("fill") == "none":
            places = [float(part) for part in re.findall(r"[-\d.]+", str(path.get("d")))]
            assert all(charts.LEFT - 0.1 <= x <= charts.WIDTH - charts.RIGHT + 0.1 for x in places[::2])
            assert all(charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1 for y in places[1::2])


def test_points_lie_where_the_ticks_beside_them_say() -> None:
    """The frame runs from 0 to 100 and from 0 to 1: half is in the middle."""
    line = Series("share", [(0, 0.0), (50, 0.5), (100, 1.0)])
    (x0, y0), (x1, y1), (x2, y2) = drawn(line_chart("a", "A", "a", [line], x_label="step", y_label="share"))
    assert (x0, x2) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert (y0, y2) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)
    assert (x1, y1) == (pytest.approx((x0 + x2) / 2), pytest.approx((y0 + y2) / 2))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 100], [0, 20, 40, 60, 80, 100]), ([0.13, 0.52], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), ([3, 3], [1, 2, 3, 4, 5])],
)
def test_ticks_are_round_numbers_around_the_values(values: list[float], expected: list[float]) -> None:
    found = charts._ticks(values)
    assert found[0] <= min(values) <= max(values) <= found[-1]
    assert found == pytest.approx(expected)


def test_lines_differ_in_more_than_their_colour() -> None:
    lines = [Series(f"line {place}", [(0, place), (1, place)]) for place in range(9)]
    tree = ElementTree.fromstring(line_chart("a", "A", "a", lines, x_label="x", y_label="y"))
    drawn = [path for path in tree.iter(f"{SVG}path") if path.get("fill") == "none"]
    dashes = [path.get("stroke-dasharray") for path in drawn]
    assert len(set(dashes[:4])) == 4
    assert len({(path.get("stroke"), path.get("stroke-dasharray")) for path in drawn}) == 9


def test_a_legend_of_many_lines_takes_rows_that_overlap_nothing() -> None:
    lines = [Series(f"line {place}", [(0, place), (1, place)]) for place in range(9)]
    tree = ElementTree.fromstring(line_chart("a", "A", "a", lines, x_label="x", y_label="y"))
    named = [text for text in tree.findall(f"{SVG}text") if str(text.text).startswith("line")]
    assert len({(text.get("x"), text.get("y")) for text in named}) == 9
    (frame,) = tree.findall(f"{SVG}g[@transform]")
    down = int(str(frame.get("transform"))[len("translate(0 ") : -1])
    assert max(float(str(text.get("y"))) for text in named) < charts.TOP + down
    assert tree.get("viewBox") == f"0 0 {charts.WIDTH} {charts.HEIGHT + down}"


def test_a_picture_names_and_describes_itself_and_escapes_what_it_is_given() -> None:
    evil = '<script>alert("&")</script>'
    chart = line_chart("evil", evil, evil, [Series(evil, [(1, 2)])], x_label=evil, y_label=evil)
    tree = ElementTree.fromstring(chart)
    assert tree.get("role") == "img"
    named = [tree.find(f"*[@id='{name}']") for name in str(tree.get("aria-labelledby")).split()]
    assert [(part.tag, part.text) for part in named if part is not None] == [
        (f"{SVG}title", evil),
        (f"{SVG}desc", evil),
    ]
    assert not list(tree.iter(f"{SVG}script"))
    assert "<script" not in bar_chart("e", evil, evil, [(evil, 1.0)], unit=evil) + data_table(evil, [evil], [[evil]])


def test_bars_are_as_long_as_their_values() -> None:
    tree = ElementTree.fromstring(bar_chart("t", "Time", "t", [("a", 30.0), ("b", 10.0), ("c", 0.0)], unit="s"))
    widths = [float(str(bar.get("width"))) for bar in tree.iter(f"{SVG}rect")]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.2)
    assert widths[2] == 0
    assert bar_chart("t", "Time", "t", [("a", 0.0), ("b", math.nan)], unit="s") == ""


def test_a_table_has_a_row_for_each_x_of_any_line_and_dashes_where_one_has_none() -> None:
    table = ElementTree.fromstring(
        series_table("Both", "step", [Series("a", [(1, 0.5), (2, math.nan)]), Series("b", [(1, 7), (3, 1234.0)])])
    )
    rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert rows == [["step", "a", "b"], ["1", "0.500", "7"], ["3", "-", "1,234"]]
    assert [cell.get("scope") for cell in next(table.iter("tr"))] == ["col"] * 3


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_thinning_keeps_few_points_and_the_largest_where_asked(values: list[float]) -> None:
    line = [(float(place), value) for place, value in enumerate(values)]
    assert len(thinned(line)) <= charts.MOST_POINTS
    assert max(y for _, y in thinned(line, maxima=True)) == max(values)
    if len(line) <= charts.MOST_POINTS:
        assert thinned(line) == line
    else:
        assert min(values) <= min(y for _, y in thinned(line)) <= max(y for _, y in thinned(line)) <= max(values)
