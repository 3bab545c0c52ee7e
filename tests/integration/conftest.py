"""A fixture of all tests on real servers."""

from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio

from tests.stack import Database


@pytest_asyncio.fixture
async def superuser(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """Who may look at and change everything in the database of this test."""
    connection = await asyncpg.connect(database.superuser)
    try:
        yield connection
    finally:
        await connection.close()
