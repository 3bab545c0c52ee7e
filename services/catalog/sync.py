"""Brings the catalog up to date: read upstream, judge, write in one transaction, and only then tell everybody.

The daily schedule, the start of the service and the admin's button all come here. One replica at a time reads upstream;
whoever asks meanwhile waits, and takes a result that was begun after he asked as his own.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import structlog
from prometheus_client import CollectorRegistry, Counter

from contracts.catalog import CatalogSynced, ModelChanged, ResourceChanged, SyncReport
from contracts.subjects import CATALOG_SYNCED, MODEL_CHANGED, RESOURCE_CHANGED
from services.catalog.diffs import implausible, plan_sync
from services.catalog.index import LiveIndex
from services.catalog.models import ParsedList, parse_models
from services.catalog.store import Store, StoredResource, SyncRequest, SyncSession
from services.catalog.upstream import Upstream, UpstreamError, UpstreamList
from services.runtime.bus import Bus

log = structlog.get_logger()

_READ_TIMEOUT_S = 90


class CatalogSync:
    def __init__(
        self, *, store: Store, upstream: Upstream, index: LiveIndex, bus: Bus, registry: CollectorRegistry
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._index = index
        self._bus = bus
        # One waiter per replica is enough to hold a database connection for the lock.
        self._one_here = asyncio.Lock()
        # outcome: the outcomes of SyncReport
        self._syncs = Counter(
            "x402jobs_catalog_syncs", "Readings of the upstream list.", ["outcome"], registry=registry
        )

    async def run(self, requested_by: str) -> SyncReport:
        """Read upstream now. What upstream does wrong is in the report; raises UNAVAILABLE only for our own database."""
        asked_at = await self._store.now()
        async with self._one_here, self._store.syncing() as session:
            report = await session.report_since(asked_at)
            if report is not None:
                return report
            report, affected = await self._sync(session, requested_by)
        self._syncs.labels(report.outcome).inc()
        if report.outcome == "applied":
            await self._announce(report, affected)
        await self._index.reload()
        return report

    async def _sync(self, session: SyncSession, requested_by: str) -> tuple[SyncReport, list[StoredResource]]:
        request = await session.begin(requested_by, self._upstream.source)
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                listed = await self._upstream.read_models(await session.etag(self._upstream.source))
                ranks = await self._upstream.read_ranks()
        except UpstreamError as error:
            return await self._reject(session, request, "failed", str(error)), []
        except TimeoutError:
            return await self._reject(session, request, "failed", "Upstream took too long."), []
        return await self._write(session, request, listed, ranks)

    async def _write(
        self, session: SyncSession, request: SyncRequest, listed: UpstreamList, ranks: dict[str, int] | None
    ) -> tuple[SyncReport, list[StoredResource]]:
        known = await session.known()
        parsed: ParsedList | None = None
        if listed.entries is not None:
            parsed = parse_models(listed.entries, datetime.now(UTC).date())
            if (reason := implausible(known, parsed.models)) is not None:
                report = await self._reject(
                    session, request, "refused", reason, models=len(parsed.models), skipped=parsed.skipped
                )
                return report, []
            if parsed.skipped:
                log.warning("catalog_entries_skipped", count=parsed.skipped)
        plan = plan_sync(known, parsed.models if parsed else None, ranks)
        living = sum(model.status != "retired" for model in known.values())
        report, affected = await session.apply(
            request,
            plan,
            etag=listed.etag,
            models=len(parsed.models) if parsed else living,
            skipped=parsed.skipped if parsed else 0,
        )
        log.info(
            "catalog_synced",
            outcome=report.outcome,
            models=report.models,
            added=len(report.added),
            retired=len(report.retired),
            returned=len(report.returned),
            repriced=len(report.repriced),
        )
        return report, affected

    async def _reject(
        self,
        session: SyncSession,
        request: SyncRequest,
        outcome: str,
        reason: str,
        *,
        models: int = 0,
        skipped: int = 0,
    ) -> SyncReport:
        log.error("catalog_sync_rejected", outcome=outcome, reason=reason, models=models, skipped=skipped)
        return await session.reject(request, outcome, reason, models, skipped)

    async def _announce(self, report: SyncReport, affected: list[StoredResource]) -> None:
        changes = (
            *(("added", model_id) for model_id in report.added),
            *(("retired", model_id) for model_id in report.retired),
            *(("returned", model_id) for model_id in report.returned),
            *(("repriced", model_id) for model_id in report.repriced),
        )
        await self._bus.publish(CATALOG_SYNCED, CatalogSynced(sync_id=report.id, models=report.models))
        for change, model_id in changes:
            event = ModelChanged.model_validate({"model_id": model_id, "change": change, "sync_id": report.id})
            await self._bus.publish(MODEL_CHANGED, event)
        for resource in affected:
            await self._bus.publish(
                RESOURCE_CHANGED,
                ResourceChanged(
                    resource_id=resource.id,
                    owner=resource.owner,
                    slug=resource.draft.slug,
                    version=resource.version,
                    change="availability",
                ),
            )
