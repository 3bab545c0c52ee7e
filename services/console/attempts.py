"""What the browser keeps of sign-ins at the provider: a cookie for each that is under way, so that two tabs may sign in at
once, and a mark of who came by the provider, who is sent there again when the token has ended."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from services.console.cookies import Cookie
from services.console.oidc import Attempt

LIFETIME_S = 600
_MARK_LIFETIME_S = 30 * 86_400
_MOST = 5
_ATTEMPT = "-attempt-"
_MARK = "-provider"


class Attempts:
    """The cookies beside that of the session."""

    def __init__(self, cookie: Cookie) -> None:
        self._cookie = cookie

    def begin(self, request: Request, response: Response, attempt: Attempt) -> None:
        """Keeps a sign-in for ten minutes. Of those that were given up the oldest go: requests must not grow with them."""
        prefix = self._cookie.name + _ATTEMPT
        begun = [(_read(value), name) for name, value in request.cookies.items() if name.startswith(prefix)]
        newest_first = sorted(begun, key=lambda each: each[0].begun_at if each[0] else 0, reverse=True)
        for _, name in newest_first[_MOST - 1 :]:
            self._cookie.drop(response, name.removeprefix(self._cookie.name))
        value = base64.urlsafe_b64encode(attempt.model_dump_json().encode()).decode().rstrip("=")
        self._cookie.keep(response, value, LIFETIME_S, _kind(attempt.state))

    def find(self, request: Request, state: str) -> Attempt | None:
        """The sign-in that this browser began with this state, if it is not over."""
        attempt = _read(request.cookies.get(self._cookie.name + _kind(state), ""))
        if attempt is None or not hmac.compare_digest(attempt.state.encode(), state.encode()):
            return None
        return attempt if attempt.begun_at + LIFETIME_S > time.time() else None

    def end(self, response: Response, attempt: Attempt) -> None:
        """A sign-in works once, whatever came of it."""
        self._cookie.drop(response, _kind(attempt.state))

    def mark(self, response: Response) -> None:
        """Remembers that this browser signs in by the provider."""
        self._cookie.keep(response, "1", _MARK_LIFETIME_S, _MARK)

    def unmark(self, response: Response) -> None:
        """Forgets it."""
        self._cookie.drop(response, _MARK)

    def marked(self, request: Request) -> bool:
        """Whether this browser signed in by the provider."""
        return self._cookie.name + _MARK in request.cookies


def _kind(state: str) -> str:
    return _ATTEMPT + hashlib.sha256(state.encode()).hexdigest()[:16]


def _read(value: str) -> Attempt | None:
    try:
        return Attempt.model_validate_json(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
    except (ValueError, ValidationError):
        return None
