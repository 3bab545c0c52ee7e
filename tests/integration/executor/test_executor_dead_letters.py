"""Jobs that cannot be carried out for our reasons: they wait and block nobody, become dead letters, are requeued once under the
same id, canceled, or ended after a week; and what nobody can read is told and noted."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
import pytest_asyncio

from contracts.base import new_execution_id
from contracts.dead_letters import DeadLetter, ListDeadLetters, RequeueDeadLetter
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller, CallerReceipt, ListExecutions
from contracts.keys import KeysChanged
from contracts.subjects import (
    AS_FINISHED,
    AS_SUBMIT,
    DEAD_LETTERS_LIST,
    DEAD_LETTERS_REQUEUE,
    EXECUTION_ENQUEUE,
    EXECUTION_LIST,
    KEYS_CHANGED,
    as_publisher,
)
from services.executor import dead_letters, jobs, requeue
from services.runtime.service import Service
from tests.integration.executor_parts import BOB, House, begin, executor_in
from tests.waiting import PATIENCE_S, until

DEMO = Caller(kind="service", id="demo")
FREE = Decimal(0)


@pytest_asyncio.fixture
async def house(whole_house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """Pauses are short and tries are few; each test starts an executor of its own."""
    monkeypatch.setattr(dead_letters, "_LONGEST_PAUSE_S", 0.05)
    for module in (dead_letters, jobs):
        monkeypatch.setattr(module, "MOST_TRIES", 3)
    monkeypatch.setattr(requeue, "_RELEASE_EVERY_S", 0.05)
    monkeypatch.setattr(requeue, "_COUNT_EVERY_S", 0.1)
    await whole_house.clean()
    whole_house.other.away = False
    return whole_house


async def letters(house: House, status: Any = "waiting", **more: Any) -> list[DeadLetter]:
    return (await house.gateway.call(DEAD_LETTERS_LIST, ListDeadLetters(status=status, **more))).items


async def one_letter(house: House, status: Any = "waiting") -> DeadLetter:
    async def there() -> list[DeadLetter]:
        return await letters(house, status)

    [letter] = await until(there)
    return letter


async def send_again(house: House, letter: DeadLetter) -> DeadLetter:
    return await house.gateway.call(DEAD_LETTERS_REQUEUE, RequeueDeadLetter(id=letter.id, requested_by="root"))


class Away(dict[str, Any]):
    """Resources of a catalog whose database is away."""

    def __contains__(self, _: object) -> bool:
        raise ServiceError(ErrorCode.UNAVAILABLE, "The database cannot be reached at the moment.")


@pytest_asyncio.fixture
async def executor(house: House) -> AsyncIterator[Service]:
    async with executor_in(house, running_per_key=1) as service:
        yield service


async def held_job(
    house: House, caller: Caller = BOB, text: str = "later"
) -> tuple[UUID, Callable[[], Awaitable[None]]]:
    """A job that is accepted and waits for the only slot, and what lets it have that."""
    first, running = begin(house, house.other.offer("sandbox/long", owner="fay"))
    await house.until_frame(first, "text")
    execute = house.execute(house.other.offer("sandbox/echo", owner="fay"), text=text, caller=caller)
    accepted = await house.gateway.call(EXECUTION_ENQUEUE, execute)

    async def let_go() -> None:
        await house.cancel(first)
        await running

    return accepted.execution_id, let_go


async def dead_job(house: House, caller: Caller = BOB) -> tuple[UUID, DeadLetter]:
    """A job that was accepted, and then found the keys service away for good."""
    execution_id, let_go = await held_job(house, caller)
    house.other.away = True
    await house.keys.publish(KEYS_CHANGED, KeysChanged(owner="fay", version=2, change="health"))
    await house.keys.nc.flush()
    await let_go()
    return execution_id, await one_letter(house)


async def submit(house: House, payload: bytes) -> None:
    await house.publisher.request(as_publisher(AS_SUBMIT.subject, "demo"), payload, timeout=PATIENCE_S)


async def told(house: House, execution_id: UUID) -> CallerReceipt:
    """What the publisher hears of the end of this run."""

    async def there() -> list[CallerReceipt]:
        subject = as_publisher(AS_FINISHED.subject, "demo")
        heard = [CallerReceipt.model_validate_json(m.data) for m in house.finished if m.subject == subject]
        return [receipt for receipt in heard if receipt.execution_id == execution_id]

    return (await until(there))[0]


# Jobs -----------------------------------------------------------------------------------------------------------------


async def test_job_that_cannot_begin_becomes_a_letter_and_is_done_once_it_is_requeued(
    house: House, executor: Service
) -> None:
    execution_id, letter = await dead_job(house)
    assert (letter.id, letter.kind, letter.execution_id) == (execution_id, "job", execution_id)
    assert (letter.caller, letter.owner, letter.tries) == (BOB, "fay", 3)
    assert (letter.code, letter.requeued_at) == (ErrorCode.UNAVAILABLE, None)
    assert letter.accepted_at < letter.died_at
    # To its caller it goes on waiting, in every view; nothing has been told or paid.
    assert (await house.view(execution_id)).status == "queued"
    listed = await house.gateway.call(EXECUTION_LIST, ListExecutions(caller=BOB, status="queued"))
    assert [view.execution_id for view in listed.items] == [execution_id]
    assert await house.receipts(execution_id) == []

    async def counted() -> bool:
        return executor.registry.get_sample_value("x402jobs_dead_letters") == 1

    await until(counted)
    house.other.away = False
    answers = await asyncio.gather(*(send_again(house, letter) for _ in range(3)))
    assert {(answer.status, answer.requeued_by) for answer in answers} == {("requeued", "root")}
    await house.until_status(execution_id, "succeeded")
    assert (await send_again(house, letter)).status == "requeued"
    assert [receipt.status for receipt in await house.receipts(execution_id)] == ["succeeded"]
    assert len([call for call in await house.calls() if call["requested"] == "sandbox/echo"]) == 1
    assert await letters(house) == []
    assert [known.id for known in await letters(house, None)] == [execution_id]


async def test_job_that_waits_takes_no_slot_and_holds_up_no_other(house: House, executor: Service) -> None:
    execution_id, _ = await dead_job(house)
    house.other.away = False
    other = house.execute(house.other.offer("sandbox/echo", owner="fay"))
    accepted = await house.gateway.call(EXECUTION_ENQUEUE, other)
    await house.until_status(accepted.execution_id, "succeeded")
    assert await house.status_of(execution_id) == "waiting"


async def test_requeued_job_that_fails_again_is_a_letter_again(house: House, executor: Service) -> None:
    execution_id, letter = await dead_job(house)
    await send_again(house, letter)

    async def again() -> bool:
        waiting = await letters(house)
        return bool(waiting) and waiting[0].died_at > letter.died_at

    await until(again)
    [second] = await letters(house)
    assert (second.id, second.tries, second.requeued_at) == (execution_id, 3, None)


@pytest.mark.parametrize("who", [BOB, Caller(kind="user", id="fay")], ids=["caller", "creator"])
async def test_dead_job_can_be_canceled_and_is_no_letter_then(house: House, executor: Service, who: Caller) -> None:
    execution_id, letter = await dead_job(house)
    assert (await house.cancel(execution_id, who)).status == "canceled"
    receipt = await house.receipt(execution_id)
    assert (receipt.status, receipt.cost.model_usd, receipt.cost.price_usd) == ("canceled", FREE, FREE)
    assert await letters(house) == []
    error = await house.refused(send_again(house, letter))
    assert (error.code, "ended meanwhile" in str(error)) == (ErrorCode.CONFLICT, True)


async def test_job_whose_body_does_not_open_is_a_letter_at_once(house: House, executor: Service) -> None:
    execution_id, let_go = await held_job(house, text="a secret word")
    kept = await house.database.fetchrow("SELECT job, job_key_id FROM executor.executions WHERE id = $1", execution_id)
    assert kept is not None
    await house.database.execute("UPDATE executor.executions SET job_key_id = 'lost' WHERE id = $1", execution_id)
    await let_go()
    letter = await one_letter(house)
    assert (letter.tries, letter.code, "'lost' in RESULT_KEYS" in letter.reason) == (1, ErrorCode.INTERNAL, True)
    error = await house.refused(send_again(house, letter))
    assert (error.code, "still cannot" in str(error)) == (ErrorCode.CONFLICT, True)
    await house.database.execute(
        "UPDATE executor.executions SET job_key_id = $2 WHERE id = $1", execution_id, kept["job_key_id"]
    )
    await send_again(house, letter)
    await house.until_status(execution_id, "succeeded")
    view = await house.view(execution_id)
    assert view.result is not None
    assert view.result.text == "a secret word"


async def test_job_that_nobody_looks_after_ends_after_a_week(house: House, executor: Service) -> None:
    execution_id, letter = await dead_job(house, DEMO)
    await house.database.execute("UPDATE executor.dead_letters SET died_at = died_at - interval '8 days'")
    async with executor_in(house):  # a start cleans at once
        end = await told(house, execution_id)
    assert (end.status, end.price_usd) == ("failed", FREE)
    assert end.error is not None
    assert end.error.code is ErrorCode.UNAVAILABLE
    assert (await house.receipt(execution_id)).attempts == []
    assert (await house.refused(send_again(house, letter))).code is ErrorCode.CONFLICT
    await house.database.execute("UPDATE executor.dead_letters SET ended_at = ended_at - interval '31 days'")
    async with executor_in(house):

        async def forgotten() -> bool:
            return await letters(house, None) == []

        await until(forgotten)


# Messages of the inbox ------------------------------------------------------------------------------------------------


async def test_message_that_nobody_could_take_in_is_kept_locked_and_requeued(house: House, executor: Service) -> None:
    execution_id, word = new_execution_id(), f"secretword{uuid4().hex}"
    resources = house.other.resources
    body = {"execution_id": str(execution_id), "resource": house.other.offer("sandbox/echo"), "input": {"text": word}}
    house.other.resources = Away(resources)
    await submit(house, orjson.dumps(body))
    letter = await one_letter(house)
    assert (letter.kind, letter.execution_id, letter.caller) == ("message", execution_id, DEMO)
    assert (letter.tries, letter.code, letter.owner) == (3, ErrorCode.UNAVAILABLE, None)
    stored = await house.everything_stored()
    for clear in (word, word.encode().hex(), base64.b64encode(word.encode()).decode()):
        assert clear not in stored
    assert (await house.refused(send_again(house, letter))).code is ErrorCode.UNAVAILABLE
    house.other.resources = resources
    assert {(await send_again(house, letter)).status for _ in range(2)} == {"requeued"}
    assert (await told(house, execution_id)).status == "succeeded"
    assert await house.row(execution_id) is not None
    assert len(await house.calls()) == 1


async def test_message_whose_request_is_wrong_by_then_is_refused_for_good(house: House, executor: Service) -> None:
    execution_id, resources = new_execution_id(), house.other.resources
    reference = house.other.offer("sandbox/echo")
    house.other.resources = Away(resources)
    await submit(house, orjson.dumps({"execution_id": str(execution_id), "resource": reference}))
    letter = await one_letter(house)
    house.other.resources = {name: made for name, made in resources.items() if name != reference}
    error = await house.refused(send_again(house, letter))
    assert (error.code, "its publisher was told" in str(error)) == (ErrorCode.CONFLICT, True)
    end = await told(house, execution_id)
    assert end.error is not None
    assert (end.status, end.error.code) == ("failed", ErrorCode.NOT_FOUND)
    assert [known.status for known in await letters(house, None)] == ["ended"]
    house.other.resources = resources


async def test_message_that_nobody_can_read_is_told_noted_and_blocks_nobody(house: House, executor: Service) -> None:
    for payload in (b"\xff\x00", b"[1]", b"{"):
        await submit(house, payload)
    execution_id = new_execution_id()
    body = {"execution_id": str(execution_id), "resource": house.other.offer("sandbox/echo"), "input": {"text": "x"}}
    await submit(house, orjson.dumps(body))
    assert (await told(house, execution_id)).status == "succeeded"

    async def noted() -> bool:
        return len(await letters(house, "ended")) == 3

    await until(noted)
    known = await letters(house, "ended")
    assert {(letter.kind, letter.code, letter.execution_id) for letter in known} == {
        ("message", ErrorCode.INVALID, None)
    }
    assert await letters(house) == []
    assert "Nobody could read" in str(await house.refused(send_again(house, known[0])))


# Operators ------------------------------------------------------------------------------------------------------------


async def test_letters_are_listed_in_pages_latest_first(house: House, executor: Service) -> None:
    for count in range(1, 4):
        await submit(house, b"no json")

        async def noted(count: int = count) -> bool:
            return len(await letters(house, "ended")) == count

        await until(noted)
    first = await house.gateway.call(DEAD_LETTERS_LIST, ListDeadLetters(status=None, limit=2))
    assert first.next_cursor is not None
    rest = await house.gateway.call(DEAD_LETTERS_LIST, ListDeadLetters(status=None, limit=2, cursor=first.next_cursor))
    assert rest.next_cursor is None
    seen = [*first.items, *rest.items]
    assert len({letter.id for letter in seen}) == 3
    assert seen == sorted(seen, key=lambda letter: letter.died_at, reverse=True)
    error = await house.refused(house.gateway.call(DEAD_LETTERS_LIST, ListDeadLetters(cursor="x")))
    assert error.code is ErrorCode.INVALID


async def test_letter_that_is_not_there_cannot_be_requeued(house: House, executor: Service) -> None:
    request = RequeueDeadLetter(id=uuid4(), requested_by="root")
    assert (await house.refused(house.gateway.call(DEAD_LETTERS_REQUEUE, request))).code is ErrorCode.NOT_FOUND
