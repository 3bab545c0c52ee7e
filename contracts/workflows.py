"""What is said about workflows: steps that feed each other, each of them an ordinary run with a receipt of its own.

A step's input may refer to what earlier steps said and to the workflow's own input. Whoever started a workflow is the
only one who sees it; the creators of its resources see the receipts of their runs as always.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, JsonValue, StringConstraints

from contracts.base import Contract, Utc
from contracts.errors import ErrorBody
from contracts.execution import Caller, Cost, ExecutionResult, ExecutionStatus, PriceOnly
from contracts.money import Price

MAX_STEPS = 50
"""Of one workflow."""

WorkflowStatus = Literal["running", "succeeded", "failed", "canceled"]
ENDED_WORKFLOW: frozenset[WorkflowStatus] = frozenset({"succeeded", "failed", "canceled"})
StepStatus = Literal["waiting", "running", "succeeded", "failed", "skipped", "canceled"]
"""`waiting` for what it depends on; `running` from being handed over to its end; `skipped` because something that it
depends on did not succeed, or the workflow was canceled first."""

StepName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"),
    Field(description="Letters, digits, `_` and `-`; unique within the workflow."),
]


class WorkflowStep(Contract):
    """One run of a workflow. What its input refers to is done before it."""

    name: StepName
    resource: str = Field(min_length=1, max_length=300, description="An id, or `owner/slug`.")
    input: dict[str, JsonValue] = Field(
        default={},
        description="One value per declared input. Text in it may hold `{{steps.<name>.text}}`, `{{steps.<name>.image}}` "
        "(or `audio`, `video`, `file`: the URL of the first), `{{steps.<name>.outputs[0].url}}` and `{{input.<name>}}`; a "
        "value that is one reference and nothing else keeps the type of what it refers to.",
    )
    depends_on: list[StepName] = Field(
        default=[], max_length=MAX_STEPS, description="Further steps that must have succeeded before."
    )
    max_price_usd: Price | None = Field(
        default=None, description="Refuse with `conflict` when the price could be higher."
    )
    expected_version: int | None = Field(
        default=None, description="Refuse with `conflict` when the resource has changed."
    )


class WorkflowRequest(Contract):
    """What anybody may say of a workflow."""

    steps: list[WorkflowStep] = Field(min_length=1, max_length=MAX_STEPS)
    input: dict[str, JsonValue] = Field(default={}, description="What `{{input.<name>}}` in the steps stands for.")
    max_price_usd: Price | None = Field(
        default=None, description="Refuse with `conflict` when all steps together could be charged more."
    )


class RunWorkflow(WorkflowRequest):
    """A workflow as the gateway asks for it, with who the caller is."""

    workflow_id: UUID = Field(description="A UUIDv7 made by whoever asks.")
    caller: Caller
    idempotency_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="The same key and body give the same workflow for 24 hours.",
    )


class GetWorkflow(Contract):
    workflow_id: UUID
    caller: Caller


class StepAttempt(Contract):
    """One run of a step. A step that was interrupted or resumed has several, each with a receipt."""

    number: int
    execution_id: UUID | None = Field(description="Null when it was refused before it became a run.")
    status: ExecutionStatus
    cost: Cost | PriceOnly | None = Field(
        description="Once it has ended; for the creator of the resource with the cost."
    )
    error: ErrorBody | None


class StepView(Contract):
    """A step as it stands."""

    name: StepName
    resource: str
    depends_on: list[StepName] = Field(description="All that it waits for, also what its input refers to.")
    status: StepStatus
    execution_id: UUID | None = Field(description="Its latest run; `GET /api/executions/{id}` has what it said.")
    attempts: list[StepAttempt]
    error: ErrorBody | None = Field(description="Why it failed.")
    result: ExecutionResult | None = Field(
        default=None, description="Of a step that nothing depends on, once it has succeeded and while it is kept."
    )


class WorkflowView(Contract):
    """A workflow as whoever started it sees it."""

    workflow_id: UUID
    status: WorkflowStatus
    created_at: Utc
    finished_at: Utc | None
    last_seq: int = Field(description="Number of the latest frame.")
    begun_seq: int = Field(description="Number of the last frame before the latest start: 0 until it is resumed.")
    max_price_usd: Price | None
    cost: Cost | PriceOnly = Field(
        description="All runs so far together; with the cost for whoever is the creator of all its resources. Null "
        "amounts are not known yet."
    )
    steps: list[StepView]
    error: ErrorBody | None = Field(description="Of the first step that failed.")


class WorkflowSummary(Contract):
    """A workflow in a list."""

    workflow_id: UUID
    status: WorkflowStatus
    created_at: Utc
    finished_at: Utc | None
    steps: dict[str, StepStatus] = Field(description="Status by name of the step.")


class ListWorkflows(Contract):
    caller: Caller
    status: WorkflowStatus | None = None
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


class WorkflowPage(Contract):
    items: list[WorkflowSummary]
    next_cursor: str | None


class StepProgress(Contract):
    """What a `step` frame says."""

    workflow_id: UUID
    step: StepName
    status: StepStatus
    execution_id: UUID | None
    error: ErrorBody | None
