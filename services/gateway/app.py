"""The HTTP application: routes, problems for what no route answers, and the OpenAPI document."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.documentation import document
from services.gateway.problems import problem_response, unrouted
from services.gateway.routes import (
    budgets,
    dead_letters,
    executions,
    integrations,
    media,
    models,
    operation,
    resources,
    workflows,
)
from services.gateway.routing import Gateway


async def _unrouted(_request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path, or a method that the path does not take."""
    assert isinstance(error, HTTPException)
    return problem_response(unrouted(error.status_code, error.headers))


def create_app(gateway: Gateway, public_url: str) -> FastAPI:
    """The application over the parts in `gateway`; nothing is opened here."""
    app = FastAPI(docs_url="/docs", redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False)
    app.state.gateway = gateway
    app.add_exception_handler(HTTPException, _unrouted)
    routers = (
        executions.hot,  # first: routes are tried in order
        executions.router,
        executions.preview,  # before /api/resources/{id}
        workflows.router,
        resources.router,
        resources.listings,
        budgets.router,
        integrations.router,
        models.router,
        dead_letters.router,
        media.uploads,
        media.router,
        operation.router,
    )
    for router in routers:
        app.router.routes.extend(router.routes)

    @cache
    def openapi() -> dict[str, Any]:
        return document(app, public_url)

    app.openapi = openapi  # type: ignore[method-assign]
    return app
