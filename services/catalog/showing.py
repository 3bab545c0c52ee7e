"""Puts together what an audience is shown of stored resources: fetches what the views need, for a whole page at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from contracts.catalog import Model, ResolvedResource, Resource, ResourceDraft
from contracts.listings import Listing
from contracts.market import Replacement
from services.catalog import views
from services.catalog.breakdown import proposal
from services.catalog.index import LiveIndex
from services.catalog.market_store import MarketStore
from services.catalog.models import CatalogModel, describe
from services.catalog.resources import named_models
from services.catalog.runs_store import RunsStore
from services.catalog.sizes import MeasuredTokens
from services.catalog.store import Store, StoredResource

_NOTICES_SHOWN = 10


class Showing:
    def __init__(self, *, store: Store, market: MarketStore, runs: RunsStore, index: LiveIndex) -> None:
        self._store = store
        self._market = market
        self._runs = runs
        self._index = index

    def model(self, row: CatalogModel) -> Model:
        return describe(row, datetime.now(UTC), self._index.current.recommendations.reasons)

    async def models(self, drafts: Sequence[ResourceDraft]) -> Mapping[str, Model]:
        """Those of the models that the drafts name that are in the catalog."""
        ids = {model_id for draft in drafts for model_id in named_models(draft.openrouter_config)}
        rows = await self._store.models_by_id([model_id for model_id in ids if "\0" not in model_id])
        return {model_id: self.model(row) for model_id, row in rows.items()}

    def proposal(self, stored: StoredResource, measured: MeasuredTokens | None) -> Replacement | None:
        """What could take over from its model where that is gone or going, and the difference that it would make."""
        return self.proposals(stored.draft, [stored.model], measured).get(stored.model.id)

    def proposals(
        self, draft: ResourceDraft, models: Iterable[CatalogModel], measured: MeasuredTokens | None
    ) -> dict[str, Replacement]:
        """The same for each of the models that is gone or going; for a fallback, a model that is not named already."""
        config = draft.openrouter_config
        found: dict[str, Replacement] = {}
        for row in models:
            named = () if row.id == config.model_id else named_models(config)
            other = self._index.find(self._index.replacement_for(row, without=named))
            if other is not None:
                found[row.id] = proposal(draft, self.model(row), self.model(other), measured)
        return found

    async def resource(self, stored: StoredResource) -> Resource:
        return (await self.resources([stored]))[0]

    async def resources(self, page: Sequence[StoredResource]) -> list[Resource]:
        """For their owner."""
        ids = [stored.id for stored in page]
        models = await self.models([stored.draft for stored in page])
        measured = await self._store.measured_tokens(ids)
        notices = await self._market.notices_of(ids, _NOTICES_SHOWN)
        return [
            views.resource_view(
                stored,
                [models[key] for key in named_models(stored.draft.openrouter_config) if key in models],
                measured=measured.get(stored.id),
                proposal=self.proposal(stored, measured.get(stored.id)),
                notices=notices.get(stored.id, []),
            )
            for stored in page
        ]

    async def resolved(self, stored: StoredResource) -> ResolvedResource:
        """For executors."""
        limits = await self._runs.limits(stored.owner)
        fallbacks = stored.draft.openrouter_config.fallback_models
        # A resource without any, as most are, costs its resolution no further query.
        models = await self.models([stored.draft]) if fallbacks else {}
        return views.resolved_view(
            stored,
            self.model(stored.model),
            [models[model_id] for model_id in fallbacks if model_id in models],
            proposal=self.proposal(stored, None),
            limits=limits,
        )

    async def resolved_draft(self, owner: str, draft: ResourceDraft, models: Mapping[str, Model]) -> ResolvedResource:
        """`models` holds every model that the draft names."""
        named = [models[model_id] for model_id in named_models(draft.openrouter_config)]
        return views.resolved_draft(owner, draft, named, await self._runs.limits(owner))

    async def listing(self, stored: StoredResource) -> Listing:
        return (await self.listings([stored]))[0]

    async def listings(self, page: Sequence[StoredResource]) -> list[Listing]:
        """For buyers."""
        measured = await self._runs.measured([stored.id for stored in page])
        # Fallbacks matter where the main model is gone alone.
        models = await self.models([stored.draft for stored in page if stored.model.status == "retired"])
        return [
            views.listing_view(
                stored,
                self.model(stored.model),
                [models[key] for key in stored.draft.openrouter_config.fallback_models if key in models],
                measured.get(stored.id),
            )
            for stored in page
        ]
