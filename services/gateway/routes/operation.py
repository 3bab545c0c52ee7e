"""Health, metrics and the machine-readable description of the bus."""

from __future__ import annotations

import importlib.resources
from functools import cache

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.problems import NOT_READY
from services.gateway.routing import PublicRoute, gateway_of

router = APIRouter(tags=["operation"], route_class=PublicRoute, default_response_class=Response)

_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_STATES = {"application/json": {"schema": {"type": "object"}, "example": {"bus": "ok"}}}


@cache
def _asyncapi() -> bytes:
    return importlib.resources.files("contracts").joinpath("asyncapi.json").read_bytes()


@router.get("/livez", responses={200: {"content": _TEXT}}, summary="Is the process alive?")
async def livez() -> Response:
    """Answers as long as the process can answer anything."""
    return Response("ok\n", media_type="text/plain")


@router.get(
    "/readyz",
    responses={200: {"content": _STATES}, 503: {"description": "Something is missing.", "content": _STATES}},
    summary="Can it work?",
)
async def readyz(request: Request) -> Response:
    """503 while something that the gateway needs does not answer, and from the moment it is told to stop."""
    ready, states = await gateway_of(request).health.readiness()
    return Response(orjson.dumps(states), status_code=200 if ready else NOT_READY, media_type="application/json")


@router.get("/metrics", responses={200: {"content": _TEXT}}, summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """In the Prometheus text format."""
    body, media_type = await gateway_of(request).health.metrics()
    return Response(body, headers={"Content-Type": media_type})


@router.get(
    "/asyncapi.json",
    responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}},
    summary="The bus, as AsyncAPI 3",
)
async def asyncapi() -> Response:
    """How other services execute resources by publishing events on NATS."""
    return Response(_asyncapi(), media_type="application/json")
