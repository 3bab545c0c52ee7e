"""A small OpenID provider: a real server with discovery, a page to sign in on, codes that work once, PKCE, keys and sign-out.

It is as strict as a good one; `description`, `in_id_token` and `answer` make it a bad one.
"""

from __future__ import annotations

import base64
import hashlib
import html
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlencode

import jwt
from aiohttp import BasicAuth, web
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.local.ports import HOST, free_port

CLIENT_ID = "x402jobs-console"
_SESSION = "provider-session"
Claims = dict[str, Any]


@dataclass(frozen=True)
class Code:
    """What a code stands for."""

    user: str
    request: dict[str, str]


class IdentityProvider:
    """One provider on a port of its own. `people` are further claims of users by name; anybody can sign in."""

    def __init__(self, *, client_secret: str | None = None, callbacks: tuple[str, ...] = ()) -> None:
        self._port = free_port()
        self.issuer = f"http://{HOST}:{self._port}"
        self.client_secret = client_secret
        self.callbacks = callbacks
        self.people: dict[str, Claims] = {}
        self.requests: list[dict[str, str]] = []
        self.secrets_told: list[str] = []
        self.asked: dict[str, int] = {}
        self.description: dict[str, Any] = {}
        self.in_id_token: Claims = {}
        self.answer: Callable[[dict[str, Any]], web.Response] = lambda tokens: web.json_response(tokens)
        self.opaque_access_tokens = False
        self.takes_secrets: tuple[str, ...] = ("client_secret_basic", "client_secret_post")
        self._codes: dict[str, Code] = {}
        self._runner: web.AppRunner | None = None
        self._key, self._key_id = first_key(), "first"

    # Life ---------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens, on the same port every time."""
        app = web.Application()
        app.add_routes([
            web.get("/.well-known/openid-configuration", self._describe),
            web.get("/keys", self._keys),
            web.get("/authorize", self._ask),
            web.post("/authorize", self._decide),
            web.post("/token", self._exchange),
            web.get("/sign-out", self._ask_sign_out),
            web.post("/sign-out", self._sign_out),
        ])  # fmt: skip
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self._port).start()

    async def stop(self) -> None:
        """Is away; may be started again."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def change_key(self) -> None:
        """Signs with another key from now on, and tells that one alone."""
        self._key, self._key_id = rsa.generate_private_key(public_exponent=65_537, key_size=2048), secrets.token_hex(4)

    # Tokens -------------------------------------------------------------------------------------------------------------

    def sign(self, user: str, *, audience: str = CLIENT_ID, lifetime_s: int = 3600, **claims: Any) -> str:
        """A token of this user."""
        now = int(time.time())
        said = {"iss": self.issuer, "sub": user, "aud": audience, "iat": now, "exp": now + lifetime_s}
        whole = {**said, **self.people.get(user, {}), **claims}
        return jwt.encode(whole, self._key, algorithm="RS256", headers={"kid": self._key_id})

    @property
    def jwks_url(self) -> str:
        return f"{self.issuer}/keys"

    # What it answers ----------------------------------------------------------------------------------------------------

    async def _describe(self, _request: web.Request) -> web.Response:
        self._count("description")
        return web.json_response({
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": self.jwks_url,
            "end_session_endpoint": f"{self.issuer}/sign-out",
            "id_token_signing_alg_values_supported": ["RS256"],
            **self.description,
        })  # fmt: skip

    async def _keys(self, _request: web.Request) -> web.Response:
        self._count("keys")
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return web.json_response({"keys": [{**public, "kid": self._key_id, "use": "sig", "alg": "RS256"}]})

    async def _ask(self, request: web.Request) -> web.Response:
        asked = dict(request.query)
        self.requests.append(asked)
        if asked.get("client_id") != CLIENT_ID or asked.get("redirect_uri") not in self.callbacks:
            return web.Response(status=400, text="This client, or its address, is not known here.")
        wanted = {"response_type": "code", "code_challenge_method": "S256"}
        good = all(asked.get(name) == value for name, value in wanted.items()) and "openid" in asked["scope"].split()
        if not good or not asked.get("nonce") or not asked.get("code_challenge"):
            return self._back(asked, error="invalid_request")
        if user := request.cookies.get(_SESSION):
            return self._back(asked, code=self._code(user, asked))
        return _page(
            "Your account",
            '<label>Name <input name="user"></label><button name="does" value="agree">Agree</button>'
            '<button name="does" value="refuse">Refuse</button>',
        )

    async def _decide(self, request: web.Request) -> web.Response:
        asked, form = dict(request.query), await request.post()
        if form["does"] == "refuse":
            return self._back(asked, error="access_denied", error_description="<b>no</b>")
        response = self._back(asked, code=self._code(str(form["user"]), asked))
        response.set_cookie(_SESSION, str(form["user"]), httponly=True, samesite="Lax")
        return response

    async def _exchange(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.secrets_told += [form.get("code", ""), form.get("code_verifier", "")]
        if not self._is_client(request, form):
            return web.json_response({"error": "invalid_client"}, status=401)
        code = self._codes.pop(form.get("code", ""), None)
        if code is None or form.get("redirect_uri") != code.request["redirect_uri"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        if challenge_of(form.get("code_verifier", "")) != code.request["code_challenge"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        access_token = secrets.token_urlsafe(24)
        if not self.opaque_access_tokens:
            access_token = self.sign(code.user, audience=code.request.get("audience", "elsewhere"))
        id_token = self.sign(code.user, **{"nonce": code.request["nonce"], **self.in_id_token})
        self.secrets_told += [access_token, id_token]
        return self.answer({"access_token": access_token, "id_token": id_token, "token_type": "Bearer"})

    async def _ask_sign_out(self, request: web.Request) -> web.Response:
        if request.query.get("client_id") != CLIENT_ID:
            return web.Response(status=400, text="This client is not known here.")
        return _page("Sign out?", "<button>Yes</button>")

    async def _sign_out(self, request: web.Request) -> web.Response:
        response = web.Response(status=303, headers={"Location": request.query["post_logout_redirect_uri"]})
        response.del_cookie(_SESSION)
        return response

    def _is_client(self, request: web.Request, form: dict[str, str]) -> bool:
        if self.client_secret is None:
            return form.get("client_id") == CLIENT_ID
        way, told = "client_secret_post", (form.get("client_id"), form.get("client_secret"))
        if header := request.headers.get("Authorization"):
            basic = BasicAuth.decode(header)
            way, told = "client_secret_basic", (basic.login, basic.password)
        return way in self.takes_secrets and told == (CLIENT_ID, self.client_secret)

    def _code(self, user: str, asked: dict[str, str]) -> str:
        code = secrets.token_urlsafe(24)
        self._codes[code] = Code(user, asked)
        return code

    def _back(self, asked: dict[str, str], **said: str) -> web.Response:
        address = f"{asked['redirect_uri']}?{urlencode({**said, 'state': asked['state']})}"
        return web.Response(status=303, headers={"Location": address})

    def _count(self, what: str) -> None:
        self.asked[what] = self.asked.get(what, 0) + 1


@cache
def first_key() -> rsa.RSAPrivateKey:
    """The key of every provider until it changes it: making one takes a while."""
    return rsa.generate_private_key(public_exponent=65_537, key_size=2048)


def challenge_of(verifier: str) -> str:
    """The S256 challenge of a verifier (RFC 7636)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _page(title: str, fields: str) -> web.Response:
    head = f'<!doctype html><html lang="en"><title>{html.escape(title)}</title><link rel="icon" href="data:,">'
    return web.Response(text=f'{head}<h1>{title}</h1><form method="post">{fields}</form>', content_type="text/html")
