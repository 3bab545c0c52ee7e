"""One resource of a creator: what it is, how it does, what happened to it, how to call it, and taking it off the market for good."""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.catalog import Resource
from contracts.execution import ExecutionPage
from contracts.market import ResourceStats, ResourceVersionPage
from services.console import figures
from services.console.session import SignedIn, console_of
from services.console.snippets import snippets
from services.console.views import go_to, view

router = APIRouter()
_PATH = "/resources/{resource_id:uuid}"
_RECENT = 10
_VERSIONS = 5


@router.get(_PATH)
async def one_resource(
    request: Request, session: SignedIn, resource_id: UUID, days: Annotated[int, Query(ge=1, le=366)] = 30
) -> Response:
    """All of it on one page; `days` is how far back the figures go."""
    api, path = session.api, f"/api/resources/{resource_id}"
    resource, stats, versions, recent = await asyncio.gather(
        api.get(path, Resource),
        api.get(f"{path}/stats", ResourceStats, {"days": days}),
        api.get(f"{path}/versions", ResourceVersionPage, {"limit": _VERSIONS}),
        api.get("/api/executions", ExecutionPage, {"role": "owner", "resource_id": resource_id, "limit": _RECENT}),
    )
    gateway = console_of(request).gateway_public_url
    return await view(
        request,
        "resource.html",
        resource=resource,
        days=days,
        stats=stats,
        drawn=figures.drawn(stats) if stats.total.runs else None,
        versions=versions,
        recent=recent.items,
        ways=snippets(gateway, f"{resource.owner}/{resource.slug}", resource.inputs),
    )


@router.get(_PATH + "/versions")
async def more_versions(request: Request, session: SignedIn, resource_id: UUID, cursor: str) -> Response:
    """The next page of versions."""
    path = f"/api/resources/{resource_id}"
    resource, versions = await asyncio.gather(
        session.api.get(path, Resource),
        session.api.get(f"{path}/versions", ResourceVersionPage, {"limit": _VERSIONS, "cursor": cursor}),
    )
    return await view(request, "resource.html", resource=resource, versions=versions)


@router.post(_PATH + "/delete")
async def delete(request: Request, session: SignedIn, resource_id: UUID) -> Response:
    """For good; receipts of its runs stay."""
    await session.api.delete(f"/api/resources/{resource_id}")
    return go_to(request, "/resources", say="It is deleted.")
