"""The estimator: its ceiling is a promise, so it is checked against another computation, on every model that has a price."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import CostPlusPrice, Estimate, EstimateCost, FixedPrice, Model, Pricing, ResourceDraft
from contracts.errors import ErrorCode, ServiceError
from contracts.templates import render
from services.catalog.breakdown import breakdown
from services.catalog.estimates import estimate, price_of
from services.catalog.sizes import (
    CHAT_FRAME_TOKENS,
    MeasuredTokens,
    fill_from_resource,
    limits_answers,
    searches_the_web,
    size_of_resource,
)
from services.executor.pricing import price_of as charged_price
from tests.unit.catalog_parts import MODELS, RAW, model

# Those that search as often as they like, or answer as long as they like, have no ceiling; that is tested on its own.
KNOWN = sorted(
    model_id
    for model_id, seen in MODELS.items()
    if seen.price_kind in {"fixed", "tiered", "free"}
    and (seen.context_length or seen.max_completion_tokens or limits_answers(seen))
    and not ("deep-research" in model_id and "web_search" in RAW[model_id]["pricing"])
)


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
    # What is written to a cache costs more than plain text with these, speech more than text, and searches come on top.
    plain = "audio" not in seen.output_modalities and not model_id.startswith("perplexity/")
    if plain and "input_cache_write" not in RAW[model_id]["pricing"]:
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


def test_a_model_that_always_searches_is_billed_for_it() -> None:
    result = ask(MODELS["perplexity/sonar"], prompt_tokens=1000, max_tokens=1000)
    assert result.expected_usd == Decimal("0.005") + 1500 * Decimal("0.000001")
    assert result.ceiling_usd == Decimal("0.005") + (127_072 + 1000) * Decimal("0.000001")
    digging = ask(MODELS["perplexity/sonar-deep-research"], prompt_tokens=1000, max_tokens=1000)
    assert digging.expected_usd is not None
    assert digging.ceiling_usd is None
    assert any("no ceiling" in sentence for sentence in digging.assumptions)
    limited = ask(MODELS["perplexity/sonar-deep-research"], prompt_tokens=1000, max_tokens=1000, web_searches=9)
    assert limited.ceiling_usd is not None


@pytest.mark.parametrize(
    ("parameters", "searches"),
    [
        ({}, False),
        ({"plugins": [{"id": "web", "max_results": 3}]}, True),
        ({"plugins": [{"id": "web", "enabled": False}, {"id": "file-parser"}, "web"]}, False),
        ({"plugins": "web", "tools": {"type": "web_search"}}, False),
        ({"web_search_options": {}}, True),
        ({"tools": [{"type": "function", "function": {"name": "web_search"}}]}, False),
        ({"tools": [{"type": "openrouter:web_search"}]}, True),
    ],
)
def test_a_resource_that_may_search_is_billed_for_it(parameters: dict[str, Any], searches: bool) -> None:
    seen = model(pricing={"prompt": "0.001", "completion": "0.001", "web_search": "1"})
    one = draft(config={"parameters": parameters})
    assert searches_the_web(one) is searches
    shown = breakdown(one, [seen], None)
    plain = breakdown(draft(), [seen], None)
    assert shown.expected.model_usd is not None
    assert plain.expected.model_usd is not None
    assert shown.expected.model_usd - plain.expected.model_usd == int(searches)
    assert shown.ceiling.model_usd == (None if searches else plain.ceiling.model_usd)
    assert breakdown(one, [model()], None).expected.model_usd is None or not searches


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
    assert price_of(parsed, None) == (5 if minimum == 5 else None)


@st.composite
def cost_plus_prices(draw: st.DrawFn) -> CostPlusPrice:
    """With bounds of more digits than a computed price has, and now and then with no room between them."""
    highest = draw(st.decimals("0.000000001", "0.01", places=9))
    lowest = draw(st.one_of(st.none(), st.just(highest), st.decimals(0, highest, places=9)))
    return CostPlusPrice(
        mode="cost_plus", markup_percent=draw(st.decimals(0, 500, places=5)), min_usd=lowest, max_usd=highest
    )


@given(
    st.one_of(cost_plus_prices(), st.decimals(0, 1, places=9).map(lambda usd: FixedPrice(mode="fixed", price_usd=usd))),
    st.one_of(st.none(), st.decimals(0, "0.02", places=12)),
)
def test_the_price_foretold_is_the_price_that_is_charged(pricing: Pricing, cost: Decimal | None) -> None:
    assert price_of(pricing, cost) == charged_price(pricing, cost)


def test_a_bound_is_not_rounded() -> None:
    half = Decimal("0.0000005")
    pricing = CostPlusPrice(mode="cost_plus", markup_percent=Decimal(0), min_usd=half, max_usd=half)
    assert [price_of(pricing, cost) for cost in (None, Decimal(0), Decimal(1))] == [half] * 3


def test_an_estimate_needs_a_prompt_or_its_size() -> None:
    with pytest.raises(ServiceError) as refused:
        ask(model())
    assert refused.value.code is ErrorCode.INVALID
    assert [problem.path for problem in refused.value.body.fields] == ["prompt"]


def test_the_model_s_own_limit_holds_when_more_is_asked_for() -> None:
    assert ask(model(), prompt_tokens=1, max_tokens=1_000_000).max_completion_tokens == 4096
    assert ask(model(top_provider={}), prompt_tokens=1).max_completion_tokens == 8192


def test_a_limit_that_a_model_does_not_take_limits_nothing() -> None:
    deaf = model(supported_parameters=["temperature"])
    result = ask(deaf, prompt_tokens=1, max_tokens=10)
    assert result.max_completion_tokens == 4096
    assert any("takes no max_tokens" in sentence for sentence in result.assumptions)
    newer = model(supported_parameters=["max_completion_tokens"])
    assert ask(newer, prompt_tokens=1, max_tokens=10).max_completion_tokens == 10


CACHING = {"prompt": "4", "completion": "1", "input_cache_read": "1", "input_cache_write": "5"}


def test_a_cache_makes_reading_cheap_and_writing_dear() -> None:
    seen = model(pricing={**CACHING, "input_cache_write_1h": "8"}, context_length=100)
    plain = ask(seen, prompt_tokens=10, max_tokens=1)
    assert [plain.expected_usd, plain.ceiling_usd] == [41, 51], "a provider may write to its cache unasked"
    reading = ask(seen, prompt_tokens=10, max_tokens=1, cached_tokens=6)
    assert [reading.low_usd, reading.expected_usd, reading.ceiling_usd] == [23, 23, 51]
    assert any("may have gone" in sentence for sentence in reading.assumptions)
    writing = ask(seen, prompt_tokens=10, max_tokens=1, cache_ttl="5m")
    assert [writing.expected_usd, writing.ceiling_usd] == [51, 51]
    hour = ask(seen, prompt_tokens=10, max_tokens=1, cache_ttl="1h")
    assert [hour.expected_usd, hour.ceiling_usd] == [81, 81]


def test_the_recorded_models_that_cache_unasked_are_covered() -> None:
    result = ask(MODELS["openai/gpt-5.6-terra"], prompt_tokens=1000, max_tokens=1)
    assert result.ceiling_usd == 1000 * Decimal("0.00000125") + Decimal("0.000006")


def test_sound_is_tokens_of_its_own_price() -> None:
    seen = MODELS["google/gemini-3.5-flash"]
    silent = ask(seen, prompt_tokens=10, max_tokens=10)
    spoken = ask(seen, prompt_tokens=10, max_tokens=10, audio_in_s=60)
    assert spoken.expected_usd is not None
    assert silent.expected_usd is not None
    assert spoken.ceiling_usd is not None
    assert silent.ceiling_usd is not None
    assert spoken.expected_usd - silent.expected_usd == 60 * 32 * Decimal("0.000003")
    assert spoken.ceiling_usd - silent.ceiling_usd == 60 * 100 * Decimal("0.000003")
    speaking = ask(MODELS["openai/gpt-audio"], prompt_tokens=0, max_tokens=1000, audio_out_s=10)
    assert speaking.expected_usd == 500 * Decimal("0.00001") + 200 * Decimal("0.000064")
    assert ask(model(), prompt_tokens=1, audio_out_s=1).ceiling_usd is None


def test_what_runs_took_is_expected_of_the_next() -> None:
    seen = model(pricing={**CACHING, "internal_reasoning": "3"}, context_length=1_000)
    measured = MeasuredTokens(runs=4, prompt_tokens=400, completion_tokens=200, reasoning_tokens=80, cached_tokens=40)
    request = EstimateCost(model_id=seen.id, prompt_tokens=300, max_tokens=100)
    result = estimate(request, seen, measured=measured)
    assert result.measured_runs == 4
    assert (result.prompt_tokens, result.expected_completion_tokens) == (100, 50)
    assert result.expected_usd == 90 * 4 + 10 * 1 + 30 * 1 + 20 * 3
    assert result.ceiling_usd == 300 * 5 + 100 * 3, "the ceiling is a promise about the request, not about the past"
    assert any("Measured over 4 runs" in sentence for sentence in result.assumptions)
    runtime = estimate(request, MODELS["openrouter/auto"], measured=measured)
    assert runtime.expected_usd is None


@pytest.mark.parametrize(
    ("completion", "reasoning", "usd"),
    [
        (1290, 0, 1290 * Decimal("0.00003")),
        (1000, 900, 1000 * Decimal("0.00003")),
        (1790, 300, 1290 * Decimal("0.00003") + 500 * Decimal("0.0000025")),
    ],
)
def test_measured_pictures_cost_what_pictures_cost(completion: int, reasoning: int, usd: Decimal) -> None:
    seen = MODELS["google/gemini-2.5-flash-image"]
    measured = MeasuredTokens(2, 0, 2 * completion, 2 * reasoning, 0)
    request = EstimateCost(model_id=seen.id, prompt_tokens=0, images_out=1)
    result = estimate(request, seen, measured=measured)
    assert result.expected_usd == usd
    assert result.expected_completion_tokens == completion
    assert any(sentence.endswith("are taken for pictures.") for sentence in result.assumptions)


def test_measured_speech_costs_what_speech_costs() -> None:
    seen = MODELS["openai/gpt-audio"]
    request = fill_from_resource(
        EstimateCost(model_id=seen.id, prompt_tokens=0), draft(config={"modalities": ["text", "audio"]})
    )
    result = estimate(request, seen, measured=MeasuredTokens(1, 0, 400, 0, 0))
    assert result.expected_usd == 400 * Decimal("0.000064")
    assert estimate(request, seen).expected_usd == 25 * Decimal("0.00001") + 200 * Decimal("0.000064")


def draft(**changes: Any) -> ResourceDraft:
    config = {
        "model_id": "maker/model",
        "prompt_template": "Say {{what}}!",
        "max_tokens": 50,
        **changes.pop("config", {}),
    }
    return ResourceDraft.model_validate(
        {
            "resource_type": "openrouter_instant",
            "name": "R",
            "slug": "r",
            "openrouter_config": config,
            "inputs": [{"name": "what", "max_length": 10}],
            "pricing": {"mode": "fixed", "price_usd": "0.5"},
            **changes,
        }
    )


def test_the_prompt_of_a_resource_is_bounded_by_the_limits_of_its_inputs() -> None:
    seen = model(context_length=100_000)
    size = size_of_resource(draft(config={"system_prompt": "Be {{what}} and {{what}}."}), seen)
    # Two templates, the input three times with at most ten characters of four bytes.
    assert size.most == CHAT_FRAME_TOKENS + len("Be  and .") + len("Say !") + 3 * 40
    assert size.expected == 8 + 4
    unlimited = draft(inputs=[{"name": "what"}])
    assert size_of_resource(unlimited, seen).most == 100_000, "what nothing limits is limited by the context"
    assert size_of_resource(unlimited, model(context_length=None, top_provider=None)).most is None
    picture = draft(inputs=[{"name": "what", "max_length": 1}, {"name": "photo", "type": "image"}])
    assert size_of_resource(picture, seen).images == 1
    sound = draft(inputs=[{"name": "what", "max_length": 1}, {"name": "clip", "type": "audio"}])
    assert size_of_resource(sound, seen).most == 100_000


@given(st.text(max_size=10))
def test_no_input_within_its_limit_makes_a_longer_prompt(what: str) -> None:
    seen = model(context_length=100_000)
    one = draft()
    prompt = render(one.openrouter_config.prompt_template, {"what": what})
    most = size_of_resource(one, seen).most
    assert most is not None
    assert len(prompt.encode("utf-8", "replace")) + CHAT_FRAME_TOKENS <= most


def test_a_resource_fills_in_what_the_request_does_not_say() -> None:
    one = draft(
        config={"parameters": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "modalities": ["text", "image"]}
    )
    filled = fill_from_resource(EstimateCost(model_id="maker/model"), one)
    assert (filled.max_tokens, filled.cache_ttl, filled.images_out) == (50, "1h", 1)
    assert filled.price == one.pricing
    asked = EstimateCost.model_validate({"model_id": "maker/model", "max_tokens": 7, "price": "0.1", "cache_ttl": "5m"})
    filled = fill_from_resource(asked, one)
    assert (filled.max_tokens, filled.cache_ttl, filled.price) == (7, "5m", asked.price)


def test_free_says_so() -> None:
    assert any("free" in sentence for sentence in ask(MODELS["openai/gpt-oss-20b:free"], prompt="x").assumptions)
