"""The plot of cost against the number of entries, as SVG: both axes logarithmic, no library needed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 80, 190, 50, 60  # margins; the names of the lines are in the right one

# The lines of the plot: the name of each, what one of its figures is, and its colour.
_LINES = {
    "cidr": ("Postfix cidr: table", "one lookup", "#c0392b"),
    "postfwd": ("postfwd", "one request", "#b9770e"),
    "policyd": ("policyd", "one request", "#1f618d"),
    "floor": ("floor: a C server", "that parses nothing", "#7f8c8d"),
}

_UNITS = ((1e6, "s"), (1e3, "ms"), (1, "µs"), (1e-3, "ns"))


def draw(series: Mapping[str, Mapping[int, float]]) -> str:
    """The plot of microseconds by entries, a line for each name in `_LINES` that has figures."""
    shown = {name: series[name] for name in _LINES if series.get(name)}
    costs = [cost for points in shown.values() for cost in points.values()]
    entries = [count for points in shown.values() for count in points]
    x = _Axis(min(entries), max(entries), LEFT, WIDTH - RIGHT)
    y = _Axis(10 ** math.floor(math.log10(min(costs))), 10 ** math.ceil(math.log10(max(costs))), HEIGHT - BOTTOM, TOP)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
            "<title>CPU time against the number of entries of a list</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            _text(LEFT, 24, "CPU time of one answer, by the number of networks in the list", size=15),
            *_grid(x, y),
            *(line for name, points in shown.items() for line in _line(name, points, x, y)),
            *_names(shown, x, y),
            "</svg>\n",
        )
    )


class _Axis:
    """A logarithmic scale from values to places in the picture."""

    def __init__(self, first: float, last: float, begin: float, end: float) -> None:
        self._first = math.log10(first)
        self._last = math.log10(last)
        self._begin = begin
        self._end = end

    def place(self, value: float) -> float:
        """The position of a value."""
        share = (math.log10(value) - self._first) / ((self._last - self._first) or 1)
        return self._begin + share * (self._end - self._begin)

    def powers(self) -> Iterator[int]:
        """The powers of ten on the axis."""
        return (10**power for power in range(math.ceil(self._first), math.floor(self._last) + 1))


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    for count in x.powers():
        at = x.place(count)
        yield f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e5e8e8"/>'
        yield _text(at, HEIGHT - BOTTOM + 20, f"{count:,}", anchor="middle")
    for cost in y.powers():
        at = y.place(cost)
        yield f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#e5e8e8"/>'
        unit, name = next((unit, name) for unit, name in _UNITS if cost >= unit)
        yield _text(LEFT - 8, at + 4, f"{cost / unit:g} {name}", anchor="end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "networks in the list", anchor="middle")


def _line(name: str, points: Mapping[int, float], x: _Axis, y: _Axis) -> Iterator[str]:
    _, _, colour = _LINES[name]
    places = [(x.place(count), y.place(cost)) for count, cost in sorted(points.items())]
    dashes = ' stroke-dasharray="5 4"' if name == "floor" else ""
    coordinates = " ".join(f"{at:.1f},{height:.1f}" for at, height in places)
    yield f'<polyline points="{coordinates}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
    for at, height in places:
        yield f'<circle cx="{at:.1f}" cy="{height:.1f}" r="3" fill="{colour}"/>'


def _names(shown: Mapping[str, Mapping[int, float]], x: _Axis, y: _Axis) -> Iterator[str]:
    """The name of each line at its right end, with its last figure. Names that would overlap are moved apart."""
    lowest = HEIGHT - BOTTOM + 30.0
    ends = sorted(((y.place(points[max(points)]), name) for name, points in shown.items()), reverse=True)
    for height, name in ends:
        title, meaning, colour = _LINES[name]
        at = min(height, lowest - 34)
        lowest = at
        end = max(shown[name])
        unit, unit_name = next((unit, each) for unit, each in _UNITS if shown[name][end] >= unit)
        figure = f"{shown[name][end] / unit:.3g} {unit_name}"
        yield _text(x.place(end) + 10, at, title, colour=colour)
        yield _text(x.place(end) + 10, at + 15, f"{meaning}: {figure}", colour=colour, size=11)


def _text(
    at: float, height: float, text: str, *, anchor: str = "start", colour: str = "#222222", size: int = 13
) -> str:
    return (
        f'<text x="{at:.1f}" y="{height:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
