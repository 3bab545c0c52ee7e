"""What a user of the HTTP interface does, as functions: sign in, connect a key, publish a resource, execute it, follow it.

Every test takes users of its own (`connect(stack, "alice")` makes one with a random name), so that tests share a stack
without seeing each other. Problems are asserted to be proper problems on the way through `problem`.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import httpx
import nats
from nats.aio.client import Client

from deploy.local.stack import DATABASE, PUBLISHER, Stack
from deploy.sandbox.ledger import hash_key
from tests.waiting import until

Found = TypeVar("Found")

TIMEOUT_S = 60
KEY_PATH = "/api/integrations/openrouter"
MARK = "zq-mark-7741"
_TABLES = (
    "catalog.x402_resources",
    "catalog.x402_resource_versions",
    "executor.executions",
    "keys.user_openrouter_integrations",
)
SANDBOX_PRICES = {"prompt": "0.0000001", "completion": "0.0000004"}
"""USD per token of every `sandbox/…` and `recorded/…` model."""


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    seq: int
    kind: str
    data: dict[str, Any]


@dataclass
class Person:
    """Somebody who is signed in at one gateway. `http` sends the token with every request."""

    name: str
    http: httpx.AsyncClient
    stack: Stack
    key: str | None = None

    # Requests -------------------------------------------------------------------------------------------------------

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET that must succeed."""
        return good(await self.http.get(path, params=params))

    async def post(self, path: str, body: Any = None) -> Any:
        """The JSON of a POST that must succeed."""
        return good(await self.http.post(path, json=body))

    # Resources ------------------------------------------------------------------------------------------------------

    async def create(self, **changes: Any) -> dict[str, Any]:
        """A new resource, a draft; see `draft` for what may change."""
        answer = await self.http.post("/api/resources", json=draft(**changes))
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def publish(self, **changes: Any) -> dict[str, Any]:
        """A new resource that everybody may execute."""
        created = await self.create(**changes)
        published: dict[str, Any] = await self.post(f"/api/resources/{created['id']}/publish")
        return published

    # Runs -----------------------------------------------------------------------------------------------------------

    async def execute(self, resource: str, *, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        """POST /api/execute. `input` is `{"text": "hello"}` unless given."""
        body = {"resource": resource, "input": {"text": "hello"}, **options}
        return await self.http.post("/api/execute", json=body, headers=headers or {})

    async def result(self, resource: str, **options: Any) -> dict[str, Any]:
        """The result of a run that must succeed."""
        result: dict[str, Any] = good(await self.execute(resource, **options))
        return result

    @asynccontextmanager
    async def streaming(
        self, resource: str, *, headers: dict[str, str] | None = None, **options: Any
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[Event]]]:
        """An open stream of a run and its events as they come; leaving the block closes the connection."""
        body = {"resource": resource, "input": {"text": "hello"}, "stream": True, **options}
        async with self.http.stream("POST", "/api/execute", json=body, headers=headers or {}) as answer:
            assert answer.status_code == 200, await answer.aread()
            yield answer, read_events(answer)

    async def stream(self, resource: str, *, headers: dict[str, str] | None = None, **options: Any) -> list[Event]:
        """All events of a streamed run, checked: numbered from 1 without gaps, exactly one terminal, and that last."""
        async with self.streaming(resource, headers=headers, **options) as (answer, events):
            assert answer.headers["content-type"].startswith("text/event-stream")
            return checked([event async for event in events])

    async def enqueue(self, resource: str, **options: Any) -> str:
        """The execution id of a run that was accepted with 202."""
        answer = await self.execute(resource, headers={"Prefer": "respond-async"}, **options)
        assert answer.status_code == 202, answer.text
        execution_id: str = answer.json()["execution_id"]
        assert answer.headers["location"] == f"/api/executions/{execution_id}"
        return execution_id

    async def events(self, execution_id: str, *, after: int | None = None) -> list[Event]:
        """The events of a run from behind number `after` to its end; none when the last one was seen already."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        async with self.http.stream("GET", f"/api/executions/{execution_id}/events", headers=headers) as answer:
            if answer.status_code == 204:
                return []
            assert answer.status_code == 200, await answer.aread()
            return checked([event async for event in read_events(answer)], first=(after or 0) + 1)

    async def execution(self, execution_id: str) -> dict[str, Any]:
        """The run as it is now."""
        view: dict[str, Any] = await self.get(f"/api/executions/{execution_id}")
        return view

    async def ended(self, execution_id: str) -> dict[str, Any]:
        """The run once it has ended."""

        async def look() -> dict[str, Any] | None:
            view = await self.execution(execution_id)
            return view if view["status"] not in {"queued", "running"} else None

        return await until(look)

    # The sandbox ----------------------------------------------------------------------------------------------------

    async def upstream_calls(self) -> list[dict[str, Any]]:
        """The generations that this person's key paid for, as the sandbox counted them."""
        assert self.key is not None
        return [call for call in (await ledger(self.stack))["calls"] if call["key"] == hash_key(self.key)]


# People ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def signed_in(
    stack: Stack, name: str, *, admin: bool = False, exact: bool = False, gateway: int = 0
) -> AsyncIterator[Person]:
    """Somebody with a token and no key. `exact` keeps the name as it is instead of making it unique."""
    user = name if exact else f"{name}-{uuid4().hex[:8]}"
    headers = {"Authorization": f"Bearer {stack.token(user, admin=admin)}"}
    async with httpx.AsyncClient(base_url=stack.gateway_urls[gateway], headers=headers, timeout=TIMEOUT_S) as http:
        yield Person(user, http, stack)


@asynccontextmanager
async def connected(stack: Stack, name: str, *, gateway: int = 0) -> AsyncIterator[Person]:
    """Somebody with a test key of their own connected."""
    async with signed_in(stack, name, gateway=gateway) as person:
        # Digits alone: the sandbox reads words in keys, and "dead" is one that hexadecimal digits can spell.
        person.key = f"sk-or-test-{uuid4().int}"
        good(await person.http.put(KEY_PATH, json={"api_key": person.key}))
        yield person


@asynccontextmanager
async def at_gateway(person: Person, gateway: int) -> AsyncIterator[Person]:
    """The same person at another gateway."""
    async with signed_in(person.stack, person.name, exact=True, gateway=gateway) as other:
        other.key = person.key
        yield other


# Resources ------------------------------------------------------------------------------------------------------------


def draft(model: str = "sandbox/echo", **changes: Any) -> dict[str, Any]:
    """A resource as posted: one text input `text` and the price 0.01. `config` adds to `openrouter_config`."""
    config = {"model_id": model, "prompt_template": "{{text}}", "max_tokens": 2000, **changes.pop("config", {})}
    return {
        "resource_type": "openrouter_instant",
        "name": "Echo",
        "slug": f"echo-{uuid4().hex[:12]}",
        "description": "Says what you say.",
        "openrouter_config": config,
        "inputs": [{"name": "text", "type": "text", "required": True, "max_length": 20_000}],
        "pricing": {"mode": "fixed", "price_usd": "0.01"},
        **changes,
    }


# Answers --------------------------------------------------------------------------------------------------------------


def good(answer: httpx.Response) -> Any:
    """The JSON of an answer that must be 200 or 201."""
    assert answer.status_code in {200, 201}, f"{answer.status_code}: {answer.text[:1000]}"
    return answer.json()


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem of an answer, checked to be a proper one with this status and code."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    check_problem(body, status, code)
    if body["status"] == 429:
        assert int(answer.headers["retry-after"]) >= 1
    return body


def check_problem(body: dict[str, Any], status: int, code: str) -> None:
    """RFC 9457 members, ours, and a sentence that a person can act on."""
    assert (body["status"], body["code"]) == (status, code), body
    assert body["type"] == f"urn:x402jobs:problem:{code}"
    assert body["title"]
    assert re.fullmatch(r"[A-Z`\"'].{14,}[.!)]", body["detail"], re.DOTALL), body["detail"]
    assert isinstance(body["retryable"], bool)


async def read_events(answer: httpx.Response) -> AsyncIterator[Event]:
    """The events of an open stream; comments are skipped."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if not line and fields:
            yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
    assert not fields, f"the stream ends in the middle of an event: {fields}"


def checked(events: Sequence[Event], first: int = 1) -> list[Event]:
    """The events of a whole stream: numbered without gaps, exactly one terminal, and that last.

    A `snapshot` stands for all frames before it, so that numbers may jump to it.
    """
    assert events, "the stream has no events"
    number = first
    for event in events:
        if event.kind == "snapshot":
            number = event.seq
        assert event.seq == number, [(event.seq, event.kind) for event in events]
        number += 1
    last = [event.kind in {"completed", "failed"} for event in events]
    assert last == [False] * (len(events) - 1) + [True], [(event.seq, event.kind) for event in events]
    return list(events)


def text_of(events: Sequence[Event]) -> str:
    """The text that the events deliver."""
    return "".join(event.data["text"] for event in events if event.kind in {"text", "snapshot"})


# Around it ------------------------------------------------------------------------------------------------------------


def sandbox_root(stack: Stack) -> str:
    """The address of the sandbox, without `/api/v1`."""
    url: str = json.loads((stack.directory / "stack.json").read_text())["sandbox_url"]
    return url.removesuffix("/api/v1")


async def ledger(stack: Stack) -> dict[str, Any]:
    """What the sandbox counted since it started."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as http:
        counted: dict[str, Any] = good(await http.get(f"{sandbox_root(stack)}/sandbox/calls"))
        return counted


@asynccontextmanager
async def publisher(stack: Stack) -> AsyncIterator[Client]:
    """The bus as the outside service `demo` has it, which finds its server again."""

    async def expected(_: Exception) -> None:
        """Being disconnected is what those tests are about that kill the server."""

    service = await nats.connect(
        stack.nats.url,
        user=PUBLISHER,
        password=stack.credentials.nats_password(PUBLISHER),
        inbox_prefix=f"_INBOX.{PUBLISHER}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
        error_cb=expected,
    )
    try:
        yield service
    finally:
        await service.close()


async def forget_cooldowns(stack: Stack) -> None:
    """Nothing rests any more, whatever upstream asked for."""
    connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
    try:
        await connection.execute("DELETE FROM executor.cooldowns")
    finally:
        await connection.close()


# Bad input ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def nothing_written(stack: Stack) -> AsyncIterator[None]:
    """No row appears or disappears, and the upstream hears nothing, while the block runs."""

    async def everything() -> tuple[list[int], int, int]:
        connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
        try:
            counts = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in _TABLES]
        finally:
            await connection.close()
        counted = await ledger(stack)
        return counts, len(counted["calls"]), len(counted["refused"])

    before = await everything()
    yield
    assert await everything() == before


def leaks_nothing(answer: httpx.Response) -> None:
    """The mark is nowhere in the answer, and neither is a trace of how we are built."""
    shown = f"{answer.headers} {answer.text}".lower()
    for word in (MARK, "traceback", "asyncpg", "pydantic", "postgres", "nats", "select ", "/services/"):
        assert word not in shown, answer.text


@contextmanager
def upstream_frozen(stack: Stack) -> Iterator[None]:
    """Upstream stands still: what has begun there is still under way at the end, however long it takes to look at that."""
    pid = stack.parts["sandbox"].child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


LONG = "".join(f"word{number:03d} " for number in range(200))
"""What `sandbox/long` says, in four seconds."""


def read_text(events: Sequence[Event]) -> str:
    """What somebody has read at the end: a snapshot replaces everything before it."""
    text = ""
    for event in events:
        if event.kind in {"text", "snapshot"}:
            text = event.data["text"] if event.kind == "snapshot" else text + event.data["text"]
    return text


async def settled(person: Person, execution_id: str) -> dict[str, Any]:
    """The run once its cost was looked up and is known: the second revision of its receipt says so too."""

    async def look() -> dict[str, Any] | None:
        view = await person.execution(execution_id)
        return view if view["receipt"]["revision"] == 2 and view["cost"]["status"] == "final" else None

    view = await until(look)
    assert view["cost"] == view["receipt"]["cost"]
    return view
