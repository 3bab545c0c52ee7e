"""The application: the pages, what the browser loads beside them, and what is the same for all of them.

Every request that changes something must come from one of our own pages: the browser says so in `Origin`, and no other
site can make it lie. The policy lets a page load nothing but what this process serves and the media of the gateway.
"""

from __future__ import annotations

import mimetypes
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts.errors import ErrorCode
from services.console.api import ApiError, Gateway, Problem
from services.console.attempts import Attempts
from services.console.cookies import Cookie
from services.console.oidc import Provider
from services.console.pages import PAGES
from services.console.session import Console, SignInNeededError, console_of
from services.console.views import STATIC, asks_for_part, problem_view, sign_in_path, static_file
from services.runtime.health import Health

_GZIP_LEVEL = 4
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_OPERATION = frozenset({"/livez", "/readyz"})
_NO_SUCH_PAGE = Problem(
    title="There is no such page",
    detail="The address is wrong, or what was here is gone. Start again from the menu.",
    code=ErrorCode.NOT_FOUND,
    status=404,
)
_WRONG_ADDRESS = Problem(
    title="This address cannot be read",
    detail="Something in the address is not what the page expects. Start again from the menu.",
    code=ErrorCode.INVALID,
    status=422,
)
_ELSEWHERE = Problem(
    title="This did not come from the console",
    detail="A page of another site tried to change something here. Nothing was done.",
    code=ErrorCode.FORBIDDEN,
    status=403,
)
_BROKEN = Problem(
    title="Something went wrong on our side",
    detail="It is logged. Go back and try again; what you saved before is still there.",
    code=ErrorCode.INTERNAL,
    status=500,
)
_SIGN_IN_AGAIN = Problem(
    title="You are not signed in any more",
    detail="Sign in again in another tab, then do this once more: what you typed stays here.",
    code=ErrorCode.UNAUTHENTICATED,
    status=401,
    action_url="/sign-in",
)


class Guarded:
    """Wraps the pages: refuses what other sites send, and tells the browser what a page may load."""

    def __init__(self, app: ASGIApp, health: Health, media_url: str) -> None:
        self._app = app
        self._health = health
        media = "{0.scheme}://{0.netloc}".format(urlsplit(media_url))
        self._policy = "; ".join([
            "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "form-action 'self'",
            f"img-src 'self' data: {media}", f"media-src 'self' {media}", "base-uri 'none'", "frame-ancestors 'none'",
        ])  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if scope["path"] in _OPERATION:
            await self._health(dict(scope), receive, send)
            return
        if scope["method"] not in _SAFE_METHODS and not _from_here(Headers(scope=scope)):
            response = Response(_ELSEWHERE.detail, _ELSEWHERE.status, media_type="text/plain")
            await response(scope, receive, sent)
            return
        await self._app(scope, receive, sent)


def _from_here(headers: Headers) -> bool:
    return urlsplit(headers.get("origin", "")).netloc == headers.get("host") != ""


async def _static(name: str) -> Response:
    if name not in STATIC:
        raise HTTPException(_NO_SUCH_PAGE.status)
    media_type = mimetypes.guess_type(name)[0]
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(static_file(name), media_type=media_type, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if error.problem.code is ErrorCode.UNAUTHENTICATED:
        return await _not_signed_in(request, error)
    return await problem_view(request, error.problem)


async def _not_signed_in(request: Request, _error: Exception) -> Response:
    if request.method not in _SAFE_METHODS:
        return await problem_view(request, _SIGN_IN_AGAIN)
    if asks_for_part(request):
        return Response(headers={"X-Location": "reload"})
    response = RedirectResponse(sign_in_path(request), status_code=303)
    console_of(request).cookie.drop(response)
    return response


async def _no_such_page(request: Request, _error: Exception) -> Response:
    return await problem_view(request, _NO_SUCH_PAGE)


async def _unreadable(request: Request, _error: Exception) -> Response:
    return await problem_view(request, _WRONG_ADDRESS)


async def _broken(request: Request, _error: Exception) -> Response:
    return await problem_view(request, _BROKEN)


def create_app(
    gateway: Gateway, *, provider: Provider | None, health: Health, public_url: str, gateway_public_url: str
) -> ASGIApp:
    """The pages over the HTTP interface behind `gateway`; nothing is opened here."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    entries = [page.ENTRY for page in PAGES if hasattr(page, "ENTRY")]
    cookie = Cookie(public_url)
    app.state.console = Console(
        gateway,
        cookie,
        Attempts(cookie),
        provider,
        public_url.rstrip("/"),
        gateway_public_url.rstrip("/"),
        tuple(sorted(entries, key=lambda entry: entry.place)),
    )
    app.add_exception_handler(ApiError, _failed)
    app.add_exception_handler(SignInNeededError, _not_signed_in)
    app.add_exception_handler(HTTPException, _no_such_page)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(Exception, _broken)
    app.add_api_route("/static/{name}", _static)
    for page in PAGES:
        app.router.routes.extend(page.router.routes)
    # No page holds a secret beside something that another site could choose. Streams of events go through as they are.
    return Guarded(GZipMiddleware(app, minimum_size=1000, compresslevel=_GZIP_LEVEL), health, gateway_public_url)
