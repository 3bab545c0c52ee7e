"""Waiting for a free slot on a creator's key: in memory, first come first served, holding no connection, two seconds at most.

The database decides whether there is a slot; this only decides who asks next. A run that ends here wakes the first
waiter; a slot that another executor frees is found by asking again after a moment. An admission that was begun is never
abandoned by the wait's end: its row would hold a slot that nobody uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from contracts.errors import ErrorCode, ServiceError
from services.executor.store import Admission

_ASK_AGAIN_S = 0.2


class _Line:
    """Those who wait for one key; the lock is fair, so that its holder is the first in line."""

    def __init__(self) -> None:
        self.first = asyncio.Lock()
        self.freed = asyncio.Event()
        self.waiting = 0


class Slots:
    """Lines by owner."""

    def __init__(self, *, wait_s: float) -> None:
        self._wait_s = wait_s
        self._lines: dict[str, _Line] = {}

    async def admit(self, owner: str, ask: Callable[[], Awaitable[Admission]]) -> Admission:
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
                await line.first.acquire()
            try:
                return await self._first_in_line(line, ask, deadline)
            finally:
                line.first.release()
        except TimeoutError:
            raise ServiceError(
                ErrorCode.OVERLOADED,
                "All slots of this creator's key are taken at the moment; try again in a few seconds.",
                retry_after_s=2,
                scope="key",
            ) from None
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(owner, None)

    async def _first_in_line(self, line: _Line, ask: Callable[[], Awaitable[Admission]], deadline: float) -> Admission:
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
