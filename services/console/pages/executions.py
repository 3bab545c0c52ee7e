"""Executions: the runs that somebody made, the runs of their resources, and one run in full."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.catalog import ResourcePage
from contracts.execution import TERMINAL_STATUSES, ExecutionPage, ExecutionStatus, ExecutionView, Timing
from contracts.listings import Listing
from services.console.api import problem_of
from services.console.naming import listings_by_id
from services.console.navigation import Entry
from services.console.session import Session, SignedIn
from services.console.views import go_to, view

router = APIRouter()
PATH = "/executions"
ENTRY = Entry("Executions", PATH, "executions", 50)

_PAGE = 30


class Search(Contract):
    """What the filters hold. Empty fields come along with a form."""

    role: Literal["caller", "owner"] = "caller"
    resource_id: UUID | Literal[""] = ""
    status: ExecutionStatus | Literal[""] = ""
    cursor: str = ""


@router.get(PATH)
async def list_executions(request: Request, session: SignedIn, search: Annotated[Search, Query()]) -> Response:
    """The runs, newest first; the script asks for `results` when a filter changes, and for `more` at the end."""
    page = await session.api.get("/api/executions", ExecutionPage, {**search.model_dump(), "limit": _PAGE})
    names = await listings_by_id(session, [run.resource_id for run in page.items])
    return await view(
        request,
        "executions.html",
        search=search,
        page=page,
        names=names,
        resources={} if search.cursor else await _choices(session, search, names),
    )


async def _choices(session: Session, search: Search, names: dict[UUID, Listing]) -> dict[UUID, str]:
    """What the list can be narrowed to: one's own resources, and for a caller those of others in the list."""
    own = await session.api.get("/api/resources", ResourcePage, {"limit": 200})
    choices = {resource.id: resource.name for resource in own.items}
    if search.role == "caller":
        choices |= {listing.id: listing.name for listing in names.values()}
    if search.resource_id and search.resource_id not in choices:
        choices[search.resource_id] = "This resource"
    return dict(sorted(choices.items(), key=lambda choice: choice[1].lower()))


@router.get(PATH + "/{execution_id}")
async def one_execution(request: Request, session: SignedIn, execution_id: UUID) -> Response:
    """One run: to its caller with what it said, to the creator of its resource with what it cost; often that is one person."""
    run = await session.api.get(f"/api/executions/{execution_id}", ExecutionView)
    listing = (await listings_by_id(session, [run.resource_id])).get(run.resource_id) if run.resource_id else None
    own = (run.caller.kind, run.caller.id) == ("user", session.user)
    return await view(
        request,
        "execution.html",
        run=run,
        listing=listing,
        own=own,
        creator=run.owner == session.user,
        under_way=run.status not in TERMINAL_STATUSES,
        phases=_phases(run),
        problem=None if own or run.error is None else problem_of(run.error),
    )


@router.post(PATH + "/{execution_id}/stop")
async def stop(request: Request, execution_id: UUID, session: SignedIn) -> Response:
    """Cancels a run of somebody else's from the page of the resource's creator, who has no panel that would tell its end."""
    run = await session.api.send("POST", f"/api/executions/{execution_id}/cancel", ExecutionView)
    said = "The run was stopped." if run.status == "canceled" else "The run is being stopped."
    return go_to(request, f"{PATH}/{execution_id}", say="It had ended already." if run.status == "succeeded" else said)


class Phase(NamedTuple):
    """A part of the time that a run took, on a scale of 0 to 100."""

    name: str
    kind: str
    begin: float
    width: float
    took_ms: int


def _phases(run: ExecutionView) -> list[Phase]:
    """Waiting in the queue, until the first word, and writing; nothing for a run under way."""
    timing = run.result.timing if run.result else run.receipt.timing if run.receipt else _by_the_clock(run)
    if timing is None:
        return []
    if timing.first_token_ms is None:
        parts = [("At work", "waiting", timing.total_ms - timing.queued_ms)]
    else:
        writing = max(0, timing.total_ms - timing.queued_ms - timing.first_token_ms)
        parts = [("Until the first word", "waiting", timing.first_token_ms), ("Writing", "writing", writing)]
    scale = 100 / max(timing.total_ms, 1)
    phases, at = [], 0
    for name, kind, took_ms in [("In the queue", "queued", timing.queued_ms), *parts]:
        phases.append(Phase(name, kind, at * scale, took_ms * scale, took_ms))
        at += took_ms
    return phases


def _by_the_clock(run: ExecutionView) -> Timing | None:
    """Of a run whose result somebody else has, or nobody any more."""
    if run.finished_at is None:
        return None
    queued = (run.started_at or run.finished_at) - run.created_at
    total = run.finished_at - run.created_at
    return Timing(
        queued_ms=round(queued.total_seconds() * 1000),
        first_token_ms=None,
        total_ms=round(total.total_seconds() * 1000),
    )
