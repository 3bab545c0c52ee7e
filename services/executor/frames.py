"""Frames of a run: numbered from 1, written as bytes by hand because this is what happens once per token.

They go to one subject, that of whoever may view the run, and are captured there by a memory stream for a quarter of an
hour. Publishing never waits for anybody: a frame that cannot be sent is lost, its number is not, and the snapshot that
follows a reconnect covers it.
"""

from __future__ import annotations

from uuid import UUID

import nats.errors
import orjson
import structlog
from nats.aio.client import Client
from prometheus_client import Counter

from contracts.base import Contract
from contracts.execution import FrameType, OutputPart, Snapshot
from contracts.subjects import FRAMES_STREAM, frames_subject
from services.runtime.bus import Bus, encode

log = structlog.get_logger()


async def say(nc: Client, subject: str, seq: int, kind: FrameType, data: bytes, lost: Counter) -> None:
    """Publish one frame; `data` is JSON."""
    try:
        await nc.publish(subject, b'{"seq":%d,"type":"%b","data":%b}' % (seq, kind.encode(), data))
    except nats.errors.Error as error:
        lost.inc()
        log.warning("frame_lost", frame_of=subject.rpartition(".")[2], seq=seq, error=type(error).__name__)


class Frames:
    """The frames of one run, and all that they have said so far. `lost` counts those that could not be sent."""

    def __init__(self, nc: Client, viewer: str, execution_id: UUID, lost: Counter) -> None:
        self._nc = nc
        self._lost = lost
        self._subject = frames_subject(viewer, execution_id)
        self._execution_id = execution_id
        self.seq = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._outputs: list[OutputPart] = []

    async def _send(self, kind: FrameType, data: bytes) -> None:
        self.seq += 1
        await say(self._nc, self._subject, self.seq, kind, data, self._lost)

    async def send(self, kind: FrameType, data: Contract) -> None:
        await self._send(kind, encode(data))

    async def text(self, text: str) -> None:
        self._text.append(text)
        await self._send("text", orjson.dumps({"text": text}))

    async def reasoning(self, text: str) -> None:
        self._reasoning.append(text)
        await self._send("reasoning", orjson.dumps({"text": text}))

    async def output(self, part: OutputPart) -> None:
        self._outputs.append(part)
        await self._send("output", encode(part))

    async def snapshot(self) -> None:
        """Everything so far in one frame, for viewers that may have missed some."""
        snapshot = Snapshot(
            execution_id=self._execution_id,
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            outputs=self._outputs,
        )
        await self.send("snapshot", snapshot)


async def last_seq(bus: Bus, viewer: str, execution_id: UUID) -> int | None:
    """The number of the last frame that is still stored of a run; None where none is, or nobody answers."""
    try:
        message = await bus.js.get_last_msg(FRAMES_STREAM.name, frames_subject(viewer, execution_id))
        seq = orjson.loads(message.data or b"")["seq"]
    except (nats.errors.Error, TimeoutError, ValueError, TypeError, KeyError):
        return None
    return seq if isinstance(seq, int) else None
