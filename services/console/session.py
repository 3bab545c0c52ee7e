"""Who is signed in: the token, in a cookie that no script can read and no other site can make a browser send.

The console keeps no sessions. The cookie holds the token itself, so that a restart signs nobody out and any replica
answers anybody. It is the gateway that checks the token, at every request; what is read from it here only names the user.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from services.console.api import Api, Gateway
from services.console.attempts import Attempts
from services.console.cookies import Cookie, claims_of
from services.console.navigation import Entry
from services.console.oidc import Provider

# It may have to stand in a cookie, beside what a sign-in needs.
_MAX_TARGET_BYTES = 2000


class SignInNeededError(Exception):
    """Nobody is signed in, or not any more."""


@dataclass(frozen=True)
class Session:
    """One signed-in user: the id, and the name to greet by, which is the id where the token has none."""

    user: str
    name: str
    api: Api


@dataclass(frozen=True)
class Console:
    """What pages work with; at `request.app.state.console`."""

    gateway: Gateway
    cookie: Cookie
    attempts: Attempts
    provider: Provider | None
    public_url: str
    gateway_public_url: str
    menu: tuple[Entry, ...]


def console_of(request: Request) -> Console:
    """The parts behind the pages."""
    console: Console = request.app.state.console
    return console


def session_in(request: Request) -> Session | None:
    """The user of a request, if there is one."""
    console = console_of(request)
    token = request.cookies.get(console.cookie.name)
    if token is None:
        return None
    claims = claims_of(token)
    if not claims or claims.get("exp", 0) <= time.time():
        return None
    user = str(claims.get("sub", ""))
    return Session(user, _name_in(claims) or user, console.gateway.as_user(token))


def _name_in(claims: dict[str, Any]) -> str | None:
    names = (claims.get(claim) for claim in ("email", "preferred_username", "name"))
    return next((name for name in names if isinstance(name, str) and name), None)


async def _signed_in(request: Request) -> Session:
    session = session_in(request)
    if session is None:
        raise SignInNeededError
    return session


SignedIn = Annotated[Session, Depends(_signed_in)]
"""A parameter of a page that only signed-in users see; everybody else is sent to sign in, and comes back."""


def goes_by_provider(request: Request) -> bool:
    """Whether whoever asks signed in by the provider before, and can be sent there: only where a page is opened."""
    console = console_of(request)
    opens = request.headers.get("sec-fetch-mode", "navigate") == "navigate"
    return opens and console.provider is not None and console.attempts.marked(request)


def local_path(target: str | None) -> str:
    """Where to go after signing in: a path of this console and nothing else."""
    if not target or not target.startswith("/") or target.startswith(("//", "/\\")) or any(c < " " for c in target):
        return "/"
    return target if len(target.encode()) <= _MAX_TARGET_BYTES else "/"
