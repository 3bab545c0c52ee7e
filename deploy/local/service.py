"""Our own programs as parts of the stack: a service, ready when its `/readyz` says so, and the sandbox, ready when it prints its
address. Both offer what NATS and Postgres offer: `child`, `start`, `stop`, `kill`."""

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import aiohttp

from deploy.local.process import Child

START_TIMEOUT_S = 90
STOP_GRACE_S = 10
PROBE_S = 0.05


class Part(Protocol):
    """Anything the stack runs."""

    child: Child

    async def start(self) -> None:
        """Starts it and returns when it is ready; raises `ProcessError`."""

    async def stop(self) -> None:
        """Asks it to end and waits until it has."""

    async def kill(self) -> None:
        """kill -9."""


class Service:
    """One process of a service."""

    def __init__(self, child: Child, *, url: str, metrics_url: str) -> None:
        self.child = child
        self.url = url
        self.metrics_url = metrics_url

    async def start(self) -> None:
        """Starts the service and returns when it is ready. Raises `ProcessError`."""
        self.child.start()
        await wait_until_ready([self])

    async def stop(self) -> None:
        """Lets the service drain; what has not ended after the grace is killed."""
        await self.child.stop(grace_s=STOP_GRACE_S)

    async def kill(self) -> None:
        """kill -9."""
        await self.child.kill()


class Sandbox:
    """The OpenRouter stand-in. `url` is known once it has started."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.url = ""

    async def start(self) -> None:
        """Starts the sandbox and returns when it has printed its address. Raises `ProcessError`."""
        # After a restart the log still holds the line of the run before.
        begin = self.child.log.stat().st_size if self.child.log.exists() else 0
        self.child.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while (ready := _ready_line(self.child.log, begin)) is None:
            self.child.check()
            if time.monotonic() > deadline:
                raise self.child.failure(f"is not ready after {START_TIMEOUT_S} s")
            await asyncio.sleep(PROBE_S)
        self.url = ready

    async def stop(self) -> None:
        """Ends the sandbox at once: it keeps nothing."""
        await self.child.stop(grace_s=2)

    async def kill(self) -> None:
        """kill -9."""
        await self.child.kill()


async def wait_until_ready(services: Sequence[Service]) -> None:
    """Returns when every `/readyz` answers 200.

    Raises `ProcessError` when one of them ends, or is not ready in time, with its last log lines.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for service in services:
            while (problem := await _unreadiness(session, service)) is not None:
                for other in services:
                    other.child.check()
                if time.monotonic() > deadline:
                    raise service.child.failure(f"is not ready after {START_TIMEOUT_S} s ({problem})")
                await asyncio.sleep(PROBE_S)


async def _unreadiness(session: aiohttp.ClientSession, service: Service) -> str | None:
    try:
        async with session.get(f"{service.url}/readyz") as answer:
            return None if answer.status == 200 else f"{answer.status}: {(await answer.text())[:500]}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


def _ready_line(log: Path, begin: int) -> str | None:
    line = re.search(rb"^sandbox ready (\S+)$", log.read_bytes()[begin:], re.MULTILINE)
    return line.group(1).decode() if line else None
