"""How a run ended, as a view is told: a result, an error, or the last steps of a stream. No I/O.

The executor's row is the authority; these build from it what the frames would have said.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import ValidationError

from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import ExecutionResult, ExecutionView
from services.gateway.sequence import Step, snapshot_before


def with_run(body: ErrorBody, execution_id: UUID | None) -> ErrorBody:
    """The error, naming the run that it is about."""
    return (
        body
        if body.execution_id is not None or execution_id is None
        else body.model_copy(update={"execution_id": execution_id})
    )


def read_error(data: dict[str, Any], execution_id: UUID | None) -> ErrorBody:
    """What a `failed` frame says. A code of a later version than ours is told as `internal`."""
    try:
        body = ErrorBody.model_validate(data)
    except ValidationError:
        body = ErrorBody(code=ErrorCode.INTERNAL, message="The run failed; GET /api/executions/{id} says how.")
    return with_run(body, execution_id)


def error_of(view: ExecutionView) -> ErrorBody:
    """Why an ended run has no result to show."""
    if view.error is not None:
        return with_run(view.error, view.execution_id)
    if view.status == "canceled":
        return ErrorBody(
            code=ErrorCode.CONFLICT, message="The run was canceled; run it again.", execution_id=view.execution_id
        )
    if view.output_expired:
        return ErrorBody(
            code=ErrorCode.NOT_FOUND,
            message="The output of this run is no longer kept; GET /api/executions/{id} still has its receipt.",
            execution_id=view.execution_id,
        )
    return ErrorBody(
        code=ErrorCode.UNAVAILABLE,
        message="The run was interrupted when a part of the service stopped; run it again.",
        retryable=True,
        execution_id=view.execution_id,
    )


def result_of(view: ExecutionView) -> ExecutionResult:
    """The result of an ended run. Raises the ServiceError that it ended with."""
    if view.result is None:
        raise ServiceError.from_body(error_of(view))
    return view.result


def failed_step(body: ErrorBody, execution_id: UUID, seq: int) -> Step:
    """A last step out of an error."""
    return Step(seq, "failed", with_run(body, execution_id).model_dump(mode="json"))


def last_steps(view: ExecutionView, shown: int, *, whole: bool) -> list[Step]:
    """The end of a run whose frames are lost, for a view that has shown frame number `shown`.

    A snapshot stands in front where frames are missing in between, and always for a `whole` view, which has not seen the
    run from its beginning.
    """
    if view.result is None:
        return [failed_step(error_of(view), view.execution_id, max(view.last_seq or 0, shown + 1))]
    last = Step(
        max(view.last_seq or 0, shown + 2 if whole else shown + 1), "completed", view.result.model_dump(mode="json")
    )
    return [snapshot_before(last), last] if last.seq > shown + 1 else [last]
