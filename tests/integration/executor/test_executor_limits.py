"""Limits over two executors: slots, money, the minute, and keys that upstream wants left alone."""

import asyncio
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from contracts.catalog import CostBound, ModelPricing, OpenRouterConfig, Timeouts
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller, ExecutionResult
from contracts.keys import KeysChanged
from contracts.market import ResourceBudgets
from contracts.subjects import EXECUTION_ENQUEUE, KEYS_CHANGED
from services.executor import keeper, main
from services.executor.limits import Hold
from services.executor.store import NewExecution, Store
from services.runtime.postgres import create_pool
from tests.integration.executor_parts import ADA, BOB, House, executor_in, model_named
from tests.stack import Database
from tests.waiting import until

TOO_BUSY = (ErrorCode.TIMEOUT, None)
"""On a crowded machine the key or the resource may come too late for a run; then it has not begun."""
DOLLAR = Decimal(1)
DEAR = "anthropic/claude-opus-5"
# What the sandbox bills for it: five dollars for a million tokens in, ten where they are kept for an hour, 25 for those out.
DEAR_BOUND = CostBound(
    token_in_usd=Decimal("0.00001"),
    picture_in_usd=Decimal(1),
    sound_in_s_usd=Decimal(1),
    rest_usd=50 * Decimal("0.000025"),
    context_tokens=1_000_000,
)


@pytest_asyncio.fixture
async def house(whole_house: House) -> House:
    """Everything but an executor, with no runs yet and a new key for ada."""
    await whole_house.clean()
    whole_house.other.keys["ada"] = f"sk-or-test-{uuid4().int}"
    return whole_house


def dear(house: House, **budgets: Any) -> str:
    """A resource on a model that costs something, with daily limits."""
    pricing = ModelPricing(prompt="0.000005", completion="0.000025", price_kind="fixed")
    return house.other.offer(
        DEAR,
        config=OpenRouterConfig(model_id=DEAR, prompt_template="{{text}}", max_tokens=50),
        model=model_named(DEAR).model_copy(update={"pricing": pricing, "price_kind": "fixed"}),
        budgets=ResourceBudgets(**budgets),
        most=DEAR_BOUND,
    )


async def ledger(house: House) -> tuple[int, Decimal]:
    """How many calls ran at once at most, and what they cost together, as upstream has it."""
    facts = (await house.sandbox.get("/sandbox/calls")).json()
    return max(facts["max_running"].values(), default=0), sum(
        (Decimal(call["cost"] or 0) for call in facts["calls"]), Decimal(0)
    )


async def outcome(house: House, resource: str, caller: Caller, text: str = "hello") -> ServiceError | None:
    """None for a run that succeeded."""
    try:
        reply = await house.run(resource, text, caller)
    except ServiceError as error:
        return error
    assert isinstance(reply, ExecutionResult)
    return None


async def test_200_callers_of_one_key_on_two_executors_never_run_more_than_five_at_once(house: House) -> None:
    resource = house.other.offer("sandbox/echo")
    async with executor_in(house, slot_wait_s=1.5), executor_in(house, slot_wait_s=1.5):
        callers = [Caller(kind="user", id=f"caller-{number}") for number in range(200)]
        served: set[str] = set()

        async def until_served(caller: Caller) -> int:
            for turn in range(30):
                error = await outcome(house, resource, caller)
                if error is None:
                    served.add(caller.id)
                    return turn
                assert (error.code, error.body.scope) in {(ErrorCode.OVERLOADED, "key"), TOO_BUSY}
                assert error.body.retry_after_s or error.code is ErrorCode.TIMEOUT
                await asyncio.sleep((error.body.retry_after_s or 1) / 4)
            raise AssertionError(f"{caller.id} is starved")

        turns = await asyncio.gather(*(until_served(caller) for caller in callers))
    assert len(served) == len(turns) == 200
    assert (await ledger(house))[0] <= 5
    assert len(await house.calls("completed")) == 200


async def test_day_of_a_dollar_is_never_overshot_by_uneven_runs_of_two_executors_one_of_which_died(
    house: House, own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "LEASE_S", 5.0)
    monkeypatch.setattr(keeper, "RENEW_EVERY_S", 0.5)
    resource = dear(house, key_daily_usd=DOLLAR)
    answer = await house.sandbox.post(
        "/api/v1/chat/completions",
        headers={"Authorization": f"Bearer {house.other.keys['ada']}"},
        json={"model": DEAR, "messages": [{"role": "user", "content": "x" * 40_000}], "max_tokens": 50},
    )
    assert answer.status_code == 200
    [call] = await house.calls()
    lost_usd = Decimal(call["cost"])
    # An executor that held money, was billed, and died before anything was settled; and one that never learned an id.
    async with create_pool(own_database.dsn("executor"), service="executor", max_size=2) as pool:
        store = Store(pool, lease_s=-1)
        orphans = [await _orphan(store, number) for number in range(2)]
    await house.database.execute(
        "UPDATE executor.attempts SET generation_id = $1 WHERE execution_id = $2", call["generation_id"], orphans[0]
    )
    async with executor_in(house, running_per_key=40), executor_in(house, running_per_key=40):

        async def ask(number: int) -> ServiceError | None:
            return await outcome(
                house, resource, Caller(kind="user", id=f"c{number % 20}"), "x" * (number % 9 + 1) * 4000
            )

        errors = [error for error in await asyncio.gather(*(ask(number) for number in range(100))) if error is not None]
        for execution_id in orphans:
            await house.until_status(execution_id, "interrupted")
        codes = Counter((error.code, error.body.scope) for error in errors)
        assert set(codes) <= {(ErrorCode.RATE_LIMITED, "key"), (ErrorCode.OVERLOADED, "key"), TOO_BUSY}
        assert codes[ErrorCode.RATE_LIMITED, "key"] > 20
        assert all("USD" not in error.body.message for error in errors)

        async def settled() -> bool:
            await outcome(house, resource, BOB, "x" * 90_000)  # more than is left: it only counts what has ended
            held: Decimal = await house.database.fetchval(
                "SELECT held_usd FROM executor.budget_days WHERE scope = 'key'"
            )
            return held == 0

        await until(settled)
    spent = await house.database.fetchval("SELECT spent_usd FROM executor.budget_days WHERE scope = 'key'")
    costs = (await ledger(house))[1]
    # The call of the run that nobody knows an id of has cost all that was held for it, as far as the limit goes.
    assert spent == costs + Decimal("0.3")
    assert lost_usd < costs <= DOLLAR
    assert spent <= DOLLAR


async def _orphan(store: Store, number: int) -> Any:
    row = NewExecution(
        id=uuid4(),
        owner="ada",
        caller_kind="user",
        caller_id=f"c{number}",
        viewer="gateway",
        resource_id=None,
        resource_version=1,
        model_id=DEAR,
        pricing={"mode": "fixed", "price_usd": "0.01"},
        idempotency_key=None,
        request_hash=b"h",
    )
    hold = Hold(Decimal("0.3"), DOLLAR, None, None)
    admission = await store.admit(
        replace(row), mode="test", running_per_key=50, executor="died", lease_token=uuid4(), hold=hold
    )
    assert admission.outcome == "admitted"
    return row.id


async def test_refusals_by_a_day_tell_the_creator_how_it_stands_and_callers_when_to_come_back(house: House) -> None:
    async with executor_in(house):
        tiny = dear(house, caller_daily_usd=Decimal("0.01"))
        error = await house.refused(house.run(tiny, "x" * 3000))
        assert (error.code, error.body.retryable) == (ErrorCode.CONFLICT, False)
        daily = dear(house, resource_daily_usd=Decimal("0.1"))
        await house.run(daily, "x" * 8000, ADA)
        await house.run(daily, "x" * 8000)
        refused = [await house.refused(house.run(daily, "x" * 8000, caller)) for caller in (ADA, BOB)]
        for error in refused:
            assert (error.code, error.body.scope, error.body.retryable) == (ErrorCode.RATE_LIMITED, "key", True)
            assert error.body.retry_after_s is not None
        assert "0.1 USD a day" in refused[0].body.message
        assert "PUT /api/budgets" in refused[0].body.message
        assert "USD" not in refused[1].body.message
        # A job is refused as well, before it is accepted; nobody's limit concerns what costs nothing.
        job = house.gateway.call(EXECUTION_ENQUEUE, house.execute(daily, "x" * 8000))
        assert (await house.refused(job)).code is ErrorCode.RATE_LIMITED
        unbounded = house.other.offer(
            "sandbox/echo", budgets=ResourceBudgets(key_daily_usd=DOLLAR), unbounded="Set it."
        )
        told = [await house.refused(house.run(unbounded, "hello", caller)) for caller in (ADA, BOB)]
        assert [error.code for error in told] == [ErrorCode.CONFLICT] * 2
        assert ["Set it." in error.body.message for error in told] == [True, False]


async def test_key_that_upstream_wants_left_alone_is_asked_for_nothing_by_anybody(house: House) -> None:
    # Upstream asks for three seconds, more than this run has left.
    short = Timeouts(first_token_s=2, idle_s=2, total_s=2)
    limited = house.other.offer("sandbox/status-429-platform", timeouts=short)
    good = house.other.offer("sandbox/echo")
    async with executor_in(house), executor_in(house):
        first = await house.refused(house.run(limited, caller=ADA))
        assert (first.code, first.body.scope) == (ErrorCode.RATE_LIMITED, "key")
        asked = len((await house.sandbox.get("/sandbox/calls")).json()["refused"])
        await house.database.execute("UPDATE executor.cooldowns SET until = now() + interval '1 hour'")
        for caller in (ADA, BOB, ADA, BOB):
            error = await house.refused(house.run(good, caller=caller))
            assert (error.code, error.body.scope) == (ErrorCode.RATE_LIMITED, "key")
            assert error.body.retry_after_s is not None
            assert 3500 < error.body.retry_after_s <= 3600
            assert ("credits" in error.body.message) == (caller == ADA)
        job = await house.gateway.call(EXECUTION_ENQUEUE, house.execute(good))
        facts = (await house.sandbox.get("/sandbox/calls")).json()
        assert (len(facts["refused"]), facts["calls"]) == (asked, [])
        assert await house.status_of(job.execution_id) == "queued"
        # Another key owes nothing for it, and the job goes on by itself.
        await house.keys.publish(KEYS_CHANGED, KeysChanged(owner="ada", version=2, change="replaced"))
        await house.until_status(job.execution_id, "succeeded")
        assert (await house.run(good)).status == "succeeded"


async def test_too_many_in_a_minute_are_told_when_over_all_executors(house: House) -> None:
    resource = house.other.offer("sandbox/echo")
    minute = {"requests_per_minute_per_caller": 4, "running_per_key": 50}
    async with executor_in(house, **minute), executor_in(house, **minute):
        errors = [error for error in await asyncio.gather(*(outcome(house, resource, BOB) for _ in range(12))) if error]
        assert len(errors) == 8
        for error in errors:
            assert (error.code, error.body.scope) == (ErrorCode.RATE_LIMITED, "caller")
            assert error.body.retry_after_s is not None
            # A quarter of the minute, and as much as it had begun before the last one that found room.
            assert 0 < error.body.retry_after_s < 16
        assert await outcome(house, resource, ADA) is None
