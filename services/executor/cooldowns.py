"""Keys and models that rest because upstream said so: noted for all executors, in the rows that admission and claim read."""

from __future__ import annotations

import asyncpg
import structlog

from contracts.keys import KeysChanged
from services.executor.faults import Fault
from services.executor.limits import cooldown_after
from services.executor.limits_store import LimitsStore
from services.executor.metrics import ExecutorMetrics
from services.executor.preparation import Prepared

log = structlog.get_logger()


class Cooldowns:
    def __init__(self, store: LimitsStore, metrics: ExecutorMetrics) -> None:
        self._store = store
        self._metrics = metrics

    async def note(self, prepared: Prepared, fault: Fault) -> None:
        """Begin the cooldown that this fault asks for. Without a database the run ends all the same."""
        cooldown = cooldown_after(fault, prepared.resource)
        if cooldown is None:
            return
        self._metrics.cooldowns.labels(cooldown.reason).inc()
        log.warning("cooling_down", reason=cooldown.reason, rest_s=cooldown.rest.total_seconds())
        try:
            await self._store.cool(
                prepared.resource.owner, cooldown.about, cooldown.reason, cooldown.rest, prepared.lease.version
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            log.warning("cooldown_not_noted", error=type(error).__name__)

    async def changed(self, event: KeysChanged) -> None:
        """Another key owes nothing for the one before."""
        await self._store.warm_up(event.owner, event.version)

    async def clean(self) -> None:
        """Forget what is over."""
        await self._store.clean()
