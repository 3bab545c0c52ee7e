"""What creators publish, and what buyers see of it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Body, Path, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.catalog import (
    CreateResource,
    ListResources,
    Resource,
    ResourceDraft,
    ResourcePage,
    ResourcePatch,
    ResourceRef,
    ResourceStatus,
    UpdateResource,
)
from contracts.drafts import DraftReview, ReviewDraft
from contracts.errors import ErrorCode, ServiceError
from contracts.keys import OwnerRef
from contracts.listings import Listing, ListingPage, ListingRef, SearchListings, ViewListing
from contracts.market import GetStats, ListVersions, ResourceStats, ResourceVersionPage
from contracts.subjects import (
    DRAFTS_REVIEW,
    KEYS_STATUS,
    LISTINGS_GET,
    LISTINGS_SEARCH,
    RESOURCES_CREATE,
    RESOURCES_DELETE,
    RESOURCES_GET,
    RESOURCES_LIST,
    RESOURCES_LISTING,
    RESOURCES_PAUSE,
    RESOURCES_PUBLISH,
    RESOURCES_STATS,
    RESOURCES_UPDATE,
    RESOURCES_VERSIONS,
    Rpc,
)
from services.gateway import examples
from services.gateway.documentation import answers
from services.gateway.problems import documented
from services.gateway.routing import (
    PublicRoute,
    SignedIn,
    SignedInRoute,
    forward,
    gateway_of,
    refuse_unknown_fields,
)
from services.runtime.bus import Bus, encode

_KEY_TIMEOUT_S = 2
_FOR_ITS_OWNER = "Only its owner can put that right. Try again later, or use another one."

router = APIRouter(prefix="/api/resources", tags=["resources"], route_class=SignedInRoute)
listings = APIRouter(prefix="/api/listings", tags=["listings"], route_class=PublicRoute)


class ResourceQuery(Contract):
    """Which of your resources to list."""

    status: ResourceStatus | None = None
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


async def _forward_with_key(request: Request, owner: str, rpc: Rpc[Any, Any], message: BaseModel) -> Response:
    return Response(await _reply_with_key(request, owner, rpc, message), media_type="application/json")


async def _reply_with_key(request: Request, owner: str, rpc: Rpc[Any, Any], message: BaseModel) -> bytes:
    """The catalog's reply, in which a resource that could run if its owner had a key says that it cannot."""
    bus = gateway_of(request).bus
    reply, wanting = await asyncio.gather(bus.call_raw(rpc, encode(message)), _what_the_key_lacks(bus, owner))
    if wanting is not None:
        answer = orjson.loads(reply)
        for resource in answer.get("items", [answer]):
            if resource["availability"]["available"]:
                resource["availability"] |= wanting
        reply = orjson.dumps(answer)
    return reply


async def _forward_listing(request: Request, rpc: Rpc[Any, Any], message: BaseModel) -> Response:
    """A listing that could run if its owner had a key that works says that it cannot, and not why: that is the owner's business."""
    bus = gateway_of(request).bus
    reply = await bus.call_raw(rpc, encode(message))
    listing = orjson.loads(reply)
    if listing["available"] and await _what_the_key_lacks(bus, listing["owner"]) is not None:
        reply = orjson.dumps(listing | {"available": False, "unavailable_reason": _FOR_ITS_OWNER})
    return Response(reply, media_type="application/json")


async def _what_the_key_lacks(bus: Bus, owner: str) -> dict[str, object] | None:
    try:
        status = await bus.call(KEYS_STATUS, OwnerRef(owner=owner), timeout_s=_KEY_TIMEOUT_S)
    except ServiceError:
        # What there is to say of the resources does not wait for the keys service.
        return None
    if not status.connected:
        return {
            "available": False,
            "code": ErrorCode.KEY_MISSING,
            "reason": "No OpenRouter key is connected: connect one, and it can run.",
        }
    if status.health == "rejected":
        return {
            "available": False,
            "code": ErrorCode.KEY_REJECTED,
            "reason": "OpenRouter does not accept your key any more: test it, or connect a new one.",
        }
    return None


class VersionQuery(Contract):
    """Which versions to list."""

    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=20, ge=1, le=100)


@router.post(
    "",
    status_code=201,
    response_model=Resource,
    responses=answers(examples.RESOURCE, "The new resource, a draft.", 400, 401, 404, 409, 413, 422, status=201),
    summary="Create a resource",
)
async def create_resource(
    request: Request,
    user: SignedIn,
    body: Annotated[
        ResourceDraft,
        Body(
            openapi_examples={
                "fixed price": {"value": examples.DRAFT},
                "cost plus": {"value": examples.COST_PLUS_DRAFT},
            }
        ),
    ],
) -> Response:
    """A draft that only you can run, until you publish it. `slug` is unique among yours: `owner/slug` names the resource."""
    await refuse_unknown_fields(request, body)
    message = CreateResource.model_construct(owner=user.user, draft=body)
    reply = await _reply_with_key(request, user.user, RESOURCES_CREATE, message)
    location = f"/api/resources/{orjson.loads(reply)['id']}"
    return Response(reply, status_code=201, headers={"Location": location}, media_type="application/json")


@router.post(
    "/check",
    response_model=DraftReview,
    responses=answers(examples.DRAFT_REVIEW, "What it would cost and bring.", 400, 401, 403, 404, 413, 422),
    summary="Check a draft",
)
async def check_draft(
    request: Request,
    user: SignedIn,
    body: Annotated[ResourceDraft, Body(openapi_examples={"fixed price": {"value": examples.DRAFT}})],
    resource_id: Annotated[
        UUID | None, Query(description="The resource of yours that the draft is an edit of.")
    ] = None,
) -> Response:
    """Saves and runs nothing: every problem that creating it would meet, or the breakdown of a run and what to know of it."""
    await refuse_unknown_fields(request, body)
    message = ReviewDraft.model_construct(owner=user.user, draft=body, resource_id=resource_id)
    return await forward(request, DRAFTS_REVIEW, message)


@router.get(
    "",
    response_model=ResourcePage,
    responses=answers(examples.RESOURCE_PAGE, "A page of your resources, newest first.", 401, 422),
    summary="List your resources",
)
async def list_resources(request: Request, user: SignedIn, query: Annotated[ResourceQuery, Query()]) -> Response:
    """Yours alone; what others publish is in the listings."""
    message = ListResources(owner=user.user, status=query.status, cursor=query.cursor, limit=query.limit)
    return await _forward_with_key(request, user.user, RESOURCES_LIST, message)


@router.get(
    "/{id}",
    response_model=Resource | Listing,
    responses=answers(examples.RESOURCE, "The resource, or with `as=buyer` its listing.", 401, 403, 404, 422),
    summary="See a resource",
)
async def get_resource(
    request: Request,
    user: SignedIn,
    resource_id: Annotated[UUID, Path(alias="id")],
    audience: Annotated[Literal["owner", "buyer"], Query(alias="as")] = "owner",
) -> Response:
    """Yours: with its model, its availability today, what a run costs and brings, and what has happened to it.

    `as=buyer` shows any published one as its listing does; your own also before it is published.
    """
    if audience == "buyer":
        return await _forward_listing(request, RESOURCES_LISTING, ViewListing(asking=user.user, id=resource_id))
    return await _forward_with_key(request, user.user, RESOURCES_GET, ResourceRef(owner=user.user, id=resource_id))


@router.get(
    "/{id}/versions",
    response_model=ResourceVersionPage,
    responses=answers(examples.VERSION_PAGE, "A page of versions, newest first.", 401, 403, 404, 422),
    summary="See what was changed when",
)
async def list_versions(
    request: Request,
    user: SignedIn,
    resource_id: Annotated[UUID, Path(alias="id")],
    query: Annotated[VersionQuery, Query()],
) -> Response:
    """Every edit made a version; each lists the fields that differ from the one before. Runs name the version they ran."""
    message = ListVersions(owner=user.user, id=resource_id, cursor=query.cursor, limit=query.limit)
    return await forward(request, RESOURCES_VERSIONS, message)


@router.get(
    "/{id}/stats",
    response_model=ResourceStats,
    responses=answers(examples.STATS, "The figures.", 401, 403, 404, 422),
    summary="See what its runs cost and brought",
)
async def get_stats(
    request: Request,
    user: SignedIn,
    resource_id: Annotated[UUID, Path(alias="id")],
    days: Annotated[int, Query(ge=1, le=366, description="Up to today, in UTC.")] = 30,
) -> Response:
    """By day and in all: runs, failures by code, model cost, price, margin, median and 95th percentile of the time taken.

    A run counts a moment after it ended, and again, corrected, when its cost becomes known later.
    """
    return await forward(request, RESOURCES_STATS, GetStats(owner=user.user, id=resource_id, days=days))


@router.patch(
    "/{id}",
    response_model=Resource,
    responses=answers(examples.RESOURCE, "The resource at its new version.", 400, 401, 404, 409, 413, 422),
    summary="Edit a resource",
)
async def update_resource(
    request: Request,
    user: SignedIn,
    resource_id: Annotated[UUID, Path(alias="id")],
    body: Annotated[ResourcePatch, Body(openapi_examples={"new price": {"value": examples.PATCH}})],
) -> Response:
    """What you do not send stays as it is; an object that you send replaces the former one whole. Makes a new version.

    With `expected_version` the edit is refused with `conflict` when somebody edited meanwhile.
    """
    await refuse_unknown_fields(request, body)
    changes = body.model_dump(exclude={"expected_version"}, exclude_none=True)
    if not changes:
        raise ServiceError(ErrorCode.INVALID, "The request changes nothing; send at least one field to change.")
    message = UpdateResource.model_construct(owner=user.user, id=resource_id, patch=body)
    return await _forward_with_key(request, user.user, RESOURCES_UPDATE, message)


@router.delete(
    "/{id}",
    status_code=204,
    responses={204: {"description": "It is gone."}, **documented([401, 404, 409, 422, 500, 503, 504])},
    summary="Delete a resource",
)
async def delete_resource(request: Request, user: SignedIn, resource_id: Annotated[UUID, Path(alias="id")]) -> Response:
    """Takes it off the market for good. Receipts of its runs stay."""
    message = ResourceRef(owner=user.user, id=resource_id)
    await gateway_of(request).bus.call_raw(RESOURCES_DELETE, encode(message))
    return Response(status_code=204)


@router.post(
    "/{id}/publish",
    response_model=Resource,
    responses=answers({**examples.RESOURCE, "status": "published"}, "It is published.", 401, 404, 409, 422),
    summary="Publish a resource",
)
async def publish_resource(
    request: Request, user: SignedIn, resource_id: Annotated[UUID, Path(alias="id")]
) -> Response:
    """From now on everybody signed in can execute it, on your credits."""
    message = ResourceRef(owner=user.user, id=resource_id)
    return await _forward_with_key(request, user.user, RESOURCES_PUBLISH, message)


@router.post(
    "/{id}/pause",
    response_model=Resource,
    responses=answers({**examples.RESOURCE, "status": "paused"}, "It is paused.", 401, 404, 409, 422),
    summary="Pause a resource",
)
async def pause_resource(request: Request, user: SignedIn, resource_id: Annotated[UUID, Path(alias="id")]) -> Response:
    """Takes it off the market; you can still run it yourself."""
    message = ResourceRef(owner=user.user, id=resource_id)
    return await _forward_with_key(request, user.user, RESOURCES_PAUSE, message)


@listings.get(
    "",
    response_model=ListingPage,
    responses=answers(examples.LISTING_PAGE, "A page of listings.", 422),
    summary="Browse listings",
)
async def search_listings(request: Request, query: Annotated[SearchListings, Query()]) -> Response:
    """Published resources as a buyer sees them: what they take and what they cost, never the prompt."""
    return await forward(request, LISTINGS_SEARCH, query)


@listings.get(
    "/{owner}/{slug}",
    response_model=Listing,
    responses=answers(examples.LISTING, "The listing.", 404, 422),
    summary="See one listing",
)
async def get_listing(
    request: Request,
    owner: Annotated[str, Path(max_length=200)],
    slug: Annotated[str, Path(max_length=80)],
) -> Response:
    """What it takes, as JSON Schema too, and the most that a run is charged."""
    return await _forward_listing(request, LISTINGS_GET, ListingRef.model_construct(owner=owner, slug=slug))
