"""What is known of an answer: the pieces it is told in while it comes, and the whole of it at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from contracts.execution import FinishReason, OutputPart, Usage
from services.executor.faults import Fault
from services.executor.parts import RawMedia


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thought."""

    text: str


Output = OutputPart | RawMedia
Delta = Text | Reasoning | Output


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that is known of an answer at its end. `cost_usd` None means: not said, look it up."""

    text: str
    outputs: tuple[Output, ...]
    reasoning: str | None
    finish_reason: FinishReason | None
    native_finish_reason: str | None
    served: str | None
    provider: str | None
    generation_id: str | None
    usage: Usage
    cost_usd: Decimal | None
    truncated: bool
    complete: bool
    empty: bool
    fault: Fault | None
    deltas: tuple[Delta, ...]

    def parts(self, stored: Mapping[RawMedia, OutputPart]) -> list[OutputPart]:
        """The ordered outputs, each file replaced by what it was stored as; one that was not stored is left out."""
        known = (stored.get(part) if isinstance(part, RawMedia) else part for part in self.outputs)
        return [part for part in known if part is not None]
