"""One drill: a stack, its market, load and chaos side by side, then rest, then the audit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.local.stack import Stack
from tests.drill.audit import Audit, Claim, Unknown, table
from tests.drill.chaos import Chaos
from tests.drill.facts import gather, unsettled
from tests.drill.load import Load
from tests.drill.orders import CONFIGS, MODES, Market
from tests.e2e.client import connected, good, publisher

SETTINGS: dict[str, dict[str, str]] = {
    # Alerts are read from the log. Limits per minute are not what this is about.
    "executor": {
        "LOG_FORMAT": "json",
        "REQUESTS_PER_MINUTE_PER_CALLER": "0",
        "REQUESTS_PER_MINUTE_PER_KEY": "0",
    },
}
_CALLERS = 8
_AT_REST_S = 0.5


@dataclass(frozen=True)
class Plan:
    """How much of it. `minutes` bounds the time under load: no round begins after it."""

    rounds: int
    seed: int
    callers: int
    creators: int
    minutes: float
    between_s: tuple[float, float]
    freezes: bool
    settle_s: float


@dataclass(frozen=True)
class Outcome:
    """What came of a drill."""

    audit: Audit
    seconds: dict[str, float]

    @cached_property
    def claims(self) -> list[Claim]:
        return self.audit.claims()

    @property
    def holds(self) -> bool:
        return all(claim.holds for claim in self.claims)

    def report(self) -> str:
        """The table, and what is unknown with its reasons."""
        orders = self.audit.orders
        statuses = Counter(order.told["status"] if order.told else "not waited for" for order in orders)
        trouble: Counter[str] = Counter()
        for order in orders:
            trouble.update(order.trouble)
        killed = Counter(name for kill in self.audit.kills for name in kill.what)
        reasons: dict[str, list[Unknown]] = {}
        for one in self.audit.unknown:
            reasons.setdefault(one.reason, []).append(one)
        lines = [
            f"  killed: {_counts(killed)}",
            f"  orders: {len(orders)}: {_counts(Counter(order.kind for order in orders))}",
            f"  told: {_counts(statuses)}",
            f"  sent again because of: {_counts(trouble)}",
            f"  seconds: {', '.join(f'{name} {seconds:.0f}' for name, seconds in self.seconds.items())}",
            "",
            table(self.claims),
            "",
            f"  costs that nobody knows: {len(self.audit.unknown)}",
        ]
        for reason, ones in sorted(reasons.items()):
            billed = sum((one.billed or Decimal(0) for one in ones), Decimal(0))
            lines.append(f"      {len(ones):>4}  {reason}; upstream billed {billed} USD for them")
        return "\n".join(lines)


async def drill(stack: Stack, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Everything on a started stack of two executors, whose sandbox has served nobody else."""
    seconds: dict[str, float] = {}
    began_s = time.monotonic()
    market = await _open_market(stack, plan.creators)
    async with publisher(stack) as bus:
        load = Load(stack, market, bus, seed=plan.seed, callers=plan.callers)
        chaos = Chaos(stack, seed=plan.seed, between_s=plan.between_s, say=say)
        calling = asyncio.create_task(load.run())
        try:
            seconds["market"], began_s = time.monotonic() - began_s, time.monotonic()
            for number in range(plan.rounds):
                if time.monotonic() - began_s > plan.minutes * 60:
                    say(f"the time is up after {number} rounds")
                    break
                say(f"round {number + 1}")
                await chaos.round()
                if plan.freezes:
                    await chaos.freeze()
            await asyncio.sleep(plan.between_s[0])
            load.stop()
            seconds["load"], began_s = time.monotonic() - began_s, time.monotonic()
            left = await _rest(stack, calling, plan.settle_s)
        finally:
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
    seconds["rest"] = time.monotonic() - began_s
    audit = Audit(await gather(stack), load.orders, chaos.kills, died=stack.died(), left=left)
    return Outcome(audit, seconds)


async def _rest(stack: Stack, calling: asyncio.Task[None], settle_s: float) -> dict[str, int]:
    """Wait for callers to have their answers and for everything else to happen. What had not when the time was up."""
    deadline = time.monotonic() + settle_s
    while True:
        left = await unsettled(stack)
        if calling.done():
            calling.result()
        else:
            left["callers"] = 1
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_AT_REST_S)


async def _open_market(stack: Stack, creators: int) -> Market:
    """A resource of every mode by every creator."""
    resources: dict[str, list[str]] = {mode: [] for mode in MODES}

    async def open_shop(number: int) -> None:
        async with connected(stack, f"creator{number}") as person:
            good(await person.http.put("/api/budgets", json={"key_daily_usd": "50"}))
            for mode in MODES:
                config: dict[str, Any] = CONFIGS.get(mode, {})
                published = await person.publish(model=f"sandbox/{mode}", config=config)
                resources[mode].append(published["id"])

    await asyncio.gather(*(open_shop(number) for number in range(creators)))
    return Market(resources, [f"caller{number}" for number in range(_CALLERS)])


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "nothing"


def new_stack(directory: Path) -> Stack:
    """What a drill needs: two executors, and logs that can be read by a program."""
    return Stack(directory, executors=2, settings=SETTINGS)
