"""Runs through a real executor: what its caller, its creator and a stranger get, and that every end, whichever it is, closes
the upstream call, leaves one receipt with the true cost, and tells it in one terminal frame."""

import asyncio
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from contracts.base import new_execution_id
from contracts.catalog import Availability, CostPlusPrice, FixedPrice, ModelChanged, ResourceChanged, Timeouts
from contracts.errors import ErrorCode
from contracts.execution import (
    Caller,
    Cost,
    ExecutionAccepted,
    ExecutionCanceling,
    ExecutionResult,
    ListExecutions,
    PriceOnly,
    Receipt,
)
from contracts.keys import KeysChanged
from contracts.subjects import EXECUTION_CANCELING, EXECUTION_LIST, KEYS_CHANGED, MODEL_CHANGED, RESOURCE_CHANGED
from services.executor import resolutions
from services.runtime.service import Service
from tests.integration.executor_parts import ADA, BOB, EVE, House, begin, executor_in
from tests.waiting import until

PRICE = Decimal("0.01")
FREE = Decimal(0)
NOTHING = Cost(model_usd=FREE, markup_usd=FREE, price_usd=FREE, status="final")


@pytest_asyncio.fixture(scope="module")
async def executor(whole_house: House) -> AsyncIterator[Service]:
    async with executor_in(whole_house) as service:
        yield service


@pytest_asyncio.fixture
async def house(whole_house: House, executor: Service) -> House:
    """One executor, with no runs yet; starting one for every test would take most of the time."""
    await whole_house.clean()
    return whole_house


async def check_frames(house: House, execution_id: UUID, terminal: str) -> list[dict[str, Any]]:
    """The frames of a run that ended: numbered without gaps, one terminal one, and that is the last."""
    await house.until_frame(execution_id, terminal)
    frames = house.frames[execution_id]
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
    assert [frame["type"] for frame in frames if frame["type"] in ("completed", "failed")] == [terminal]
    assert frames[-1]["type"] == terminal
    return frames


# Success --------------------------------------------------------------------------------------------------------------


async def test_run_ends_with_result_frames_and_one_receipt(house: House) -> None:
    result = await house.run(house.other.offer("sandbox/echo"), text="Grüße")
    assert (result.status, result.text, result.mode, result.attempts) == ("succeeded", "Grüße", "test", 1)
    frames = await check_frames(house, result.execution_id, "completed")
    assert frames[0]["type"] == "started"
    assert "".join(frame["data"]["text"] for frame in frames if frame["type"] == "text") == "Grüße"
    assert ExecutionResult.model_validate(frames[-1]["data"]) == result
    [receipt] = await house.receipts(result.execution_id)
    [call] = await house.calls()
    assert receipt.cost.model_usd == Decimal(call["cost"]) > 0
    assert receipt.cost == Cost(
        model_usd=receipt.cost.model_usd,
        markup_usd=PRICE - Decimal(call["cost"]),
        price_usd=PRICE,
        status="final",
    )
    [attempt] = receipt.attempts
    assert (attempt.generation_id, attempt.http_status, attempt.status) == (call["generation_id"], 200, "succeeded")
    view = await house.view(result.execution_id)
    assert (view.last_seq, view.result) == (frames[-1]["seq"], result)


async def test_cost_plus_price_follows_the_cost(house: House) -> None:
    pricing = CostPlusPrice(mode="cost_plus", markup_percent=Decimal(50), max_usd=Decimal(1))
    result = await house.run(house.other.offer("sandbox/fast", pricing=pricing), caller=ADA)
    assert isinstance(result.cost, Cost)
    assert result.cost.model_usd is not None
    assert result.cost.price_usd == (result.cost.model_usd * Decimal("1.5")).quantize(Decimal("0.000001"))


async def test_one_lease_serves_many_runs_until_the_key_changes(house: House) -> None:
    resource = house.other.offer("sandbox/fast", owner="fay")
    await asyncio.gather(*(house.run(resource) for _ in range(5)))
    assert house.other.leased == ["fay"]
    await house.keys.publish(KEYS_CHANGED, KeysChanged(owner="fay", version=2, change="replaced"))

    async def leased_again() -> bool:
        await house.run(resource)
        return len(house.other.leased) == 2

    await until(leased_again)


@pytest.mark.parametrize("change", ["retired", "expiring", "expiry_withdrawn", None])
async def test_what_is_kept_of_a_resource_is_dropped_when_it_or_one_of_its_models_changes(
    house: House, monkeypatch: pytest.MonkeyPatch, change: str | None
) -> None:
    monkeypatch.setattr(resolutions, "_KEEP_S", 3600)  # it is not asked for again by itself
    config = {"model_id": "sandbox/fast", "fallback_models": ["sandbox/echo"], "prompt_template": "{{text}}"}
    resource = house.other.offer("sandbox/fast", config=config)
    assert (await house.run(resource)).cost == PriceOnly(price_usd=PRICE)
    kept = house.other.resources[resource]
    house.other.resources[resource] = kept.model_copy(
        update={"pricing": FixedPrice(mode="fixed", price_usd=Decimal("0.02"))}
    )
    if change is None:
        edit = {"resource_id": resource, "owner": "ada", "slug": "made", "change": "updated", "version": 4}
        await house.catalog.publish(RESOURCE_CHANGED, ResourceChanged.model_validate(edit))
    else:
        event = ModelChanged.model_validate({"model_id": "sandbox/echo", "change": change, "sync_id": 7})
        await house.catalog.publish(MODEL_CHANGED, event)

    async def asked_again() -> bool:
        return (await house.run(resource)).cost.price_usd == Decimal("0.02")

    await until(asked_again)


# Retries --------------------------------------------------------------------------------------------------------------


async def test_refused_call_is_made_again_and_both_are_on_the_receipt(house: House) -> None:
    result = await house.run(house.other.offer("sandbox/flaky"), caller=ADA)
    assert result.attempts == 2
    [receipt] = await house.receipts(result.execution_id)
    first, second = receipt.attempts
    assert (first.status, first.http_status, first.cost_usd, first.cost_status) == ("failed", 503, FREE, "final")
    assert first.code is not None
    assert (second.status, second.http_status, second.code) == ("succeeded", 200, None)
    assert receipt.cost.model_usd == second.cost_usd > 0  # type: ignore[operator]
    rows = await house.attempts(result.execution_id)
    assert [(row["number"], row["status"], row["generation_id"]) for row in rows] == [
        (a.number, a.status, a.generation_id) for a in receipt.attempts
    ]


@pytest.mark.parametrize("mode", ["cut", "mid-stream-error"])
async def test_call_is_not_made_again_once_text_was_delivered(house: House, mode: str) -> None:
    execute = house.execute(house.other.offer(f"sandbox/{mode}"))
    error = await house.refused(house.ask(execute))
    assert execute.execution_id is not None
    assert (error.code, error.body.truncated, error.body.execution_id) == (
        ErrorCode.UPSTREAM,
        True,
        execute.execution_id,
    )
    assert len(await house.calls()) == 1
    frames = await check_frames(house, execute.execution_id, "failed")
    assert any(frame["type"] == "text" for frame in frames)
    receipt = await house.receipt(execute.execution_id)
    assert (receipt.status, receipt.truncated, receipt.cost.price_usd) == ("failed", True, FREE)
    assert receipt.cost.model_usd is None
    assert receipt.cost.status == "pending"


@pytest.mark.parametrize(("mode", "status", "attempts"), [("status-503", 503, 3), ("empty", 200, 2)])
async def test_call_is_given_up_after_its_attempts_and_costs_nothing(
    house: House, mode: str, status: int, attempts: int
) -> None:
    execute = house.execute(house.other.offer(f"sandbox/{mode}"))
    error = await house.refused(house.ask(execute))
    assert execute.execution_id is not None
    receipt = await house.receipt(execute.execution_id)
    assert (receipt.status, receipt.code) == ("failed", error.code)
    assert [attempt.http_status for attempt in receipt.attempts] == [status] * attempts
    assert receipt.cost == NOTHING


async def test_refused_key_is_verified_and_the_call_not_repeated(house: House) -> None:
    execute = house.execute(house.other.offer("sandbox/status-401"))
    error = await house.refused(house.ask(execute))
    assert error.code is ErrorCode.KEY_REJECTED
    assert execute.execution_id is not None
    assert len((await house.receipt(execute.execution_id)).attempts) == 1

    async def verified() -> list[str]:
        return house.other.verified

    assert await until(verified) == ["ada"]


# Cancelling -----------------------------------------------------------------------------------------------------------


async def until_phase(house: House, execution_id: UUID, mode: str) -> None:
    """The call is as far as its mode lets it get."""
    await house.until_called()
    if mode == "long":
        await house.until_frame(execution_id, "text")
    elif mode == "slow":

        async def headers_came() -> bool:
            [attempt] = await house.attempts(execution_id)
            return attempt["generation_id"] is not None

        await until(headers_came)


@pytest.mark.parametrize("mode", ["silence-no-headers", "slow", "long"])
async def test_cancel_closes_the_upstream_call_in_every_phase(house: House, mode: str) -> None:
    execution_id, running = begin(house, house.other.offer(f"sandbox/{mode}"))
    await until_phase(house, execution_id, mode)
    view = await house.cancel(execution_id)
    await until(lambda: house.calls("cancelled"))
    result = await running
    assert (result.status, result.truncated) == ("canceled", mode == "long")
    assert (view.status, view.result) == ("canceled", result)
    assert bool(result.text) == (mode == "long")
    assert result.cost == PriceOnly(price_usd=PRICE if mode == "long" else FREE)
    await check_frames(house, execution_id, "completed")
    receipt = await house.receipt(execution_id)
    assert (receipt.status, receipt.cost.model_usd) == ("canceled", None)
    assert receipt.cost.status == ("unknown" if mode == "silence-no-headers" else "pending")


@pytest.mark.parametrize("mode", ["slow", "long"])
async def test_looked_up_cost_of_a_canceled_run_changes_no_price(house: House, mode: str) -> None:
    execution_id, running = begin(house, house.other.offer(f"sandbox/{mode}"))
    await until_phase(house, execution_id, mode)
    await house.cancel(execution_id)
    await running
    first, second = await house.receipt(execution_id), await house.revised(execution_id)
    [call] = await house.calls()
    assert second.cost.status == "final"
    assert second.cost.model_usd == Decimal(call["cost"])
    assert second.cost.price_usd == first.cost.price_usd == (PRICE if mode == "long" else FREE)


async def test_cancel_between_two_attempts_keeps_what_is_known_of_the_first(house: House) -> None:
    execution_id, running = begin(house, house.other.offer("sandbox/status-429-upstream"))

    async def refused() -> Any:
        return (await house.sandbox.get("/sandbox/calls")).json()["refused"]

    await until(refused)
    await house.cancel(execution_id)
    result = await running
    assert (result.status, result.attempts) == ("canceled", 1)
    receipt = await house.receipt(execution_id)
    [attempt] = receipt.attempts
    assert (attempt.status, attempt.http_status, attempt.code) == ("failed", 429, ErrorCode.RATE_LIMITED)
    assert receipt.cost == NOTHING


async def test_creator_may_cancel_and_sees_no_text(house: House) -> None:
    execution_id, running = begin(house, house.other.offer("sandbox/long"), caller=BOB)
    await house.until_frame(execution_id, "text")
    view = await house.cancel(execution_id, ADA)
    assert (view.status, view.result) == ("canceled", None)
    assert (await running).text


@pytest.mark.parametrize("stranger", [EVE, Caller(kind="service", id="bob"), Caller(kind="service", id="ada")])
async def test_stranger_cannot_cancel(house: House, stranger: Caller) -> None:
    execution_id, running = begin(house, house.other.offer("sandbox/long"))
    await house.until_frame(execution_id, "text")
    error = await house.refused(house.cancel(execution_id, stranger))
    assert error.code is ErrorCode.NOT_FOUND
    row = await house.row(execution_id)
    assert row is not None
    assert (row["status"], row["cancel_requested"]) == ("running", False)
    await house.cancel(execution_id)
    await running


async def test_run_canceled_before_its_admission_ends_at_once(house: House) -> None:
    execution_id = new_execution_id()
    for caller in (EVE, BOB):
        assert (await house.refused(house.cancel(execution_id, caller))).code is ErrorCode.NOT_FOUND
    # Told to all executors in this order on one connection; the run comes on another.
    await house.gateway.nc.flush()
    by_another = house.execute(house.other.offer("sandbox/echo"))
    assert by_another.execution_id is not None
    await house.refused(house.cancel(by_another.execution_id, EVE))
    result = await house.run(house.other.offer("sandbox/long"), execution_id=execution_id)
    assert (result.status, result.text, result.cost) == ("canceled", "", PriceOnly(price_usd=FREE))
    assert await house.calls() == []
    assert (await house.receipt(execution_id)).cost == NOTHING
    reply = await house.ask(by_another)
    assert isinstance(reply, ExecutionResult)
    assert reply.status == "succeeded"


async def test_run_that_ended_stays_as_it_ended_when_it_is_canceled(house: House) -> None:
    result = await house.run(house.other.offer("sandbox/echo"))
    assert (await house.cancel(result.execution_id)).status == "succeeded"
    assert len(await house.receipts(result.execution_id)) == 1


async def test_cancel_on_another_executor_reaches_the_one_that_runs_it(house: House) -> None:
    execution_id, running = begin(house, house.other.offer("sandbox/long"))
    await house.until_frame(execution_id, "text")
    async with executor_in(house):
        # A queue group picks one of the two at random: asking as often as this meets both.
        views = await asyncio.gather(*(house.cancel(execution_id) for _ in range(8)))
    assert {view.status for view in views} == {"canceled"}
    assert (await running).status == "canceled"
    assert len(await house.receipts(execution_id)) >= 1


async def test_cancel_said_of_somebody_elses_run_stops_nothing(house: House) -> None:
    execution_id, running = begin(house, house.other.offer("sandbox/long"))
    await house.until_frame(execution_id, "text")
    async with executor_in(house) as another:
        for caller in (EVE, BOB):
            await another.bus.publish(EXECUTION_CANCELING, ExecutionCanceling(execution_id=execution_id, caller=caller))
            await another.bus.nc.flush()
            if caller is EVE:
                seen = len(house.frames[execution_id])
                await until(partial(_more_frames, house, execution_id, seen + 5))
        assert (await running).status == "canceled"


async def _more_frames(house: House, execution_id: UUID, than: int) -> bool:
    return len(house.frames[execution_id]) > than


# Timeouts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "timeouts", "truncated"),
    [
        ("silence-no-headers", Timeouts(first_token_s=0.4, idle_s=60, total_s=60), False),
        ("silence", Timeouts(first_token_s=0.4, idle_s=60, total_s=60), False),
        ("stall", Timeouts(first_token_s=60, idle_s=0.4, total_s=60), True),
        ("long", Timeouts(first_token_s=60, idle_s=60, total_s=0.4), True),
    ],
    ids=["first token, no headers", "first token", "idle", "total"],
)
async def test_run_ends_when_a_timeout_passes(house: House, mode: str, timeouts: Timeouts, truncated: bool) -> None:
    execute = house.execute(house.other.offer(f"sandbox/{mode}", timeouts=timeouts))
    began_s = time.monotonic()
    error = await house.refused(house.ask(execute))
    assert time.monotonic() - began_s >= 0.4
    assert (error.code, error.body.truncated) == (ErrorCode.TIMEOUT, truncated)
    await until(lambda: house.calls("cancelled"))
    assert len(await house.calls()) == 1
    assert execute.execution_id is not None
    receipt = await house.receipt(execute.execution_id)
    assert (receipt.status, receipt.code, receipt.cost.price_usd) == ("failed", ErrorCode.TIMEOUT, FREE)
    assert receipt.cost.model_usd is None
    await check_frames(house, execute.execution_id, "failed")


async def test_run_outlives_the_deadline_of_whoever_waits(house: House) -> None:
    timeouts = Timeouts(first_token_s=0.8, idle_s=5, total_s=5)
    execute = house.execute(house.other.offer("sandbox/silence", timeouts=timeouts))
    error = await house.refused(house.ask(execute, timeout_s=0.3))
    assert error.code is ErrorCode.TIMEOUT
    assert execute.execution_id is not None
    assert await house.status_of(execute.execution_id) == "running"
    assert (await house.receipt(execute.execution_id)).status == "failed"


# Refusals -------------------------------------------------------------------------------------------------------------


async def test_run_without_a_key_is_refused_and_writes_nothing(house: House) -> None:
    error = await house.refused(house.run(house.other.offer("sandbox/echo", owner="carl")))
    assert error.code is ErrorCode.KEY_MISSING
    assert await house.database.fetchval("SELECT count(*) FROM executor.executions") == 0


@pytest.mark.parametrize(
    ("changes", "more", "code"),
    [
        ({"status": "draft"}, {}, ErrorCode.NOT_FOUND),
        ({"status": "paused"}, {}, ErrorCode.NOT_FOUND),
        ({"availability": Availability(available=False, reason="Gone.")}, {}, ErrorCode.MODEL_UNAVAILABLE),
        ({}, {"expected_version": 2}, ErrorCode.CONFLICT),
        ({}, {"max_price_usd": Decimal("0.009")}, ErrorCode.CONFLICT),
        ({}, {"input": {}}, ErrorCode.INVALID),
    ],
)
async def test_refused_run_writes_nothing(
    house: House, changes: dict[str, Any], more: dict[str, Any], code: ErrorCode
) -> None:
    execute = house.execute(house.other.offer("sandbox/echo", **changes)).model_copy(update=more)
    assert (await house.refused(house.ask(execute))).code is code
    assert await house.database.fetchval("SELECT count(*) FROM executor.executions") == 0
    assert await house.calls() == []


async def test_creator_runs_what_is_not_published(house: House) -> None:
    result = await house.run(house.other.offer("sandbox/echo", status="draft"), caller=ADA)
    assert isinstance(result.cost, Cost)


# The same request again -----------------------------------------------------------------------------------------------


async def test_same_request_finds_its_run_while_it_runs_and_after_it(house: House) -> None:
    resource = house.other.offer("sandbox/long")
    execution_id, running = begin(house, resource, idempotency_key="k")
    await house.until_frame(execution_id, "text")
    again = house.execute(resource, idempotency_key="k")
    assert await house.ask(again) == ExecutionAccepted(execution_id=execution_id, status="running")
    await house.cancel(execution_id)
    assert await house.ask(again) == await running
    other = house.execute(resource, text="other", idempotency_key="k")
    assert (await house.refused(house.ask(other))).code is ErrorCode.CONFLICT
    assert len(await house.calls()) == 1


async def test_failure_is_repeated_to_whoever_repeats_the_request(house: House) -> None:
    resource = house.other.offer("sandbox/status-403-moderation")
    execute = house.execute(resource, idempotency_key="k")
    first = await house.refused(house.ask(execute))
    again = await house.refused(house.ask(house.execute(resource, idempotency_key="k")))
    assert first.code is ErrorCode.MODERATED
    assert again.body == first.body
    assert again.body.execution_id == execute.execution_id


# Views ----------------------------------------------------------------------------------------------------------------


async def test_caller_creator_and_stranger_see_a_run_each_in_their_way(house: House) -> None:
    result = await house.run(house.other.offer("sandbox/echo"), text="hidden words")
    own = await house.view(result.execution_id, BOB)
    assert (own.result, own.cost, own.receipt) == (result, PriceOnly(price_usd=PRICE), None)
    theirs = await house.view(result.execution_id, ADA)
    assert theirs.result is None
    assert isinstance(theirs.cost, Cost)
    assert theirs.cost.model_usd
    assert isinstance(theirs.receipt, Receipt)
    assert "hidden words" not in theirs.model_dump_json()
    for stranger in (EVE, Caller(kind="service", id="bob")):
        assert (await house.refused(house.view(result.execution_id, stranger))).code is ErrorCode.NOT_FOUND
    assert (await house.refused(house.view(uuid4(), BOB))).code is ErrorCode.NOT_FOUND


async def test_lists_hold_what_somebody_ran_or_what_ran_on_their_resources(house: House) -> None:
    resource = house.other.offer("sandbox/fast")
    ids = [(await house.run(resource, caller=caller)).execution_id for caller in (BOB, EVE, ADA, BOB)]

    async def listed(caller: Caller, **more: Any) -> list[UUID]:
        page = await house.gateway.call(EXECUTION_LIST, ListExecutions(caller=caller, **more))
        assert all(item.result is None for item in page.items)
        return [item.execution_id for item in page.items]

    assert await listed(BOB) == [ids[3], ids[0]]
    assert await listed(ADA, role="owner") == ids[::-1]
    assert await listed(ADA) == [ids[2]]
    assert await listed(EVE, role="owner") == []
    page = await house.gateway.call(EXECUTION_LIST, ListExecutions(caller=ADA, role="owner", limit=3))
    assert await listed(ADA, role="owner", cursor=page.next_cursor) == [ids[0]]
    assert (await house.refused(listed(Caller(kind="service", id="ada"), role="owner"))).code is ErrorCode.FORBIDDEN
    assert (await house.refused(listed(ADA, cursor="nonsense"))).code is ErrorCode.INVALID


# At rest --------------------------------------------------------------------------------------------------------------


async def test_no_text_of_a_run_can_be_read_in_the_database(house: House) -> None:
    word = f"secretword{uuid4().hex}"
    result = await house.run(house.other.offer("sandbox/echo"), text=word)
    assert result.text == word
    stored = await house.everything_stored()
    assert str(result.execution_id) in stored
    assert word not in stored
    assert word.encode().hex() not in stored
