"""How a run ends, on paper: costs, receipt, result and messages, composed without I/O.

One rule runs through it: a cost is a figure that upstream stated, `pending` while it can still be asked for, `unknown`
when it cannot; it becomes zero only where the call never reached upstream or upstream says that it bills nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeVar, cast
from uuid import UUID

from pydantic import TypeAdapter

from contracts.catalog import Pricing
from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import (
    Attempt,
    Caller,
    CallerReceipt,
    Cost,
    CostStatus,
    ExecutionAccepted,
    ExecutionResult,
    OutputPart,
    PriceOnly,
    Receipt,
    RevisionReason,
    ServedModel,
    Timing,
    Usage,
)
from contracts.keys import Mode
from contracts.subjects import AS_FINISHED, EXECUTION_FINISHED, as_publisher
from services.executor.access import error_for_caller, is_creator
from services.executor.normalise import Answer, RawMedia
from services.executor.pricing import cost_of
from services.executor.store import AttemptRow, Ending, Execution, OutgoingMessage, Revision
from services.runtime.bus import encode
from services.runtime.sealing import Locked

EndStatus = Literal["succeeded", "failed", "canceled", "interrupted"]
ZERO = Decimal(0)
Reply = TypeVar("Reply", bound=ExecutionResult | ExecutionAccepted)
_PRICING: TypeAdapter[Pricing] = TypeAdapter(Pricing)


@dataclass
class AttemptRecord:
    """One upstream call while it happens."""

    number: int
    started_at: datetime
    generation_id: str | None = None
    status: EndStatus = "interrupted"
    code: ErrorCode | None = None
    http_status: int | None = None
    cost_usd: Decimal | None = None
    cost_status: CostStatus = "unknown"

    def settle(self, cost_usd: Decimal | None, *, billed: Literal["no", "maybe"]) -> None:
        """Decide what is known of the cost of this call at its end."""
        if cost_usd is not None:
            self.cost_usd, self.cost_status = cost_usd, "final"
        elif billed == "no":
            self.cost_usd, self.cost_status = ZERO, "final"
        else:
            self.cost_usd, self.cost_status = None, "pending" if self.generation_id else "unknown"

    def as_contract(self) -> Attempt:
        return Attempt(
            number=self.number,
            started_at=self.started_at,
            generation_id=self.generation_id,
            status=self.status,
            code=self.code,
            http_status=self.http_status,
            cost_usd=self.cost_usd,
            cost_status=self.cost_status,
        )


@dataclass(frozen=True)
class EndedRun:
    """What is known of a run at its end, whoever ends it: its executor, a canceller, or the reaper."""

    id: UUID
    owner: str
    caller: Caller
    payment: str | None
    mode: Mode
    resource_id: UUID | None
    resource_version: int
    pricing: Pricing
    status: EndStatus
    error: ErrorBody | None
    truncated: bool
    model: ServedModel
    usage: Usage
    cost: Cost
    attempts: Sequence[Attempt]
    timing: Timing
    created_at: datetime
    finished_at: datetime


def total_cost(attempts: Sequence[Attempt | AttemptRecord]) -> tuple[Decimal | None, CostStatus]:
    """The sum over all calls; not known as long as one of them is not."""
    for status in ("pending", "unknown"):
        if any(attempt.cost_status == status for attempt in attempts):
            return None, status
    return sum((attempt.cost_usd or ZERO for attempt in attempts), ZERO), "final"


def receipt_of(run: EndedRun) -> Receipt:
    """Revision 1."""
    return Receipt(
        execution_id=run.id,
        revision=1,
        owner=run.owner,
        caller=run.caller,
        payment=run.payment,
        mode=run.mode,
        resource_id=run.resource_id,
        resource_version=run.resource_version,
        status=run.status,
        code=run.error.code if run.error else None,
        truncated=run.truncated,
        model=run.model,
        usage=run.usage,
        cost=run.cost,
        pricing=run.pricing,
        attempts=list(run.attempts),
        timing=run.timing,
        created_at=run.created_at,
        finished_at=run.finished_at,
    )


def messages_of(receipt: Receipt, error: ErrorBody | None) -> list[OutgoingMessage]:
    """`finished` for the house, and for the publisher whose run it was, in its own view."""
    messages = [
        OutgoingMessage(EXECUTION_FINISHED.subject, f"{receipt.execution_id}:{receipt.revision}", encode(receipt))
    ]
    if receipt.caller.kind == "service":
        view = CallerReceipt(
            execution_id=receipt.execution_id,
            revision=receipt.revision,
            status=receipt.status,
            resource_id=receipt.resource_id,
            resource_version=receipt.resource_version,
            mode=receipt.mode,
            price_usd=receipt.cost.price_usd,
            error=error_for_caller(error, receipt.owner, receipt.caller) if error is not None else None,
            finished_at=receipt.finished_at,
        )
        messages.append(finished_for(receipt.caller.id, view))
    return messages


def finished_for(publisher: str, receipt: CallerReceipt) -> OutgoingMessage:
    """The `finished` of one publisher."""
    return OutgoingMessage(
        as_publisher(AS_FINISHED.subject, publisher),
        f"{publisher}:{receipt.execution_id}:{receipt.revision}",
        encode(receipt),
    )


def for_caller(reply: Reply, owner: str, caller: Caller) -> Reply:
    """A result, or what is left of one, as its caller may see it: the cost is the creator's affair."""
    if is_creator(owner, caller) or not isinstance(reply.cost, Cost):
        return reply
    return cast("Reply", reply.model_copy(update={"cost": PriceOnly(price_usd=reply.cost.price_usd)}))


def result_of(ended: EndedRun, answer: Answer | None, stored: Mapping[RawMedia, OutputPart]) -> ExecutionResult:
    """What the caller gets of a run that succeeded or was canceled; `answer` is None when nothing had come."""
    return ExecutionResult(
        execution_id=ended.id,
        status="canceled" if ended.status == "canceled" else "succeeded",
        mode=ended.mode,
        resource_id=ended.resource_id,
        resource_version=ended.resource_version,
        text=answer.text if answer else "",
        outputs=answer.parts(stored) if answer else [],
        reasoning=answer.reasoning if answer else None,
        finish_reason=answer.finish_reason if answer else None,
        truncated=ended.truncated,
        model=ended.model,
        usage=ended.usage,
        cost=ended.cost,
        timing=ended.timing,
        attempts=len(ended.attempts),
    )


def interrupted(execution_id: UUID) -> ErrorBody:
    """What the caller of a run is told whose executor died or was torn down."""
    return ServiceError(
        ErrorCode.UNAVAILABLE,
        "The run was interrupted on our side, and its caller owes nothing for it. Try again.",
        execution_id=execution_id,
    ).body


def ending_of(
    ended: EndedRun, *, last_seq: int | None, result: Locked | None, keep: timedelta, media: Sequence[str] = ()
) -> Ending:
    """Everything that is committed with the end of a run."""
    receipt = receipt_of(ended)
    return Ending(
        status=ended.status,
        mode=ended.mode,
        error=ended.error.model_dump(mode="json") if ended.error is not None else None,
        truncated=ended.truncated,
        last_seq=last_seq,
        price_usd=ended.cost.price_usd,
        cost_usd=ended.cost.model_usd,
        cost_status=ended.cost.status,
        result=result.blob if result is not None else None,
        result_key_id=result.key_id if result is not None else None,
        keep=keep,
        receipt=receipt.model_dump(mode="json"),
        attempts=[attempt.model_dump(mode="json", exclude={"started_at"}) for attempt in ended.attempts],
        media=list(media),
        messages=messages_of(receipt, ended.error),
    )


def ended_row(row: Execution, attempts: Sequence[AttemptRow], status: EndStatus, error: ErrorBody | None) -> EndedRun:
    """The end of a run of which nothing is known but its rows: its executor died, or it never began.

    A call that was under way may have been billed: its cost is looked up where its id is known, and unknown elsewhere.
    """
    records = []
    for attempt in attempts:
        record = AttemptRecord(
            attempt.number, attempt.started_at, attempt.generation_id, http_status=attempt.http_status
        )
        if attempt.status == "running":
            record.status = status
            record.settle(None, billed="maybe")
        else:
            record.status = cast("EndStatus", attempt.status)
            record.code = ErrorCode(attempt.code) if attempt.code else None
            record.cost_usd, record.cost_status = attempt.cost_usd, attempt.cost_status or "unknown"
        records.append(record)
    model_usd, cost_status = total_cost(records)
    pricing = _PRICING.validate_python(row.pricing)
    now = datetime.now(UTC)
    return EndedRun(
        id=row.id,
        owner=row.owner,
        caller=Caller(kind=row.caller_kind, id=row.caller_id),
        payment=row.payment,
        mode=row.mode,
        resource_id=row.resource_id,
        resource_version=row.resource_version,
        pricing=pricing,
        status=status,
        error=error,
        truncated=False,
        model=ServedModel(requested=row.model_id, served=None, provider=None),
        usage=Usage(),
        cost=cost_of(pricing, status, text_delivered=False, model_usd=model_usd, cost_status=cost_status),
        attempts=[record.as_contract() for record in records],
        timing=Timing(
            queued_ms=round(((row.started_at or now) - row.created_at).total_seconds() * 1000),
            first_token_ms=None,
            total_ms=round((now - row.created_at).total_seconds() * 1000),
        ),
        created_at=row.created_at,
        finished_at=now,
    )


def cost_found(row: Execution, attempts: Sequence[AttemptRow], latest: dict[str, Any]) -> Revision:
    """The next revision of a receipt whose cost was not known: it is now, or it is known that nobody will tell."""
    return _revision(row, attempts, latest, "cost_found")


def cost_corrected(row: Execution, attempts: Sequence[AttemptRow], latest: dict[str, Any]) -> Revision:
    """The next revision of a receipt that said something else than upstream's accounts do."""
    return _revision(row, attempts, latest, "cost_corrected")


def _revision(
    row: Execution, attempts: Sequence[AttemptRow], latest: dict[str, Any], reason: RevisionReason
) -> Revision:
    receipt = Receipt.model_validate(latest)
    by_number = {attempt.number: attempt for attempt in attempts}
    known = [
        attempt.model_copy(
            update={
                "cost_usd": by_number[attempt.number].cost_usd,
                "cost_status": by_number[attempt.number].cost_status,
            }
        )
        for attempt in receipt.attempts
    ]
    model_usd, cost_status = total_cost(known)
    cost = cost_of(
        receipt.pricing,
        receipt.status,
        text_delivered=receipt.truncated,
        model_usd=model_usd,
        cost_status=cost_status,
    )
    told_usd = receipt.cost.price_usd
    if told_usd is not None and told_usd != cost.price_usd:
        # A price that the caller was told stays; what the cost was taken for is the creator's affair.
        markup_usd = None if model_usd is None else told_usd - model_usd
        cost = cost.model_copy(update={"price_usd": told_usd, "markup_usd": markup_usd})
    changes = {"revision": receipt.revision + 1, "reason": reason, "attempts": known, "cost": cost}
    revised = receipt.model_copy(update=changes)
    error = ErrorBody.model_validate(row.error) if row.error is not None else None
    return Revision(
        number=revised.revision,
        receipt=revised.model_dump(mode="json"),
        price_usd=cost.price_usd,
        cost_usd=cost.model_usd,
        cost_status=cost.status,
        price_was_unknown=receipt.cost.price_usd is None,
        messages=messages_of(revised, error),
    )
