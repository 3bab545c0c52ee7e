"""Custody over time, on a real database and bus: an access log that tells when it was tampered with, a ring that changes while the
service runs, a rotation that stops for nobody, and nothing left of a key that was disconnected."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from pydantic import SecretStr
from structlog.testing import capture_logs

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import Access, AccessPage, ListAccess
from contracts.subjects import KEYS_ACCESS_LIST
from deploy.local.credentials import Credentials, write_private
from deploy.local.nats import Nats
from deploy.local.postgres import Postgres
from services.keys import ring as ring_module
from services.keys import rotate as rotation_module
from services.keys.audit import read_heads, walk, write_heads
from services.keys.envelope import lock, unlock
from services.keys.facts import KeyFacts
from services.keys.recipient import Recipients, unlock_pair
from services.keys.ring import RingError
from services.keys.rotate import rotate
from services.keys.store import Head, Store
from services.runtime.postgres import create_pool
from services.runtime.sealing import Keyring
from tests.integration.keys_parts import (
    LIVE_KEY,
    OTHER_KEY,
    Parties,
    Upstream,
    keys_running,
    keys_settings,
    parties_around,
    running_upstream,
)
from tests.stack import ROOT, Database


def master_key(key_id: str) -> str:
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(32)).decode()}"


OLD, NEW = master_key("k1"), master_key("k2")
OLD_RING, BOTH, NEW_RING = (Keyring.parse(text) for text in (OLD, f"{NEW},{OLD}", NEW))


@pytest_asyncio.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    async with create_pool(database.dsn("keys"), service="keys") as pool:
        yield Store(pool)


@pytest_asyncio.fixture
async def superuser(database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.superuser)
    try:
        yield connection
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as running:
        yield running


async def keep(store: Store, owner: str, keyring: Keyring = OLD_RING) -> None:
    key = SecretStr(f"sk-or-v1-of-{owner}")
    async with store.rows_of(owner) as rows:
        version = await rows.next_version()
        await rows.put(lock(key, owner, version, keyring), "live", "sk-or-v1-…", KeyFacts())


async def log(store: Store, owner: str, entries: int) -> None:
    for number in range(entries):
        async with store.rows_of(owner) as rows:
            await rows.log_access("lease", "granted", instance=f"executor-{number}", version=1)


async def opened_key(store: Store, owner: str, keyring: Keyring) -> str:
    async with store.rows_of(owner) as rows:
        stored = await rows.key()
    assert stored is not None
    return unlock(stored.envelope, owner, keyring).get_secret_value()


# The access log -------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def parties(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> AsyncIterator[Parties]:
    settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url)
    async with keys_running(settings), parties_around(nats_server, credentials) as around:
        yield around


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


# A ring that changes --------------------------------------------------------------------------------------------------


async def master_key_of(superuser: asyncpg.Connection, owner: str) -> str:
    found: str = await superuser.fetchval(
        "SELECT master_key_id FROM keys.user_openrouter_integrations WHERE owner = $1", owner
    )
    return found


async def instances_hold(superuser: asyncpg.Connection, ids: list[str]) -> None:
    """Returns once the one instance says that it holds these master keys, the first active."""
    async with asyncio.timeout(10):
        while await superuser.fetchval("SELECT master_key_ids FROM keys.instances") != ids:  # noqa: ASYNC110 - a table says nothing by itself
            await asyncio.sleep(0.05)


async def test_a_running_service_follows_its_ring(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    upstream: Upstream,
    superuser: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ring_module, "FOLLOW_S", 0.1)
    ring = tmp_path / "master-keys"
    write_private(ring, OLD)
    settings = keys_settings(
        database, nats_server, credentials, openrouter_url=upstream.url, master_keys=None, master_keys_file=ring
    )
    with capture_logs() as logs:
        async with keys_running(settings), parties_around(nats_server, credentials) as parties:
            await parties.connect("alice", LIVE_KEY)
            write_private(ring, f"{NEW},{OLD}")
            await instances_hold(superuser, ["k2", "k1"])
            await parties.connect("bob", OTHER_KEY)
            assert [await master_key_of(superuser, owner) for owner in ("alice", "bob")] == ["k1", "k2"]
            assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY

            for unusable in (NEW, f"{NEW},{master_key('k1')}", "nonsense", "k1:ü"):
                logs.clear()
                write_private(ring, unusable)
                async with asyncio.timeout(10):
                    while not any(entry["event"] == "master_keys_refused" for entry in logs):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY
                refusal = next(entry for entry in logs if entry["event"] == "master_keys_refused")
                assert refusal["held"] == ["k2", "k1"]
                assert OLD.partition(":")[2] not in str(refusal)

            ring.unlink()
            write_private(ring, NEW)
            # Refused while alice's key needs the other one, and taken as soon as nothing does.
            await parties.disconnect("alice")
            await instances_hold(superuser, ["k2"])
            assert parties.opened(await parties.lease("bob"), "bob") == OTHER_KEY
        assert await superuser.fetchval("SELECT count(*) FROM keys.instances") == 0


async def test_a_service_says_how_much_a_rotation_has_still_to_do(
    database: Database, nats_server: Nats, credentials: Credentials, store: Store
) -> None:
    for owner in ("alice", "bob", "carol"):
        await keep(store, owner)
    await Recipients(store, OLD_RING).current()
    settings = keys_settings(database, nats_server, credentials, master_keys=SecretStr(f"{NEW},{OLD}"))
    async with keys_running(settings) as service:
        async with asyncio.timeout(10):
            while service.registry.get_sample_value("x402jobs_keys_under_old_master_key", {"kind": "data_key"}) != 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert service.registry.get_sample_value("x402jobs_keys_under_old_master_key", {"kind": "key_pair"}) == 1


# Rotation -------------------------------------------------------------------------------------------------------------


async def test_rotation_puts_data_keys_and_key_pairs_under_the_active_master_key(store: Store) -> None:
    for owner in ("alice", "bob"):
        await keep(store, owner)
    await keep(store, "carol", BOTH)
    pair = await Recipients(store, OLD_RING).current()
    said: list[str] = []
    rotation = await rotate(store, BOTH, said.append)
    assert (rotation.total, rotation.done, rotation.failed) == (3, 3, {})
    assert said[-1].startswith("3 of 3 keys under the new master key (100 %")
    for owner in ("alice", "bob", "carol"):
        assert await opened_key(store, owner, NEW_RING) == f"sk-or-v1-of-{owner}"
    stored = await store.recipient_named(pair.key_id)
    assert stored is not None
    assert unlock_pair(stored, NEW_RING).private_bytes == pair.private_bytes
    assert (await Recipients(store, Keyring.parse(f"{OLD},{NEW}")).current()).key_id == pair.key_id
    assert {uses.master_key_id for uses in await store.master_key_uses()} == {"k2"}
    assert (await rotate(store, BOTH, said.append)).total == 0


async def test_two_rotations_at_once_share_the_work(store: Store) -> None:
    owners = [f"owner-{number:03d}" for number in range(60)]
    for owner in owners:
        await keep(store, owner)
    rotations = await asyncio.gather(*(rotate(store, BOTH, lambda _: None) for _ in range(2)))
    assert sum(rotation.done for rotation in rotations) == 60
    for owner in owners:
        assert await opened_key(store, owner, NEW_RING) == f"sk-or-v1-of-{owner}"


async def test_rotation_leaves_a_key_alone_that_was_replaced_meanwhile(store: Store) -> None:
    await keep(store, "alice")
    async with store.rows_of("alice") as rows:
        before = await rows.key()
    assert before is not None
    await keep(store, "alice")
    async with store.rows_of("alice") as rows:
        assert not await rows.rewrap(
            before.envelope, replace(before.envelope, master_key_id="k2", wrapped_data_key=b"")
        )
    assert await opened_key(store, "alice", OLD_RING) == "sk-or-v1-of-alice"


async def test_rotation_names_a_key_that_does_not_open_and_does_the_others(
    store: Store, superuser: asyncpg.Connection
) -> None:
    for owner in ("alice", "bob", "carol"):
        await keep(store, owner)
    await superuser.execute(
        "UPDATE keys.user_openrouter_integrations SET wrapped_data_key = '\\x00' || wrapped_data_key WHERE owner = 'bob'"
    )
    rotation = await rotate(store, BOTH, lambda _: None)
    assert rotation.done == 2
    assert list(rotation.failed) == ["bob"]
    assert [await opened_key(store, owner, NEW_RING) for owner in ("alice", "carol")] == [
        "sk-or-v1-of-alice",
        "sk-or-v1-of-carol",
    ]


async def test_rotation_is_refused_when_the_ring_lacks_a_key_in_use(store: Store) -> None:
    await keep(store, "alice")
    with pytest.raises(RingError, match="need master key 'k1', which is not in the ring"):
        await rotate(store, NEW_RING, lambda _: None)


@pytest.mark.parametrize("held", [["k1"], ["k1", "k2"]])
async def test_rotation_changes_nothing_while_an_instance_has_another_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch, held: list[str]
) -> None:
    monkeypatch.setattr(rotation_module, "_WAIT_S", 0.3)
    await keep(store, "alice")
    await store.announce("keys-1", ["k2", "k1"])
    await store.announce("keys-2", held)
    said: list[str] = []
    with pytest.raises(RingError, match="keys-2 still does not have 'k2' first in their ring: nothing was changed"):
        await rotate(store, BOTH, said.append)
    assert said == ["waiting for keys-2 to have 'k2' first in their ring"]
    assert await opened_key(store, "alice", OLD_RING) == "sk-or-v1-of-alice"
    await store.withdraw("keys-2")
    assert (await rotate(store, BOTH, said.append)).done == 1


async def test_rotation_stops_when_an_instance_starts_with_another_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation_module, "_OWNERS_PER_PAGE", 2)
    for number in range(6):
        await keep(store, f"owner-{number}")
    seen = 0
    look = store.announced

    async def starts_later(within_s: float) -> dict[str, list[str]]:
        nonlocal seen
        seen += 1
        if seen == 3:
            await store.announce("keys-9", ["k1"])
        return await look(within_s)

    monkeypatch.setattr(store, "announced", starts_later)
    with pytest.raises(RingError, match="keys-9 started with another ring"):
        await rotate(store, BOTH, lambda _: None)
    uses = {uses.master_key_id: uses.count for uses in await store.master_key_uses()}
    assert uses == {"k1": 4, "k2": 2}


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
