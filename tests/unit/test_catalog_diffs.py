"""What a reading of the list changes, and when it is not believed."""

from dataclasses import replace
from decimal import Decimal

from services.catalog.diffs import SyncPlan, implausible, plan_sync
from services.catalog.models import CatalogModel
from tests.unit.catalog_parts import ROWS, row

A, B, C = row(id="m/a"), row(id="m/b"), row(id="m/c")
DEARER = replace(A, pricing=row(pricing={"prompt": "0.5", "completion": "0.5"}).pricing)


def catalog(*rows: CatalogModel) -> dict[str, CatalogModel]:
    return {item.id: item for item in rows}


def retired(item: CatalogModel) -> CatalogModel:
    return replace(item, status="retired")


def test_the_same_list_changes_nothing() -> None:
    plan = plan_sync(catalog(A, B), catalog(A, B), None)
    assert plan == SyncPlan()


def test_a_first_sync_adds_everything_with_its_price() -> None:
    plan = plan_sync({}, ROWS, None)
    assert plan.added == sorted(ROWS)
    assert len(plan.new_prices) == len(plan.changed) == len(ROWS)


def test_models_come_go_return_and_change_their_price() -> None:
    plan = plan_sync(catalog(A, B, retired(C)), catalog(DEARER, C, row(id="m/d")), None)
    assert (plan.added, plan.retired, plan.returned, plan.repriced) == (["m/d"], ["m/b"], ["m/c"], ["m/a"])
    assert {item.id: item.status for item in plan.changed} == {
        "m/a": "available",
        "m/b": "retired",
        "m/c": "available",
        "m/d": "available",
    }
    assert [item.id for item in plan.new_prices] == ["m/a", "m/d"]


def test_a_retired_model_is_retired_once() -> None:
    assert plan_sync(catalog(A, retired(B)), catalog(A), None).changed == []


def test_ranks_that_are_not_known_today_stay() -> None:
    ranked = replace(A, popularity_rank=3)
    assert plan_sync(catalog(ranked), catalog(A), None).changed == []
    assert plan_sync(catalog(ranked), catalog(A), {"m/a": 1}).changed == [replace(A, popularity_rank=1)]
    assert plan_sync(catalog(ranked), catalog(A), {}).changed == [A]


def test_an_unchanged_list_still_moves_ranks_and_retires_nothing() -> None:
    plan = plan_sync(catalog(A, B, retired(C)), None, {"m/b": 1, "m/c": 2})
    assert plan.changed == [replace(B, popularity_rank=1)]
    assert plan.retired == plan.returned == []


def test_the_day_a_model_was_first_listed_stays() -> None:
    later = row(id="m/a", created=1_790_000_000, name="New name")
    (changed,) = plan_sync(catalog(A), catalog(later), None).changed
    assert (changed.name, changed.created_at) == ("New name", A.created_at)


def test_a_list_of_fewer_than_half_the_models_is_not_believed() -> None:
    many = [row(id=f"m/{number}") for number in range(10)]
    known = catalog(*many)
    assert implausible(known, catalog(*many[:5])) is None
    assert implausible(known, catalog(*many[:4])) is not None
    assert implausible(known, {}) is not None
    assert implausible({}, catalog(A)) is None
    assert implausible({}, {}) is not None


def test_retired_models_do_not_count_as_known() -> None:
    known = {key: retired(item) for key, item in ROWS.items()}
    assert implausible(known, catalog(A)) is None


def test_a_list_without_prices_is_not_believed() -> None:
    bare = {key: replace(item, pricing=row(pricing={}).pricing) for key, item in ROWS.items()}
    assert implausible(ROWS, bare) is not None
    assert implausible(ROWS, ROWS) is None


def kinds(plan: SyncPlan) -> set[tuple[str, str]]:
    return {(change.model_id, change.change) for change in plan.changes}


def fields(plan: SyncPlan, kind: str) -> dict[str, tuple[str | None, str | None]]:
    (change,) = [change for change in plan.changes if change.change == kind]
    return {item.field: (item.before, item.after) for item in change.fields}


def test_each_change_says_what_it_was_and_what_it_is() -> None:
    tiered = row(
        id="m/a",
        name="New name",
        context_length=9000,
        expiration_date="2026-09-01",
        alias_target={"slug": "m/b"},
        pricing={
            "prompt": "0.000001",
            "completion": "0.000003",
            "image": "0.1",
            "overrides": [{"min_prompt_tokens": 100, "prompt": "0.2"}],
        },
    )
    plan = plan_sync(catalog(A), catalog(tiered), None)
    assert kinds(plan) == {
        ("m/a", kind) for kind in ("repriced", "renamed", "alias_moved", "expiry_changed", "updated")
    }
    assert {change.name for change in plan.changes} == {"New name"}
    assert fields(plan, "repriced") == {
        "pricing.completion": ("0.000002", "0.000003"),
        "pricing.price_kind": ("fixed", "tiered"),
        "pricing.image": (None, "0.1"),
        "pricing.overrides": (None, '[{"min_prompt_tokens": 100, "prompt": "0.2"}]'),
    }
    assert fields(plan, "renamed") == {"name": ("Maker: Model", "New name")}
    assert fields(plan, "alias_moved") == {"alias_target": (None, "m/b")}
    assert fields(plan, "expiry_changed") == {"retires_on": (None, "2026-09-01")}
    assert fields(plan, "updated") == {"context_length": ("8192", "9000")}


def test_who_returns_at_another_price_is_repriced_too() -> None:
    plan = plan_sync(catalog(retired(A), B), catalog(DEARER, B), None)
    assert kinds(plan) == {("m/a", "returned"), ("m/a", "repriced")}
    assert (plan.returned, plan.repriced) == (["m/a"], ["m/a"])


def test_places_in_the_ranking_are_no_news() -> None:
    plan = plan_sync(catalog(A, B), catalog(A, B), {"m/a": 2, "m/b": 1})
    assert len(plan.changed) == 2
    assert plan.changes == []


def test_prices_in_another_unit_are_not_believed() -> None:
    def per_million(item: CatalogModel) -> CatalogModel:
        prices = {"prompt": Decimal(item.pricing.prompt) * 1_000_000, "completion": "1"}
        return replace(item, pricing=row(pricing=prices).pricing)

    reason = implausible(ROWS, {key: per_million(item) for key, item in ROWS.items()})
    assert reason is not None
    assert "tenfold" in reason
    some = {key: per_million(item) if n % 3 == 0 else item for n, (key, item) in enumerate(ROWS.items())}
    assert implausible(ROWS, some) is None
    assert implausible(catalog(A), catalog(DEARER)) is None, "a few prices may leap"
