"""Watches over resources: tells their creators what upstream and the receipts have done to them, and pauses what sells
below cost where its creator asked for that.

What is found is written in the transaction that looked, and told from there until the stream has acknowledged it: a
replica that dies in between leaves nothing undone and makes nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

import nats.errors
import structlog

from contracts.base import Contract
from contracts.catalog import ResourceChanged
from contracts.errors import ServiceError
from contracts.market import ResourceNotice
from contracts.subjects import BUDGET_REACHED, MESSAGE_ID_HEADER, NOTICES_STREAM, RESOURCE_CHANGED, RESOURCE_NOTICED
from services.catalog.market_store import MarketStore
from services.catalog.resources import named_models
from services.catalog.reviews import Finding, findings, margin_cause, measured_below_cost, repriced_below_cost
from services.catalog.showing import Showing
from services.catalog.store import ResourceChange, Store, StoredResource
from services.runtime.bus import Bus, encode

log = structlog.get_logger()

_TELL_AGAIN_S = 60.0
_LOOK_AGAIN_S = 600.0
_BATCH = 100
_PUBLISH_TIMEOUT_S = 5


class Guard:
    """Looks at all resources when models may have changed, and tells what there is to tell."""

    def __init__(self, *, bus: Bus, store: Store, market: MarketStore, showing: Showing) -> None:
        self._bus = bus
        self._store = store
        self._market = market
        self._showing = showing
        self._woken = asyncio.Event()
        self._look_at = 0.0  # when to look next, on the clock of this process

    def look(self) -> None:
        """The models may have changed."""
        self._look_at = 0.0
        self._woken.set()

    def tell(self) -> None:
        """There may be something to tell."""
        self._woken.set()

    async def declare(self) -> None:
        """The stream of notices; again after every reconnect, when news of a sync may have been missed as well."""
        await self._bus.declare(NOTICES_STREAM)
        self.look()

    async def run(self) -> None:
        """Background work: at the start, when there is a reason, and now and then for what another replica left behind."""
        while True:
            self._woken.clear()
            try:
                if time.monotonic() >= self._look_at:
                    self._look_at = time.monotonic() + _LOOK_AGAIN_S
                    await self.review()
                await self.announce()
            except ServiceError as error:
                log.warning("guard_waits", code=error.code.value)
                self._look_at = 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TELL_AGAIN_S):
                    await self._woken.wait()

    async def review(self) -> None:
        """Look at every resource whose models changed since it was last looked at."""
        failed: set[UUID] = set()
        while found := set(await self._market.unreviewed(_BATCH + len(failed))) - failed:
            for resource_id in found:
                try:
                    await self._review(resource_id)
                except ServiceError:
                    raise
                except Exception as error:
                    # One resource that we cannot judge must not keep all others from being watched.
                    log.exception("review_failed", resource_id=str(resource_id), error=type(error).__name__)
                    failed.add(resource_id)

    async def act_on_losses(self, versions: Iterable[tuple[UUID, int]]) -> None:
        """Look at resources of which receipts show runs that cost more than they brought."""
        for resource_id, version in versions:
            async with self._store.changing(resource_id) as change:
                stored = change.current
                if stored is None or stored.deleted or stored.version != version:
                    continue
                price_id, since = await self._market.price_id(
                    change.connection, named_models(stored.draft.openrouter_config)
                )
                losses = await self._market.losses(change.connection, stored.id, version, since)
                loss = measured_below_cost(stored.draft, losses, published=stored.status == "published")
                acted = loss is not None and await self._act(change, stored, loss, price_id)
            await self._after(stored, loss if acted else None)

    async def announce(self) -> None:
        """Tell what has not been told, oldest first. Without an acknowledgement it stays for the next time."""
        while batch := await self._market.unannounced(_BATCH):
            for entry in batch:
                event = RESOURCE_NOTICED if isinstance(entry.notice, ResourceNotice) else BUDGET_REACHED
                message_id = f"{entry.id}:{entry.notice.created_at.isoformat()}"
                if not await self._publish(event.subject, entry.notice, message_id):
                    return
                await self._market.announced(entry.id)

    async def _review(self, resource_id: UUID) -> None:
        measured = (await self._store.measured_tokens([resource_id])).get(resource_id)
        acted: Finding | None = None
        async with self._store.changing(resource_id) as change:
            stored = change.current
            if stored is None or stored.deleted:
                return
            before, after = await self._market.review(change.connection, resource_id)
            ids = named_models(stored.draft.openrouter_config)
            rows = await change.models_by_id(ids)
            named = [rows[model_id] for model_id in ids if model_id in rows]
            found = list(
                findings(
                    stored.draft,
                    [self._showing.model(row) for row in named],
                    before,
                    after,
                    replacements=self._showing.proposals(stored.draft, named, measured),
                    measured=measured,
                )
            )
            for finding in found:
                await self._tell(change, stored, finding)
            loss = repriced_below_cost(stored.draft, found, published=stored.status == "published")
            price_id = max(look.price_id for look in after.values())
            if loss is not None and await self._act(change, stored, loss, price_id):
                acted = loss
        log.info("resource_reviewed", resource_id=str(resource_id), found=[finding.kind for finding in found])
        await self._after(stored, acted)

    async def _act(self, change: ResourceChange, stored: StoredResource, loss: Finding, price_id: int) -> bool:
        """Tell of a loss and pause if that is the rule, unless that, or more, was done about this change already."""
        paused = margin_cause("paused_below_cost", stored.id, stored.version, price_id)
        if await self._market.was_told(change.connection, stored.owner, paused):
            return False
        caused = replace(loss, cause=margin_cause(loss.kind, stored.id, stored.version, price_id))
        if not await self._tell(change, stored, caused):
            return False
        if loss.kind == "paused_below_cost":
            await change.set_status("paused")
        return True

    async def _tell(self, change: ResourceChange, stored: StoredResource, finding: Finding) -> bool:
        return await self._market.add_notice(
            change.connection,
            owner=stored.owner,
            resource_id=stored.id,
            slug=stored.draft.slug,
            version=stored.version,
            finding=finding,
        )

    async def _after(self, stored: StoredResource, acted: Finding | None) -> None:
        """What follows once it is committed."""
        self.tell()
        if acted is None:
            return
        log.warning("resource_sells_below_cost", resource_id=str(stored.id), kind=acted.kind)
        if acted.kind == "paused_below_cost":
            event = ResourceChanged(
                resource_id=stored.id,
                owner=stored.owner,
                slug=stored.draft.slug,
                version=stored.version,
                change="paused",
            )
            await self._bus.publish(RESOURCE_CHANGED, event)

    async def _publish(self, subject: str, notice: Contract, message_id: str) -> bool:
        try:
            await self._bus.js.publish(
                subject, encode(notice), headers={MESSAGE_ID_HEADER: message_id}, timeout=_PUBLISH_TIMEOUT_S
            )
        except (nats.errors.Error, TimeoutError, OSError) as error:
            log.warning("notice_not_acknowledged", error=type(error).__name__)
            return False
        return True
