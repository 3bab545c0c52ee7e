"""Workflows on two executors: steps feed each other and are ordinary runs, whatever fails can be resumed, and nothing is called
twice."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from contracts.base import new_execution_id
from contracts.catalog import InputField, OpenRouterConfig
from contracts.errors import ErrorCode
from contracts.execution import Caller, Cost, PriceOnly
from contracts.keys import KeysChanged
from contracts.subjects import (
    KEYS_CHANGED,
    WORKFLOWS_CANCEL,
    WORKFLOWS_GET,
    WORKFLOWS_LIST,
    WORKFLOWS_RESUME,
    WORKFLOWS_RUN,
)
from contracts.workflows import (
    ENDED_WORKFLOW,
    GetWorkflow,
    ListWorkflows,
    RunWorkflow,
    StepView,
    WorkflowStep,
    WorkflowView,
)
from services.executor import keeper, main, workflow_runs
from services.runtime.service import Service
from tests.integration.executor_parts import ADA, BOB, EVE, House, executor_in
from tests.waiting import until


@pytest_asyncio.fixture(scope="module")
async def executors(whole_house: House) -> AsyncIterator[list[Service]]:
    """Two, who look for dead executors and for results to delete ten times a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "LEASE_S", 5.0)
        patch.setattr(keeper, "RENEW_EVERY_S", 0.1)
        patch.setattr(keeper, "_JANITOR_EVERY_S", 0.1)
        patch.setattr(workflow_runs, "_JANITOR_EVERY_S", 0.1)
        async with executor_in(whole_house) as first, executor_in(whole_house) as second:
            yield [first, second]


@pytest_asyncio.fixture
async def house(whole_house: House, executors: list[Service]) -> House:
    """Two executors, and no workflows yet."""
    await whole_house.clean()
    return whole_house


def step(name: str, resource: str, text: Any = "hello", **more: Any) -> WorkflowStep:
    return WorkflowStep(name=name, resource=resource, input={"text": text}, **more)


def request(*steps: WorkflowStep, caller: Caller = BOB, **more: Any) -> RunWorkflow:
    return RunWorkflow(**{"workflow_id": new_execution_id(), "caller": caller, "steps": list(steps), **more})


async def start(house: House, *steps: WorkflowStep, **more: Any) -> UUID:
    view = await house.gateway.call(WORKFLOWS_RUN, request(*steps, **more))
    assert view.status == "running"
    return view.workflow_id


async def look(house: House, workflow_id: UUID, caller: Caller = BOB) -> WorkflowView:
    return await house.gateway.call(WORKFLOWS_GET, GetWorkflow(workflow_id=workflow_id, caller=caller))


async def ended(house: House, workflow_id: UUID, caller: Caller = BOB) -> WorkflowView:
    """The workflow once it has ended."""

    async def there() -> WorkflowView | None:
        view = await look(house, workflow_id, caller)
        return view if view.status in ENDED_WORKFLOW else None

    view = await until(there)
    assert view is not None
    return view


async def resume(house: House, workflow_id: UUID) -> WorkflowView:
    return await house.gateway.call(WORKFLOWS_RESUME, GetWorkflow(workflow_id=workflow_id, caller=BOB))


def steps_of(view: WorkflowView) -> dict[str, StepView]:
    return {each.name: each for each in view.steps}


def statuses(view: WorkflowView) -> dict[str, str]:
    return {each.name: each.status for each in view.steps}


def short(tokens: int = 25) -> dict[str, Any]:
    """An answer that takes half a second."""
    return {"config": OpenRouterConfig(model_id="sandbox/long", prompt_template="{{text}}", max_tokens=tokens)}


async def until_step(house: House, workflow_id: UUID, name: str, status: str) -> StepView:
    async def there() -> StepView | None:
        found = steps_of(await look(house, workflow_id))[name]
        return found if found.status == status else None

    found = await until(there)
    assert found is not None
    return found


async def give_key_back(house: House, owner: str) -> None:
    house.other.keys[owner] = f"sk-or-test-{uuid4().int}"
    await house.keys.publish(KEYS_CHANGED, KeysChanged(owner=owner, version=3, change="connected"))
    await house.keys.nc.flush()


# Steps ----------------------------------------------------------------------------------------------------------------


async def test_steps_feed_each_other_and_each_has_its_receipt(house: House) -> None:
    echo = house.other.offer("sandbox/echo")
    workflow_id = await start(
        house,
        step("all", echo, "{{steps.first.text}} + {{ steps.second.outputs[0].text }} + {{input.n}} {{braces}}"),
        step("first", echo, "{{input.topic}}"),
        step("second", echo, "{{steps.first.text}}{{steps.first.text}}"),
        input={"topic": "{{steps.second.text}}", "n": 3},
    )
    view = await ended(house, workflow_id)
    assert statuses(view) == {"all": "succeeded", "first": "succeeded", "second": "succeeded"}
    by_name = steps_of(view)
    last = by_name["all"].result
    assert last is not None
    literal = "{{steps.second.text}}"
    assert last.text == f"{literal} + {literal}{literal} + 3 {{{{braces}}}}", "what somebody said is never a reference"
    assert by_name["first"].result is by_name["second"].result is None, "they stand with their runs"
    assert by_name["all"].depends_on == ["first", "second"]
    for each in view.steps:
        assert each.execution_id is not None
        run = await house.view(each.execution_id)
        assert (run.status, run.caller, run.cost) == ("succeeded", BOB, PriceOnly(price_usd=Decimal("0.01")))
        assert len(await house.receipts(each.execution_id)) == 1
    assert view.cost == PriceOnly(price_usd=Decimal("0.03"))
    assert len(await house.calls()) == 3


async def test_progress_is_told_in_numbered_frames(house: House) -> None:
    echo = house.other.offer("sandbox/echo")
    workflow_id = await start(house, step("a", echo), step("b", echo, "{{steps.a.text}} again"))
    completed = await house.until_frame(workflow_id, "completed")
    frames = house.frames[workflow_id]
    assert [frame["seq"] for frame in frames] == [1, 2, 3, 4, 5]
    said = [(frame["data"]["step"], frame["data"]["status"]) for frame in frames[:-1]]
    assert said == [("a", "running"), ("a", "succeeded"), ("b", "running"), ("b", "succeeded")]
    view = await look(house, workflow_id)
    assert WorkflowView.model_validate(completed["data"]) == view
    assert view.last_seq == 5
    result = steps_of(view)["b"].result
    assert result is not None
    assert result.text == "hello again"
    assert frames[2]["data"]["execution_id"] == str(result.execution_id)


async def test_a_creator_sees_what_the_steps_cost(house: House) -> None:
    echo = house.other.offer("sandbox/echo")
    workflow_id = await start(house, step("a", echo), step("b", echo), caller=ADA)
    view = await ended(house, workflow_id, ADA)
    assert isinstance(view.cost, Cost)
    receipts = [(await house.receipt(each.execution_id)).cost for each in view.steps if each.execution_id]
    assert view.cost.model_usd == sum(cost.model_usd for cost in receipts if cost.model_usd is not None) > 0
    assert (view.cost.price_usd, view.cost.status) == (Decimal("0.02"), "final")


async def test_steps_that_do_not_wait_for_each_other_run_side_by_side(house: House) -> None:
    slow = house.other.offer("sandbox/long", **short())
    workflow_id = await start(
        house, *(step(name, slow) for name in ("a", "b", "c")), step("d", slow, depends_on=["a", "b", "c"])
    )
    assert (await ended(house, workflow_id)).status == "succeeded"
    *side_by_side, last = await house.calls("completed")
    assert max(call["started_at"] for call in side_by_side) < min(call["ended_at"] for call in side_by_side)
    assert last["started_at"] >= max(call["ended_at"] for call in side_by_side)


async def test_an_image_goes_on_by_its_url(house: House) -> None:
    config = OpenRouterConfig(model_id="sandbox/image", prompt_template="{{text}}", modalities=["image", "text"])
    echo = house.other.offer("sandbox/echo")
    workflow_id = await start(
        house,
        step("picture", house.other.offer("sandbox/image", config=config), "a red circle"),
        step("where", echo, "{{steps.picture.image}}"),
        step("kind", echo, "It is {{steps.picture.outputs[0].mime_type}}."),
        step("none", echo, "{{steps.picture.video}}"),
    )
    view = await ended(house, workflow_id)
    by_name = steps_of(view)
    assert view.status == "failed"
    where, kind = by_name["where"].result, by_name["kind"].result
    assert where is not None
    assert kind is not None
    assert "/media/" in where.text
    assert where.text.endswith(".png")
    assert kind.text == "It is image/png."
    error = by_name["none"].error
    assert error is not None
    assert (error.code, error.message) == (
        ErrorCode.INVALID,
        "The step `picture` succeeded, but there is no video among its outputs.",
    )


async def test_what_steps_said_may_be_too_much_for_the_next_one(house: House) -> None:
    echo = house.other.offer("sandbox/echo", inputs=[InputField(name="text", max_length=None)])
    workflow_id = await start(
        house, step("much", echo, "x" * 600_000), step("more", echo, "{{steps.much.text}}{{steps.much.text}}")
    )
    view = await ended(house, workflow_id)
    error = steps_of(view)["more"].error
    assert error is not None
    assert error.code is ErrorCode.INVALID
    assert "larger than 1 MiB" in error.message
    assert steps_of(view)["more"].execution_id is None, "it never became a run"
    assert view.error is not None
    assert "`more`" in view.error.message


async def test_many_workflows_on_two_executors_call_each_step_once(house: House) -> None:
    echo = house.other.offer("sandbox/fast")
    made = await asyncio.gather(
        *(
            start(
                house,
                step("a", echo),
                step("b", echo, "{{steps.a.text}}"),
                step("c", echo),
                step("d", echo, "{{steps.b.text}}"),
            )
            for _ in range(8)
        )
    )
    views = await asyncio.gather(*(ended(house, workflow_id) for workflow_id in made))
    assert {view.status for view in views} == {"succeeded"}
    assert len(await house.calls()) == 4 * len(made)
    assert await house.database.fetchval("SELECT count(*) FROM executor.executions") == 4 * len(made)
    assert all(len(each.attempts) == 1 for view in views for each in view.steps)
    for workflow_id in made:
        await house.until_frame(workflow_id, "completed")
        assert [frame["seq"] for frame in house.frames[workflow_id]] == list(range(1, 10))


# Failing, resuming, canceling -----------------------------------------------------------------------------------------


async def test_a_failed_step_stops_what_waits_for_it_and_nothing_else(house: House) -> None:
    echo, bad = house.other.offer("sandbox/echo"), house.other.offer("sandbox/status-400")
    workflow_id = await start(
        house,
        step("bad", bad),
        step("after", echo, "{{steps.bad.text}}"),
        step("long_after", echo, depends_on=["after"]),
        step("free", echo),
        step("free_too", echo, "{{steps.free.text}}"),
    )
    view = await ended(house, workflow_id)
    assert view.status == "failed"
    assert statuses(view) == {
        "bad": "failed",
        "after": "skipped",
        "long_after": "skipped",
        "free": "succeeded",
        "free_too": "succeeded",
    }
    failed = await house.until_frame(workflow_id, "failed")
    assert view.error is not None
    assert failed["seq"] == view.last_seq == len(house.frames[workflow_id])
    assert failed["data"]["message"] == view.error.message
    assert view.error.execution_id == steps_of(view)["bad"].execution_id
    assert view.cost == PriceOnly(price_usd=Decimal("0.02"))


async def test_a_resume_pays_for_what_is_missing_alone(house: House) -> None:
    house.other.keys["gil"] = f"sk-or-test-{uuid4().int}"
    echo, of_gil = house.other.offer("sandbox/echo"), house.other.offer("sandbox/echo", owner="gil")
    slow = house.other.offer("sandbox/long", **short())
    workflow_id = await start(
        house, step("a", slow), step("b", of_gil, "{{steps.a.text}}"), step("c", echo, "{{steps.b.text}}!")
    )
    await house.take_key_away("gil")
    view = await ended(house, workflow_id)
    assert statuses(view) == {"a": "succeeded", "b": "failed", "c": "skipped"}
    assert view.error is not None
    assert view.error.code is ErrorCode.KEY_MISSING
    before, first_run = len(await house.calls()), steps_of(view)["a"].execution_id
    assert before == 1
    await give_key_back(house, "gil")
    again = await asyncio.gather(*(resume(house, workflow_id) for _ in range(3)))
    assert {each.workflow_id for each in again} == {workflow_id}, "sent more than once it is one resume"
    view = await ended(house, workflow_id)
    by_name = steps_of(view)
    assert view.status == "succeeded"
    assert (by_name["a"].execution_id, len(by_name["a"].attempts)) == (first_run, 1)
    assert [(each.number, each.status) for each in by_name["b"].attempts] == [(1, "failed"), (2, "succeeded")]
    assert len(await house.calls()) == before + 2
    await house.until_frame(workflow_id, "completed")
    seqs = [frame["seq"] for frame in house.frames[workflow_id]]
    assert seqs == list(range(1, view.last_seq + 1))
    assert 0 < view.begun_seq < view.last_seq
    assert (await house.refused(resume(house, workflow_id))).code is ErrorCode.CONFLICT


async def test_a_canceled_workflow_stops_its_runs_and_can_go_on(house: House) -> None:
    slow, echo = house.other.offer("sandbox/long", **short(75)), house.other.offer("sandbox/echo")
    workflow_id = await start(
        house, step("done", echo), step("a", slow, depends_on=["done"]), step("b", echo, "{{steps.a.text}}")
    )
    await until_step(house, workflow_id, "a", "running")
    await house.until_called()
    view = await house.gateway.call(WORKFLOWS_CANCEL, GetWorkflow(workflow_id=workflow_id, caller=BOB))
    assert (view.status, statuses(view)) == ("canceled", {"done": "succeeded", "a": "canceled", "b": "skipped"})
    assert (await house.until_frame(workflow_id, "completed"))["data"]["status"] == "canceled"
    assert [call["state"] for call in await house.calls()] == ["completed", "cancelled"]
    again = await house.gateway.call(WORKFLOWS_CANCEL, GetWorkflow(workflow_id=workflow_id, caller=BOB))
    assert again.status == "canceled"
    await resume(house, workflow_id)
    view = await ended(house, workflow_id)
    assert view.status == "succeeded"
    assert [each.status for each in steps_of(view)["a"].attempts] == ["canceled", "succeeded"]
    assert len(await house.calls()) == 4


async def test_a_step_that_its_caller_cancels_alone_stops_what_waits_for_it(house: House) -> None:
    slow, echo = house.other.offer("sandbox/long"), house.other.offer("sandbox/echo")
    workflow_id = await start(house, step("a", slow), step("b", echo, "{{steps.a.text}}"), step("c", echo))
    running = await until_step(house, workflow_id, "a", "running")
    assert running.execution_id is not None
    await house.until_called()
    await house.cancel(running.execution_id)
    view = await ended(house, workflow_id)
    assert (view.status, statuses(view)) == ("canceled", {"a": "canceled", "b": "skipped", "c": "succeeded"})


async def test_an_interrupted_step_begins_again_by_itself_but_not_for_ever(house: House) -> None:
    slow, echo = house.other.offer("sandbox/long"), house.other.offer("sandbox/echo")
    workflow_id = await start(house, step("first", echo), step("a", slow, depends_on=["first"]))

    async def interrupt(number: int) -> None:
        async def begun() -> bool:
            attempts = steps_of(await look(house, workflow_id))["a"].attempts
            return len(attempts) == number and attempts[-1].status == "running"

        await until(begun)
        # As for an executor that died: nobody renews the lease any more.
        await house.database.execute(
            "UPDATE executor.executions SET lease_until = now() - interval '1 hour', lease_token = gen_random_uuid() "
            "WHERE status = 'running'"
        )

    for number in (1, 2, 3):
        await interrupt(number)
    view = await ended(house, workflow_id)
    assert statuses(view) == {"first": "succeeded", "a": "failed"}
    attempts = steps_of(view)["a"].attempts
    assert [each.status for each in attempts] == ["interrupted"] * 3
    assert view.cost == PriceOnly(price_usd=Decimal("0.01")), "what was interrupted is not owed"
    assert len([call for call in await house.calls() if call["requested"] == "sandbox/echo"]) == 1


async def test_outputs_are_kept_until_the_workflow_has_ended(house: House) -> None:
    echo, slow = house.other.offer("sandbox/echo"), house.other.offer("sandbox/long", **short(50))
    bad = house.other.offer("sandbox/status-400")
    workflow_id = await start(
        house, step("a", echo, "kept"), step("slow", slow), step("b", bad, "{{steps.a.text}}", depends_on=["slow"])
    )
    first = (await until_step(house, workflow_id, "a", "succeeded")).execution_id
    # As with KEEP_RESULTS_HOURS=0: whatever has ended may be deleted.
    expired = "UPDATE executor.executions SET result_expires_at = now() - interval '1 hour' WHERE result IS NOT NULL"
    await house.database.execute(expired)

    async def is_kept() -> bool:
        kept: bool = await house.database.fetchval(
            "SELECT result IS NOT NULL FROM executor.executions WHERE id = $1", first
        )
        return kept

    await asyncio.sleep(0.3)  # three rounds of the janitor
    assert await is_kept()
    view = await ended(house, workflow_id)
    assert statuses(view) == {"a": "succeeded", "slow": "succeeded", "b": "failed"}
    made = len(await house.calls())

    async def is_gone() -> bool:
        return not await is_kept()

    await until(is_gone)
    error = await house.refused(resume(house, workflow_id))
    assert error.code is ErrorCode.CONFLICT
    assert "what `a` said is not kept any more" in error.body.message
    assert "new workflow" in error.body.message
    await house.database.execute("UPDATE executor.workflows SET finished_at = finished_at - interval '25 hours'")

    async def is_forgotten() -> bool:
        return await house.database.fetchval("SELECT definition FROM executor.workflows") is None

    await until(is_forgotten)
    assert "what was sent is not kept" in (await house.refused(resume(house, workflow_id))).body.message
    assert len(await house.calls()) == made, "nothing was paid in silence"


async def test_a_step_waits_for_a_part_that_is_restarting(house: House) -> None:
    house.other.keys["ivy"] = f"sk-or-test-{uuid4().int}"
    slow, of_ivy = house.other.offer("sandbox/long", **short()), house.other.offer("sandbox/echo", owner="ivy")
    workflow_id = await start(house, step("a", slow), step("b", of_ivy, "after", depends_on=["a"]))
    await until_step(house, workflow_id, "a", "running")
    await house.until_called()
    house.other.away = True
    await house.keys.publish(KEYS_CHANGED, KeysChanged(owner="ivy", version=2, change="health"))
    await house.keys.nc.flush()
    house.other.leased.clear()

    async def asked_twice() -> bool:
        return len(house.other.leased) > 1

    try:
        await until(asked_twice)
        assert steps_of(await look(house, workflow_id))["b"].status == "running"
    finally:
        house.other.away = False
    view = await ended(house, workflow_id)
    assert statuses(view) == {"a": "succeeded", "b": "succeeded"}
    assert len(steps_of(view)["b"].attempts) == 1


# Refused --------------------------------------------------------------------------------------------------------------


async def test_what_cannot_run_is_refused_before_anything_is_paid(house: House) -> None:
    echo = house.other.offer("sandbox/echo")
    draft, keyless = house.other.offer("sandbox/echo", status="draft"), house.other.offer("sandbox/echo", owner="carl")
    good = step("good", echo)
    cases: list[tuple[RunWorkflow, ErrorCode, str]] = [
        (request(good, step("x", "nowhere")), ErrorCode.NOT_FOUND, "`x`"),
        (request(good, step("x", draft)), ErrorCode.NOT_FOUND, "`x`"),
        (request(good, step("x", keyless)), ErrorCode.KEY_MISSING, "`x`"),
        (request(good, step("x", echo, "a", max_price_usd=Decimal("0.001"))), ErrorCode.CONFLICT, "`x`"),
        (request(good, step("x", echo, "a", expected_version=2)), ErrorCode.CONFLICT, "`x`"),
        (request(good, good), ErrorCode.INVALID, "own"),
        (request(good, step("x", echo, "{{steps.y.text}}")), ErrorCode.INVALID, "`y`"),
        (request(good, step("x", echo, depends_on=["x"])), ErrorCode.INVALID, "wait for each other: x"),
        (request(good, max_price_usd=Decimal("0.009")), ErrorCode.CONFLICT, "0.01 USD"),
        (request(good, WorkflowStep(name="x", resource=echo, input={"text": "a", "what": "{{steps.good.text}}"})),
         ErrorCode.INVALID, "`x`"),
        (request(good, WorkflowStep(name="x", resource=echo, input={})), ErrorCode.INVALID, "`x`"),
        (request(good, step("x", echo, 7)), ErrorCode.INVALID, "`x`"),
    ]  # fmt: skip
    for refused, code, words in cases:
        error = await house.refused(house.gateway.call(WORKFLOWS_RUN, refused))
        assert error.code is code, refused
        assert words in error.body.message
    assert await house.database.fetchval("SELECT count(*) FROM executor.workflows") == 0
    assert await house.calls() == []


async def test_the_same_request_is_the_same_workflow(house: House) -> None:
    house.other.keys["hal"] = f"sk-or-test-{uuid4().int}"
    echo = house.other.offer("sandbox/echo", owner="hal")
    again = [request(step("a", echo), idempotency_key="k") for _ in range(4)]
    views = await asyncio.gather(*(house.gateway.call(WORKFLOWS_RUN, each) for each in [*again, again[0]]))
    (workflow_id,) = {view.workflow_id for view in views}
    await ended(house, workflow_id)
    await house.take_key_away("hal")
    late = await house.gateway.call(WORKFLOWS_RUN, again[2])
    assert (late.workflow_id, late.status) == (workflow_id, "succeeded"), "also when it would be refused today"
    await give_key_back(house, "hal")
    other = request(step("a", echo, "other"), idempotency_key="k")
    assert (await house.refused(house.gateway.call(WORKFLOWS_RUN, other))).code is ErrorCode.CONFLICT
    stolen = request(step("a", echo), caller=EVE, workflow_id=workflow_id)
    assert (await house.refused(house.gateway.call(WORKFLOWS_RUN, stolen))).code is ErrorCode.CONFLICT
    assert len(await house.calls()) == 1


async def test_only_who_started_it_sees_it(house: House) -> None:
    word = f"secretword{uuid4().hex}"
    slow = house.other.offer("sandbox/long", **short())
    workflow_id = await start(house, step("a", slow, word), step("b", slow, "{{steps.a.text}}"))
    for caller in (EVE, ADA, Caller(kind="service", id="bob")):
        for rpc in (WORKFLOWS_GET, WORKFLOWS_CANCEL, WORKFLOWS_RESUME):
            ask = house.gateway.call(rpc, GetWorkflow(workflow_id=workflow_id, caller=caller))
            assert (await house.refused(ask)).code is ErrorCode.NOT_FOUND
        assert (await house.gateway.call(WORKFLOWS_LIST, ListWorkflows(caller=caller))).items == []
    stored = await house.everything_stored()
    assert word not in stored
    assert word.encode().hex() not in stored
    view = await ended(house, workflow_id)
    assert view.status == "succeeded", "nobody else could cancel it"
    row = await house.database.fetchrow("SELECT * FROM executor.workflows WHERE id = $1", workflow_id)
    assert row is not None
    assert row["definition"] is None, "there is nothing to resume"


async def test_workflows_are_listed_newest_first_in_pages(house: House) -> None:
    echo, bad = house.other.offer("sandbox/fast"), house.other.offer("sandbox/status-400")
    made = [await start(house, step("a", echo)) for _ in range(3)]
    failed = await start(house, step("a", bad), step("b", echo, depends_on=["a"]))
    for workflow_id in [*made, failed]:
        await ended(house, workflow_id)
    first = await house.gateway.call(WORKFLOWS_LIST, ListWorkflows(caller=BOB, limit=3))
    assert [item.workflow_id for item in first.items] == [failed, made[2], made[1]]
    assert first.items[0].steps == {"a": "failed", "b": "skipped"}
    rest = await house.gateway.call(WORKFLOWS_LIST, ListWorkflows(caller=BOB, limit=3, cursor=first.next_cursor))
    assert ([item.workflow_id for item in rest.items], rest.next_cursor) == ([made[0]], None)
    only = await house.gateway.call(WORKFLOWS_LIST, ListWorkflows(caller=BOB, status="failed"))
    assert [item.workflow_id for item in only.items] == [failed]
    error = await house.refused(house.gateway.call(WORKFLOWS_LIST, ListWorkflows(caller=BOB, cursor="x")))
    assert error.code is ErrorCode.INVALID
