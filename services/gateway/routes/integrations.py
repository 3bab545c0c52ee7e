"""Your OpenRouter key: connect it, look at it, test it, see what was done with it, disconnect it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query
from pydantic import ConfigDict, Field, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.errors import ServiceError
from contracts.keys import (
    AccessPage,
    BeginOAuth,
    CompleteOAuth,
    KeyStatus,
    ListAccess,
    OAuthBegun,
    OwnerRef,
    VerifyKey,
)
from contracts.subjects import (
    KEYS_ACCESS_LIST,
    KEYS_DISCONNECT,
    KEYS_OAUTH_BEGIN,
    KEYS_OAUTH_COMPLETE,
    KEYS_STATUS,
    KEYS_VERIFY,
)
from services.gateway import examples
from services.gateway.documentation import answers
from services.gateway.problems import at_connect
from services.gateway.routing import SignedIn, SignedInRoute, forward, gateway_of

router = APIRouter(prefix="/api/integrations/openrouter", tags=["integrations"], route_class=SignedInRoute)


class ConnectBody(Contract):
    """A provider key to connect."""

    model_config = ConfigDict(extra="forbid")

    api_key: SecretStr = Field(
        min_length=1, max_length=512, description="An OpenRouter API key (not a management key)."
    )


@router.put(
    "",
    response_model=KeyStatus,
    responses=answers(examples.KEY_STATUS, "The key works and is connected.", 400, 401, 413, 422, 429, 502),
    summary="Connect a key",
)
async def connect_key(
    request: Request,
    user: SignedIn,
    body: Annotated[ConnectBody, Body(openapi_examples={"test mode": {"value": examples.CONNECT}})],
) -> Response:
    """Asks OpenRouter about the key, then stores it encrypted; a key connected before is replaced.

    A key that begins with `sk-or-test-` connects to the sandbox, where there is one: runs are marked `test` and spend nothing.
    """
    try:
        status = await gateway_of(request).recipients.connect(user.user, body.api_key.get_secret_value().strip())
    except ServiceError as error:
        raise at_connect(error) from None
    return Response(status, media_type="application/json")


@router.get(
    "",
    response_model=KeyStatus,
    responses=answers(examples.KEY_STATUS, "What there is to know of the key.", 401),
    summary="See the connected key",
)
async def get_key(request: Request, user: SignedIn) -> Response:
    """Never the key itself: a hint to recognise it by, its health and its limits."""
    return await forward(request, KEYS_STATUS, OwnerRef(owner=user.user))


@router.delete(
    "",
    response_model=KeyStatus,
    responses=answers(examples.DISCONNECTED, "No key is connected any more.", 401),
    summary="Disconnect the key",
)
async def disconnect_key(request: Request, user: SignedIn) -> Response:
    """Erases the key. Runs in flight finish; new ones fail with `key_missing`."""
    return await forward(request, KEYS_DISCONNECT, OwnerRef(owner=user.user))


@router.post(
    "/test",
    response_model=KeyStatus,
    responses=answers(examples.KEY_STATUS, "What OpenRouter says of the key now.", 401, 409, 429, 502),
    summary="Test the connected key",
)
async def verify_key(request: Request, user: SignedIn) -> Response:
    """Asks OpenRouter about the stored key; free of charge."""
    return await forward(request, KEYS_VERIFY, VerifyKey(owner=user.user))


class BeginBody(Contract):
    """Where OpenRouter is to send the browser back to."""

    model_config = ConfigDict(extra="forbid")

    callback_url: str | None = Field(
        default=None,
        max_length=1000,
        description="http://localhost, or an https address that is allowed here; without one OpenRouter shows the code.",
    )


class CompleteBody(Contract):
    """What OpenRouter sent the browser back with."""

    model_config = ConfigDict(extra="forbid")

    code: SecretStr = Field(min_length=1, max_length=2000)
    state: str = Field(min_length=1, max_length=200)


@router.post(
    "/oauth/begin",
    response_model=OAuthBegun,
    responses=answers(examples.OAUTH_BEGUN, "Send the browser to authorize_url.", 400, 401, 413, 422, 429),
    summary="Connect without pasting a key",
)
async def begin_oauth(
    request: Request,
    user: SignedIn,
    body: Annotated[BeginBody, Body(openapi_examples={"console": {"value": examples.OAUTH_BEGIN}})],
) -> Response:
    """OpenRouter asks the person in the browser, makes a key, and sends the browser back with a code and our state.

    Within ten minutes, once, and only for the user who began: complete it with both.
    """
    message = BeginOAuth(owner=user.user, callback_url=body.callback_url)
    return await forward(request, KEYS_OAUTH_BEGIN, message)


@router.post(
    "/oauth/complete",
    response_model=KeyStatus,
    responses=answers(examples.KEY_STATUS, "The key is connected.", 400, 401, 404, 413, 422, 429, 502),
    summary="Complete the connection",
)
async def complete_oauth(
    request: Request,
    user: SignedIn,
    body: Annotated[CompleteBody, Body(openapi_examples={"console": {"value": examples.OAUTH_COMPLETE}})],
) -> Response:
    """Fetches the key and stores it as any other; a key connected before is replaced.

    404 when this user began nothing of this state, or too long ago, or completed it before: begin again.
    """
    message = CompleteOAuth(owner=user.user, state=body.state, code=body.code.get_secret_value())
    try:
        return await forward(request, KEYS_OAUTH_COMPLETE, message)
    except ServiceError as error:
        raise at_connect(error) from None


@router.get(
    "/access",
    response_model=AccessPage,
    responses=answers(examples.ACCESS_PAGE, "The newest entries first.", 401, 422),
    summary="See what was done with the key",
)
async def list_accesses(
    request: Request,
    user: SignedIn,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Every connect, lease, check and disconnect, each chained to the one before by its hash; nothing is ever removed."""
    message = ListAccess(owner=user.user, cursor=cursor, limit=limit)
    return await forward(request, KEYS_ACCESS_LIST, message)
