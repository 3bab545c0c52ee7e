"""When a key is believed dead or exhausted, and how it comes back: on a real bus and database, against an upstream whose
answers the tests choose."""

from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest
import pytest_asyncio

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import KeyRefusal, KeyStatus, ListAccess, VerifyKey
from contracts.subjects import KEYS_ACCESS_LIST, KEYS_VERIFY
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.keys import checks, verify
from tests.integration.keys_parts import (
    LIVE_KEY,
    OTHER_KEY,
    Parties,
    Upstream,
    keys_running,
    keys_settings,
    let_time_pass,
    parties_around,
    running_upstream,
)
from tests.stack import Database
from tests.waiting import until


@pytest_asyncio.fixture
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Upstream]:
    # What is due is found at once.
    monkeypatch.setattr(checks, "_POLL_S", 0.2)
    async with running_upstream() as running:
        yield running


async def refused_run(
    parties: Parties, owner: str, refused: KeyRefusal = ErrorCode.KEY_REJECTED, version: int | None = None
) -> KeyStatus:
    """What an executor says after upstream refused a run."""
    return await parties.executor.call(KEYS_VERIFY, VerifyKey(owner=owner, refused=refused, version=version))


async def check_now(database: Database, owner: str) -> None:
    connection = await asyncpg.connect(database.superuser)
    try:
        await connection.execute(
            "UPDATE keys.user_openrouter_integrations SET next_check_at = now() WHERE owner = $1", owner
        )
    finally:
        await connection.close()


async def refused_all_day(database: Database, owner: str) -> None:
    """As if the owner's key had been refused a hundred times but one, since yesterday."""
    connection = await asyncpg.connect(database.superuser)
    try:
        await connection.execute(
            """UPDATE keys.user_openrouter_integrations
               SET rejections = 99, first_refused_at = now() - interval '1 day', refused_at = now() - interval '5 minutes',
                   asked_at = now() - interval '5 minutes'
               WHERE owner = $1""",
            owner,
        )
    finally:
        await connection.close()


async def until_health(parties: Parties, owner: str, health: str) -> None:
    async def is_so() -> bool:
        return (await parties.status(owner)).health == health

    await until(is_so)


# Dead or not ----------------------------------------------------------------------------------------------------------


async def test_a_key_is_dead_when_upstream_says_so_again_and_accepts_other_keys(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    upstream.dead.add(LIVE_KEY)
    assert (await parties.verify("alice")).health == "suspect"
    # However often it is asked at once, it counts once.
    assert (await parties.verify("alice")).health == "suspect"
    assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY
    await let_time_pass(database, "alice", seconds=61)
    assert (await parties.verify("alice")).health == "rejected"
    with pytest.raises(ServiceError, match="test it again or connect a new one") as rejected:
        await parties.lease("alice")
    assert rejected.value.code is ErrorCode.KEY_REJECTED
    assert (await parties.status("bob")).health == "ok"
    changes = [await parties.change() for _ in range(4)]
    assert changes[2:] == [("alice", 1, "health"), ("alice", 1, "health")]
    upstream.dead.clear()
    assert (await parties.verify("alice")).health == "ok"
    assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY


async def test_no_key_is_dead_while_upstream_refuses_everybody(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    upstream.dead |= {LIVE_KEY, OTHER_KEY}
    for _ in range(5):
        for owner in ("alice", "bob"):
            assert (await parties.verify(owner)).health == "suspect"
            assert parties.opened(await parties.lease(owner), owner)
            await let_time_pass(database, owner, minutes=10)
    upstream.dead.clear()
    for owner in ("alice", "bob"):
        await check_now(database, owner)
        await until_health(parties, owner, "ok")


async def test_a_key_is_not_alone_when_the_others_cannot_be_asked_about(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    upstream.dead.add(LIVE_KEY)
    upstream.status = 503
    for _ in range(5):
        assert (await parties.verify("alice")).health == "suspect"
        for owner in ("alice", "bob"):
            await let_time_pass(database, owner, minutes=10)
    upstream.status = 200
    assert (await parties.verify("alice")).health == "rejected"


async def test_a_key_is_not_alone_when_the_others_worked_days_ago(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    upstream.status = 401
    connection = await asyncpg.connect(database.superuser)
    try:
        await connection.execute(
            "UPDATE keys.user_openrouter_integrations SET verified_at = verified_at - interval '3 days'"
        )
    finally:
        await connection.close()
    for _ in range(5):
        for owner in ("alice", "bob"):
            assert (await parties.verify(owner)).health == "suspect"
            await let_time_pass(database, owner, minutes=10)


async def test_the_only_key_is_dead_after_a_quarter_of_an_hour(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    upstream.status = 401
    for _ in range(3):
        assert (await parties.verify("alice")).health == "suspect"
        await let_time_pass(database, "alice", minutes=7)
    assert (await parties.verify("alice")).health == "rejected"


async def test_keys_that_are_refused_for_a_whole_day_are_dead_also_when_no_other_works(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    upstream.dead |= {LIVE_KEY, OTHER_KEY}
    # The second time a day has passed, in which nobody asked.
    for _ in range(2):
        for owner in ("alice", "bob"):
            assert (await parties.verify(owner)).health == "suspect"
            await let_time_pass(database, owner, hours=30)
    for owner in ("alice", "bob"):
        await refused_all_day(database, owner)
        assert (await parties.verify(owner)).health == "rejected"
        with pytest.raises(ServiceError, match="test it again or connect a new one"):
            await parties.lease(owner)
    upstream.dead.clear()
    for owner in ("alice", "bob"):
        await check_now(database, owner)
        await until_health(parties, owner, "ok")


async def test_an_upstream_that_is_too_slow_about_the_others_is_not_shown_to_work(
    parties: Parties, upstream: Upstream, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parties.connect("bob", OTHER_KEY)
    await parties.connect("alice", LIVE_KEY)
    upstream.dead.add(LIVE_KEY)
    assert (await parties.verify("alice")).health == "suspect"
    await let_time_pass(database, "alice", minutes=2)
    with monkeypatch.context() as impatient:
        impatient.setattr(checks, "_WITNESSES_S", 0)
        assert (await parties.verify("alice")).health == "suspect"
    assert (await parties.verify("alice")).health == "rejected"


async def test_a_witness_that_leaves_meanwhile_says_nothing(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    third_key = "sk-or-v1-" + "th1rdk3y" * 8
    await parties.connect("carol", third_key)
    await parties.connect("bob", OTHER_KEY)
    await parties.connect("alice", LIVE_KEY)
    upstream.dead.add(LIVE_KEY)
    assert (await parties.verify("alice")).health == "suspect"
    for owner in ("alice", "bob", "carol"):
        await let_time_pass(database, owner, minutes=2)

    async def both_leave() -> None:
        await parties.disconnect("bob")
        await parties.disconnect("carol")

    # Bob is asked about first, then it would be carol's turn.
    upstream.meanwhile[OTHER_KEY] = both_leave
    assert (await parties.verify("alice")).health == "suspect"
    assert upstream.authorizations[-2:] == [f"Bearer {LIVE_KEY}", f"Bearer {OTHER_KEY}"]


async def test_a_key_that_is_replaced_while_its_witnesses_are_asked_is_not_rejected(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("bob", OTHER_KEY)
    await parties.connect("alice", LIVE_KEY)
    upstream.dead.add(LIVE_KEY)
    assert (await parties.verify("alice")).health == "suspect"
    for owner in ("alice", "bob"):
        await let_time_pass(database, owner, minutes=2)
    upstream.meanwhile[OTHER_KEY] = lambda: parties.connect("alice", "sk-or-v1-" + "n3wk3y00" * 8)
    status = await parties.verify("alice")
    assert (status.version, status.health) == (2, "ok")
    log = await parties.gateway.call(KEYS_ACCESS_LIST, ListAccess(owner="alice"))
    assert "rejected" not in {entry.result for entry in log.items}


async def test_keys_of_the_sandbox_are_no_witnesses_for_live_ones(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url, sandbox_url=upstream.url)
    async with keys_running(settings), parties_around(nats_server, credentials) as parties:
        await parties.connect("alice", LIVE_KEY)
        await parties.connect("bob", "sk-or-test-bobs-own-key")
        upstream.dead.add(LIVE_KEY)
        await parties.verify("alice")
        await let_time_pass(database, "alice", minutes=2)
        assert (await parties.verify("alice")).health == "suspect"


async def test_an_outage_is_no_verdict_on_a_key(parties: Parties, upstream: Upstream) -> None:
    await parties.connect("alice", LIVE_KEY)
    for status in (500, 503, 429):
        upstream.status = status
        with pytest.raises(ServiceError) as unavailable:
            await parties.verify("alice")
        assert unavailable.value.code is ErrorCode.UNAVAILABLE
    assert (await parties.status("alice")).health == "ok"


# What a refused run says ----------------------------------------------------------------------------------------------


async def test_a_run_that_met_a_401_makes_nothing_suspect_when_upstream_knows_the_key(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await let_time_pass(database, "alice", seconds=10)
    assert (await refused_run(parties, "alice", version=1)).health == "ok"
    assert len(upstream.authorizations) == 2


async def test_refused_runs_ask_upstream_rarely_and_never_about_a_key_that_was_replaced(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", OTHER_KEY)
    await parties.connect("alice", LIVE_KEY)
    upstream.status = 401
    await let_time_pass(database, "alice", seconds=10)
    assert (await refused_run(parties, "alice", version=1)).health == "ok"
    statuses = [await refused_run(parties, "alice", version=2) for _ in range(5)]
    assert {status.health for status in statuses} == {"suspect"}
    assert len(upstream.authorizations) == 3
    assert (await refused_run(parties, "nobody")).connected is False


@pytest.mark.parametrize(
    ("refused", "facts", "credits", "health"),
    [
        # Nothing that can be read contradicts the run.
        (ErrorCode.CREDITS_EXHAUSTED, {}, None, "exhausted"),
        (ErrorCode.SPEND_LIMIT, {}, None, "exhausted"),
        (ErrorCode.SPEND_LIMIT, {"limit": 5, "limit_remaining": 0}, None, "exhausted"),
        (ErrorCode.CREDITS_EXHAUSTED, {}, {"total_credits": 5, "total_usage": 5.01}, "exhausted"),
        # The account was filled up, or the limit raised, meanwhile.
        (ErrorCode.CREDITS_EXHAUSTED, {}, {"total_credits": 5, "total_usage": 1}, "ok"),
        (ErrorCode.SPEND_LIMIT, {"limit": 5, "limit_remaining": 4}, None, "ok"),
    ],
)
async def test_a_run_that_could_not_be_paid_counts_until_something_says_otherwise(
    parties: Parties,
    upstream: Upstream,
    database: Database,
    refused: KeyRefusal,
    facts: dict[str, int],
    credits: dict[str, float] | None,  # noqa: A002 - upstream's own word
    health: str,
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await let_time_pass(database, "alice", seconds=10)
    upstream.facts, upstream.credits = facts, credits
    assert (await refused_run(parties, "alice", refused)).health == health
    # An exhausted key is leased: a free model may run on it, and the next run that works proves it wrong.
    assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY


async def test_exhausted_ends_by_itself_when_nothing_says_so_any_more(
    parties: Parties, upstream: Upstream, database: Database
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await let_time_pass(database, "alice", seconds=10)
    assert (await refused_run(parties, "alice", ErrorCode.SPEND_LIMIT)).health == "exhausted"
    await check_now(database, "alice")
    await until_health(parties, "alice", "ok")
    assert [await parties.change() for _ in range(3)] == [
        ("alice", 1, "connected"), ("alice", 1, "health"), ("alice", 1, "health")
    ]  # fmt: skip
    assert len(upstream.authorizations) == 3


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b'{"error": {"code": 403, "message": "Key limit exceeded (total limit)."}}'),
        (402, b'{"error": {"code": 402, "message": "x", "metadata": {"limit_source": "openrouter_key_limit"}}}'),
    ],
)
async def test_a_limit_of_the_key_itself_is_its_spending_limit(
    parties: Parties, upstream: Upstream, status: int, body: bytes
) -> None:
    await parties.connect("alice", LIVE_KEY)
    upstream.status, upstream.raw = status, body
    assert (await parties.verify("alice")).health == "exhausted"
    with pytest.raises(ServiceError, match="its own spending limit") as refused:
        await parties.connect("bob", OTHER_KEY)
    assert refused.value.code is ErrorCode.SPEND_LIMIT


# Credits --------------------------------------------------------------------------------------------------------------


async def test_credits_are_shown_where_the_key_may_read_them(parties: Parties, upstream: Upstream) -> None:
    assert (await parties.connect("alice", LIVE_KEY)).credits_remaining_usd is None
    upstream.credits = {"total_credits": 10, "total_usage": 9.75}
    status = await parties.verify("alice")
    assert (status.credits_remaining_usd, status.health) == (Decimal("0.25"), "ok")
    assert (await parties.status("alice")).credits_remaining_usd == Decimal("0.25")
    upstream.credits = {"total_credits": "many"}
    assert (await parties.verify("alice")).credits_remaining_usd is None


async def test_credits_that_do_not_arrive_in_time_are_unknown(
    parties: Parties, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.credits = {"total_credits": 10, "total_usage": 9.75}
    monkeypatch.setattr(verify, "_CREDITS_TIMEOUT_S", 0)
    status = await parties.connect("alice", LIVE_KEY)
    assert (status.credits_remaining_usd, status.health) == (None, "ok")


# By itself ------------------------------------------------------------------------------------------------------------


async def test_keys_are_asked_about_in_their_time_by_one_replica_each(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    settings = [
        keys_settings(database, nats_server, credentials, openrouter_url=upstream.url, instance=name)
        for name in ("keys-1", "keys-2")
    ]
    owners = [f"owner-{number}" for number in range(4)]
    async with (
        keys_running(settings[0]),
        keys_running(settings[1]),
        parties_around(nats_server, credentials) as parties,
    ):
        for owner in owners:
            await parties.connect(owner, f"sk-or-v1-{owner}-0123456789")
        upstream.authorizations.clear()
        upstream.facts = {"limit": 3, "limit_remaining": 0}
        for owner in owners:
            await check_now(database, owner)
        for owner in owners:
            await until_health(parties, owner, "exhausted")
        assert sorted(upstream.authorizations) == [f"Bearer sk-or-v1-{owner}-0123456789" for owner in owners]


async def test_checking_goes_on_after_a_key_that_cannot_be_checked(
    parties: Parties, upstream: Upstream, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    connection = await asyncpg.connect(database.superuser)
    try:
        await connection.execute(
            "UPDATE keys.user_openrouter_integrations SET encrypted_key = wrapped_data_key WHERE owner = 'bob'"
        )
    finally:
        await connection.close()
    upstream.status = 503
    for owner in ("alice", "bob"):
        await check_now(database, owner)
    said = ""

    def both_told() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return said.count("key_not_checked") >= 2

    await until(both_told)
    assert "unavailable" in said
    assert "internal" in said
    upstream.status, upstream.facts = 200, {"limit": 3, "limit_remaining": 0}
    await check_now(database, "alice")
    await until_health(parties, "alice", "exhausted")


async def test_the_next_check_is_hours_away_for_a_key_that_works(parties: Parties, database: Database) -> None:
    await parties.connect("alice", LIVE_KEY)
    await parties.connect("bob", OTHER_KEY)
    connection = await asyncpg.connect(database.superuser)
    try:
        rows = await connection.fetch("SELECT next_check_at - now() AS wait FROM keys.user_openrouter_integrations")
    finally:
        await connection.close()
    waits = [row["wait"].total_seconds() / 3600 for row in rows]
    assert all(4.7 < wait < 7.3 for wait in waits)
    assert waits[0] != waits[1]
