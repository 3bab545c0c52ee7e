"""Fixtures of the keys service's tests: upstreams that know keys, the store, and the superuser of its database."""

import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.process import Child, inherited_environment
from deploy.local.service import Sandbox
from services.keys.store import Store
from services.runtime.postgres import create_pool
from tests.integration.keys_parts import (
    Parties,
    Upstream,
    keys_running,
    keys_settings,
    parties_around,
    running_upstream,
)
from tests.stack import ROOT, Database


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def sandbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    log = tmp_path_factory.mktemp("sandbox") / "sandbox.log"
    child = Child("sandbox", [sys.executable, "-m", "deploy.sandbox"], env=inherited_environment(), log=log, cwd=ROOT)
    process = Sandbox(child)
    await process.start()
    try:
        yield process.url
    finally:
        await process.stop()


@pytest_asyncio.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    async with create_pool(database.dsn("keys"), service="keys") as pool:
        yield Store(pool)


@pytest_asyncio.fixture
async def parties(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> AsyncIterator[Parties]:
    """Gateway and executor with a keys service that asks `upstream` about live keys."""
    settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url)
    async with keys_running(settings), parties_around(nats_server, credentials) as around:
        yield around
