"""The figures of a resource by day, as charts: every day of the time has its place, also those without runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from contracts.market import DayFigures, ResourceStats
from services.console.charts import Bar, Line, bars, line


@dataclass(frozen=True)
class Drawn:
    """Three charts over the same days; what stands at the top of each is its highest value."""

    since: date
    until: date
    runs: list[Bar]
    failed: list[Bar]
    most_runs: int
    cost: Line
    price: Line
    margin: Line
    highest_usd: Decimal
    lowest_usd: Decimal
    median: Line
    p95: Line
    slowest_ms: int | None


def drawn(stats: ResourceStats) -> Drawn:
    """The charts of these figures."""
    days = _every_day(stats)

    def sums(value: Callable[[DayFigures], Decimal]) -> list[Decimal | None]:
        return [Decimal(0) if day is None else value(day) for day in days]

    def times(value: Callable[[DayFigures], int | None]) -> list[Decimal | None]:
        found = [None if day is None else value(day) for day in days]
        return [None if each is None else Decimal(each) for each in found]

    runs = [0 if day is None else day.runs for day in days]
    failed = [0 if day is None else day.failed + day.interrupted for day in days]
    cost, price = sums(lambda day: day.model_usd), sums(lambda day: day.price_usd)
    margin = sums(lambda day: day.margin_usd)
    amounts = [amount for amount in (*cost, *price, *margin) if amount is not None]
    top, bottom = max(amounts), min(amounts)
    median, p95 = times(lambda day: day.median_ms), times(lambda day: day.p95_ms)
    slowest = max((each for each in (*median, *p95) if each is not None), default=None)
    return Drawn(
        since=stats.since,
        until=stats.until,
        runs=bars(runs, max(runs)),
        failed=bars(failed, max(runs)),
        most_runs=max(runs),
        cost=line(cost, top, bottom),
        price=line(price, top, bottom),
        margin=line(margin, top, bottom),
        highest_usd=top,
        lowest_usd=bottom,
        median=line(median, slowest or Decimal(1), Decimal(0)),
        p95=line(p95, slowest or Decimal(1), Decimal(0)),
        slowest_ms=None if slowest is None else int(slowest),
    )


def _every_day(stats: ResourceStats) -> Sequence[DayFigures | None]:
    by_day = {day.day: day for day in stats.days}
    return [by_day.get(stats.since + timedelta(days=number)) for number in range((stats.until - stats.since).days + 1)]
