"""What a case of the fault matrix is."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.catalog import Timeouts
from tests.matrix.endings import DONE, Ending
from tests.matrix.plays import LOOKED_UP, STATED, Play

NONE = "nothing billed"
FINAL = f"stated: {STATED}"
LOOKUP = f"looked up: {LOOKED_UP}"
UNKNOWN = "unknown"

PATIENT = Timeouts(first_token_s=25, idle_s=25, total_s=60)


@dataclass(frozen=True)
class Case:
    """One thing that upstream does, and the right end of a run to which it happens.

    `plays` is what each attempt meets, the last one again and again; `plain` is the same in one JSON document, where that
    can be said. `cost` is what the receipt says in the end. `truncated` of a failure means that something was delivered.
    `mode` is the mode of the sandbox that does the same, `quirks` are numbers of the reference's list.
    """

    name: str
    says: str
    plays: tuple[Play, ...]
    ending: Ending = DONE
    plain: Play | None = None
    attempts: int = 1
    truncated: bool = False
    cost: str = FINAL
    text: str = ""
    finish: str | None = "stop"
    kinds: tuple[str, ...] | None = None
    timeouts: Timeouts = PATIENT
    mode: str | None = None
    quirks: tuple[int, ...] = ()

    @property
    def succeeds(self) -> bool:
        """Whether the run ends as a success."""
        return self.ending.code is None
