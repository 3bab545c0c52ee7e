"""What is left to be seen of a key: an access log that tells when it was tampered with, and nothing that opens after a disconnect."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import Access, AccessPage, ListAccess
from contracts.subjects import KEYS_ACCESS_LIST
from deploy.local.postgres import Postgres
from services.keys.audit import read_heads, walk, write_heads
from services.keys.store import Head, Store
from services.runtime.postgres import create_pool
from tests.integration.custody_parts import log
from tests.integration.keys_parts import LIVE_KEY, OTHER_KEY, Parties, Upstream
from tests.stack import ROOT, Database

# The access log -------------------------------------------------------------------------------------------------------


async def accesses(parties: Parties, owner: str, **page: object) -> AccessPage:
    return await parties.gateway.call(KEYS_ACCESS_LIST, ListAccess.model_validate({"owner": owner, **page}))


def said(entry: Access) -> tuple[str, str, str, int | None]:
    return (entry.action, entry.result, entry.instance, entry.version)


async def test_everything_that_is_done_with_a_key_is_in_its_access_log(parties: Parties, upstream: Upstream) -> None:
    upstream.status = 401
    with pytest.raises(ServiceError):
        await parties.connect("alice", LIVE_KEY)
    upstream.status = 200
    await parties.connect("alice", LIVE_KEY)
    await parties.lease("alice")
    upstream.status = 401
    with pytest.raises(ServiceError):
        await parties.connect("alice", OTHER_KEY)
    upstream.status = 200
    await parties.connect("alice", OTHER_KEY)
    await parties.verify("alice")
    await parties.lease("alice", instance="executor-2")
    await parties.disconnect("alice")
    with pytest.raises(ServiceError):
        await parties.lease("alice")
    page = await accesses(parties, "alice")
    assert [said(entry) for entry in reversed(page.items)] == [
        ("connect", "refused", "keys-1", None),
        ("connect", "done", "keys-1", 1),
        ("lease", "granted", "executor-1", 1),
        ("replace", "refused", "keys-1", None),
        ("replace", "done", "keys-1", 2),
        ("verify", "ok", "keys-1", 2),
        ("lease", "granted", "executor-2", 2),
        ("disconnect", "done", "keys-1", 3),
    ]
    assert [entry.seq for entry in page.items] == list(range(8, 0, -1))
    assert (page.total, page.next_cursor) == (8, None)
    assert len({entry.hash for entry in page.items}) == 8
    assert page.items == sorted(page.items, key=lambda entry: entry.at, reverse=True)


async def test_access_log_is_read_in_pages_by_its_owner_alone(parties: Parties, store: Store) -> None:
    await log(store, "alice", 5)
    await log(store, "bob", 1)
    first = await accesses(parties, "alice", limit=2)
    assert ([entry.seq for entry in first.items], first.total) == ([5, 4], 5)
    await log(store, "alice", 1)
    second = await accesses(parties, "alice", limit=2, cursor=first.next_cursor)
    assert [entry.seq for entry in second.items] == [3, 2]
    last = await accesses(parties, "alice", limit=2, cursor=second.next_cursor)
    assert ([entry.seq for entry in last.items], last.total, last.next_cursor) == ([1], 6, None)
    assert await accesses(parties, "nobody") == AccessPage(items=[], total=0, next_cursor=None)


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1e3", "²", str(2**63), "9" * 500])
async def test_access_log_refuses_a_cursor_that_is_none(parties: Parties, cursor: str) -> None:
    with pytest.raises(ServiceError) as refused:
        await accesses(parties, "alice", cursor=cursor)
    assert refused.value.code is ErrorCode.INVALID


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys.access_heads SET seq = 0",
        "DELETE FROM keys.access_heads",
        "INSERT INTO keys.access_heads (owner, seq, hash) VALUES ('alice', 9, '')",
        "SELECT keys.chain_access_log()",
        "SET ROLE x402_keys_chain",
        "SET ROLE x402_keys_census",
    ],
)
async def test_heads_of_the_access_log_are_out_of_reach_of_the_service(database: Database, statement: str) -> None:
    connection = await asyncpg.connect(database.dsn("keys"))
    try:
        await connection.execute("SELECT set_config('app.user_id', 'alice', false)")
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError)):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_audit_finds_every_chain_whole_while_it_is_written(store: Store) -> None:
    for number in range(7):
        await log(store, f"owner-{number}", number + 1)
    writing = asyncio.create_task(log(store, "owner-3", 200))
    audit = await walk(store, {})
    await writing
    again = await walk(store, audit.heads)
    assert (audit.chains, audit.broken, again.broken) == (7, {}, {})
    assert again.entries == 28 + 200
    assert again.heads["owner-6"].seq == 7


async def test_audit_walks_chains_longer_than_a_page(store: Store, superuser: asyncpg.Connection) -> None:
    await superuser.execute("SELECT set_config('app.user_id', 'alice', false)")
    await superuser.execute(
        """INSERT INTO keys.access_log (owner, action, result, instance, version)
           SELECT 'alice', 'lease', 'granted', 'executor-' || n, n FROM generate_series(1, 2345) AS n"""
    )
    audit = await walk(store, {})
    assert (audit.entries, audit.broken, audit.heads["alice"].seq) == (2345, {}, 2345)


@pytest.mark.parametrize(
    ("tampering", "sentence"),
    [
        ("UPDATE keys.access_log SET instance = 'me' WHERE owner = 'alice' AND seq = 3", "entry 3 was changed"),
        (
            "UPDATE keys.access_log SET at = at - interval '1 h' WHERE owner = 'alice' AND seq = 1",
            "entry 1 was changed",
        ),
        ("DELETE FROM keys.access_log WHERE owner = 'alice' AND seq = 2", "entry 2 is missing: entry 3 follows 1"),
        ("DELETE FROM keys.access_log WHERE owner = 'alice' AND seq > 3", "entries 4 to 5 were cut off"),
        ("DELETE FROM keys.access_log WHERE owner = 'alice'", "entries 1 to 5 were cut off"),
        ("DELETE FROM keys.access_heads WHERE owner = 'alice'", "entry 1 came past the head"),
        ("UPDATE keys.access_heads SET hash = 'x' WHERE owner = 'alice'", "entry 5 is another than the head says"),
        (
            """UPDATE keys.access_log AS a SET prev_hash = b.prev_hash, hash = b.hash
               FROM keys.access_log AS b WHERE a.owner = 'alice' AND b.owner = 'bob' AND a.seq = 4 AND b.seq = 4""",
            "entry 4 does not follow the entry 3 that is there",
        ),
    ],
)
async def test_audit_names_the_first_broken_link(
    store: Store, superuser: asyncpg.Connection, tampering: str, sentence: str
) -> None:
    await log(store, "alice", 5)
    await log(store, "bob", 5)
    await superuser.execute(tampering)
    audit = await walk(store, {})
    assert audit.broken == {"alice": sentence}
    assert set(audit.heads) == {"bob"}


@pytest.mark.parametrize(
    ("tampering", "sentence"),
    [
        (
            [
                "DELETE FROM keys.access_log WHERE owner = 'alice' AND seq > 3",
                """UPDATE keys.access_heads AS h SET (seq, hash) = (3, l.hash) FROM keys.access_log AS l
                   WHERE h.owner = 'alice' AND l.owner = 'alice' AND l.seq = 3""",
            ],
            "entries 4 to 5 of the former walk were cut off",
        ),
        (
            [
                "DELETE FROM keys.access_log WHERE owner = 'alice'",
                "DELETE FROM keys.access_heads WHERE owner = 'alice'",
            ],
            "all 5 entries of the former walk are gone",
        ),
        (
            [
                "UPDATE keys.access_log SET instance = 'me' WHERE owner = 'alice' AND seq = 5",
                "UPDATE keys.access_log AS l SET hash = keys.access_log_hash(l) WHERE owner = 'alice' AND seq = 5",
                """UPDATE keys.access_heads AS h SET hash = l.hash FROM keys.access_log AS l
                   WHERE h.owner = 'alice' AND l.owner = 'alice' AND l.seq = 5""",
            ],
            "entry 5 is another than in the former walk",
        ),
    ],
)
async def test_audit_finds_what_a_ruler_of_the_database_wrote_anew_because_ends_are_kept_outside(
    store: Store, superuser: asyncpg.Connection, tmp_path: Path, tampering: list[str], sentence: str
) -> None:
    await log(store, "alice", 5)
    write_heads(tmp_path / "heads.json", (await walk(store, read_heads(tmp_path / "heads.json"))).heads)
    for statement in tampering:
        await superuser.execute(statement)
    assert (await walk(store, {})).broken == {}
    assert (await walk(store, read_heads(tmp_path / "heads.json"))).broken == {"alice": sentence}


def test_heads_are_read_as_they_were_written(tmp_path: Path) -> None:
    heads = {"älice": Head(3, b"\x00\xff"), "bob": Head(1, b"x" * 32)}
    write_heads(tmp_path / "heads.json", heads)
    assert read_heads(tmp_path / "heads.json") == heads


async def test_a_lease_log_of_before_becomes_an_access_log_that_is_whole(postgres: Postgres) -> None:
    migrations = ROOT / "services" / "keys" / "migrations"
    first, second = sorted(migrations.glob("*.sql"))[:2]
    await postgres.create_database("before_access_log")
    connection = await asyncpg.connect(postgres.dsn("before_access_log"))
    try:
        await connection.execute(first.read_text().partition("-- migrate:down")[0])
        await connection.execute(
            """INSERT INTO keys.lease_log (owner, instance, version, result)
               SELECT 'owner-' || n % 3, 'executor-' || n, n, 'granted' FROM generate_series(1, 20) AS n"""
        )
        await connection.execute(second.read_text().partition("-- migrate:down")[0])
        async with create_pool(postgres.dsn("before_access_log"), service="test", max_size=1) as pool:
            audit = await walk(Store(pool), {})
    finally:
        await connection.close()
    assert (audit.chains, audit.entries, audit.broken) == (3, 20, {})


# Disconnect -----------------------------------------------------------------------------------------------------------


async def test_nothing_that_opens_is_left_after_a_disconnect(
    parties: Parties, database: Database, superuser: asyncpg.Connection
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("alice", OTHER_KEY)
    row = await superuser.fetchrow("SELECT * FROM keys.user_openrouter_integrations WHERE owner = 'alice'")
    locked = [row["wrapped_data_key"].hex(), row["encrypted_key"].hex()]
    assert all([piece in await everything_stored(superuser) for piece in locked])
    await parties.disconnect("alice")
    stored = await everything_stored(superuser)
    assert [piece for piece in locked if piece in stored] == []
    assert "alice" in stored, "the log and the version outlive the key"
    status = await parties.status("alice")
    assert (status.connected, status.version, status.hint) == (False, None, None)
    with pytest.raises(ServiceError) as missing:
        await parties.lease("alice")
    assert missing.value.code is ErrorCode.KEY_MISSING


async def everything_stored(superuser: asyncpg.Connection) -> str:
    tables = await superuser.fetch(
        "SELECT format('keys.%I', tablename) AS name FROM pg_tables WHERE schemaname = 'keys'"
    )
    rows = [row for table in tables for row in await superuser.fetch(f"SELECT t::text FROM {table['name']} AS t")]
    return "\n".join(row["t"] for row in rows)
