"""The prices of a model for people: what each thing costs, under which condition, and since when.

Amounts are per million tokens where they are prices of tokens. A price that nobody knows is said in words and never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from contracts.catalog import ModelPricing, PriceChange, PriceOverride
from contracts.money import exact_decimal
from contracts.providers import ModelProvider
from services.console import text
from services.console.charts import Line, steps, ticks

PER_TOKEN = {
    "prompt": "In",
    "completion": "Out",
    "internal_reasoning": "Thinking",
    "input_cache_read": "Read from the cache",
    "input_cache_write": "Written to the cache",
    "input_cache_write_1h": "Written to the cache for an hour",
    "image": "Pictures in",
    "image_output": "Pictures out",
    "audio": "Sound in",
    "input_audio_cache": "Sound from the cache",
    "audio_output": "Sound out",
}
PER_USE = {"request": "Each call", "web_search": "Each web search"}
_WORDS = {"runtime": "decided at run time", "unknown": "not stated", "free": "free"}
_MILLION = 1_000_000


class Tier(NamedTuple):
    """When which prices hold: texts, in the order of the columns."""

    when: str
    prices: list[str]


class Tiers(NamedTuple):
    columns: list[str]
    rows: list[Tier]


class Since(NamedTuple):
    """From when on which price held, and what else became different."""

    moment: datetime
    prompt: str
    completion: str
    others: list[str]


class History(NamedTuple):
    """The price history, drawn and as rows, newest first; `highest` is None where there is no figure to draw."""

    rows: list[Since]
    highest: Decimal | None
    prompt: Line
    completion: Line
    ticks: list[float]
    described: str


def shown(pricing: ModelPricing, key: str) -> str:
    """One price per million tokens, or in words what is known of it."""
    if pricing.price_kind in _WORDS:
        return _WORDS[pricing.price_kind]
    return _per_million(_values(pricing).get(key))


def beside(pricing: ModelPricing) -> list[tuple[str, str]]:
    """What is priced beside text in and out, and not in `tiers`, with its unit; strange prices stand as upstream states them."""
    stated = {key: value for key, value in (pricing.model_extra or {}).items() if key not in _changed(pricing)}
    known = [(f"{name}, per million", _per_million(stated[key])) for key, name in PER_TOKEN.items() if key in stated]
    known += [(name, text.money(_amount(stated[key]))) for key, name in PER_USE.items() if key in stated]
    return known + [(text.spoken(key), stated[key]) for key in stated if key not in (*PER_TOKEN, *PER_USE, "discount")]


def tiers(pricing: ModelPricing) -> Tiers:
    """Every price that a condition changes, under each of them, the first row where none holds."""
    columns = [key for key in PER_TOKEN if key in _changed(pricing) | set(_DRAWN)]
    rows = [Tier(_otherwise(pricing.overrides), _row(_values(pricing), columns))]
    for number, override in enumerate(pricing.overrides):
        values = _values(pricing)
        for other in pricing.overrides[: number + 1]:
            if _holds_with(other, override):
                values |= other.model_extra or {}
        rows.append(Tier(_when(override), _row(values, columns)))
    return Tiers([PER_TOKEN[key] for key in columns], rows)


def history(changes: Sequence[PriceChange], now: datetime) -> History:
    """What `changes`, oldest first, come to."""
    prompts, completions = ([(each.since, _figure(each.pricing, key)) for each in changes] for key in _DRAWN)
    known = [value for _, value in (*prompts, *completions) if value is not None]
    highest = max(known, default=None)
    rows = [
        Since(
            each.since,
            shown(each.pricing, "prompt"),
            shown(each.pricing, "completion"),
            _others(changes[number - 1].pricing, each.pricing) if number else [],
        )
        for number, each in enumerate(changes)
    ]
    return History(
        rows[::-1],
        highest,
        steps(prompts, now, highest or Decimal(0)),
        steps(completions, now, highest or Decimal(0)),
        ticks([each.since for each in changes[1:]], changes[0].since, now) if changes else [],
        _described(rows),
    )


def cheapest(providers: Sequence[ModelProvider]) -> Decimal | None:
    """The lowest price of a typical call among those who are well; None where it tells nobody apart."""
    known = [
        each.typical_call_usd for each in providers if each.typical_call_usd is not None and each.healthy is not False
    ]
    return min(known) if len(known) > 1 and min(known) < max(known) else None


_DRAWN = ("prompt", "completion")


def _values(pricing: ModelPricing) -> dict[str, str]:
    return {"prompt": pricing.prompt, "completion": pricing.completion, **(pricing.model_extra or {})}


def _changed(pricing: ModelPricing) -> set[str]:
    return {key for override in pricing.overrides for key in override.model_extra or {}}


def _row(values: dict[str, str], columns: Sequence[str]) -> list[str]:
    return [_per_million(values.get(key)) for key in columns]


def _per_million(value: str | None) -> str:
    amount = None if value is None else _amount(value)
    return "—" if value is None else text.UNKNOWN if amount is None else text.per_million(amount)


def _amount(value: str) -> Decimal | None:
    """The figure; None for what is decided later, or is none at all."""
    try:
        amount = exact_decimal(value)
    except ValueError:
        return None
    return amount if amount >= 0 else None


def _figure(pricing: ModelPricing, key: str) -> Decimal | None:
    amount = None if pricing.price_kind in ("runtime", "unknown") else _amount(_values(pricing)[key])
    return None if amount is None else amount * _MILLION


def _is_plain(override: PriceOverride) -> bool:
    """Whether the length of the prompt is its only condition, and one that could be read."""
    timed = override.utc_start is not None or override.utc_end is not None
    return override.min_prompt_tokens is not None and not timed and not _is_unreadable(override)


def _is_unreadable(override: PriceOverride) -> bool:
    return "unreadable_condition" in (override.model_extra or {})


def _holds_with(other: PriceOverride, override: PriceOverride) -> bool:
    """Whether `other` applies wherever `override` does."""
    if other is override:
        return True
    return _is_plain(other) and (override.min_prompt_tokens or 0) >= (other.min_prompt_tokens or 0)


def _otherwise(overrides: Sequence[PriceOverride]) -> str:
    if not overrides:
        return "always"
    if not all(_is_plain(override) for override in overrides):
        return "otherwise"
    return f"the prompt has up to {text.tokens(min(each.min_prompt_tokens or 0 for each in overrides))} tokens"


def _when(override: PriceOverride) -> str:
    conditions = []
    if override.min_prompt_tokens is not None:
        conditions.append(f"the prompt has more than {text.tokens(override.min_prompt_tokens)} tokens")
    if override.utc_start or override.utc_end:
        conditions.append(f"it is {_clock(override.utc_start)} to {_clock(override.utc_end)} UTC")
    if _is_unreadable(override) or not conditions:
        conditions.append("a condition holds that only OpenRouter knows")
    return " and ".join(conditions)


def _clock(value: str | None) -> str:
    return f"{value[:2]}:{value[2:]}" if value else "00:00"


def _others(before: ModelPricing, after: ModelPricing) -> list[str]:
    """What changed beside the price of text in and out."""
    old, new = _values(before), _values(after)
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in _DRAWN and old.get(key) != new.get(key)]
    found = [(PER_TOKEN | PER_USE).get(key, text.spoken(key)).lower() for key in keys]
    return [*found, "conditions"] if before.overrides != after.overrides else found


def _described(rows: Sequence[Since]) -> str:
    """The chart in words, for whoever does not see it."""
    if not rows:
        return ""
    first, last = rows[0], rows[-1]
    if len(rows) == 1:
        return f"The price has not changed since {text.day(first.moment)}: {first.prompt} in, {first.completion} out."
    times = "once" if len(rows) == 2 else f"{len(rows) - 1} times"
    return (
        f"The price has changed {times} since {text.day(first.moment)}: in from {first.prompt} to {last.prompt}, "
        f"out from {first.completion} to {last.completion}."
    )
