"""How much of their own money a creator wants runs to cost in a day: kept, watched and told, not yet a reason to refuse."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from contracts.keys import OwnerRef
from contracts.market import BudgetLimits, Budgets, SetBudgets
from contracts.subjects import BUDGETS_GET, BUDGETS_SET
from services.gateway import examples
from services.gateway.documentation import answers
from services.gateway.routing import SignedIn, SignedInRoute, forward, refuse_unknown_fields

router = APIRouter(prefix="/api/budgets", tags=["budgets"], route_class=SignedInRoute)


@router.get(
    "",
    response_model=Budgets,
    responses=answers(examples.BUDGETS, "Your limits, and where today stands against them.", 401),
    summary="See your daily limits",
)
async def get_budgets(request: Request, user: SignedIn) -> Response:
    """What is spent is what today's finished runs cost you, as far as it is known; a day is a day in UTC.

    You are told at 80 and at 100 percent. A run begins only while every limit has room for the most that it can cost; what runs
    under way hold for that is not shown here.
    """
    return await forward(request, BUDGETS_GET, OwnerRef.model_construct(owner=user.user))


@router.put(
    "",
    response_model=Budgets,
    responses=answers(examples.BUDGETS, "The new limits.", 400, 401, 413, 422),
    summary="Set your daily limits",
)
async def set_budgets(
    request: Request,
    user: SignedIn,
    body: Annotated[BudgetLimits, Body(openapi_examples={"limits": {"value": examples.BUDGET_LIMITS}})],
) -> Response:
    """Replaces all limits; what you leave out has none.

    You are told at 80 and at 100 percent of each, once a day. No run is refused by a limit yet, not even one that is used up:
    to stop runs, pause the resource.
    """
    await refuse_unknown_fields(request, body)
    return await forward(request, BUDGETS_SET, SetBudgets.model_construct(owner=user.user, limits=body))
