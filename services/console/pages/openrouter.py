"""Settings: the creator's OpenRouter key, what its runs may cost in a day, and what was done with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contracts.catalog import ResourcePage
from contracts.errors import ErrorCode
from contracts.keys import AccessPage, KeyStatus, OAuthBegun
from contracts.market import BudgetLimits, Budgets, CallerBudget, ResourceBudget
from services.console.api import ApiError, Problem
from services.console.forms import Form, form_of, refused
from services.console.navigation import Entry
from services.console.session import Session, SignedIn, console_of
from services.console.views import go_to, view

router = APIRouter()
PATH = "/settings/openrouter"
CALLBACK_PATH = "/openrouter/callback"
ENTRY = Entry("Settings", PATH, "settings", 90, under="/settings")

_KEY = "/api/integrations/openrouter"
_ACCESSES = 20
_NOT_AGREED = Problem(
    title="OpenRouter sent you back without a key",
    detail="Nothing was connected. Begin again, or paste a key instead.",
    code=ErrorCode.INVALID,
    status=422,
)


async def _page(request: Request, session: Session, problem: Problem | None = None) -> Response:
    key, budgets, accesses, resources = await asyncio.gather(
        session.api.get(_KEY, KeyStatus),
        session.api.get("/api/budgets", Budgets),
        session.api.get(f"{_KEY}/access", AccessPage, {"limit": _ACCESSES}),
        session.api.get("/api/resources", ResourcePage, {"limit": 200}),
    )
    return await view(
        request,
        "openrouter.html",
        status=200 if problem is None else problem.status,
        key=key,
        budgets=budgets,
        accesses=accesses,
        resources=resources.items,
        resource_limits={limit.resource_id: limit.daily_usd for limit in budgets.resources},
        names={str(resource.id): resource.name for resource in resources.items},
        remaining_percent=remaining_percent(key),
        problem=problem,
    )


def remaining_percent(key: KeyStatus) -> Decimal | None:
    """How much of the key's own limit is left; None where it has none."""
    if key.limit_usd is None or key.limit_remaining_usd is None or key.limit_usd <= 0:
        return None
    return min(max(key.limit_remaining_usd / key.limit_usd * 100, Decimal(0)), Decimal(100))


@router.get(PATH)
async def openrouter_page(request: Request, session: SignedIn) -> Response:
    """The key with its health and limits, the daily limits, the access log."""
    return await _page(request, session)


@router.get(f"{PATH}/access")
async def more_accesses(request: Request, session: SignedIn, cursor: str) -> Response:
    """The next page of the access log."""
    accesses = await session.api.get(f"{_KEY}/access", AccessPage, {"limit": _ACCESSES, "cursor": cursor})
    return await view(request, "openrouter.html", accesses=accesses)


@router.post(f"{PATH}/connect")
async def connect(request: Request, session: SignedIn) -> Response:
    """Connects a key, or replaces the one that is connected."""
    form = await form_of(request)
    if not form["api_key"]:
        raise refused("api_key", "Paste the key first.")
    key = await session.api.send("PUT", _KEY, KeyStatus, body={"api_key": form["api_key"]})
    return go_to(request, PATH, say=f"Connected {key.hint}.")


@router.post(f"{PATH}/test")
async def test_key(request: Request, session: SignedIn) -> Response:
    """Asks OpenRouter about the key now; free of charge."""
    key = await session.api.send("POST", f"{_KEY}/test", KeyStatus)
    said = "OpenRouter accepts the key." if key.health == "ok" else "OpenRouter was asked; see below what it says."
    return go_to(request, PATH, say=said)


@router.post(f"{PATH}/disconnect")
async def disconnect(request: Request, session: SignedIn) -> Response:
    """Erases the key."""
    await session.api.send("DELETE", _KEY, KeyStatus)
    return go_to(request, PATH, say="The key is disconnected and erased.")


@router.post(f"{PATH}/oauth")
async def begin_oauth(request: Request, session: SignedIn) -> Response:
    """Sends the browser to OpenRouter, which sends it back to `/openrouter/callback`."""
    callback = console_of(request).public_url + CALLBACK_PATH
    begun = await session.api.send("POST", f"{_KEY}/oauth/begin", OAuthBegun, body={"callback_url": callback})
    return go_to(request, begun.authorize_url)


@router.get(CALLBACK_PATH)
async def complete_oauth(request: Request, session: SignedIn, code: str = "", state: str = "") -> Response:
    """Where OpenRouter sends the browser back to. Whoever began must be who completes: the gateway checks that."""
    if not code or not state:
        return await _page(request, session, _NOT_AGREED)
    try:
        key = await session.api.send("POST", f"{_KEY}/oauth/complete", KeyStatus, body={"code": code, "state": state})
    except ApiError as error:
        if error.problem.code is ErrorCode.UNAUTHENTICATED:
            raise
        return await _page(request, session, error.problem)
    return go_to(request, PATH, say=f"Connected {key.hint}.")


@router.post(f"{PATH}/budgets")
async def set_budgets(request: Request, session: SignedIn) -> Response:
    """Replaces all daily limits by what the form says; an empty field is no limit."""
    form = await form_of(request)
    limits = BudgetLimits(
        key_daily_usd=form.amount("key_daily_usd"),
        caller_daily_usd=form.amount("caller_daily_usd"),
        resources=list(_resource_limits(form)),
        callers=list(_caller_limits(form)),
    )
    await session.api.send("PUT", "/api/budgets", Budgets, body=limits)
    return go_to(request, PATH, say="The daily limits are saved.")


def _resource_limits(form: Form) -> Iterator[ResourceBudget]:
    for name in form:
        if name.startswith("resource:") and (amount := form.amount(name)) is not None:
            yield ResourceBudget.model_validate({"resource_id": name.partition(":")[2], "daily_usd": amount})


def _caller_limits(form: Form) -> Iterator[CallerBudget]:
    for name in form:
        if name.startswith("caller:") and (amount := form.amount(name)) is not None:
            _, kind, caller = name.split(":", 2)
            yield CallerBudget.model_validate({"caller_kind": kind, "caller_id": caller, "daily_usd": amount})
    if form["new_caller"]:
        amount = form.amount("new_caller_usd")
        if amount is None:
            raise refused("new_caller_usd", "Say how much this caller may use in a day.")
        yield CallerBudget.model_validate({"caller_id": form["new_caller"], "daily_usd": amount})
