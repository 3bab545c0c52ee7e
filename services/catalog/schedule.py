"""When the catalog is read without anybody asking: daily at 03:00 UTC, and at a start when that has been missed.

What has been done is remembered in the database with the moment that it was due, so neither a restart nor a second replica
nor clocks that disagree make a reading twice; another upstream than the last one counts as not read. Upstream being away
must not leave a catalog old for a day, so a failed reading is tried again, first soon, then every quarter of an hour. A
refused one is not: upstream has answered, and a person should look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta

import stamina
import structlog

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


def latest_daily(now: datetime) -> datetime:
    """The last 03:00 UTC at or before `now`."""
    return next_daily(now) - timedelta(days=1)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Schedule:
    """`worth_waiting_over` is set once the reading at the start has ended, well or not, or takes too long to wait for.

    `clock` tells the time, in UTC.
    """

    def __init__(self, sync: CatalogSync, clock: Callable[[], datetime]) -> None:
        self._sync = sync
        self._clock = clock
        self.worth_waiting_over = asyncio.Event()

    async def run(self) -> None:
        """For ever."""
        asyncio.get_running_loop().call_later(_WORTH_WAITING_S, self.worth_waiting_over.set)
        due = latest_daily(self._clock())
        await self._until_read("start", due)
        while True:
            due = next_daily(due)
            await self._sleep_until(due)
            await self._until_read("schedule", due)
            # A machine that slept for days makes up for one of them, not for each.
            due = max(due, latest_daily(self._clock()))

    async def _until_read(self, requested_by: str, due: datetime) -> None:
        async for attempt in stamina.retry_context(
            on=_NotReadError, attempts=None, timeout=None, wait_initial=2, wait_max=_LONGEST_WAIT_BEFORE_RETRY_S
        ):
            with attempt:
                await self._read(requested_by, due)

    async def _read(self, requested_by: str, due: datetime) -> None:
        try:
            report = await self._sync.run_daily(requested_by, due)
        except ServiceError as error:
            log.warning("catalog_sync_not_possible", code=error.code.value)
            raise _NotReadError from error
        finally:
            self.worth_waiting_over.set()
        if report is not None and report.outcome == "failed":
            raise _NotReadError

    async def _sleep_until(self, due: datetime) -> None:
        """In short pieces: a clock that is set, or a machine that slept, must not move the hour."""
        left_s = (due - self._clock()).total_seconds()
        while left_s > 0:
            await asyncio.sleep(min(left_s, 60))
            left_s = (due - self._clock()).total_seconds()
