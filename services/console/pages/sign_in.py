"""Signing in and out. A token comes from the identity provider, out of the form, or out of the fragment of a link, which no
server and no log ever sees; whichever it is, the gateway is asked about it before the browser may keep it."""

from __future__ import annotations

from urllib.parse import urlencode

import structlog
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from contracts.errors import ErrorCode
from contracts.keys import KeyStatus
from services.console.api import ApiError, Problem
from services.console.cookies import MAX_TOKEN_CHARS, claims_of
from services.console.forms import form_of
from services.console.oidc import CALLBACK_PATH, Attempt, Failure, Provider, SignInError, error_of
from services.console.session import console_of, goes_by_provider, local_path, session_in
from services.console.views import asks_for_part, go_to, problem_view, view

log = structlog.get_logger()

router = APIRouter()
_NO_TOKEN = Problem(
    title="That is not a token",
    detail="Paste the whole token: three groups of characters with dots between them.",
    code=ErrorCode.UNAUTHENTICATED,
    status=401,
)
# `{at}` is the provider.
_FAILURES = {
    Failure.DENIED: Problem(
        title="You were not signed in",
        detail="{at} says that you did not agree, or that your account may not come here. Sign in again, with another "
        "account if you have one, or ask whoever runs this console.",
        code=ErrorCode.UNAUTHENTICATED,
        status=401,
    ),
    Failure.LOST: Problem(
        title="That sign-in is over",
        detail="It took more than ten minutes, was begun in another browser, or has been used already. Begin again here.",
        code=ErrorCode.UNAUTHENTICATED,
        status=401,
    ),
    Failure.AWAY: Problem(
        title="{at} cannot be reached",
        detail="It does not answer, so nobody can sign in there at the moment. Try again in a minute.",
        code=ErrorCode.UNAVAILABLE,
        status=503,
    ),
    Failure.SETTINGS: Problem(
        title="Signing in with {at} does not work yet",
        detail="The console and {at} are not set up for each other. Whoever runs this console finds the cause in its "
        "log, at sign_in_failed.",
        code=ErrorCode.INTERNAL,
        status=502,
    ),
    Failure.REFUSED: Problem(
        title="The service does not accept this sign-in",
        detail="{at} signed you in, and the service refuses the token that came of it. Whoever runs this console finds "
        "the cause in its log, at sign_in_failed.",
        code=ErrorCode.UNAUTHENTICATED,
        status=401,
    ),
    Failure.TOO_LONG: Problem(
        title="Your token is too long",
        detail="{at} puts more into it than a browser keeps. Ask whoever looks after your account there to put less in: "
        "groups and roles are what makes tokens long.",
        code=ErrorCode.UNAUTHENTICATED,
        status=401,
    ),
    Failure.UNAVAILABLE: Problem(
        title="The service cannot be reached",
        detail="{at} signed you in, and the service behind this console does not answer. Try again shortly.",
        code=ErrorCode.UNAVAILABLE,
        status=503,
    ),
}


@router.get("/")
async def start(request: Request) -> Response:
    """The first page: what there is to build with."""
    if session_in(request) is not None:
        return _see("/models")
    return _see("/sign-in/provider" if goes_by_provider(request) else "/sign-in")


@router.get("/sign-in")
async def sign_in_page(
    request: Request,
    next: str | None = None,  # noqa: A002 - what the address says
    failed: Failure | None = None,
    left: bool = False,
) -> Response:
    """The ways to sign in; `failed` says why the provider's did not work, `left` that somebody signed out."""
    provider = console_of(request).provider
    if provider is None:
        return await _page(request, local_path(next))
    problem = None if failed is None else _problem_of(failed, provider)
    there = left and await _offers_sign_out(provider)
    return await _page(request, local_path(next), problem, left=left, sign_out_there=there)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Asks the gateway about the token before the browser may keep it."""
    form = await form_of(request)
    token, target = form["token"].removeprefix("Bearer ").strip(), local_path(form["next"])
    problem = await _refusal(request, token)
    if problem is not None and asks_for_part(request):
        return await problem_view(request, problem)
    if problem is not None:
        return await _page(request, target, problem, by_token=True)
    response = go_to(request, target)
    console_of(request).cookie.put(response, token)
    console_of(request).attempts.unmark(response)
    return response


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """Forgets the token in this browser. At the provider one stays signed in: other things may hang on that."""
    console = console_of(request)
    by_provider = console.provider is not None and console.attempts.marked(request)
    response = _see("/sign-in?left=true" if by_provider else "/sign-in")
    console.cookie.drop(response)
    console.attempts.unmark(response)
    return response


# By the provider ------------------------------------------------------------------------------------------------------


@router.get("/sign-in/provider")
async def begin(request: Request, next: str | None = None) -> Response:  # noqa: A002 - what the address says
    """Sends the browser to the provider. A link and not a form: the policy of pages forbids forms to end elsewhere."""
    target = local_path(next)
    try:
        url, attempt = await _provider(request).begin(target)
    except SignInError as error:
        return _failed(error, target)
    response = _see(url)
    console_of(request).attempts.begin(request, response, attempt)
    return response


@router.get(CALLBACK_PATH)
async def complete(request: Request, state: str = "", code: str = "", error: str = "") -> Response:
    """Where the provider sends the browser back to."""
    provider, console = _provider(request), console_of(request)
    attempt = console.attempts.find(request, state)
    if attempt is None and session_in(request) is not None:
        return _see("/")
    if attempt is None:
        return _failed(SignInError(Failure.LOST, "no sign-in is under way for this state"), None)
    target = local_path(attempt.target)
    try:
        token = await _token(request, provider, attempt, code, error)
    except SignInError as failure:
        response = _failed(failure, target)
    else:
        response = _see(target)
        console.cookie.put(response, token)
        console.attempts.mark(response)
    console.attempts.end(response, attempt)
    return response


@router.get("/sign-out/provider")
async def sign_out_there(request: Request) -> Response:
    """Sends the browser to where one signs out of the provider."""
    back = f"{console_of(request).public_url}/sign-in"
    try:
        return _see(await _provider(request).sign_out_url(back) or "/sign-in")
    except SignInError as error:
        return _failed(error, None)


async def _token(request: Request, provider: Provider, attempt: Attempt, code: str, error: str) -> str:
    """The token of a sign-in that the gateway accepts. Raises `SignInError`."""
    if error or not code:
        raise error_of(error)
    token = await provider.complete(attempt, code)
    if len(token) > MAX_TOKEN_CHARS:
        raise SignInError(Failure.TOO_LONG, f"{len(token)} characters, and {MAX_TOKEN_CHARS} fit into a cookie")
    try:
        await _ask_gateway(request, token)
    except ApiError as refusal:
        refused = refusal.problem.code is ErrorCode.UNAUTHENTICATED
        raise SignInError(Failure.REFUSED if refused else Failure.UNAVAILABLE, refusal.problem.detail) from None
    return token


def _provider(request: Request) -> Provider:
    provider = console_of(request).provider
    if provider is None:
        raise HTTPException(404)
    return provider


async def _offers_sign_out(provider: Provider) -> bool:
    try:
        return await provider.sign_out_url("") is not None
    except SignInError:
        return False


def _failed(error: SignInError, target: str | None) -> Response:
    """Back to the sign-in page, which says why: the code in the address of this request is worth nothing any more."""
    log.warning("sign_in_failed", failure=error.failure.value, cause=error.cause)
    query = {"failed": error.failure.value, **({"next": target} if target else {})}
    return _see(f"/sign-in?{urlencode(query)}")


def _problem_of(failure: Failure, provider: Provider) -> Problem:
    problem = _FAILURES[failure]
    named = {part: getattr(problem, part).format(at=provider.host) for part in ("title", "detail")}
    return problem.model_copy(update=named)


# Both -----------------------------------------------------------------------------------------------------------------


async def _page(
    request: Request,
    target: str,
    problem: Problem | None = None,
    *,
    by_token: bool = False,
    left: bool = False,
    sign_out_there: bool = False,
) -> Response:
    return await view(
        request,
        "sign_in.html",
        status=200 if problem is None else problem.status,
        next=target,
        begin=f"/sign-in/provider?{urlencode({'next': target})}",
        problem=problem,
        by_token=by_token,
        left=left,
        sign_out_there=sign_out_there,
        key=None,
    )


async def _refusal(request: Request, token: str) -> Problem | None:
    """Why nobody can sign in with this token; None for a good one."""
    if not claims_of(token) or len(token) > MAX_TOKEN_CHARS:
        return _NO_TOKEN
    try:
        await _ask_gateway(request, token)
    except ApiError as error:
        return error.problem
    return None


async def _ask_gateway(request: Request, token: str) -> None:
    await console_of(request).gateway.as_user(token).get("/api/integrations/openrouter", KeyStatus)


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)
