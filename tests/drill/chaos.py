"""kill -9, part by part and then all at once, in the middle of the load; every part is started again after a moment."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from deploy.local.stack import Stack

STEPS = ("executor", "gateway", "nats", "postgres", "everything")
_AWAY_S = (0.2, 2.0)
_FROZEN_S = 22.0
"""Longer than a lease and the look of the reaper: when it wakes up, others have ended its runs."""


@dataclass(frozen=True)
class Kill:
    """When something was away, or did not move; times are unix seconds, `until` that of being ready again."""

    what: tuple[str, ...]
    at: float
    until: float


class Chaos:
    """Kills parts of a stack. `between_s` is the range of pauses between two kills; the sandbox, which is the world outside,
    lives on."""

    def __init__(self, stack: Stack, *, seed: int, between_s: tuple[float, float], say: Callable[[str], None]) -> None:
        self._stack = stack
        self._random = Random(seed)
        self._between_s = between_s
        self._say = say
        self.kills: list[Kill] = []
        self.freezes: list[Kill] = []

    async def round(self) -> None:
        """One kill of each kind."""
        for step in STEPS:
            await asyncio.sleep(self._random.uniform(*self._between_s))
            await self._kill(self._parts(step))

    def _parts(self, step: str) -> list[str]:
        everything = [name for name in self._stack.parts if name != "sandbox"]
        if step == "everything":
            return self._random.sample(everything, len(everything))
        # A gateway or an executor, whichever of them.
        return [self._random.choice([name for name in everything if name == step or name.startswith(f"{step}-")])]

    async def freeze(self) -> None:
        """An executor stands still, as a machine does that is moved, and goes on as if nothing had happened."""
        (name,) = self._parts("executor")
        pid = self._stack.parts[name].child.pid
        assert pid is not None
        at = time.time()
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(_FROZEN_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.freezes.append(Kill((name,), at, time.time()))
        self._say(f"{name} stood still for {_FROZEN_S:.0f} s")

    async def _kill(self, names: list[str]) -> None:
        at = time.time()
        await asyncio.gather(*(self._stack.parts[name].kill() for name in names))
        await asyncio.sleep(self._random.uniform(*_AWAY_S))
        await asyncio.gather(*(self._stack.parts[name].start() for name in names))
        kill = Kill(tuple(names), at, time.time())
        self.kills.append(kill)
        self._say(f"kill -9 {', '.join(names)}: ready again after {kill.until - kill.at:.1f} s")
