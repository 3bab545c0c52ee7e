"""Signing in at an identity provider: OpenID Connect, the code flow with PKCE, state and nonce.

Authlib speaks the protocol; here stands what the console wants of it. The provider describes itself
(`/.well-known/openid-configuration`) and is asked when somebody signs in, never at the start: a console comes up while its
provider is away, and learns what changed there without a restart.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx2
import orjson
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.console.cookies import claims_of

Told = TypeVar("Told")
CALLBACK_PATH = "/sign-in/callback"
"""Where the provider sends the browser back to; it has to know this address."""
_TIMEOUT = httpx2.Timeout(10, connect=5)
# Who begins a sign-in hears whether the provider is there; whatever visitors do, it is asked once in this time.
_FRESH_S = 1.0
_KEPT_S = 600.0
_LEEWAY_S = 60
# No HS256: the client's secret is no key that the provider alone has.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")


class Failure(StrEnum):
    """Why nobody was signed in; it stands in the address of the sign-in page."""

    DENIED = "denied"
    LOST = "lost"
    AWAY = "away"
    SETTINGS = "settings"
    REFUSED = "refused"
    TOO_LONG = "too-long"
    UNAVAILABLE = "unavailable"


# The errors of RFC 6749 and OpenID Connect. Everything else means that the two sides are not set up for each other.
_FAILURES = {
    "access_denied": Failure.DENIED,
    "login_required": Failure.DENIED,
    "consent_required": Failure.DENIED,
    "interaction_required": Failure.DENIED,
    "account_selection_required": Failure.DENIED,
    "invalid_grant": Failure.LOST,
    "temporarily_unavailable": Failure.AWAY,
    "server_error": Failure.AWAY,
    "invalid_request": Failure.SETTINGS,
    "invalid_client": Failure.SETTINGS,
    "invalid_scope": Failure.SETTINGS,
    "unauthorized_client": Failure.SETTINGS,
    "unsupported_response_type": Failure.SETTINGS,
    "unsupported_grant_type": Failure.SETTINGS,
}


class SignInError(Exception):
    """A sign-in that failed. `cause` is for the log: a word of ours or of a standard, never something that was sent."""

    def __init__(self, failure: Failure, cause: str) -> None:
        super().__init__(failure)
        self.failure = failure
        self.cause = cause


def error_of(code: str) -> SignInError:
    """What an error code of the provider means."""
    return SignInError(
        _FAILURES.get(code, Failure.SETTINGS), code if code in _FAILURES else "an error without a standard"
    )


class Attempt(BaseModel):
    """One sign-in that is under way, and what the browser keeps of it. `target` is where to go afterwards."""

    model_config = ConfigDict(frozen=True)

    state: str
    nonce: str
    verifier: str
    target: str
    begun_at: int


Address = Annotated[str, Field(pattern="^https?://")]


class _About(BaseModel):
    """What a provider says of itself, as far as it is used here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    issuer: Address
    authorization_endpoint: Address
    token_endpoint: Address
    jwks_uri: Address
    end_session_endpoint: Address | None = None
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic"]

    @property
    def insecure(self) -> bool:
        """Whether an https issuer sends us to where everybody listens."""
        used = (self.authorization_endpoint, self.token_endpoint, self.jwks_uri)
        return self.issuer.startswith("https:") and not all(each.startswith("https:") for each in used)


class _Kept(Generic[Told]):
    """Something that the provider tells, and when it was asked."""

    def __init__(self, ask: Callable[[], Awaitable[Told]]) -> None:
        self._ask = ask
        self._told: Told | None = None
        self._failed: SignInError | None = None
        self._asked_at = -float("inf")
        self._lock = asyncio.Lock()

    async def within(self, age_s: float) -> Told:
        """What it told, at most this old. Raises `SignInError`, and does so for a moment without asking again."""
        async with self._lock:
            age = time.monotonic() - self._asked_at
            if self._failed is not None and age <= _FRESH_S:
                raise SignInError(self._failed.failure, self._failed.cause)
            if self._told is None or age > age_s:
                try:
                    self._told, self._failed = await self._ask(), None
                except SignInError as error:
                    self._told, self._failed = None, error
                    raise
                finally:
                    self._asked_at = time.monotonic()
            return self._told


class Provider:
    """The identity provider of this console.

    Without `audience` the ID token is what the gateway gets, which is for `client_id`. With it the provider is asked for an
    access token for that audience, and that goes to the gateway; it must be a JWT.
    """

    def __init__(
        self,
        *,
        issuer: str,
        client_id: str,
        client_secret: str | None,
        scopes: str,
        audience: str | None,
        callback: str,
    ) -> None:
        self.host = urlsplit(issuer).netloc
        self._issuer = issuer.rstrip("/")
        self._client_id = client_id
        self._client_secret = client_secret
        self._scopes = scopes
        self._audience = audience
        self._callback = callback
        self._tls = httpx2.create_ssl_context()
        self._http = httpx2.AsyncClient(timeout=_TIMEOUT, verify=self._tls)
        self._about = _Kept(self._ask_about)
        self._keys = _Kept(self._ask_keys)

    async def close(self) -> None:
        await self._http.aclose()

    async def begin(self, target: str) -> tuple[str, Attempt]:
        """Where to send the browser, and the sign-in that begins with it. Raises `SignInError` when the provider is away."""
        about = await self._about.within(_FRESH_S)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        attempt = Attempt(state=state, nonce=nonce, verifier=verifier, target=target, begun_at=int(time.time()))
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                about.authorization_endpoint,
                state=state,
                nonce=nonce,
                code_verifier=verifier,
                audience=self._audience,
            )
        return str(url), attempt

    async def complete(self, attempt: Attempt, code: str) -> str:
        """The token for the gateway, in exchange for the code of this sign-in. Raises `SignInError`."""
        about = await self._about.within(_KEPT_S)
        tokens = await self._exchange(about, attempt, code)
        await self._check(about, tokens, attempt.nonce)
        if self._audience is None:
            return str(tokens["id_token"])
        token = str(tokens.get("access_token", ""))
        if not claims_of(token):
            raise SignInError(Failure.SETTINGS, "the access token is no JWT")
        return token

    async def sign_out_url(self, return_to: str) -> str | None:
        """Where one signs out of the provider; None where it does not offer that. Raises `SignInError`.

        Without the ID token as a hint, which would stand in an address: the provider asks whether it is meant.
        """
        url = (await self._about.within(_KEPT_S)).end_session_endpoint
        if url is None:
            return None
        query = urlencode({"client_id": self._client_id, "post_logout_redirect_uri": return_to})
        return f"{url}{'&' if '?' in url else '?'}{query}"

    def _client(self, method: str = "none") -> AsyncOAuth2Client:
        return AsyncOAuth2Client(
            self._client_id,
            self._client_secret,
            token_endpoint_auth_method=method,
            scope=self._scopes,
            redirect_uri=self._callback,
            code_challenge_method="S256",
            timeout=_TIMEOUT,
            verify=self._tls,
        )

    def _methods(self, about: _About) -> list[str]:
        """How to show the secret: providers take it one way, or either, or the way that was chosen when registering."""
        if self._client_secret is None:
            return ["none"]
        ways = ("client_secret_basic", "client_secret_post")
        return [way for way in ways if way in about.token_endpoint_auth_methods_supported] or [ways[0]]

    async def _exchange(self, about: _About, attempt: Attempt, code: str) -> dict[str, Any]:
        refused = ""
        for method in self._methods(about):
            try:
                async with self._client(method) as client:
                    return dict(
                        await client.fetch_token(about.token_endpoint, code=code, code_verifier=attempt.verifier)
                    )
            except OAuthError as error:
                refused = str(error.error)
                if refused != "invalid_client":
                    break
            except httpx2.HTTPError as error:
                raise _unreachable(error) from None
            except ValueError:
                raise SignInError(Failure.SETTINGS, "the answer with the tokens cannot be read") from None
        raise error_of(refused)

    async def _check(self, about: _About, tokens: dict[str, Any], nonce: str) -> None:
        try:
            try:
                self._validate(about, await self._keys.within(_KEPT_S), tokens, nonce)
            except InvalidKeyIdError:
                self._validate(about, await self._keys.within(_FRESH_S), tokens, nonce)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            claim = getattr(error, "claim", None)
            cause = f"the ID token: {type(error).__name__}" + (f" {claim}" if claim else "")
            raise SignInError(Failure.SETTINGS, cause) from None

    def _validate(self, about: _About, keys: KeySet, tokens: dict[str, Any], nonce: str) -> None:
        registry = JWSRegistry(algorithms=_ALGORITHMS, strict_check_header=False)
        token = jwt.decode(tokens["id_token"], keys, registry=registry)
        wanted = {
            "iss": {"essential": True, "value": about.issuer},
            "aud": {"essential": True, "value": self._client_id},
        }
        known = {"nonce": nonce, "client_id": self._client_id, "access_token": tokens.get("access_token")}
        CodeIDToken(token.claims, token.header, wanted, known).validate(leeway=_LEEWAY_S)

    async def _ask_about(self) -> _About:
        try:
            about = _About.model_validate_json(await self._ask(f"{self._issuer}/.well-known/openid-configuration"))
        except ValidationError:
            raise SignInError(Failure.SETTINGS, "the provider's description of itself cannot be read") from None
        if about.issuer.rstrip("/") != self._issuer:
            raise SignInError(Failure.SETTINGS, "the provider calls itself by another issuer than OIDC_ISSUER")
        if about.insecure:
            raise SignInError(Failure.SETTINGS, "the provider names addresses without https")
        return about

    async def _ask_keys(self) -> KeySet:
        content = await self._ask((await self._about.within(_KEPT_S)).jwks_uri)
        try:
            return KeySet.import_key_set(orjson.loads(content))
        except (JoseError, ValueError, KeyError, TypeError):
            raise SignInError(Failure.SETTINGS, "the provider's keys cannot be read") from None

    async def _ask(self, url: str) -> bytes:
        try:
            response = await self._http.get(url)
            response.raise_for_status()
        except httpx2.HTTPError as error:
            raise _unreachable(error) from None
        return response.content


def _unreachable(error: httpx2.HTTPError) -> SignInError:
    if isinstance(error, httpx2.HTTPStatusError) and not error.response.is_server_error:
        return SignInError(Failure.SETTINGS, f"the provider answered {error.response.status_code}")
    return SignInError(Failure.AWAY, type(error).__name__)
