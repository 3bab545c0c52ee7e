"""Costs that upstream did not state in the answer: asked for at `/generation` with growing pauses, then written as a
further revision of the receipt. A cost that cannot be found out becomes `unknown` and is counted; it never becomes zero."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from contracts.errors import ServiceError
from contracts.execution import CostStatus
from services.executor.endings import cost_found
from services.executor.faults import UpstreamFailed
from services.executor.leases import KeyLeases
from services.executor.metrics import ExecutorMetrics
from services.executor.store import PendingCost, Store
from services.executor.upstream import Upstream

log = structlog.get_logger()

_EVERY_S = 0.5
_FIRST_RETRY = timedelta(seconds=1)
_MOST_LOOKUPS = 10  # 1 + 2 + 4 + … seconds: about 17 minutes in all
_BATCH = 20


class PendingCosts:
    def __init__(
        self, store: Store, upstream: Upstream, leases: KeyLeases, metrics: ExecutorMetrics, wake_outbox: asyncio.Event
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._leases = leases
        self._metrics = metrics
        self._wake_outbox = wake_outbox

    async def look_up(self) -> None:
        """Background work."""
        while True:
            due = await self._store.pending_costs(_BATCH, _FIRST_RETRY)
            await asyncio.gather(*(self._settle(pending) for pending in due))
            if len(due) < _BATCH:
                await asyncio.sleep(_EVERY_S)

    async def _settle(self, pending: PendingCost) -> None:
        cost_usd = None
        try:
            lease = await self._leases.get(pending.owner)
            if lease.mode == pending.mode:
                generation = await self._upstream.lookup_generation(lease.mode, lease.api_key, pending.generation_id)
                cost_usd = generation.cost_usd if generation is not None else None
        except (UpstreamFailed, ServiceError) as error:
            log.info("cost_lookup_failed", execution_id=str(pending.execution_id), error=type(error).__name__)
        if cost_usd is None and pending.lookups < _MOST_LOOKUPS:
            return
        status: CostStatus = "final" if cost_usd is not None else "unknown"
        revision = await self._store.settle_attempt(pending.execution_id, pending.number, cost_usd, status, cost_found)
        if status == "unknown":
            self._metrics.cost_unknown.inc()
            log.error("cost_unknown", execution_id=str(pending.execution_id), attempt=pending.number)
        if revision is not None:
            self._metrics.count_money(revision.cost_usd, revision.price_usd if revision.price_was_unknown else None)
            self._wake_outbox.set()
