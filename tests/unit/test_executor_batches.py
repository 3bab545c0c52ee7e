"""Calls that share a round trip: nothing waits for company, everybody gets their own answer, and one bad call harms no other."""

import asyncio
from collections.abc import Sequence

import pytest

from contracts.errors import ErrorCode, ServiceError
from services.executor.batches import Batches
from tests.waiting import PATIENCE_S


class Line:
    """A far end that answers when it is told to, and remembers what came together."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, requests: Sequence[int]) -> list[str]:
        self.sent.append(list(requests))
        await self.open.wait()
        if -1 in requests:
            raise ValueError("not a request")
        if -2 in requests:
            raise ServiceError(ErrorCode.UNAVAILABLE, "away")
        return [str(request) for request in requests]


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_call_that_comes_alone_leaves_alone() -> None:
    line = Line()
    batches = Batches(line.send)

    assert [await batches.call(1), await batches.call(2)] == ["1", "2"]
    assert line.sent == [[1], [2]]


async def test_what_gathers_meanwhile_goes_together_and_everybody_gets_their_own_answer() -> None:
    line = Line()
    batches = Batches(line.send)
    line.open.clear()
    first = [asyncio.create_task(batches.call(number)) for number in range(1)]
    await _settled()
    second = [asyncio.create_task(batches.call(number)) for number in range(1, 2)]
    await _settled()
    rest = [asyncio.create_task(batches.call(number)) for number in range(2, 150)]
    await _settled()
    line.open.set()

    assert await asyncio.gather(*first, *second, *rest) == [str(number) for number in range(150)]
    assert line.sent[:2] == [[0], [1]]
    assert sorted(map(len, line.sent[2:])) == [20, 64, 64]


async def test_who_calls_again_at_once_is_not_forgotten_when_all_batches_ended_together() -> None:
    line = Line()
    batches = Batches(line.send)

    async def twice() -> list[str]:
        return [await batches.call(0), await batches.call(1)]

    line.open.clear()
    again = asyncio.create_task(twice())
    await _settled()
    once = asyncio.create_task(batches.call(2))
    await _settled()
    line.open.set()
    async with asyncio.timeout(PATIENCE_S):
        assert (await again, await once) == (["0", "1"], "2")


async def test_bad_call_harms_no_other() -> None:
    line = Line()
    batches = Batches(line.send)

    answers = await asyncio.gather(*(batches.call(number) for number in (1, -1, 3)), return_exceptions=True)

    assert answers[::2] == ["1", "3"]
    assert isinstance(answers[1], ValueError)


async def test_far_end_that_is_away_is_asked_once_for_all() -> None:
    line = Line()
    batches = Batches(line.send)

    answers = await asyncio.gather(*(batches.call(number) for number in (1, -2, 3)), return_exceptions=True)

    assert all(isinstance(answer, ServiceError) for answer in answers)
    assert line.sent == [[1, -2, 3]]


async def test_who_gives_up_takes_nothing_from_others() -> None:
    line = Line()
    batches = Batches(line.send)
    line.open.clear()
    leaving, staying = asyncio.create_task(batches.call(1)), asyncio.create_task(batches.call(2))
    await _settled()
    leaving.cancel()
    await _settled()
    line.open.set()

    assert await staying == "2"
    with pytest.raises(asyncio.CancelledError):
        await leaving
