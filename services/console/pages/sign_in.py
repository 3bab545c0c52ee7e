"""Signing in and out. A token comes out of the form, or out of the fragment of a link, which no server and no log ever sees."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from contracts.errors import ErrorCode
from contracts.keys import KeyStatus
from services.console.api import ApiError, Problem
from services.console.forms import form_of
from services.console.session import MAX_TOKEN_CHARS, claims_of, console_of, local_path, session_in
from services.console.views import view

router = APIRouter()
_NO_TOKEN = Problem(
    title="That is not a token",
    detail="Paste the whole token: three groups of characters with dots between them.",
    code=ErrorCode.UNAUTHENTICATED,
    status=401,
)


@router.get("/")
async def start(request: Request) -> Response:
    """The first page: what there is to build with."""
    return RedirectResponse("/models" if session_in(request) else "/sign-in", status_code=303)


@router.get("/sign-in")
async def sign_in_page(request: Request, next: str | None = None) -> Response:  # noqa: A002 - what the address says
    """The form."""
    return await view(request, "sign_in.html", next=local_path(next), problem=None, key=None)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Asks the gateway about the token before the browser may keep it."""
    form = await form_of(request)
    token, target = form["token"].removeprefix("Bearer ").strip(), local_path(form["next"])
    problem = await _refusal(request, token)
    if problem is not None:
        return await view(request, "sign_in.html", status=problem.status, next=target, problem=problem, key=None)
    response = RedirectResponse(target, status_code=303)
    console_of(request).cookie.put(response, token)
    return response


async def _refusal(request: Request, token: str) -> Problem | None:
    """Why nobody can sign in with this token; None for a good one."""
    if not claims_of(token) or len(token) > MAX_TOKEN_CHARS:
        return _NO_TOKEN
    try:
        await console_of(request).gateway.as_user(token).get("/api/integrations/openrouter", KeyStatus)
    except ApiError as error:
        return error.problem
    return None


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """Forgets the token in this browser."""
    response = RedirectResponse("/sign-in", status_code=303)
    console_of(request).cookie.drop(response)
    return response
