"""Try a resource: its creator, also before it is published, and any signed-in buyer. A real run with its real price."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contracts.catalog import Resource
from contracts.errors import ErrorCode
from contracts.listings import Listing
from services.console.api import ApiError
from services.console.forms import Form, form_of
from services.console.inputs import input_values
from services.console.session import Session, SignedIn
from services.console.views import run_started, view

router = APIRouter()
_OWN = "/resources/{resource_id}/try"
_LISTED = "/listings/{owner}/{slug}/try"


@router.get(_OWN)
async def try_own(request: Request, session: SignedIn, resource_id: UUID, run: UUID | None = None) -> Response:
    """The form beside the run that the address names."""
    resource = await session.api.get(f"/api/resources/{resource_id}", Resource)
    return await view(request, "try.html", resource=resource, listing=None, run=run)


@router.post(_OWN)
async def run_own(request: Request, session: SignedIn, resource_id: UUID) -> Response:
    """Runs it with the creator's key; cost and markup come with the answer."""
    resource = await session.api.get(f"/api/resources/{resource_id}", Resource)
    form = await form_of(request)
    body = {"resource": str(resource_id), "input": input_values(form, resource.inputs)}
    return await _started(request, session, session.user, form, body)


@router.get(_LISTED)
async def try_listed(request: Request, session: SignedIn, owner: str, slug: str, run: UUID | None = None) -> Response:
    """The same for a buyer, who sees the price alone."""
    listing = await session.api.get(f"/api/listings/{owner}/{slug}", Listing)
    return await view(request, "try.html", resource=None, listing=listing, run=run)


@router.post(_LISTED)
async def run_listed(request: Request, session: SignedIn, owner: str, slug: str) -> Response:
    """Runs it at no more than the price that the page showed."""
    listing = await session.api.get(f"/api/listings/{owner}/{slug}", Listing)
    form = await form_of(request)
    body = {
        "resource": f"{owner}/{slug}",
        "input": input_values(form, listing.inputs),
        "max_price_usd": form["max_price_usd"],
    }
    return await _started(request, session, owner, form, body)


async def _started(request: Request, session: Session, owner: str, form: Form, body: Mapping[str, object]) -> Response:
    try:
        run = await session.api.start_run("/api/execute", body, key=form["run_key"] or None)
    except ApiError as error:
        changed = {"action_url": request.url.path} if error.problem.code is ErrorCode.CONFLICT else {}
        raise ApiError(error.problem.model_copy(update={**changed, "own": owner == session.user})) from None
    return run_started(request, request.url.path, run)
