"""A run as one person may see it: outputs are the caller's alone, the true cost the creator's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from contracts.errors import ErrorBody, ErrorCode, ServiceError, invalid
from contracts.execution import TERMINAL_STATUSES, Caller, ExecutionView, PriceOnly, Receipt, ReceiptRevision
from services.executor.access import error_for_caller, is_creator
from services.executor.endings import for_caller
from services.executor.results import Results, cost_of_row
from services.executor.store import Execution


def no_such_run() -> ServiceError:
    return ServiceError(ErrorCode.NOT_FOUND, "There is no run of yours with this id.")


def cursor_of(text: str | None) -> UUID | None:
    """Where a page goes on. Raises INVALID for a text that is no cursor of ours."""
    try:
        return UUID(text) if text is not None else None
    except ValueError:
        raise invalid("cursor", "This cursor is not one of ours; start again without it.") from None


def is_caller(row: Execution, caller: Caller) -> bool:
    return (row.caller_kind, row.caller_id) == (caller.kind, caller.id)


def view_of(
    row: Execution, caller: Caller, results: Results, receipts: Sequence[dict[str, Any]], *, whole: bool
) -> ExecutionView:
    """`receipts` are the revisions, the latest last. `whole` opens the result; a list leaves it out.

    Raises NOT_FOUND for whoever is neither caller nor creator.
    """
    creator, own = is_creator(row.owner, caller), is_caller(row, caller)
    if not (creator or own):
        raise no_such_run()
    ended = row.status in TERMINAL_STATUSES
    error = ErrorBody.model_validate(row.error) if row.error is not None else None
    result = results.open(row) if own and whole and row.status in ("succeeded", "canceled") else None
    cost = cost_of_row(row) if ended else None
    return ExecutionView(
        execution_id=row.id,
        status=row.status,
        mode=row.mode,
        owner=row.owner,
        caller=Caller(kind=row.caller_kind, id=row.caller_id),
        resource_id=row.resource_id,
        resource_version=row.resource_version,
        model=row.model_id,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        last_seq=row.last_seq,
        result=for_caller(result, row.owner, caller) if result is not None else None,
        error=error_for_caller(error, row.owner, caller) if error is not None else None,
        output_expired=own and whole and row.status in ("succeeded", "canceled") and result is None,
        cost=cost if creator or cost is None else PriceOnly(price_usd=cost.price_usd),
        receipt=Receipt.model_validate(receipts[-1]) if creator and receipts else None,
        revisions=[ReceiptRevision.model_validate(receipt) for receipt in receipts] if creator else [],
    )
