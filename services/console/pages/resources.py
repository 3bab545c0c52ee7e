"""What a creator publishes: the list of it, and the form that makes and edits one, with its price and a test beside it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.catalog import Model, ModelDetail, ModelPage, Resource, ResourcePage, ResourceStatus
from contracts.drafts import DraftReview
from contracts.errors import ErrorCode
from contracts.listings import Listing
from services.console import drafts
from services.console.api import ApiError, Problem
from services.console.forms import Form, form_of
from services.console.inputs import input_values
from services.console.navigation import Entry
from services.console.session import Session, SignedIn, console_of, local_path
from services.console.snippets import snippets
from services.console.views import go_to, run_started, view

router = APIRouter()
PATH = "/resources"
ENTRY = Entry("Resources", PATH, "resources", 20)

_API = "/api/resources"
_PAGE = 50
_PICKED = 30


class Listed(Contract):
    """Which resources to list; an empty field of the form is none."""

    status: ResourceStatus | str = ""
    cursor: str = ""


# The list -------------------------------------------------------------------------------------------------------------


@router.get(PATH)
async def list_resources(request: Request, session: SignedIn, listed: Annotated[Listed, Query()]) -> Response:
    """Yours, newest first."""
    page = await session.api.get(_API, ResourcePage, {**listed.model_dump(), "limit": _PAGE})
    return await view(request, "resources.html", page=page, listed=listed)


@router.post(PATH + "/{resource_id}/publish")
async def publish(request: Request, session: SignedIn, resource_id: UUID) -> Response:
    """Puts it on the market."""
    form = await form_of(request)
    resource = await session.api.send("POST", f"{_API}/{resource_id}/publish", Resource)
    return go_to(request, local_path(form["next"] or PATH), say=f"{resource.name} is published.")


@router.post(PATH + "/{resource_id}/pause")
async def pause(request: Request, session: SignedIn, resource_id: UUID) -> Response:
    """Takes it off the market; what has begun ends by itself."""
    form = await form_of(request)
    resource = await session.api.send("POST", f"{_API}/{resource_id}/pause", Resource)
    return go_to(request, local_path(form["next"] or PATH), say=f"{resource.name} is paused.")


# The form -------------------------------------------------------------------------------------------------------------


async def _editor(
    request: Request,
    session: Session,
    values: Form,
    *,
    model: Model | None,
    resource: Resource | None = None,
    run: UUID | None = None,
) -> Response:
    """The form with these values in it, or the block of it that was asked for."""
    review, unfinished = await _reviewed(session, values, resource.id if resource else values["resource_id"])
    return await view(
        request,
        "resource_edit.html",
        drafts=drafts,
        values=values,
        model=model,
        resource=resource,
        run=run,
        rows=drafts.row_numbers(values),
        trial=drafts.declared_inputs(values),
        fallbacks=drafts.fallbacks_in(values),
        review=review,
        unfinished=unfinished,
    )


async def _reviewed(
    session: Session, values: Form, resource_id: UUID | str
) -> tuple[DraftReview | None, Problem | None]:
    """What the draft would cost and bring, or why nobody can say yet."""
    if not (values[f"{drafts.CONFIG}.model_id"] and values[f"{drafts.CONFIG}.prompt_template"]):
        return None, None
    try:
        body = drafts.draft_of(values, complete=False)
        params = {"resource_id": resource_id}
        return await session.api.send("POST", f"{_API}/check", DraftReview, body=body, params=params), None
    except ApiError as error:
        if error.problem.code is ErrorCode.UNAUTHENTICATED:
            raise
        return None, error.problem


async def _model(session: Session, model_id: str) -> ModelDetail:
    return await session.api.get(f"/api/models/{model_id}", ModelDetail)


async def _model_if_any(session: Session, model_id: str) -> ModelDetail | None:
    """None where there is no such model; what was typed matters more than that."""
    if model_id.count("/") != 1:
        return None
    try:
        return await _model(session, model_id)
    except ApiError as error:
        if error.problem.code is ErrorCode.NOT_FOUND:
            return None
        raise


@router.get(PATH + "/new")
async def new_resource(
    request: Request, session: SignedIn, model: str = "", like: UUID | None = None, run: UUID | None = None
) -> Response:
    """The form of a new one: around the model that the address names, or `like` another resource."""
    if like is not None:
        original = await session.api.get(f"{_API}/{like}", Resource)
        return await _editor(request, session, drafts.copy_of(original), model=original.model, run=run)
    chosen = await _model(session, model) if model else None
    return await _editor(request, session, drafts.new_values(chosen), model=chosen, run=run)


@router.get(PATH + "/{resource_id}/edit")
async def edit_resource(request: Request, session: SignedIn, resource_id: UUID, run: UUID | None = None) -> Response:
    """The form as it was saved."""
    resource = await session.api.get(f"{_API}/{resource_id}", Resource)
    values = drafts.values_of(resource)
    return await _editor(request, session, values, model=resource.model, resource=resource, run=run)


@router.get(PATH + "/{resource_id}/as-buyer")
async def as_buyer(request: Request, session: SignedIn, resource_id: UUID) -> Response:
    """What is saved, as the page that buyers see, or would see if it were published."""
    listing, resource = await asyncio.gather(
        session.api.get(f"{_API}/{resource_id}", Listing, {"as": "buyer"}),
        session.api.get(f"{_API}/{resource_id}", Resource),
    )
    if resource.status in ("draft", "paused") and resource.availability.available:
        listing = listing.model_copy(update={"available": True, "unavailable_reason": None})
    console, ref = console_of(request), f"{listing.owner}/{listing.slug}"
    return await view(
        request,
        "listing.html",
        listing=listing,
        preview=resource,
        address=f"{console.public_url}/listings/{ref}",
        ways=snippets(console.gateway_public_url, ref, listing.inputs),
    )


@router.get(PATH + "/models")
async def pick_model(request: Request, session: SignedIn, q: Annotated[str, Query(max_length=200)] = "") -> Response:
    """The models that a resource can use, for the dialog that picks one; the recommended ones before anybody searches."""
    wanted: dict[str, Any] = {"q": q, "limit": _PICKED, "curated": None if q else True}
    page = await session.api.get("/api/models", ModelPage, wanted)
    models = [model for model in page.items if model.executable]
    return await view(request, "resource_models.html", models=models, q=q)


@router.post(PATH + "/part")
async def part_of_form(request: Request, session: SignedIn) -> Response:
    """One block of the form as what was typed makes it: `model`, `estimate` or `trial`. Nothing is saved."""
    values = await form_of(request)
    model = await _model_if_any(session, values[f"{drafts.CONFIG}.model_id"])
    return await _editor(request, session, values, model=model)


@router.post(PATH + "/test")
async def test_draft(request: Request, session: SignedIn) -> Response:
    """Runs what the form says, unsaved, with the creator's own key."""
    values = await form_of(request)
    draft = drafts.draft_of(values, complete=False)
    body = {**draft, "input": input_values(values, drafts.declared_inputs(values))}
    run = await session.api.start_run(f"{_API}/preview", body, key=values["run_key"] or None)
    return run_started(request, local_path(values["here"]), run)


@router.post(PATH + "/new")
async def create(request: Request, session: SignedIn) -> Response:
    """Saves it as a draft, and publishes it where that was asked for."""
    form = await form_of(request)
    resource = await session.api.send("POST", _API, Resource, body=drafts.draft_of(form))
    return await _saved(request, session, form, resource, "Saved as a draft: only you can run it.")


@router.post(PATH + "/{resource_id}/edit")
async def save(request: Request, session: SignedIn, resource_id: UUID) -> Response:
    """Makes a new version of it."""
    form = await form_of(request)
    patch = drafts.draft_of(form)
    del patch["resource_type"]
    if form["version"].isdecimal():
        patch["expected_version"] = int(form["version"])
    resource = await session.api.send("PATCH", f"{_API}/{resource_id}", Resource, body=patch)
    said = "Saved." if resource.status == "draft" else f"Saved: version {resource.version} is what runs from now on."
    return await _saved(request, session, form, resource, said)


async def _saved(request: Request, session: Session, form: Form, resource: Resource, said: str) -> Response:
    """Goes on with what the button said. What is saved is saved, also where it cannot be published."""
    here = f"{PATH}/{resource.id}"
    if form["then"] == "look":
        return go_to(request, f"{here}/as-buyer", say=said, back=f"{here}/edit")
    if form["then"] == "publish":
        try:
            await session.api.send("POST", f"{_API}/{resource.id}/publish", Resource)
        except ApiError as error:
            return go_to(request, f"{here}/edit", say=f"It is saved, and not published: {error.problem.detail}")
        said = f"{resource.name} is published: everybody can run it now."
        return go_to(request, here, say=said, back=f"{here}/edit")
    return go_to(request, f"{here}/edit", say=said)
