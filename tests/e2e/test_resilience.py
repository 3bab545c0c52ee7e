"""What happens to runs when somebody comes back, when somebody leaves, and when too many come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from deploy.local.stack import Stack
from deploy.sandbox.ledger import hash_key
from tests.e2e.client import (
    LONG,
    Event,
    Person,
    at_gateway,
    checked,
    connected,
    ledger,
    problem,
    read_text,
    settled,
    text_of,
)
from tests.waiting import until


async def some_text(events: AsyncIterator[Event], pieces: int = 5) -> list[Event]:
    """The events up to a piece of text."""
    read: list[Event] = []
    async for event in events:
        read.append(event)
        if sum(one.kind == "text" for one in read) >= pieces:
            return read
    raise AssertionError(f"the stream ended after {[event.kind for event in read]}")


# Coming back ----------------------------------------------------------------------------------------------------------


async def test_a_stream_with_a_key_goes_on_at_another_gateway_where_it_was_cut(stack: Stack) -> None:
    async with connected(stack, "reader") as person, at_gateway(person, 1) as elsewhere:
        resource = await person.publish(model="sandbox/long")
        key = {"Idempotency-Key": uuid4().hex}
        async with person.streaming(resource["id"], headers=key) as (_, events):
            seen = await some_text(events)
        execution_id = seen[0].data["execution_id"]

        rest, same = await asyncio.gather(
            elsewhere.events(execution_id, after=seen[-1].seq),
            elsewhere.result(resource["id"], headers=key),
        )
        whole = checked([*seen, *rest])
        assert [event.seq for event in whole] == list(range(1, len(whole) + 1)), "every frame once, in order"
        assert {event.kind for event in rest} == {"text", "completed"}, "nothing had to be replaced"
        assert text_of(whole) == whole[-1].data["text"] == LONG

        again = await person.stream(resource["id"], headers=key)
        assert same["execution_id"] == again[-1].data["execution_id"] == execution_id
        assert same["text"] == read_text(again) == LONG
        assert await elsewhere.events(execution_id, after=whole[-1].seq) == []
        (call,) = await person.upstream_calls()
        assert call["state"] == "completed"


# Leaving --------------------------------------------------------------------------------------------------------------


async def leave(person: Person, model: str, *, stream: bool, pieces: int = 0) -> dict[str, Any]:
    """Starts a run, leaves while it goes on, and checks that upstream heard of it. The ended run."""
    resource = await person.publish(model=model)
    if stream:
        async with person.streaming(resource["id"]) as (_, events):
            assert (await anext(events)).kind == "started"
            if pieces:
                await some_text(events, pieces)
            await until(person.upstream_calls)
    else:
        call = asyncio.create_task(person.execute(resource["id"]))
        await until(person.upstream_calls)
        await asyncio.sleep(0.2)  # answers that begin at once have begun
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    async def cancelled() -> list[dict[str, Any]]:
        return [call for call in await person.upstream_calls() if call["state"] == "cancelled"]

    await until(cancelled)
    (listed,) = (await person.get("/api/executions"))["items"]
    ended = await person.ended(listed["execution_id"])
    assert ended["status"] == "canceled"
    return ended


async def test_leaving_a_stream_in_the_middle_cancels_and_its_true_cost_is_looked_up(stack: Stack) -> None:
    async with connected(stack, "reader") as person:
        ended = await leave(person, "sandbox/long", stream=True, pieces=5)
        assert 0 < len(ended["result"]["text"]) < len(LONG)
        assert ended["result"]["truncated"]
        view = await settled(person, ended["execution_id"])
        (call,) = await person.upstream_calls()
        assert Decimal(view["cost"]["model_usd"]) == Decimal(call["cost"]) > 0
        assert view["cost"]["price_usd"] == "0.01", "due: there was text"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("model", ["sandbox/slow", "sandbox/silence-no-headers"])
async def test_leaving_before_the_first_token_cancels_and_costs_the_caller_nothing(
    stack: Stack, model: str, stream: bool
) -> None:
    async with connected(stack, "reader") as person:
        ended = await leave(person, model, stream=stream)
        assert ended["result"]["text"] == ""
        assert ended["cost"]["price_usd"] == "0"
        if model == "sandbox/slow":
            ended = await settled(person, ended["execution_id"])
            assert ended["cost"]["price_usd"] == "0"
        else:
            # Upstream had not even said which generation it is, so nobody can ask what it cost.
            assert (ended["cost"]["status"], ended["cost"]["model_usd"]) == ("unknown", None)


async def test_leaving_a_plain_call_in_the_middle_cancels(stack: Stack) -> None:
    async with connected(stack, "reader") as person:
        ended = await leave(person, "sandbox/long", stream=False)
        assert 0 < len(ended["result"]["text"]) < len(LONG)
        assert Decimal((await settled(person, ended["execution_id"]))["cost"]["model_usd"]) > 0


async def test_leaving_with_on_disconnect_continue_lets_the_run_finish(stack: Stack) -> None:
    async with connected(stack, "reader") as person:
        resource = await person.publish(model="sandbox/long", config={"max_tokens": 60})
        async with person.streaming(resource["id"], on_disconnect="continue") as (_, events):
            seen = await some_text(events, 2)
        ended = await person.ended(seen[0].data["execution_id"])
        assert ended["status"] == "succeeded"
        assert ended["result"]["text"].startswith(text_of(seen))
        (call,) = await person.upstream_calls()
        assert call["state"] == "completed"


# Crowds ---------------------------------------------------------------------------------------------------------------


async def test_a_key_never_runs_more_than_five_however_many_ask_at_once(stack: Stack) -> None:
    async with connected(stack, "popular") as person, at_gateway(person, 1) as elsewhere:
        assert person.key is not None
        resource = await person.publish(model="sandbox/long", config={"max_tokens": 60})
        answers = await asyncio.gather(
            *(each.execute(resource["id"]) for _ in range(15) for each in (person, elsewhere)),
        )
        served = [answer for answer in answers if answer.status_code == 200]
        refused = [problem(answer, 429, "overloaded") for answer in answers if answer.status_code != 200]
        assert len(served) > 5, "some waited for a slot and got it"
        assert refused
        assert {(body["scope"], body["retryable"]) for body in refused} == {("key", True)}
        assert (await ledger(stack))["max_running"][hash_key(person.key)] == 5
        assert len(await person.upstream_calls()) == len(served)
        assert (await person.result(resource["id"]))["status"] == "succeeded", "the slots are free again"
