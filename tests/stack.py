"""What tests share beside fixtures: where the recorded data is, and databases cloned from the migrated template."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
from aiohttp import web

from deploy.local.ports import HOST
from deploy.local.postgres import Postgres

ROOT = Path(__file__).resolve().parents[1]
AS_FAST_AS_CAN_BE = {"REQUESTS_PER_MINUTE_PER_CALLER": "0", "REQUESTS_PER_MINUTE_PER_KEY": "0"}
"""Settings of executors whose callers are tests: they ask faster than people do."""


def shared_data() -> Path:
    """The folder with the real catalog and the recorded answers: `shared/data` beside the repository, or `SHARED_DATA`."""
    path = Path(os.environ.get("SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (path / "openrouter-models.json").exists():
        raise RuntimeError(f"the recorded data is not in {path}: set SHARED_DATA to its folder")
    return path


@dataclass(frozen=True)
class Database:
    """A database of one test. `superuser` is its URL with all rights; `dsn("keys")` is what the service itself gets."""

    name: str
    server: Postgres
    role_passwords: dict[str, str]

    @property
    def superuser(self) -> str:
        """URL for the superuser."""
        return self.server.dsn(self.name)

    def dsn(self, service: str) -> str:
        """URL for the role of this service."""
        role = f"x402_{service}"
        return self.server.dsn(self.name, role=role, password=self.role_passwords[role])


@asynccontextmanager
async def clone_of(template: Database) -> AsyncIterator[Database]:
    """A copy of the template that lives as long as the block; connections left open in it are cut."""
    clone = Database(f"test_{uuid4().hex[:12]}", template.server, template.role_passwords)
    admin = await asyncpg.connect(template.server.dsn("postgres"))
    try:
        await admin.execute(f'CREATE DATABASE "{clone.name}" TEMPLATE "{template.name}"')
        try:
            yield clone
        finally:
            await admin.execute(f'DROP DATABASE "{clone.name}" WITH (FORCE)')
    finally:
        await admin.close()


@asynccontextmanager
async def serving(app: web.Application, port: int) -> AsyncIterator[None]:
    """The application, on this port of the loopback interface; requests that are under way at the end have a second."""
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield
    finally:
        await runner.cleanup()
