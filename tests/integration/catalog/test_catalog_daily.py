"""The daily reading: once a day whatever restarts, dies or runs twice; and a sync that was cut short, made good."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from contracts.catalog import CatalogSynced, ListSyncs, SyncReport
from contracts.subjects import CATALOG_SYNCED, CATALOG_SYNCS
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.process import Child, inherited_environment
from services.catalog.main import build
from services.runtime.process import running
from tests.integration.catalog_parts import (
    Parties,
    Upstream,
    catalog_running,
    catalog_settings,
    entry,
    is_ready,
    running_upstream,
)
from tests.stack import ROOT, Database
from tests.waiting import until


async def syncs(parties: Parties) -> list[SyncReport]:
    return (await parties.gateway.call(CATALOG_SYNCS, ListSyncs())).items


async def test_a_restart_on_the_same_day_reads_nothing(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    settings = catalog_settings(database, nats_server, credentials, upstream)
    for _ in range(3):
        async with catalog_running(settings):
            assert await parties.ids() == ["m/a", "m/b", "m/c"]
            assert [report.requested_by for report in await syncs(parties)] == ["start"]
    assert upstream.asked.count("list") == 1


async def test_a_missed_day_is_made_up_for_at_the_start(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    upstream: Upstream,
    parties: Parties,
    superuser: asyncpg.Connection,
) -> None:
    settings = catalog_settings(database, nats_server, credentials, upstream)
    async with catalog_running(settings):
        pass
    await superuser.execute(
        """UPDATE catalog.syncs SET due = due - interval '1 day', started_at = started_at - interval '1 day'"""
    )
    upstream.entries = [*upstream.entries, entry("m/new")]
    async with catalog_running(settings):
        assert [report.added for report in await syncs(parties)] == [["m/new"], ["m/a", "m/b", "m/c"]]


async def test_another_upstream_counts_as_not_read(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    async with catalog_running(catalog_settings(database, nats_server, credentials, upstream)):
        pass
    async with running_upstream() as other:
        other.entries = [entry("m/a"), entry("m/b"), entry("m/elsewhere")]
        async with catalog_running(catalog_settings(database, nats_server, credentials, other)):
            assert await parties.ids() == ["m/a", "m/b", "m/elsewhere"]


def clock_before_three(left_s: float) -> Callable[[], datetime]:
    """A clock that runs, and that says 03:00 UTC of tomorrow in so many seconds."""
    now = datetime.now(UTC)
    three = datetime.combine(now.date() + timedelta(days=1), time(3), UTC)
    offset = three - timedelta(seconds=left_s) - now
    return lambda: datetime.now(UTC) + offset


async def test_two_replicas_make_one_daily_reading_and_a_restart_makes_none(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    upstream: Upstream,
    parties: Parties,
    superuser: asyncpg.Connection,
) -> None:
    settings = catalog_settings(database, nats_server, credentials, upstream)
    clock = clock_before_three(6)

    async def both_have_passed_three() -> bool:
        return clock().time() >= time(3) and clock().hour == 3

    for _ in range(2):
        # Two replicas whose clocks disagree by a little.
        async with (
            running(build(settings, clock=clock)) as one,
            running(build(settings, clock=lambda: clock() + timedelta(milliseconds=300))) as two,
        ):
            for service in (one, two):
                await until(lambda service=service: is_ready(service))  # type: ignore[misc]
            await until(both_have_passed_three)
            await until(lambda: _made(superuser, "schedule"))
            await asyncio.sleep(0.3)  # long enough for a second one, were there one
        rows = await superuser.fetch("SELECT requested_by, outcome FROM catalog.syncs ORDER BY id")
        assert [row["requested_by"] for row in rows] == ["start", "schedule"]


async def _made(superuser: asyncpg.Connection, requested_by: str) -> bool:
    count: int = await superuser.fetchval("SELECT count(*) FROM catalog.syncs WHERE requested_by = $1", requested_by)
    return count > 0


async def test_a_failed_daily_reading_is_tried_again(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    upstream.status = 404
    async with catalog_running(catalog_settings(database, nats_server, credentials, upstream)):
        upstream.status = 200
        await until(lambda: _knows(parties, 3))
        assert [report.outcome for report in await syncs(parties)] == ["applied", "failed"]


async def _knows(parties: Parties, models: int) -> bool:
    return (await parties.search()).total == models


# Killed in the middle -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def process(
    database: Database, nats: Nats, credentials: Credentials, upstream: Upstream, log: Path
) -> AsyncIterator[Child]:
    child = Child(
        "catalog",
        [sys.executable, "-m", "services.catalog.main"],
        env={
            **inherited_environment(),
            "NATS_URL": nats.url,
            "NATS_PASSWORD": credentials.nats_password("catalog"),
            "POSTGRES_URL": database.dsn("catalog"),
            "CATALOG_UPSTREAM_URL": upstream.url,
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
        },
        log=log,
        cwd=ROOT,
    )
    child.start()
    try:
        yield child
    finally:
        await child.kill()


async def _is(superuser: asyncpg.Connection, value: Any, query: str) -> bool:
    return bool(await superuser.fetchval(query) == value)


MODELS = "SELECT count(*) FROM catalog.ai_models WHERE status <> 'retired'"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'catalog.ai_model_prices'::regclass"
TRACES = """SELECT (SELECT count(*) FROM catalog.syncs) + (SELECT count(*) FROM catalog.sync_changes)
                 + (SELECT count(*) FROM catalog.ai_model_prices) + (SELECT count(*) FROM catalog.ai_models)"""


async def test_a_sync_that_is_killed_in_the_middle_leaves_nothing_and_is_repeated(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    upstream: Upstream,
    parties: Parties,
    superuser: asyncpg.Connection,
    tmp_path: Path,
) -> None:
    async with process(database, nats_server, credentials, upstream, tmp_path / "one.log") as one:
        await until(lambda: _is(superuser, 3, MODELS))
        traces = await superuser.fetchval(TRACES)
        upstream.entries = [entry("m/a"), entry("m/b", name="New name"), *(entry(f"n/{n}") for n in range(50))]
        # Models and the sync are written by now, their prices are not.
        async with superuser.transaction():
            await superuser.execute("LOCK TABLE catalog.ai_model_prices IN EXCLUSIVE MODE")
            asking = asyncio.create_task(parties.sync())
            await until(lambda: _is(superuser, 1, WAITING))
            await one.kill()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert await superuser.fetchval(TRACES) == traces, "half of a sync is none"
    async with process(database, nats_server, credentials, upstream, tmp_path / "two.log"):
        await until(lambda: _is(superuser, 52, MODELS))
        report, first = await syncs(parties)
    assert (report.requested_by, report.outcome, len(report.added), report.retired) == ("start", "applied", 50, ["m/c"])
    assert len(first.added) == 3


async def test_a_sync_that_is_killed_before_it_was_told_is_told_at_the_next_start(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    upstream: Upstream,
    parties: Parties,
    superuser: asyncpg.Connection,
) -> None:
    settings = catalog_settings(database, nats_server, credentials, upstream)
    async with catalog_running(settings):
        resource = await parties.publish(await parties.create(model_id="m/c"))
        upstream.entries = [entry("m/a", pricing={"prompt": "0.5", "completion": "0.5"}), entry("m/b")]
        report = await parties.sync()
    assert await superuser.fetchval("SELECT count(*) FROM catalog.syncs WHERE announced_at IS NULL") == 0
    await parties.heard()
    parties.models.clear()
    parties.resources.clear()
    # As it is when the process died after the commit.
    await superuser.execute("UPDATE catalog.syncs SET announced_at = NULL WHERE id = $1", report.id)
    async with catalog_running(settings):
        await until(lambda: _heard(parties, 2))
        assert {(event.model_id, event.change) for event in parties.models} == {("m/c", "retired"), ("m/a", "repriced")}
        assert (resource.slug, "availability") in await parties.heard()
        assert len(await syncs(parties)) == 2, "nothing was read again"
    assert await superuser.fetchval("SELECT count(*) FROM catalog.syncs WHERE announced_at IS NULL") == 0


async def _heard(parties: Parties, at_least: int) -> bool:
    return len(parties.models) >= at_least


async def test_the_age_is_known_to_a_replica_that_did_not_read(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    upstream: Upstream,
    parties: Parties,
    superuser: asyncpg.Connection,
) -> None:
    settings = catalog_settings(database, nats_server, credentials, upstream)
    async with catalog_running(settings):
        pass
    await superuser.execute("UPDATE catalog.syncs SET finished_at = finished_at - interval '1 hour'")
    async with catalog_running(settings) as idle:
        age_s = idle.registry.get_sample_value("x402jobs_catalog_age_seconds")
        assert age_s is not None
        assert 3600 <= age_s < 3700
        # Somebody else's sync, of which it only hears.
        await superuser.execute(
            """INSERT INTO catalog.syncs (outcome, requested_by, source, models, skipped, added, retired, returned, repriced,
                                          started_at) VALUES ('applied', 'x', 'y', 3, 0, '{}', '{}', '{}', '{}', now())"""
        )
        await parties.gateway.nc.flush()
        await idle.bus.publish(CATALOG_SYNCED, CatalogSynced(sync_id=2, models=3))
        await until(lambda: _is_young(idle))


async def _is_young(service: Any) -> bool:
    age_s: float = service.registry.get_sample_value("x402jobs_catalog_age_seconds")
    return age_s < 60
