"""From a template to a response: whole pages, parts of pages, problems, and where to go next.

A page is one template. Its script asks for a part of it with the header `X-Fragment: <block>`, and gets that block of the
same template, rendered from the same handler; so a page that is opened and a page that is updated cannot differ.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from contracts.errors import ErrorCode
from contracts.keys import KeyStatus
from services.console import charts, inputs, text
from services.console.api import ApiError, Problem
from services.console.session import Session, console_of, goes_by_provider, session_in

_HERE = Path(__file__).parent
_FLASH = "x402jobs-said"
_THEMES = frozenset({"light", "dark"})
STATIC = frozenset(file.name for file in (_HERE / "static").iterdir())
"""What the browser loads beside pages; all of it comes from here, nothing from anywhere else."""
_IMPORT = re.compile(r'(?<=from ")\./(\w+\.js)(?=";)')


@cache
def static_file(name: str) -> bytes:
    """The content of a static file. Scripts import each other by the address that pages use: by two they would run twice."""
    content = (_HERE / "static" / name).read_bytes()
    if not name.endswith(".js"):
        return content
    return _IMPORT.sub(lambda found: static_url(found[1]), content.decode()).encode()


@cache
def static_url(name: str) -> str:
    """The address of a static file; another content has another address, so browsers may keep it for ever."""
    return f"/static/{name}?v={hashlib.sha256(static_file(name)).hexdigest()[:12]}"


@cache
def templates() -> Environment:
    """Every template, with the components as `ui` and the formatters as `text`."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(text=text, charts=charts, inputs=inputs, static_url=static_url)
    environment.globals["ui"] = environment.get_template("components.html").module
    return environment


def asks_for_part(request: Request) -> bool:
    """Whether the page's script asks, and not somebody who opens the page."""
    return "x-fragment" in request.headers


async def view(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    """The page, or the block of it that was asked for."""
    page = templates().get_template(template)
    session = session_in(request)
    values: dict[str, Any] = {"request": request, "session": session, "console": console_of(request), **context}
    block = page.blocks.get(request.headers.get("x-fragment", ""))
    if block is not None:
        return HTMLResponse("".join(block(page.new_context(values))), status)
    values.setdefault("key", await key_status(session))
    values["said"] = unquote(request.cookies.get(_FLASH, ""))
    theme = request.cookies.get("theme", "")
    values["theme"] = theme if theme in _THEMES else None
    response = HTMLResponse(page.render(values), status)
    if values["said"]:
        response.delete_cookie(_FLASH)
    return response


async def key_status(session: Session | None) -> KeyStatus | None:
    """The key of whoever is signed in, for the sign of test mode; None where it cannot be had."""
    if session is None:
        return None
    try:
        return await session.api.get("/api/integrations/openrouter", KeyStatus)
    except ApiError:
        return None


def go_to(request: Request, path: str, *, say: str | None = None, back: str | None = None) -> Response:
    """Sends the browser to another page after something was done; `say` is shown there once.

    `back` is where the way back leads from there, instead of to the form that was sent.
    """
    if asks_for_part(request):
        response = Response(headers={"X-Location": path} | ({"X-Back": back} if back else {}))
    else:
        response = RedirectResponse(path, status_code=303)
    if say is not None:
        response.set_cookie(_FLASH, quote(say), max_age=60, httponly=True, samesite="lax")
    return response


def run_started(request: Request, path: str, execution_id: str) -> Response:
    """Tells a form with `data-run-form` which run it began; `path` is the page, which shows the run named in its address."""
    if asks_for_part(request):
        return Response(headers={"X-Run": execution_id})
    return RedirectResponse(f"{path}?{urlencode({'run': execution_id})}", status_code=303)


def sign_in_path(request: Request) -> str:
    """Where to sign in and come back from; at the provider itself for who came by it before."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    page = "/sign-in/provider" if goes_by_provider(request) else "/sign-in"
    return f"{page}?{urlencode({'next': here})}"


async def problem_view(request: Request, problem: Problem) -> Response:
    """A problem: in its place when a form or a list was asked for, as a page otherwise."""
    if asks_for_part(request):
        shown = templates().globals["ui"].problem(problem)  # type: ignore[attr-defined]
        headers = {"X-Problem": problem.code, **({"X-Unanswered": "1"} if problem.unanswered else {})}
        return HTMLResponse(str(shown), problem.status, headers=headers)
    # Where nothing answers, nobody knows the key either: asking would only make people wait.
    known = {"key": None} if problem.code is ErrorCode.UNAVAILABLE else {}
    return await view(request, "problem.html", status=problem.status, problem=problem, **known)
