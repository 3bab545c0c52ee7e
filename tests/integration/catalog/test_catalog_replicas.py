"""Replicas serve each other's lists: what a sync overwrote is known to all of them, for as long as anybody may page on."""

import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest_asyncio
from pydantic import SecretStr

from contracts.catalog import ModelPage
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from deploy.local.process import Child, inherited_environment
from services.catalog.models import CatalogModel
from services.catalog.store import Store
from tests.integration.catalog_parts import (
    Parties,
    Upstream,
    catalog_running,
    catalog_settings,
    entry,
    parties_around,
    running_upstream,
)
from tests.stack import ROOT, Database
from tests.waiting import until


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as one:
        one.entries = [entry(f"m/{number:02}") for number in range(12)]
        one.ranked = [item["id"] for item in one.entries]
        yield one


@pytest_asyncio.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    one = Store(SecretStr(database.dsn("catalog")))
    await one.open()
    yield one
    await one.close()


def shuffled(rng: random.Random, upstream: Upstream) -> None:
    """Models go, come and return, prices, ends and places change."""
    entries = {item["id"]: item for item in upstream.entries}
    for model_id in rng.sample(sorted(entries), 3):
        prices = {"prompt": f"0.00000{rng.randint(1, 9)}", "completion": "0.000002"}
        entries[model_id] = entry(model_id, pricing=prices, name=f"Name {rng.random()}")
        entries[model_id]["expiration_date"] = rng.choice([None, "2027-01-31"])
    for model_id in rng.sample(sorted(entries), 2):
        del entries[model_id]
    for number in rng.sample(range(20), 3):
        entries.setdefault(f"m/{number:02}", entry(f"m/{number:02}", created=None))
    upstream.entries = list(entries.values())
    upstream.ranked = rng.sample(sorted(entries), len(entries))


async def test_every_former_list_is_known_until_nobody_pages_through_it(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties, store: Store
) -> None:
    rng = random.Random(11)
    lists: dict[int, dict[str, CatalogModel]] = {}

    async def remember() -> int:
        snapshot = await store.snapshot()
        lists[snapshot.sync_id] = {model.id: model for model in snapshot.models}
        return snapshot.sync_id

    async with catalog_running(catalog_settings(database, nats_server, credentials, upstream)):
        await remember()
        for _ in range(6):
            shuffled(rng, upstream)
            assert (await parties.sync()).outcome == "applied"
            await remember()
            assert (await parties.sync()).outcome == "unchanged"
            await remember()
        assert len({frozenset(models) for models in lists.values()}) > 1
        for sync_id, models in lists.items():
            former = await store.former_snapshot(sync_id)
            assert former is not None
            assert (former.sync_id, {model.id: model for model in former.models}) == (sync_id, models)
        assert await store.former_snapshot(0) is None
        assert await store.former_snapshot(max(lists) + 1) is None

        connection = await asyncpg.connect(database.superuser)
        try:
            # The first of them grew old: the next one takes away what they overwrote, and nothing else.
            old = sorted(lists)[:7]
            await connection.execute(
                "UPDATE catalog.syncs SET finished_at = finished_at - interval '2 hours' WHERE id <= $1", old[-1]
            )
            shuffled(rng, upstream)
            await parties.sync()
            kept = [
                row["sync_id"] for row in await connection.fetch("SELECT DISTINCT sync_id FROM catalog.former_models")
            ]
            assert min(kept) > old[-1]
            known = {sync_id for sync_id in lists if await store.former_snapshot(sync_id) is not None}
            # The last of the old syncs changed nothing, and before it one changed something that is not known any more.
            assert known == {sync_id for sync_id in lists if sync_id >= old[-2]}
            # A replica of the version before this one syncs: it keeps nothing, so nothing can be said of lists before it.
            await connection.execute(
                "UPDATE catalog.syncs SET restorable = false WHERE id = (SELECT max(id) FROM catalog.syncs)"
            )
            assert await store.former_snapshot(old[-1]) is None
            latest = await store.snapshot()
            assert await store.former_snapshot(latest.sync_id) == replace(latest)
        finally:
            await connection.close()


async def test_a_process_that_just_started_serves_the_pages_of_a_list_that_another_one_began(
    database: Database,
    own_nats: Nats,
    credentials: Credentials,
    upstream: Upstream,
    tmp_path: Path,
) -> None:
    first, second = (replica(name, database, own_nats, credentials, upstream, tmp_path) for name in ("first", "second"))
    async with parties_around(own_nats, credentials) as around:
        try:
            await started(first)
            whole = [model.id for model in (await around.search(limit=200)).items]
            assert whole == upstream.ranked
            page: ModelPage = await around.search(limit=5)
            seen = [model.id for model in page.items]
            upstream.ranked = whole[::-1]
            upstream.entries = [*upstream.entries[1:], entry("m/new")]
            assert (await around.sync()).outcome == "applied"
            await first[0].stop(signal.SIGTERM, grace_s=10)
            await started(second)
            assert (await around.search(limit=1)).items[0].id != whole[0]
            while page.next_cursor is not None:
                page = await around.search(limit=5, cursor=page.next_cursor)
                seen += [model.id for model in page.items]
                assert page.total == len(whole)
            assert seen == whole
        finally:
            await first[0].kill()
            await second[0].kill()


Replica = tuple[Child, int]


def replica(
    name: str, database: Database, nats: Nats, credentials: Credentials, upstream: Upstream, folder: Path
) -> Replica:
    port = free_port()
    settings: dict[str, Any] = {
        "NATS_URL": nats.url,
        "NATS_PASSWORD": credentials.nats_password("catalog"),
        "POSTGRES_URL": database.dsn("catalog"),
        "CATALOG_UPSTREAM_URL": upstream.url,
        "METRICS_PORT": str(port),
    }
    command = [sys.executable, "-m", "services.catalog.main"]
    child = Child(name, command, env={**inherited_environment(), **settings}, log=folder / f"{name}.log", cwd=ROOT)
    return child, port


async def started(one: Replica) -> None:
    child, port = one
    child.start()
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as http:

        async def ready() -> bool:
            child.check()
            try:
                return (await http.get("/readyz")).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        await until(ready)
