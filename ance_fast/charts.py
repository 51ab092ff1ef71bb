"""Pictures for pages: SVG text without scripts or anything fetched, that a screen reader can read too.

Each picture has a title and a description, each line a colour, a dash pattern and a marker of its own, and the numbers
stand in a table below it (`data_table`), folded away. All text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ance_fast.progress import plain_number

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
MOST_POINTS = 200

PAGE_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff}
main{max-width:46rem;margin:2rem auto;padding:0 1rem}
svg{width:100%;height:auto}table{border-collapse:collapse;font-size:.85rem}caption{text-align:left;font-weight:600}
th,td{padding:.15rem .7rem;border-bottom:1px solid #ccc;text-align:right;font-weight:400}
th[scope=row]{text-align:left}thead th{font-weight:600}.scroll{overflow-x:auto;max-height:24rem;overflow-y:auto}"""

# Colours that the colour-blind tell apart (Okabe and Ito), dark enough on white.
_COLOURS = ("#0060a0", "#b04a00", "#00704e", "#8a3a78")
_DASHES = ("none", "6 4", "2 3", "8 3 2 3")
_MARKERS = ("circle", "square", "triangle")
_LEGEND_COLUMNS, _LEGEND_ROW = 4, 18


@dataclass(frozen=True)
class Series:
    """A line of a picture: (x, y) in ascending x; points that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]

    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def thinned(points: Sequence[tuple[float, float]], *, maxima: bool = False) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: runs of neighbours become their means, or with `maxima` their largest y."""
    finite = Series("", points).finite()
    size = max(1, math.ceil(len(finite) / MOST_POINTS))
    runs = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [
        (math.fsum(x for x, _ in run) / len(run), max(ys) if maxima else math.fsum(ys) / len(run))
        for run in runs
        for ys in [[y for _, y in run]]
    ]


def line_chart(name: str, title: str, description: str, series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """A picture of `series`, all in one frame; "" if there is no point to draw.

    `name` is part of the ids of its parts, so it must be the only one on its page, of letters, digits and hyphens.
    """
    drawn = [one for one in series if one.finite()]
    if not drawn:
        return ""
    points = [point for one in drawn for point in one.finite()]
    xs, ys = _ticks([x for x, _ in points]), _ticks([y for _, y in points])
    frame = _Frame(xs[0], xs[-1], ys[0], ys[-1])
    parts = [
        *(_tick_x(frame, x) for x in xs),
        *(_tick_y(frame, y) for y in ys),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="14" y="{(TOP + HEIGHT - BOTTOM) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2:.0f})">{escape(y_label)}</text>',
    ]
    parts += [_line(frame, one, place) for place, one in enumerate(drawn)]
    columns = min(len(drawn), _LEGEND_COLUMNS)
    legend = [_legend(one.name, place, columns) for place, one in enumerate(drawn)]
    # More lines than fit a row of the legend push the frame down.
    down = _LEGEND_ROW * ((len(drawn) - 1) // columns)
    body = f'<g transform="translate(0 {down})">{"".join(parts)}</g>'
    return _picture(name, title, description, HEIGHT + down, [*legend, body])


def bar_chart(name: str, title: str, description: str, bars: Sequence[tuple[str, float]], *, unit: str) -> str:
    """Horizontal bars from 0, a line each, with their values; "" if none is above 0. `name`: as in `line_chart`."""
    most = max((value for _, value in bars if math.isfinite(value)), default=0.0)
    if most <= 0:
        return ""
    left, row = 220, 30
    parts = []
    for place, (label, value) in enumerate(bars):
        top, width = 12 + place * row, (WIDTH - left - 120) * max(0.0, value) / most
        parts += [
            f'<text x="{left - 10}" y="{top + 15}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left}" y="{top}" width="{width:.1f}" height="20" fill="{_COLOURS[0]}"/>',
            f'<text x="{left + width + 8:.1f}" y="{top + 15}">{plain_number(value)} {escape(unit)}</text>',
        ]
    return _picture(name, title, description, 24 + len(bars) * row, parts)


def data_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; numbers as `plain_number` writes them, None as a dash. The first column heads its row."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>' + "".join(f"<td>{_cell(value)}</td>" for value in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def series_table(caption: str, x_label: str, series: Sequence[Series]) -> str:
    """The numbers of a picture, a row for each x that any of its lines has."""
    columns = [dict(one.finite()) for one in series]
    rows = [[x, *(column.get(x) for column in columns)] for x in sorted(set().union(*columns))]
    return data_table(caption, [x_label, *(one.name for one in series)], rows)


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y_low) / (self.y_high - self.y_low)


def _ticks(values: Sequence[float], about: int = 5) -> list[float]:
    """Round numbers, at least two, from at or below the least to at or above the greatest of `values`."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [
        round(count * step, 12) if step > 1e-9 else count * step for count in range(first, max(last, first + 1) + 1)
    ]


def _tick_x(frame: _Frame, value: float) -> str:
    x = f"{frame.x(value):.1f}"
    return f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_tick_text(value)}</text>'


def _tick_y(frame: _Frame, value: float) -> str:
    y = frame.y(value)
    return (
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ccc"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(value)}</text>'
    )


def _line(frame: _Frame, series: Series, place: int) -> str:
    colour, dashes, marker = _style(place)
    places = [(frame.x(x), frame.y(y)) for x, y in series.finite()]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    markers = "".join(_marker(marker, x, y) for x, y in places) if len(places) <= 40 else ""
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        f'<g fill="{colour}">{markers}</g>'
    )


def _legend(name: str, place: int, columns: int) -> str:
    colour, dashes, marker = _style(place)
    x = LEFT + place % columns * (WIDTH - LEFT - RIGHT) / columns
    y = 18 + place // columns * _LEGEND_ROW
    return (
        f'<path d="M{x:.0f} {y}h30" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        f'<g fill="{colour}">{_marker(marker, x + 15, y)}</g><text x="{x + 36:.0f}" y="{y + 4}">{escape(name)}</text>'
    )


def _style(place: int) -> tuple[str, str, str]:
    """Colour, dashes and marker; pairs of the first two differ for 16 lines."""
    turned = place + place // len(_COLOURS)
    return _COLOURS[place % len(_COLOURS)], _DASHES[turned % len(_DASHES)], _MARKERS[turned % len(_MARKERS)]


def _marker(kind: str, x: float, y: float) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    if kind == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    return f'<path d="M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z"/>'


def _picture(name: str, title: str, description: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {WIDTH} {height}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="13" fill="#222">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _tick_text(value: float) -> str:
    return f"{value:,.10g}" if value == 0 or 1e-4 <= abs(value) < 1e9 else f"{value:.3g}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return plain_number(value) if isinstance(value, int | float) else escape(str(value))
