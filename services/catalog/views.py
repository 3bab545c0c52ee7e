"""What is stored, as each audience may see it: the owner a resource, the executor everything it needs to run, a buyer a
listing without key, cost or prompt."""

from __future__ import annotations

from contracts.catalog import (
    FixedPrice,
    Model,
    ModelDetail,
    PriceChange,
    ResolvedResource,
    Resource,
    ResourceDraft,
)
from contracts.listings import Listing
from services.catalog.inputs import input_schema
from services.catalog.models import CatalogModel
from services.catalog.resources import availability_of, shown_status, warnings_of
from services.catalog.store import StoredResource


def model_detail(
    model: Model, row: CatalogModel, replacement: str | None, price_history: list[PriceChange]
) -> ModelDetail:
    return ModelDetail(
        **dict(model), alias_target=row.alias_target, replacement=replacement, price_history=price_history
    )


def resource_view(stored: StoredResource, model: Model, replacement: str | None) -> Resource:
    """For its owner."""
    return Resource(
        **dict(stored.draft),
        id=stored.id,
        owner=stored.owner,
        version=stored.version,
        status=shown_status(stored.status, model),
        model=model,
        badges=model.badges,
        availability=availability_of(model, replacement),
        warnings=warnings_of(stored.draft, model),
        input_schema=input_schema(stored.draft.inputs),
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


def resolved_view(stored: StoredResource, model: Model, replacement: str | None) -> ResolvedResource:
    """For the executor. The status is the stored one, which says who may run it; whether it can run says `availability`."""
    draft = stored.draft
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
        availability=availability_of(model, replacement),
    )


def resolved_draft(owner: str, draft: ResourceDraft, model: Model) -> ResolvedResource:
    """A checked draft, for a preview."""
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
        availability=availability_of(model, None),
    )


def listing_view(stored: StoredResource, model: Model) -> Listing:
    """For buyers."""
    draft, pricing = stored.draft, stored.draft.pricing
    return Listing(
        id=stored.id,
        owner=stored.owner,
        slug=draft.slug,
        name=draft.name,
        description=draft.description,
        inputs=draft.inputs,
        input_schema=input_schema(draft.inputs),
        output_modalities=list(draft.openrouter_config.modalities),
        pricing_mode=pricing.mode,
        price_usd=pricing.price_usd if isinstance(pricing, FixedPrice) else None,
        max_price_usd=pricing.price_usd if isinstance(pricing, FixedPrice) else pricing.max_usd,
        badges=model.badges,
        available=model.status != "retired",
        version=stored.version,
        updated_at=stored.updated_at,
    )
