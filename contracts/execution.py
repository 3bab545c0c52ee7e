"""What is said about runs: the request, its frames, its result, its receipt.

Three views of the same run exist and must not be mixed up. The *caller* sees inputs, outputs and the price. The
*creator* sees receipts with the true cost, and nobody's outputs but their own. The *bus* carries full receipts only on
`execution.finished`, which no publisher can read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, JsonValue, model_validator

from contracts.base import Contract, UserId, Utc
from contracts.catalog import Pricing, ResourceDraft
from contracts.errors import ErrorBody, ErrorCode
from contracts.keys import Mode
from contracts.money import Price, Usd

ExecutionStatus = Literal["queued", "running", "succeeded", "failed", "canceled", "interrupted"]
TERMINAL_STATUSES: frozenset[ExecutionStatus] = frozenset({"succeeded", "failed", "canceled", "interrupted"})
CostStatus = Literal["final", "pending", "unknown"]
RevisionReason = Literal["ended", "cost_found", "cost_corrected"]

MAX_RESULT_BYTES = 7_500_000
"""A result as JSON, in which the text stands twice; it has to fit into one message of 8 MB."""


class Caller(Contract):
    """Who executes. On `as.<publisher>.…` it is the publisher in the subject, and nothing in the body can change that."""

    kind: Literal["user", "service"]
    id: UserId


# The request ----------------------------------------------------------------------------------------------------------


class ExecuteRequest(Contract):
    """What any caller may say of a run."""

    execution_id: UUID | None = Field(
        default=None, description="A UUIDv7 made by whoever asks; made here when missing."
    )
    resource: str | None = Field(default=None, min_length=1, max_length=300, description="An id, or `owner/slug`.")
    input: dict[str, JsonValue] = Field(default={}, description="One value per declared input.")
    idempotency_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="The same key and body give the same run for 24 hours.",
    )
    max_price_usd: Price | None = Field(
        default=None, description="Refuse with `conflict` when the price could be higher."
    )
    expected_version: int | None = Field(
        default=None, description="Refuse with `conflict` when the resource has changed."
    )


class Execute(ExecuteRequest):
    """A run as the gateway asks for it, with who the caller is."""

    caller: Caller
    viewer: str = Field(default="gateway", pattern=r"^[a-z0-9_-]{1,40}$", description="Who may read the frames.")
    draft: ResourceDraft | None = Field(default=None, description="Run this unsaved resource of the caller instead.")

    @model_validator(mode="after")
    def _one_target(self) -> Execute:
        if (self.resource is None) == (self.draft is None):
            raise ValueError("name either a resource or a draft")
        return self


# Outputs --------------------------------------------------------------------------------------------------------------


class TextPart(Contract):
    type: Literal["text"] = "text"
    text: str


class MediaPart(Contract):
    """A stored file. The URL is public, unguessable and immutable."""

    type: Literal["image", "audio", "video", "file"]
    url: str
    mime_type: str
    bytes: int
    width: int | None = None
    height: int | None = None
    transcript: str | None = None
    filename: str | None = None


class ToolCallPart(Contract):
    """The model asks for a tool. `arguments` is the parsed object, or null where the model wrote none that parses."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: JsonValue
    arguments_text: str


class RefusalPart(Contract):
    type: Literal["refusal"] = "refusal"
    text: str


class CitationPart(Contract):
    type: Literal["citation"] = "citation"
    url: str
    title: str | None = None
    text: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class OtherPart(Contract):
    """Something this version does not know; passed through so that nothing is lost."""

    type: Literal["other"] = "other"
    kind: str
    data: JsonValue


OutputPart = Annotated[
    TextPart | MediaPart | ToolCallPart | RefusalPart | CitationPart | OtherPart, Field(discriminator="type")
]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error", "other"]


# The result -----------------------------------------------------------------------------------------------------------


class ServedModel(Contract):
    requested: str
    served: str | None = Field(description="What answered; often a dated name, an alias target or a fallback.")
    provider: str | None


class Usage(Contract):
    """Tokens as upstream counted them; null where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


class Cost(Contract):
    """The creator's view. `pending` is being looked up, `unknown` could not be found out: neither is ever zero."""

    model_usd: Usd | None
    markup_usd: Usd | None = Field(description="Price less cost; may be negative.")
    price_usd: Usd | None
    status: CostStatus


class PriceOnly(Contract):
    """The view of a caller who is not the creator."""

    price_usd: Usd | None = Field(description="Null while a price that depends on the cost is not known yet.")


class Timing(Contract):
    queued_ms: int
    first_token_ms: int | None
    total_ms: int


class ExecutionResult(Contract):
    """How a run ended, in one form whatever the model."""

    execution_id: UUID
    status: Literal["succeeded", "canceled"]
    mode: Mode
    resource_id: UUID | None
    resource_version: int
    text: str
    outputs: list[OutputPart]
    reasoning: str | None
    finish_reason: FinishReason | None
    truncated: bool
    model: ServedModel
    usage: Usage
    cost: Cost | PriceOnly
    timing: Timing
    attempts: int


class ExecutionAccepted(Contract):
    """The run exists; follow its events or ask for it by id. A repeated request may find it ended already.

    With `output_expired` it is all there is left to say: the run ended, was paid once, and its output is not kept any more.
    """

    execution_id: UUID
    status: ExecutionStatus
    output_expired: bool = Field(default=False, description="The output was deleted; the receipt stays.")
    cost: Cost | PriceOnly | None = Field(default=None, description="What the run cost, where its output has expired.")


RunReply = ExecutionResult | ExecutionAccepted


# Frames ---------------------------------------------------------------------------------------------------------------

FrameType = Literal["started", "text", "reasoning", "output", "step", "snapshot", "completed", "failed"]
TERMINAL_FRAMES: frozenset[FrameType] = frozenset({"completed", "failed"})


class Started(Contract):
    execution_id: UUID
    model: str


class TextDelta(Contract):
    text: str


class Snapshot(Contract):
    """All output so far, sent where frames were lost: replace what you have by it."""

    execution_id: UUID
    text: str
    reasoning: str
    outputs: list[OutputPart]


class Frame(Contract):
    """One step of a run or a workflow, numbered from 1 without gaps. Exactly one is terminal: `completed` or `failed`."""

    seq: int = Field(ge=1)
    type: FrameType
    data: dict[str, Any] = Field(
        description="started: Started · text, reasoning: TextDelta · output: one part · snapshot: Snapshot · "
        "completed: ExecutionResult · failed: ErrorBody. Of a workflow: step: StepProgress · snapshot, completed: "
        "WorkflowView · failed: ErrorBody"
    )


# Receipts -------------------------------------------------------------------------------------------------------------


class Attempt(Contract):
    """One call to the upstream. The cost of a run is the sum over its attempts."""

    number: int
    started_at: Utc
    generation_id: str | None
    status: Literal["succeeded", "failed", "canceled", "interrupted"]
    code: ErrorCode | None
    http_status: int | None
    cost_usd: Usd | None
    cost_status: CostStatus


class Receipt(Contract):
    """What a run cost, exactly. Append-only: a cost that becomes known later is a new revision. Holds no text."""

    execution_id: UUID
    revision: int
    reason: RevisionReason = Field(
        default="ended",
        description="Why there is this revision: the run ended, a cost that was not known was looked up, or upstream's accounts "
        "say something else than the answer did. A price that was told once stays.",
    )
    owner: UserId
    caller: Caller
    payment: str | None = Field(default=None, description="Reference of a payment, once payments exist.")
    mode: Mode
    resource_id: UUID | None
    resource_version: int
    status: Literal["succeeded", "failed", "canceled", "interrupted"]
    code: ErrorCode | None
    truncated: bool
    model: ServedModel
    usage: Usage
    cost: Cost
    pricing: Pricing = Field(description="Frozen at admission, together with resource_version.")
    attempts: list[Attempt]
    timing: Timing
    created_at: Utc
    finished_at: Utc


class ReceiptRevision(Contract):
    """What one revision of a receipt said of the money; in nothing else they differ."""

    revision: int
    reason: RevisionReason
    cost: Cost
    written_at: Utc


class CallerReceipt(Contract):
    """What a caller who is not the creator gets of a receipt."""

    execution_id: UUID
    revision: int
    status: Literal["succeeded", "failed", "canceled", "interrupted"]
    resource_id: UUID | None
    resource_version: int | None
    mode: Mode | None
    price_usd: Usd | None
    error: ErrorBody | None
    finished_at: Utc


# Looking, listing, canceling -------------------------------------------------------------------------------------------


class GetOwnExecution(Contract):
    """As a publisher asks: the caller stands in the subject."""

    execution_id: UUID


class GetExecution(GetOwnExecution):
    caller: Caller


class ExecutionView(Contract):
    """A run as one person may see it. Outputs are the caller's alone; cost and receipt details the creator's alone."""

    execution_id: UUID
    status: ExecutionStatus
    mode: Mode
    owner: UserId
    caller: Caller
    resource_id: UUID | None
    resource_version: int
    model: str
    created_at: Utc
    started_at: Utc | None
    finished_at: Utc | None
    last_seq: int | None = Field(default=None, description="Number of the terminal frame, once there is one.")
    result: ExecutionResult | None = None
    error: ErrorBody | None = None
    output_expired: bool = Field(default=False, description="The output was deleted; the receipt stays.")
    cost: Cost | PriceOnly | None = None
    receipt: Receipt | None = Field(default=None, description="For the creator: its latest revision.")
    revisions: list[ReceiptRevision] = Field(
        default=[],
        description="For the creator of one run that is asked for: every revision of `receipt`, the first one first.",
    )


class ListExecutions(Contract):
    caller: Caller
    role: Literal["caller", "owner"] = Field(default="caller", description="Runs you made, or runs of your resources.")
    resource_id: UUID | None = None
    status: ExecutionStatus | None = None
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


class ExecutionPage(Contract):
    items: list[ExecutionView]
    next_cursor: str | None


class ExecutionCanceling(Contract):
    """Heard by every executor; the one that runs it stops, and one that is just about to begin it ends it at once."""

    execution_id: UUID
    caller: Caller = Field(description="Whose run it is; a run of anybody else under this id goes on.")
