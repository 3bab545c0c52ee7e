"""What is stored, as each audience may see it: the owner a resource, the executor everything it needs to run, a buyer a
listing without key, cost, model or prompt."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from contracts.catalog import (
    FixedPrice,
    Model,
    ModelDetail,
    PriceChange,
    ResolvedResource,
    Resource,
    ResourceDraft,
)
from contracts.drafts import DraftReview
from contracts.listings import Listing, Measured
from contracts.market import BudgetLimits, Replacement, ResourceNotice
from services.catalog.bounds import bound_of
from services.catalog.breakdown import breakdown, estimate_run, losing_models
from services.catalog.budgets import for_resource
from services.catalog.inputs import input_schema
from services.catalog.models import CatalogModel
from services.catalog.resources import availability_of, shown_status, warnings_of
from services.catalog.sizes import MeasuredTokens
from services.catalog.store import StoredResource

_TELLS_THE_COST = frozenset({"free"})
"""Badges of a model that would tell a buyer what a run costs."""


def model_detail(
    model: Model, row: CatalogModel, replacement: str | None, price_history: list[PriceChange]
) -> ModelDetail:
    return ModelDetail(
        **dict(model), alias_target=row.alias_target, replacement=replacement, price_history=price_history
    )


def resource_view(
    stored: StoredResource,
    models: Sequence[Model],
    *,
    measured: MeasuredTokens | None,
    proposal: Replacement | None,
    notices: list[ResourceNotice],
) -> Resource:
    """For its owner. `models` are those that it names, its main one first."""
    model = models[0]
    prices = breakdown(stored.draft, models, measured)
    return Resource(
        **dict(stored.draft),
        id=stored.id,
        owner=stored.owner,
        version=stored.version,
        status=shown_status(stored.status, model, models[1:]),
        model=model,
        badges=model.badges,
        availability=availability_of(model, proposal, models[1:]),
        warnings=warnings_of(stored.draft, models, losing_models(stored.draft, models, measured)),
        input_schema=input_schema(stored.draft.inputs),
        breakdown=prices,
        notices=notices,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


def draft_review(draft: ResourceDraft, models: Sequence[Model], measured: MeasuredTokens | None) -> DraftReview:
    """A checked draft, for its creator. `models` are those that it names, its main one first."""
    return DraftReview(
        breakdown=breakdown(draft, models, measured),
        assumptions=estimate_run(draft, models[0], measured).assumptions,
        warnings=warnings_of(draft, models, losing_models(draft, models, measured)),
        input_schema=input_schema(draft.inputs),
    )


def resolved_view(
    stored: StoredResource,
    model: Model,
    fallbacks: list[Model],
    *,
    proposal: Replacement | None,
    limits: BudgetLimits,
) -> ResolvedResource:
    """For the executor. The status is the stored one, which says who may run it; whether it can run says `availability`."""
    draft = stored.draft
    most, unbounded = bound_of(draft, [model, *fallbacks])
    return ResolvedResource(
        resource_id=stored.id,
        owner=stored.owner,
        slug=draft.slug,
        version=stored.version,
        status=stored.status,
        config=draft.openrouter_config,
        inputs=draft.inputs,
        pricing=draft.pricing,
        timeouts=draft.timeouts,
        model=model,
        fallbacks=fallbacks,
        availability=availability_of(model, proposal, fallbacks),
        budgets=for_resource(limits, stored.id),
        most=most,
        unbounded=unbounded,
    )


def resolved_draft(owner: str, draft: ResourceDraft, models: Sequence[Model], limits: BudgetLimits) -> ResolvedResource:
    """A checked draft, for a preview. `models` are those that it names, its main one first."""
    model, *fallbacks = models
    most, unbounded = bound_of(draft, models)
    return ResolvedResource(
        resource_id=None,
        owner=owner,
        slug=draft.slug,
        version=0,
        status="draft",
        config=draft.openrouter_config,
        inputs=draft.inputs,
        pricing=draft.pricing,
        timeouts=draft.timeouts,
        model=model,
        fallbacks=fallbacks,
        availability=availability_of(model, None),
        budgets=for_resource(limits, None),
        most=most,
        unbounded=unbounded,
    )


def listing_view(
    stored: StoredResource, model: Model, fallbacks: Sequence[Model], measured: Measured | None
) -> Listing:
    """For buyers."""
    draft, pricing = stored.draft, stored.draft.pricing
    reason = None
    if stored.status != "published":
        reason = "Its creator has not published it."
    elif not availability_of(model, None, fallbacks).available:
        reason = "What it runs on is not offered any more; its creator has been told."
    return Listing(
        id=stored.id,
        owner=stored.owner,
        slug=draft.slug,
        name=draft.name,
        description=draft.description,
        inputs=draft.inputs,
        input_schema=input_schema(draft.inputs),
        output_modalities=list(draft.openrouter_config.modalities),
        example_output=draft.example_output,
        pricing_mode=pricing.mode,
        price_usd=pricing.price_usd if isinstance(pricing, FixedPrice) else None,
        min_price_usd=pricing.price_usd if isinstance(pricing, FixedPrice) else pricing.min_usd or Decimal(0),
        max_price_usd=pricing.price_usd if isinstance(pricing, FixedPrice) else pricing.max_usd,
        badges=[badge for badge in model.badges if badge not in _TELLS_THE_COST],
        available=reason is None,
        unavailable_reason=reason,
        available_until=model.retires_on if model.status == "retiring" else None,
        measured=measured,
        version=stored.version,
        updated_at=stored.updated_at,
    )
