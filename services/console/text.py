"""How figures and moments are written for people: tiny amounts without an exponent, dates as one says them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from contracts.execution import Cost
from contracts.market import RunCost
from contracts.money import plain

UNKNOWN = "unknown"
_CENT = Decimal("0.01")
_SMALL = Decimal("0.0001")
_MILLION = Decimal(1_000_000)


def money(amount: Decimal | None) -> str:
    """US dollars: `$12.30`, `$0.0091`, `$0.0000258`. What is not known is `unknown`, never zero.

    Cents from one dollar on, four places below it, three significant digits below a hundredth of a cent.
    """
    if amount is None:
        return UNKNOWN
    sign, size = ("−" if amount < 0 else ""), abs(amount)
    if size == 0:
        return "$0.00"
    if size >= 1:
        text = f"{size.quantize(_CENT, ROUND_HALF_UP):,}"
    elif size >= _SMALL:
        rounded = size.quantize(_SMALL, ROUND_HALF_UP)
        text = str(rounded.quantize(_CENT)) if rounded == rounded.quantize(_CENT) else str(rounded)
    else:
        text = plain(size.quantize(Decimal(1).scaleb(size.adjusted() - 2), ROUND_HALF_UP))
    return f"{sign}${text}"


def breakdown(cost: RunCost | Cost) -> tuple[str, str, str]:
    """Model, markup and total with as many places each, so that they add up as they stand: `$0.0010`, `$0.0090`, `$0.0100`."""
    return _broken_down(cost, max(_places(amount) for amount in (cost.model_usd, cost.markup_usd, cost.price_usd)))


def breakdowns(costs: Sequence[RunCost]) -> list[tuple[str, str, str]]:
    """Several side by side, all with as many places: four, or what shows two digits of a cost below a hundredth of a cent."""
    tiny = [cost.model_usd.adjusted() for cost in costs if cost.model_usd and cost.model_usd < _SMALL]
    places = 1 - min(tiny, default=-3)
    return [_broken_down(cost, places) for cost in costs]


def _broken_down(cost: RunCost | Cost, places: int) -> tuple[str, str, str]:
    model, markup, total = cost.model_usd, cost.markup_usd, cost.price_usd
    if model is not None and total is not None:
        # Rounded by itself it might be a last digit off.
        markup = _rounded(total, places) - _rounded(model, places)
    return _aligned(model, places), _aligned(markup, places), _aligned(total, places)


def _places(amount: Decimal | None) -> int:
    if not amount:
        return 2
    exact = max(0, -int(amount.normalize().as_tuple().exponent))
    enough = 4 if abs(amount) < 1 else 2
    return max(enough, min(exact, 2 - amount.adjusted()))


def _rounded(amount: Decimal, places: int) -> Decimal:
    return amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def _aligned(amount: Decimal | None, places: int) -> str:
    return UNKNOWN if amount is None else f"{'−' if amount < 0 else ''}${abs(_rounded(amount, places)):,}"


def exact_money(amount: Decimal | None) -> str:
    """The whole amount, for whoever points at a rounded one."""
    return UNKNOWN if amount is None else f"{plain(amount)} US dollars"


def editable(amount: Decimal | None) -> str:
    """An amount as it stands in a field: exact, and empty where there is none."""
    return "" if amount is None else plain(amount)


def per_million(price_per_token: str | Decimal) -> str:
    """A price per token, as people compare them: per million tokens."""
    return short(Decimal(price_per_token) * _MILLION)


def short(amount: Decimal) -> str:
    """`money` without zeros behind the cents."""
    whole, point, places = money(amount).partition(".")
    return f"{whole}{point}{places[:2]}{places[2:].rstrip('0')}"


def tokens(number: int | None) -> str:
    """A number of tokens in short: `128K`, `1.05M`."""
    if number is None:
        return UNKNOWN
    for unit, name in ((1_000_000, "M"), (1_000, "K")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def size(number: int) -> str:
    """A number of bytes: `312 bytes`, `48 KB`, `1.4 MB`."""
    if number < 1024:
        return f"{number} bytes"
    return f"{number / 1024:.0f} KB" if number < 1024**2 else f"{number / 1024**2:.3g} MB"


def seconds(milliseconds: int | None) -> str:
    """A duration: `310 ms`, `4.2 s`, `2 min 8 s`, `3 h 20 min`."""
    if milliseconds is None:
        return UNKNOWN
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    if milliseconds < 60_000 - 50:
        return f"{milliseconds / 1000:.1f} s"
    minutes, rest = divmod(round(milliseconds / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def wait(seconds: float) -> str:
    """How long to wait, rounded up: `1 second`, `45 seconds`, `3 minutes`, `14 hours`."""
    whole = max(1, math.ceil(seconds))
    number, name = (
        (whole, "second")
        if whole <= 120
        else (-(-whole // 60), "minute")
        if whole <= 7200
        else (-(-whole // 3600), "hour")
    )
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def percent(share: float | Decimal) -> str:
    """`99.91%`, rounded down: only what is all of it is `100%`."""
    return plain(Decimal(str(share)).quantize(_CENT, ROUND_DOWN)) + "%"


def day(moment: date) -> str:
    """`23 Nov 2026`."""
    return f"{moment.day} {moment:%b %Y}"


def exact(moment: datetime) -> str:
    """`2026-11-23 09:30:11 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(moment: datetime, now: datetime | None = None) -> str:
    """`just now`, `5 minutes ago`, `yesterday`, and from a week on the day."""
    passed = (now or datetime.now(UTC)) - moment
    if passed < timedelta(0):
        return day(moment)
    for unit, name in ((timedelta(days=1), "day"), (timedelta(hours=1), "hour"), (timedelta(minutes=1), "minute")):
        number = passed // unit
        if name == "day" and number >= 7:
            return day(moment)
        if number == 1:
            return "yesterday" if name == "day" else f"1 {name} ago"
        if number > 1:
            return f"{number} {name}s ago"
    return "just now"


def spoken(name: str) -> str:
    """A name of the interface in words: `image_out` is `image out`."""
    return name.replace("_", " ")
