"""When the catalog is read without anybody asking: at every start, which costs one conditional request, and daily at 03:00 UTC.

Upstream being away must not leave a catalog old for a day, so a failed reading is tried again, first soon, then every
quarter of an hour. A refused one is not: upstream has answered, and a person should look.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, time, timedelta

import stamina
import structlog

from contracts.catalog import SyncReport
from contracts.errors import ServiceError
from services.catalog.sync import CatalogSync

log = structlog.get_logger()

DAILY_AT = time(3, 0, tzinfo=UTC)
_LONGEST_WAIT_BEFORE_RETRY_S = 900
_WORTH_WAITING_S = 20
"""A fresh instance is not ready before its first reading; an upstream that hangs holds it up for this long only."""


class _NotReadError(Exception):
    """Upstream or the database was away."""


def next_daily(now: datetime) -> datetime:
    """The next 03:00 UTC strictly after `now`."""
    today = datetime.combine(now.astimezone(UTC).date(), DAILY_AT)
    return today if today > now else today + timedelta(days=1)


class Schedule:
    """`worth_waiting_over` is set once the reading at the start has ended, well or not, or takes too long to wait for."""

    def __init__(self, sync: CatalogSync) -> None:
        self._sync = sync
        self.worth_waiting_over = asyncio.Event()

    async def run(self) -> None:
        """For ever."""
        asyncio.get_running_loop().call_later(_WORTH_WAITING_S, self.worth_waiting_over.set)
        await self._until_read("start")
        while True:
            await _sleep_until(next_daily(datetime.now(UTC)))
            await self._until_read("schedule")

    async def _until_read(self, requested_by: str) -> SyncReport | None:
        async for attempt in stamina.retry_context(
            on=_NotReadError, attempts=None, timeout=None, wait_initial=2, wait_max=_LONGEST_WAIT_BEFORE_RETRY_S
        ):
            with attempt:
                return await self._read(requested_by)
        return None

    async def _read(self, requested_by: str) -> SyncReport:
        try:
            report = await self._sync.run(requested_by)
        except ServiceError as error:
            log.warning("catalog_sync_not_possible", code=error.code.value)
            raise _NotReadError from error
        finally:
            self.worth_waiting_over.set()
        if report.outcome == "failed":
            raise _NotReadError
        return report


async def _sleep_until(due: datetime) -> None:
    """In short pieces: a clock that is set, or a machine that slept, must not move the hour."""
    left_s = (due - datetime.now(UTC)).total_seconds()
    while left_s > 0:
        await asyncio.sleep(min(left_s, 60))
        left_s = (due - datetime.now(UTC)).total_seconds()
