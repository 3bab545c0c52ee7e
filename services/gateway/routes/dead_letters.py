"""Jobs that could not be carried out, for administrators: see them, and have them tried again."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.dead_letters import DeadLetter, DeadLetterPage, ListDeadLetters, RequeueDeadLetter
from contracts.subjects import DEAD_LETTERS_LIST, DEAD_LETTERS_REQUEUE
from services.gateway import examples
from services.gateway.documentation import answers
from services.gateway.routing import SignedIn, SignedInRoute, forward, require_admin

router = APIRouter(tags=["administration"], route_class=SignedInRoute)


@router.get(
    "/api/dead-letters",
    response_model=DeadLetterPage,
    responses=answers(examples.DEAD_LETTER_PAGE, "A page of dead letters, latest first.", 401, 403, 422),
    summary="List dead letters",
)
async def list_dead_letters(request: Request, user: SignedIn, query: Annotated[ListDeadLetters, Query()]) -> Response:
    """Accepted jobs that could not be carried out for our reasons: a part that was away for an hour, a stored request that
    does not open. Why, when and how often it was tried; never what the job says.

    To its caller such a job is queued. It is ended as failed after a week.
    """
    require_admin(user)
    return await forward(request, DEAD_LETTERS_LIST, query)


@router.post(
    "/api/dead-letters/{id}/requeue",
    response_model=DeadLetter,
    responses=answers(
        {**examples.DEAD_LETTER, "status": "requeued", "requeued_at": "2026-05-01T14:00:00Z", "requeued_by": "root"},
        "The letter; the job is queued again.",
        401, 403, 404, 409, 422,
    ),
    summary="Try a dead letter again",
)  # fmt: skip
async def requeue_dead_letter(
    request: Request, user: SignedIn, letter_id: Annotated[UUID, Path(alias="id", examples=[examples.EXECUTION_ID])]
) -> Response:
    """Under the same execution id, at the price of its day. A second time changes nothing; what has ended meanwhile, or still
    cannot be carried out, is a `conflict` that says why."""
    require_admin(user)
    message = RequeueDeadLetter.model_construct(id=letter_id, requested_by=user.user)
    return await forward(request, DEAD_LETTERS_REQUEUE, message)
