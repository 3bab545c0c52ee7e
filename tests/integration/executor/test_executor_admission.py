"""Room and time: who waits for a slot and who is refused, what becomes of an output that need not be kept any longer, and how an
executor stops."""

import asyncio
import time

from contracts.base import new_execution_id
from contracts.catalog import Timeouts
from contracts.errors import ErrorCode
from contracts.execution import ExecutionAccepted, ExecutionResult, PriceOnly
from contracts.subjects import EXECUTION_ENQUEUE, WORKFLOWS_GET, WORKFLOWS_RUN
from contracts.workflows import GetWorkflow, RunWorkflow, WorkflowStep
from tests.integration.executor_parts import BOB, CENT, House, begin, executor_in
from tests.waiting import until

# Room -----------------------------------------------------------------------------------------------------------------


async def test_caller_waits_for_a_slot_and_is_refused_in_the_end(house: House) -> None:
    async with executor_in(house, running_per_key=1, slot_wait_s=0.4):
        execution_id, running = begin(house, house.other.offer("sandbox/long"))
        await house.until_frame(execution_id, "text")
        began_s = time.monotonic()
        execute = house.execute(house.other.offer("sandbox/echo"), idempotency_key="k")
        error = await house.refused(house.ask(execute))
        assert time.monotonic() - began_s >= 0.4
        assert (error.code, error.body.scope, error.body.retryable) == (ErrorCode.OVERLOADED, "key", True)
        assert error.body.retry_after_s
        assert execute.execution_id is not None
        assert await house.row(execute.execution_id) is None
        await house.cancel(execution_id)
        await running
        assert isinstance(await house.ask(execute), ExecutionResult)


async def test_caller_gets_the_slot_that_is_freed_while_waiting(house: House) -> None:
    async with executor_in(house, running_per_key=1, slot_wait_s=30):
        execution_id, running = begin(house, house.other.offer("sandbox/long"))
        await house.until_frame(execution_id, "text")
        waiting = asyncio.create_task(house.run(house.other.offer("sandbox/echo")))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await house.cancel(execution_id)
        await running
        result = await waiting
        assert result.timing.queued_ms >= 250


async def test_full_instance_refuses_at_once(house: House) -> None:
    async with executor_in(house, max_running=1):
        execution_id, running = begin(house, house.other.offer("sandbox/long"))
        await house.until_frame(execution_id, "text")
        error = await house.refused(house.run(house.other.offer("sandbox/echo")))
        assert (error.code, error.body.scope, error.body.retry_after_s) == (ErrorCode.OVERLOADED, "instance", 1)
        await house.cancel(execution_id)
        await running


async def test_output_is_gone_when_its_time_has_come_and_the_rest_is_not(house: House) -> None:
    resource = house.other.offer("sandbox/echo")
    async with executor_in(house):
        result = await house.run(resource, idempotency_key="k")
    await house.database.execute("UPDATE executor.executions SET result_expires_at = now() - interval '1 second'")
    async with executor_in(house):

        async def expired() -> bool:
            return (await house.view(result.execution_id)).output_expired

        await until(expired)
        view = await house.view(result.execution_id)
        assert (view.status, view.result, view.cost) == ("succeeded", None, PriceOnly(price_usd=CENT.price_usd))
        again = await house.ask(house.execute(resource, idempotency_key="k"))
        assert again == ExecutionAccepted(
            execution_id=result.execution_id,
            status="succeeded",
            output_expired=True,
            cost=PriceOnly(price_usd=CENT.price_usd),
        )
        assert len(await house.calls()) == 1


async def test_output_that_is_not_to_be_kept_is_delivered_and_written_nowhere(house: House) -> None:
    resource = house.other.offer("sandbox/echo")
    async with executor_in(house, keep_results_hours=0):
        result = await house.run(resource, idempotency_key="k")
        assert result.text == "hello"
        assert (await house.until_frame(result.execution_id, "completed"))["data"]["text"] == "hello"
        row = await house.row(result.execution_id)
        assert row is not None
        assert (row["result"], row["result_key_id"], row["result_expires_at"]) == (None, None, None)
        again = await house.ask(house.execute(resource, idempotency_key="k"))
        assert isinstance(again, ExecutionAccepted)
        assert (again.execution_id, again.output_expired) == (result.execution_id, True)
        assert (await house.receipt(result.execution_id)).cost.price_usd == CENT.price_usd


async def test_result_that_a_workflow_needs_is_kept_until_it_has_ended_whatever_is_not_kept(house: House) -> None:
    echo = house.other.offer("sandbox/echo")
    steps = [
        WorkflowStep(name="a", resource=echo, input={"text": "Rain"}),
        WorkflowStep(name="b", resource=echo, input={"text": "{{steps.a.text}} falls"}, depends_on=["a"]),
    ]
    async with executor_in(house, keep_results_hours=0):
        request = RunWorkflow(workflow_id=new_execution_id(), caller=BOB, steps=steps)
        await house.gateway.call(WORKFLOWS_RUN, request)

        async def ended() -> bool:
            view = await house.gateway.call(WORKFLOWS_GET, GetWorkflow(workflow_id=request.workflow_id, caller=BOB))
            return view.status == "succeeded"

        await until(ended)
        said = [
            frame["data"]["text"] for frames in house.frames.values() for frame in frames if frame["type"] == "text"
        ]
        assert "Rain falls" in "".join(said)


# Stopping -------------------------------------------------------------------------------------------------------------


async def test_executor_that_stops_ends_what_it_has_begun_and_begins_nothing_new(house: House) -> None:
    timeouts = Timeouts(first_token_s=5, idle_s=10, total_s=10)
    resource = house.other.offer("sandbox/silence", timeouts=timeouts)
    async with executor_in(house, running_per_key=2):
        plain, asking = begin(house, resource)
        job = await house.gateway.call(EXECUTION_ENQUEUE, house.execute(resource))
        for execution_id in (plain, job.execution_id):
            await house.until_frame(execution_id, "started")
        waiting = await house.gateway.call(EXECUTION_ENQUEUE, house.execute(resource))
    assert (await house.refused(asking)).code is ErrorCode.TIMEOUT
    for execution_id in (plain, job.execution_id):
        # A second revision is there when the cost was looked up before the other run had ended.
        ends = [receipt.status for receipt in await house.receipts(execution_id) if receipt.reason == "ended"]
        assert ends == ["failed"]
        await house.until_finished(f"{execution_id}:1")
    assert await house.database.fetchval("SELECT count(*) FROM executor.outbox") == 0
    assert await house.status_of(waiting.execution_id) == "queued"
    async with executor_in(house):
        await house.until_frame(waiting.execution_id, "started")
        await house.cancel(waiting.execution_id)
