"""What happens to runs when a part of the system is killed under them: it is on a stack of its own, where every test leaves all
parts running again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import nats
import pytest_asyncio
from nats.aio.client import Client

from contracts.subjects import AS_GET, AS_SUBMIT, Job, Rpc, as_publisher
from deploy.local.stack import DATABASE, PUBLISHER, Stack
from tests.conftest import StackFactory
from tests.e2e.client import (
    LONG,
    Event,
    Person,
    at_gateway,
    checked,
    connected,
    problem,
    publisher,
    read_events,
    read_text,
    settled,
)
from tests.waiting import PATIENCE_S, until

# A run whose executor was killed is ended by another one within half a minute.
ENDED_S = 90


@pytest_asyncio.fixture(scope="module")
async def mortal(stack_factory: StackFactory) -> AsyncIterator[Stack]:
    """A stack whose parts may be killed: three executors, two gateways, and keys that run many at once."""
    settings = {"executor": {"RUNNING_PER_KEY": "20"}}
    async with stack_factory(executors=3, gateways=2, settings=settings) as running:
        yield running


class Streams:
    """Streamed runs in flight."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[list[Event]]] = []

    async def begin(self, person: Person, resource: str) -> str:
        """The execution id of a stream of which some text has come; the stream goes on in `tasks`."""
        seen: list[Event] = []
        task = asyncio.create_task(self._read(person, resource, seen))
        self.tasks.append(task)

        async def text() -> bool:
            if task.done():
                task.result()
            return any(event.kind == "text" for event in seen)

        await until(text)
        execution_id: str = seen[0].data["execution_id"]
        return execution_id

    async def _read(self, person: Person, resource: str, seen: list[Event]) -> list[Event]:
        body = {"resource": resource, "input": {"text": "hello"}, "stream": True}
        async with person.http.stream("POST", "/api/execute", json=body, timeout=ENDED_S) as answer:
            assert answer.status_code == 200
            async for event in read_events(answer):
                seen.append(event)  # noqa: PERF401 - whoever waits for text looks at what has come so far
        return checked(seen)

    async def ended(self, timeout_s: float) -> list[list[Event]]:
        """All events of all streams, in the order in which they were begun."""
        return await asyncio.wait_for(asyncio.gather(*self.tasks), timeout_s)


async def row(stack: Stack, sql: str, *values: object) -> Any:
    """One value out of the database, as its superuser."""
    connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
    try:
        return await connection.fetchval(sql, *values)
    finally:
        await connection.close()


async def executor_of(stack: Stack, execution_id: str) -> str:
    found: str = await row(stack, "SELECT executor FROM executor.executions WHERE id = $1", execution_id)
    return found


async def works(person: Person, resource: str) -> None:
    """A new call is served, stream and plain."""
    assert (await person.result(resource))["status"] == "succeeded"
    assert (await person.stream(resource))[-1].kind == "completed"


async def test_kill_9_of_the_bus_in_the_middle_of_runs_and_every_caller_gets_the_end(mortal: Stack) -> None:
    async with connected(mortal, "reader") as person, at_gateway(person, 1) as elsewhere, publisher(mortal) as service:
        resource, quick = await person.publish(model="sandbox/long"), await person.publish()
        brief = await person.publish(model="sandbox/long", config={"max_tokens": 60})
        streams = Streams()
        plain = asyncio.create_task(person.result(resource["id"]))
        ids = [await streams.begin(each, resource["id"]) for each in (person, elsewhere)]
        ids += [await streams.begin(person, brief["id"])]
        job = {"execution_id": str(uuid4()), "resource": quick["id"], "input": {"text": "handed over"}}
        acknowledged = await ask(service, AS_SUBMIT, job)
        assert acknowledged["seq"] >= 1

        await mortal.nats.kill()
        await until(lambda: over(mortal, ids[2]))  # its end is said while nobody can hear it
        await mortal.nats.start()

        *longs, short = await streams.ended(ENDED_S)
        for events in longs:
            assert (events[-1].kind, events[-1].data["text"], read_text(events)) == ("completed", LONG, LONG)
        assert (await asyncio.wait_for(plain, ENDED_S))["text"] == LONG
        whole = (await person.execution(ids[2]))["result"]["text"]
        assert len(whole) > len("word000 ") * 10
        assert (short[-1].kind, short[-1].data["text"], read_text(short)) == ("completed", whole, whole)
        for execution_id, text in zip(ids, (LONG, LONG, whole), strict=True):
            later = await elsewhere.events(execution_id)
            assert later[-1].data["text"] == read_text(later) == text
            assert (await person.execution(execution_id))["receipt"]["revision"] == 1
        assert await until(lambda: done(service, job["execution_id"])), "what was acknowledged is done"
        await works(person, quick["id"])


async def ask(service: Client, what: Rpc[Any, Any] | Job[Any], body: dict[str, Any]) -> dict[str, Any]:
    reply = await service.request(as_publisher(what.subject, PUBLISHER), json.dumps(body).encode(), timeout=PATIENCE_S)
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def done(service: Client, execution_id: str) -> bool:
    with suppress(nats.errors.Error):
        return bool((await ask(service, AS_GET, {"execution_id": execution_id})).get("status") == "succeeded")
    return False


async def over(stack: Stack, execution_id: str) -> bool:
    found = await row(stack, "SELECT finished_at IS NOT NULL FROM executor.executions WHERE id = $1", execution_id)
    return bool(found)


async def test_kill_9_of_the_database_in_the_middle_of_a_run_and_it_still_ends_with_a_receipt(mortal: Stack) -> None:
    async with connected(mortal, "reader") as person:
        resource = await person.publish(model="sandbox/long")
        streams = Streams()
        execution_id = await streams.begin(person, resource["id"])
        await mortal.postgres.kill()
        refused = problem(await person.execute(resource["id"]), 503, "unavailable")
        assert refused["retryable"]
        await mortal.postgres.start()
        (events,) = await streams.ended(ENDED_S)
        assert (events[-1].kind, read_text(events)) == ("completed", LONG)
        view = await until(lambda: readable(person, execution_id))
        assert (view["status"], view["receipt"]["revision"]) == ("succeeded", 1)
        assert view["receipt"]["cost"]["status"] == "final"
        (call,) = [call for call in await person.upstream_calls() if call["state"] == "completed"]
        assert Decimal(view["receipt"]["cost"]["model_usd"]) == Decimal(call["cost"])
        await works(person, (await person.publish())["id"])


async def readable(person: Person, execution_id: str) -> dict[str, Any] | None:
    """The run, once pools have found the database again."""
    answer = await person.http.get(f"/api/executions/{execution_id}")
    view: dict[str, Any] = answer.json()
    return view if answer.status_code == 200 and view["receipt"] else None


async def test_kill_9_of_an_executor_interrupts_its_runs_and_sigterm_lets_them_finish(mortal: Stack) -> None:
    async with connected(mortal, "reader") as person:
        resource, quick = await person.publish(model="sandbox/long"), await person.publish()
        streams = Streams()
        placed: dict[str, list[int]] = {}
        while len(placed) < 2:
            # The server gives requests to whom it likes: ask until two executors have one.
            assert len(streams.tasks) < 12, "all of them went to one executor"
            execution_id = await streams.begin(person, resource["id"])
            placed.setdefault(await executor_of(mortal, execution_id), []).append(len(streams.tasks) - 1)
        (killed, lost), (stopped, kept) = list(placed.items())[:2]
        await mortal.parts[killed].kill()
        stopping = asyncio.create_task(mortal.parts[stopped].child.stop(grace_s=20))

        # The third one serves whoever comes now, for the same creator.
        await works(person, quick["id"])
        for index in kept:
            events = await asyncio.wait_for(streams.tasks[index], ENDED_S)
            assert (events[-1].kind, read_text(events)) == ("completed", LONG)
        await stopping
        assert mortal.parts[stopped].child.exit_code == 0
        await asyncio.gather(mortal.parts[stopped].start(), mortal.parts[killed].start())

        for index in lost:
            events = await asyncio.wait_for(streams.tasks[index], ENDED_S)
            last = events[-1]
            assert (last.kind, last.data["code"], last.data["retryable"]) == ("failed", "unavailable", True)
            view = await person.execution(last.data["execution_id"])
            assert (view["status"], view["receipt"]["status"]) == ("interrupted", "interrupted")
            known = await settled(person, view["execution_id"])
            assert Decimal(known["cost"]["model_usd"]) > 0, "what upstream had billed until then"
            assert known["cost"]["price_usd"] == "0", "which the caller does not owe"
        running = await row(mortal, "SELECT count(*) FROM executor.executions WHERE status = 'running'")
        assert running == 0, "its slots are free: they are these rows"


async def test_kill_9_of_executors_and_bus_in_the_middle_of_a_workflow_and_each_step_is_paid_once(
    mortal: Stack,
) -> None:
    executors = [name for name in mortal.parts if name.startswith("executor")]
    async with connected(mortal, "reader") as person:
        long, quick = await person.publish(model="sandbox/long"), await person.publish()
        steps = [
            {"name": "first", "resource": quick["id"], "input": {"text": "once"}},
            {"name": "long", "resource": long["id"], "input": {"text": "{{steps.first.text}}"}},
            {
                "name": "last",
                "resource": quick["id"],
                "input": {"text": "{{steps.first.text}} more"},
                "depends_on": ["long"],
            },
        ]
        accepted = await person.http.post("/api/workflows", json={"steps": steps})
        path = f"/api/workflows/{accepted.json()['workflow_id']}"

        opened = asyncio.Event()

        async def follow() -> list[Event]:
            async with person.http.stream("GET", f"{path}/events", timeout=ENDED_S) as answer:
                opened.set()
                return checked([event async for event in read_events(answer)])

        following = asyncio.create_task(follow())
        await opened.wait()

        async def long_is_called() -> bool:
            return len(await person.upstream_calls()) == 2

        await until(long_is_called)
        await asyncio.gather(mortal.nats.kill(), *(mortal.parts[name].kill() for name in executors))
        # As if 15 seconds had passed: the leases of the dead run out.
        await row(
            mortal, "UPDATE executor.executions SET lease_until = now() - interval '1 hour' WHERE status = 'running'"
        )
        await mortal.nats.start()
        await asyncio.gather(*(mortal.parts[name].start() for name in executors))

        events = await asyncio.wait_for(following, ENDED_S)
        view = await person.get(path)
        assert (events[-1].kind, events[-1].data) == ("completed", view)
        assert [each["status"] for each in view["steps"]] == ["succeeded"] * 3
        runs = [[each["status"] for each in one["attempts"]] for one in view["steps"]]
        assert runs == [["succeeded"], ["interrupted", "succeeded"], ["succeeded"]]
        assert view["cost"]["price_usd"] == "0.03", "what was interrupted is not owed"
        calls = [(call["requested"], call["state"]) for call in await person.upstream_calls()]
        assert calls == [
            ("sandbox/echo", "completed"),
            ("sandbox/long", "cancelled"),
            ("sandbox/long", "completed"),
            ("sandbox/echo", "completed"),
        ]


async def test_parts_are_restarted_one_after_another_and_the_next_calls_work(mortal: Stack) -> None:
    async with connected(mortal, "reader") as person, at_gateway(person, 1) as elsewhere:
        resource = await person.publish()
        for name in ("keys", "catalog", "gateway", "gateway-2"):
            await mortal.parts[name].stop()
            assert mortal.parts[name].child.exit_code == 0, name
            await mortal.parts[name].start()
        await asyncio.gather(works(person, resource["id"]), works(elsewhere, resource["id"]))
        async with connected(mortal, "newcomer", gateway=1) as newcomer:
            await works(newcomer, (await newcomer.publish())["id"])
