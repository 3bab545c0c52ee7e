"""What an executor holds of creators' keys, against a real keys service: one lease per owner, dropped at once on a change."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import KeysChanged
from contracts.subjects import KEYS_CHANGED
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.executor.leases import KeyLeases
from services.keys import handlers
from services.runtime.bus import Bus
from services.runtime.identity import ExecutorIdentity
from tests.integration.keys_parts import (
    LIVE_KEY,
    OTHER_KEY,
    Parties,
    Upstream,
    bus_of,
    keys_running,
    keys_settings,
    let_time_pass,
    parties_around,
    running_upstream,
)
from tests.stack import Database
from tests.waiting import until


@dataclass
class Around:
    """An executor's leases, and the people around its keys service. `heard` are the changes that the leases have taken in."""

    leases: KeyLeases
    heard: list[KeysChanged]
    bus: Bus
    parties: Parties
    upstream: Upstream

    async def until_heard(self, changes: int) -> None:
        """Returns once the leases have taken in as many changes of keys, all that there were."""
        await until(lambda: len(self.heard) == changes)


@pytest_asyncio.fixture
async def around(database: Database, nats_server: Nats, credentials: Credentials) -> AsyncIterator[Around]:
    bus = bus_of("executor", nats_server, credentials)
    leases = KeyLeases(bus, ExecutorIdentity.parse(credentials.executor_identity))
    heard: list[KeysChanged] = []

    async def hear(event: KeysChanged) -> None:
        await leases.changed(event)
        heard.append(event)

    bus.listen(KEYS_CHANGED, hear)
    async with running_upstream() as upstream:
        settings = keys_settings(database, nats_server, credentials, openrouter_url=upstream.url)
        async with keys_running(settings), parties_around(nats_server, credentials) as parties:
            await bus.start()
            yield Around(leases, heard, bus, parties, upstream)
            await bus.close()


async def held(around: Around, owner: str) -> str | ErrorCode:
    try:
        return (await around.leases.get(owner)).api_key
    except ServiceError as error:
        return error.code


async def until_held(around: Around, owner: str, expected: str | ErrorCode) -> None:
    """Well before a lease ends by itself: an event is on its way over the bus."""

    async def is_held() -> bool:
        return await held(around, owner) == expected

    await until(is_held)


async def test_many_runs_at_once_ask_for_one_lease(around: Around) -> None:
    await around.parties.connect("alice", LIVE_KEY)
    await around.until_heard(1)
    leases = await asyncio.gather(*(around.leases.get("alice") for _ in range(50)))
    assert {id(lease) for lease in leases} == {id(leases[0])}
    assert leases[0].api_key == LIVE_KEY
    assert LIVE_KEY not in repr(leases[0])


async def test_a_change_is_followed_at_once(around: Around) -> None:
    steps: list[tuple[str | None, str | ErrorCode]] = [
        (LIVE_KEY, LIVE_KEY), (OTHER_KEY, OTHER_KEY), (None, ErrorCode.KEY_MISSING), (LIVE_KEY, LIVE_KEY)
    ]  # fmt: skip
    for key, expected in steps:
        if key is None:
            await around.parties.disconnect("alice")
        else:
            await around.parties.connect("alice", key)
        await until_held(around, "alice", expected)


async def test_a_lease_whose_time_is_over_is_kept_by_nobody(around: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "LEASE_S", 4)
    await around.parties.connect("alice", LIVE_KEY)
    await around.parties.connect("bob", OTHER_KEY)
    await around.until_heard(2)
    brief = await around.leases.get("alice")
    monkeypatch.setattr(handlers, "LEASE_S", 60)
    await around.leases.get("bob")
    assert list(around.leases._held) == ["alice", "bob"]
    # What follows it is not dropped with it.
    again = await around.leases.get("alice")
    assert again.expires_at > brief.expires_at
    await asyncio.sleep(4.2)
    assert list(around.leases._held) == ["alice", "bob"]
    monkeypatch.setattr(handlers, "LEASE_S", 1)
    await around.parties.connect("alice", OTHER_KEY)
    await around.until_heard(3)
    await until_held(around, "alice", OTHER_KEY)
    await until(lambda: list(around.leases._held) == ["bob"])


@pytest.mark.parametrize("former", [LIVE_KEY, None])
async def test_runs_that_wait_while_the_key_changes_get_the_new_one(
    around: Around, monkeypatch: pytest.MonkeyPatch, former: str | None
) -> None:
    if former is not None:
        await around.parties.connect("alice", former)
        await around.until_heard(1)
    heard, go_on, answers = asyncio.Event(), asyncio.Event(), 0
    call = around.bus.call

    async def late(*arguments: Any) -> Any:
        nonlocal answers
        try:
            return await call(*arguments)
        finally:
            answers += 1
            heard.set()
            await go_on.wait()

    monkeypatch.setattr(around.bus, "call", late)
    waiting = [asyncio.create_task(held(around, "alice")) for _ in range(3)]
    await heard.wait()
    request = around.leases._asking["alice"]
    await around.parties.connect("alice", OTHER_KEY)
    await until(lambda: request.dropped)
    go_on.set()
    assert await asyncio.gather(*waiting) == [OTHER_KEY] * 3
    assert answers == 2


async def test_a_lease_that_was_asked_for_before_a_reconnect_is_asked_for_again(
    around: Around,
) -> None:
    await around.parties.connect("alice", LIVE_KEY)
    await around.until_heard(1)
    waiting = asyncio.create_task(around.leases.get("alice"))
    await asyncio.sleep(0)  # it has begun to ask
    request = around.leases._asking["alice"]
    await around.leases.forget()
    assert await waiting is not await request.task


async def test_a_refused_run_has_the_key_asked_about_and_the_lease_dropped(around: Around, database: Database) -> None:
    await around.parties.connect("alice", LIVE_KEY)
    lease = await around.leases.get("alice")
    await let_time_pass(database, "alice", seconds=10)
    around.upstream.status = 401
    for _ in range(5):
        around.leases.doubt("alice", lease.version, ErrorCode.KEY_REJECTED)

    async def suspect() -> bool:
        return (await around.parties.status("alice")).health == "suspect"

    await until(suspect)
    assert len(around.upstream.authorizations) == 2
    # A suspect key is still leased: one wrong answer of upstream stops nobody's business.
    assert (await around.leases.get("alice")) is not lease


async def test_a_refusal_of_a_former_key_says_nothing_of_the_new_one(around: Around) -> None:
    await around.parties.connect("alice", LIVE_KEY)
    await around.parties.connect("alice", OTHER_KEY)
    await around.until_heard(2)
    lease = await around.leases.get("alice")
    assert lease.version == 2
    around.leases.doubt("alice", 1, ErrorCode.KEY_REJECTED)
    assert (await around.leases.get("alice")) is lease


@pytest.mark.parametrize("seed", ["c3RyYW5nZXItc3RyYW5nZXItc3RyYW5nZXItc3RyYW4="])
async def test_an_executor_of_another_deployment_gets_nothing_and_its_callers_learn_nothing(
    around: Around, seed: str
) -> None:
    await around.parties.connect("alice", LIVE_KEY)
    stranger = KeyLeases(around.bus, ExecutorIdentity.parse(seed))
    with pytest.raises(ServiceError, match="cannot be used at the moment") as forbidden:
        await stranger.get("alice")
    assert forbidden.value.code is ErrorCode.UNAVAILABLE
