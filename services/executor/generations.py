"""Generation ids, written while their calls are still under way, so that the cost can be found should this process die.

One writer for all calls, at once and without holding up a frame. A call that ends before its turn comes is dropped:
its id is committed with its receipt.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

from services.executor.store import Store

_SHORT_CALL_S = 0.01


class GenerationNotes:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, tuple[UUID, int, str]] = {}
        self._any = asyncio.Event()

    def note(self, execution_id: UUID, attempt: int, generation_id: str) -> None:
        self._waiting[generation_id] = (execution_id, attempt, generation_id)
        self._any.set()

    def forget(self, generation_id: str | None) -> None:
        if generation_id is not None:
            self._waiting.pop(generation_id, None)

    async def write(self) -> None:
        """Background work: whatever has gathered during one write is the next one."""
        while True:
            await self._any.wait()
            # A call this short has committed its id with its receipt already.
            await asyncio.sleep(_SHORT_CALL_S)
            batch = list(self._waiting.values())
            if batch:
                await self._store.note_generations(batch)
            for _, _, generation_id in batch:
                self.forget(generation_id)
            # Only now: what could not be written is tried again.
            if not self._waiting:
                self._any.clear()
