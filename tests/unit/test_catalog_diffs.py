"""What a reading of the list changes, and when it is not believed."""

from dataclasses import replace

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
