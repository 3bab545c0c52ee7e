"""Limits on a real Postgres: the minute, cooldowns, daily limits and the order of the queue, under many askers at once."""

import asyncio
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from services.executor.limits import UNLIMITED, Admission, Hold, Rates
from services.executor.limits_store import LimitsStore
from services.executor.store import NewExecution, Store
from tests.integration.executor.test_executor_store import ending, new

DOLLAR, NOTHING = Decimal(1), Decimal(0)


@pytest_asyncio.fixture(autouse=True)
async def sql(superuser: asyncpg.Connection) -> asyncpg.Connection:
    """The superuser, to look and to move time, on empty tables."""
    await superuser.execute(
        "TRUNCATE executor.executions, executor.outbox, executor.cooldowns, executor.request_rates, executor.budget_days"
        " CASCADE"
    )
    return superuser


@pytest.fixture
def store(pool: asyncpg.Pool) -> Store:
    return Store(pool, lease_s=15)


@pytest.fixture
def limits(pool: asyncpg.Pool) -> LimitsStore:
    return LimitsStore(pool)


def hold(usd: str, key: Decimal | None = DOLLAR, **limits: Any) -> Hold:
    return Hold(Decimal(usd), key, **{"resource_usd": None, "caller_usd": None, **limits})


async def admit(store: Store, row: NewExecution | None = None, token: UUID | None = None, **more: Any) -> Admission:
    values: dict[str, Any] = {"mode": "test", "running_per_key": 1000, "executor": "e1", **more}
    return await store.admit(row or new(), lease_token=token or uuid4(), **values)


async def enqueue(store: Store, row: NewExecution | None = None, **more: Any) -> Admission:
    return await store.enqueue(row or new(), mode="test", job=b"locked", job_key_id="k1", **more)


async def claim(store: Store, limit: int = 100, rates: Rates = UNLIMITED) -> UUID | None:
    row = await store.claim(running_per_key=limit, executor="e1", lease_token=uuid4(), rates=rates)
    return row.id if row is not None else None


async def standing(sql: asyncpg.Connection) -> tuple[Decimal, Decimal]:
    """What is held and spent of the only key with limits."""
    record = await sql.fetchrow("SELECT held_usd, spent_usd FROM executor.budget_days WHERE scope = 'key'")
    return record["held_usd"], record["spent_usd"]


# The minute -----------------------------------------------------------------------------------------------------------


async def test_as_many_as_a_minute_allows_are_admitted_at_once_and_the_next_is_told_when(
    store: Store, sql: asyncpg.Connection
) -> None:
    rates = Rates(per_key=0, per_caller=30)
    admissions = await asyncio.gather(*(admit(store, rates=rates) for _ in range(60)))
    assert Counter(each.outcome for each in admissions) == {"admitted": 30, "rate": 30}
    refused = [each for each in admissions if each.outcome == "rate"]
    assert {each.reason for each in refused} == {"caller"}
    assert all(each.wait_s is not None and 0 < each.wait_s <= 2 for each in refused)
    assert await sql.fetchval("SELECT count(*) FROM executor.executions") == 30
    # One more comes free every two seconds, however often somebody asks meanwhile.
    await sql.execute("UPDATE executor.request_rates SET due = due - interval '2 seconds'")
    assert (await admit(store, rates=rates)).outcome == "admitted"
    assert (await admit(store, rates=rates)).outcome == "rate"


async def test_minute_of_one_caller_is_not_that_of_another_and_the_key_has_its_own(store: Store) -> None:
    rates = Rates(per_key=5, per_caller=3)
    of_bob = [await admit(store, new(caller_id="bob"), rates=rates) for _ in range(4)]
    of_carl = [await admit(store, new(caller_id="carl"), rates=rates) for _ in range(3)]
    assert [each.outcome for each in of_bob] == ["admitted"] * 3 + ["rate"]
    assert [(each.outcome, each.reason) for each in of_carl] == [("admitted", None)] * 2 + [("rate", "key")]
    assert (await admit(store, new(owner="fay"), rates=rates)).outcome == "admitted"


async def test_repeated_request_and_one_that_finds_no_slot_are_not_counted(store: Store) -> None:
    rates, first = Rates(0, 2), new(idempotency_key="k")
    assert (await admit(store, first, rates=rates)).outcome == "admitted"
    for _ in range(5):
        assert (await admit(store, new(idempotency_key="k"), rates=rates)).outcome == "existing"
        assert (await admit(store, rates=rates, running_per_key=1)).outcome == "full"
    assert (await admit(store, rates=rates)).outcome == "admitted"
    # Nor is one refused that was admitted before.
    assert (await admit(store, new(idempotency_key="k"), rates=rates)).outcome == "existing"
    assert (await admit(store, rates=rates)).outcome == "rate"


async def test_job_is_accepted_beyond_the_minute_and_waits_in_the_queue_for_it(
    store: Store, sql: asyncpg.Connection
) -> None:
    rates = Rates(0, 2)
    assert {(await enqueue(store)).outcome for _ in range(3)} == {"admitted"}
    other = new(caller_id="carl")
    await enqueue(store, other)
    claimed = [await claim(store, rates=rates) for _ in range(4)]
    assert other.id in claimed
    assert claimed.count(None) == 1
    await sql.execute("UPDATE executor.request_rates SET due = due - interval '30 seconds'")
    assert await claim(store, rates=rates) is not None


# Cooldowns ------------------------------------------------------------------------------------------------------------


async def test_cooldown_keeps_plain_calls_and_the_queue_from_a_key_until_it_is_over(
    store: Store, limits: LimitsStore, sql: asyncpg.Connection
) -> None:
    waiting = new()
    await enqueue(store, waiting)
    await limits.cool("ada", "key", "platform", timedelta(seconds=30), 1)
    refused = await admit(store, cooling=["key", "model:a/b"])
    assert (refused.outcome, refused.reason) == ("cooling", "platform")
    assert refused.wait_s is not None
    assert 29 < refused.wait_s <= 30
    assert await claim(store) is None
    assert (await admit(store, new(owner="fay"), cooling=["key"])).outcome == "admitted"
    await sql.execute("UPDATE executor.cooldowns SET until = now()")
    assert (await admit(store, cooling=["key"])).outcome == "admitted"
    assert await claim(store) == waiting.id


async def test_cooldown_of_a_model_or_of_free_models_leaves_the_others_of_the_key_alone(
    store: Store, limits: LimitsStore
) -> None:
    cooled, free, other = new(model_id="a/b"), new(model_id="a/c:free"), new(model_id="a/d")
    for row in (cooled, free, other):
        await enqueue(store, row)
    await limits.cool("ada", "model:a/b", "provider", timedelta(seconds=30), 1)
    await limits.cool("ada", "free", "free_tier", timedelta(seconds=30), 1)
    assert (await admit(store, cooling=["key", "model:a/b"])).reason == "provider"
    assert (await admit(store, cooling=["key", "free", "model:a/c:free"])).reason == "free_tier"
    assert (await admit(store, cooling=["key", "model:a/d"])).outcome == "admitted"
    assert [await claim(store), await claim(store)] == [other.id, None]


async def test_attempt_is_not_begun_while_what_it_needs_rests(store: Store, limits: LimitsStore) -> None:
    row = new()
    await admit(store, row)
    await limits.cool("ada", "key", "platform", timedelta(seconds=30), 1)
    assert not await store.begin_attempt(row.id, 2, ["key"])
    await limits.warm_up("ada", 2)
    assert await store.begin_attempt(row.id, 2, ["key"])


async def test_longer_cooldown_holds_and_another_key_owes_nothing_for_the_one_before(
    store: Store, limits: LimitsStore
) -> None:
    await limits.cool("ada", "key", "platform", timedelta(seconds=60), 2)
    await limits.cool("ada", "key", "free_tier", timedelta(seconds=5), 2)
    await limits.cool("ada", "key", "free_tier", timedelta(seconds=500), 1)  # a run that began with the former key
    await limits.warm_up("ada", 2)
    refused = await admit(store, cooling=["key"])
    assert refused.wait_s is not None
    assert 58 < refused.wait_s <= 60
    await limits.warm_up("ada", 3)
    assert (await admit(store, cooling=["key"])).outcome == "admitted"


# Daily limits ---------------------------------------------------------------------------------------------------------


async def test_200_who_ask_at_once_hold_no_more_than_the_limit(store: Store, sql: asyncpg.Connection) -> None:
    admissions = await asyncio.gather(*(admit(store, hold=hold("0.07")) for _ in range(200)))
    assert Counter(each.outcome for each in admissions) == {"admitted": 14, "budget": 186}
    assert await standing(sql) == (Decimal("0.98"), NOTHING)
    refused = next(each for each in admissions if each.outcome == "budget")
    assert (refused.reason, refused.limit_usd, refused.spent_usd, refused.held_usd) == (
        "key",
        DOLLAR,
        NOTHING,
        Decimal("0.98"),
    )


async def test_receipt_settles_what_was_held(store: Store, sql: asyncpg.Connection) -> None:
    rows = [(new(), uuid4()) for _ in range(3)]
    for row, token in rows:
        await admit(store, row, token, hold=hold("0.3"))
    final, pending, unknown = rows
    await store.finish(*_ids(final), ending(cost_usd=Decimal("0.01")))
    await store.finish(*_ids(pending), ending(cost_usd=None, cost_status="pending", price_usd=None, attempts=[]))
    await store.finish(*_ids(unknown), ending(cost_usd=None, cost_status="unknown", price_usd=None, attempts=[]))
    # What is being looked up is still held, what nobody can find out has cost all that was held.
    assert (await admit(store, hold=hold("0.4"))).outcome == "budget"
    assert await standing(sql) == (Decimal("0.3"), Decimal("0.31"))
    await sql.execute(
        "UPDATE executor.executions SET cost_status = 'final', cost_usd = 0.02 WHERE id = $1", pending[0].id
    )
    assert (await admit(store, hold=hold("0.4"))).outcome == "admitted"
    assert await standing(sql) == (Decimal("0.4"), Decimal("0.33"))


def _ids(run: tuple[NewExecution, UUID]) -> tuple[UUID, UUID]:
    return run[0].id, run[1]


async def test_each_of_the_three_limits_refuses_and_says_which(store: Store, sql: asyncpg.Connection) -> None:
    resource = uuid4()
    limited = hold("0.4", key=Decimal(10), resource_usd=DOLLAR, caller_usd=Decimal("0.5"))
    assert (await admit(store, new(resource_id=resource), hold=limited)).outcome == "admitted"
    assert (await admit(store, new(resource_id=resource), hold=limited)).reason == "caller"
    carl = [await admit(store, new(resource_id=resource, caller_id="carl"), hold=limited)]
    carl.append(await admit(store, new(resource_id=resource, caller_id="dora"), hold=limited))
    assert [(each.outcome, each.reason) for each in carl] == [("admitted", None), ("budget", "resource")]
    assert (await admit(store, new(resource_id=uuid4(), caller_id="dora"), hold=limited)).outcome == "admitted"
    assert (await standing(sql))[0] == Decimal("1.2")


async def test_live_and_test_runs_are_counted_apart(store: Store) -> None:
    assert (await admit(store, mode="test", hold=hold("0.8"))).outcome == "admitted"
    assert (await admit(store, mode="live", hold=hold("0.8"))).outcome == "admitted"
    assert (await admit(store, mode="live", hold=hold("0.8"))).outcome == "budget"


async def test_job_holds_from_when_it_is_accepted_and_gives_back_what_it_does_not_use(
    store: Store, sql: asyncpg.Connection
) -> None:
    job = new(idempotency_key="k")
    assert (await enqueue(store, job, hold=hold("0.6"))).outcome == "admitted"
    assert (await enqueue(store, new(idempotency_key="k"), hold=hold("0.6"))).outcome == "existing"
    assert (await enqueue(store, hold=hold("0.6"))).outcome == "budget"
    assert (await admit(store, hold=hold("0.6"))).outcome == "budget"
    token = uuid4()
    assert await store.claim(running_per_key=5, executor="e", lease_token=token) is not None
    await store.finish(job.id, token, ending(cost_usd=Decimal("0.1")))
    assert (await admit(store, hold=hold("0.6"))).outcome == "admitted"
    assert await standing(sql) == (Decimal("0.6"), Decimal("0.1"))


async def test_run_counts_on_the_day_on_which_it_was_admitted(store: Store, sql: asyncpg.Connection) -> None:
    row, token = new(), uuid4()
    await admit(store, row, token, hold=hold("0.9"))
    # Midnight comes.
    await sql.execute("UPDATE executor.budget_days SET day = day - 1")
    await sql.execute(
        "UPDATE executor.executions SET unsettled_day = unsettled_day - 1, created_at = created_at - interval '1 day'"
    )
    assert (await admit(store, hold=hold("0.9"))).outcome == "admitted"
    await store.finish(row.id, token, ending(cost_usd=Decimal("0.5")))
    assert (await admit(store, hold=hold("0.1"))).outcome == "admitted"
    days = await sql.fetch("SELECT held_usd, spent_usd FROM executor.budget_days WHERE scope = 'key' ORDER BY day")
    assert [tuple(day) for day in days] == [(0, Decimal("0.5")), (1, 0)]


async def test_first_limit_of_a_day_counts_what_ran_before_it(store: Store, sql: asyncpg.Connection) -> None:
    ended, under_way, token = new(), new(), uuid4()
    await admit(store, ended, token)
    await store.finish(ended.id, token, ending(cost_usd=Decimal("0.5")))
    await admit(store, under_way, token)
    assert (await admit(store, hold=hold("0.6"))).outcome == "budget"
    # What has no limit itself still uses up the key's, from now on.
    another, other_token = new(resource_id=uuid4()), uuid4()
    await admit(store, another, other_token)
    for execution_id, its_token in ((under_way.id, token), (another.id, other_token)):
        await store.finish(execution_id, its_token, ending(cost_usd=Decimal("0.1")))
    assert (await admit(store, hold=hold("0.31"))).outcome == "budget"
    assert (await admit(store, hold=hold("0.3"))).outcome == "admitted"
    assert await standing(sql) == (Decimal("0.3"), Decimal("0.7"))


async def test_creator_without_limits_leaves_no_trace(store: Store, sql: asyncpg.Connection) -> None:
    row, token = new(), uuid4()
    await admit(store, row, token)
    await store.finish(row.id, token, ending())
    assert await sql.fetchval("SELECT count(*) FROM executor.budget_days") == 0
    assert await sql.fetchval("SELECT count(*) FROM executor.executions WHERE unsettled_day IS NOT NULL") == 0


async def test_days_never_exceed_their_limit_whatever_ends_in_whatever_order(
    store: Store, sql: asyncpg.Connection
) -> None:
    """Forty askers with uneven runs, some of which end as pending or unknown, while others are admitted."""

    async def ask(number: int) -> None:
        for turn in range(6):
            row, token = new(caller_id=f"c{number % 5}"), uuid4()
            most = Decimal(1 + (number * 7 + turn * 3) % 17) / 100
            if (await admit(store, row, token, hold=Hold(most, DOLLAR, None, Decimal("0.4")))).outcome != "admitted":
                continue
            status = ("final", "final", "final", "pending", "unknown")[(number + turn) % 5]
            cost = most * (turn + 1) / 12 if status == "final" else None
            await store.finish(row.id, token, ending(cost_usd=cost, cost_status=status, attempts=[]))

    await asyncio.gather(*(ask(number) for number in range(40)))
    await admit(store, hold=hold("5"))  # counts what has ended
    held, spent = await standing(sql)
    truth = await sql.fetchrow(
        """SELECT coalesce(sum(hold_usd) FILTER (WHERE cost_status = 'pending'), 0) AS held,
                  sum(CASE cost_status WHEN 'final' THEN cost_usd WHEN 'unknown' THEN hold_usd ELSE 0 END) AS spent
           FROM executor.executions"""
    )
    assert (held, spent) == (truth["held"], truth["spent"])
    assert Decimal("0.8") < held + spent <= DOLLAR
    of_callers = await sql.fetch("SELECT held_usd + spent_usd AS used FROM executor.budget_days WHERE scope = 'caller'")
    assert max(each["used"] for each in of_callers) <= Decimal("0.4")


# The queue ------------------------------------------------------------------------------------------------------------


async def test_queue_leaves_a_slot_to_plain_calls_and_they_leave_one_to_it(
    store: Store, sql: asyncpg.Connection
) -> None:
    for _ in range(4):
        await enqueue(store)
    assert [await claim(store, 3) is not None for _ in range(3)] == [True, True, False]
    assert (await admit(store, running_per_key=3)).outcome == "admitted"
    await sql.execute("TRUNCATE executor.executions CASCADE")
    await enqueue(store)
    await sql.execute("UPDATE executor.executions SET created_at = created_at - interval '2 seconds'")
    admitted = [(await admit(store, running_per_key=3)).outcome for _ in range(3)]
    assert admitted == ["admitted", "admitted", "full"]
    assert await claim(store, 3) is not None


async def test_only_slot_of_a_key_is_for_whoever_comes_first(store: Store) -> None:
    await enqueue(store)
    assert await claim(store, 1) is not None


async def test_request_that_is_queued_and_made_at_once_is_one_run(store: Store, sql: asyncpg.Connection) -> None:
    for number in range(20):
        key = f"k{number}"
        outcomes = await asyncio.gather(
            *(admit(store, new(idempotency_key=key)) for _ in range(3)),
            *(enqueue(store, new(idempotency_key=key)) for _ in range(3)),
            # Another owner's lock does not stand between these and those.
            *(enqueue(store, new(idempotency_key=key, owner="fay")) for _ in range(2)),
        )
        assert Counter(each.outcome for each in outcomes) == {"admitted": 1, "existing": 7}
    assert await sql.fetchval("SELECT count(*) FROM executor.executions") == 20


async def test_thousands_of_queued_runs_of_a_full_key_are_leapt_over(store: Store, sql: asyncpg.Connection) -> None:
    await sql.execute(
        """INSERT INTO executor.executions (id, owner, caller_kind, caller_id, viewer, resource_version, model_id, mode,
               pricing, status, request_hash, job, job_key_id)
           SELECT gen_random_uuid(), 'full', 'user', 'c' || n % 10, 'gateway', 1, 'a/b', 'test', '{}', 'queued', 'h', 'j', 'k'
           FROM generate_series(1, 10000) AS n"""
    )
    await sql.execute("ANALYZE executor.executions")
    await admit(store, new(owner="full"))
    await enqueue(store, new(owner="zoe"))
    assert await claim(store, 1) is not None
    assert (
        await sql.fetchval("SELECT owner FROM executor.executions WHERE status = 'running' AND job IS NOT NULL")
        == "zoe"
    )
    # Not the first time: that one also reads how tables look.
    for _ in range(2):
        plan = "\n".join(
            row[0]
            for row in await sql.fetch(
                """EXPLAIN (ANALYZE, BUFFERS, TIMING OFF)
                   SELECT * FROM executor.claim(1, 'e', gen_random_uuid(), interval '15 seconds', 0, 0)"""
            )
        )
    pages = int(plan.split("shared hit=")[1].split()[0].strip(","))
    assert pages < 200, plan
