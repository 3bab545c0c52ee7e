"""Workflows under way. Any executor takes any of them a step further: it notes which runs have ended, chooses what begins,
commits that with the ids of the new runs, and hands them over as jobs like any other.

Nothing is kept in memory between two looks, so whoever dies delays a workflow by a second or so. One executor at a time
holds a workflow's lock, and a run is handed over under the id that was committed for it: it cannot begin twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import structlog

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller, ExecutionResult, FrameType
from contracts.subjects import frames_subject
from contracts.workflows import StepProgress, WorkflowRequest, WorkflowStatus, WorkflowView
from services.executor.endings import for_caller
from services.executor.frames import say
from services.executor.jobs import Jobs
from services.executor.metrics import ExecutorMetrics
from services.executor.results import Results
from services.executor.store import Execution, Store
from services.executor.workflow_store import AttemptOfStep, HeldWorkflow, Step, StepChange, Workflow, WorkflowStore
from services.executor.workflow_views import shown_results, view_of
from services.executor.workflows import decide, error_of, references, run_of
from services.runtime.bus import Bus, encode

log = structlog.get_logger()

VIEWER = "gateway"
_LOOK_AGAIN_S = 1.0
_GATHER_S = 0.01
_AT_ONCE = 4
_LONGEST_DELAY_S = 5.0
_LONGEST_WAIT_S = 60.0
_AFTER_A_BUG = timedelta(seconds=10)
_JANITOR_EVERY_S = 300.0
# A run that cannot be handed over because of these is handed over later; anything else is how its step failed.
_LATER = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.OVERLOADED, ErrorCode.RATE_LIMITED})


class Workflows:
    def __init__(
        self,
        *,
        bus: Bus,
        store: WorkflowStore,
        runs: Store,
        jobs: Jobs,
        results: Results,
        metrics: ExecutorMetrics,
        stop_run: Callable[[Execution], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._store = store
        self._runs = runs
        self._jobs = jobs
        self._results = results
        self._metrics = metrics
        self._stop_run = stop_run
        self._under_way = self._begun = False
        self._wake = asyncio.Event()

    def news(self) -> None:
        """A workflow was started, resumed or is to be canceled."""
        self._under_way = self._begun = True
        self._wake.set()

    def run_ended(self) -> None:
        """It may have been a step; without a workflow under way it is not worth a question to the database."""
        if self._under_way:
            self._wake.set()

    async def work(self) -> None:
        """Background work: take workflows further, at the end of runs here, and every second for those elsewhere."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._wake.wait()
                    await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            self._begun = False
            due, under_way = await self._store.due(_AT_ONCE)
            self._under_way = under_way or self._begun
            await asyncio.gather(*(self._advance(workflow_id) for workflow_id in due))
            if len(due) == _AT_ONCE:
                self._wake.set()

    async def clean(self) -> None:
        """Background work: delete what was sent with workflows that ended too long ago to be resumed."""
        while True:
            forgotten = await self._store.forget_definitions(self._results.keep)
            if forgotten:
                log.info("workflow_definitions_erased", workflows=forgotten)
            await asyncio.sleep(_JANITOR_EVERY_S)

    async def view(self, workflow: Workflow) -> WorkflowView:
        """With the results that belong into it."""
        rows = {each: await self._result(each, workflow.caller) for each in shown_results(workflow)}
        return view_of(workflow, {each: result for each, result in rows.items() if result is not None})

    # One step further -------------------------------------------------------------------------------------------------

    async def _advance(self, workflow_id: UUID) -> None:
        structlog.contextvars.bind_contextvars(workflow_id=str(workflow_id))
        try:
            workflow = await self._decide(workflow_id)
            while workflow is not None and await self._hand_over(workflow_id):
                workflow = await self._decide(workflow_id)
            if workflow is not None and workflow.cancel_requested:
                await self._stop_runs(workflow)
        except ServiceError as error:
            log.warning("workflow_waits", code=error.code.value)
            await self._leave(workflow_id, timedelta(seconds=_LOOK_AGAIN_S))
        except Exception as error:
            # One workflow that nobody foresaw must not stop all others.
            log.exception("workflow_stuck", error=type(error).__name__)
            await self._leave(workflow_id, _AFTER_A_BUG)

    async def _leave(self, workflow_id: UUID, delay: timedelta) -> None:
        with contextlib.suppress(ServiceError):
            async with self._store.held(workflow_id) as held:
                if held is not None:
                    await held.look_again(delay)

    async def _decide(self, workflow_id: UUID) -> Workflow | None:
        """Note what has ended, choose what begins, commit, tell. The workflow if it goes on and nobody else has it."""
        async with self._store.held(workflow_id) as held:
            found = await held.load() if held is not None else None
            if held is None or found is None or found.status != "running":
                return None
            changes, status = decide(found.steps, canceling=found.cancel_requested)
            workflow = _changed(found, changes, status)
            if changes or status != "running":
                finished_at = await held.change(changes, last_seq=workflow.last_seq, status=status)
                workflow = replace(workflow, finished_at=finished_at)
        await self._tell(workflow, changes, found.last_seq)
        return workflow if status == "running" else None

    async def _hand_over(self, workflow_id: UUID) -> bool:
        """Enqueue the runs that were chosen and are not there yet; whether one was refused, so that there is more to decide."""
        async with self._store.held(workflow_id) as held:
            workflow = await held.load() if held is not None else None
            if held is None or workflow is None or workflow.cancel_requested:
                return False
            chosen = [step for step in workflow.steps if step.status == "running" and _has_no_run(step)]
            if not chosen:
                return False
            definition = self._results.open_workflow(workflow)
            return any([await self._refused(held, workflow, step, definition) for step in chosen])

    async def _refused(
        self, held: HeldWorkflow, workflow: Workflow, step: Step, definition: WorkflowRequest | None
    ) -> bool:
        """Enqueue the run of one step, or note why that cannot be done; one that may be possible later is left for then."""
        assert step.latest is not None
        try:
            await self._enqueue(workflow, step, step.latest, definition)
        except ServiceError as error:
            wait_s = error.body.retry_after_s or _LOOK_AGAIN_S
            # A day's limit that is used up comes back at midnight: that is for its owner to wait for.
            if error.code in _LATER and wait_s <= _LONGEST_WAIT_S:
                delay_s = min(wait_s, _LONGEST_DELAY_S)
                await held.look_again(timedelta(seconds=delay_s))
                return False
            await held.refuse(step.latest.execution_id, error.body.model_dump(mode="json"))
            return True
        return False

    async def _enqueue(
        self, workflow: Workflow, step: Step, attempt: AttemptOfStep, definition: WorkflowRequest | None
    ) -> None:
        if definition is None:
            raise ServiceError(ErrorCode.CONFLICT, "What was sent is not kept any more; start the workflow again.")
        asked = next(each for each in definition.steps if each.name == step.name)
        results = {name: await self._said(workflow.step(name)) for name in references(asked)}
        run = run_of(asked, step, attempt, workflow.caller, definition, results)
        await self._jobs.enqueue(run, needed=True)

    async def _said(self, step: Step) -> ExecutionResult:
        """The result of a step that has succeeded."""
        result = await self._result(step.latest.execution_id) if step.latest is not None else None
        if result is None:
            raise ServiceError(
                ErrorCode.CONFLICT, f"What the step `{step.name}` said is not kept any more; start the workflow again."
            )
        return result

    async def _result(self, execution_id: UUID, caller: Caller | None = None) -> ExecutionResult | None:
        """The result of a run while it is kept; as `caller` may see it."""
        row = await self._runs.get(execution_id)
        result = self._results.open(row) if row is not None else None
        return for_caller(result, row.owner, caller) if result and row and caller else result

    async def _stop_runs(self, workflow: Workflow) -> None:
        """Ask for the end of every run that goes on; what becomes of the steps is decided when it has come."""
        for step in workflow.steps:
            if (
                step.status == "running"
                and step.latest is not None
                and (row := await self._runs.get(step.latest.execution_id))
            ):
                await self._stop_run(row)

    # Telling ----------------------------------------------------------------------------------------------------------

    async def _tell(self, workflow: Workflow, changes: Sequence[StepChange], last_seq: int) -> None:
        """The frames of what was committed. One that is lost leaves a gap, at which a view asks how the workflow stands."""
        seq = last_seq
        for seq, progress in enumerate(_progress(workflow, changes), last_seq + 1):
            await self._say(workflow.id, seq, "step", encode(progress))
        if workflow.status == "running":
            return
        view = await self.view(workflow)
        self._metrics.workflows.labels(workflow.status).inc()
        log.info("workflow_ended", status=workflow.status, steps=len(workflow.steps))
        if view.error is not None:
            await self._say(workflow.id, seq + 1, "failed", encode(view.error))
        else:
            await self._say(workflow.id, seq + 1, "completed", encode(view))

    async def _say(self, workflow_id: UUID, seq: int, kind: FrameType, data: bytes) -> None:
        subject = frames_subject(VIEWER, workflow_id)
        await say(self._bus.nc, subject, seq, kind, data, self._metrics.frames_lost)


def _has_no_run(step: Step) -> bool:
    return step.latest is not None and step.latest.run is None and step.latest.refusal is None


def _changed(workflow: Workflow, changes: Sequence[StepChange], status: WorkflowStatus) -> Workflow:
    """The workflow as it is once the changes are committed; new runs are not among its attempts yet."""
    now = {change.name: change.status for change in changes}
    return replace(
        workflow,
        status=status,
        last_seq=workflow.last_seq + len(changes) + (status != "running"),
        steps=[replace(step, status=now.get(step.name, step.status)) for step in workflow.steps],
    )


def _progress(workflow: Workflow, changes: Sequence[StepChange]) -> Iterable[StepProgress]:
    for change in changes:
        step = replace(workflow.step(change.name), status=change.status)
        ran = step.latest.execution_id if step.latest is not None and step.latest.refusal is None else None
        yield StepProgress(
            workflow_id=workflow.id,
            step=step.name,
            status=step.status,
            execution_id=change.begins or ran,
            error=error_of(step, workflow.caller),
        )
