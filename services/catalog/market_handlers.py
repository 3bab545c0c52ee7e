"""The catalog's side of the bus for what comes after publishing: versions, figures, budgets, and the buyer's view."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from contracts import subjects
from contracts.catalog import ResourceDraft
from contracts.errors import ErrorCode, ServiceError
from contracts.keys import OwnerRef
from contracts.listings import Listing, ViewListing
from contracts.market import (
    Budgets,
    GetStats,
    ListVersions,
    ResourceStats,
    ResourceVersion,
    ResourceVersionPage,
    SetBudgets,
)
from services.catalog.budgets import budgets_view, limit_problems
from services.catalog.cursors import bad_cursor, decode_cursor, encode_cursor
from services.catalog.guard import Guard
from services.catalog.market_store import MarketStore, StoredVersion
from services.catalog.resources import no_such_resource, own_resource
from services.catalog.runs_store import RunsStore
from services.catalog.showing import Showing
from services.catalog.store import Store
from services.catalog.versions import changes_between
from services.runtime.bus import Bus


class MarketHandlers:
    def __init__(
        self, *, bus: Bus, store: Store, market: MarketStore, runs: RunsStore, showing: Showing, guard: Guard
    ) -> None:
        self._bus = bus
        self._store = store
        self._market = market
        self._runs = runs
        self._showing = showing
        self._guard = guard

    def register(self) -> None:
        """Call before the bus starts."""
        serve = self._bus.serve
        serve(subjects.RESOURCES_VERSIONS, self.list_versions)
        serve(subjects.RESOURCES_STATS, self.get_stats)
        serve(subjects.RESOURCES_LISTING, self.view_listing)
        serve(subjects.BUDGETS_GET, self.get_budgets)
        serve(subjects.BUDGETS_SET, self.set_budgets)

    async def list_versions(self, request: ListVersions) -> ResourceVersionPage:
        own_resource(await self._store.resource(request.id), request.owner)
        question = f"versions:{request.id}"
        below = _version(decode_cursor(question, request.cursor, 1)[0]) if request.cursor is not None else None
        # One more than asked for: it is what the last one of the page is compared with.
        rows, total = await self._market.versions(request.id, below, request.limit + 1)
        page = rows[: request.limit]
        former: list[StoredVersion | None] = [*rows[1:], None]
        return ResourceVersionPage(
            items=[_version_view(row, before) for row, before in zip(page, former, strict=False)],
            total=total,
            next_cursor=encode_cursor(question, [str(page[-1].version)]) if len(rows) > len(page) else None,
        )

    async def get_stats(self, request: GetStats) -> ResourceStats:
        own_resource(await self._store.resource(request.id), request.owner)
        until = datetime.now(UTC).date()
        return await self._runs.stats(request.id, until - timedelta(days=request.days - 1), until)

    async def view_listing(self, request: ViewListing) -> Listing:
        stored = await self._store.resource(request.id)
        if stored is None or stored.deleted or (stored.owner != request.asking and stored.status != "published"):
            raise no_such_resource()
        return await self._showing.listing(stored)

    async def get_budgets(self, request: OwnerRef) -> Budgets:
        today = datetime.now(UTC).date()
        limits = await self._runs.limits(request.owner)
        return budgets_view(limits, await self._runs.spent(request.owner, today), request.owner, today)

    async def set_budgets(self, request: SetBudgets) -> Budgets:
        limits = request.limits
        own = await self._runs.owned(request.owner, [each.resource_id for each in limits.resources])
        if problems := limit_problems(limits, own):
            raise ServiceError(ErrorCode.INVALID, problems[0].message, fields=problems)
        await self._runs.set_limits(request.owner, limits, datetime.now(UTC).date())
        self._guard.tell()
        return await self.get_budgets(OwnerRef(owner=request.owner))


def _version(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise bad_cursor()
    return int(text)


def _version_view(row: StoredVersion, before: StoredVersion | None) -> ResourceVersion:
    changes = []
    if before is not None:
        # Read through the contract, so that a field which is newer than a version has its default there.
        changes = changes_between(ResourceDraft.model_validate(before.draft), ResourceDraft.model_validate(row.draft))
    return ResourceVersion(version=row.version, created_at=row.created_at, changes=changes)
