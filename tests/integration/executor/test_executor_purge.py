"""Deleting: what is past its time, and what one person sent and got. Counted first, done only when told to; what others have and
what money was recorded on stays."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from contracts.execution import ExecutionResult
from contracts.subjects import EXECUTION_ENQUEUE
from services.executor import purge as command
from tests.integration.executor_parts import BOB, EVE, House, begin
from tests.waiting import until

WORD = f"secretword{uuid4().hex}"


pytestmark = pytest.mark.usefixtures("single_executor")


async def purge(house: House, capsys: pytest.CaptureFixture[str], user: str | None = None, *, do: bool) -> list[str]:
    """What the command says."""
    capsys.readouterr()
    code = await command.purge(house.settings().postgres_url.get_secret_value(), user, do=do)
    said = capsys.readouterr().out.splitlines()
    assert (code == 2) == any("under way" in line for line in said)
    return said


async def output_of(house: House, result: ExecutionResult, expired: bool) -> None:
    row = await house.row(result.execution_id)
    assert row is not None
    assert (row["result"] is None) == expired


async def test_what_is_past_its_time_goes_when_it_is_told_to(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    resource = house.other.offer("sandbox/echo")
    old, new = [await house.run(resource, idempotency_key=key) for key in ("old", "new")]
    await house.database.execute(
        """UPDATE executor.executions SET created_at = now() - $2::interval, result_expires_at = now() WHERE id = $1""",
        old.execution_id, timedelta(hours=25),
    )  # fmt: skip
    await house.database.execute(
        """INSERT INTO executor.dead_letters (id, kind, caller_kind, caller_id, code, reason, tries, accepted_at, ended_at)
           SELECT gen_random_uuid(), 'message', 'service', 'demo', 'invalid', '', 1, now(), now() - d * interval '1 day'
           FROM unnest(ARRAY[29, 31]) AS d"""
    )
    counts = ["1 results past their time", "1 idempotency keys that stand", "1 dead letters whose story has ended"]
    said = await purge(house, capsys, do=False)
    assert [line.startswith(f"would delete: {count}") for line, count in zip(said, counts, strict=False)] == [True] * 3
    assert "YES=1" in said[-1]
    await output_of(house, old, expired=False)
    said = await purge(house, capsys, do=True)
    assert [line.startswith(f"deleted: {count}") for line, count in zip(said, counts, strict=True)] == [True] * 3
    await output_of(house, old, expired=True)
    await output_of(house, new, expired=False)
    keys = await house.database.fetch("SELECT idempotency_key FROM executor.executions ORDER BY created_at")
    assert [row["idempotency_key"] for row in keys] == [None, "new"]
    assert await house.database.fetchval("SELECT count(*) FROM executor.dead_letters") == 1
    assert [line.split()[1] for line in await purge(house, capsys, do=True)] == ["0", "0", "0"]


async def stored_references(house: House) -> set[UUID]:
    return {row["execution_id"] for row in await house.database.fetch("SELECT * FROM executor.media_references")}


async def left_of_uploads_and_workflows(house: House) -> list[tuple[str, bool]]:
    """Per person: whether both are over."""
    rows = await house.database.fetch(
        """SELECT w.caller_id, w.definition IS NULL AND m.kept_until <= now() AS over
           FROM executor.workflows w JOIN executor.x402_cached_images m ON m.owner_id = w.caller_id ORDER BY 1"""
    )
    return [(row["caller_id"], row["over"]) for row in rows]


async def test_what_one_person_sent_and_got_goes_and_receipts_and_others_stay(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    painter, echo = house.other.offer("sandbox/image-two"), house.other.offer("sandbox/echo")
    own = await house.run(echo, text=WORD, idempotency_key=WORD)
    painted = await house.run(painter, text=WORD)
    hers = await house.run(painter, text="a tree", caller=EVE)
    receipts = await house.receipts(own.execution_id)
    first, running = begin(house, house.other.offer("sandbox/long"), caller=EVE)
    await house.until_frame(first, "text")
    queued = (await house.gateway.call(EXECUTION_ENQUEUE, house.execute(echo, text=WORD))).execution_id
    kept = (await house.gateway.call(EXECUTION_ENQUEUE, house.execute(echo, caller=EVE))).execution_id
    await house.database.execute(
        """INSERT INTO executor.x402_cached_images (name, mime_type, bytes, owner_kind, owner_id, kept_until)
           SELECT owner || '.png', 'image/png', 1, 'user', owner, now() + interval '1 day' FROM unnest(ARRAY['bob', 'eve']) AS owner;
           INSERT INTO executor.workflows (id, caller_kind, caller_id, request_hash, status, definition, finished_at)
           SELECT gen_random_uuid(), 'user', owner, 'x', 'failed', 'locked', now() FROM unnest(ARRAY['bob', 'eve']) AS owner"""
    )
    said = await purge(house, capsys, "bob", do=False)
    assert said[0] == "would delete: 1 jobs that have not begun, with what they say"
    assert await house.status_of(queued) == "queued"
    said = await purge(house, capsys, "bob", do=True)
    assert [line.split(":")[0] for line in said] == ["deleted"] * 7
    assert [int(line.split()[1]) for line in said] == [1, 2, 3, 2, 1, 1, 0]
    assert await left_of_uploads_and_workflows(house) == [("bob", True), ("eve", False)]

    await house.cancel(first, EVE)
    await running
    await house.until_status(kept, "succeeded")
    assert WORD not in await house.everything_stored()
    for result in (own, painted):
        view = await house.view(result.execution_id)
        assert (view.status, view.output_expired, view.result) == ("succeeded", True, None)
    assert await house.receipts(own.execution_id) == receipts
    assert receipts[0].caller == BOB
    await output_of(house, hers, expired=False)
    assert await stored_references(house) == {hers.execution_id}
    receipt = await house.receipt(queued)
    assert (receipt.status, receipt.attempts, receipt.cost.status) == ("canceled", [], "final")
    await house.until_finished(f"{queued}:1")
    assert (await house.view(queued)).status == "canceled"
    assert len([call for call in await house.calls() if call["requested"] == "sandbox/echo"]) == 2


async def test_run_under_way_is_said_to_be_left(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    execution_id, running = begin(house, house.other.offer("sandbox/long"))
    await house.until_frame(execution_id, "text")
    said = await purge(house, capsys, "bob", do=True)
    assert said[-1] == "1 runs and workflows of bob are under way: do this again when they have ended"
    await house.cancel(execution_id)
    await running

    async def done() -> bool:
        return "under way" not in (await purge(house, capsys, "bob", do=True))[-1]

    await until(done)
    assert (await house.view(execution_id)).output_expired
