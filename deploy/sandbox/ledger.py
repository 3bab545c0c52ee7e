"""Every call that reached generation, for tests and for `/generation`: what it cost, and whether the client stayed.

Keys and prompts are never kept: the first 12 hex digits of their SHA-256 name them. Costs are Decimal and served as
strings.
"""

import hashlib
import random
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

KEPT_CALLS = 20_000
GENERATION_DELAY_S = 0.3


def hash_key(key: str) -> str:
    """The name of a key, or of a prompt, in the ledger."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def new_generation_id(now: float) -> str:
    """`gen-<unix seconds>-<20 random characters>`."""
    return f"gen-{int(now)}-{random.getrandbits(80):020x}"


@dataclass(slots=True)
class Call:
    """One generation. `cost` is None where nobody knows it; `stated` is False where no lookup may tell it.

    The account is charged `charged_times` what the answer says, and `/generation` knows of it `told_after_s` its end.
    """

    generation_id: str
    model: str
    requested: str
    key: str
    prompt: str
    streamed: bool
    started_at: float
    state: Literal["running", "completed", "cancelled"] = "running"
    ended_at: float | None = None
    cost: Decimal | None = None
    upstream_cost: Decimal | None = None
    is_byok: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    images: int = 0
    finish_reason: str | None = None
    native_finish_reason: str | None = None
    stated: bool = True
    files: tuple[dict[str, Any], ...] = ()
    pdf_engine: str | None = None
    charged_times: int = 1
    told_after_s: float = GENERATION_DELAY_S

    def public(self) -> dict[str, Any]:
        """The row as `/sandbox/calls` shows it; times are unix seconds."""
        return {
            "generation_id": self.generation_id,
            "model": self.model,
            "requested": self.requested,
            "key": self.key,
            "prompt": self.prompt,
            "streamed": self.streamed,
            "state": self.state,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "cost": None if self.cost is None else format(self.cost, "f"),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "finish_reason": self.finish_reason,
            "files": list(self.files),
            "pdf_engine": self.pdf_engine,
        }


class Ledger:
    """The last 20,000 calls and refusals, and how many calls of each key ran at once."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; calls that run now still end properly, in no list."""
        self.calls: deque[Call] = deque(maxlen=KEPT_CALLS)
        self.refused: deque[dict[str, Any]] = deque(maxlen=KEPT_CALLS)
        self.running: Counter[str] = Counter()
        self.max_running: dict[str, int] = {}
        self.spent: dict[str, Decimal] = {}
        self.tried: OrderedDict[str, None] = OrderedDict()
        self._by_id: OrderedDict[str, Call] = OrderedDict()

    def begin(self, call: Call) -> None:
        """A generation starts."""
        self.calls.append(call)
        self._by_id[call.generation_id] = call
        if len(self._by_id) > KEPT_CALLS:
            self._by_id.popitem(last=False)
        key = call.key
        running = self.running[key] = self.running[key] + 1
        if running > self.max_running.get(key, 0):
            self.max_running[key] = running

    def end(self, call: Call, state: Literal["completed", "cancelled"], cost: Decimal | None) -> None:
        """A generation ended or its client left; `cost` in USD is what the account pays."""
        call.state = state
        call.ended_at = time.time()
        call.cost = cost
        key = call.key
        if self.running[key] > 1:
            self.running[key] -= 1
        else:
            del self.running[key]
        if cost:
            self.spent[key] = self.spent.get(key, Decimal(0)) + cost

    def refuse(self, key: str, model: str, status: int) -> None:
        """A call that never reached generation."""
        self.refused.append({"key": key, "requested": model, "status": status, "at": time.time()})

    def first_try(self, what: str) -> bool:
        """Whether this was never tried before."""
        if what in self.tried:
            return False
        self.tried[what] = None
        if len(self.tried) > KEPT_CALLS:
            self.tried.popitem(last=False)
        return True

    def find(self, generation_id: str) -> Call | None:
        """The call of a generation id."""
        return self._by_id.get(generation_id)
