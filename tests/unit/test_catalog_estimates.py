"""The estimator: its ceiling is a promise, so it is checked against another computation, on every model that has a price."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import Estimate, EstimateCost, Model
from contracts.errors import ErrorCode, ServiceError
from services.catalog.estimates import estimate, price_of
from tests.unit.catalog_parts import MODELS, RAW, model

KNOWN = sorted(model_id for model_id, seen in MODELS.items() if seen.price_kind in {"fixed", "tiered", "free"})


def ask(seen: Model, **request: Any) -> Estimate:
    return estimate(EstimateCost.model_validate({"model_id": seen.id, **request}), seen)


def bill(raw: dict[str, Any], prompt_tokens: int, completion_tokens: int) -> Decimal:
    """What upstream would charge, computed from its own words: entries above their threshold win, later ones last."""
    prices = dict(raw["pricing"])
    for override in prices.pop("overrides", []):
        if prompt_tokens > override["min_prompt_tokens"]:
            prices |= {key: value for key, value in override.items() if key != "min_prompt_tokens"}
    return prompt_tokens * Decimal(prices["prompt"]) + completion_tokens * Decimal(prices["completion"])


@given(
    st.sampled_from(KNOWN),
    st.one_of(st.integers(0, 3_000_000), st.sampled_from([32_000, 128_000, 200_000, 256_000, 272_000])),
    st.integers(1, 500_000),
    st.data(),
)
def test_no_bill_within_the_limits_is_above_the_ceiling(
    model_id: str, prompt_tokens: int, max_tokens: int, data: st.DataObject
) -> None:
    result = ask(MODELS[model_id], prompt_tokens=prompt_tokens, max_tokens=max_tokens)
    assert result.ceiling_usd is not None
    assert result.max_completion_tokens is not None
    used_prompt = data.draw(st.integers(0, prompt_tokens))
    used_completion = data.draw(st.integers(0, result.max_completion_tokens))
    assert bill(RAW[model_id], used_prompt, used_completion) <= result.ceiling_usd
    assert result.low_usd is not None
    assert result.expected_usd is not None
    assert 0 <= result.low_usd <= result.expected_usd <= result.ceiling_usd


@given(st.sampled_from(KNOWN), st.integers(0, 2_000_000), st.integers(1, 4_000))
def test_the_ceiling_of_text_is_the_bill_of_the_largest_call(
    model_id: str, prompt_tokens: int, max_tokens: int
) -> None:
    seen, result = MODELS[model_id], ask(MODELS[model_id], prompt_tokens=prompt_tokens, max_tokens=max_tokens)
    if "audio" not in seen.output_modalities:
        assert result.max_completion_tokens is not None
        assert result.ceiling_usd == bill(RAW[model_id], prompt_tokens, result.max_completion_tokens)


@given(st.text(max_size=300))
def test_a_text_has_no_more_tokens_than_the_ceiling_allows(text: str) -> None:
    seen = model(pricing={"prompt": "1", "completion": "0.5"})
    result = ask(seen, prompt=text, max_tokens=1)
    assert result.ceiling_usd is not None
    assert result.prompt_tokens <= len(text.encode("utf-8", "replace")) <= result.ceiling_usd


def test_a_tier_begins_strictly_above_its_threshold() -> None:
    seen = model(
        context_length=1_000_000,
        pricing={
            "prompt": "1",
            "completion": "0",
            "overrides": [{"min_prompt_tokens": 100, "prompt": "2"}, {"min_prompt_tokens": 200, "prompt": "3"}],
        },
    )
    assert [ask(seen, prompt_tokens=size, max_tokens=1).expected_usd for size in (100, 101, 200, 201)] == [
        100,
        202,
        400,
        603,
    ]


def test_later_entries_win_and_missing_keys_keep_the_base_price() -> None:
    seen = model(
        pricing={
            "prompt": "1",
            "completion": "10",
            "overrides": [{"min_prompt_tokens": 5, "prompt": "9"}, {"min_prompt_tokens": 3, "prompt": "2"}],
        },
    )
    assert ask(seen, prompt_tokens=6, max_tokens=1).ceiling_usd == 6 * 2 + 10


def test_the_ceiling_knows_that_a_cheaper_tier_can_make_less_text_dearer() -> None:
    seen = model(
        pricing={"prompt": "10", "completion": "0.1", "overrides": [{"min_prompt_tokens": 100, "prompt": "1"}]}
    )
    result = ask(seen, prompt_tokens=150, max_tokens=1)
    assert (result.expected_usd, result.ceiling_usd) == (Decimal("150.1"), Decimal("1000.1"))


@pytest.mark.parametrize(
    "condition", [{"utc_start": 900, "utc_end": 1700}, {"utc_start": "2200", "utc_end": "0600"}, {"moon": "full"}]
)
def test_prices_that_may_or_may_not_hold_count_for_the_ceiling_only(condition: dict[str, Any]) -> None:
    for other, ceiling in (("3", 300), ("0.5", 100)):
        seen = model(pricing={"prompt": "1", "completion": "0", "overrides": [{**condition, "prompt": other}]})
        result = ask(seen, prompt_tokens=100, max_tokens=1)
        assert result.expected_usd == 100
        assert result.ceiling_usd == ceiling


def test_what_nobody_can_know_is_none_and_said() -> None:
    for model_id in ("openrouter/auto", "google/lyria-3-pro-preview", "openai/whisper-1"):
        result = ask(MODELS[model_id], prompt="hello", price="0.01")
        assert result.low_usd is result.expected_usd is result.ceiling_usd is None
        assert result.price_usd == Decimal("0.01")
        assert result.margin is not None
        assert result.margin.expected_usd is None
        assert any("nobody can say" in sentence or "unknown" in sentence for sentence in result.assumptions)


def test_nothing_limits_the_answer_of_a_model_without_limits() -> None:
    seen = model(context_length=None, top_provider=None)
    assert ask(seen, prompt_tokens=10).ceiling_usd is None
    assert ask(seen, prompt_tokens=10).expected_usd is not None
    assert ask(seen, prompt_tokens=10, max_tokens=7).ceiling_usd is not None


def test_free_is_zero() -> None:
    result = ask(MODELS["openrouter/free"], prompt="hello")
    assert result.low_usd == result.expected_usd == result.ceiling_usd == 0


def test_reasoning_and_sound_that_cost_more_are_in_the_ceiling() -> None:
    seen = model(pricing={"prompt": "0", "completion": "1", "internal_reasoning": "5"})
    assert ask(seen, prompt_tokens=1, max_tokens=10).ceiling_usd == 50
    audio = ask(MODELS["openai/gpt-audio"], prompt_tokens=0, max_tokens=1000)
    assert audio.ceiling_usd == 1000 * Decimal("0.000064")


def test_pictures_are_tokens() -> None:
    seen = MODELS["google/gemini-2.5-flash-image"]
    plain, with_picture = (
        ask(seen, prompt_tokens=10, max_tokens=10),
        ask(seen, prompt_tokens=10, max_tokens=10, images_out=1),
    )
    assert with_picture.expected_usd is not None
    assert plain.expected_usd is not None
    assert with_picture.ceiling_usd is not None
    assert with_picture.expected_usd - plain.expected_usd == Decimal("0.0387")
    assert with_picture.ceiling_usd > with_picture.expected_usd
    unpriced = model(architecture={"input_modalities": ["text"], "output_modalities": ["text", "image"]})
    assert ask(unpriced, prompt_tokens=10, images_out=1).ceiling_usd is None
    reading = ask(seen, prompt_tokens=0, max_tokens=1, images_in=2).expected_usd
    assert reading == 2_000 * Decimal("0.0000003") + Decimal("0.0000025")


def test_pictures_count_for_the_tier() -> None:
    seen = model(pricing={"prompt": "1", "completion": "0.1", "overrides": [{"min_prompt_tokens": 900, "prompt": "2"}]})
    assert ask(seen, prompt_tokens=0, max_tokens=1, images_in=1).expected_usd == Decimal("2000.1")


def test_web_searches_are_counted_and_fill_the_context_in_the_ceiling() -> None:
    seen = model(pricing={"prompt": "0.001", "completion": "0.001", "web_search": "1"}, context_length=5000)
    plain = ask(seen, prompt_tokens=10, max_tokens=1).expected_usd
    result = ask(seen, prompt_tokens=10, max_tokens=1, web_searches=3)
    assert plain is not None
    assert result.expected_usd == plain + 3
    assert result.ceiling_usd == 3 + 5 + Decimal("0.001")
    assert ask(model(), prompt_tokens=10, web_searches=1).expected_usd is None


def test_a_discount_lowers_the_low_figure_only() -> None:
    seen = model(pricing={"prompt": "1", "completion": "1", "discount": Decimal("0.5")})
    result = ask(seen, prompt_tokens=9, max_tokens=2)
    assert [result.low_usd, result.expected_usd, result.ceiling_usd] == [5, 10, 11]


def test_margins_are_price_less_cost_in_each_case() -> None:
    seen = model(pricing={"prompt": "1", "completion": "1"})
    result = ask(seen, prompt_tokens=9, max_tokens=2, price="20")
    assert result.margin is not None
    assert [result.margin.low_usd, result.margin.expected_usd, result.margin.ceiling_usd] == [10, 10, 9]
    plus = {"mode": "cost_plus", "markup_percent": "50", "max_usd": "16"}
    result = ask(seen, prompt_tokens=9, max_tokens=2, price=plus)
    assert result.margin is not None
    assert [result.price_usd, result.margin.expected_usd, result.margin.ceiling_usd] == [15, 5, 5]


@given(st.decimals(0, 10, places=9), st.decimals(0, 500, places=3), st.decimals(0, 5, places=6))
def test_a_cost_plus_price_stays_within_its_limits(cost: Decimal, markup: Decimal, minimum: Decimal) -> None:
    pricing = {"mode": "cost_plus", "markup_percent": str(markup), "min_usd": str(minimum), "max_usd": "5"}
    parsed = EstimateCost.model_validate({"model_id": "m/a", "prompt_tokens": 1, "price": pricing}).price
    assert parsed is not None
    price = price_of(parsed, cost)
    assert price is not None
    assert minimum <= price <= 5
    assert price == round(price, 6)
    assert price_of(parsed, None) is None


def test_an_estimate_needs_a_prompt_or_its_size() -> None:
    with pytest.raises(ServiceError) as refused:
        ask(model())
    assert refused.value.code is ErrorCode.INVALID
    assert [problem.path for problem in refused.value.body.fields] == ["prompt"]


def test_the_model_s_own_limit_holds_when_more_is_asked_for() -> None:
    assert ask(model(), prompt_tokens=1, max_tokens=1_000_000).max_completion_tokens == 4096
    assert ask(model(top_provider={}), prompt_tokens=1).max_completion_tokens == 8192
