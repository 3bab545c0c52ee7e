"""Every night the receipts are compared with upstream's accounts: what a call cost is what its owner's account was charged.

A figure that differs is a further revision of the receipt, told like any other, counted as drift and logged; the price that
the caller was told stays, and the creator bears the difference. Costs that are unknown get one more try. Of each creator a
sample is asked about, and where one of it differs, everything: so a hundred thousand runs are a night's work at ten
questions a second, and a model whose costs are stated wrongly is found all the same.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from decimal import Decimal

import structlog

from contracts.errors import ServiceError
from services.executor.endings import cost_corrected, cost_found
from services.executor.faults import UpstreamFailed
from services.executor.leases import KeyLeases
from services.executor.metrics import ExecutorMetrics
from services.executor.reconciliation_store import Check, Outcome, ReconciliationStore
from services.executor.store import Store
from services.executor.upstream import Upstream

log = structlog.get_logger()

SAMPLE = 200
"""Attempts per creator that are asked about where none of them differs."""
_QUIET = timedelta(hours=4)
_FURTHEST = timedelta(days=7)
_PLAN_EVERY_S = 60.0
_AT_ONCE = 10
_PAUSE_S = 1.0
_IDLE_S = 5.0
_MOST_TRIES = 4
_ROUNDING = Decimal("0.000000001")


class Reconciler:
    def __init__(
        self,
        checks: ReconciliationStore,
        store: Store,
        upstream: Upstream,
        leases: KeyLeases,
        metrics: ExecutorMetrics,
        wake_outbox: asyncio.Event,
    ) -> None:
        self._checks = checks
        self._store = store
        self._upstream = upstream
        self._leases = leases
        self._metrics = metrics
        self._wake_outbox = wake_outbox

    async def work(self) -> None:
        """Background work: plan the night when it is due, and ask what is to be asked, by whoever planned it."""
        plan_at_s = 0.0
        while True:
            if time.monotonic() >= plan_at_s:
                planned = await self._checks.plan_night(_QUIET, _FURTHEST, SAMPLE)
                if planned is not None:
                    log.info("reconciliation_planned", attempts=planned)
                plan_at_s = time.monotonic() + _PLAN_EVERY_S
            due = await self._checks.due(_AT_ONCE)
            await asyncio.gather(*(self._check(check) for check in due))
            if not due:
                await self._finish()
            await asyncio.sleep(_PAUSE_S if due else _IDLE_S)

    async def _check(self, check: Check) -> None:
        try:
            charged = await self._ask(check)
        except (UpstreamFailed, ServiceError) as error:
            log.info("cost_check_failed", execution_id=str(check.execution_id), error=type(error).__name__)
            if check.tries < _MOST_TRIES:
                return
            charged = None
        if charged is None:
            await self._close(check, "untold")
        elif check.cost_status == "unknown":
            await self._found(check, charged)
        elif abs(charged - (check.cost_usd or 0)) <= _ROUNDING:
            await self._close(check, "same")
        else:
            await self._correct(check, charged)

    async def _ask(self, check: Check) -> Decimal | None:
        """What was charged; None where upstream does not tell: of free models it never does."""
        lease = await self._leases.get(check.owner)
        if lease.mode != check.mode:
            return None
        generation = await self._upstream.lookup_generation(lease.mode, lease.api_key, check.generation_id)
        return generation.cost_usd if generation is not None else None

    async def _found(self, check: Check, charged: Decimal) -> None:
        revision = await self._store.settle_attempt(
            check.execution_id, check.number, charged, "final", cost_found, was="unknown"
        )
        if revision is not None:
            self._metrics.count_money(charged, revision.price_usd if revision.price_was_unknown else None)
            self._wake_outbox.set()
        await self._close(check, "found")

    async def _correct(self, check: Check, charged: Decimal) -> None:
        drift_usd = charged - (check.cost_usd or 0)
        revision = await self._store.settle_attempt(
            check.execution_id, check.number, charged, "final", cost_corrected, was="final"
        )
        if revision is not None:
            self._wake_outbox.set()
        self._metrics.cost_drift_usd.labels("more" if drift_usd > 0 else "less").inc(float(abs(drift_usd)))
        log.warning("cost_drift", execution_id=str(check.execution_id), attempt=check.number, drift_usd=str(drift_usd))
        await self._close(check, "differs", drift_usd)
        more = await self._checks.widen(check.reconciliation, check.owner)
        if more:
            log.warning("cost_drift_of_a_creator", attempts=more)

    async def _close(self, check: Check, outcome: Outcome, drift_usd: Decimal = Decimal(0)) -> None:
        await self._checks.close(check, outcome, drift_usd)
        self._metrics.cost_checks.labels(outcome).inc()

    async def _finish(self) -> None:
        for done in await self._checks.finish():
            log.info(
                "receipts_reconciled", nightly=done.nightly, from_at=done.from_at.isoformat(), checked=done.checked,
                until_at=done.until_at.isoformat(), differing=done.differing, found=done.found, untold=done.untold,
                drift_usd=str(done.drift_usd),
            )  # fmt: skip
