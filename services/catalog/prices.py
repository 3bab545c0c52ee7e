"""Upstream's price object turned into `ModelPricing`, with the strings kept exactly as upstream wrote them.

What a reader would get wrong: upstream's numbers do not say what they mean. -1 is "decided when it runs", 0 is free only
for `:free` models and otherwise "billed in another way", and a model without text output is priced per second, page or
picture. So every price has a kind, and whoever multiplies looks at the kind first.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from contracts.catalog import ModelPricing, PriceKind, PriceOverride

# What `Model.typical_call_usd` in contracts/catalog.py promises.
_TYPICAL_PROMPT_TOKENS = 1000
_TYPICAL_COMPLETION_TOKENS = 500
FREE_ROUTER = "openrouter/free"
_CONDITIONS = frozenset({"min_prompt_tokens", "utc_start", "utc_end"})
_CLOCK = frozenset({"utc_start", "utc_end"})
_MAX_PRICE_CHARS = 60


def amount(text: str | None) -> Decimal | None:
    """A price string as a number of USD; None when it is missing or is no finite number."""
    if text is None:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    # A magnitude beyond any price would make sums of millions of digits.
    return value if value.is_finite() and abs(value.adjusted()) < _MAX_PRICE_CHARS else None


def parse_pricing(model_id: str, raw: Any, *, outputs_text: bool) -> ModelPricing:
    """The price of one catalog entry. Never fails: what cannot be read is priced `unknown`.

    `outputs_text` is False for speech, video, rerank and the like, whose prices are in units of their own.
    """
    prices = _price_strings(raw) if isinstance(raw, Mapping) else {}
    overrides = _overrides(raw.get("overrides")) if isinstance(raw, Mapping) else []
    readable = amount(prices.get("prompt")) is not None and amount(prices.get("completion")) is not None
    prices.setdefault("prompt", "0")
    prices.setdefault("completion", "0")
    kind = _kind(model_id, prices, overrides, outputs_text=outputs_text) if readable else "unknown"
    return ModelPricing.model_validate({**prices, "overrides": overrides, "price_kind": kind})


def typical_call(pricing: ModelPricing) -> Decimal | None:
    """USD for a call of an ordinary size; None where the price is only known once it has run."""
    if pricing.price_kind in ("runtime", "unknown"):
        return None
    prompt, completion, request = (
        amount(text) or Decimal(0)
        for text in (pricing.prompt, pricing.completion, (pricing.model_extra or {}).get("request"))
    )
    return prompt * _TYPICAL_PROMPT_TOKENS + completion * _TYPICAL_COMPLETION_TOKENS + request


def _kind(model_id: str, prices: Mapping[str, str], overrides: list[PriceOverride], *, outputs_text: bool) -> PriceKind:
    # `discount` is no price, and every other key may carry the -1.
    everything = [value for key, value in prices.items() if key != "discount"]
    everything += [value for override in overrides for value in (override.model_extra or {}).values()]
    if any((value := amount(text)) is not None and value < 0 for text in everything):
        return "runtime"
    if amount(prices["prompt"]) == 0 and amount(prices["completion"]) == 0:
        return "free" if model_id.endswith(":free") or model_id == FREE_ROUTER else "unknown"
    if not outputs_text:
        return "unknown"
    return "tiered" if overrides else "fixed"


def _price_strings(raw: Mapping[str, Any]) -> dict[str, str]:
    strings = {key: _string(value) for key, value in raw.items() if key not in {"overrides", "price_kind"}}
    return {key: text for key, text in strings.items() if text is not None and amount(text) is not None}


def _string(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | Decimal):
        # Text longer than this is no price; the check also keeps 10**5000 from being written out.
        return format(value, "f") if abs(Decimal(value).adjusted()) < _MAX_PRICE_CHARS else None
    return value if isinstance(value, str) and len(value) <= _MAX_PRICE_CHARS else None


def _overrides(raw: Any) -> list[PriceOverride]:
    entries = raw if isinstance(raw, list) else []
    return [override for entry in entries if isinstance(entry, Mapping) and (override := _override(entry)) is not None]


def _override(raw: Mapping[str, Any]) -> PriceOverride | None:
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _CLOCK:
            values[key] = _clock(value)
        elif key == "min_prompt_tokens":
            values[key] = _tokens(value)
        elif (text := _string(value)) is not None:
            # A condition that nobody knows yet stays as well: the estimator then treats the entry as possible.
            values[key] = text
    unreadable = any(key in raw and raw[key] is not None and values.get(key) is None for key in _CONDITIONS)
    if unreadable:
        values["unreadable_condition"] = "1"
    return PriceOverride.model_validate(values) if any(key not in _CONDITIONS for key in values) else None


def _clock(value: Any) -> str | None:
    text = f"{value:04d}" if isinstance(value, int) and not isinstance(value, bool) else value
    return text if isinstance(text, str) and len(text) == 4 and text.isascii() and text.isdigit() else None


def _tokens(value: Any) -> int | None:
    if isinstance(value, Decimal) and value.is_finite() and abs(value) < 10**12:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None
