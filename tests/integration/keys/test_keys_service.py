"""The keys service on a real bus, a real database and the real sandbox, asked as the gateway and the executor ask it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio

from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.keys import ConnectKey
from contracts.subjects import ERROR_CODE_HEADER, KEYS_CONNECT, KEYS_LEASE, RPCS
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.keys import verify
from services.runtime.sealing import connect_context, seal
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
from tests.waiting import PATIENCE_S, until


@pytest_asyncio.fixture
async def parties(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, sandbox: str
) -> AsyncIterator[Parties]:
    """Gateway and executor with a keys service: live keys go to `upstream`, test keys to the sandbox."""
    settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url, sandbox_url=sandbox)
    async with keys_running(settings), parties_around(nats_server, credentials) as around:
        yield around


# Connect --------------------------------------------------------------------------------------------------------------


async def test_connect_stores_and_says_so_when_the_sandbox_knows_the_key(parties: Parties) -> None:
    status = await parties.connect("alice", "sk-or-test-alices-own-key")
    assert (status.connected, status.mode, status.health, status.version) == (True, "test", "ok", 1)
    assert status.hint == "sk-or-test-…-key"
    assert status.connected_at is not None
    assert status.connected_at == status.verified_at
    assert (status.limit_usd, status.limit_remaining_usd, status.usage_usd) == (None, None, Decimal(0))
    assert await parties.status("alice") == status
    assert await parties.change() == ("alice", 1, "connected")


async def test_connect_replaces_the_former_key_at_once(parties: Parties) -> None:
    await parties.connect("alice", "sk-or-test-first-key-of-hers")
    status = await parties.connect("alice", LIVE_KEY)
    assert (status.version, status.mode, status.hint) == (2, "live", "sk-or-v1-…et0f")
    assert [await parties.change() for _ in range(2)] == [("alice", 1, "connected"), ("alice", 2, "replaced")]
    lease = await parties.lease("alice")
    assert parties.opened(lease, "alice") == LIVE_KEY
    assert (lease.version, lease.mode) == (2, "live")


async def test_connect_keeps_what_upstream_says_of_the_key(parties: Parties, upstream: Upstream) -> None:
    upstream.facts = {
        "limit": 10, "limit_remaining": 0.1, "limit_reset": "monthly", "usage": 33.9, "is_free_tier": True,
        "expires_at": "2030-01-02T03:04:05Z",
    }  # fmt: skip
    status = await parties.connect("alice", f"  {LIVE_KEY}\n")
    assert (status.limit_usd, status.limit_remaining_usd) == (Decimal(10), Decimal("0.1"))
    assert (status.limit_reset, status.usage_usd, status.is_free_tier) == ("monthly", Decimal("33.9"), True)
    assert status.expires_at == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert upstream.authorizations == [f"Bearer {LIVE_KEY}"]


async def test_connect_takes_a_key_at_its_limit_as_exhausted(parties: Parties) -> None:
    status = await parties.connect("alice", "sk-or-test-with-limit-reached")
    assert (status.health, status.limit_usd, status.limit_remaining_usd) == ("exhausted", Decimal(1), Decimal(0))
    assert (await parties.connect("bob", "sk-or-test-free-of-charge")).is_free_tier is True


@pytest.mark.parametrize(
    ("key", "code", "word"),
    [
        ("sk-or-test-this-is-dead", ErrorCode.KEY_REJECTED, "does not accept"),
        ("sk-or-test-this-is-mgmt", ErrorCode.KEY_REJECTED, "management key"),
        ("sk-proj-0123456789abcdef", ErrorCode.INVALID, "not an OpenRouter key"),
        ("", ErrorCode.INVALID, "not an OpenRouter key"),
    ],
)
async def test_connect_changes_nothing_when_the_key_is_refused(
    parties: Parties, upstream: Upstream, key: str, code: ErrorCode, word: str
) -> None:
    await parties.connect("alice", "sk-or-test-good-one-before")
    await parties.change()
    before = await parties.status("alice")
    with pytest.raises(ServiceError, match=word) as refused:
        await parties.connect("alice", key)
    assert refused.value.code is code
    assert not refused.value.body.retryable
    assert await parties.status("alice") == before
    await parties.expect_silence()
    assert upstream.authorizations == []


@pytest.mark.parametrize(
    ("status", "raw", "code"),
    [
        (500, None, ErrorCode.UNAVAILABLE),
        (503, b"<html>", ErrorCode.UNAVAILABLE),
        (429, None, ErrorCode.UNAVAILABLE),
        (403, None, ErrorCode.UPSTREAM),
        (302, b"", ErrorCode.UPSTREAM),
        (200, b"<html>not json</html>", ErrorCode.UPSTREAM),
        (200, b'{"data": {"limit": "many"}}', ErrorCode.UPSTREAM),
        (402, None, ErrorCode.CREDITS_EXHAUSTED),
    ],
)
async def test_connect_stores_nothing_when_upstream_gives_no_verdict(
    parties: Parties, upstream: Upstream, status: int, raw: bytes | None, code: ErrorCode
) -> None:
    upstream.status, upstream.raw = status, raw
    with pytest.raises(ServiceError) as refused:
        await parties.connect("alice", LIVE_KEY)
    assert refused.value.code is code
    assert "from upstream" not in refused.value.body.model_dump_json()
    assert not (await parties.status("alice")).connected
    await parties.expect_silence()


async def test_connect_is_unavailable_when_upstream_is_silent(
    parties: Parties, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "TIMEOUT_S", 0.2)
    upstream.hold = asyncio.Event()
    with pytest.raises(ServiceError) as refused:
        await parties.connect("alice", LIVE_KEY)
    upstream.hold.set()
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert refused.value.body.retryable
    assert not (await parties.status("alice")).connected


async def test_connect_refuses_test_keys_where_there_is_no_sandbox(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url)
    async with keys_running(settings), parties_around(nats_server, credentials) as parties:
        with pytest.raises(ServiceError, match="live OpenRouter key") as refused:
            await parties.connect("alice", "sk-or-test-anything")
        assert refused.value.code is ErrorCode.INVALID
        assert upstream.authorizations == []


async def test_connect_refuses_what_is_sealed_for_somebody_else(parties: Parties) -> None:
    with pytest.raises(ServiceError, match="does not open") as refused:
        await parties.connect("mallory", LIVE_KEY, sealed_for="alice")
    assert refused.value.code is ErrorCode.INVALID
    assert not (await parties.status("mallory")).connected


async def test_connect_refuses_an_unknown_recipient(parties: Parties) -> None:
    sealed = seal(LIVE_KEY.encode(), parties.pair.public_key, connect_context("alice"))
    with pytest.raises(ServiceError, match="fetch it again") as refused:
        await parties.gateway.call(
            KEYS_CONNECT, ConnectKey(owner="alice", recipient_key_id=parties.pair.key_id, sealed=sealed)
        )
    assert refused.value.code is ErrorCode.INVALID
    assert refused.value.body.fields[0].path == "recipient_key_id"


async def test_connects_at_the_same_moment_end_with_one_key_that_opens(parties: Parties) -> None:
    keys = [f"sk-or-test-number-{number:04d}" for number in range(8)]
    statuses = await asyncio.gather(*(parties.connect("alice", key) for key in keys))
    assert sorted(status.version or 0 for status in statuses) == list(range(1, 9))
    last = max(statuses, key=lambda status: status.version or 0)
    assert await parties.status("alice") == last
    lease = await parties.lease("alice")
    assert parties.opened(lease, "alice")[-4:] == (last.hint or "")[-4:]


# Status, verify, disconnect -------------------------------------------------------------------------------------------


async def test_status_says_not_connected_when_there_is_no_key(parties: Parties) -> None:
    status = await parties.status("nobody")
    assert status.model_dump(exclude_none=True) == {"connected": False}


async def test_verify_refreshes_what_is_known_of_the_key(parties: Parties, upstream: Upstream) -> None:
    first = await parties.connect("alice", LIVE_KEY)
    upstream.facts = {"limit": 5, "limit_remaining": 0, "usage": 5}
    status = await parties.verify("alice")
    assert (status.health, status.limit_usd, status.usage_usd) == ("exhausted", Decimal(5), Decimal(5))
    assert status.verified_at is not None
    assert first.verified_at is not None
    assert status.verified_at > first.verified_at
    assert status.connected_at == first.connected_at
    upstream.facts = {"limit": 5, "limit_remaining": 5, "usage": 0}
    assert (await parties.verify("alice")).health == "ok"
    upstream.status = 402
    assert (await parties.verify("alice")).health == "exhausted"


async def test_verify_ignores_an_answer_about_a_key_that_was_replaced_meanwhile(
    parties: Parties, upstream: Upstream
) -> None:
    await parties.connect("alice", LIVE_KEY)
    upstream.hold, upstream.status = asyncio.Event(), 401
    verifying = asyncio.create_task(parties.verify("alice"))
    await until(lambda: len(upstream.authorizations) == 2)
    await parties.connect("alice", "sk-or-test-the-new-one")
    upstream.hold.set()
    status = await verifying
    assert (status.version, status.health, status.mode) == (2, "ok", "test")


async def test_verify_and_lease_say_what_to_do_when_no_key_is_connected(parties: Parties) -> None:
    for asking in (parties.verify, parties.lease):
        with pytest.raises(ServiceError, match="connect an OpenRouter key first") as missing:
            await asking("alice")
        assert missing.value.code is ErrorCode.KEY_MISSING


async def test_disconnect_erases_the_row_and_is_idempotent(parties: Parties, database: Database) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    assert not (await parties.disconnect("alice")).connected
    assert not (await parties.disconnect("alice")).connected
    changes = [await parties.change() for _ in range(3)]
    assert changes == [("alice", 1, "connected"), ("bob", 1, "connected"), ("alice", 2, "disconnected")]
    await parties.expect_silence()
    with pytest.raises(ServiceError) as missing:
        await parties.lease("alice")
    assert missing.value.code is ErrorCode.KEY_MISSING
    assert parties.opened(await parties.lease("bob"), "bob") == OTHER_KEY
    assert (await parties.connect("alice", LIVE_KEY)).version == 3


# Lease ----------------------------------------------------------------------------------------------------------------


async def test_lease_opens_for_its_owner_and_instance_alone(parties: Parties) -> None:
    await parties.connect("alice", LIVE_KEY)
    lease = await parties.lease("alice")
    assert parties.opened(lease, "alice") == LIVE_KEY
    assert timedelta(seconds=55) < lease.expires_at - datetime.now(UTC) <= timedelta(seconds=60)
    for owner, instance in (("bob", INSTANCE), ("alice", "executor-2")):
        with pytest.raises(ServiceError):
            parties.opened(lease, owner, instance=instance)


async def test_lease_to_no_public_key_is_invalid_and_not_logged_as_given(parties: Parties, database: Database) -> None:
    await parties.connect("alice", LIVE_KEY)
    with pytest.raises(ServiceError) as refused:
        await parties.executor.call(
            KEYS_LEASE, parties.identity.lease_request("alice", INSTANCE, "AAAA", datetime.now(UTC))
        )
    assert refused.value.code is ErrorCode.INVALID
    lease = await parties.lease("alice")
    assert lease.version == 1


async def test_lease_never_misses_a_key_that_is_being_replaced(parties: Parties) -> None:
    await parties.connect("alice", "sk-or-test-number-0000")

    async def replace() -> None:
        for number in range(1, 16):
            await parties.connect("alice", f"sk-or-test-number-{number:04d}")

    replacing = asyncio.create_task(replace())
    leases = []
    while not replacing.done():
        leases += await asyncio.gather(*(parties.lease("alice") for _ in range(4)))
    await replacing
    for lease in leases:
        assert parties.opened(lease, "alice") == f"sk-or-test-number-{lease.version - 1:04d}"


async def test_malformed_messages_are_answered_and_the_service_lives_on(parties: Parties) -> None:
    for rpc in (rpc for rpc in RPCS if rpc.owner == "keys" and rpc.name != "keys.recipient"):
        bus = parties.executor if rpc is KEYS_LEASE else parties.gateway
        for body in (b"", b"\xff\xfe", b"[]", b'{"owner": 7}', b'{"owner": ""}', b'{"owner": "a b"}'):
            reply = await bus.nc.request(rpc.subject, body, timeout=PATIENCE_S)
            assert reply.headers is not None
            assert reply.headers[ERROR_CODE_HEADER] == "invalid"
            assert ErrorBody.model_validate_json(reply.data).code is ErrorCode.INVALID
    assert (await parties.connect("alice", LIVE_KEY)).connected


async def test_metrics_count_leases_by_result(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, tmp_path: Path
) -> None:
    ring = tmp_path / "master-keys"
    ring.write_text(credentials.master_keys + "\n")
    settings = keys_settings(
        database, nats_server, credentials, openrouter_url=upstream.url, master_keys=None, master_keys_file=ring
    )
    async with keys_running(settings) as service, parties_around(nats_server, credentials) as parties:
        await parties.connect("alice", LIVE_KEY)
        await parties.lease("alice")
        with pytest.raises(ServiceError):
            await parties.lease("bob")
        exposition = (await service.health.metrics())[0].decode()
    assert 'x402jobs_key_leases_total{result="granted"} 1.0' in exposition
    assert 'x402jobs_key_leases_total{result="missing"} 1.0' in exposition
    assert "alice" not in exposition
    assert LIVE_KEY not in exposition
