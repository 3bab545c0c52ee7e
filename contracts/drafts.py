"""What is said of a resource that nobody has saved yet: what it would cost and bring, and what to know of it."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field, JsonValue

from contracts.base import Contract, UserId
from contracts.catalog import ResourceDraft
from contracts.market import Breakdown


class CheckDraft(Contract):
    """Validate and resolve a resource that nobody has saved."""

    owner: UserId
    draft: ResourceDraft


class ReviewDraft(CheckDraft):
    """A draft, for its creator to see what it would cost and bring."""

    resource_id: UUID | None = Field(
        default=None,
        description="The resource that the draft edits: what its runs took is what is expected of the next.",
    )


class DraftReview(Contract):
    """What there is to know of a draft before it is saved."""

    breakdown: Breakdown
    assumptions: list[str] = Field(description="What the low and expected figures rest on.")
    warnings: list[str] = Field(description="What stops nothing, and should be known.")
    input_schema: dict[str, JsonValue] = Field(description="JSON Schema of `input`.")
