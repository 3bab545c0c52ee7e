"""What a reading of the upstream list changes in the catalog, and whether it can be believed at all. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from services.catalog.models import CatalogModel


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What to write. `changed` holds every row that is new or different; the lists hold ids, sorted."""

    changed: list[CatalogModel] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    repriced: list[str] = field(default_factory=list)
    new_prices: list[CatalogModel] = field(default_factory=list)


def implausible(known: Mapping[str, CatalogModel], listed: Mapping[str, CatalogModel]) -> str | None:
    """Why the list must not be believed, as a sentence; None when it may. What upstream breaks must not break us."""
    living = [model for model in known.values() if model.status != "retired"]
    if not listed:
        return "Upstream listed no models."
    if 2 * len(listed) < len(living):
        return f"Upstream listed {len(listed)} models, fewer than half of the {len(living)} known ones."
    priced, were_priced = sum(map(_has_price, listed.values())), sum(map(_has_price, living))
    if 2 * priced < were_priced:
        return f"Only {priced} models have a readable price, fewer than half of the {were_priced} that had one."
    return None


def plan_sync(
    known: Mapping[str, CatalogModel],
    listed: Mapping[str, CatalogModel] | None,
    ranks: Mapping[str, int] | None,
) -> SyncPlan:
    """`listed` is None where upstream says that its list did not change; `ranks` is None where they are not known."""
    still = {key: model for key, model in known.items() if model.status != "retired"} if listed is None else listed
    plan = SyncPlan()
    for model_id in sorted(still):
        before = known.get(model_id)
        rank = ranks.get(model_id) if ranks is not None else (before.popularity_rank if before else None)
        after = replace(
            still[model_id],
            popularity_rank=rank,
            # The day it was first listed is a fact that upstream cannot change later.
            created_at=before.created_at if before else still[model_id].created_at,
        )
        _note_change(plan, before, after)
    for model_id in sorted(known.keys() - still.keys()):
        if known[model_id].status != "retired":
            plan.retired.append(model_id)
            plan.changed.append(replace(known[model_id], status="retired", popularity_rank=None))
    return plan


def _note_change(plan: SyncPlan, before: CatalogModel | None, after: CatalogModel) -> None:
    if after == before:
        return
    plan.changed.append(after)
    if before is None:
        plan.added.append(after.id)
    elif before.status == "retired":
        plan.returned.append(after.id)
    elif before.pricing != after.pricing:
        plan.repriced.append(after.id)
    if before is None or before.pricing != after.pricing:
        plan.new_prices.append(after)


def _has_price(model: CatalogModel) -> bool:
    return model.pricing.price_kind in {"fixed", "tiered"}
