"""The keys service as the process that is deployed: it refuses to start without its master keys, starts again with a longer
ring, ends cleanly, and a marked key that goes through all of its ways is found nowhere."""

import asyncio
import base64
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest
from nats.aio.msg import Msg

from contracts.base import Empty
from contracts.errors import ErrorCode, ServiceError
from contracts.keys import ConnectKey
from contracts.subjects import KEYS_CONNECT, KEYS_LEASE, KEYS_RECIPIENT
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from deploy.local.process import Child, inherited_environment
from deploy.local.service import Service
from services.runtime.sealing import connect_context, seal
from tests.integration.keys_parts import (
    LIVE_KEY,
    Parties,
    keys_running,
    keys_settings,
    parties_around,
    running_upstream,
)
from tests.stack import ROOT, Database
from tests.waiting import until

CANARY = "sk-or-v1-CANARY5a7e0c9b1d3f2468ace0bdf13579CANARY"


def master_key(key_id: str) -> str:
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(32)).decode()}"


def measured() -> dict[str, str]:
    """What a child process needs in its environment to be counted by `make coverage-keys`; nothing in other runs."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def keys_process(
    database: Database, nats: Nats, credentials: Credentials, log: Path, **environment: str | None
) -> Service:
    """The service as a child process; a variable given as None is left out."""
    port = free_port()
    values: dict[str, str | None] = {
        "NATS_URL": nats.url,
        "NATS_PASSWORD": credentials.nats_password("keys"),
        "POSTGRES_URL": database.dsn("keys"),
        "MASTER_KEYS": credentials.master_keys,
        "EXECUTOR_IDENTITIES": credentials.executor_identities,
        "METRICS_PORT": str(port),
        "LOG_LEVEL": "DEBUG",
        **environment,
    }
    child = Child(
        "keys",
        [sys.executable, "-m", "services.keys.main"],
        env={
            **inherited_environment(),
            **measured(),
            **{name: value for name, value in values.items() if value is not None},
        },
        log=log,
        cwd=ROOT,
    )
    return Service(child, url=f"http://{HOST}:{port}", metrics_url=f"http://{HOST}:{port}/metrics")


@asynccontextmanager
async def started(process: Service) -> AsyncIterator[Service]:
    try:
        await process.start()
        yield process
    finally:
        await process.kill()


async def refusal(process: Service) -> str:
    """What a process that must not start wrote before it ended."""
    process.child.start()
    try:
        await until(lambda: not process.child.running)
    finally:
        await process.kill()
    assert process.child.exit_code not in {0, None}
    return process.child.log.read_text()


# Start and stop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ring", "sentence"),
    [
        (None, "set MASTER_KEYS or MASTER_KEYS_FILE"),
        ("", "the keyring is empty"),
        ("k1:c2hvcnQ=", "entry 1 of the keyring"),
        ("c2VjcmV0LXdpdGhvdXQtaWQ", "entry 1 of the keyring"),
    ],
)
async def test_start_is_refused_when_there_is_no_master_key(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path, ring: str | None, sentence: str
) -> None:
    process = keys_process(database, nats_server, credentials, tmp_path / "keys.log", MASTER_KEYS=ring)
    said = await refusal(process)
    assert sentence in said
    assert "Traceback" not in said
    assert "c2hvcnQ" not in said
    assert "c2VjcmV0" not in said


async def test_start_is_refused_when_stored_keys_need_another_master_key(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path
) -> None:
    old, new = master_key("k2025"), master_key("k2026")

    def process(ring: str) -> Service:
        return keys_process(database, nats_server, credentials, tmp_path / "keys.log", MASTER_KEYS=ring)

    async with running_upstream() as upstream:
        settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url, master_keys=old)
        async with keys_running(settings), parties_around(nats_server, credentials) as parties:
            await parties.connect("alice", LIVE_KEY)
    said = await refusal(process(new))
    assert "'k2025', which is not in the ring" in said
    assert "Traceback" not in said
    said = await refusal(process(f"{new},{master_key('k2025')}"))
    assert "'k2025' does not open" in said
    assert "Traceback" not in said
    async with started(process(f"{new},{old}")), parties_around(nats_server, credentials) as parties:
        assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY


async def test_process_ends_cleanly_when_told_to(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path
) -> None:
    async with started(keys_process(database, nats_server, credentials, tmp_path / "keys.log")) as process:
        await process.stop()
        assert process.child.exit_code == 0
        assert "Traceback" not in process.child.log.read_text()


# The canary -----------------------------------------------------------------------------------------------------------


async def everything_stored(database: Database) -> str:
    """Every row of every table of ours, as text; bytes are in hexadecimal."""
    connection = await asyncpg.connect(database.superuser)
    try:
        tables = await connection.fetch(
            """SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
               WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"""
        )
        rows = [row for table in tables for row in await connection.fetch(f"SELECT t::text FROM {table['name']} AS t")]
    finally:
        await connection.close()
    return "\n".join(row["t"] for row in rows)


async def test_the_canary_is_found_nowhere(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    errors: list[ServiceError] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject.encode() + b" " + repr(message.headers).encode() + b" " + message.data)

    async with running_upstream() as upstream, parties_around(nats_server, credentials) as parties:
        await parties.observer.nc.subscribe(">", cb=hear)
        await parties.observer.nc.flush()
        process = keys_process(database, nats_server, credentials, tmp_path / "keys.log", OPENROUTER_URL=upstream.url)
        async with started(process), httpx.AsyncClient() as http:
            await parties.connect("alice", CANARY)
            assert parties.opened(await parties.lease("alice"), "alice") == CANARY
            for status, raw in ((401, None), (401, None), (500, CANARY.encode()), (200, CANARY.encode()), (402, None)):
                upstream.status, upstream.raw = status, raw
                for asking in (parties.verify("alice"), parties.connect("alice", CANARY), parties.lease("alice")):
                    try:
                        await asking
                    except ServiceError as error:
                        errors.append(error)
            errors += await refused_handovers(parties)
            stored = await everything_stored(database)
            metrics = (await http.get(process.metrics_url)).text
            await parties.disconnect("alice")
            await parties.observer.nc.flush()
            await process.stop()
        log = process.child.log.read_text()

    assert upstream.authorizations.count(f"Bearer {CANARY}") > 5
    assert {error.code for error in errors} >= {
        ErrorCode.KEY_REJECTED, ErrorCode.UNAVAILABLE, ErrorCode.UPSTREAM, ErrorCode.INVALID,
        ErrorCode.CREDITS_EXHAUSTED,
    }  # fmt: skip
    assert any(b"keys.changed" in message for message in heard)
    assert any(b"keys.lease" in message for message in heard)
    places = {
        "log": log,
        "metrics": metrics,
        "database": stored,
        "bus": b"\n".join(heard).decode(errors="replace"),
        "errors": "\n".join(error.body.model_dump_json() for error in errors),
    }
    for form in forms_of(CANARY):
        assert [place for place, text in places.items() if form.lower() in text.lower()] == []


def forms_of(key: str) -> list[str]:
    """The key itself, a long part of it, and the encodings in which it could lie somewhere."""
    plain = key.encode()
    return [
        key,
        key[10:30],
        plain.hex(),
        base64.b64encode(plain).decode()[:40],
        base64.b64encode(key[9:].encode()).decode()[:20],
    ]


async def refused_handovers(parties: Parties) -> list[ServiceError]:
    """The key where it does not belong: sealed for somebody else, broken, to an unknown recipient, in the wrong fields."""
    recipient = await parties.gateway.call(KEYS_RECIPIENT, Empty())
    sealed = seal(CANARY.encode(), recipient.public_key, connect_context("alice"))
    broken = seal(f"{CANARY}\r\nX: y".encode(), recipient.public_key, connect_context("alice"))
    requests = [
        parties.gateway.call(KEYS_CONNECT, ConnectKey(owner="bob", recipient_key_id=recipient.key_id, sealed=sealed)),
        parties.gateway.call(KEYS_CONNECT, ConnectKey(owner="alice", recipient_key_id="x", sealed=sealed)),
        parties.gateway.call(KEYS_CONNECT, ConnectKey(owner="alice", recipient_key_id=recipient.key_id, sealed=broken)),
        parties.executor.call(KEYS_LEASE, parties.identity.lease_request("alice", "x", "AAAA", datetime.now(UTC))),
    ]
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(result, ServiceError) for result in results)
    return [result for result in results if isinstance(result, ServiceError)]
