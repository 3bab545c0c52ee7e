"""What the executor answers about workflows. All that can be refused is refused before the first step is paid."""

from __future__ import annotations

import asyncio

from contracts.errors import ServiceError
from contracts.execution import Execute
from contracts.workflows import (
    ENDED_WORKFLOW,
    GetWorkflow,
    ListWorkflows,
    RunWorkflow,
    WorkflowPage,
    WorkflowStep,
    WorkflowSummary,
    WorkflowView,
)
from services.executor.preparation import Preparation
from services.executor.pricing import highest_price
from services.executor.results import Results
from services.executor.runs import conflicting_request
from services.executor.views import cursor_of
from services.executor.workflow_runs import Workflows
from services.executor.workflow_store import NewStep, NewWorkflow, Workflow, WorkflowStore
from services.executor.workflow_views import no_such_workflow
from services.executor.workflows import check, check_price, check_resume, edges, known_input, of_step, request_hash

_CANCEL_WAIT_S = 2.5
_CANCEL_LOOK_S = 0.05


class WorkflowHandlers:
    def __init__(self, store: WorkflowStore, preparation: Preparation, results: Results, workflows: Workflows) -> None:
        self._store = store
        self._preparation = preparation
        self._results = results
        self._workflows = workflows

    async def run(self, request: RunWorkflow) -> WorkflowView:
        """Accept durably."""
        check(request)
        try:
            steps = [await self._foresee(number, step, request) for number, step in enumerate(request.steps)]
            check_price(request.max_price_usd, [step.highest_usd for step in steps])
        except ServiceError:
            # What was accepted once stays accepted, also when it would be refused today.
            earlier = await self._store.find_same(
                request.workflow_id, request.caller, request.idempotency_key, request_hash(request)
            )
            if earlier is None:
                raise
            return await self.get(GetWorkflow(workflow_id=earlier, caller=request.caller))
        locked = self._results.lock_workflow(request.workflow_id, request)
        outcome, workflow_id = await self._store.insert(
            NewWorkflow(
                id=request.workflow_id,
                caller=request.caller,
                idempotency_key=request.idempotency_key,
                request_hash=request_hash(request),
                max_price_usd=request.max_price_usd,
                definition=locked.blob,
                definition_key_id=locked.key_id,
                steps=steps,
            )
        )
        if outcome == "conflict":
            raise conflicting_request()
        self._workflows.news()
        return await self.get(GetWorkflow(workflow_id=workflow_id, caller=request.caller))

    async def _foresee(self, number: int, step: WorkflowStep, request: RunWorkflow) -> NewStep:
        """Everything that can be said of a step before what it refers to is there. Raises why it could not run."""
        execute = Execute(
            resource=step.resource,
            max_price_usd=step.max_price_usd,
            expected_version=step.expected_version,
            caller=request.caller,
        )
        try:
            resource = await self._preparation.foresee(execute, lambda found: known_input(step, found.inputs))
        except ServiceError as error:
            raise of_step(error, step.name, f"steps.{number}.") from None
        return NewStep(step.name, step.resource, edges(step), highest_price(resource.pricing))

    async def get(self, request: GetWorkflow) -> WorkflowView:
        return await self._workflows.view(_own(await self._store.get(request.workflow_id), request))

    async def list(self, request: ListWorkflows) -> WorkflowPage:
        """Newest first."""
        rows = await self._store.page(
            request.caller, status=request.status, before=cursor_of(request.cursor), limit=request.limit + 1
        )
        shown = rows[: request.limit]
        return WorkflowPage(
            items=[
                WorkflowSummary(
                    workflow_id=row.id,
                    status=row.status,
                    created_at=row.created_at,
                    finished_at=row.finished_at,
                    steps=row.steps,
                )
                for row in shown
            ],
            next_cursor=str(shown[-1].id) if len(rows) > request.limit else None,
        )

    async def cancel(self, request: GetWorkflow) -> WorkflowView:
        """Flag it, and wait a moment for the end."""
        await self._store.request_cancel(request.workflow_id, request.caller)
        self._workflows.news()
        for _ in range(round(_CANCEL_WAIT_S / _CANCEL_LOOK_S)):
            if _own(await self._store.get(request.workflow_id), request).status in ENDED_WORKFLOW:
                break
            await asyncio.sleep(_CANCEL_LOOK_S)
        return await self.get(request)

    async def resume(self, request: GetWorkflow) -> WorkflowView:
        """Run again what did not succeed. One that runs already is answered as it is."""
        async with self._store.held(request.workflow_id, patient=True) as held:
            assert held is not None
            workflow = _own(await held.load(), request)
            if workflow.status in ENDED_WORKFLOW:
                check_resume(workflow, self._results.open_workflow(workflow))
                await held.resume()
        self._workflows.news()
        return await self.get(request)


def _own(workflow: Workflow | None, request: GetWorkflow) -> Workflow:
    if workflow is None or workflow.caller != request.caller:
        raise no_such_workflow()
    return workflow
