"""Charts as plain SVG geometry: a step line, because a price holds until the next one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

WIDTH = 640
HEIGHT = 160


class Steps(NamedTuple):
    """A line over time: the points of an SVG polyline, and what its axis says."""

    points: str
    highest: Decimal


def steps(values: Sequence[tuple[datetime, Decimal]], until: datetime, highest: Decimal) -> Steps:
    """The line of values that each hold from their moment on, oldest first, within WIDTH and HEIGHT, from zero up."""
    begin = values[0][0]
    span = max(until - begin, timedelta(seconds=1))

    def x(moment: datetime) -> float:
        return (moment - begin) / span * WIDTH

    def y(value: Decimal) -> float:
        return HEIGHT - float(value / highest) * (HEIGHT - 8) if highest else HEIGHT

    points = []
    for position, (since, value) in enumerate(values):
        end = values[position + 1][0] if position + 1 < len(values) else until
        points += [f"{x(since):.1f},{y(value):.1f}", f"{x(end):.1f},{y(value):.1f}"]
    return Steps(" ".join(points), highest)
