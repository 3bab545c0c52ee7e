"""A workflow as whoever started it sees it. Nobody else sees any of it: to others it does not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import TERMINAL_STATUSES, Caller, Cost, ExecutionResult, ExecutionStatus, PriceOnly
from contracts.workflows import StepAttempt, StepView, WorkflowView
from services.executor.access import is_creator
from services.executor.workflow_store import AttemptOfStep, Step, Workflow
from services.executor.workflows import error_of, error_of_run, failure_of

_MOST_RESULT_BYTES = 6_000_000


def no_such_workflow() -> ServiceError:
    return ServiceError(ErrorCode.NOT_FOUND, "There is no workflow of yours with this id.")


def shown_results(workflow: Workflow) -> list[UUID]:
    """The runs whose results stand in the view: of steps that nothing depends on, as many as fit into one message."""
    needed = {name for step in workflow.steps for name in step.depends_on}
    shown, size = [], 0
    for step in workflow.steps:
        latest = step.latest
        if step.name in needed or step.status != "succeeded" or latest is None or latest.kept_bytes is None:
            continue
        size += latest.kept_bytes
        if size <= _MOST_RESULT_BYTES:
            shown.append(latest.execution_id)
    return shown


def view_of(workflow: Workflow, results: Mapping[UUID, ExecutionResult]) -> WorkflowView:
    """`results` by the id of their runs, as their caller may see them."""
    attempts = [attempt for step in workflow.steps for attempt in step.attempts]
    return WorkflowView(
        workflow_id=workflow.id,
        status=workflow.status,
        created_at=workflow.created_at,
        finished_at=workflow.finished_at,
        last_seq=workflow.last_seq,
        begun_seq=workflow.begun_seq,
        max_price_usd=workflow.max_price_usd,
        cost=_total([attempt for attempt in attempts if attempt.run in TERMINAL_STATUSES], workflow.caller),
        steps=[_step(step, workflow.caller, results) for step in workflow.steps],
        error=failure_of(workflow),
    )


def _step(step: Step, caller: Caller, results: Mapping[UUID, ExecutionResult]) -> StepView:
    latest = step.latest
    return StepView(
        name=step.name,
        resource=step.resource,
        depends_on=step.depends_on,
        status=step.status,
        execution_id=latest.execution_id if latest is not None and latest.refusal is None else None,
        attempts=[_attempt(attempt, step, caller) for attempt in step.attempts],
        error=error_of(step, caller),
        result=results.get(latest.execution_id) if latest is not None else None,
    )


def _attempt(attempt: AttemptOfStep, step: Step, caller: Caller) -> StepAttempt:
    # One that is not handed over yet; or never was, because the workflow was canceled first.
    without_run: ExecutionStatus = "queued" if step.status == "running" else "canceled"
    return StepAttempt(
        number=attempt.number,
        execution_id=attempt.execution_id if attempt.refusal is None else None,
        status="failed" if attempt.refusal is not None else attempt.run or without_run,
        cost=_total([attempt], caller) if attempt.run in TERMINAL_STATUSES else None,
        error=error_of_run(attempt, caller),
    )


def _total(ended: Sequence[AttemptOfStep], caller: Caller) -> Cost | PriceOnly:
    """What these runs cost together; an amount that is not known of one of them is not known of all."""
    price = _sum([attempt.price_usd for attempt in ended])
    if not ended or not all(is_creator(attempt.owner or "", caller) for attempt in ended):
        return PriceOnly(price_usd=price)
    model = _sum([attempt.cost_usd for attempt in ended])
    statuses = {attempt.cost_status or "unknown" for attempt in ended}
    return Cost(
        model_usd=model,
        markup_usd=None if price is None or model is None else price - model,
        price_usd=price,
        status="pending" if "pending" in statuses else "unknown" if "unknown" in statuses else "final",
    )


def _sum(amounts: Sequence[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if len(known) == len(amounts) else None
