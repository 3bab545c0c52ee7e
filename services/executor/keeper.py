"""Leases: renewed for all runs of this process in one statement, taken from executors that died, given up when we cannot
renew. The clock is the database's, so that no two machines can disagree."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import asyncpg
import structlog

from contracts.errors import ErrorCode
from services.executor.cooldowns import Cooldowns
from services.executor.endings import ended_row, ending_of, interrupted
from services.executor.frames import Frames, last_seq
from services.executor.metrics import ExecutorMetrics
from services.executor.runs import Runner
from services.executor.store import Execution, Store
from services.runtime.bus import Bus

log = structlog.get_logger()

LEASE_S = 15.0
RENEW_EVERY_S = 5.0
_RENEW_TIMEOUT_S = 4.0
_GIVE_UP_AFTER_S = 9.0
_JANITOR_EVERY_S = 300.0


class Keeper:
    def __init__(
        self,
        bus: Bus,
        store: Store,
        cooldowns: Cooldowns,
        runner: Runner,
        metrics: ExecutorMetrics,
        wake_outbox: asyncio.Event,
    ) -> None:
        self._bus = bus
        self._store = store
        self._cooldowns = cooldowns
        self._runner = runner
        self._metrics = metrics
        self._wake_outbox = wake_outbox

    async def renew(self) -> None:
        """Background work: keep our runs ours; stop those that are not any more, or that somebody canceled elsewhere."""
        renewed_s = time.monotonic()
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            tokens = list(self._runner.runs)
            try:
                # A database that hangs is as bad as one that refuses: whoever waits for it must notice in time.
                async with asyncio.timeout(_RENEW_TIMEOUT_S):
                    held = await self._store.renew(tokens) if tokens else {}
                renewed_s = time.monotonic()
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                OSError,
                TimeoutError,
            ) as error:
                log.warning("lease_not_renewed", error=type(error).__name__, runs=len(tokens))
                if time.monotonic() - renewed_s > _GIVE_UP_AFTER_S:
                    for run in list(self._runner.runs.values()):
                        run.stop("interrupted")
                continue
            for token in tokens:
                ours = self._runner.runs.get(token)
                if ours is not None and (token not in held or held[token]):
                    ours.stop("canceled" if token in held else "interrupted")

    async def reap(self) -> None:
        """Background work: end the runs of executors that died."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            # However many died with their executor: callers wait for all of them.
            while rows := await self._store.expired():
                for row in rows:
                    await self._interrupt(row)
                self._wake_outbox.set()

    async def clean(self) -> None:
        """Background work: delete outputs that need not be kept any longer, and limits that are over."""
        while True:
            erased = await self._store.erase_expired_results()
            if erased:
                log.info("results_erased", results=erased)
            await self._cooldowns.clean()
            await asyncio.sleep(_JANITOR_EVERY_S)

    async def _interrupt(self, row: Execution) -> None:
        assert row.lease_token is not None
        error = interrupted(row.id)
        ended = ended_row(row, await self._store.attempts(row.id), "interrupted", error)
        # Where the frames are lost too, nobody knows the number of the end: it is the next one of whoever looks.
        said = await last_seq(self._bus, row.viewer, row.id)
        frames = Frames(self._bus.nc, row.viewer, row.id, self._metrics.frames_lost)
        ending = ending_of(ended, last_seq=None if said is None else said + 1, result=None, keep=timedelta(0))
        if await self._store.finish(row.id, row.lease_token, ending):
            if said is not None:
                frames.seq = said
                await frames.send("failed", error)
            self._metrics.executions.labels("interrupted", ErrorCode.UNAVAILABLE.value).inc()
            unknown = sum(attempt.cost_status == "unknown" for attempt in ended.attempts)
            if unknown:
                self._metrics.cost_unknown.inc(unknown)
                log.error("cost_unknown", execution_id=str(row.id), attempts=unknown)
            log.warning("run_reaped", execution_id=str(row.id), cost_status=ended.cost.status)
