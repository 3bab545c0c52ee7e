"""What a run can cost at most: never less than any bill that upstream could make of it."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import CostBound, FixedPrice, Model, ModelPricing, OpenRouterConfig, ResourceDraft
from contracts.errors import ErrorCode, ServiceError
from contracts.market import CallerBudget, ResourceBudgets
from services.catalog.bounds import bound_of
from services.executor.ceilings import cost_at_most
from services.executor.limits import caller_limit, hold_of, is_limited
from services.executor.request import build_request, models_asked
from tests.unit.executor_parts import ADA, BOB, EVE, PUBLISHER_ADA, resource

CENT = Decimal("0.01")
PRICES = st.decimals(min_value=0, max_value="0.001", places=9)


def priced(model_id: str = "a/b", **changes: Any) -> Model:
    pricing = ModelPricing(
        **{"prompt": "0.000001", "completion": "0.000002", "price_kind": "fixed", **changes.pop("pricing", {})}
    )
    values = {"id": model_id, "pricing": pricing, "price_kind": pricing.price_kind, "context_length": 8000, **changes}
    return resource().model.model_copy(update={"supported_parameters": ["max_tokens"], **values})


def draft(**config: Any) -> ResourceDraft:
    values = {"model_id": "a/b", "prompt_template": "Hi", "max_tokens": 100, **config}
    return ResourceDraft(
        resource_type="openrouter_instant",
        name="N",
        slug="n",
        openrouter_config=OpenRouterConfig(**values),
        pricing=FixedPrice(mode="fixed", price_usd=CENT),
    )


def bound(models: list[Model], **config: Any) -> CostBound:
    found, reason = bound_of(draft(**config), models)
    assert found is not None, reason
    return found


@given(
    text=st.text(max_size=300),
    prompt=PRICES,
    completion=PRICES,
    high=PRICES,
    tokens_out=st.integers(min_value=0, max_value=100),
    share=st.floats(min_value=0, max_value=1),
)
def test_no_bill_within_the_guard_is_higher(
    text: str, prompt: Decimal, completion: Decimal, high: Decimal, tokens_out: int, share: float
) -> None:
    tier = {"min_prompt_tokens": 1000, "prompt": format(high, "f"), "completion": format(completion, "f")}
    model = priced(pricing={"prompt": format(prompt, "f"), "completion": format(completion, "f"), "overrides": [tier]})
    body = {"model": "a/b", "messages": [{"role": "user", "content": text}]}
    ceiling = cost_at_most(bound([model]), body)
    # Never more tokens than bytes; any provider may ask up to the highest tier; five percent for a key of their own.
    tokens_in = int(share * len(text.encode(errors="replace")))
    bill = (tokens_in * max(prompt, high) + tokens_out * completion) * Decimal("1.05")
    assert ceiling >= bill


def test_bound_is_that_of_the_dearest_model_that_may_answer() -> None:
    cheap, dear = priced(), priced("c/d", pricing={"prompt": "0.00001", "completion": "0.000001"})
    both = bound([cheap, dear])
    assert (both.token_in_usd, both.rest_usd) == (Decimal("0.00001"), 100 * Decimal("0.000002"))
    gone = dear.model_copy(update={"status": "retired"})
    assert bound([cheap, gone]).token_in_usd == Decimal("0.000001")


@pytest.mark.parametrize(
    ("changes", "config", "says"),
    [
        ({"pricing": {"price_kind": "runtime"}}, {}, "decided when it runs"),
        ({"pricing": {"price_kind": "unknown"}}, {}, "does not say what a/b bills"),
        ({"context_length": None}, {}, "how long a prompt"),
        ({}, {"parameters": {"plugins": [{"id": "web"}]}}, "searching the web"),
        ({}, {"parameters": {"plugins": [{"id": "fusion"}]}}, "plugin fusion"),
        ({}, {"parameters": {"tools": [{"type": "openrouter:code"}]}}, "tool openrouter:code"),
        ({}, {"modalities": ["text", "image"]}, "pictures"),
    ],
)
def test_what_nobody_can_bound_says_what_to_change(changes: Any, config: Any, says: str) -> None:
    found, reason = bound_of(draft(**config), [priced(**changes)])
    assert found is None
    assert reason is not None
    assert says in reason


def test_pictures_sound_documents_and_tools_are_counted() -> None:
    of = CostBound(
        token_in_usd=Decimal(1),
        picture_in_usd=Decimal(1000),
        sound_in_s_usd=Decimal(10),
        document_in_usd=Decimal(7),
        rest_usd=Decimal(0),
        context_tokens=50_000,
    )

    def cost(*parts: dict[str, Any], sound_bytes: int = 0, **body: Any) -> Decimal:
        return cost_at_most(of, {"messages": [{"role": "user", "content": list(parts)}], **body}, sound_bytes)

    picture = {"type": "image_url", "image_url": {"url": "mark"}}
    plain = cost()
    assert cost(picture, picture) - plain == 2100
    assert cost(sound_bytes=1500) - plain == 21
    assert cost({"type": "file", "file": {}}) == Decimal("1.05") * (50_000 + 7)
    assert cost(tools=[{"type": "function"}]) - plain > 1000


# Limits ---------------------------------------------------------------------------------------------------------------


def test_limit_of_a_caller_is_their_own_or_that_of_all_and_never_the_creators() -> None:
    own = [CallerBudget(caller_id="bob", daily_usd=CENT), CallerBudget(caller_id="ada", daily_usd=CENT * 3)]
    budgets = ResourceBudgets(caller_daily_usd=CENT * 2, callers=own[:1])
    assert [caller_limit(budgets, "ada", each) for each in (BOB, EVE, ADA, PUBLISHER_ADA)] == [
        CENT,
        CENT * 2,
        None,
        CENT * 2,
    ]
    assert not is_limited(budgets, "ada", ADA)
    # One that names the creator is meant.
    assert caller_limit(ResourceBudgets(callers=own), "ada", ADA) == CENT * 3


def test_run_that_no_day_can_pay_for_is_a_conflict_that_time_does_not_mend() -> None:
    limited = resource(budgets=ResourceBudgets(resource_daily_usd=CENT))
    for caller, told in ((ADA, True), (BOB, False)):
        with pytest.raises(ServiceError) as caught:
            hold_of(limited, caller, CENT * 2)
        assert (caught.value.code, caught.value.body.retryable) == (ErrorCode.CONFLICT, False)
        assert ("0.02 USD" in str(caught.value)) is told


# Fallbacks ------------------------------------------------------------------------------------------------------------


def test_fallback_stands_in_for_a_retired_model_and_the_guard_is_the_dearest_price() -> None:
    config = OpenRouterConfig(model_id="a/b", fallback_models=["c/d", "e/f"], prompt_template="Hello")
    fallbacks = [priced("c/d", pricing={"prompt": "0.000003"}), priced("e/f").model_copy(update={"status": "retired"})]
    living = resource(config=config, model=priced(), fallbacks=fallbacks)
    body = build_request(living, {}, user="u").body
    assert (body["model"], body["models"]) == ("a/b", ["a/b", "c/d"])
    assert body["provider"] == {"max_price": {"prompt": 3, "completion": 2}}
    gone = resource(config=config, model=priced().model_copy(update={"status": "retired"}), fallbacks=fallbacks)
    assert models_asked(gone) == ["c/d"]
    body = build_request(gone, {}, user="u").body
    assert (body["model"], "models" in body) == ("c/d", False)
    unknown = resource(config=config, model=priced(), fallbacks=[priced("c/d", pricing={"price_kind": "runtime"})])
    assert "provider" not in build_request(unknown, {}, user="u").body
