"""The executor's tables on a real Postgres: who is admitted and claimed, that a run ends once, and what is written with it."""

import asyncio
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from contracts.base import new_execution_id
from services.executor.backlog_store import BacklogStore
from services.executor.limits import Admission
from services.executor.media_store import IndexedFile, MediaIndex
from services.executor.store import Ending, NewExecution, OutgoingMessage, Store

RECEIPT = {"revision": 1, "note": "first"}
MESSAGE = OutgoingMessage("x402jobs.v1.execution.finished", "id:1", b"{}")


@pytest_asyncio.fixture(autouse=True)
async def sql(superuser: asyncpg.Connection) -> asyncpg.Connection:
    """The superuser, to look and to move time, on empty tables."""
    await superuser.execute("TRUNCATE executor.executions, executor.x402_cached_images, executor.outbox CASCADE")
    return superuser


@pytest.fixture
def store(pool: asyncpg.Pool) -> Store:
    return Store(pool, lease_s=15)


def new(**changes: Any) -> NewExecution:
    values: dict[str, Any] = {
        "id": new_execution_id(),
        "owner": "ada",
        "caller_kind": "user",
        "caller_id": "bob",
        "viewer": "gateway",
        "resource_id": None,
        "resource_version": 1,
        "model_id": "a/b",
        "pricing": {"mode": "fixed", "price_usd": "0.01"},
        "idempotency_key": None,
        "request_hash": b"same",
        **changes,
    }
    return NewExecution(**values)


async def admit(store: Store, row: NewExecution, *, limit: int = 5, token: UUID | None = None) -> Admission:
    return await store.admit(row, mode="test", running_per_key=limit, executor="e1", lease_token=token or uuid4())


async def enqueue(store: Store, row: NewExecution) -> Admission:
    return await store.enqueue(row, mode="test", job=b"locked", job_key_id="k1")


async def claim(store: Store, limit: int = 5) -> UUID | None:
    row = await store.claim(running_per_key=limit, executor="e1", lease_token=uuid4())
    return row.id if row is not None else None


async def running(store: Store, **changes: Any) -> tuple[UUID, UUID]:
    """Id and lease token of a run that was admitted."""
    row, token = new(**changes), uuid4()
    assert (await admit(store, row, token=token)).outcome == "admitted"
    return row.id, token


def ending(**changes: Any) -> Ending:
    values: dict[str, Any] = {
        "status": "succeeded",
        "mode": "test",
        "error": None,
        "truncated": False,
        "last_seq": 3,
        "price_usd": Decimal("0.01"),
        "cost_usd": Decimal("0.0000258"),
        "cost_status": "final",
        "result": b"locked",
        "result_key_id": "k1",
        "keep": timedelta(hours=24),
        "receipt": RECEIPT,
        "attempts": [
            {
                "number": 1,
                "generation_id": "gen-1",
                "status": "succeeded",
                "code": None,
                "http_status": 200,
                "cost_usd": "0.0000258",
                "cost_status": "final",
            }
        ],
        "media": [],
        "messages": [MESSAGE],
        **changes,
    }
    return Ending(**values)


async def count(sql: asyncpg.Connection, table: str) -> int:
    number: int = await sql.fetchval(f"SELECT count(*) FROM executor.{table}")
    return number


# Admission ------------------------------------------------------------------------------------------------------------


async def test_exactly_the_limit_is_admitted_when_200_ask_at_once(store: Store, sql: asyncpg.Connection) -> None:
    admissions = await asyncio.gather(*(admit(store, new(), limit=5) for _ in range(200)))
    assert Counter(admission.outcome for admission in admissions) == {"admitted": 5, "full": 195}
    assert await count(sql, "executions") == await count(sql, "attempts") == 5


async def test_refusal_writes_no_row_and_binds_no_key(store: Store, sql: asyncpg.Connection) -> None:
    await admit(store, new(), limit=1)
    refused = new(idempotency_key="k")
    assert (await admit(store, refused, limit=1)).outcome == "full"
    assert await count(sql, "executions") == await count(sql, "attempts") == 1
    other_body = new(idempotency_key="k", request_hash=b"other")
    assert (await admit(store, other_body, limit=2)).outcome == "admitted"


async def test_admitted_run_is_running_with_its_first_attempt(store: Store, sql: asyncpg.Connection) -> None:
    execution_id, token = await running(store)
    row = await store.get(execution_id)
    assert row is not None
    assert (row.status, row.lease_token, row.mode, row.price_usd) == ("running", token, "test", None)
    [attempt] = await store.attempts(execution_id)
    assert (attempt.number, attempt.status, attempt.cost_usd, attempt.cost_status) == (1, "running", None, None)
    assert 14 < await sql.fetchval("SELECT extract(epoch FROM lease_until - now()) FROM executor.executions") <= 15


async def test_one_run_is_admitted_when_the_same_key_comes_20_times_at_once(store: Store) -> None:
    admissions = await asyncio.gather(*(admit(store, new(idempotency_key="k")) for _ in range(20)))
    assert Counter(admission.outcome for admission in admissions) == {"admitted": 1, "existing": 19}
    assert len({admission.execution_id for admission in admissions}) == 1


async def test_one_run_is_admitted_when_the_same_key_comes_for_two_owners_at_once(store: Store) -> None:
    rows = [new(owner=f"o{i}", idempotency_key="k", request_hash=b"%d" % i) for i in range(10)]
    admissions = await asyncio.gather(*(admit(store, row) for row in rows))
    assert Counter(admission.outcome for admission in admissions) == {"admitted": 1, "conflict": 9}


async def test_same_key_finds_its_run_whatever_became_of_it(store: Store) -> None:
    execution_id, token = await running(store, idempotency_key="k")
    assert await store.finish(execution_id, token, ending(status="failed", result=None, result_key_id=None))
    again = await admit(store, new(idempotency_key="k"))
    assert (again.outcome, again.execution_id) == ("existing", execution_id)


async def test_same_key_finds_its_run_though_no_slot_is_free(store: Store) -> None:
    execution_id, _ = await running(store, idempotency_key="k")
    again = await admit(store, new(idempotency_key="k"), limit=1)
    assert (again.outcome, again.execution_id) == ("existing", execution_id)


async def test_same_key_is_a_conflict_when_the_body_is_another(store: Store, sql: asyncpg.Connection) -> None:
    await running(store, idempotency_key="k")
    assert (await admit(store, new(idempotency_key="k", request_hash=b"other"))).outcome == "conflict"
    assert (await enqueue(store, new(idempotency_key="k", request_hash=b"other"))).outcome == "conflict"
    assert await count(sql, "executions") == 1


async def test_same_key_of_another_caller_is_another_run(store: Store) -> None:
    await running(store, idempotency_key="k")
    assert (await admit(store, new(idempotency_key="k", caller_id="carl"))).outcome == "admitted"
    assert (await admit(store, new(idempotency_key="k", caller_kind="service"))).outcome == "admitted"


async def test_same_id_is_a_conflict_when_the_caller_is_another(store: Store) -> None:
    execution_id, _ = await running(store)
    for other in (new(id=execution_id, caller_id="eve"), new(id=execution_id, caller_kind="service")):
        assert (await admit(store, other)).outcome == "conflict"
        assert (await enqueue(store, other)).outcome == "conflict"
    assert (await admit(store, new(id=execution_id))).outcome == "existing"


async def test_key_is_free_again_after_24_hours(store: Store, sql: asyncpg.Connection) -> None:
    first, _ = await running(store, idempotency_key="k")
    later = new(idempotency_key="k", request_hash=b"other")
    await sql.execute("UPDATE executor.executions SET created_at = now() - interval '23 hours 59 minutes'")
    assert (await admit(store, later)).outcome == "conflict"
    await sql.execute("UPDATE executor.executions SET created_at = now() - interval '24 hours 1 second'")
    again = await admit(store, later)
    assert (again.outcome, again.execution_id) == ("admitted", later.id)
    assert (await admit(store, new(id=first))).outcome == "existing"


async def test_key_of_a_queued_run_is_free_again_after_24_hours(store: Store, sql: asyncpg.Connection) -> None:
    first = await enqueue(store, new(idempotency_key="k"))
    assert (await enqueue(store, new(idempotency_key="k"))).execution_id == first.execution_id
    await sql.execute("UPDATE executor.executions SET created_at = now() - interval '24 hours 1 second'")
    second = await enqueue(store, new(idempotency_key="k"))
    assert second.outcome == "admitted"
    assert second.execution_id != first.execution_id


async def test_slot_is_free_once_its_lease_ran_out(store: Store, sql: asyncpg.Connection) -> None:
    await running(store)
    assert (await admit(store, new(), limit=1)).outcome == "full"
    await sql.execute("UPDATE executor.executions SET lease_until = now() - interval '1 millisecond'")
    assert (await admit(store, new(), limit=1)).outcome == "admitted"


# Claiming -------------------------------------------------------------------------------------------------------------


async def test_callers_of_one_key_are_served_in_turn(store: Store) -> None:
    greedy = [new(caller_id="bob") for _ in range(4)]
    modest = [new(caller_id="carl") for _ in range(2)]
    for row in [*greedy, *modest]:
        await enqueue(store, row)
    # The sixth slot is for plain calls.
    claimed = [await claim(store, limit=6) for _ in range(6)]
    in_turn = [greedy[0], modest[0], greedy[1], modest[1], greedy[2]]
    assert claimed == [row.id for row in in_turn] + [None]


async def test_owner_without_a_free_slot_is_passed_over(store: Store) -> None:
    await running(store, owner="ada")
    await enqueue(store, new(owner="ada"))
    other = new(owner="carl")
    await enqueue(store, other)
    assert await claim(store, limit=1) == other.id
    assert await claim(store, limit=1) is None


async def test_row_that_another_claimer_holds_is_passed_over(store: Store, sql: asyncpg.Connection) -> None:
    first, second = new(owner="ada"), new(owner="carl")
    await enqueue(store, first)
    await enqueue(store, second)
    async with sql.transaction():
        await sql.execute("SELECT id FROM executor.executions WHERE id = $1 FOR UPDATE", first.id)
        assert await asyncio.wait_for(claim(store), 2) == second.id
        assert await asyncio.wait_for(claim(store), 2) is None
    assert await claim(store) == first.id


async def test_every_queued_run_is_claimed_once_when_ten_claim_at_once(store: Store, sql: asyncpg.Connection) -> None:
    rows = [new(owner=f"o{i}") for i in range(10)]
    for row in rows:
        await enqueue(store, row)
    claimed = await asyncio.gather(*(claim(store) for _ in range(10)))
    assert sorted(str(execution_id) for execution_id in claimed) == sorted(str(row.id) for row in rows)
    assert await count(sql, "attempts") == 10


async def test_limit_holds_when_admission_and_claim_meet(store: Store, sql: asyncpg.Connection) -> None:
    for _ in range(20):
        await enqueue(store, new())
    await asyncio.gather(*(work for _ in range(20) for work in (claim(store, 5), admit(store, new(), limit=5))))
    assert await sql.fetchval("SELECT count(*) FROM executor.executions WHERE status = 'running'") == 5


async def test_run_that_was_put_back_is_claimed_again_and_frees_its_slot(store: Store) -> None:
    row, token = new(), uuid4()
    await enqueue(store, row)
    assert await store.claim(running_per_key=1, executor="e", lease_token=token) is not None
    assert not await store.put_back(row.id, uuid4())
    assert await store.put_back(row.id, token)
    assert not await store.put_back(row.id, token)
    assert await claim(store, limit=1) == row.id
    assert len(await store.attempts(row.id)) == 1


async def test_run_whose_end_was_asked_for_is_not_put_back(store: Store) -> None:
    row, token = new(), uuid4()
    await enqueue(store, row)
    await store.claim(running_per_key=1, executor="e", lease_token=token)
    await store.request_cancel(row.id)
    assert not await store.put_back(row.id, token)


# Ending ---------------------------------------------------------------------------------------------------------------


async def test_run_ends_once_when_many_try(store: Store, sql: asyncpg.Connection) -> None:
    execution_id, token = await running(store)
    done = await asyncio.gather(*(store.finish(execution_id, token, ending()) for _ in range(8)))
    assert sorted(done) == [False] * 7 + [True]
    assert await count(sql, "receipts") == await count(sql, "outbox") == 1
    found = await store.get_with_receipts(execution_id)
    assert found is not None
    row, [receipt] = found
    assert (row.status, row.price_usd, row.cost_usd) == ("succeeded", Decimal("0.01"), Decimal("0.0000258"))
    [attempt] = await store.attempts(execution_id)
    assert (attempt.generation_id, attempt.cost_usd, attempt.status) == ("gen-1", Decimal("0.0000258"), "succeeded")
    assert receipt.pop("written_at")
    assert receipt == RECEIPT


async def test_run_is_not_ended_under_a_lease_that_was_lost(store: Store, sql: asyncpg.Connection) -> None:
    execution_id, token = await running(store)
    assert not await store.finish(execution_id, uuid4(), ending())
    assert await count(sql, "receipts") == await count(sql, "outbox") == 0
    assert await store.finish(execution_id, token, ending())


async def test_many_runs_are_admitted_and_ended_together_each_with_what_is_its_own(
    store: Store, sql: asyncpg.Connection
) -> None:
    runs = [(new(owner=f"o{number % 3}"), uuid4()) for number in range(30)]
    admissions = await asyncio.gather(*(admit(store, row, limit=8, token=token) for row, token in runs))
    kept = [pair for pair, admission in zip(runs, admissions, strict=True) if admission.outcome == "admitted"]
    assert [admission.execution_id for admission in admissions] == [row.id for row, _ in runs]
    assert sorted(row.owner for row, _ in kept) == ["o0"] * 8 + ["o1"] * 8 + ["o2"] * 8

    def end_of(number: int) -> Ending:
        media = ["never-stored.png"] if number == 5 else []
        messages = [OutgoingMessage("s", f"{number}:{part}", b"{}") for part in range(number % 3)]
        return ending(price_usd=Decimal(number), media=media, messages=messages)

    done = await asyncio.gather(
        *(store.finish(row.id, token, end_of(number)) for number, (row, token) in enumerate(kept)),
        return_exceptions=True,
    )
    assert isinstance(done[5], asyncpg.ForeignKeyViolationError)
    assert done[:5] + done[6:] == [True] * 23
    for number, (row, _) in enumerate(kept):
        found = await store.get(row.id)
        assert found is not None
        expected = ("running", None) if number == 5 else ("succeeded", Decimal(number))
        assert (found.status, found.price_usd) == expected
    said = await sql.fetch("SELECT message_id FROM executor.outbox")
    expected_said = [f"{number}:{part}" for number in range(24) if number != 5 for part in range(number % 3)]
    assert sorted(record["message_id"] for record in said) == sorted(expected_said)


@pytest.mark.parametrize("broken", ["message", "receipt", "media"])
async def test_nothing_of_an_end_is_written_when_a_part_of_it_fails(
    store: Store, sql: asyncpg.Connection, broken: str
) -> None:
    execution_id, token = await running(store)
    end = ending()
    if broken == "message":
        end = ending(messages=[MESSAGE, OutgoingMessage("s", "id:2", None)])  # type: ignore[arg-type]
    if broken == "media":
        end = ending(media=["never-stored.png"])
    if broken == "receipt":
        await sql.execute(
            "INSERT INTO executor.receipts (execution_id, revision, owner, body) VALUES ($1, 1, 'ada', '{}')",
            execution_id,
        )
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await store.finish(execution_id, token, end)
    row = await store.get(execution_id)
    assert row is not None
    assert (row.status, row.result, row.finished_at) == ("running", None, None)
    assert await count(sql, "outbox") == 0
    assert await count(sql, "receipts") == (1 if broken == "receipt" else 0)


async def test_end_keeps_a_reference_to_each_file_once(store: Store, sql: asyncpg.Connection) -> None:
    execution_id, token = await running(store)
    await MediaIndex(store._pool).claim(IndexedFile("a.png", "image/png", 3, 1, 1))
    assert await store.finish(execution_id, token, ending(media=["a.png", "a.png"]))
    references = await sql.fetch("SELECT name, execution_id FROM executor.media_references")
    assert [tuple(record) for record in references] == [("a.png", execution_id)]


async def test_queued_run_is_taken_once_and_needs_no_slot(store: Store) -> None:
    await running(store)
    row = new()
    await enqueue(store, row)
    taken = await asyncio.gather(*(store.take_queued(row.id, executor="e", lease_token=uuid4()) for _ in range(4)))
    assert sorted(taken) == [False, False, False, True]
    assert await claim(store) is None


async def test_cancel_flags_what_has_not_ended(store: Store) -> None:
    execution_id, token = await running(store)
    queued = new()
    await enqueue(store, queued)
    assert await store.request_cancel(queued.id) == "queued"
    assert await store.request_cancel(execution_id) == "running"
    assert await store.renew([token]) == {token: True}
    assert await store.finish(execution_id, token, ending())
    assert await store.request_cancel(execution_id) is None
    assert await store.request_cancel(uuid4()) is None


# Leases ---------------------------------------------------------------------------------------------------------------


async def test_renewal_answers_what_is_still_held(store: Store, sql: asyncpg.Connection) -> None:
    (_, held), (ended_id, ended), (lost_id, lost) = [await running(store) for _ in range(3)]
    await store.finish(ended_id, ended, ending())
    await sql.execute("UPDATE executor.executions SET lease_token = $2 WHERE id = $1", lost_id, uuid4())
    await sql.execute("UPDATE executor.executions SET lease_until = now() + interval '1 second'")
    assert await store.renew([held, ended, lost, uuid4()]) == {held: False}
    renewed = "SELECT count(*) FROM executor.executions WHERE lease_until > now() + interval '14 seconds'"
    assert await sql.fetchval(renewed) == 1


async def test_expired_run_is_found_by_the_clock_of_the_database(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    store = Store(pool, lease_s=0.2)
    dead, _ = await running(store)
    alive, _ = await running(store)
    await sql.execute("UPDATE executor.executions SET lease_until = now() - interval '1 second' WHERE id = $1", dead)
    await sql.execute("UPDATE executor.executions SET lease_until = now() + interval '1 hour' WHERE id = $1", alive)
    assert [row.id for row in await store.expired()] == [dead]


async def test_nobody_is_expired_when_the_database_has_only_just_come_back(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    store = Store(pool, lease_s=86_400)
    await running(store)
    await sql.execute("UPDATE executor.executions SET lease_until = now() - interval '1 hour'")
    assert await store.expired() == []


# Keeping --------------------------------------------------------------------------------------------------------------


async def test_output_is_erased_when_its_time_has_come_and_the_receipt_stays(
    store: Store, sql: asyncpg.Connection
) -> None:
    (short, token), (long, other) = [await running(store) for _ in range(2)]
    await store.finish(short, token, ending(keep=timedelta(0)))
    await store.finish(long, other, ending())
    assert await store.erase_expired_results() == 1
    assert await store.erase_expired_results() == 0
    rows = [await store.get(execution_id) for execution_id in (short, long)]
    assert [row.result if row else None for row in rows] == [None, b"locked"]
    assert await count(sql, "receipts") == 2


async def test_job_is_erased_when_its_run_ends(store: Store) -> None:
    row, token = new(), uuid4()
    await enqueue(store, row)
    claimed = await store.claim(running_per_key=5, executor="e", lease_token=token)
    assert claimed is not None
    assert claimed.job == b"locked"
    await store.finish(row.id, token, ending())
    ended = await store.get(row.id)
    assert ended is not None
    assert (ended.job, ended.job_key_id) == (None, None)


async def test_role_of_the_service_cannot_change_a_receipt(store: Store, pool: asyncpg.Pool) -> None:
    execution_id, token = await running(store)
    await store.finish(execution_id, token, ending())
    for statement in ("UPDATE executor.receipts SET body = '{}'", "DELETE FROM executor.receipts"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)


# Costs looked up later ------------------------------------------------------------------------------------------------


async def pending(store: Store, numbers: int = 1) -> UUID:
    """A run that ended with calls whose cost is not known yet."""
    execution_id, token = await running(store)
    for number in range(2, numbers + 1):
        await store.begin_attempt(execution_id, number)
    attempts = [
        {**ending().attempts[0], "number": n, "cost_usd": None, "cost_status": "pending"} for n in range(1, numbers + 1)
    ]
    await store.finish(execution_id, token, ending(cost_usd=None, cost_status="pending", attempts=attempts))
    return execution_id


async def test_pending_cost_is_taken_by_one_and_left_alone_for_longer_each_time(
    store: Store, sql: asyncpg.Connection
) -> None:
    execution_id = await pending(store)
    assert await store.pending_costs(10, timedelta(seconds=1)) == []
    waits = []
    for lookups in (1, 2, 3):
        await sql.execute("UPDATE executor.attempts SET next_lookup_at = now()")
        takers = await asyncio.gather(*(store.pending_costs(10, timedelta(seconds=1)) for _ in range(4)))
        [taken] = [pending for taken in takers for pending in taken]
        assert (taken.execution_id, taken.number, taken.lookups, taken.owner) == (execution_id, 1, lookups, "ada")
        waits.append(
            await sql.fetchval("SELECT round(extract(epoch FROM next_lookup_at - now())) FROM executor.attempts")
        )
    assert waits == [1, 2, 4]
    await sql.execute("UPDATE executor.attempts SET started_at = now() - interval '1 hour'")
    waiting = await BacklogStore(store._pool).read()
    assert (waiting.jobs, waiting.costs) == (0, 1)
    assert waiting.oldest_job_s == 0
    assert 3600 <= waiting.oldest_lookup_s < 3660


# Looking --------------------------------------------------------------------------------------------------------------


async def test_pages_are_newest_first_and_without_gaps(store: Store) -> None:
    mine = sorted([(await running(store, owner=f"o{i}"))[0] for i in range(5)])
    other, _ = await running(store, caller_id="carl", owner="o9")
    await running(store, caller_id="carl", owner="o8")
    query: dict[str, Any] = {"owner": None, "resource_id": None, "status": None}
    first = await store.page(caller=("user", "bob"), before=None, limit=3, **query)
    rest = await store.page(caller=("user", "bob"), before=first[-1].id, limit=3, **query)
    assert [row.id for row in [*first, *rest]] == mine[::-1]
    owned = await store.page(caller=None, owner="o9", resource_id=None, status="running", before=None, limit=9)
    assert [row.id for row in owned] == [other]
    assert await store.page(caller=("service", "bob"), before=None, limit=3, **query) == []
