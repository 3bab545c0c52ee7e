"""The promise of a ceiling, against bills made out by another reading of the price rules.

The other reading (reference §1.3) works on upstream's raw JSON, in fractions: an entry of `overrides` applies when all its
conditions hold, `min_prompt_tokens` means strictly more, later entries win key by key, the hour is half-open and may wrap,
a key that is missing is billed as the kind of token that it is a special case of.
"""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from contracts.catalog import Estimate, EstimateCost
from services.catalog.estimates import IMAGE_IN_MOST, IMAGE_OUT_MOST, SOUND_IN_MOST, estimate
from tests.unit.catalog_parts import model

CONTEXT = 40_000


@dataclass(frozen=True)
class Used:
    """What a call took, as upstream counts it."""

    plain: int
    cached: int
    written: int
    written_1h: int
    images_in: int
    sound_in: int
    sound_cached: int
    text_out: int
    thinking: int
    speech: int
    images_out: int
    searches: int
    at: int
    """Minute of the day, UTC."""

    @property
    def prompt(self) -> int:
        text = self.plain + self.cached + self.written + self.written_1h
        return text + self.images_in + self.sound_in + self.sound_cached


def holds(condition: dict[str, Any], used: Used) -> bool:
    if used.prompt <= condition.get("min_prompt_tokens", -1):
        return False
    start, end = (condition.get(key) for key in ("utc_start", "utc_end"))
    if start is None and end is None:
        return True
    begin, stop = (0 if text is None else int(text[:2]) * 60 + int(text[2:]) for text in (start, end))
    if end is None:
        stop = 24 * 60
    return begin <= used.at < stop if begin <= stop else used.at >= begin or used.at < stop


def bill(pricing: dict[str, Any], used: Used) -> Fraction:
    prices = {key: value for key, value in pricing.items() if key != "overrides"}
    for entry in pricing.get("overrides", []):
        if holds(entry, used):
            prices |= {k: v for k, v in entry.items() if k not in {"min_prompt_tokens", "utc_start", "utc_end"}}

    def usd(key: str, otherwise: str | None = None) -> Fraction:
        text = prices.get(key, None if otherwise is None else prices.get(otherwise))
        return Fraction(0) if text is None else Fraction(text)

    return (
        usd("request")
        + used.plain * usd("prompt")
        + used.cached * usd("input_cache_read", "prompt")
        + used.written * usd("input_cache_write", "prompt")
        + used.written_1h * usd("input_cache_write_1h", "prompt")
        + used.images_in * usd("image", "prompt")
        + used.sound_in * usd("audio", "prompt")
        + used.sound_cached * usd("input_audio_cache", "audio" if "audio" in prices else "prompt")
        + used.text_out * usd("completion")
        + used.thinking * usd("internal_reasoning", "completion")
        + used.speech * usd("audio_output", "completion")
        + used.images_out * usd("image_output", "completion")
        + used.searches * usd("web_search")
    )


amounts = st.decimals("0", "0.02", places=18).map(lambda value: format(value, "f"))
FURTHER = (
    *("request", "web_search", "input_cache_read", "input_cache_write", "input_cache_write_1h", "image"),
    *("audio", "input_audio_cache", "internal_reasoning", "image_output", "audio_output"),
)
optional = dict.fromkeys(FURTHER, amounts)
hours = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda clock: f"{clock[0]:02d}{clock[1]:02d}")
overrides = st.fixed_dictionaries(
    {},
    optional={
        "min_prompt_tokens": st.integers(0, 30_000),
        "utc_start": hours,
        "utc_end": hours,
        "prompt": amounts,
        "completion": amounts,
        **optional,
    },
)
prices = st.builds(
    lambda base, tiers: {**base, "overrides": tiers},
    st.fixed_dictionaries({"prompt": amounts, "completion": amounts}, optional=optional),
    st.lists(overrides, max_size=3),
)
requests = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 30_000), "max_tokens": st.integers(1, 5_000)},
    optional={
        "cached_tokens": st.integers(0, 40_000),
        "cache_ttl": st.sampled_from(["5m", "1h"]),
        "images_in": st.integers(0, 2),
        "images_out": st.integers(0, 2),
        "audio_in_s": st.integers(0, 60),
        "audio_out_s": st.integers(0, 60),
        "web_searches": st.integers(0, 3),
    },
)


def ask(pricing: dict[str, Any], request: dict[str, Any]) -> Estimate:
    seen = model(
        pricing=pricing,
        context_length=CONTEXT,
        top_provider={"max_completion_tokens": 4_096},
        architecture={
            "input_modalities": ["text", "image", "audio"],
            "output_modalities": ["text", "image", "audio"],
        },
    )
    return estimate(EstimateCost.model_validate({"model_id": seen.id, **request}), seen)


def parts_of(data: st.DataObject, total: int, count: int) -> list[int]:
    """Some whole of at most `total`, cut into pieces."""
    pieces = []
    for _ in range(count):
        pieces.append(data.draw(st.integers(0, total)))
        total -= pieces[-1]
    return pieces


@given(prices, requests, st.data())
def test_no_call_within_its_limits_is_billed_above_the_ceiling(
    pricing: dict[str, Any], request: dict[str, Any], data: st.DataObject
) -> None:
    result = ask(pricing, request)
    ceiling = result.ceiling_usd
    assume(ceiling is not None)
    assert ceiling is not None
    searches = data.draw(st.integers(0, request.get("web_searches", 0)))
    most_text = max(request["prompt_tokens"], CONTEXT if searches else 0)
    plain, cached, written, written_1h = parts_of(data, most_text, 4)
    if request.get("cache_ttl") != "1h":
        plain, written_1h = plain + written_1h, 0
    sound_in, sound_cached = parts_of(data, request.get("audio_in_s", 0) * SOUND_IN_MOST, 2)
    assert result.max_completion_tokens is not None
    text_out, thinking, speech = parts_of(data, result.max_completion_tokens, 3)
    used = Used(
        plain,
        cached,
        written,
        written_1h,
        data.draw(st.integers(0, request.get("images_in", 0) * IMAGE_IN_MOST)),
        sound_in,
        sound_cached,
        text_out,
        thinking,
        speech,
        data.draw(st.integers(0, request.get("images_out", 0) * IMAGE_OUT_MOST)),
        searches,
        data.draw(st.integers(0, 24 * 60 - 1)),
    )
    assert bill(pricing, used) <= Fraction(ceiling)
    assert result.low_usd is not None
    assert result.expected_usd is not None
    assert 0 <= result.low_usd <= result.expected_usd <= ceiling


@given(
    st.decimals("0.000000000000000000000001", "0.000001", places=24).map(lambda value: format(value, "f")),
    st.integers(0, 100_000_000),
)
def test_not_a_digit_is_lost(price: str, prompt_tokens: int) -> None:
    result = ask({"prompt": price, "completion": price}, {"prompt_tokens": prompt_tokens, "max_tokens": 3})
    assert isinstance(result.ceiling_usd, Decimal)
    assert Fraction(result.ceiling_usd) == (prompt_tokens + 3) * Fraction(price)
    assert Fraction(result.model_dump(mode="json")["ceiling_usd"]) == Fraction(result.ceiling_usd)
