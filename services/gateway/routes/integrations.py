"""Your OpenRouter key: connect, look, test, disconnect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import ConfigDict, Field, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.errors import ErrorCode, ServiceError
from contracts.keys import KeyStatus, OwnerRef, VerifyKey
from contracts.subjects import KEYS_DISCONNECT, KEYS_STATUS, KEYS_VERIFY
from services.gateway import examples
from services.gateway.documentation import answers
from services.gateway.problems import HttpError
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
        if error.code is ErrorCode.KEY_REJECTED:
            # Here it is the request that is wrong; at a run it is the state that the run meets.
            raise HttpError(422, error.body) from None
        raise
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
