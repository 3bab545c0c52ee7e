"""Jobs: what a publisher submits or the gateway enqueues becomes a row, runs when its creator's key has room, and always ends in
`finished`, also where it was refused, canceled before its turn, or cannot begin any more."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import nats
import orjson
import pytest

from contracts.base import new_execution_id
from contracts.errors import ErrorBody, ErrorCode
from contracts.execution import CallerReceipt, Execute, ExecutionAccepted, ExecutionResult, Frame, PriceOnly, Receipt
from contracts.keys import KeysChanged
from contracts.permissions import inbox_prefix
from contracts.subjects import (
    AS_CANCEL,
    AS_FINISHED,
    AS_GET,
    AS_RUN,
    AS_SUBMIT,
    EXECUTION_ENQUEUE,
    EXECUTION_FINISHED,
    KEYS_CHANGED,
    TIMEOUT_HEADER,
    as_publisher,
    frames_subject,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from tests.integration.executor_parts import ADA, BOB, CENT, EVE, House, begin
from tests.waiting import PATIENCE_S, until

DEMO_FINISHED = as_publisher(AS_FINISHED.subject, "demo")


pytestmark = pytest.mark.usefixtures("single_executor")


async def enqueue(house: House, execute: Execute) -> UUID:
    accepted = await house.gateway.call(EXECUTION_ENQUEUE, execute)
    assert accepted.status in ("queued", "running", "succeeded")  # a repeated one may be under way
    return accepted.execution_id


async def busy(house: House) -> tuple[UUID, asyncio.Task[ExecutionResult]]:
    """A run that holds the only slot."""
    execution_id, running = begin(house, house.other.offer("sandbox/long"))
    await house.until_frame(execution_id, "text")
    return execution_id, running


async def submit(house: House, body: dict[str, Any] | bytes) -> None:
    payload = body if isinstance(body, bytes) else orjson.dumps(body)
    subject = as_publisher(AS_SUBMIT.subject, "demo")
    acknowledged = await house.publisher.request(subject, payload, timeout=PATIENCE_S)
    assert orjson.loads(acknowledged.data)["stream"]


async def demo_finished(house: House, execution_id: UUID) -> CallerReceipt:
    """What the publisher hears of the end of this run."""

    async def there() -> list[CallerReceipt]:
        heard = [CallerReceipt.model_validate_json(m.data) for m in house.finished if m.subject == DEMO_FINISHED]
        return [receipt for receipt in heard if receipt.execution_id == execution_id]

    return (await until(there))[0]


# Enqueued by the gateway ----------------------------------------------------------------------------------------------


async def test_enqueued_run_is_committed_and_then_done(house: House) -> None:
    execute = house.execute(house.other.offer("sandbox/echo"), text="later")
    execution_id = await enqueue(house, execute)
    assert execution_id == execute.execution_id
    assert await house.row(execution_id) is not None
    await house.until_status(execution_id, "succeeded")
    view = await house.view(execution_id)
    assert view.result is not None
    assert (view.result.text, view.result.cost) == ("later", PriceOnly(price_usd=CENT.price_usd))
    await house.until_frame(execution_id, "completed")
    frames = [Frame.model_validate(frame) for frame in house.frames[execution_id]]
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    assert (frames[0].type, frames[-1].type) == ("started", "completed")


async def test_enqueued_request_is_accepted_once(house: House) -> None:
    resource = house.other.offer("sandbox/echo")
    first = house.execute(resource, idempotency_key="k")
    ids = await asyncio.gather(
        enqueue(house, first),
        enqueue(house, first),
        enqueue(house, house.execute(resource, idempotency_key="k")),
        enqueue(house, house.execute(resource, idempotency_key="k")),
    )
    assert len(set(ids)) == 1
    await house.until_status(ids[0], "succeeded")
    assert await house.ask(house.execute(resource, idempotency_key="k")) == (await house.view(ids[0])).result
    assert len(await house.calls()) == 1
    other = house.execute(resource, text="other", idempotency_key="k")
    assert (await house.refused(enqueue(house, other))).code is ErrorCode.CONFLICT


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"owner": "carl"}, ErrorCode.KEY_MISSING),
        ({"status": "draft"}, ErrorCode.NOT_FOUND),
        ({"inputs": []}, ErrorCode.INVALID),
    ],
)
async def test_run_that_could_not_begin_is_not_accepted(house: House, changes: dict[str, Any], code: ErrorCode) -> None:
    error = await house.refused(enqueue(house, house.execute(house.other.offer("sandbox/echo", **changes))))
    assert error.code is code
    assert await house.database.fetchval("SELECT count(*) FROM executor.executions") == 0


async def test_queued_run_begins_when_a_slot_is_free_and_shows_nobody_its_input(house: House) -> None:
    word = f"secretword{uuid4().hex}"
    first, running = await busy(house)
    execute = house.execute(house.other.offer("sandbox/echo"), text=word)
    queued = await enqueue(house, execute)
    assert await house.ask(execute) == ExecutionAccepted(execution_id=queued, status="queued")
    assert (await house.view(queued)).status == "queued"
    stored = await house.everything_stored()
    assert word not in stored
    assert word.encode().hex() not in stored
    await house.cancel(first)
    await running
    await house.until_status(queued, "succeeded")
    view = await house.view(queued)
    assert view.result is not None
    assert view.result.text == word
    row = await house.row(queued)
    assert row is not None
    assert row["job"] is None


@pytest.mark.parametrize("who", [BOB, ADA], ids=["caller", "creator"])
async def test_queued_run_is_canceled_before_its_turn(house: House, who: Any) -> None:
    first, running = await busy(house)
    queued = await enqueue(house, house.execute(house.other.offer("sandbox/echo")))
    assert (await house.refused(house.cancel(queued, EVE))).code is ErrorCode.NOT_FOUND
    assert (await house.cancel(queued, who)).status == "canceled"
    receipt = await house.receipt(queued)
    assert (receipt.status, receipt.attempts, receipt.cost.status) == ("canceled", [], "final")
    assert receipt.cost.price_usd == receipt.cost.model_usd == 0
    view = await house.view(queued)
    assert view.result is not None
    assert (view.result.status, view.result.text, view.result.cost) == (
        "canceled",
        "",
        PriceOnly(price_usd=receipt.cost.price_usd),
    )
    await house.until_finished(f"{queued}:1")
    await house.until_frame(queued, "completed")
    assert [(frame["seq"], frame["type"]) for frame in house.frames[queued]] == [(1, "completed")]
    await house.cancel(first)
    await running
    assert len(await house.calls()) == 1


async def test_queued_run_fails_when_the_key_is_gone_by_then(house: House) -> None:
    house.other.keys["gil"] = house.other.keys["ada"]
    first, running = begin(house, house.other.offer("sandbox/long", owner="gil"))
    await house.until_frame(first, "text")
    queued = await enqueue(house, house.execute(house.other.offer("sandbox/echo", owner="gil")))
    await house.take_key_away("gil")
    await house.cancel(first)
    await running
    failed = await house.until_frame(queued, "failed")
    assert failed["data"]["code"] == "key_missing"
    assert failed["data"]["execution_id"] == str(queued)
    receipt = await house.receipt(queued)
    assert (receipt.status, receipt.code) == ("failed", ErrorCode.KEY_MISSING)
    assert receipt.cost.price_usd == receipt.cost.model_usd == 0
    error = (await house.view(queued)).error
    assert error is not None
    assert error.code is ErrorCode.KEY_MISSING


async def test_queued_run_waits_for_a_keys_service_that_restarts(house: House) -> None:
    house.other.keys["hal"] = house.other.keys["ada"]
    first, running = begin(house, house.other.offer("sandbox/long", owner="hal"))
    await house.until_frame(first, "text")
    resource = house.other.offer("sandbox/echo", owner="hal")
    queued, canceled = [await enqueue(house, house.execute(resource)) for _ in range(2)]
    house.other.away = True
    await house.keys.publish(KEYS_CHANGED, KeysChanged(owner="hal", version=2, change="health"))
    await house.keys.nc.flush()
    await asyncio.sleep(0.5)  # nothing tells when the executor has heard of it
    house.other.leased.clear()
    await house.cancel(first)
    await running

    async def waits_for_callers() -> bool:
        return (await house.view(queued)).status == "queued"

    await house.until_status(queued, "waiting")
    await house.until_status(canceled, "waiting")
    await until(waits_for_callers)
    assert (await house.cancel(canceled)).status == "canceled"
    house.other.away = False
    await house.until_status(queued, "succeeded")
    [receipt] = await house.receipts(queued)
    assert [attempt.status for attempt in receipt.attempts] == ["succeeded"]
    assert house.frames[queued][0]["seq"] == 1


# Submitted by a publisher ---------------------------------------------------------------------------------------------


async def test_submitted_job_ends_in_finished_for_its_publisher_and_for_the_house(house: House) -> None:
    execution_id = new_execution_id()
    body = {"execution_id": str(execution_id), "resource": house.other.offer("sandbox/echo"), "input": {"text": "hi"}}
    await submit(house, body)
    told = await demo_finished(house, execution_id)
    assert (told.status, told.revision, told.price_usd, told.error) == ("succeeded", 1, CENT.price_usd, None)
    message = await house.until_finished(f"{execution_id}:1")
    assert message.subject == EXECUTION_FINISHED.subject
    receipt = Receipt.model_validate_json(message.data)
    assert (receipt.caller.kind, receipt.caller.id) == ("service", "demo")
    assert receipt == await house.receipt(execution_id)
    row = await house.row(execution_id)
    assert row is not None
    assert row["viewer"] == "demo"


async def test_publisher_reads_its_own_frames_and_runs(
    house: House, nats_server: Nats, credentials: Credentials
) -> None:
    heard: list[dict[str, Any]] = []

    async def hear(message: Any) -> None:
        heard.append(orjson.loads(message.data))

    execution_id = new_execution_id()
    subscription = await house.publisher.subscribe(frames_subject("demo", execution_id), cb=hear)
    body = {"execution_id": str(execution_id), "resource": house.other.offer("sandbox/echo"), "input": {"text": "hi"}}
    reply = await house.publisher.request(as_publisher(AS_RUN.subject, "demo"), orjson.dumps(body), timeout=PATIENCE_S)
    result = ExecutionResult.model_validate_json(reply.data)
    assert (result.text, result.cost) == ("hi", PriceOnly(price_usd=CENT.price_usd))

    async def last() -> bool:
        return bool(heard) and heard[-1]["type"] == "completed"

    await until(last)
    await subscription.unsubscribe()
    ask = orjson.dumps({"execution_id": str(execution_id)})
    reply = await house.publisher.request(as_publisher(AS_GET.subject, "demo"), ask, timeout=PATIENCE_S)
    view = orjson.loads(reply.data)
    assert (view["status"], view["result"]["text"], view["receipt"]) == ("succeeded", "hi", None)
    other = await nats.connect(
        nats_server.url, user="other", password=credentials.nats_password("other"), inbox_prefix=inbox_prefix("other")
    )
    for rpc in (AS_GET, AS_CANCEL):
        reply = await other.request(as_publisher(rpc.subject, "other"), ask, timeout=PATIENCE_S)
        assert orjson.loads(reply.data)["code"] == "not_found"
    await other.close()


async def test_publisher_whose_run_takes_too_long_is_told_which_run_it_is(house: House) -> None:
    body = orjson.dumps({"resource": house.other.offer("sandbox/slow"), "input": {"text": "hi"}})
    subject = as_publisher(AS_RUN.subject, "demo")
    reply = await house.publisher.request(subject, body, timeout=PATIENCE_S, headers={TIMEOUT_HEADER: "900"})
    error = ErrorBody.model_validate_json(reply.data)
    assert error.code is ErrorCode.TIMEOUT
    assert error.execution_id is not None
    ask = orjson.dumps({"execution_id": str(error.execution_id)})
    reply = await house.publisher.request(as_publisher(AS_GET.subject, "demo"), ask, timeout=PATIENCE_S)
    view = orjson.loads(reply.data)
    assert view["status"] == "running"
    await house.publisher.request(as_publisher(AS_CANCEL.subject, "demo"), ask, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    "body",
    [{}, {"resource": "nowhere"}, {"resource": 7}, {"input": "x"}, {"resource": "x", "idempotency_key": "a\x00"}],
)
async def test_invalid_job_ends_in_finished_as_well(house: House, body: dict[str, Any]) -> None:
    execution_id = new_execution_id()
    await submit(house, {"execution_id": str(execution_id), **body})
    told = await demo_finished(house, execution_id)
    assert (told.status, told.price_usd, told.mode) == ("failed", None, None)
    assert told.error is not None
    assert told.error.code in {ErrorCode.INVALID, ErrorCode.NOT_FOUND}
    assert told.error.execution_id == execution_id
    assert await house.row(execution_id) is None


@pytest.mark.parametrize("payload", [b"", b"\xff", b"not json", b"[]"])
async def test_job_that_is_no_json_object_is_refused_and_the_next_one_done(house: House, payload: bytes) -> None:
    await submit(house, payload)
    execution_id = new_execution_id()
    body = {"execution_id": str(execution_id), "resource": house.other.offer("sandbox/fast"), "input": {"text": "x"}}
    await submit(house, body)
    assert (await demo_finished(house, execution_id)).status == "succeeded"
    told = [CallerReceipt.model_validate_json(m.data) for m in house.finished if m.subject == DEMO_FINISHED]
    assert [receipt.error.code for receipt in told if receipt.error is not None] == [ErrorCode.INVALID]


async def test_job_sent_twice_is_run_once(house: House) -> None:
    execution_id = new_execution_id()
    body = {"execution_id": str(execution_id), "resource": house.other.offer("sandbox/fast"), "input": {"text": "x"}}
    await submit(house, body)
    await submit(house, body)
    assert (await demo_finished(house, execution_id)).status == "succeeded"
    after = new_execution_id()
    await submit(house, {**body, "execution_id": str(after)})
    await demo_finished(house, after)
    assert len(await house.calls()) == 2
    assert len(await house.receipts(execution_id)) == 1
