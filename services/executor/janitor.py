"""Takes away what nobody needs any more: files past their time, and bytes in the store that nothing refers to.

A file goes under the lock of its row: first from the store, then from the index. Killed in between, the row is still there and
the next look goes on; another replica skips what is locked. Bytes without a row or a part are what somebody left behind who
was killed in the middle of storing, and go after the grace.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from contracts.errors import ServiceError
from contracts.media import part_count
from services.executor.media_store import GRACE, MediaIndex
from services.executor.metrics import ExecutorMetrics
from services.runtime.files import BUCKETS, Files, StoredPart

log = structlog.get_logger()

_EVERY_S = 300.0
_SWEEP_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Purged:
    """What was taken away."""

    files: int = 0
    bytes: int = 0


class Janitor:
    """`grace` is how long bytes are left alone that nothing refers to."""

    def __init__(
        self, files: Files, index: MediaIndex, metrics: ExecutorMetrics | None = None, grace: timedelta = GRACE
    ) -> None:
        self._files = files
        self._index = index
        self._metrics = metrics
        self._grace = grace

    async def work(self) -> None:
        """Background work."""
        sweep_at_s = 0.0
        clock = asyncio.get_running_loop()
        while True:
            try:
                await self.purge()
                if clock.time() >= sweep_at_s:
                    await self.sweep()
                    sweep_at_s = clock.time() + _SWEEP_EVERY_S
            except ServiceError as error:
                log.warning("janitor_waits", code=error.code.value)
            await asyncio.sleep(_EVERY_S)

    async def purge(self) -> Purged:
        """Delete every file that is past its time. Raises UNAVAILABLE while store or database do not answer."""
        files = size = 0
        taking = True
        while taking:
            async with self._index.taking() as file:
                taking = file is not None
                if file is not None:
                    await self._files.delete(file.name, part_count(file.bytes))
                    files, size = files + 1, size + file.bytes
        if self._metrics is not None:
            self._metrics.media_deleted_bytes.inc(size)
            outputs, inputs = await self._index.stored_bytes()
            self._metrics.media_stored_bytes.labels("output").set(outputs)
            self._metrics.media_stored_bytes.labels("input").set(inputs)
        if files:
            log.info("media_purged", files=files, bytes=size)
        return Purged(files, size)

    async def sweep(self) -> int:
        """Delete what the store holds and nothing refers to; answers how many pieces."""
        swept = 0
        for bucket in BUCKETS:
            # Bytes are looked at before parts: what is written meanwhile is in neither list, or in the second.
            nuids = await self._files.nuids(bucket)
            parts = await self._files.listed(bucket)
            swept += await self._sweep_files(parts)
            for nuid in nuids - {part.nuid for part in parts}:
                if self._is_old(await self._files.age_of(bucket, nuid)):
                    await self._files.purge_bytes(bucket, nuid)
                    swept += 1
        if swept:
            log.warning("media_swept", pieces=swept)
        return swept

    async def _sweep_files(self, parts: list[StoredPart]) -> int:
        """Files without a row: only a database that was put back to an earlier state leaves any."""
        old = {part.file for part in parts if self._is_old(part.written_at)}
        unknown = old - await self._index.known(sorted(old)) if old else set()
        for name in unknown:
            count = max(int(part.name.rpartition("/")[2]) for part in parts if part.file == name) + 1
            await self._files.delete(name, count)
        return len(unknown)

    def _is_old(self, at: datetime | None) -> bool:
        return at is not None and datetime.now(UTC) - at > self._grace
