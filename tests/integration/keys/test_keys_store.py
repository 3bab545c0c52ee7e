"""What the database itself guarantees about provider keys, whatever the service's code does: one owner at a time, a log that
only grows, chained, and nothing owned by the service's role."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import AccessResult
from services.keys.envelope import EnvelopeError, hint_of, lock, unlock
from services.keys.facts import KeyFacts
from services.keys.recipient import Recipients
from services.keys.store import Store
from services.runtime.postgres import create_pool
from services.runtime.sealing import Keyring, seal
from tests.stack import Database
from tests.waiting import until

KEY = SecretStr("sk-or-v1-" + "0123456789abcdef" * 4)
RING = Keyring({"m1": AESGCM.generate_key(256)})
FACTS = KeyFacts(limit=Decimal("12.50"), usage=Decimal("0.1"))
OWNED_TABLES = ("key_versions", "user_openrouter_integrations", "access_log", "access_heads")


@pytest_asyncio.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    async with opened(database) as one:
        yield one


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Store]:
    async with create_pool(database.dsn("keys"), service="keys") as pool:
        yield Store(pool)


@asynccontextmanager
async def signed_in(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def keep(store: Store, owner: str, *, keyring: Keyring = RING, leases: int = 1) -> None:
    """An owner with a key and a few leases."""
    async with store.rows_of(owner) as rows:
        version = await rows.next_version()
        await rows.put(lock(KEY, owner, version, keyring), "live", hint_of(KEY), FACTS)
    for _ in range(leases):
        async with store.rows_of(owner) as rows:
            await rows.log_access("lease", "granted", instance="executor-1", version=version)


async def somebody_waits(database: Database) -> None:
    """Returns once a transaction in this database waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with signed_in(database.superuser) as connection:
        await until(lambda: connection.fetchval(waiting))


# Row level security ---------------------------------------------------------------------------------------------------


async def test_no_row_is_seen_when_no_owner_is_set(store: Store, database: Database) -> None:
    await keep(store, "alice")
    async with signed_in(database.dsn("keys")) as connection:
        for table in OWNED_TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM keys.{table}") == 0
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.user_id', 'alice', true)")
            for table in OWNED_TABLES:
                assert await connection.fetchval(f"SELECT count(*) FROM keys.{table}") == 1
        # After the transaction the setting is the empty string, not absent.
        assert await connection.fetchval("SELECT current_setting('app.user_id', true)") == ""
        for table in OWNED_TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM keys.{table}") == 0


async def test_other_owners_are_neither_seen_nor_changed(store: Store, database: Database) -> None:
    await keep(store, "alice")
    async with store.rows_of("mallory") as rows:
        assert await rows.key() is None
        assert await rows.erase() is None
        assert await rows.record_rejection(1) is None
    async with signed_in(database.dsn("keys")) as connection, connection.transaction():
        await connection.execute("SELECT set_config('app.user_id', 'mallory', true)")
        for statement in (
            "DELETE FROM keys.user_openrouter_integrations",
            "UPDATE keys.user_openrouter_integrations SET health = 'rejected'",
            "UPDATE keys.key_versions SET version = 99",
        ):
            assert (await connection.execute(statement)).endswith(" 0")
    async with store.rows_of("alice") as rows:
        kept = await rows.key()
    assert kept is not None
    assert unlock(kept.envelope, "alice", RING) == KEY


@pytest.mark.parametrize("user", ["mallory", ""])
async def test_rows_of_another_owner_cannot_be_inserted(database: Database, user: str) -> None:
    async with signed_in(database.dsn("keys")) as connection:
        await connection.execute("SELECT set_config('app.user_id', $1, false)", user)
        for statement in (
            "INSERT INTO keys.key_versions (owner, version) VALUES ('alice', 1)",
            "INSERT INTO keys.access_log (owner, action, result, instance) VALUES ('alice', 'lease', 'granted', 'x')",
            "INSERT INTO keys.key_versions (owner, version) VALUES ('', 1)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await connection.execute(statement)


async def test_the_role_of_the_service_owns_nothing_and_cannot_pass_row_security(database: Database) -> None:
    async with signed_in(database.superuser) as connection:
        role = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = 'x402_keys'")
        assert not any(
            role[name] for name in ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb", "rolreplication")
        )
        owned = "SELECT count(*) FROM pg_shdepend WHERE refobjid = 'x402_keys'::regrole AND deptype = 'o'"
        assert await connection.fetchval(owned) == 0
        member = "SELECT count(*) FROM pg_auth_members WHERE member = 'x402_keys'::regrole"
        assert await connection.fetchval(member) == 0
        forced = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'keys'::regnamespace AND relrowsecurity AND relforcerowsecurity"
        )
        of_owners = await connection.fetch(
            "SELECT table_name FROM information_schema.columns WHERE table_schema = 'keys' AND column_name = 'owner'"
        )
        assert {row["relname"] for row in forced} == {row["table_name"] for row in of_owners} >= set(OWNED_TABLES)


async def test_the_look_across_owners_gives_ids_only(store: Store, database: Database) -> None:
    await keep(store, "alice")
    await keep(store, "bob", keyring=Keyring({"m2": AESGCM.generate_key(256)}))
    assert await store.owners_outside([], "", 10) == ["alice", "bob"]
    assert await store.owners_outside(["m1"], "", 10) == ["bob"]
    assert await store.owners_outside([], "", 1) == ["alice"]
    assert await store.owners_outside(["m1", "m2"], "", 10) == []
    async with signed_in(database.superuser) as connection:
        await connection.execute("SET ROLE x402_keys_census")
        assert await connection.fetchval("SELECT count(owner) FROM keys.user_openrouter_integrations") == 2
        for column in ("encrypted_key", "wrapped_data_key", "hint"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"SELECT {column} FROM keys.user_openrouter_integrations")


# Envelopes at rest ----------------------------------------------------------------------------------------------------


async def test_what_is_stored_comes_back_exactly(store: Store) -> None:
    await keep(store, "alice")
    async with store.rows_of("alice") as rows:
        stored = await rows.key()
    assert stored is not None
    assert (stored.facts, stored.mode, stored.health, stored.version) == (FACTS, "live", "ok", 1)
    assert unlock(stored.envelope, "alice", RING) == KEY


async def test_ciphertext_copied_to_another_owner_does_not_open(store: Store, database: Database) -> None:
    await keep(store, "alice")
    await keep(store, "mallory")
    async with signed_in(database.superuser) as connection:
        await connection.execute(
            """UPDATE keys.user_openrouter_integrations AS thief SET
                   (wrapped_data_key, encrypted_key) = (alice.wrapped_data_key, alice.encrypted_key)
               FROM keys.user_openrouter_integrations AS alice WHERE thief.owner = 'mallory' AND alice.owner = 'alice'"""
        )
    async with store.rows_of("mallory") as rows:
        stolen = await rows.key()
    assert stolen is not None
    with pytest.raises(EnvelopeError):
        unlock(stolen.envelope, "mallory", RING)


async def test_an_old_envelope_put_back_does_not_open(store: Store, database: Database) -> None:
    await keep(store, "alice")
    async with store.rows_of("alice") as rows:
        first = await rows.key()
    await keep(store, "alice")
    assert first is not None
    async with signed_in(database.superuser) as connection:
        await connection.execute(
            "UPDATE keys.user_openrouter_integrations SET wrapped_data_key = $1, encrypted_key = $2",
            first.envelope.wrapped_data_key,
            first.envelope.encrypted_key,
        )
    async with store.rows_of("alice") as rows:
        current = await rows.key()
    assert current is not None
    assert current.version == 2
    with pytest.raises(EnvelopeError):
        unlock(current.envelope, "alice", RING)
    assert unlock(replace(current.envelope, version=1), "alice", RING) == KEY


async def test_erase_leaves_neither_key_nor_data_key(store: Store, database: Database) -> None:
    await keep(store, "alice")
    async with store.rows_of("alice") as rows:
        assert await rows.erase() == 2
    async with signed_in(database.superuser) as connection:
        assert await connection.fetchval("SELECT count(*) FROM keys.user_openrouter_integrations") == 0
        assert await connection.fetchval("SELECT version FROM keys.key_versions WHERE owner = 'alice'") == 2


async def test_a_key_that_is_being_leased_is_erased_only_after_the_lease(store: Store, database: Database) -> None:
    await keep(store, "alice")

    async def erase() -> None:
        async with store.rows_of("alice") as rows:
            await rows.erase()

    async with store.rows_of("alice") as leasing:
        assert await leasing.key(hold=True) is not None
        erasing = asyncio.create_task(erase())
        await somebody_waits(database)
        await leasing.log_access("lease", "granted", instance="executor-1", version=1)
    await erasing
    async with store.rows_of("alice") as rows:
        assert await rows.key() is None


async def test_a_lease_that_waits_for_a_replacement_gets_the_new_key(store: Store, database: Database) -> None:
    await keep(store, "alice")

    async def lease() -> int | None:
        async with store.rows_of("alice") as rows:
            stored = await rows.key(hold=True)
            return stored.version if stored is not None else None

    async with store.rows_of("alice") as rows:
        version = await rows.next_version()
        await rows.put(lock(KEY, "alice", version, RING), "live", hint_of(KEY), FACTS)
        leasing = asyncio.create_task(lease())
        await somebody_waits(database)
    assert await leasing == 2


# The access log ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys.access_log SET instance = 'nobody'",
        "DELETE FROM keys.access_log",
        "TRUNCATE keys.access_log",
        "ALTER TABLE keys.access_log DISABLE TRIGGER access_log_chain",
    ],
)
async def test_the_access_log_only_grows(store: Store, database: Database, statement: str) -> None:
    await keep(store, "alice")
    async with signed_in(database.dsn("keys")) as connection:
        await connection.execute("SELECT set_config('app.user_id', 'alice', false)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)


async def test_access_log_is_chained_per_owner_also_when_written_at_the_same_moment(
    store: Store, database: Database
) -> None:
    await keep(store, "alice", leases=0)
    await keep(store, "bob", leases=0)

    async def log(owner: str, number: int) -> None:
        async with store.rows_of(owner) as rows:
            result: AccessResult = "granted" if number % 3 else "rejected"
            await rows.log_access("lease", result, instance=f"exécutor-{number}", version=1 if number % 5 else None)

    await asyncio.gather(*(log(owner, number) for number in range(20) for owner in ("alice", "bob")))
    async with signed_in(database.superuser) as connection:
        entries = await connection.fetch("SELECT * FROM keys.access_log ORDER BY owner, seq")
    assert [(entry["owner"], entry["seq"]) for entry in entries] == [
        (owner, seq) for owner in ("alice", "bob") for seq in range(1, 21)
    ]
    previous = b""
    for entry in entries:
        previous = previous if entry["seq"] > 1 else b""
        assert entry["prev_hash"] == previous
        at = entry["at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        said = [
            *(entry["owner"], entry["seq"], at, entry["action"], entry["result"]),
            *(entry["instance"], entry["version"]),
        ]
        written = json.dumps(said, ensure_ascii=False).encode()
        assert entry["hash"] == hashlib.sha256(previous + written).digest()
        previous = entry["hash"]


async def test_numbers_and_hashes_of_the_access_log_cannot_be_chosen(store: Store, database: Database) -> None:
    await keep(store, "alice")
    async with signed_in(database.dsn("keys")) as connection:
        await connection.execute("SELECT set_config('app.user_id', 'alice', false)")
        row = await connection.fetchrow(
            """INSERT INTO keys.access_log (owner, seq, at, action, result, instance, version, prev_hash, hash)
               VALUES ('alice', 77, '2001-01-01', 'lease', 'granted', 'executor-1', 1, 'x', 'y') RETURNING *"""
        )
        first = await connection.fetchval("SELECT hash FROM keys.access_log WHERE seq = 1")
    assert row["seq"] == 2
    assert row["prev_hash"] == first
    assert row["at"] > datetime.now(UTC) - timedelta(minutes=5)


# Recipients -----------------------------------------------------------------------------------------------------------


async def test_replicas_that_make_a_recipient_at_the_same_moment_agree(database: Database) -> None:
    async with opened(database) as one, opened(database) as two:
        replicas = [Recipients(store, RING) for store in (one, two)]
        pairs = await asyncio.gather(*(replica.current() for replica in replicas * 5))
        assert len({pair.key_id for pair in pairs}) == 1
        sealed = seal(b"secret", pairs[0].public_key, "context")
        assert [await replica.open(pairs[0].key_id, sealed, "context") for replica in replicas] == [b"secret"] * 2


async def test_a_recipient_lives_a_day_and_is_accepted_for_an_hour_after(store: Store, database: Database) -> None:
    now = datetime(2026, 5, 1, 23, 59, tzinfo=UTC)
    recipients = Recipients(store, RING, now=lambda: now)
    first = await recipients.current()
    sealed = seal(b"secret", first.public_key, "context")
    now = datetime(2026, 5, 2, 0, 1, tzinfo=UTC)
    second = await recipients.current()
    assert second.key_id != first.key_id
    now = datetime(2026, 5, 2, 0, 59, 59, tzinfo=UTC)
    assert await recipients.open(first.key_id, sealed, "context") == b"secret"
    now = datetime(2026, 5, 2, 1, 0, tzinfo=UTC)
    with pytest.raises(ServiceError) as refused:
        await recipients.open(first.key_id, sealed, "context")
    assert refused.value.code is ErrorCode.INVALID
    keeping = asyncio.create_task(recipients.keep_fresh())
    try:
        async with signed_in(database.superuser) as connection:
            alone = "SELECT array_agg(key_id) = ARRAY[$1] FROM keys.recipients"
            await until(lambda: connection.fetchval(alone, second.key_id))
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_recipient_of_a_dropped_master_key_is_replaced_and_no_longer_accepted(store: Store) -> None:
    first = await Recipients(store, RING).current()
    other = Recipients(store, Keyring({"m2": AESGCM.generate_key(256)}))
    assert (await other.current()).key_id != first.key_id
    with pytest.raises(ServiceError) as refused:
        await other.open(first.key_id, seal(b"secret", first.public_key, "context"), "context")
    assert refused.value.code is ErrorCode.INVALID


async def test_recipients_lie_locked_in_the_table(store: Store, database: Database) -> None:
    pair = await Recipients(store, RING).current()
    async with signed_in(database.superuser) as connection:
        row = await connection.fetchrow("SELECT * FROM keys.recipients")
    assert row["key_id"] == pair.key_id
    assert pair.private_bytes not in row["wrapped_private_key"]
    with pytest.raises(EnvelopeError, match="m1"):
        await Recipients(store, Keyring({"m1": AESGCM.generate_key(256)})).current()
