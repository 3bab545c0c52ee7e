"""The search index of this process, always a whole one: built from the store, replaced by a new one, never changed in place.

It is rebuilt when a sync changed the catalog (here or in another replica), and after the bus was away, because the event
may have been missed.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Gauge

from services.catalog.models import CatalogModel
from services.catalog.replacements import propose_replacement
from services.catalog.search import ModelIndex
from services.catalog.store import Store


class LiveIndex:
    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        self._store = store
        self._reloading = asyncio.Lock()
        self._last_success: datetime | None = None
        self.current = ModelIndex([], datetime.now(UTC))
        # status: the model statuses of contracts/catalog.py
        self._models = Gauge("x402jobs_catalog_models", "Models of the catalog.", ["status"], registry=registry)
        age = Gauge("x402jobs_catalog_age_seconds", "Since the catalog was last known to be right.", registry=registry)
        age.set_function(self._age_s)

    async def reload(self) -> None:
        """Raises UNAVAILABLE when the database cannot be reached; the former index stays."""
        async with self._reloading:
            rows = await self._store.all_models()
            self._last_success = await self._store.last_success()
            self.current = ModelIndex(rows, datetime.now(UTC))
        for status in ("available", "retiring", "retired"):
            self._models.labels(status).set(sum(row.status == status for row in rows))

    def replacement_for(self, model: CatalogModel) -> str | None:
        """What could take over from a retired model; None for one that is not retired."""
        return propose_replacement(model, self.current.rows()) if model.status == "retired" else None

    def _age_s(self) -> float:
        if self._last_success is None:
            return math.inf
        return (datetime.now(UTC) - self._last_success).total_seconds()
