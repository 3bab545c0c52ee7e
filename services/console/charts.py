"""Charts as plain SVG geometry: a step line, because a price holds until the next one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

WIDTH = 640
HEIGHT = 160


Line = list[str]
"""The pieces of a line, each the points of an SVG polyline: it is broken where nothing is known."""


def steps(values: Sequence[tuple[datetime, Decimal | None]], until: datetime, highest: Decimal) -> Line:
    """The line of values that each hold from their moment on, oldest first, within WIDTH and HEIGHT, from zero up."""
    ends = [*(since for since, _ in values[1:]), until]
    pieces: list[list[str]] = [[]]
    for (since, value), end in zip(values, ends, strict=False):
        if value is None:
            pieces.append([])
            continue
        y = HEIGHT - float(value / highest) * (HEIGHT - 8) if highest else HEIGHT
        pieces[-1] += [f"{_across(moment, values[0][0], until):.1f},{y:.1f}" for moment in (since, end)]
    return [" ".join(piece) for piece in pieces if piece]


def ticks(moments: Sequence[datetime], begin: datetime, until: datetime) -> list[float]:
    """Where moments stand on the axis of `steps`."""
    return [round(_across(moment, begin, until), 1) for moment in moments]


def _across(moment: datetime, begin: datetime, until: datetime) -> float:
    return (moment - begin) / max(until - begin, timedelta(seconds=1)) * WIDTH


class Bar(NamedTuple):
    """One bar, as an SVG rectangle; all figures within WIDTH and HEIGHT."""

    x: float
    y: float
    width: float
    height: float


def bars(values: Sequence[int], highest: int) -> list[Bar]:
    """A bar for each value that is not zero, each in the place of its own."""
    step = WIDTH / len(values)
    heights = [value / highest * (HEIGHT - 4) if highest else 0.0 for value in values]
    return [
        Bar(round(number * step + step * 0.15, 1), round(HEIGHT - height, 1), round(step * 0.7, 1), round(height, 1))
        for number, height in enumerate(heights)
        if height
    ]


def line(values: Sequence[Decimal | None], highest: Decimal, lowest: Decimal) -> Line:
    """A line over values in equal steps, between the lower of zero and `lowest` and the higher of zero and `highest`."""
    top, bottom = max(highest, Decimal(0)), min(lowest, Decimal(0))
    span, step = (top - bottom) or Decimal(1), WIDTH / len(values)
    pieces: list[list[tuple[float, float]]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            pieces.append([])
            continue
        y = HEIGHT - 4 - float((value - bottom) / span) * (HEIGHT - 8)
        pieces[-1].append(((number + 0.5) * step, y))
    return [_points(piece, step) for piece in pieces if piece]


def _points(piece: list[tuple[float, float]], step: float) -> str:
    if len(piece) == 1:
        # A day alone has a line too.
        ((x, y),) = piece
        piece = [(x - step * 0.3, y), (x + step * 0.3, y)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)


def height_of(value: Decimal, highest: Decimal, lowest: Decimal) -> float:
    """Where a value stands in the chart of `line`."""
    top, bottom = max(highest, Decimal(0)), min(lowest, Decimal(0))
    return HEIGHT - 4 - float((value - bottom) / ((top - bottom) or Decimal(1))) * (HEIGHT - 8)
