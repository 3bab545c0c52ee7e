"""What the executor answers on the bus. Each handler translates; who the caller is comes from the request of the gateway,
or from the subject of a publisher, and from nowhere else."""

from __future__ import annotations

import asyncio
from uuid import UUID

from contracts.base import new_execution_id
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import (
    TERMINAL_STATUSES,
    Caller,
    Execute,
    ExecuteRequest,
    ExecutionAccepted,
    ExecutionCanceling,
    ExecutionPage,
    ExecutionView,
    GetExecution,
    GetOwnExecution,
    ListExecutions,
    RunReply,
)
from contracts.subjects import EXECUTION_CANCELING
from services.executor.endings import for_caller
from services.executor.jobs import Jobs, execute_as
from services.executor.preparation import Preparation
from services.executor.results import Results
from services.executor.runs import Runner
from services.executor.store import Execution, Store
from services.executor.views import cursor_of, no_such_run, view_of
from services.runtime.bus import Bus, current_call

_CANCEL_WAIT_S = 1.5
_ANSWER_MARGIN_S = 0.25
_CANCEL_LOOK_S = 0.05


class Handlers:
    def __init__(
        self, *, bus: Bus, store: Store, preparation: Preparation, runner: Runner, jobs: Jobs, results: Results
    ) -> None:
        self._bus = bus
        self._store = store
        self._preparation = preparation
        self._runner = runner
        self._jobs = jobs
        self._results = results

    async def run(self, request: Execute) -> RunReply:
        """Run and wait."""
        self._runner.check_room()
        try:
            prepared = await self._preparation.prepare(request)
        except ServiceError:
            # What was admitted once is replayed, also when it would be refused today.
            earlier = await self._runner.find_same(request)
            if earlier is None:
                raise
            owner, reply = earlier.owner, await self._runner.reply_of(earlier.id)
        else:
            owner, reply = prepared.resource.owner, await self._runner.run(prepared)
        return for_caller(reply, owner, request.caller)

    async def run_as(self, request: ExecuteRequest) -> RunReply:
        """Run as the publisher in the subject, who is told the id of the run while there is still time to answer."""
        call = current_call()
        execute = execute_as(call.publisher, request, new_execution_id())
        left_s = call.remaining_s()
        try:
            async with asyncio.timeout(max(left_s - _ANSWER_MARGIN_S, left_s / 2)):
                return await self.run(execute)
        except TimeoutError:
            raise ServiceError(
                ErrorCode.TIMEOUT,
                "The answer took too long. The run may go on: ask for it by its execution_id.",
                execution_id=execute.execution_id,
            ) from None

    async def enqueue(self, request: Execute) -> ExecutionAccepted:
        """Accept durably."""
        return await self._jobs.enqueue(request)

    async def get(self, request: GetExecution) -> ExecutionView:
        found = await self._store.get_with_receipts(request.execution_id)
        if found is None:
            raise no_such_run()
        row, receipts = found
        return view_of(row, request.caller, self._results, receipts, whole=True)

    async def get_as(self, request: GetOwnExecution) -> ExecutionView:
        return await self.get(GetExecution(execution_id=request.execution_id, caller=_publisher()))

    async def list(self, request: ListExecutions) -> ExecutionPage:
        """Newest first."""
        if request.role == "owner" and request.caller.kind != "user":
            raise ServiceError(ErrorCode.FORBIDDEN, "Only a creator has resources of their own.")
        rows = await self._store.page(
            caller=(request.caller.kind, request.caller.id) if request.role == "caller" else None,
            owner=request.caller.id if request.role == "owner" else None,
            resource_id=request.resource_id,
            status=request.status,
            before=cursor_of(request.cursor),
            limit=request.limit + 1,
        )
        shown = rows[: request.limit]
        return ExecutionPage(
            items=[view_of(row, request.caller, self._results, [], whole=False) for row in shown],
            next_cursor=str(shown[-1].id) if len(rows) > request.limit else None,
        )

    async def cancel(self, request: GetExecution) -> ExecutionView:
        """Flag it, tell every executor, and wait a moment for the end."""
        row = await self._store.get(request.execution_id)
        if row is None:
            # It may be waiting for a slot somewhere: whoever admits it for this caller ends it at once.
            await self._announce_cancel(request.execution_id, request.caller)
            raise no_such_run()
        view_of(row, request.caller, self._results, [], whole=False)  # only its caller and its creator may
        await self.stop(row)
        for _ in range(round(_CANCEL_WAIT_S / _CANCEL_LOOK_S)):
            row = await self._row(request)
            if row.status in TERMINAL_STATUSES:
                break
            await asyncio.sleep(_CANCEL_LOOK_S)
        return await self.get(request)

    async def stop(self, row: Execution) -> None:
        """Flag a run and tell whoever has it; a queued one ends at once."""
        was = await self._store.request_cancel(row.id)
        if was is None or (was == "queued" and await self._jobs.cancel_queued(row)):
            return
        whose = Caller(kind=row.caller_kind, id=row.caller_id)
        if not self._runner.cancel(row.id, whose):
            await self._announce_cancel(row.id, whose)

    async def _announce_cancel(self, execution_id: UUID, caller: Caller) -> None:
        """To every executor: the one that runs it stops it, one that is just about to begin it ends it at once."""
        await self._bus.publish(EXECUTION_CANCELING, ExecutionCanceling(execution_id=execution_id, caller=caller))

    async def cancel_as(self, request: GetOwnExecution) -> ExecutionView:
        return await self.cancel(GetExecution(execution_id=request.execution_id, caller=_publisher()))

    async def canceling(self, event: ExecutionCanceling) -> None:
        if not self._runner.cancel(event.execution_id, event.caller):
            self._runner.cancel_early(event.execution_id, event.caller)

    async def _row(self, request: GetExecution) -> Execution:
        row = await self._store.get(request.execution_id)
        if row is None:
            raise no_such_run()
        return row


def _publisher() -> Caller:
    return Caller(kind="service", id=current_call().publisher)
