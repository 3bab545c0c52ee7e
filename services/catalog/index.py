"""The search index of this process, always a whole one: built from the store, replaced by a new one, never changed in place.

It is rebuilt when a sync changed the catalog (here or in another replica), and after the bus was away, because the event
may have been missed. Former ones are kept for a while, so that whoever pages through the list while a sync runs stays on
the list that he began with: ranks and prices move, and with them a model could jump over the place where a page ended.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, Gauge

from contracts.catalog import ModelPage, SearchModels
from services.catalog.models import CatalogModel
from services.catalog.replacements import propose_replacement
from services.catalog.search import ModelIndex, generation_of
from services.catalog.store import Store

_KEPT_FOR = timedelta(minutes=15)
_MOST_KEPT_ENTRIES = 50_000
"""Over all former indexes, in memory; most of their entries are shared."""


class LiveIndex:
    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        self._store = store
        self._reloading = asyncio.Lock()
        self._synced_at: datetime | None = None
        self._former: list[tuple[datetime, ModelIndex]] = []
        self.current = ModelIndex([], datetime.now(UTC))
        # status: the model statuses of contracts/catalog.py
        self._models = Gauge("x402jobs_catalog_models", "Models of the catalog.", ["status"], registry=registry)
        self._missing = Gauge(
            "x402jobs_catalog_curated_missing", "Recommended models that upstream does not offer.", registry=registry
        )
        age = Gauge("x402jobs_catalog_age_seconds", "Since the catalog was last known to be right.", registry=registry)
        age.set_function(self._age_s)

    async def reload(self) -> None:
        """Raises UNAVAILABLE when the database cannot be reached; the former index stays."""
        async with self._reloading:
            snapshot = await self._store.snapshot()
            now, replaced = datetime.now(UTC), self.current
            # In a thread, so that requests are answered meanwhile.
            self.current = await asyncio.to_thread(
                ModelIndex, snapshot.models, now, generation=snapshot.sync_id, former=replaced
            )
            self._synced_at = snapshot.synced_at
            self._keep(replaced, now)
        for status in ("available", "retiring", "retired"):
            self._models.labels(status).set(sum(row.status == status for row in snapshot.models))
        self._missing.set(len(self.current.recommendations.missing))

    def search(self, query: SearchModels) -> ModelPage:
        """One page, of the list that the search was begun on. Raises INVALID for a cursor of another query."""
        begun_on = generation_of(query)
        former = (index for _, index in reversed(self._former) if index.generation == begun_on)
        index = self.current if begun_on == self.current.generation else next(former, self.current)
        return index.search(query)

    def replacement_for(self, model: CatalogModel) -> str | None:
        """What could take over from a model that is retired or about to be; None for one that stays."""
        return None if model.status == "available" else propose_replacement(model, self.current.rows())

    def find(self, model_id: str | None) -> CatalogModel | None:
        entry = self.current.entries.get(model_id) if model_id is not None else None
        return None if entry is None else entry.row

    def _keep(self, replaced: ModelIndex, now: datetime) -> None:
        kept = [(until, index) for until, index in self._former if until > now]
        if replaced.generation != self.current.generation:
            kept.append((now + _KEPT_FOR, replaced))
        while kept and sum(len(index) for _, index in kept) > _MOST_KEPT_ENTRIES:
            kept.pop(0)
        self._former = kept

    def _age_s(self) -> float:
        if self._synced_at is None:
            return math.inf
        return (datetime.now(UTC) - self._synced_at).total_seconds()
