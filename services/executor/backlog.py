"""Says in metrics what waits in the database, and for how long: for the operator, who is to hear of it before callers do."""

from __future__ import annotations

import asyncio

from services.executor.backlog_store import BacklogStore
from services.executor.metrics import ExecutorMetrics

_EVERY_S = 10.0  # a gauge is read every quarter of a minute or so


class BacklogWatch:
    def __init__(self, store: BacklogStore, metrics: ExecutorMetrics) -> None:
        self._store = store
        self._metrics = metrics

    async def watch(self) -> None:
        """Background work."""
        metrics = self._metrics
        while True:
            backlog = await self._store.read()
            metrics.jobs_waiting.set(backlog.jobs)
            metrics.cost_pending.set(backlog.costs)
            metrics.oldest_seconds.labels("job").set(backlog.oldest_job_s)
            metrics.oldest_seconds.labels("cost").set(backlog.oldest_lookup_s)
            metrics.oldest_seconds.labels("message").set(backlog.oldest_message_s)
            await asyncio.sleep(_EVERY_S)
