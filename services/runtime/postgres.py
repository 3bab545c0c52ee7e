"""The one way a service reaches Postgres: a pool with our codecs, a deadline on every command, and a name to be seen by.

A foreign error becomes ours at the edge: `unavailable_when_down` turns a lost or refused connection into `unavailable`,
so that a database that is restarting looks the same to every caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
import stamina
from prometheus_client import CollectorRegistry, Gauge

from contracts.errors import ErrorCode, ServiceError

_DOWN = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection whose server died in the middle of an operation
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    OSError,
    TimeoutError,
)


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that needs no cleaning between two uses, which would be one more round trip per use.

    Nothing of ours outlives a transaction: settings and locks are local to it, nobody listens or keeps cursors. Who takes a
    lock of the session all the same must give it back before the connection, and end the connection when anything fails.
    """

    def get_reset_query(self) -> str:
        return ""


async def _set_codecs(connection: asyncpg.Connection) -> None:
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=lambda value: orjson.dumps(value).decode(), decoder=orjson.loads
        )


def create_pool(url: str, *, service: str, max_size: int = 10, command_timeout_s: float = 10) -> asyncpg.Pool:
    """A pool whose connections speak JSON as dicts, numeric as Decimal and uuid as UUID; it connects when awaited."""
    return asyncpg.create_pool(
        url,
        init=_set_codecs,
        connection_class=_Connection,
        # Filled as it is needed: a pool whose first connection fails cannot be opened a second time.
        min_size=0,
        max_size=max_size,
        command_timeout=command_timeout_s,
        server_settings={"application_name": f"x402jobs-{service}", "timezone": "UTC"},
    )


def count_connections(pool: asyncpg.Pool, registry: CollectorRegistry) -> None:
    """Export how much of the pool is in use; once per process."""
    # state: busy, idle
    connections = Gauge("x402jobs_postgres_connections", "Connections of this process.", ["state"], registry=registry)
    connections.labels("busy").set_function(lambda: pool.get_size() - pool.get_idle_size())
    connections.labels("idle").set_function(pool.get_idle_size)
    most = Gauge("x402jobs_postgres_connections_max", "Connections that this process may open.", registry=registry)
    most.set(pool.get_max_size())


@asynccontextmanager
async def unavailable_when_down() -> AsyncIterator[None]:
    """Turn a database that cannot be reached into ServiceError UNAVAILABLE."""
    try:
        yield
    except _DOWN as error:
        raise ServiceError(
            ErrorCode.UNAVAILABLE, "The database cannot be reached at the moment; try again shortly.", retry_after_s=1
        ) from error


async def ping(pool: asyncpg.Pool) -> Any:
    """For readiness: one round trip."""
    async with pool.acquire(timeout=2) as connection:
        return await connection.fetchval("SELECT 1", timeout=2)


async def connect(pool: asyncpg.Pool) -> None:
    """Open the pool, waiting for a database that is not up yet: services start in any order."""
    await pool
    async for attempt in stamina.retry_context(on=_DOWN, attempts=None, timeout=None, wait_max=2.0):
        with attempt:
            await ping(pool)
