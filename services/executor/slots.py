"""Waiting for a free slot on a creator's key: in memory, callers in turn, holding no connection, two seconds at most.

The database decides whether there is a slot; this only decides who asks next: within a caller who came first, between
callers one after the other, so that one with many requests does not stand before all others. A run that ends here wakes
whoever is next; a slot that another executor frees is found by asking again after a moment. An admission that was begun is
never abandoned by the wait's end: its row would hold a slot that nobody uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller
from services.executor.limits import Admission

_ASK_AGAIN_S = 0.2


class _Line:
    """Those who wait for one key. At most one of them has the turn to ask."""

    def __init__(self) -> None:
        self.freed = asyncio.Event()
        self.waiting = 0
        self._taken = False
        self._turns: OrderedDict[Caller, deque[asyncio.Future[None]]] = OrderedDict()

    async def take_turn(self, caller: Caller) -> None:
        if not self._taken:
            self._taken = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already, and nobody will use it
                self.pass_turn()
            raise

    def pass_turn(self) -> None:
        """To the first of the next caller, who then goes to the end."""
        while self._turns:
            caller, turns = self._turns.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._turns[caller] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False


class Slots:
    """Lines by owner."""

    def __init__(self, *, wait_s: float) -> None:
        self._wait_s = wait_s
        self._lines: dict[str, _Line] = {}

    async def admit(self, owner: str, caller: Caller, ask: Callable[[], Awaitable[Admission]]) -> Admission:
        """Ask now, or in turn until there is a slot. Raises ServiceError OVERLOADED (scope key) after the wait."""
        if owner not in self._lines:
            admission = await ask()
            if admission.outcome != "full":
                return admission
        line = self._lines.setdefault(owner, _Line())
        line.waiting += 1
        deadline = time.monotonic() + self._wait_s
        try:
            async with asyncio.timeout(self._wait_s):
                await line.take_turn(caller)
            try:
                return await self._ask_in_turn(line, ask, deadline)
            finally:
                line.pass_turn()
        except TimeoutError:
            raise ServiceError(
                ErrorCode.OVERLOADED,
                "As many runs are under way as this creator allows at once; try again in a few seconds.",
                retry_after_s=2,
                scope="key",
            ) from None
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(owner, None)

    async def _ask_in_turn(self, line: _Line, ask: Callable[[], Awaitable[Admission]], deadline: float) -> Admission:
        while True:
            line.freed.clear()
            admission = await ask()
            if admission.outcome != "full":
                return admission
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _ASK_AGAIN_S)):
                    await line.freed.wait()

    def freed(self, owner: str) -> None:
        """A run on this owner's key has ended here."""
        line = self._lines.get(owner)
        if line is not None:
            line.freed.set()
