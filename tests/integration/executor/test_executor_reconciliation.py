"""Receipts against upstream's accounts: what differs is corrected and told, what was unknown is found, the price stays, and a
night's work is planned once, survives restarts, and asks about a sample where nothing is wrong."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from structlog.typing import EventDict

from contracts.catalog import CostPlusPrice
from contracts.execution import ExecutionResult, Receipt
from deploy.sandbox import chat
from services.executor import costs, reconciliation
from services.executor.reconcile import reconcile
from services.executor.reconciliation_store import ReconciliationStore
from services.runtime.postgres import create_pool
from services.runtime.service import Service
from tests.integration.executor_parts import ADA, House, executor_in
from tests.waiting import until

COST_PLUS = CostPlusPrice(mode="cost_plus", markup_percent=Decimal(100), max_usd=Decimal(1))


@pytest_asyncio.fixture
async def house(whole_house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """Nothing is paused for; each test starts executors of its own."""
    for pause in ("_PAUSE_S", "_IDLE_S"):
        monkeypatch.setattr(reconciliation, pause, 0.05)
    monkeypatch.setattr(reconciliation, "_PLAN_EVERY_S", 0.2)
    await whole_house.clean()
    return whole_house


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as logs:
        yield logs


def url_of(house: House) -> str:
    return house.settings().postgres_url.get_secret_value()


async def compared(house: House, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command of an operator says in the end."""
    async with asyncio.timeout(20):
        assert await reconcile(url_of(house), 1) == 0
    return capsys.readouterr().out.splitlines()[-1]


async def known(house: House) -> None:
    """Upstream tells of every call that was made so far."""

    async def told() -> bool:
        answers = [
            await house.sandbox.get(
                "/api/v1/generation",
                params={"id": call["generation_id"]},
                headers={"Authorization": f"Bearer {house.other.keys['ada']}"},
            )
            for call in await house.calls()
        ]
        return all(answer.status_code == 200 for answer in answers)

    await until(told)


def counted(service: Service, name: str, **labels: str) -> float:
    return service.registry.get_sample_value(name, labels) or 0


async def run(house: House, mode: str, times: int = 1) -> list[ExecutionResult]:
    resource = house.other.offer(f"sandbox/{mode}", pricing=COST_PLUS)
    made = [await house.run(resource, caller=ADA, text=f"{mode} {turn}") for turn in range(times)]
    await known(house)
    return made


async def test_cost_that_differs_is_corrected_and_told_and_the_price_stays(
    house: House, capsys: pytest.CaptureFixture[str], logs: list[EventDict]
) -> None:
    async with executor_in(house) as service:
        [right], [wrong] = await run(house, "echo"), await run(house, "adjusted")
        said = await compared(house, capsys)
        first, second = await house.receipts(wrong.execution_id)
        assert first.cost.model_usd is not None
        assert first.cost.price_usd is not None
        assert (second.revision, second.reason, second.cost.status) == (2, "cost_corrected", "final")
        assert second.cost.model_usd == 2 * first.cost.model_usd
        assert second.cost.price_usd == first.cost.price_usd
        assert second.cost.markup_usd == first.cost.price_usd - 2 * first.cost.model_usd
        assert second.attempts[0].cost_usd == second.cost.model_usd
        told = Receipt.model_validate_json((await house.until_finished(f"{wrong.execution_id}:2")).data)
        assert told == second
        view = await house.view(wrong.execution_id, ADA)
        assert (view.cost, view.receipt) == (second.cost, second)
        said_each = [(each.revision, each.reason, each.cost) for each in view.revisions]
        assert said_each == [(1, "ended", first.cost), (2, "cost_corrected", second.cost)]
        assert first.finished_at <= view.revisions[0].written_at < view.revisions[1].written_at
        assert [receipt.reason for receipt in await house.receipts(right.execution_id)] == ["ended"]
        drift = first.cost.model_usd
        assert said == (
            f"2 upstream calls compared: 1 cost something else than their receipts said, {drift:f} USD in all; "
            "0 unknown costs found; 0 were not told"
        )
        assert counted(service, "x402jobs_cost_drift_usd_total", direction="more") == float(drift)
        for outcome in ("same", "differs"):
            assert counted(service, "x402jobs_cost_checks_total", outcome=outcome) == 1
        [warning] = [line for line in logs if line["event"] == "cost_drift"]
        assert (warning["execution_id"], warning["drift_usd"]) == (str(wrong.execution_id), str(drift))
        # Once corrected it is right.
        assert ": 0 cost something else" in await compared(house, capsys)
        assert len(await house.receipts(wrong.execution_id)) == 2
        assert await house.database.fetchval("SELECT count(*) FROM executor.cost_checks") == 0


async def test_unknown_cost_gets_one_more_try_and_what_nobody_tells_stays(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    async with executor_in(house) as service:
        [lost, never] = await run(house, "echo", 2)
        for status, execution_id in (("unknown", lost.execution_id), ("unknown", never.execution_id)):
            await house.database.execute(
                "UPDATE executor.attempts SET cost_usd = NULL, cost_status = $2 WHERE execution_id = $1",
                execution_id, status,
            )  # fmt: skip
        await house.database.execute(
            "UPDATE executor.attempts SET generation_id = 'gen-nobody-knows' WHERE execution_id = $1",
            never.execution_id,
        )
        said = await compared(house, capsys)
        assert "1 unknown costs found; 1 were not told" in said
        receipt = (await house.receipts(lost.execution_id))[-1]
        [call] = [call for call in await house.calls() if call["generation_id"] == receipt.attempts[0].generation_id]
        assert (receipt.reason, receipt.cost.model_usd) == ("cost_found", Decimal(call["cost"]))
        [attempt] = await house.attempts(never.execution_id)
        assert (attempt["cost_usd"], attempt["cost_status"]) == (None, "unknown")
        assert counted(service, "x402jobs_cost_checks_total", outcome="untold") == 1


async def test_sample_is_enough_where_nothing_differs_and_everything_is_asked_where_something_does(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.reconcile.SAMPLE", 1)
    async with executor_in(house):
        await run(house, "echo", 3)
        assert (await compared(house, capsys)).startswith("1 upstream calls compared: 0 cost")
        await house.clean()
        wrong = await run(house, "adjusted", 3)
        assert (await compared(house, capsys)).startswith("3 upstream calls compared: 3 cost")
        for result in wrong:
            assert [receipt.reason for receipt in await house.receipts(result.execution_id)] == [
                "ended",
                "cost_corrected",
            ]


async def test_night_is_planned_once_over_all_executors_and_goes_on_after_a_restart(
    house: House, logs: list[EventDict]
) -> None:
    async with executor_in(house):
        [wrong] = await run(house, "adjusted")
    await house.database.execute("DELETE FROM executor.cost_checks; DELETE FROM executor.reconciliations")
    # As if it had been run yesterday, seen four hours after midnight.
    await house.database.execute(
        """UPDATE executor.attempts SET started_at =
               date_trunc('day', now() AT TIME ZONE 'UTC' - interval '4 hours') AT TIME ZONE 'UTC' - interval '1 hour'"""
    )
    async with create_pool(url_of(house), service="executor") as pool:
        store = ReconciliationStore(pool)
        plans = await asyncio.gather(*(store.plan_night(timedelta(hours=4), timedelta(days=7), 200) for _ in range(4)))
        assert sorted(plans, key=str) == [1, None, None, None]
        # Whoever planned it is gone before it asked anything, and somebody who asked is gone before the answer.
        [check] = await store.due(5)
        assert check.execution_id == wrong.execution_id
        await house.database.execute("UPDATE executor.cost_checks SET due_at = now()")
    async with executor_in(house), executor_in(house):

        async def finished() -> UUID | None:
            found: UUID | None = await house.database.fetchval(
                "SELECT id FROM executor.reconciliations WHERE finished_at IS NOT NULL AND differing = 1"
            )
            return found

        await until(finished)
        assert len(await house.receipts(wrong.execution_id)) == 2
    assert await house.database.fetchval("SELECT count(*) FROM executor.reconciliations WHERE nightly") == 1
    assert len([line for line in logs if line["event"] == "receipts_reconciled" and line["differing"] == 1]) == 1


async def test_days_on_which_nothing_ran_here_are_made_up_for(house: House) -> None:
    async with create_pool(url_of(house), service="executor") as pool:
        store = ReconciliationStore(pool)
        for age, days in ((2, 2), (30, 7)):
            await house.database.execute("DELETE FROM executor.cost_checks; DELETE FROM executor.reconciliations")
            await house.database.execute(
                """INSERT INTO executor.reconciliations (nightly, from_at, until_at)
                   SELECT true, d - interval '1 day', d FROM (SELECT
                       date_trunc('day', now() AT TIME ZONE 'UTC' - interval '4 hours') AT TIME ZONE 'UTC' - $1::interval
                   ) AS t (d)""",
                timedelta(days=age),
            )
            assert await store.plan_night(timedelta(hours=4), timedelta(days=7), 200) == 0
            covered = await house.database.fetchval(
                "SELECT until_at - from_at FROM executor.reconciliations ORDER BY id DESC LIMIT 1"
            )
            assert covered == timedelta(days=days)


async def test_cost_that_is_known_late_is_found_by_asking_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "TOLD_LATE_S", 1.0)
    monkeypatch.setattr(costs, "_FIRST_RETRY", timedelta(milliseconds=100))
    monkeypatch.setattr(costs, "_EVERY_S", 0.05)
    async with executor_in(house):
        result = await house.run(house.other.offer("sandbox/late"), caller=ADA)
        revised = await house.revised(result.execution_id)
        [call] = await house.calls()
        assert (revised.reason, revised.cost.model_usd) == ("cost_found", Decimal(call["cost"]))
        [attempt] = await house.attempts(result.execution_id)
        assert attempt["lookups"] >= 2
