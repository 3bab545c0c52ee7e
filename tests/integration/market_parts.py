"""What the tests of the market share: a catalog with its bus users on a server of its own, receipts to feed it, and what
creators were told."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from contracts.catalog import Resource
from contracts.execution import Receipt
from contracts.keys import OwnerRef
from contracts.listings import Listing, ListingRef, ViewListing
from contracts.market import (
    BudgetLimits,
    BudgetReached,
    Budgets,
    GetStats,
    ListVersions,
    ResourceNotice,
    ResourceStats,
    ResourceVersionPage,
    SetBudgets,
)
from contracts.subjects import (
    BUDGET_REACHED,
    BUDGETS_GET,
    BUDGETS_SET,
    EXECUTION_FINISHED,
    LISTINGS_GET,
    MESSAGE_ID_HEADER,
    RECEIPTS_STREAM,
    RESOURCE_NOTICED,
    RESOURCES_LISTING,
    RESOURCES_STATS,
    RESOURCES_VERSIONS,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.catalog.market_store import MarketStore
from services.runtime.bus import encode
from services.runtime.postgres import create_pool
from tests.integration.catalog_parts import Parties, Upstream, bus_of, catalog_running, catalog_settings, parties_around
from tests.stack import Database
from tests.waiting import until


@dataclass
class Market:
    """The bus users around a catalog, and everything that creators were told."""

    parties: Parties
    upstream: Upstream
    store: MarketStore
    pool: asyncpg.Pool
    notices: list[ResourceNotice] = field(default_factory=list)
    reached: list[BudgetReached] = field(default_factory=list)

    async def feed(self, receipts: Iterable[Receipt]) -> None:
        """Publish receipts as an executor does, and wait until they are in the figures."""
        stream = self.parties.executor.js
        for receipt in receipts:
            # A new message id each time: the stream must not be what filters the duplicates out.
            headers = {MESSAGE_ID_HEADER: uuid4().hex}
            await stream.publish(EXECUTION_FINISHED.subject, encode(receipt), headers=headers)
        await until(self._read)
        await self.settled()

    async def _read(self) -> bool:
        consumer = await self.parties.executor.js.consumer_info(RECEIPTS_STREAM.name, "catalog")
        return (consumer.num_pending, consumer.num_ack_pending) == (0, 0)

    async def sync(self, *entries: dict[str, Any]) -> None:
        self.upstream.entries = list(entries)
        assert (await self.parties.sync()).outcome == "applied"
        await self.settled()

    async def settled(self) -> None:
        """Until everything has been looked at, told, and heard."""
        await until(self._told)
        await self.parties.gateway.nc.flush()
        before = -1
        while before != len(self.notices) + len(self.reached):
            before = len(self.notices) + len(self.reached)
            await asyncio.sleep(0.2)

    async def _told(self) -> bool:
        return not await self.store.unreviewed(1) and not await self.store.unannounced(1)

    def kinds(self) -> list[str]:
        """What was told so far, once each, in order of their ids."""
        return [kind for _, kind in sorted({(notice.id, notice.kind) for notice in self.notices})]

    async def stats(self, resource: Resource, days: int = 30, owner: str = "ann") -> ResourceStats:
        return await self.parties.gateway.call(RESOURCES_STATS, GetStats(owner=owner, id=resource.id, days=days))

    async def versions(self, resource: Resource, **query: Any) -> ResourceVersionPage:
        request = ListVersions.model_validate({"owner": "ann", "id": resource.id, **query})
        return await self.parties.gateway.call(RESOURCES_VERSIONS, request)

    async def as_buyer(self, resource: Resource, asking: str = "bob") -> Listing:
        return await self.parties.gateway.call(RESOURCES_LISTING, ViewListing(asking=asking, id=resource.id))

    async def listing(self, slug: str = "haiku-maker") -> Listing:
        return await self.parties.gateway.call(LISTINGS_GET, ListingRef(owner="ann", slug=slug))

    async def budgets(self, owner: str = "ann") -> Budgets:
        return await self.parties.gateway.call(BUDGETS_GET, OwnerRef(owner=owner))

    async def limit(self, owner: str = "ann", **limits: Any) -> Budgets:
        request = SetBudgets(owner=owner, limits=BudgetLimits.model_validate(limits))
        return await self.parties.gateway.call(BUDGETS_SET, request)


@asynccontextmanager
async def market_around(
    database: Database, nats: Nats, credentials: Credentials, upstream: Upstream, replicas: int = 1
) -> AsyncIterator[Market]:
    async with AsyncExitStack() as cleanup:
        parties = await cleanup.enter_async_context(parties_around(nats, credentials))
        pool = await cleanup.enter_async_context(create_pool(database.superuser, service="test", max_size=2))
        market = Market(parties, upstream, MarketStore(lambda: pool), pool)
        await parties.executor.declare(RECEIPTS_STREAM)

        async def hear_notice(message: ResourceNotice) -> None:
            market.notices.append(message)

        async def hear_budget(message: BudgetReached) -> None:
            market.reached.append(message)

        teller = bus_of("gateway", nats, credentials)
        teller.listen(RESOURCE_NOTICED, hear_notice)
        teller.listen(BUDGET_REACHED, hear_budget)
        await teller.start()
        cleanup.push_async_callback(teller.close)
        for _ in range(replicas):
            running = catalog_running(catalog_settings(database, nats, credentials, upstream))
            await cleanup.enter_async_context(running)
        yield market


def receipt(resource: Resource | UUID | None, **changes: Any) -> Receipt:
    """A run by bob that succeeded and cost 0.002 of a price of 0.01."""
    ended = datetime.now(UTC)
    cost = changes.pop("cost_usd", "0.002")
    price = changes.pop("price_usd", "0.01")
    markup = None if cost is None or price is None else str(Decimal(price) - Decimal(cost))
    values: dict[str, Any] = {
        "execution_id": uuid4(),
        "revision": 1,
        "owner": "ann",
        "caller": {"kind": "user", "id": "bob"},
        "mode": "live",
        "resource_id": resource.id if isinstance(resource, Resource) else resource,
        "resource_version": 1,
        "status": "succeeded",
        "code": None,
        "truncated": False,
        "model": {"requested": "m/a", "served": "m/a", "provider": "P"},
        "usage": {"prompt_tokens": 10, "completion_tokens": 40, "reasoning_tokens": 5, "cached_tokens": 2},
        "cost": {
            "model_usd": cost,
            "markup_usd": markup,
            "price_usd": price,
            "status": "pending" if cost is None else "final",
        },
        "pricing": {"mode": "fixed", "price_usd": "0.01"},
        "attempts": [],
        "timing": {"queued_ms": 1, "first_token_ms": 30, "total_ms": 900},
        "created_at": ended - timedelta(seconds=1),
        "finished_at": ended,
        **changes,
    }
    return Receipt.model_validate(values)
