"""Decisions of the market: what an edit changed, what a day has used up, what a new price is worth telling."""

from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import ModelPricing, ResourceDraft, ResourcePatch
from contracts.market import BudgetLimits, NoticeKind, Replacement, RunCost
from services.catalog.breakdown import breakdown, difference, loses, losing_models, run_cost
from services.catalog.budgets import Spent, budgets_view, for_resource, limit_problems, marks_reached, sentence, states
from services.catalog.resources import apply_patch, warnings_of
from services.catalog.reviews import (
    FEWEST_RUNS,
    Finding,
    Look,
    Losses,
    findings,
    margin_cause,
    measured_below_cost,
    repriced_below_cost,
)
from services.catalog.sizes import MeasuredTokens
from services.catalog.versions import changes_between
from tests.unit.catalog_parts import model

ONE = UUID(int=1)
TWO = UUID(int=2)


def draft(**changes: Any) -> ResourceDraft:
    return ResourceDraft.model_validate(
        {
            "resource_type": "openrouter_instant",
            "name": "Haiku maker",
            "slug": "haiku-maker",
            "openrouter_config": {"model_id": "maker/model", "prompt_template": "About {{topic}}", "max_tokens": 100},
            "inputs": [{"name": "topic", "max_length": 200}, {"name": "tone", "required": False}],
            "pricing": {"mode": "fixed", "price_usd": "0.01"},
            **changes,
        }
    )


# Versions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({"name": "Haiku maker"}, []),
        ({"name": "B"}, [("name", "Haiku maker", "B")]),
        ({"pricing": {"mode": "fixed", "price_usd": "0.010"}}, []),
        (
            {"pricing": {"mode": "cost_plus", "markup_percent": "5", "max_usd": "1"}},
            [
                ("pricing.mode", "fixed", "cost_plus"),
                ("pricing.price_usd", "0.01", None),
                ("pricing.markup_percent", None, "5"),
                ("pricing.max_usd", None, "1"),
            ],
        ),
        ({"timeouts": {"idle_s": 31}}, [("timeouts.idle_s", 30.0, 31.0)]),
        (
            {"inputs": [{"name": "tone", "required": False}, {"name": "topic", "max_length": 200}]},
            [("inputs", ["topic", "tone"], ["tone", "topic"])],
        ),
        ({"inputs": []}, [("inputs", ..., [])]),
    ],
)
def test_a_version_says_which_fields_an_edit_changed(patch: dict[str, Any], expected: list[Any]) -> None:
    before = draft()
    changes = changes_between(before, apply_patch(before, ResourcePatch.model_validate(patch)))
    assert [change.path for change in changes] == [path for path, _, _ in expected]
    for change, (_, was, becomes) in zip(changes, expected, strict=True):
        assert was is ... or change.before == was
        assert change.after == becomes


def test_true_is_not_one() -> None:
    config = draft().openrouter_config
    one = draft(openrouter_config=config.model_copy(update={"parameters": {"logprobs": 1}}))
    yes = draft(openrouter_config=config.model_copy(update={"parameters": {"logprobs": True}}))
    (change,) = changes_between(one, yes)
    assert (change.path, change.before, change.after) == ("openrouter_config.parameters.logprobs", 1, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_something_changed_exactly_when_versions_differ(one: dict[str, Any], two: dict[str, Any]) -> None:
    config = draft().openrouter_config
    before = draft(openrouter_config=config.model_copy(update={"parameters": one}))
    after = draft(openrouter_config=config.model_copy(update={"parameters": two}))
    changes = changes_between(before, after)
    assert bool(changes) == (before.model_dump_json() != after.model_dump_json() and not _same(one, two))
    assert all(change.path.startswith("openrouter_config.parameters") for change in changes)


def _same(one: Any, two: Any) -> bool:
    """Equal as JSON, where the order of members means nothing and true is not 1."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return type(one) is type(two) and bool(one == two)


# Budgets --------------------------------------------------------------------------------------------------------------


def spent(scope: Any, subject: str, usd: str) -> Spent:
    return Spent("live", scope, subject, Decimal(usd), 0)


@pytest.mark.parametrize(
    ("used", "limit", "marks"),
    [
        ("0", "1", []),
        ("0.799999999", "1", []),
        ("0.8", "1", [80]),
        ("0.999999999", "1", [80]),
        ("1", "1", [80, 100]),
        ("7", "1", [80, 100]),
        ("0", "0", []),
        ("0.000000001", "0", [80, 100]),
    ],
)
def test_marks_are_reached_exactly(used: str, limit: str, marks: list[int]) -> None:
    limits = BudgetLimits.model_validate({"key_daily_usd": limit})
    (state,) = states(limits, [spent("key", "", used)], "ann", "live")
    assert marks_reached(state) == marks


def test_every_limit_is_shown_and_the_limit_for_callers_never_holds_the_creator() -> None:
    limits = BudgetLimits.model_validate(
        {
            "caller_daily_usd": "1",
            "resources": [{"resource_id": str(ONE), "daily_usd": "2"}],
            "callers": [{"caller_id": "cy", "daily_usd": "3"}],
        }
    )
    used = [
        spent("key", "", "9"),
        spent("caller", "user:ann", "9"),
        spent("caller", "service:ann", "0.9"),
        spent("caller", "user:bob:x", "0.1"),
        spent("caller", "user:cy", "0.1"),
        spent("resource", str(TWO), "9"),
    ]
    shown = [
        (each.scope, each.caller_kind, each.caller_id, each.daily_usd) for each in states(limits, used, "ann", "live")
    ]
    assert shown == [
        ("resource", None, None, Decimal(2)),
        ("caller", "user", "cy", Decimal(3)),
        ("caller", "service", "ann", Decimal(1)),
        ("caller", "user", "bob:x", Decimal(1)),
    ]
    assert for_resource(limits, ONE).resource_daily_usd == Decimal(2)
    assert for_resource(limits, TWO).resource_daily_usd is None
    assert for_resource(limits, None).callers == limits.callers


def test_runs_with_a_test_key_are_held_against_the_limits_by_themselves() -> None:
    limits = BudgetLimits.model_validate({"key_daily_usd": "1", "caller_daily_usd": "1"})
    used = [
        Spent("live", "key", "", Decimal("0.5"), 0),
        Spent("test", "key", "", Decimal("0.9"), 2),
        Spent("test", "caller", "user:bob", Decimal(2), 0),
    ]
    view = budgets_view(limits, used, "ann", date(2026, 11, 23))
    assert [(each.mode, each.scope, each.spent_usd, each.reached_percent) for each in view.today] == [
        ("live", "key", Decimal("0.5"), None)
    ]
    assert [
        (each.mode, each.scope, each.spent_usd, each.cost_unknown_runs, each.reached_percent)
        for each in view.today_in_test
    ] == [("test", "key", Decimal("0.9"), 2, 80), ("test", "caller", Decimal(2), 0, 100)]
    assert [sentence(each).split(" have ")[0] for each in (*view.today, *view.today_in_test)] == [
        "Today's runs with your key",
        "Today's test runs with your key",
        "Today's test runs by user bob",
    ]


def test_a_limit_is_for_something_of_ones_own_and_given_once() -> None:
    one = {"resource_id": str(ONE), "daily_usd": "2"}
    assert limit_problems(BudgetLimits.model_validate({"resources": [one]}), [ONE]) == []
    (strange,) = limit_problems(BudgetLimits.model_validate({"resources": [one]}), [TWO])
    assert strange.path == "resources.0.resource_id"
    (twice,) = limit_problems(BudgetLimits.model_validate({"resources": [one, one]}), [ONE])
    assert twice.path == "resources.1.resource_id"


# Breakdown ------------------------------------------------------------------------------------------------------------

COST_PLUS = {"mode": "cost_plus", "markup_percent": "50", "min_usd": "0.002", "max_usd": "0.005"}


@pytest.mark.parametrize(
    ("pricing", "cost", "price", "markup"),
    [
        ({"mode": "fixed", "price_usd": "0.01"}, "0.004", "0.01", "0.006"),
        ({"mode": "fixed", "price_usd": "0.01"}, "0.4", "0.01", "-0.39"),
        ({"mode": "fixed", "price_usd": "0.01"}, None, "0.01", None),
        (COST_PLUS, "0.003", "0.0045", "0.0015"),
        (COST_PLUS, "0.0001", "0.002", "0.0019"),
        (COST_PLUS, "0.4", "0.005", "-0.395"),
        (COST_PLUS, None, None, None),
    ],
)
def test_a_run_is_cost_markup_and_price(pricing: Any, cost: Any, price: Any, markup: Any) -> None:
    shown = run_cost(draft(pricing=pricing), None if cost is None else Decimal(cost))
    expected = [None if amount is None else Decimal(amount) for amount in (cost, markup, price)]
    assert [shown.model_usd, shown.markup_usd, shown.price_usd] == expected
    assert loses(shown) == (markup is not None and markup.startswith("-"))


def test_a_ceiling_holds_for_every_model_that_may_answer() -> None:
    limited = draft(inputs=[{"name": "topic", "max_length": 200}])
    cheap, dear = model(), model(id="maker/dear", pricing={"prompt": "0.1", "completion": "0.1"})
    unknown = model(id="openrouter/auto", pricing={"prompt": "-1", "completion": "-1"})
    alone, both = breakdown(limited, [cheap], None), breakdown(limited, [cheap, dear], None)
    assert alone.expected == both.expected
    assert alone.ceiling.model_usd is not None
    assert both.ceiling.model_usd is not None
    assert both.ceiling.model_usd > alone.ceiling.model_usd >= (alone.expected.model_usd or 0)
    assert breakdown(limited, [cheap, unknown], None).ceiling.model_usd is None


# Findings -------------------------------------------------------------------------------------------------------------


def look(prompt: str = "0.000001", completion: str = "0.000002", **changes: Any) -> Look:
    pricing = ModelPricing(prompt=prompt, completion=completion, price_kind="fixed")
    return Look(**{"status": "available", "retires_on": None, "price_id": 1, "pricing": pricing, **changes})


def found(before: Look | None, after: Look, **changes: Any) -> list[Finding]:
    seen = {} if before is None else {"maker/model": before}
    looks = {"maker/model": after}
    return list(findings(draft(**changes), [model()], seen, looks, replacements={}, measured=None))


GONE = {"status": "retired"}
ENDING = {"status": "retiring", "retires_on": date(2027, 1, 31)}
LATER = {"status": "retiring", "retires_on": date(2027, 2, 28)}


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        ({}, {}, []),
        ({}, GONE, ["model_retired"]),
        (GONE, GONE, []),
        (GONE, {}, ["model_returned"]),
        (GONE, ENDING, ["model_returned", "model_retiring"]),
        ({}, ENDING, ["model_retiring"]),
        (ENDING, LATER, ["model_retiring"]),
        (ENDING, {}, ["model_stays"]),
        (ENDING, {**GONE, "retires_on": date(2027, 1, 31)}, ["model_retired"]),
        ({}, {"price_id": 2}, []),
        ({}, {"prompt": "0.000002", "price_id": 2}, ["model_repriced"]),
        (GONE, {"prompt": "0.000002", "price_id": 2}, ["model_returned", "model_repriced"]),
    ],
)
def test_each_change_of_a_model_is_told_as_what_it_is(before: Any, after: Any, kinds: list[str]) -> None:
    assert [finding.kind for finding in found(look(**before), look(**after))] == kinds
    assert found(None, look(**after)) == [], "what was never looked at has not changed"


def repriced(prompt: str, completion: str, **changes: Any) -> Finding | None:
    findings_of_it = found(look(), look(prompt, completion, price_id=2), **changes)
    return repriced_below_cost(draft(**changes), findings_of_it, published=True)


def test_a_higher_price_is_a_loss_only_above_what_callers_pay() -> None:
    assert repriced("0.000002", "0.000004") is None
    loss = repriced("0.001", "0.01")
    assert loss is not None
    assert (loss.kind, loss.cause) == ("below_cost", None)
    assert loss.cost is not None
    assert loss.cost.price_usd == Decimal("0.01")
    paused = repriced("0.001", "0.01", margin_rule="pause")
    assert paused is not None
    assert paused.kind == "paused_below_cost"
    followed = {"mode": "cost_plus", "markup_percent": "10", "max_usd": "100"}
    assert repriced("0.001", "0.01", pricing=followed) is None, "the price follows the cost"
    assert repriced("0.0000005", "0.000001", pricing={"mode": "fixed", "price_usd": "0"}) is None, "it became cheaper"


WITH_FALLBACK = {
    "model_id": "maker/model",
    "fallback_models": ["maker/spare"],
    "prompt_template": "Hi",
    "max_tokens": 100,
}


def found_of_both(main: Look, spare: Look, **changes: Any) -> list[Finding]:
    """Both models looked alike before, and as given now."""
    both = draft(openrouter_config=WITH_FALLBACK, inputs=[], **changes)
    models = [model(), model(id="maker/spare")]
    before = {each.id: look() for each in models}
    looks = {"maker/model": main, "maker/spare": spare}
    return list(findings(both, models, before, looks, replacements={}, measured=None))


@pytest.mark.parametrize(
    ("after", "kinds"),
    [
        ({}, []),
        (GONE, ["fallback_retired"]),
        (ENDING, ["fallback_retiring"]),
        ({"prompt": "0.000002", "price_id": 2}, ["fallback_repriced"]),
        ({**GONE, "prompt": "0.000002", "price_id": 2}, ["fallback_retired", "fallback_repriced"]),
    ],
)
def test_what_happens_to_a_fallback_is_told_as_what_it_is(after: Any, kinds: list[str]) -> None:
    told = found_of_both(look(), look(**after))
    assert [finding.kind for finding in told] == kinds
    assert {finding.model_id for finding in told} <= {"maker/spare"}
    assert all("maker/spare, a fallback of this resource" in finding.message for finding in told)


def test_a_fallback_that_costs_more_than_the_price_is_a_loss_like_the_main_model() -> None:
    dear = look("0.001", "0.01", price_id=2)
    for rule, kind in (("warn", "below_cost"), ("pause", "paused_below_cost")):
        asked = draft(openrouter_config=WITH_FALLBACK, inputs=[], margin_rule=rule)
        loss = repriced_below_cost(asked, found_of_both(look(), dear), published=True)
        assert loss is not None
        assert (loss.kind, loss.model_id) == (kind, "maker/spare")
        assert "that maker/spare, a fallback, answers" in loss.message
        both = repriced_below_cost(asked, found_of_both(dear, dear), published=True)
        assert both is not None
        assert both.model_id == "maker/model", "one loss is told of one change, the main model's first"
    cheaper = found_of_both(look(), look("0.0000001", "0.0000001", price_id=2))
    assert repriced_below_cost(asked, cheaper, published=True) is None


def test_the_warnings_name_every_model_that_loses() -> None:
    both = draft(openrouter_config=WITH_FALLBACK, inputs=[])
    dear = model(id="maker/spare", pricing={"prompt": "0.001", "completion": "0.01"})
    unknown = model(id="maker/spare", pricing={"prompt": "-1", "completion": "-1"})
    assert losing_models(both, [model(), dear], None) == [dear]
    assert losing_models(both, [model(), unknown], None) == [], "nobody knows"
    (warning,) = warnings_of(both, [model(), dear], [dear])
    assert warning == "An expected run that maker/spare, a fallback, answers costs more than callers pay."
    assert len(warnings_of(both, [dear, model()], [dear])) == 1


@pytest.mark.parametrize(
    ("runs", "cost", "price", "loss"),
    [
        (FEWEST_RUNS - 1, "1", "0.01", False),
        (FEWEST_RUNS, "0.03", "0.03", False),
        (FEWEST_RUNS, "0.0300001", "0.03", True),
        (20, "0.1", "0.2", False),
    ],
)
def test_runs_show_a_loss_when_all_together_cost_more_than_they_brought(
    runs: int, cost: str, price: str, loss: bool
) -> None:
    finding = measured_below_cost(draft(), Losses(runs, Decimal(cost), Decimal(price)), published=True)
    assert (finding is not None) == loss


def test_only_what_is_published_can_be_paused() -> None:
    losses = Losses(4, Decimal(4), Decimal(1))
    pausing = draft(margin_rule="pause")
    kinds = [measured_below_cost(pausing, losses, published=published) for published in (True, False)]
    assert [finding.kind for finding in kinds if finding] == ["paused_below_cost", "below_cost"]
    assert kinds[0] is not None
    assert kinds[0].cost == RunCost(model_usd=Decimal(1), markup_usd=Decimal("-0.75"), price_usd=Decimal("0.25"))


def test_a_cause_is_what_is_done_about_a_version_at_a_price() -> None:
    kinds: tuple[NoticeKind, ...] = ("below_cost", "paused_below_cost")
    causes = {
        margin_cause(kind, one, version, price)
        for kind in kinds
        for one in (ONE, TWO)
        for version in (1, 2)
        for price in (1, 2)
    }
    assert len(causes) == 16


def test_measured_tokens_make_the_difference_that_is_told() -> None:
    measured = MeasuredTokens(runs=2, prompt_tokens=2000, completion_tokens=200, reasoning_tokens=0, cached_tokens=0)
    dearer = model(pricing={"prompt": "0.00001", "completion": "0.00002"})
    prices = difference(draft(), model(), dearer, measured)
    assert (prices.run_before_usd, prices.run_after_usd) == (Decimal("0.0012"), Decimal("0.012"))
    unknown = difference(draft(), model(), model(id="x/y", pricing={"prompt": "0", "completion": "0"}), None)
    assert (unknown.prompt_after_usd, unknown.run_after_usd) == (None, None), "nobody knows it: it is not nothing"
    told = Replacement(model_id="x/y", name="Y", difference=unknown)
    retired = list(
        findings(
            draft(), [model()], {"maker/model": look()}, {"maker/model": look(status="retired")},
            replacements={"maker/model": told}, measured=None,
        )
    )  # fmt: skip
    assert "x/y could take over" in retired[0].message
