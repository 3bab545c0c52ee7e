"""The search index of this process, always a whole one: built from the store, replaced by a new one, never changed in place.

It is rebuilt when a sync changed the catalog (here or in another replica), and after the bus was away, because the event
may have been missed. Former ones are kept for a while, so that whoever pages through the list while a sync runs stays on
the list that he began with: ranks and prices move, and with them a model could jump over the place where a page ended. A
replica that has not got that list, because it was away or heard of the sync earlier or later than the one that served the
page before, reads it from the database, which keeps for a while what syncs overwrote.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
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

    async def search(self, query: SearchModels) -> ModelPage:
        """One page, of the list that the search was begun on; where that is not known any more, of the present one.

        Raises INVALID for a cursor of another query, UNAVAILABLE when a list that is not here cannot be read.
        """
        begun_on = generation_of(query)
        if begun_on is None:
            return self.current.search(query)
        index = self._kept(begun_on)
        if index is None:
            await self._fetch(begun_on)
            index = self._kept(begun_on)
        return (index or self.current).search(query)

    def replacement_for(self, model: CatalogModel, without: Collection[str] = ()) -> str | None:
        """What could take over from a model that is retired or about to be, but none of some; None for one that stays."""
        if model.status == "available":
            return None
        return propose_replacement(model, (row for row in self.current.rows() if row.id not in without))

    def find(self, model_id: str | None) -> CatalogModel | None:
        entry = self.current.entries.get(model_id) if model_id is not None else None
        return None if entry is None else entry.row

    def _kept(self, generation: int) -> ModelIndex | None:
        """The list of this number, if it is here."""
        former = (index for _, index in reversed(self._former) if index.generation == generation)
        return self.current if generation == self.current.generation else next(former, None)

    async def _fetch(self, generation: int) -> None:
        """Read a list that another replica has served; nothing where it is not known any more, or never was."""
        async with self._reloading:
            if self._kept(generation) is not None:
                return
            snapshot = await self._store.former_snapshot(generation)
            if snapshot is not None:
                now = datetime.now(UTC)
                index = await asyncio.to_thread(
                    ModelIndex, snapshot.models, now, generation=generation, former=self.current
                )
                self._keep(index, now)

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
