"""Nonsense on every subject of the registry, from users who may speak there: each gets a typed error that repeats nothing,
and whoever listens lives on. The services cannot trust each other to be of the same version, let alone without a bug.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts.catalog import MAX_INPUT_BYTES
from contracts.document import channel_id
from contracts.errors import ErrorBody, ErrorCode
from contracts.permissions import inbox_prefix
from contracts.subjects import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    EVENTS,
    EXECUTION_GET,
    EXECUTION_RUN,
    FRAMES,
    PUBLISHER,
    RPCS,
    TIMEOUT_HEADER,
    TRACE_HEADER,
    Event,
    Rpc,
    as_publisher,
    frames_subject,
)
from deploy.local.stack import PUBLISHER as PUBLISHER_NAME
from deploy.local.stack import Stack
from tests.contract.test_examples import FOLDER
from tests.e2e.client import KEY_PATH, Person, connected, good, text_of
from tests.waiting import PATIENCE_S, until

SECRET = "do-not-repeat-me"
OUR_FAULT = {ErrorCode.INTERNAL, ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE}

NONSENSE = {
    "nothing": b"",
    "garbage": f"{{{SECRET}".encode(),
    "not-utf8": b"\xff\xfe{\x00}",
    "a-list": json.dumps([SECRET]).encode(),
    "a-string": json.dumps(SECRET).encode(),
    "null": b"null",
    "number": b"1e999",
    "half": b'{"owner": "',
    "nested": b'{"a":' * 20_000,
    "a-megabyte": b"x" * 1024 * 1024,
}
NO_DEADLINE = ["soon", "-5", "1e9", "", "9" * 30, "9" * 400, "9" * 5000, "²", "0x10"]

SignIn = Callable[[str], Awaitable[Client]]
AnyRpc = Rpc[Any, Any]


@pytest_asyncio.fixture
async def sign_in(stack: Stack) -> AsyncIterator[SignIn]:
    """A plain connection of one user of the stack: `gateway = await sign_in("gateway")`."""
    async with AsyncExitStack() as connections:

        async def enter(user: str) -> Client:
            connection = await nats.connect(
                stack.nats.url,
                user=user,
                password=stack.credentials.nats_password(user),
                inbox_prefix=inbox_prefix(user),
                allow_reconnect=False,
            )
            connections.push_async_callback(connection.close)
            return connection

        yield enter


@pytest_asyncio.fixture
async def person(stack: Stack) -> AsyncIterator[Person]:
    async with connected(stack, "reader") as reader:
        yield reader


async def caller_of(rpc: AnyRpc, sign_in: SignIn) -> tuple[Client, str]:
    """Somebody who may ask this, and the subject that they ask it on."""
    name = PUBLISHER_NAME if rpc.callers[0] == PUBLISHER else rpc.callers[0]
    return await sign_in(name), as_publisher(rpc.subject, name)


def golden(rpc: AnyRpc) -> bytes:
    """A request of the kind that is made by hand for the contracts; nobody in this stack owns what it names."""
    return (FOLDER / channel_id(rpc) / "request.json").read_bytes()


def error_in(message: Msg) -> ErrorBody:
    """The typed error of a reply, which says the same in its headers and repeats nothing of the request."""
    assert message.headers is not None, message.data[:500]
    body = ErrorBody.model_validate_json(message.data)
    assert message.headers[ERROR_CODE_HEADER] == body.code.value
    assert message.headers[ERROR_HEADER]
    assert body.message
    assert SECRET not in message.data.decode() + json.dumps(message.headers)
    return body


async def is_served(rpc: AnyRpc, client: Client, subject: str, **arguments: Any) -> None:
    """A proper request is answered, by a reply or by an error that is about what it says."""
    reply = await client.request(subject, golden(rpc), timeout=PATIENCE_S, **arguments)
    if reply.headers:
        assert error_in(reply).code not in OUR_FAULT, reply.data
    else:
        rpc.adapter.validate_json(reply.data)


def wrong_types(rpc: AnyRpc) -> list[bytes]:
    """For every field of the request, one that holds what it cannot hold."""
    good_one = json.loads(golden(rpc))
    return [json.dumps({**good_one, name: [[SECRET]]}).encode() for name in rpc.request.model_fields]


@pytest.mark.parametrize("rpc", RPCS, ids=[rpc.name for rpc in RPCS])
async def test_nonsense_is_answered_with_a_typed_error_and_the_next_request_is_served(
    sign_in: SignIn, rpc: AnyRpc
) -> None:
    client, subject = await caller_of(rpc, sign_in)
    for name, payload in NONSENSE.items():
        await client.publish(subject, payload)  # nobody waits for this one
        error = error_in(await client.request(subject, payload, timeout=PATIENCE_S))
        assert error.code is ErrorCode.INVALID, (name, error)
    for payload in wrong_types(rpc):
        error = error_in(await client.request(subject, payload, timeout=PATIENCE_S))
        assert error.code is ErrorCode.INVALID, (payload, error)
        assert error.fields
    # Several at once, so that every member of the queue group is asked.
    await asyncio.gather(*(is_served(rpc, client, subject) for _ in range(4)))


@pytest.mark.parametrize("rpc", RPCS, ids=[rpc.name for rpc in RPCS])
async def test_nonsense_in_headers_does_no_harm(sign_in: SignIn, rpc: AnyRpc) -> None:
    client, subject = await caller_of(rpc, sign_in)
    headers = [{TIMEOUT_HEADER: value} for value in NO_DEADLINE]
    headers += [{TRACE_HEADER: "nonsense"}, {"Nats-Expected-Stream": "none"}, {"X-Large": "y" * 4000}]
    for each in headers if rpc.timeout_s <= 20 or PUBLISHER in rpc.callers else headers[:3]:
        await is_served(rpc, client, subject, headers=each)


async def test_an_impossible_deadline_is_answered_in_time(sign_in: SignIn) -> None:
    client = await sign_in("gateway")
    reply = await client.request(
        EXECUTION_RUN.subject, golden(EXECUTION_RUN), headers={TIMEOUT_HEADER: "1"}, timeout=PATIENCE_S
    )
    assert error_in(reply).code in {ErrorCode.TIMEOUT, ErrorCode.NOT_FOUND}


async def test_an_input_over_the_limit_is_refused(sign_in: SignIn, person: Person) -> None:
    resource = await person.publish()
    gateway = await sign_in("gateway")
    execute = {
        "execution_id": str(uuid4()),
        "resource": resource["id"],
        "input": {"text": "x" * MAX_INPUT_BYTES},
        "caller": {"kind": "user", "id": person.name},
    }
    error = error_in(await gateway.request(EXECUTION_RUN.subject, json.dumps(execute).encode(), timeout=PATIENCE_S))
    assert (error.code, error.fields[0].path) == (ErrorCode.INVALID, "input")
    known = {"execution_id": execute["execution_id"], "caller": execute["caller"]}
    error = error_in(await gateway.request(EXECUTION_GET.subject, json.dumps(known).encode(), timeout=PATIENCE_S))
    assert error.code is ErrorCode.NOT_FOUND, "nothing was written"
    assert await person.upstream_calls() == []


# Events ---------------------------------------------------------------------------------------------------------------


def said_by(event: Event[Any]) -> str:
    return event.subject.replace("*", PUBLISHER_NAME)


async def test_listeners_of_events_live_through_nonsense(sign_in: SignIn, person: Person) -> None:
    resource, long = await person.publish(), await person.publish(model="sandbox/long")
    assert (await person.result(resource["id"]))["resource_version"] == 1
    for event in EVENTS:
        if event is not FRAMES:
            owner = await sign_in(event.owner)
            for payload in (*NONSENSE.values(), b"{}", json.dumps({"owner": [SECRET]}).encode()):
                await owner.publish(said_by(event), payload)
            await owner.flush()

    async def new_version() -> bool:
        results = await asyncio.gather(*(person.result(resource["id"]) for _ in range(4)))
        return {result["resource_version"] for result in results} == {2}

    good(await person.http.patch(f"/api/resources/{resource['id']}", json={"description": "Changed."}))
    # After ten seconds executors forget by themselves; `test_executor_runs` shows that they do not wait for that.
    await until(new_version)

    for _ in range(4):
        execution_id = await person.enqueue(long["id"])
        view = await person.post(f"/api/executions/{execution_id}/cancel")
        assert view["status"] == "canceled"

    async def key_missing() -> bool:
        answers = await asyncio.gather(*(person.execute(resource["id"]) for _ in range(4)))
        return {answer.json().get("code") for answer in answers} == {"key_missing"}

    good(await person.http.delete(KEY_PATH))
    await until(key_missing)


async def test_a_view_lives_through_frames_that_are_none(sign_in: SignIn, person: Person) -> None:
    resource = await person.publish(model="sandbox/long", config={"max_tokens": 100})
    executor = await sign_in("executor")
    frames = [b'{"seq": "one"}', b'{"seq": 2, "type": 7, "data": {}}', b'{"seq": 99999, "type": "text", "data": []}']
    async with person.streaming(resource["id"]) as (_, events):
        first = await anext(events)
        for payload in (*NONSENSE.values(), *frames):
            await executor.publish(frames_subject("gateway", first.data["execution_id"]), payload)
        await executor.flush()
        rest = [event async for event in events]
    assert [event.seq for event in rest] == list(range(2, len(rest) + 2))
    assert rest[-1].kind == "completed"
    assert text_of(rest) == rest[-1].data["text"]
