"""The line of those who wait for a slot on one key: in turn, woken at once, and never longer than they agreed to."""

import asyncio
import time
from functools import partial

import pytest

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller
from services.executor.limits import Admission
from services.executor.slots import Slots
from tests.unit.executor_parts import BOB, NOON, RUN_ID


class Key:
    """A key with so many free slots, and who asked for one."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.asked: list[str] = []

    async def ask(self, name: str) -> Admission:
        self.asked.append(name)
        await asyncio.sleep(0)
        if self.free == 0:
            return Admission("full", RUN_ID, NOON)
        self.free -= 1
        return Admission("admitted", RUN_ID, NOON)


def admit(slots: Slots, key: Key, name: str, owner: str = "ada", caller: Caller = BOB) -> asyncio.Task[Admission]:
    return asyncio.create_task(slots.admit(owner, caller, lambda: key.ask(name)))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_free_slot_is_taken_with_one_question() -> None:
    key = Key(1)
    assert (await admit(Slots(wait_s=1), key, "a")).outcome == "admitted"
    assert key.asked == ["a"]


@pytest.mark.parametrize("outcome", ["existing", "conflict"])
async def test_any_other_answer_than_full_ends_the_question(outcome: str) -> None:
    async def ask() -> Admission:
        return Admission(outcome, RUN_ID, NOON)  # type: ignore[arg-type]

    assert (await Slots(wait_s=1).admit("ada", BOB, ask)).outcome == outcome


async def test_waiter_is_woken_by_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.executor.slots._ASK_AGAIN_S", 3600)
    key, slots = Key(0), Slots(wait_s=3600)
    waiting = admit(slots, key, "a")
    await settle()
    key.free = 1
    slots.freed("ada")
    assert (await waiting).outcome == "admitted"


async def test_slot_that_was_freed_elsewhere_is_found_by_asking_again() -> None:
    key, slots = Key(0), Slots(wait_s=5)
    waiting = admit(slots, key, "a")
    await settle()
    key.free = 1
    assert (await waiting).outcome == "admitted"


async def test_slots_go_to_those_who_came_first() -> None:
    key, slots = Key(0), Slots(wait_s=5)
    admitted: list[str] = []
    waiting = []
    for name in "abcd":
        task = admit(slots, key, name)
        task.add_done_callback(partial(lambda name, _: admitted.append(name), name))
        waiting.append(task)
        await settle()
    for _ in range(4):
        key.free = 1
        slots.freed("ada")
        await settle()
    await asyncio.gather(*waiting)
    assert admitted == list("abcd")


async def test_callers_take_turns_and_one_with_many_does_not_stand_before_another() -> None:
    key, slots = Key(0), Slots(wait_s=5)
    admitted: list[str] = []
    waiting = []
    eve = Caller(kind="user", id="eve")
    for name, caller in [("b1", BOB), ("b2", BOB), ("b3", BOB), ("b4", BOB), ("e1", eve), ("e2", eve)]:
        task = admit(slots, key, name, caller=caller)
        task.add_done_callback(partial(lambda name, _: admitted.append(name), name))
        waiting.append(task)
        await settle()
    for _ in waiting:
        key.free = 1
        slots.freed("ada")
        await settle()
    await asyncio.gather(*waiting)
    assert admitted == ["b1", "b2", "e1", "b3", "e2", "b4"]


async def test_who_comes_later_does_not_pass_those_who_wait() -> None:
    key, slots = Key(0), Slots(wait_s=5)
    first = admit(slots, key, "first")
    await settle()
    key.free = 1
    late = admit(slots, key, "late")
    await settle()
    assert "late" not in key.asked
    slots.freed("ada")
    assert (await first).outcome == "admitted"
    key.free = 1
    slots.freed("ada")
    assert (await late).outcome == "admitted"


async def test_wait_ends_with_overloaded_for_everybody_in_the_line() -> None:
    key, slots = Key(0), Slots(wait_s=0.1)
    began_s = time.monotonic()
    results = await asyncio.gather(*(admit(slots, key, name) for name in "abc"), return_exceptions=True)
    assert time.monotonic() - began_s >= 0.1
    for error in results:
        assert isinstance(error, ServiceError)
        assert (error.code, error.body.scope, error.body.retryable) == (ErrorCode.OVERLOADED, "key", True)
        assert error.body.retry_after_s
    assert slots._lines == {}


async def test_nobody_waits_when_no_waiting_is_agreed() -> None:
    with pytest.raises(ServiceError) as caught:
        await admit(Slots(wait_s=0), Key(0), "a")
    assert caught.value.code is ErrorCode.OVERLOADED


async def test_lines_of_two_owners_do_not_touch_each_other() -> None:
    slots, full, free = Slots(wait_s=5), Key(0), Key(1)
    waiting = admit(slots, full, "a")
    await settle()
    assert (await admit(slots, free, "b", owner="carl")).outcome == "admitted"
    slots.freed("carl")
    await settle()
    assert not waiting.done()
    full.free = 1
    slots.freed("ada")
    await waiting


async def test_waiter_who_leaves_does_not_hold_up_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.executor.slots._ASK_AGAIN_S", 3600)
    key, slots = Key(0), Slots(wait_s=3600)
    first = admit(slots, key, "first")
    await settle()
    second = admit(slots, key, "second")
    await settle()
    first.cancel()
    await settle()
    key.free = 1
    slots.freed("ada")
    assert (await second).outcome == "admitted"
    assert slots._lines == {}


async def test_error_of_the_question_reaches_who_asked_and_the_next_one_asks() -> None:
    key, slots = Key(0), Slots(wait_s=5)
    waiting = admit(slots, key, "a")
    await settle()

    async def fail() -> Admission:
        raise ServiceError(ErrorCode.UNAVAILABLE, "Down.")

    failing = asyncio.create_task(slots.admit("ada", BOB, fail))
    last = admit(slots, key, "last")
    await settle()
    key.free = 2
    slots.freed("ada")
    assert (await waiting).outcome == "admitted"
    with pytest.raises(ServiceError, match="Down"):
        await failing
    assert (await last).outcome == "admitted"
