"""What each user may do, asked of a real nats-server with the configuration that the registry makes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import StorageType, StreamConfig

from contracts.permissions import OBSERVER, inbox_prefix
from contracts.subjects import (
    AS_CANCEL,
    AS_FINISHED,
    AS_GET,
    AS_RUN,
    AS_SUBMIT,
    EVENTS,
    EXECUTION_FINISHED,
    EXECUTION_RUN,
    FRAMES,
    FRAMES_STREAM,
    JOBS_STREAM,
    KEYS_CONNECT,
    KEYS_LEASE,
    PUBLISHER,
    RPCS,
    SERVICES,
    STREAMS,
    Rpc,
    Service,
    as_publisher,
    frames_subject,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from tests.waiting import PATIENCE_S

DEMO, OTHER = "demo", "other"


@dataclass
class User:
    """A plain NATS client of one user, and what the server has refused it."""

    name: str
    nc: Client
    refused: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def refusals(self) -> list[str]:
        """What was refused so far: the server answers in order, so after a round trip all of it is here.

        Two, because the ping of the client overtakes what is still in its buffer: only the second stands behind it.
        """
        for _ in range(2):
            await self.nc.flush(timeout=PATIENCE_S)
        return [self.refused.get_nowait() for _ in range(self.refused.qsize())]

    async def may_subscribe(self, subject: str, queue: str = "") -> bool:
        subscription = await self.nc.subscribe(subject, queue=queue)
        refused = await self.refusals()
        if not refused:
            await subscription.unsubscribe()
        return not refused

    async def may_publish(self, subject: str) -> bool:
        await self.nc.publish(subject, b"{}")
        return not await self.refusals()


@asynccontextmanager
async def connected(server: Nats, credentials: Credentials, name: str) -> AsyncIterator[User]:
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        refused.put_nowait(str(error))

    nc = await nats.connect(
        server.url,
        user=name,
        password=credentials.nats_password(name),
        inbox_prefix=inbox_prefix(name),
        error_cb=note,
        allow_reconnect=False,
    )
    try:
        yield User(name, nc, refused)
    finally:
        await nc.close()


SignIn = Callable[[str], Awaitable[User]]


@pytest_asyncio.fixture
async def sign_in(own_nats: Nats, credentials: Credentials) -> AsyncIterator[SignIn]:
    """Signs a user in for the length of the test: `gateway = await sign_in("gateway")`."""
    async with AsyncExitStack() as connections:

        async def enter(name: str) -> User:
            return await connections.enter_async_context(connected(own_nats, credentials, name))

        yield enter


async def answer(user: User, rpc: Rpc[object, object], with_: bytes = b'{"by": "owner"}') -> None:  # type: ignore[type-var]
    async def reply(message: Msg) -> None:
        await message.respond(with_)

    await user.nc.subscribe(rpc.subject, queue=rpc.owner, cb=reply)
    assert await user.refusals() == []


async def declare_streams(owner: User) -> None:
    for stream in STREAMS:
        if stream.owner != owner.name:
            continue
        await owner.nc.jetstream().add_stream(
            StreamConfig(name=stream.name, subjects=list(stream.subjects), storage=StorageType.MEMORY)
        )


def a_stranger_to(rpc: Rpc[object, object]) -> list[str]:  # type: ignore[type-var]
    allowed = {DEMO if name == PUBLISHER else name for name in rpc.callers}
    return [name for name in (*SERVICES, DEMO) if name not in allowed]


async def test_every_caller_reaches_its_owner_and_nobody_else_does(sign_in: SignIn) -> None:
    users = {name: await sign_in(name) for name in (*SERVICES, DEMO)}
    for rpc in RPCS:
        await answer(users[rpc.owner], rpc)
        subject = as_publisher(rpc.subject, DEMO)
        for caller in rpc.callers:
            user = users[DEMO if caller == PUBLISHER else caller]
            reply = await user.nc.request(subject, b"{}", timeout=PATIENCE_S)
            assert json.loads(reply.data) == {"by": "owner"}, rpc.name
        for stranger in a_stranger_to(rpc):
            assert not await users[stranger].may_publish(subject), f"{stranger} reached {rpc.name}"
    assert all([await user.refusals() == [] for user in users.values()])


async def test_only_the_owner_hears_requests_and_only_in_its_queue_group(sign_in: SignIn) -> None:
    for name in (*SERVICES, DEMO):
        user = await sign_in(name)
        for rpc in (KEYS_CONNECT, KEYS_LEASE, EXECUTION_RUN, AS_RUN):
            assert await user.may_subscribe(rpc.subject, queue=rpc.owner) == (rpc.owner == name), (name, rpc.name)
            assert not await user.may_subscribe(rpc.subject), f"{name} hears every {rpc.name}"
            assert not await user.may_subscribe(rpc.subject, queue="spies")


@pytest.mark.parametrize("subject", [">", "x402jobs.>", "_INBOX.>", "$JS.>", "$SYS.>", "x402jobs.v1.as.>"])
async def test_nobody_hears_everything(sign_in: SignIn, subject: str) -> None:
    for name in (*SERVICES, DEMO):
        assert not await (await sign_in(name)).may_subscribe(subject), name


@pytest.mark.parametrize("name", [*SERVICES, DEMO])
async def test_nobody_hears_another_ones_replies(sign_in: SignIn, name: str) -> None:
    user = await sign_in(name)
    for other in (*SERVICES, DEMO, OTHER):
        assert await user.may_subscribe(f"{inbox_prefix(other)}.>") == (other == name)


async def test_events_reach_their_listeners_and_nobody_else_can_say_them(sign_in: SignIn) -> None:
    users = {name: await sign_in(name) for name in SERVICES}
    for event in EVENTS:
        if "*" in event.subject:
            continue
        for name, user in users.items():
            assert await user.may_subscribe(event.subject) == (name in event.listeners), (name, event.name)
            if name != event.owner:
                assert not await user.may_publish(event.subject), (name, event.name)
        assert await users[event.owner].may_publish(event.subject)


async def test_a_publisher_is_held_to_its_own_name(sign_in: SignIn) -> None:
    demo = await sign_in(DEMO)
    for entry in (AS_RUN, AS_GET, AS_CANCEL, AS_SUBMIT):
        assert await demo.may_publish(as_publisher(entry.subject, DEMO))
        assert not await demo.may_publish(as_publisher(entry.subject, OTHER)), entry.name
        assert not await demo.may_publish(as_publisher(entry.subject, "gateway"))
    for rpc in (EXECUTION_RUN, KEYS_LEASE, KEYS_CONNECT):
        assert not await demo.may_publish(rpc.subject), rpc.name
    assert not await demo.may_publish(as_publisher(AS_FINISHED.subject, DEMO)), "nobody writes his own receipt"
    assert not await demo.may_publish(EXECUTION_FINISHED.subject)
    assert not await demo.may_publish(frames_subject(DEMO, uuid4()))


async def test_a_publisher_reads_its_own_frames_and_results_alone(sign_in: SignIn) -> None:
    demo = await sign_in(DEMO)
    assert await demo.may_subscribe(frames_subject(DEMO, "*"))
    assert await demo.may_subscribe(frames_subject(DEMO, uuid4()))
    assert await demo.may_subscribe(as_publisher(AS_FINISHED.subject, DEMO))
    for subject in (
        frames_subject(OTHER, "*"),
        frames_subject("gateway", "*"),
        FRAMES.subject,
        as_publisher(AS_FINISHED.subject, OTHER),
        AS_FINISHED.subject,
        EXECUTION_FINISHED.subject,
    ):
        assert not await demo.may_subscribe(subject), subject


async def test_the_gateway_reads_the_frames_of_its_own_views_alone(sign_in: SignIn) -> None:
    gateway = await sign_in("gateway")
    assert await gateway.may_subscribe(frames_subject("gateway", "*"))
    assert not await gateway.may_subscribe(frames_subject(DEMO, "*"))


async def test_frames_reach_the_viewer_that_they_are_for(sign_in: SignIn) -> None:
    executor, demo, gateway = await sign_in("executor"), await sign_in(DEMO), await sign_in("gateway")
    views = [await user.nc.subscribe(frames_subject(user.name, "*")) for user in (demo, gateway)]
    assert await demo.refusals() == await gateway.refusals() == []
    for viewer in (DEMO, OTHER, "gateway"):
        await executor.nc.publish(frames_subject(viewer, uuid4()), viewer.encode())
    assert await executor.refusals() == []
    assert [(await view.next_msg(timeout=PATIENCE_S)).data for view in views] == [b"demo", b"gateway"]
    assert await demo.refusals() == await gateway.refusals() == []
    assert [view.pending_msgs for view in views] == [0, 0], "each hears its own frames alone"


async def test_a_job_is_acknowledged_to_its_publisher_and_taken_by_the_executor(sign_in: SignIn) -> None:
    executor, demo = await sign_in("executor"), await sign_in(DEMO)
    await declare_streams(executor)
    accepted = await demo.nc.request(as_publisher(AS_SUBMIT.subject, DEMO), b'{"resource": "a/b"}', timeout=PATIENCE_S)
    assert json.loads(accepted.data)["stream"] == JOBS_STREAM.name
    inbox = await executor.nc.jetstream().pull_subscribe(
        as_publisher(AS_SUBMIT.subject, "*"), "jobs", stream=JOBS_STREAM.name
    )
    (job,) = await inbox.fetch(1, timeout=PATIENCE_S)
    assert job.subject == as_publisher(AS_SUBMIT.subject, DEMO)
    await job.ack_sync(timeout=PATIENCE_S)


@pytest.mark.parametrize("name", [DEMO, "keys"])
async def test_who_reads_no_stream_cannot_ask_jetstream(sign_in: SignIn, name: str) -> None:
    await declare_streams(await sign_in("executor"))
    user = await sign_in(name)
    for stream in STREAMS:
        for verb in ("STREAM.INFO", "STREAM.MSG.GET", "CONSUMER.CREATE", "STREAM.PURGE", "STREAM.DELETE", "DIRECT.GET"):
            assert not await user.may_publish(f"$JS.API.{verb}.{stream.name}"), (verb, stream.name)


@pytest.mark.parametrize("name", ["gateway", "catalog"])
async def test_readers_of_a_stream_cannot_change_it(sign_in: SignIn, name: Service) -> None:
    for owner in {stream.owner for stream in STREAMS}:
        await declare_streams(await sign_in(owner))
    user = await sign_in(name)
    for stream in STREAMS:
        if stream.owner == name:
            continue
        for verb in ("STREAM.CREATE", "STREAM.UPDATE", "STREAM.PURGE", "STREAM.DELETE", "STREAM.MSG.DELETE"):
            assert not await user.may_publish(f"$JS.API.{verb}.{stream.name}"), (verb, stream.name)
    own = {stream.name for stream in STREAMS if name in (*stream.readers, stream.owner)}
    for stream in STREAMS:
        assert await user.may_publish(f"$JS.API.STREAM.INFO.{stream.name}") == (stream.name in own)


async def test_the_gateway_resumes_a_view_from_the_frames_kept(sign_in: SignIn) -> None:
    executor, gateway = await sign_in("executor"), await sign_in("gateway")
    await declare_streams(executor)
    subject = frames_subject("gateway", uuid4())
    for seq in range(1, 4):
        await executor.nc.jetstream().publish(subject, str(seq).encode())
    view = await gateway.nc.jetstream().subscribe(subject, stream=FRAMES_STREAM.name, ordered_consumer=True)
    assert [(await view.next_msg(timeout=PATIENCE_S)).data for _ in range(3)] == [b"1", b"2", b"3"]
    await view.unsubscribe()
    assert await gateway.refusals() == []


async def test_the_observer_hears_everything_and_says_nothing(sign_in: SignIn) -> None:
    observer = await sign_in(OBSERVER)
    assert await observer.may_subscribe(">")
    assert not await observer.may_publish(EXECUTION_RUN.subject)


@pytest.mark.parametrize("options", [{}, {"user": "executor", "pass": "wrong"}, {"user": "nobody", "pass": "x"}])
async def test_nobody_gets_in_without_a_password(own_nats: Nats, options: dict[str, str]) -> None:
    # Spoken by hand: the client library leaves its socket open when the first connection is refused.
    reader, writer = await asyncio.open_connection("127.0.0.1", own_nats.port)
    async with asyncio.timeout(PATIENCE_S):
        await reader.readline()
        writer.write(f"CONNECT {json.dumps({'verbose': True, **options})}\r\nPING\r\n".encode())
        assert b"Authorization Violation" in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_request_that_nobody_serves_fails_at_once(sign_in: SignIn) -> None:
    gateway = await sign_in("gateway")
    with pytest.raises(NoRespondersError):
        await gateway.nc.request(KEYS_CONNECT.subject, b"{}", timeout=PATIENCE_S)
