"""What the drill asks for, and what it was told about it.

An order is one thing that somebody wants done once. It has a text of its own, which is the prompt of its upstream call, and
an idempotency key or execution id of its own, which is sent again after every broken connection: so the audit can tell
which rows, receipts and upstream calls belong to it, whatever happened in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal
from uuid import UUID

from deploy.sandbox.ledger import hash_key

Kind = Literal["plain", "stream", "async", "leave", "cancel", "run", "submit"]

KINDS: dict[Kind, int] = {"plain": 24, "stream": 28, "async": 10, "leave": 8, "cancel": 8, "run": 12, "submit": 10}
"""How often each kind of order is made, of a hundred."""

MODES: dict[str, int] = {
    "long": 36,
    "drip": 8,
    "slow": 14,
    "echo": 10,
    "fast": 8,
    "no-usage": 8,
    "flaky": 4,
    "cut": 4,
    "mid-stream-error": 4,
    "error-in-200": 2,
    "image": 2,
}
"""How often each mode of the sandbox is asked for: mostly those that take a while, so that kills find runs under way."""

CONFIGS: dict[str, dict[str, Any]] = {
    "long": {"max_tokens": 80},
    "drip": {"max_tokens": 2},
    "image": {"modalities": ["image", "text"]},
}


@dataclass
class Order:
    """One thing to be done once. Ids are those of executions."""

    kind: Kind
    text: str
    key: str
    caller: str
    resource: str
    id: UUID
    """Of the orders of a publisher, which names its runs itself; an order over HTTP is known by its key."""
    accepted: set[str] = field(default_factory=set)
    """Executions that we were told of: a 202, an acknowledgement of the stream, a first event, an answer."""
    told: dict[str, Any] | None = None
    """How it ended, as its caller was told: status, execution id, price, code."""
    refused: str | None = None
    """The code of a refusal that asking again would not change."""
    faults: list[str] = field(default_factory=list)
    """What its caller saw that must never be seen."""
    tries: int = 0
    trouble: Counter[str] = field(default_factory=Counter)
    """What made its caller ask again."""

    @property
    def prompt(self) -> str:
        """The name of its prompt in the sandbox's ledger."""
        return hash_key(self.text)

    @property
    def by_publisher(self) -> bool:
        return self.kind in ("run", "submit")

    def end(self, status: str, execution_id: str, **more: Any) -> None:
        """Note what the caller was told; being told two different things is a fault."""
        self.accepted.add(execution_id)
        if self.told is not None and (self.told["status"], self.told["execution_id"]) != (status, execution_id):
            self.faults.append(f"was told {self.told['status']}, then {status}")
        self.told = {"status": status, "execution_id": execution_id, **more}


@dataclass(frozen=True)
class Market:
    """What can be ordered: resources by mode, of each creator one; and who orders."""

    resources: Mapping[str, list[str]]
    callers: list[str]


def make_order(number: int, random: Random, market: Market) -> Order:
    """The next order; the same for the same seed."""
    (kind,) = random.choices(list(KINDS), list(KINDS.values()))
    (mode,) = random.choices(list(MODES), list(MODES.values()))
    return Order(
        kind=kind,
        text=f"order {number}: {random.getrandbits(64):016x}",
        key=f"drill-{number}-{random.getrandbits(64):016x}",
        caller=random.choice(market.callers),
        resource=random.choice(market.resources[mode]),
        id=UUID(int=random.getrandbits(128), version=4),
    )
