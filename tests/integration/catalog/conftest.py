"""Fixtures of the catalog's tests: an upstream with a few models, the users of the bus, and a catalog between them."""

from collections.abc import AsyncIterator

import pytest_asyncio

from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.runtime.service import Service
from tests.integration.catalog_parts import (
    Parties,
    Upstream,
    catalog_running,
    catalog_settings,
    parties_around,
    running_upstream,
)
from tests.stack import Database


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """It lists m/a, m/b and m/c, until a test changes that."""
    async with running_upstream() as running:
        yield running


@pytest_asyncio.fixture
async def parties(nats_server: Nats, credentials: Credentials) -> AsyncIterator[Parties]:
    async with parties_around(nats_server, credentials) as around:
        yield around


@pytest_asyncio.fixture
async def catalog(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> AsyncIterator[Service]:
    """A catalog that has just read what `upstream` lists."""
    async with catalog_running(catalog_settings(database, nats_server, credentials, upstream)) as service:
        yield service
