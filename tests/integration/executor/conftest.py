"""Fixtures of the executor's tests: a database of their own per file, and the house around an executor on it."""

from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio

from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.runtime.postgres import create_pool
from services.runtime.service import Service
from tests.integration.executor_parts import House, executor_in, house_without_executor
from tests.stack import Database, clone_of


@pytest_asyncio.fixture(scope="module")
async def own_database(template_database: Database) -> AsyncIterator[Database]:
    """A copy of the migrated database for this file alone."""
    async with clone_of(template_database) as database:
        yield database


@pytest_asyncio.fixture(scope="module")
async def pool(own_database: Database) -> AsyncIterator[asyncpg.Pool]:
    """The database as the executor's role."""
    async with create_pool(own_database.dsn("executor"), service="executor", max_size=10) as pool:
        yield pool


@pytest_asyncio.fixture(scope="module")
async def superuser(own_database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(own_database.superuser)
    yield connection
    await connection.close()


@pytest_asyncio.fixture(scope="module")
async def whole_house(own_database: Database, nats_server: Nats, credentials: Credentials) -> AsyncIterator[House]:
    """Everything around an executor; files build their own `house` on it."""
    async with house_without_executor(own_database, nats_server, credentials) as house:
        yield house


@pytest_asyncio.fixture
async def house(whole_house: House) -> House:
    """Everything but an executor, with no runs yet: each test starts one of its own."""
    await whole_house.clean()
    return whole_house


@pytest_asyncio.fixture(scope="module")
async def single_executor(whole_house: House) -> AsyncIterator[Service]:
    """One executor that runs one thing at a time per key."""
    async with executor_in(whole_house, running_per_key=1) as service:
        yield service
