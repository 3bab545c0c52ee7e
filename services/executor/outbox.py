"""Sends what was committed: at least once, in order, with a message id that makes a second sending harmless."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from contracts.subjects import MESSAGE_ID_HEADER
from services.executor.metrics import ExecutorMetrics
from services.executor.store import OutgoingMessage, Store
from services.runtime.bus import Bus

log = structlog.get_logger()

_BATCH = 200
_LOOK_AGAIN_S = 1.0
_GATHER_S = 0.05  # nobody waits for these: what is committed meanwhile goes out in the same round


class Outbox:
    def __init__(self, bus: Bus, store: Store, metrics: ExecutorMetrics, wake: asyncio.Event) -> None:
        self._bus = bus
        self._store = store
        self._metrics = metrics
        self._wake = wake

    async def relay(self) -> None:
        """Background work: woken by every end of a run here, and once a second for what others left behind."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._wake.wait()
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send all there is. What the stream does not acknowledge stays for the next time."""
        left = 0
        while batch := await self._store.outgoing(_BATCH):
            results = await asyncio.gather(*(self._send(message) for _, message in batch), return_exceptions=True)
            sent = [
                row_id
                for (row_id, _), result in zip(batch, results, strict=True)
                if not isinstance(result, BaseException)
            ]
            if sent:
                await self._store.sent(sent)
            if len(sent) < len(batch):
                log.warning("outbox_not_acknowledged", messages=len(batch) - len(sent))
                left = await self._store.outbox_size()
                break
            if len(batch) < _BATCH:
                break
        self._metrics.outbox_pending.set(left)

    async def _send(self, message: OutgoingMessage) -> None:
        await self._bus.js.publish(
            message.subject, message.payload, headers={MESSAGE_ID_HEADER: message.message_id}, timeout=5
        )
