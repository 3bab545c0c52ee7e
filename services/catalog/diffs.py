"""What a reading of the upstream list changes in the catalog, and whether it can be believed at all. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from contracts.catalog import CatalogChange, FieldChange, ModelPricing
from services.catalog.models import CatalogModel
from services.catalog.prices import amount

Kind = Literal["added", "retired", "returned", "repriced", "renamed", "alias_moved", "expiry_changed", "updated"]
_KINDS: dict[Kind, tuple[str, ...]] = {
    "renamed": ("name",),
    "alias_moved": ("alias_target",),
    "expiry_changed": ("retires_on",),
    "updated": (
        *("canonical_slug", "description", "context_length", "max_completion_tokens"),
        *("input_modalities", "output_modalities", "supported_parameters"),
    ),
}
_MAX_TEXT_CHARS = 300
# Where this many prices move by this factor at once, a unit has changed and not the prices.
_MANY_PRICES, _UNIT_FACTOR = 20, 10


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What to write. `changed` holds every row that is new or different, `changes` what people should know about it."""

    changed: list[CatalogModel] = field(default_factory=list)
    changes: list[CatalogChange] = field(default_factory=list)
    new_prices: list[CatalogModel] = field(default_factory=list)

    @property
    def added(self) -> list[str]:
        return self._ids("added")

    @property
    def retired(self) -> list[str]:
        return self._ids("retired")

    @property
    def returned(self) -> list[str]:
        return self._ids("returned")

    @property
    def repriced(self) -> list[str]:
        return self._ids("repriced")

    def _ids(self, kind: Kind) -> list[str]:
        return sorted(change.model_id for change in self.changes if change.change == kind)


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
    pairs = [(model, listed[model.id]) for model in living if _has_price(model) and model.id in listed]
    leapt = sum(_leapt(before.pricing, after.pricing) for before, after in pairs if _has_price(after))
    if leapt >= _MANY_PRICES and 2 * leapt > len(pairs):
        return f"{leapt} of {len(pairs)} prices changed tenfold or more at once, as if their unit were another."
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
        gone = known[model_id]
        if gone.status != "retired":
            plan.changes.append(_change(gone, "retired"))
            plan.changed.append(replace(gone, status="retired", popularity_rank=None))
    return plan


def _note_change(plan: SyncPlan, before: CatalogModel | None, after: CatalogModel) -> None:
    if after == before:
        return
    plan.changed.append(after)
    if before is None or before.pricing != after.pricing:
        plan.new_prices.append(after)
    if before is None:
        plan.changes.append(_change(after, "added"))
        return
    if before.status == "retired":
        plan.changes.append(_change(after, "returned"))
    plan.changes.extend(_differences(before, after))


def _differences(before: CatalogModel, after: CatalogModel) -> Iterator[CatalogChange]:
    if before.pricing != after.pricing:
        yield _change(after, "repriced", _price_changes(before.pricing, after.pricing))
    for kind, names in _KINDS.items():
        fields = [
            FieldChange(field=name, before=_text(getattr(before, name)), after=_text(getattr(after, name)))
            for name in names
            if getattr(before, name) != getattr(after, name)
        ]
        if fields:
            yield _change(after, kind, fields)


def _change(model: CatalogModel, kind: Kind, fields: list[FieldChange] | None = None) -> CatalogChange:
    return CatalogChange(model_id=model.id, name=model.name, change=kind, fields=fields or [])


def _price_changes(before: ModelPricing, after: ModelPricing) -> list[FieldChange]:
    old, new = _price_texts(before), _price_texts(after)
    return [
        FieldChange(field=f"pricing.{key}", before=old.get(key), after=new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _price_texts(pricing: ModelPricing) -> dict[str, str]:
    values = pricing.model_dump(mode="json", exclude_none=True)
    tiers = values.pop("overrides")
    return {**values, "overrides": json.dumps(tiers)} if tiers else values


def _text(value: object) -> str | None:
    if value is None:
        return None
    return (", ".join(value) if isinstance(value, tuple) else str(value))[:_MAX_TEXT_CHARS]


def _has_price(model: CatalogModel) -> bool:
    return model.pricing.price_kind in {"fixed", "tiered"}


def _leapt(before: ModelPricing, after: ModelPricing) -> bool:
    old, new = amount(before.prompt), amount(after.prompt)
    if not old or not new:
        return False
    return max(old, new) / min(old, new) >= Decimal(_UNIT_FACTOR)
