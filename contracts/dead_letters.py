"""What is said about dead letters: jobs that could not be carried out for our reasons, and wait for an operator.

A letter says why, when and how often, never what the job says. A job that fails for reasons of its request is not one: it
ends as any run does, with a receipt.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field

from contracts.base import Contract, UserId, Utc
from contracts.errors import ErrorCode
from contracts.execution import Caller

LetterStatus = Literal["waiting", "requeued", "ended"]


class DeadLetter(Contract):
    """`waiting` letters can be requeued; `ended` ones are over without that: canceled, refused, or too old."""

    id: UUID
    kind: Literal["job", "message"] = Field(
        description="An accepted job, or a submitted message that did not become one."
    )
    status: LetterStatus
    execution_id: UUID | None = Field(
        description="Of the run, also after it is requeued; null where nobody could read it."
    )
    caller: Caller
    owner: UserId | None = Field(description="The creator of the resource, once that is known.")
    resource_id: UUID | None
    code: ErrorCode
    reason: str = Field(description="Why it could not be carried out.")
    tries: int = Field(description="How often that was tried.")
    accepted_at: Utc
    died_at: Utc
    requeued_at: Utc | None
    requeued_by: UserId | None


class ListDeadLetters(Contract):
    status: LetterStatus | None = Field(default="waiting", description="Null for all.")
    cursor: str | None = Field(default=None, max_length=20)
    limit: int = Field(default=50, ge=1, le=200)


class DeadLetterPage(Contract):
    """Latest first."""

    items: list[DeadLetter]
    next_cursor: str | None


class RequeueDeadLetter(Contract):
    id: UUID
    requested_by: UserId
