"""Upstream's description of who serves a model turned into `ModelProvider`s.

As with models, parsing never fails: an entry without a name is left out, everything else falls back to "not known".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from contracts.money import exact_decimal
from contracts.providers import ModelProvider, Percentiles
from services.catalog.models import mapping_of, text_of, token_count, words
from services.catalog.prices import parse_pricing, typical_call

_MAX_NAME_CHARS = 100
_MAX_PROVIDERS = 200
_HEALTHY = 0


def parse_providers(model_id: str, entries: Iterable[Any], *, outputs_text: bool) -> list[ModelProvider]:
    """The providers of a model, those that are well first, the cheaper before the dearer, unknown prices after known ones."""
    found = [
        provider
        for entry in entries
        if isinstance(entry, Mapping)
        and (provider := _provider(model_id, entry, outputs_text=outputs_text)) is not None
    ]
    return sorted(found, key=_place)[:_MAX_PROVIDERS]


def _place(provider: ModelProvider) -> tuple[bool, bool, Decimal]:
    price = provider.typical_call_usd
    return provider.healthy is False, price is None, price or Decimal(0)


def _provider(model_id: str, entry: Mapping[str, Any], *, outputs_text: bool) -> ModelProvider | None:
    tag = text_of(entry.get("tag"), _MAX_NAME_CHARS).strip()
    name = text_of(entry.get("provider_name"), _MAX_NAME_CHARS).strip() or tag
    if not name:
        return None
    raw = mapping_of(entry.get("pricing"))
    prices = {key: value for key, value in raw.items() if key != "discount"}
    pricing = parse_pricing(model_id, prices, outputs_text=outputs_text)
    quantization = text_of(entry.get("quantization"), _MAX_NAME_CHARS).strip()
    caching, status = entry.get("supports_implicit_caching"), _number(entry.get("status"))
    return ModelProvider(
        name=name,
        tag=tag or None,
        quantization=None if quantization in ("", "unknown") else quantization,
        context_length=token_count(entry.get("context_length")),
        max_prompt_tokens=token_count(entry.get("max_prompt_tokens")),
        max_completion_tokens=token_count(entry.get("max_completion_tokens")),
        pricing=pricing,
        discount_percent=_discount(raw.get("discount")),
        typical_call_usd=typical_call(pricing),
        supported_parameters=list(words(entry.get("supported_parameters"))),
        implicit_caching=caching if isinstance(caching, bool) else None,
        # What the other numbers mean is documented nowhere.
        healthy=None if status is None else status == _HEALTHY,
        uptime_5m_percent=_percent(entry.get("uptime_last_5m")),
        uptime_30m_percent=_percent(entry.get("uptime_last_30m")),
        uptime_1d_percent=_percent(entry.get("uptime_last_1d")),
        first_token_ms=_percentiles(entry.get("latency_last_30m")),
        tokens_per_s=_percentiles(entry.get("throughput_last_30m")),
    )


def _discount(value: Any) -> Decimal | None:
    """Percent, out of a share of one; None for no discount as for one that cannot be."""
    try:
        share = exact_decimal(value)
    except ValueError:
        return None
    return share * 100 if 0 < share <= 1 else None


def _percentiles(value: Any) -> Percentiles | None:
    stated = {key: _positive(number) for key, number in mapping_of(value).items()}
    median = stated.get("p50")
    if median is None:
        return None
    return Percentiles(p50=median, p75=stated.get("p75"), p90=stated.get("p90"), p99=stated.get("p99"))


def _percent(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 100 else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
