"""What goes on behind runs: leases are kept and taken over, costs are looked up later, messages leave the outbox, and all of
that survives an executor, a database or a bus that dies."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from structlog.typing import EventDict

from contracts.base import new_execution_id
from contracts.catalog import CostPlusPrice, Timeouts
from contracts.errors import ErrorCode
from contracts.execution import Caller, CallerReceipt, Cost, ExecutionAccepted, Receipt
from contracts.subjects import DRAFTS_CHECK, EXECUTION_FINISHED, MESSAGE_ID_HEADER, RECEIPTS_STREAM
from deploy.local.credentials import Credentials
from deploy.local.migrate import migrate, services_with_migrations, set_passwords
from deploy.local.nats import Nats
from deploy.local.ports import free_port
from deploy.local.postgres import Postgres
from services.executor import costs, keeper, main
from services.executor.frames import Frames
from services.executor.metrics import ExecutorMetrics
from services.executor.store import NewExecution, Store
from services.runtime.postgres import create_pool
from tests.integration.executor_parts import ADA, BOB, CENT, House, begin, executor_in, house_without_executor
from tests.stack import Database
from tests.waiting import PATIENCE_S, until

COST_PLUS = CostPlusPrice(mode="cost_plus", markup_percent=Decimal(100), max_usd=Decimal(1))
FREE = Decimal(0)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """What was logged; printing a traceback for everything that fails here on purpose would hold up what is tested."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a second, renewed and reaped ten times as often."""
    monkeypatch.setattr(main, "LEASE_S", 1.0)
    monkeypatch.setattr(keeper, "RENEW_EVERY_S", 0.1)


@pytest.fixture
def short_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lookups, all of them soon."""
    monkeypatch.setattr(costs, "_MOST_LOOKUPS", 3)
    monkeypatch.setattr(costs, "_FIRST_RETRY", timedelta(milliseconds=10))
    monkeypatch.setattr(costs, "_EVERY_S", 0.05)


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0


async def orphan(house: House, generation_id: str | None, *, caller: Caller = BOB) -> UUID:
    """A run of an executor that died: its row, its first attempt, and perhaps the id of its call."""
    new = NewExecution(
        id=new_execution_id(),
        owner="ada",
        caller_kind=caller.kind,
        caller_id=caller.id,
        viewer="gateway",
        resource_id=None,
        resource_version=1,
        model_id="sandbox/echo",
        pricing=CENT.model_dump(mode="json"),
        idempotency_key=None,
        request_hash=b"",
    )
    async with create_pool(house.settings().postgres_url.get_secret_value(), service="executor") as pool:
        store = Store(pool, lease_s=0.01)
        await store.admit(new, mode="test", running_per_key=9, executor="died", lease_token=uuid4())
        if generation_id is not None:
            await store.note_generations([(new.id, 1, generation_id)])
    return new.id


async def generation(house: House) -> tuple[str, Decimal]:
    """A call that was really made, by its id and cost."""
    response = await house.sandbox.post(
        "/api/v1/chat/completions",
        headers={"Authorization": f"Bearer {house.other.keys['ada']}"},
        json={"model": "sandbox/echo", "messages": [{"role": "user", "content": "hello"}], "stream": True},
    )
    assert response.status_code == 200
    [call] = await house.calls()
    return call["generation_id"], Decimal(call["cost"])


async def break_once(house: House, table: str, event: str, condition: str) -> None:
    """Let a write of this kind fail until `mend`."""
    await house.database.execute(
        f"""CREATE FUNCTION executor.break_it() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'broken by a test'; END $$;
            CREATE TRIGGER broken BEFORE {event} ON executor.{table}
            FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION executor.break_it()"""
    )


async def mend(house: House, table: str) -> None:
    await house.database.execute(f"DROP TRIGGER broken ON executor.{table}; DROP FUNCTION executor.break_it")


# Leases ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_leases")
async def test_lease_is_renewed_while_its_run_goes_on(house: House) -> None:
    async with executor_in(house), executor_in(house):
        execution_id, running = begin(house, house.other.offer("sandbox/long"))
        await house.until_frame(execution_id, "started")
        row = await house.row(execution_id)
        assert row is not None
        end_of_first_lease = row["lease_until"]

        async def outlived() -> bool:
            row = await house.row(execution_id)
            return row is not None and row["lease_until"] > end_of_first_lease + timedelta(seconds=1)

        await until(outlived)
        assert await house.status_of(execution_id) == "running"
        await house.cancel(execution_id)
        assert (await running).status == "canceled"


@pytest.mark.usefixtures("short_leases")
async def test_run_stops_and_leaves_the_end_to_others_when_its_lease_is_lost(house: House) -> None:
    async with executor_in(house):
        execute = house.execute(house.other.offer("sandbox/long"))
        running = asyncio.create_task(house.ask(execute))
        assert execute.execution_id is not None
        await house.until_frame(execute.execution_id, "text")
        await house.database.execute(
            "UPDATE executor.executions SET lease_token = gen_random_uuid(), lease_until = now() + interval '1 hour'"
        )
        assert await running == ExecutionAccepted(execution_id=execute.execution_id, status="running")
        await until(lambda: house.calls("cancelled"))
        assert await house.receipts(execute.execution_id) == []


@pytest.mark.usefixtures("short_leases")
async def test_caller_hears_the_end_that_somebody_else_wrote_first(house: House) -> None:
    async with executor_in(house):
        execution_id, running = begin(house, house.other.offer("sandbox/long"))
        await house.until_frame(execution_id, "text")
        await house.database.execute(
            """UPDATE executor.executions SET status = 'interrupted', finished_at = now(),
                   error = '{"code": "unavailable", "message": "Ended by another."}'"""
        )
        error = await house.refused(running)
        assert (error.code, error.body.message) == (ErrorCode.UNAVAILABLE, "Ended by another.")
        assert (await house.until_frame(execution_id, "failed"))["data"]["message"] == "Ended by another."
        await until(lambda: house.calls("cancelled"))
        assert await house.receipts(execution_id) == []


@pytest.mark.usefixtures("short_leases")
async def test_renewal_hears_a_cancel_that_no_message_told(house: House) -> None:
    async with executor_in(house):
        execution_id, running = begin(house, house.other.offer("sandbox/long"))
        await house.until_frame(execution_id, "text")
        await house.database.execute("UPDATE executor.executions SET cancel_requested = true")
        assert (await asyncio.wait_for(running, PATIENCE_S)).status == "canceled"


@pytest.mark.usefixtures("short_leases")
async def test_run_of_a_dead_executor_is_ended_by_one_of_two_reapers(house: House) -> None:
    generation_id, cost = await generation(house)
    demo = Caller(kind="service", id="demo")
    known = await orphan(house, generation_id, caller=demo)
    unknown = await orphan(house, None)
    async with executor_in(house) as first, executor_in(house) as second:
        for execution_id in (known, unknown):
            await house.until_status(execution_id, "interrupted")
        receipt, lost = await house.receipt(known), await house.receipt(unknown)
        for ended in (receipt, lost):
            assert (ended.status, ended.code) == ("interrupted", ErrorCode.UNAVAILABLE)
            assert (ended.cost.price_usd, ended.cost.model_usd) == (FREE, None)
        assert (receipt.cost.status, lost.cost.status) == ("pending", "unknown")
        revised = await house.revised(known)
        assert revised.cost == Cost(model_usd=cost, markup_usd=-cost, price_usd=FREE, status="final")
        assert revised.attempts[0].generation_id == generation_id
        view = await house.view(unknown)
        assert view.error is not None
        assert (view.error.code, view.error.retryable) == (ErrorCode.UNAVAILABLE, True)
        for execution_id in (known, unknown):
            await house.until_finished(f"{execution_id}:1")
        later = CallerReceipt.model_validate_json((await house.until_finished(f"demo:{known}:2")).data)
        assert later.error is not None
        assert later.error.code is ErrorCode.UNAVAILABLE
        labels = {"status": "interrupted", "code": "unavailable"}
        assert sum(counted(s.registry, "x402jobs_executions_total", **labels) for s in (first, second)) == 2
    assert [len(await house.receipts(execution_id)) for execution_id in (known, unknown)] == [2, 1]


@pytest.mark.usefixtures("short_leases")
async def test_one_look_of_the_reaper_ends_however_many_runs_died(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RENEW_EVERY_S", 1.0)
    dead = [await orphan(house, None) for _ in range(25)]
    async with executor_in(house):
        await house.until_status(dead[0], "interrupted")
        monkeypatch.setattr(keeper, "RENEW_EVERY_S", 3600)  # there is no second look
        for execution_id in dead:
            await house.until_status(execution_id, "interrupted")


@pytest.mark.usefixtures("short_leases")
async def test_end_of_a_reaped_run_has_a_number_and_is_told_to_whoever_watches(house: House) -> None:
    demo = Caller(kind="service", id="demo")
    dead = await orphan(house, None, caller=demo)
    lease = "UPDATE executor.executions SET lease_until = now() + $1::interval"
    await house.database.execute(lease, timedelta(hours=1))
    async with executor_in(house) as service:
        frames = Frames(service.bus.nc, "gateway", dead, ExecutorMetrics(CollectorRegistry()).frames_lost)
        for word in ("Rain", " falls"):
            await frames.text(word)
        await service.bus.nc.flush()
        await house.database.execute(lease, timedelta(hours=-1))
        failed = await house.until_frame(dead, "failed")
        assert (failed["seq"], failed["data"]["code"]) == (3, "unavailable")
        view = await house.view(dead, demo)
        assert (view.status, view.last_seq) == ("interrupted", 3)


async def test_slot_of_a_dead_executor_is_free_before_it_is_reaped(house: House) -> None:
    dead = await orphan(house, None)
    async with executor_in(house, running_per_key=1, slot_wait_s=0):
        await house.run(house.other.offer("sandbox/echo"))
    assert await house.status_of(dead) == "running"


# Costs that are known later -------------------------------------------------------------------------------------------


async def test_price_that_depends_on_a_pending_cost_is_known_with_it(house: House) -> None:
    async with executor_in(house):
        result = await house.run(house.other.offer("sandbox/no-usage", pricing=COST_PLUS), caller=ADA)
        assert result.cost == Cost(model_usd=None, markup_usd=None, price_usd=None, status="pending")
        revised = await house.revised(result.execution_id)
        [call] = await house.calls()
        cost = Decimal(call["cost"])
        price = (cost * 2).quantize(Decimal("0.000001"))
        assert cost > 0
        assert revised.cost == Cost(model_usd=cost, markup_usd=price - cost, price_usd=price, status="final")
        message = await house.until_finished(f"{result.execution_id}:2")
        assert Receipt.model_validate_json(message.data) == revised
        view = await house.view(result.execution_id, ADA)
        assert view.result is not None
        assert view.cost == view.result.cost == revised.cost
        assert view.receipt == revised


@pytest.mark.usefixtures("short_lookups", "short_leases")
async def test_cost_nobody_knows_becomes_unknown_and_never_zero(house: House) -> None:
    execution_id = await orphan(house, "gen-never-heard-of")
    async with executor_in(house) as service:
        revised = await house.revised(execution_id)
        assert (revised.cost.status, revised.cost.model_usd, revised.attempts[0].cost_usd) == ("unknown", None, None)
        [attempt] = await house.attempts(execution_id)
        assert (attempt["cost_status"], attempt["cost_usd"], attempt["lookups"]) == ("unknown", None, 3)

        async def alarmed() -> bool:
            return counted(service.registry, "x402jobs_cost_unknown_total") == 1

        await until(alarmed)


@pytest.mark.usefixtures("short_lookups")
async def test_pending_cost_stays_pending_until_its_revision_could_be_written(
    house: House, logs: list[EventDict]
) -> None:
    await break_once(house, "receipts", "INSERT", "NEW.revision = 2")
    async with executor_in(house):
        result = await house.run(house.other.offer("sandbox/no-usage"))

        async def failed() -> bool:
            return any(log["event"] == "background_failed" and log["task"] == "PendingCosts.look_up" for log in logs)

        await until(failed)
        [attempt] = await house.attempts(result.execution_id)
        assert attempt["cost_status"] == "pending"
        await mend(house, "receipts")
        assert (await house.revised(result.execution_id)).cost.status == "final"


# Generation ids -------------------------------------------------------------------------------------------------------


async def test_generation_id_is_written_while_the_call_goes_on_also_after_a_failure(
    house: House, logs: list[EventDict]
) -> None:
    async def failed() -> bool:
        return any(log["event"] == "background_failed" and log["task"] == "GenerationNotes.write" for log in logs)

    await break_once(house, "attempts", "UPDATE", "NEW.generation_id IS NOT NULL AND NEW.status = 'running'")
    async with executor_in(house):
        execution_id, running = begin(house, house.other.offer("sandbox/long"))
        await until(failed)
        [attempt] = await house.attempts(execution_id)
        assert attempt["generation_id"] is None
        await mend(house, "attempts")

        async def noted() -> str | None:
            [attempt] = await house.attempts(execution_id)
            return attempt["generation_id"] if attempt["status"] == "running" else None

        found = await until(noted)
        [call] = await house.calls()
        assert found == call["generation_id"]
        await house.cancel(execution_id)
        await running


# The outbox -----------------------------------------------------------------------------------------------------------


async def outbox_size(house: House) -> int:
    size: int = await house.database.fetchval("SELECT count(*) FROM executor.outbox")
    return size


async def test_message_nobody_acknowledges_stays_and_holds_up_no_other(house: House) -> None:
    # Nobody hears this subject here: the executor may publish it, and is told so.
    await house.database.execute(
        "INSERT INTO executor.outbox (subject, message_id, payload) VALUES ($1, 'stuck', '{}')",
        DRAFTS_CHECK.subject,
    )
    async with executor_in(house):
        result = await house.run(house.other.offer("sandbox/fast"))
        await house.until_finished(f"{result.execution_id}:1")

        async def alone() -> bool:
            return await outbox_size(house) == 1

        await until(alone)
    assert await house.database.fetchval("SELECT message_id FROM executor.outbox") == "stuck"


async def test_message_committed_while_the_bus_is_down_is_sent_later(
    database: Database, own_nats: Nats, credentials: Credentials
) -> None:
    timeouts = Timeouts(first_token_s=0.8, idle_s=5, total_s=5)
    async with house_without_executor(database, own_nats, credentials) as house, executor_in(house) as service:
        execute = house.execute(house.other.offer("sandbox/silence", timeouts=timeouts))
        execution_id = execute.execution_id
        assert execution_id is not None
        asking = asyncio.create_task(house.refused(house.ask(execute, timeout_s=1)))
        await house.until_called()
        await own_nats.kill()
        receipt = await house.receipt(execution_id)
        assert (receipt.status, receipt.code) == ("failed", ErrorCode.TIMEOUT)
        assert await outbox_size(house) == 1
        await own_nats.start()

        async def sent() -> bool:
            return await outbox_size(house) == 0

        await until(sent)
        assert (await asking).code in {ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE}

        stored = await service.bus.js.get_last_msg(RECEIPTS_STREAM.name, EXECUTION_FINISHED.subject)
        assert Receipt.model_validate_json(stored.data or b"") == receipt
        assert (stored.headers or {})[MESSAGE_ID_HEADER] == f"{execution_id}:1"


# The database ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def own_database(directory: Path, credentials: Credentials) -> AsyncIterator[Database]:
    """A Postgres of one test alone, which may be killed."""
    server = Postgres(directory, port=free_port(), password=credentials.postgres_password("postgres"))
    passwords = {
        role: credentials.postgres_password(role) for role in (f"x402_{s}" for s in services_with_migrations())
    }
    database = Database("x402jobs", server, passwords)
    await server.start()
    try:
        await server.create_database(database.name)
        await migrate(database.superuser)
        await set_passwords(database.superuser, passwords)
        yield database
    finally:
        await server.stop()


async def test_receipt_is_written_when_the_database_is_back_that_died_under_the_run(
    tmp_path: Path, own_nats: Nats, credentials: Credentials, logs: list[EventDict]
) -> None:
    async def waits() -> bool:
        return any(log["event"] == "receipt_waits_for_database" for log in logs)

    async with (
        own_database(tmp_path, credentials) as database,
        house_without_executor(database, own_nats, credentials, first_token_s=0.7) as house,
        executor_in(house),
    ):
        execution_id, running = begin(house, house.other.offer("openai/gpt-4o-mini"))
        await house.until_called()
        await database.server.kill()
        await until(waits)
        assert not running.done()
        await house.until_frame(execution_id, "text")
        assert house.frames[execution_id][-1]["type"] == "text"
        await database.server.start()
        result = await asyncio.wait_for(running, PATIENCE_S)
        assert result.status == "succeeded"
        await house.until_finished(f"{execution_id}:1")
        house.database = await asyncpg.connect(database.superuser)
        [receipt] = await house.receipts(execution_id)
        await house.database.close()
        [call] = await house.calls()
        assert receipt.cost.model_usd == Decimal(call["cost"])
