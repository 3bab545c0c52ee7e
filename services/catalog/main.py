"""The catalog service: which models there are and what they cost, and the resources that people publish on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from contracts.errors import ServiceError
from services.catalog.guard import Guard
from services.catalog.handlers import Handlers
from services.catalog.index import LiveIndex
from services.catalog.market_handlers import MarketHandlers
from services.catalog.market_store import MarketStore
from services.catalog.receipts import Receipts
from services.catalog.runs_store import RunsStore
from services.catalog.schedule import Schedule, utc_now
from services.catalog.serving import Serving
from services.catalog.showing import Showing
from services.catalog.store import Store
from services.catalog.sync import CatalogSync
from services.catalog.upstream import Upstream
from services.runtime.postgres import count_connections
from services.runtime.process import run
from services.runtime.service import Service
from services.runtime.settings import ServiceSettings

log = structlog.get_logger()

_WAIT_FOR_DATABASE_S = 1


class Settings(ServiceSettings):
    """`catalog_upstream_url` includes `/api/v1`. With a key of the operator's, OpenRouter also tells how fast providers are."""

    postgres_url: SecretStr
    catalog_upstream_url: str = "https://openrouter.ai/api/v1"
    catalog_upstream_key: SecretStr = SecretStr("")


def build(settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> Service:
    """Wire the service; nothing is opened before it starts. `clock` tells the schedule the time, and the age of answers."""
    registry = CollectorRegistry()
    service = Service("catalog", settings, registry)
    store = Store(settings.postgres_url)
    upstream = Upstream(settings.catalog_upstream_url, settings.catalog_upstream_key)
    index = LiveIndex(store, registry)
    sync = CatalogSync(store=store, upstream=upstream, index=index, bus=service.bus, registry=registry)
    schedule = Schedule(sync, clock)
    serving = Serving(upstream, clock)
    market, runs = MarketStore(store.pool), RunsStore(store.pool)
    showing = Showing(store=store, market=market, runs=runs, index=index)
    guard = Guard(bus=service.bus, store=store, market=market, showing=showing)
    receipts = Receipts(bus=service.bus, runs=runs, guard=guard, health=service.health)
    Handlers(
        bus=service.bus, store=store, index=index, sync=sync, serving=serving, showing=showing, guard=guard
    ).register()
    MarketHandlers(bus=service.bus, store=store, market=market, runs=runs, showing=showing, guard=guard).register()

    async def open_store() -> None:
        while True:
            try:
                await store.open()
                await index.reload()
                return count_connections(store.pool(), registry)
            except ServiceError as error:
                log.warning("database_awaited", code=error.code.value)
                await asyncio.sleep(_WAIT_FOR_DATABASE_S)

    async def ready_to_answer() -> None:
        if not schedule.worth_waiting_over.is_set():
            raise TimeoutError("the catalog is being read")

    service.before_bus(open_store)
    service.after_bus(guard.declare)
    service.bus.on_reconnect(guard.declare)
    service.background("schedule", schedule.run)
    service.background("guard", guard.run)
    service.background("receipts", receipts.run)
    service.health.add("postgres", store.ping)
    service.health.add("catalog", ready_to_answer)
    service.on_stop(store.close)
    service.on_stop(upstream.close)
    service.on_stop(serving.close)
    return service


def main() -> None:
    run(lambda: build(Settings()))


if __name__ == "__main__":
    main()
