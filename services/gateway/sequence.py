"""The order of frames, decided without I/O: what a view may show next, and when it has lost something.

Frames of a run are numbered from 1 without gaps. After a gap nothing is shown until either the missing frames come (a
stored replay), or a snapshot that covers them, or the end; where that comes first, the result that it carries is shown
as a snapshot before it. So whoever puts together what is shown has all of it, and numbers jump to a snapshot alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from contracts.execution import TERMINAL_FRAMES


@dataclass(frozen=True, slots=True)
class Step:
    """A frame as it came from the bus."""

    seq: int
    kind: str
    data: dict[str, Any]

    @property
    def is_last(self) -> bool:
        return self.kind in TERMINAL_FRAMES


def read_step(payload: bytes) -> Step | None:
    """A frame out of the wire's bytes; None for something that is not one. Kinds of later versions are passed on."""
    try:
        frame = orjson.loads(payload)
        seq, kind, data = frame["seq"], frame["type"], frame["data"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None
    if not isinstance(seq, int) or seq < 1 or not isinstance(kind, str) or not kind.isidentifier():
        return None
    return Step(seq, kind, data) if isinstance(data, dict) else None


def snapshot_before(completed: Step) -> Step:
    """All output of a run, for a view that has missed some, out of the step that completes it."""
    result = completed.data
    data = {
        "execution_id": result.get("execution_id"),
        "text": result.get("text") or "",
        "reasoning": result.get("reasoning") or "",
        "outputs": result.get("outputs") or [],
    }
    return Step(completed.seq - 1, "snapshot", data)


class Sequence:
    """What one view has shown. `last` is the number of its latest frame, `broken` says that frames are missing after it.

    `snapshot` makes the step that stands for all missing ones out of the one that completes it.
    """

    def __init__(self, after: int = 0, snapshot: Callable[[Step], Step] = snapshot_before) -> None:
        self._snapshot = snapshot
        self.last = after
        self.broken = False
        self.ended = False

    def take(self, steps: Iterable[Step]) -> list[Step]:
        """The steps to show now, in order."""
        return [shown for step in steps for shown in self._shown(step)]

    def restart(self) -> None:
        """The source begins again behind `last`: what was missing may come now."""
        self.broken = False

    def _shown(self, step: Step) -> list[Step]:
        if self.ended:
            return []
        if step.is_last:
            missing = self.last + 1 < step.seq
            self.ended = True
            self.last = max(self.last, step.seq)
            return [self._snapshot(step), step] if missing and step.kind == "completed" else [step]
        if step.seq <= self.last:
            return []
        if step.kind != "snapshot" and (step.seq != self.last + 1 or self.broken):
            self.broken = True
            return []
        self.last, self.broken = step.seq, False
        return [step]
