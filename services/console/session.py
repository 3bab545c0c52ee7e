"""Who is signed in: the token, in a cookie that no script can read and no other site can make a browser send.

The console keeps no sessions. The cookie holds the token itself, so that a restart signs nobody out and any replica
answers anybody. It is the gateway that checks the token, at every request; what is read from it here only names the user.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from services.console.api import Api, Gateway
from services.console.navigation import Entry

MAX_TOKEN_CHARS = 3800
"""Browsers keep cookies of up to 4096 bytes."""


class SignInNeededError(Exception):
    """Nobody is signed in, or not any more."""


@dataclass(frozen=True)
class Session:
    """One signed-in user."""

    user: str
    api: Api


@dataclass(frozen=True)
class Console:
    """What pages work with; at `request.app.state.console`."""

    gateway: Gateway
    cookie: Cookie
    public_url: str
    gateway_public_url: str
    menu: tuple[Entry, ...]


def console_of(request: Request) -> Console:
    """The parts behind the pages."""
    console: Console = request.app.state.console
    return console


class Cookie:
    """The cookie of one console. Cookies ignore ports, so a console on this machine has its port in the name."""

    def __init__(self, public_url: str) -> None:
        parts = urlsplit(public_url)
        self._secure = parts.scheme == "https"
        self.name = "__Host-x402jobs" if self._secure else f"x402jobs-{parts.port or 80}"

    def put(self, response: Response, token: str) -> None:
        """Signs in: from now on the browser sends it, until the token ends."""
        response.set_cookie(
            self.name,
            token,
            max_age=max(1, int(claims_of(token).get("exp", 0) - time.time())),
            httponly=True,
            samesite="lax",
            secure=self._secure,
        )

    def drop(self, response: Response) -> None:
        """Signs out."""
        response.delete_cookie(self.name, httponly=True, samesite="lax", secure=self._secure)


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, unchecked; nothing where it is no JWT."""
    try:
        payload = token.split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims if isinstance(claims, dict) and isinstance(claims.get("exp", 0), int | float) else {}
    except (IndexError, ValueError):
        return {}


def session_in(request: Request) -> Session | None:
    """The user of a request, if there is one."""
    console = console_of(request)
    token = request.cookies.get(console.cookie.name)
    if token is None:
        return None
    claims = claims_of(token)
    if not claims or claims.get("exp", 0) <= time.time():
        return None
    return Session(str(claims.get("sub", "")), console.gateway.as_user(token))


async def _signed_in(request: Request) -> Session:
    session = session_in(request)
    if session is None:
        raise SignInNeededError
    return session


SignedIn = Annotated[Session, Depends(_signed_in)]
"""A parameter of a page that only signed-in users see; everybody else is sent to sign in, and comes back."""


def local_path(target: str | None) -> str:
    """Where to go after signing in: a path of this console and nothing else."""
    if not target or not target.startswith("/") or target.startswith(("//", "/\\")) or any(c < " " for c in target):
        return "/"
    return target
