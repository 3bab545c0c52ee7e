"""One view of one workflow: as a view of a run, with what differs. Its frames are few and say little, so whatever is missing
of them is made up for by one snapshot: the workflow as the executor knows it now."""

from __future__ import annotations

import asyncio
from typing import Any

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import GetExecution
from contracts.subjects import WORKFLOWS_GET
from contracts.workflows import ENDED_WORKFLOW, GetWorkflow, WorkflowView
from services.gateway.sequence import Sequence, Step
from services.gateway.watch import GRACE_S, Client, Outages, Watch
from services.runtime.bus import Bus


def _snapshot(seq: int, view: dict[str, Any]) -> Step:
    """The workflow without results: those come with the end, or by the ids of their runs."""
    return Step(seq, "snapshot", {**view, "steps": [{**step, "result": None} for step in view.get("steps", [])]})


def _snapshot_before(completed: Step) -> Step:
    return _snapshot(completed.seq - 1, completed.data)


def last_steps(view: WorkflowView, shown: int) -> list[Step]:
    """The end of a workflow for a view that has shown frame number `shown`; where more than that is missing, a snapshot first."""
    data = view.model_dump(mode="json")
    if view.error is not None:
        last = Step(view.last_seq, "failed", view.error.model_dump(mode="json"))
    else:
        last = Step(view.last_seq, "completed", data)
    return [_snapshot(view.last_seq - 1, data), last] if last.seq > shown + 1 else [last]


class WorkflowWatch(Watch):
    """One view of the workflow `ref`, from behind frame `after`. `begun_seq` is the last frame before its latest start."""

    def __init__(
        self, bus: Bus, outages: Outages, client: Client, ref: GetWorkflow, *, after: int, begun_seq: int
    ) -> None:
        # The frames of a workflow are said under its id, as those of a run.
        under = GetExecution(execution_id=ref.workflow_id, caller=ref.caller)
        super().__init__(bus, outages, client, under, after=after, whole=True)
        self.sequence = Sequence(after, _snapshot_before)
        self._workflow = ref
        self._begun_seq = begun_seq
        self._snapshot: Step | None = None

    def _arrived(self) -> list[Step]:
        steps = [step for step in super()._arrived() if step.seq > self._begun_seq]
        snapshot, self._snapshot = self._snapshot, None
        return steps if snapshot is None else [snapshot, *steps]

    async def _state(self) -> tuple[bool, list[Step]]:
        try:
            view = await self._bus.call(WORKFLOWS_GET, self._workflow)
        except ServiceError as error:
            if error.code is ErrorCode.NOT_FOUND:
                return True, []
            raise
        if view.status in ENDED_WORKFLOW:
            return False, last_steps(view, self.sequence.last)
        if view.last_seq > self.sequence.last and not await self._is_catching_up():
            self._snapshot = _snapshot(view.last_seq, view.model_dump(mode="json"))
            self.wake()
        return False, []

    async def _is_catching_up(self) -> bool:
        """Frames are said after what they tell is committed: what seems to be missing may be on its way."""
        if not self.sequence.broken and not self.has_frames:
            await asyncio.sleep(GRACE_S)
        return not self.sequence.broken and self.has_frames
