"""The load of a benchmark: one process with a fixed number of connections, each making one call after another.

It speaks plain HTTP through aiohttp and looks at bytes only, so that it takes as little of the machine as it can.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

WARM_UP_CALLS = 3
"""On every connection, before calls are counted."""


@dataclass(frozen=True)
class Target:
    """Where calls go and what they say. `first` is what the first piece of output looks like on the wire."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    first: bytes
    last: bytes


@dataclass(frozen=True)
class Timings:
    """Seconds per call."""

    calls: int
    elapsed_s: float
    totals_s: list[float]
    firsts_s: list[float]

    @property
    def per_second(self) -> float:
        return self.calls / self.elapsed_s

    def total_ms(self, percent: int) -> float:
        return _percentile(self.totals_s, percent) * 1000

    def first_ms(self, percent: int) -> float:
        return _percentile(self.firsts_s, percent) * 1000


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


async def _call(session: aiohttp.ClientSession, target: Target, payload: bytes) -> tuple[float, float]:
    started = time.perf_counter()
    first_s = 0.0
    tail = b""
    async with session.post(target.url, data=payload, headers=target.headers) as response:
        async for chunk in response.content.iter_any():
            tail = tail[-4096:] + chunk
            if not first_s and target.first in tail:
                first_s = time.perf_counter() - started
        if response.status != 200 or target.last not in tail:
            raise RuntimeError(f"a call did not end as it should: {response.status} {tail[-300:]!r}")
    return time.perf_counter() - started, first_s


async def measure(target: Target, *, connections: int, calls: int) -> Timings:
    """Make `calls` calls over `connections` connections, after a short warm-up that is not counted."""
    payload = orjson.dumps(target.body)
    totals: list[float] = []
    firsts: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

        async def work(count: int, *, counted: bool) -> None:
            for _ in range(count):
                total_s, first_s = await _call(session, target, payload)
                if counted:
                    totals.append(total_s)
                    firsts.append(first_s)

        await asyncio.gather(*(work(WARM_UP_CALLS, counted=False) for _ in range(connections)))
        each = max(1, calls // connections)
        started = time.perf_counter()
        await asyncio.gather(*(work(each, counted=True) for _ in range(connections)))
        elapsed_s = time.perf_counter() - started
    return Timings(len(totals), elapsed_s, totals, firsts)
