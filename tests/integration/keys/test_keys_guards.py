"""Who gets a lease and how often an owner may try: two keys services on one database, asked over a real bus."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import KeyLease, LeaseKey, ListAccess
from contracts.subjects import KEYS_ACCESS_LIST, KEYS_LEASE
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.keys.guards.limits import MOST
from services.keys.main import build
from services.runtime.identity import ExecutorIdentity, IdentityError
from tests.integration.keys_parts import (
    INSTANCE,
    LIVE_KEY,
    OTHER_KEY,
    Parties,
    Upstream,
    keys_running,
    keys_settings,
    parties_around,
)
from tests.stack import Database

STRANGER = ExecutorIdentity.parse("c3RyYW5nZXItc3RyYW5nZXItc3RyYW5nZXItc3RyYW4=")


@asynccontextmanager
async def two_replicas(
    database: Database, nats: Nats, credentials: Credentials, upstream: Upstream
) -> AsyncIterator[Parties]:
    first, second = (
        keys_settings(database, nats, credentials, openrouter_url=upstream.url, instance=name)
        for name in ("keys-1", "keys-2")
    )
    async with keys_running(first), keys_running(second), parties_around(nats, credentials) as parties:
        yield parties


@pytest_asyncio.fixture
async def parties(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> AsyncIterator[Parties]:
    async with two_replicas(database, nats_server, credentials, upstream) as around:
        yield around


def request(parties: Parties, signer: ExecutorIdentity | None = None, **ago: float) -> LeaseKey:
    moment = datetime.now(UTC) - timedelta(**ago)
    return (signer or parties.identity).lease_request("alice", INSTANCE, parties.pair.public_key, moment)


async def ask(parties: Parties, lease: LeaseKey) -> KeyLease:
    return await parties.executor.call(KEYS_LEASE, lease)


# Signed requests ------------------------------------------------------------------------------------------------------


async def test_lease_is_forbidden_unless_an_executor_signed_it_just_now(parties: Parties) -> None:
    await parties.connect("alice", LIVE_KEY)
    good = request(parties)
    asked = [
        LeaseKey(owner="alice", instance=INSTANCE, recipient_public_key=parties.pair.public_key),
        request(parties, STRANGER),
        request(parties, seconds=40),
        request(parties, seconds=-40),
        good.model_copy(update={"instance": "executor-2"}),
        good.model_copy(update={"recipient_public_key": "c29tZWJvZHkgZWxzZQ=="}),
    ]
    for lease in asked:
        with pytest.raises(ServiceError, match="not signed by an executor") as forbidden:
            await ask(parties, lease)
        assert forbidden.value.code is ErrorCode.FORBIDDEN
        assert not forbidden.value.body.retryable
    # None of them has spent the nonce of the good one.
    assert parties.opened(await ask(parties, good), "alice") == LIVE_KEY
    page = await parties.gateway.call(KEYS_ACCESS_LIST, ListAccess(owner="alice"))
    logged = [(entry.action, entry.result, entry.instance) for entry in reversed(page.items)]
    refused = [("lease", "refused", lease.instance) for lease in asked]
    assert logged == [("connect", "done", logged[0][2]), *refused, ("lease", "granted", INSTANCE)]


@pytest.mark.parametrize("seconds", [25, -25])
async def test_lease_is_given_when_the_clocks_differ_a_little(parties: Parties, seconds: float) -> None:
    await parties.connect("alice", LIVE_KEY)
    assert parties.opened(await ask(parties, request(parties, seconds=seconds)), "alice") == LIVE_KEY


async def test_a_replayed_request_is_answered_by_no_replica(parties: Parties) -> None:
    await parties.connect("alice", LIVE_KEY)
    good = request(parties)
    answers = await asyncio.gather(*(ask(parties, good) for _ in range(40)), return_exceptions=True)
    given = [answer for answer in answers if isinstance(answer, KeyLease)]
    refused = [answer.code for answer in answers if isinstance(answer, ServiceError)]
    assert (len(given), set(refused), len(refused)) == (1, {ErrorCode.FORBIDDEN}, 39)


async def test_a_replay_is_refused_after_every_replica_was_restarted(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    async with two_replicas(database, nats_server, credentials, upstream) as parties:
        await parties.connect("alice", LIVE_KEY)
        good = request(parties)
        assert (await ask(parties, good)).version == 1
    async with two_replicas(database, nats_server, credentials, upstream) as parties:
        with pytest.raises(ServiceError) as forbidden:
            await ask(parties, good)
        assert forbidden.value.code is ErrorCode.FORBIDDEN


async def test_an_identity_is_replaced_while_both_are_trusted(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    both = f"{credentials.executor_identities},{STRANGER.public_key}"
    settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url, executor_identities=both)
    async with keys_running(settings) as service, parties_around(nats_server, credentials) as parties:
        await parties.connect("alice", LIVE_KEY)
        for signer in (parties.identity, STRANGER):
            assert parties.opened(await ask(parties, request(parties, signer)), "alice") == LIVE_KEY
        with pytest.raises(ServiceError):
            await ask(parties, request(parties, seconds=60))
        exposition = (await service.health.metrics())[0].decode()
        assert 'x402jobs_key_leases_total{result="forbidden"} 1.0' in exposition
        assert 'x402jobs_key_leases_total{result="granted"} 2.0' in exposition


@pytest.mark.parametrize("identities", ["", "AAAA", "c2hvcnQ="])
def test_a_keys_service_that_trusts_nobody_is_not_built(
    database: Database, nats_server: Nats, credentials: Credentials, identities: str
) -> None:
    settings = keys_settings(database, nats_server, credentials, executor_identities=identities)
    with pytest.raises(IdentityError, match="EXECUTOR_IDENTITIES"):
        build(settings)


# Two replicas ---------------------------------------------------------------------------------------------------------


async def test_any_replica_answers_anything(parties: Parties) -> None:
    owners = [f"owner-{number}" for number in range(12)]
    await asyncio.gather(*(parties.connect(owner, f"sk-or-v1-{owner}-0123456789") for owner in owners))
    leases = await asyncio.gather(*(parties.lease(owner) for owner in owners))
    for owner, lease in zip(owners, leases, strict=True):
        assert parties.opened(lease, owner) == f"sk-or-v1-{owner}-0123456789"
    pages = [await parties.gateway.call(KEYS_ACCESS_LIST, ListAccess(owner=owner)) for owner in owners]
    assert {page.items[1].instance for page in pages} == {"keys-1", "keys-2"}


async def test_requests_go_on_while_a_replica_restarts(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    def settings(instance: str) -> Any:
        return keys_settings(database, nats_server, credentials, openrouter_url=upstream.url, instance=instance)

    async with keys_running(settings("keys-1")), parties_around(nats_server, credentials) as parties:
        await parties.connect("alice", LIVE_KEY)
        asked, stop = 0, asyncio.Event()

        async def keep_asking() -> None:
            nonlocal asked
            while not stop.is_set():
                assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY
                assert (await parties.status("alice")).connected
                asked += 1

        asking = asyncio.create_task(keep_asking())
        for _ in range(3):
            async with keys_running(settings("keys-2")):
                await asyncio.sleep(0.2)
        stop.set()
        await asking
        assert asked > 10


# Limits ---------------------------------------------------------------------------------------------------------------


async def age_attempts(database: Database, **ago: float) -> None:
    connection = await asyncpg.connect(database.superuser)
    try:
        await connection.execute("UPDATE keys.attempts SET at = at - $1::interval", timedelta(**ago))
    finally:
        await connection.close()


async def test_guesses_are_limited_over_all_replicas(parties: Parties, upstream: Upstream, database: Database) -> None:
    await parties.connect("alice", LIVE_KEY)
    upstream.status = 401

    async def guess(number: int) -> ErrorCode:
        with pytest.raises(ServiceError) as refused:
            await parties.connect("alice", f"sk-or-v1-guess-number-{number:04d}")
        if refused.value.code is ErrorCode.RATE_LIMITED:
            assert refused.value.body.scope == "caller"
            assert 0 < (refused.value.body.retry_after_s or 0) <= 600
        return refused.value.code

    codes = await asyncio.gather(*(guess(number) for number in range(MOST["guess"] + 15)))
    assert codes.count(ErrorCode.KEY_REJECTED) == MOST["guess"]
    assert codes.count(ErrorCode.RATE_LIMITED) == 15
    assert len(upstream.authorizations) == 1 + MOST["guess"]
    # Whoever else is not affected, nor the key that is connected; and it ends.
    upstream.status = 200
    assert (await parties.connect("bob", OTHER_KEY)).connected
    assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY
    await age_attempts(database, minutes=11)
    assert (await parties.connect("alice", OTHER_KEY)).version == 2


async def test_a_good_key_and_an_outage_count_as_no_guess(parties: Parties, upstream: Upstream) -> None:
    for _ in range(MOST["guess"] // 2 + 1):
        upstream.status = 200
        await parties.connect("alice", LIVE_KEY)
        upstream.status = 503
        with pytest.raises(ServiceError, match="cannot be asked"):
            await parties.connect("alice", OTHER_KEY)
    upstream.status = 401
    with pytest.raises(ServiceError) as refused:
        await parties.connect("alice", OTHER_KEY)
    assert refused.value.code is ErrorCode.KEY_REJECTED


async def test_tests_of_the_key_are_limited(parties: Parties, upstream: Upstream) -> None:
    await parties.connect("alice", LIVE_KEY)
    for _ in range(MOST["verify"]):
        await parties.verify("alice")
    with pytest.raises(ServiceError, match="tested the key many times") as limited:
        await parties.verify("alice")
    assert limited.value.code is ErrorCode.RATE_LIMITED
    assert len(upstream.authorizations) == 1 + MOST["verify"]


async def test_what_is_over_is_erased(database: Database, parties: Parties) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.lease("alice")
    connection = await asyncpg.connect(database.superuser)
    try:
        tables = ("attempts", "lease_nonces")
        counts = [await connection.fetchval(f"SELECT count(*) FROM keys.{table}") for table in tables]
        assert counts == [1, 1]
        await connection.execute("UPDATE keys.attempts SET at = at - interval '2 hours'")
        await connection.execute("UPDATE keys.lease_nonces SET seen_at = seen_at - interval '6 minutes'")
        service = await asyncpg.connect(database.dsn("keys"))
        try:
            await service.execute("SELECT keys.sweep()")
        finally:
            await service.close()
        counts = [await connection.fetchval(f"SELECT count(*) FROM keys.{table}") for table in tables]
        assert counts == [0, 0]
    finally:
        await connection.close()


# The tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("attempts", "(owner, kind) VALUES ($1, 'guess')"),
        (
            "oauth_attempts",
            "(owner, state_hash, master_key_id, locked_verifier, expires_at) VALUES ($1, uuid_send(gen_random_uuid()), '', '', now())",
        ),
    ],
)
async def test_guards_of_others_are_neither_seen_nor_made(database: Database, table: str, row: str) -> None:
    connection = await asyncpg.connect(database.dsn("keys"))
    try:
        for owner in ("alice", "bob"):
            async with connection.transaction():
                await connection.execute("SELECT set_config('app.user_id', $1, true)", owner)
                await connection.execute(f"INSERT INTO keys.{table} {row}", owner)
                assert await connection.fetchval(f"SELECT count(*) FROM keys.{table}") == 1
        assert await connection.fetchval(f"SELECT count(*) FROM keys.{table}") == 0
        assert await connection.execute(f"DELETE FROM keys.{table}") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"INSERT INTO keys.{table} {row}", "alice")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"UPDATE keys.{table} SET owner = 'mallory'")
    finally:
        await connection.close()


async def test_a_spent_nonce_cannot_be_freed_by_the_service(database: Database) -> None:
    connection = await asyncpg.connect(database.dsn("keys"))
    try:
        await connection.execute("INSERT INTO keys.lease_nonces (nonce) VALUES ('n')")
        for statement in ("DELETE FROM keys.lease_nonces", "UPDATE keys.lease_nonces SET seen_at = '2000-01-01'"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.execute("SELECT keys.sweep()")
        assert await connection.fetchval("SELECT count(*) FROM keys.lease_nonces") == 1
    finally:
        await connection.close()
