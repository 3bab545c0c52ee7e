"""Many calls of one kind in one round trip: whatever gathers while one batch is on its way is the next one.

A call that comes alone leaves at once, so nothing is ever waited for to fill a batch. Under load a batch costs the
database one statement and one commit, where its members would have cost one each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from contracts.errors import ServiceError

Q = TypeVar("Q")
R = TypeVar("R")

# One more than one, so that a batch that waits for a lock does not hold up everybody.
_AT_ONCE = 2
_MOST = 64


class Batches(Generic[Q, R]):
    """`send` answers a batch in its order, all or nothing; what it raises for a batch is found out call by call."""

    def __init__(self, send: Callable[[Sequence[Q]], Awaitable[Sequence[R]]]) -> None:
        self._send = send
        self._waiting: deque[tuple[Q, asyncio.Future[R]]] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    async def call(self, request: Q) -> R:
        """The answer to one request. Raises what `send` raises for it."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if len(self._senders) < _AT_ONCE:
            self._senders.add(asyncio.create_task(self._work()))
        return await answer

    async def _work(self) -> None:
        sender = asyncio.current_task()
        assert sender is not None
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
            await self._answer(batch)
        # In the same step as the look at what waits: who calls next must not count on a sender that has just left.
        self._senders.discard(sender)

    async def _answer(self, batch: Sequence[tuple[Q, asyncio.Future[R]]]) -> None:
        requests = [request for request, _ in batch]
        (outcome,) = await asyncio.gather(self._send(requests), return_exceptions=True)
        if isinstance(outcome, BaseException):
            if len(batch) > 1 and not isinstance(outcome, ServiceError):
                # One of them is not as it should be; the others must not suffer from it.
                for each in batch:
                    await self._answer([each])
                return
            answers: Sequence[R | BaseException] = [outcome] * len(batch)
        else:
            answers = outcome
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if waiting.done():
                continue  # whoever waited has given up
            if isinstance(answer, BaseException):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)
