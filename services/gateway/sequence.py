"""The order of frames, decided without I/O: what a view may show next, and when it has lost something.

Frames of a run are numbered from 1 without gaps. After a gap nothing is shown until either the missing frames come (a
stored replay), or a snapshot that covers them, or the end, which carries the whole result. A snapshot without a gap
repeats what the view already has, so it is passed over; its number counts.
"""

from __future__ import annotations

from collections.abc import Iterable
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


class Sequence:
    """What one view has shown. `last` is the number of its latest frame, `broken` says that frames are missing after it."""

    def __init__(self, after: int = 0) -> None:
        self.last = after
        self.broken = False
        self.ended = False

    def take(self, steps: Iterable[Step]) -> list[Step]:
        """The steps to show now, in order."""
        return [step for step in steps if self._shows(step)]

    def restart(self) -> None:
        """The source begins again behind `last`: what was missing may come now."""
        self.broken = False

    def _shows(self, step: Step) -> bool:
        if self.ended:
            return False
        if step.is_last:
            self.ended = True
            self.last = max(self.last, step.seq)
            return True
        if step.seq <= self.last:
            return False
        follows = step.seq == self.last + 1 and not self.broken
        if step.kind == "snapshot":
            self.last, self.broken = step.seq, False
            return not follows
        if not follows:
            self.broken = True
            return False
        self.last = step.seq
        return True
