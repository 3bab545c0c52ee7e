"""The price rules: when a price is due, what it is, and what is unknown."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.catalog import CostPlusPrice, FixedPrice, Pricing
from contracts.execution import Cost
from services.executor.pricing import Ending, cost_of, highest_price, is_due, price_of

FIXED = FixedPrice(mode="fixed", price_usd=Decimal("0.01"))
CENT = Decimal("0.01")


def cost_plus(markup: str = "40", lowest: str | None = "0.002", highest: str = "0.10") -> CostPlusPrice:
    return CostPlusPrice(
        mode="cost_plus",
        markup_percent=Decimal(markup),
        min_usd=None if lowest is None else Decimal(lowest),
        max_usd=Decimal(highest),
    )


@pytest.mark.parametrize(
    ("ending", "text_delivered", "due"),
    [
        ("succeeded", True, True),
        ("succeeded", False, True),
        ("canceled", True, True),
        ("canceled", False, False),
        ("failed", True, False),
        ("failed", False, False),
        ("interrupted", True, False),
    ],
)
def test_a_price_is_due_after_success_and_after_a_cancel_with_text(
    ending: Ending, text_delivered: bool, due: bool
) -> None:
    assert is_due(ending, text_delivered=text_delivered) is due
    cost = cost_of(FIXED, ending, text_delivered=text_delivered, model_usd=Decimal("0.001"), cost_status="final")
    assert cost.price_usd == (CENT if due else 0)
    assert cost.markup_usd == (Decimal("0.009") if due else Decimal("-0.001"))


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("0.01", "0.014"),
        ("0.0000258", "0.002"),
        ("5", "0.10"),
        ("0.0050000357", "0.007"),
        ("0.0050003572", "0.007001"),
        ("0.00500035714", "0.007000"),
        ("0", "0.002"),
    ],
)
def test_cost_plus_is_rounded_half_up_and_kept_between_its_bounds(model: str, price: str) -> None:
    assert price_of(cost_plus(), Decimal(model)) == Decimal(price)


def test_half_a_millionth_rounds_up() -> None:
    assert price_of(cost_plus("0", None), Decimal("0.0000005")) == Decimal("0.000001")
    assert price_of(cost_plus("0", None), Decimal("0.00000049")) == 0


def test_an_unknown_cost_leaves_a_cost_plus_price_and_every_markup_unknown() -> None:
    unknown = Cost(model_usd=None, markup_usd=None, price_usd=None, status="pending")
    assert cost_of(cost_plus(), "succeeded", text_delivered=True, model_usd=None, cost_status="pending") == unknown
    fixed = cost_of(FIXED, "succeeded", text_delivered=True, model_usd=None, cost_status="unknown")
    assert fixed == Cost(model_usd=None, markup_usd=None, price_usd=CENT, status="unknown")
    failed = cost_of(cost_plus(), "failed", text_delivered=False, model_usd=None, cost_status="pending")
    assert failed == Cost(model_usd=None, markup_usd=None, price_usd=Decimal(0), status="pending")


def test_a_price_that_can_only_be_one_is_known_without_the_cost() -> None:
    assert price_of(cost_plus(lowest="0.10"), None) == Decimal("0.10")


def test_a_markup_may_be_negative() -> None:
    cost = cost_of(FIXED, "succeeded", text_delivered=True, model_usd=Decimal("0.5"), cost_status="final")
    assert cost.markup_usd == Decimal("-0.49")


def test_the_highest_price_is_what_a_caller_must_accept() -> None:
    assert highest_price(FIXED) == CENT
    assert highest_price(cost_plus()) == Decimal("0.10")


amounts = st.decimals(0, 1000, places=9)
pricings: st.SearchStrategy[Pricing] = st.one_of(
    st.builds(lambda price: FixedPrice(mode="fixed", price_usd=price), amounts),
    st.builds(
        lambda markup, bounds: CostPlusPrice(
            mode="cost_plus", markup_percent=markup, min_usd=min(bounds), max_usd=max(bounds)
        ),
        st.decimals(0, 1000, places=3),
        st.tuples(amounts, amounts),
    ),
)


@settings(deadline=None)
@given(pricings, amounts)
def test_no_price_exceeds_the_highest_and_price_less_cost_is_the_markup(pricing: Pricing, model_usd: Decimal) -> None:
    cost = cost_of(pricing, "succeeded", text_delivered=True, model_usd=model_usd, cost_status="final")
    assert cost.price_usd is not None
    assert cost.markup_usd is not None
    assert 0 <= cost.price_usd <= highest_price(pricing)
    assert cost.markup_usd + model_usd == cost.price_usd
