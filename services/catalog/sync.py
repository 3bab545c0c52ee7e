"""Brings the catalog up to date: read upstream, judge, write in one transaction, and only then tell everybody.

The daily schedule, the start of the service and the admin's button all come here. One replica at a time reads upstream;
whoever asks meanwhile waits, and takes a result that was begun after he asked as his own. That everybody has been told is
remembered as well: who dies between the writing and the telling is made up for at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime

import nats.errors
import structlog
from prometheus_client import CollectorRegistry, Counter

from contracts.catalog import CatalogSynced, ModelChanged, ResourceChanged, SyncReport
from contracts.subjects import CATALOG_SYNCED, MODEL_CHANGED, RESOURCE_CHANGED
from services.catalog.curated import recommend
from services.catalog.diffs import SyncPlan, implausible, plan_sync
from services.catalog.index import LiveIndex
from services.catalog.models import ParsedList, parse_models
from services.catalog.store import Store
from services.catalog.sync_store import SyncRequest, SyncResult, SyncSession
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
        for outcome in ("applied", "unchanged", "refused", "failed"):  # an alert sees the first one too
            self._syncs.labels(outcome)

    async def run(self, requested_by: str, *, force: bool = False) -> SyncReport:
        """Read upstream now. What upstream does wrong is in the report; raises UNAVAILABLE only for our own database.

        With `force` a list that looks wrong is taken all the same, unless it is empty.
        """
        asked_at = await self._store.now()
        async with self._one_here, self._store.syncing() as session:
            # Somebody else's sync was not forced.
            report = None if force else await session.report_since(asked_at)
            if report is None:
                report = await self._sync(session, requested_by, force=force)
                await self._announce(session)
        await self._index.reload()
        return report

    async def run_daily(self, requested_by: str, due: datetime) -> SyncReport | None:
        """The reading that was due at this moment, or one that was cut short; None where neither is to be made."""
        report = None
        async with self._one_here, self._store.syncing() as session:
            if not await session.covers(due, self._upstream.source):
                report = await self._sync(session, requested_by, due=due)
            elif await session.was_cut_short():
                report = await self._sync(session, requested_by)
            await self._announce(session)
        # Also where there was nothing to do: what is new grows old, and another replica may have synced.
        await self._index.reload()
        return report

    async def announce(self) -> None:
        """Tell what could not be told when it happened."""
        async with self._one_here, self._store.syncing() as session:
            await self._announce(session)

    async def _sync(
        self, session: SyncSession, requested_by: str, *, force: bool = False, due: datetime | None = None
    ) -> SyncReport:
        request = await session.begin(requested_by, self._upstream.source, due)
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                listed = await self._upstream.read_models(await session.etag(self._upstream.source))
                ranks = await self._upstream.read_ranks()
        except UpstreamError as error:
            report = await self._reject(session, request, SyncResult("failed", reason=str(error)))
        except TimeoutError:
            report = await self._reject(session, request, SyncResult("failed", reason="Upstream took too long."))
        else:
            report = await self._write(session, request, listed, ranks, force=force)
        self._syncs.labels(report.outcome).inc()
        return report

    async def _write(
        self,
        session: SyncSession,
        request: SyncRequest,
        listed: UpstreamList,
        ranks: dict[str, int] | None,
        *,
        force: bool,
    ) -> SyncReport:
        known = await session.known()
        parsed: ParsedList | None = None
        doubt: str | None = None
        if listed.entries is not None:
            parsed = parse_models(listed.entries, datetime.now(UTC).date())
            doubt = implausible(known, parsed.models)
            if doubt is not None and (not force or not parsed.models):
                refused = SyncResult("refused", models=len(parsed.models), skipped=parsed.skipped, reason=doubt)
                return await self._reject(session, request, refused)
        plan = plan_sync(known, parsed.models if parsed else None, ranks)
        living = sum(model.status != "retired" for model in known.values())
        result = SyncResult(
            "applied" if plan.changed else "unchanged",
            models=len(parsed.models) if parsed else living,
            skipped=parsed.skipped if parsed else 0,
            etag=listed.etag,
            reason=doubt,
            forced=doubt is not None,
            curated_missing=recommend({**known, **{model.id: model for model in plan.changed}}).missing,
        )
        report = await session.write(request, result, plan)
        _log_applied(report)
        return report

    async def _reject(self, session: SyncSession, request: SyncRequest, result: SyncResult) -> SyncReport:
        log.error(
            "catalog_sync_rejected",
            outcome=result.outcome,
            reason=result.reason,
            models=result.models,
            skipped=result.skipped,
        )
        return await session.write(request, result, SyncPlan())

    async def _announce(self, session: SyncSession) -> None:
        for report in await session.unannounced():
            try:
                await self._tell(report, await session.expiries(report.id))
            except (nats.errors.Error, TimeoutError) as error:
                log.warning("catalog_sync_not_announced", sync_id=report.id, error=type(error).__name__)
                return
            await session.mark_announced(report.id)

    async def _tell(self, report: SyncReport, expiries: Mapping[str, date | None]) -> None:
        changes = (
            *(("added", model_id) for model_id in report.added),
            *(("retired", model_id) for model_id in report.retired),
            *(("returned", model_id) for model_id in report.returned),
            *(("repriced", model_id) for model_id in report.repriced),
            *(("expiry_withdrawn" if day is None else "expiring", model_id) for model_id, day in expiries.items()),
        )
        await self._bus.publish(CATALOG_SYNCED, CatalogSynced(sync_id=report.id, models=report.models))
        for change, model_id in changes:
            facts = {"model_id": model_id, "change": change, "sync_id": report.id}
            if change == "expiring":
                facts["retires_on"] = expiries[model_id]
            event = ModelChanged.model_validate(facts)
            await self._bus.publish(MODEL_CHANGED, event)
        for resource in await self._store.resources_on([*report.retired, *report.returned, *expiries]):
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
        # What has only been handed to the connection is lost with the process.
        await self._bus.nc.flush()


def _log_applied(report: SyncReport) -> None:
    log.info(
        "catalog_synced",
        outcome=report.outcome,
        models=report.models,
        skipped=report.skipped,
        added=len(report.added),
        retired=len(report.retired),
        returned=len(report.returned),
        repriced=len(report.repriced),
        changes=report.changes_total,
    )
    if report.forced:
        log.warning("catalog_sync_forced", requested_by=report.requested_by, reason=report.reason)
    if report.skipped:
        log.warning("catalog_entries_skipped", count=report.skipped)
    if report.curated_missing:
        # Once per sync, by name: the list is reviewed by hand, and this is what asks for it.
        log.warning("curated_models_missing", missing={gap.id: gap.replaced_by for gap in report.curated_missing})
