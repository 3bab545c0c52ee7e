"""Connecting without pasting a key, as OpenRouter does it: a page that gives out a code, and the exchange of codes for keys.

Nobody has to agree to anything here: the page redirects at once. Codes live in memory, work once, for ten minutes.
"""

import base64
import hashlib
import html
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import orjson
from aiohttp import web

from deploy.sandbox import errors
from deploy.sandbox.chat import refusal_response

LIFETIME_S = 600
KEPT_CODES = 10_000
METHODS = ("S256", "plain")


@dataclass(frozen=True, slots=True)
class _Grant:
    challenge: str
    method: str
    expires_at: float


class OAuth:
    """The codes that were given out and not exchanged yet."""

    def __init__(self) -> None:
        self._grants: OrderedDict[str, _Grant] = OrderedDict()

    async def page(self, request: web.Request) -> web.Response:
        """GET /auth: back to the callback with a code; without a callback the code itself, to be copied."""
        query = request.query
        challenge, method = query.get("code_challenge", ""), query.get("code_challenge_method", "S256")
        if method not in METHODS or not challenge:
            return web.Response(status=400, text="code_challenge is missing, or its method is unknown.\n")
        code = f"auth_code_{secrets.token_hex(16)}"
        self._grants[code] = _Grant(challenge, method, time.time() + LIFETIME_S)
        if len(self._grants) > KEPT_CODES:
            self._grants.popitem(last=False)
        callback_url = query.get("callback_url")
        if callback_url is None:
            return web.Response(text=f"<p>Your code: <code>{html.escape(code)}</code></p>\n", content_type="text/html")
        parts = urlsplit(callback_url)
        if parts.scheme != "https" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
            return web.Response(status=400, text="callback_url is neither https nor localhost.\n")
        back = parts._replace(query=urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("code", code)]))
        raise web.HTTPFound(urlunsplit(back))

    async def exchange(self, request: web.Request) -> web.Response:
        """POST /api/v1/auth/keys: a code and its verifier for a key."""
        try:
            body: dict[str, Any] = orjson.loads(await request.read())
            code, verifier = str(body["code"]), str(body.get("code_verifier", ""))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return refusal_response(errors.invalid_query("code", "Required"))
        method = body.get("code_challenge_method", "S256")
        if method not in METHODS:
            return refusal_response(errors.refuse(400, "Invalid code_challenge_method", user=False))
        grant = self._grants.pop(code, None)
        if grant is None:
            return refusal_response(errors.refuse(400, "Invalid code", user=False))
        if grant.expires_at < time.time():
            return refusal_response(errors.refuse(403, "Code expired", user=False))
        if method != grant.method or _challenge(verifier, method) != grant.challenge:
            return refusal_response(errors.refuse(403, "Invalid code or code_verifier", user=False))
        key = f"sk-or-test-oauth-{secrets.token_hex(24)}"
        return web.Response(
            body=orjson.dumps({"key": key, "user_id": errors.USER_ID}),
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
        )


def _challenge(verifier: str, method: str) -> str:
    if method == "plain":
        return verifier
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
