"""What the console keeps in the browser: cookies that no script can read and no other site can make a browser send."""

from __future__ import annotations

import base64
import time
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.responses import Response

MAX_TOKEN_CHARS = 3800
"""Browsers keep cookies of up to 4096 bytes."""


class Cookie:
    """The cookie of one console. Cookies ignore ports, so a console on this machine has its port in the name."""

    def __init__(self, public_url: str) -> None:
        parts = urlsplit(public_url)
        self._secure = parts.scheme == "https"
        self.name = "__Host-x402jobs" if self._secure else f"x402jobs-{parts.port or 80}"

    def put(self, response: Response, token: str) -> None:
        """Signs in: from now on the browser sends it, until the token ends."""
        self.keep(response, token, max(1, int(claims_of(token).get("exp", 0) - time.time())))

    def keep(self, response: Response, value: str, lifetime_s: int, kind: str = "") -> None:
        """Sets the cookie, or a further one whose name goes on with `kind`."""
        response.set_cookie(
            self.name + kind, value, max_age=lifetime_s, httponly=True, samesite="lax", secure=self._secure
        )

    def drop(self, response: Response, kind: str = "") -> None:
        """Signs out, or forgets the further cookie."""
        response.delete_cookie(self.name + kind, httponly=True, samesite="lax", secure=self._secure)


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, unchecked; nothing where it is no JWT."""
    try:
        payload = token.split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims if isinstance(claims, dict) and isinstance(claims.get("exp", 0), int | float) else {}
    except (IndexError, ValueError):
        return {}
