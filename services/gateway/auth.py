"""Who is asking: a JWT becomes an identity, or a 401 with a sentence that says what to do.

One algorithm family per deployment, never both: HS256 with a shared secret, or asymmetric signatures with the keys of a
JWKS document (Supabase, any OIDC issuer). Accepting both would let a public key be used as an HMAC secret. What an
identity may do is decided behind the bus, where the facts are.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import jwt
import structlog
from pydantic import TypeAdapter, ValidationError

from contracts.base import UserId
from contracts.errors import ErrorCode, ServiceError

log = structlog.get_logger()

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_KEYS_LIFETIME_S = 600
_REFETCH_PAUSE_S = 10
_FETCH_TIMEOUT_S = 5
_MAX_TOKEN_CHARS = 8192
# Checking a signature costs as much as all the rest of a short request. A withdrawn signing key works this much longer.
_REMEMBERED_S = 60.0
_MOST_REMEMBERED = 2048
_USER_ID: TypeAdapter[str] = TypeAdapter(UserId)


@dataclass(frozen=True)
class Identity:
    """The user of a request."""

    user: str
    admin: bool


def _refused(sentence: str) -> ServiceError:
    return ServiceError(ErrorCode.UNAUTHENTICATED, sentence)


def bearer_token(authorization: str | None) -> str:
    """The token of an `Authorization` header. Raises UNAUTHENTICATED when there is none."""
    if not authorization:
        raise _refused("Send a token with the request: the header Authorization: Bearer <JWT>.")
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN_CHARS:
        raise _refused("The Authorization header is not readable; send it as Bearer <JWT>.")
    return token


class SigningKeys:
    """The public keys of a JWKS address, kept for ten minutes, and asked for again when a token names an unknown one."""

    def __init__(self, url: str) -> None:
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_FETCH_TIMEOUT_S)
        self._keys: list[jwt.PyJWK] = []
        # Of the latest question, answered or not: an issuer that is down is not asked again by every request.
        self._asked_at = -float("inf")
        self._lock = asyncio.Lock()

    async def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of this id; without an id the only key there is. Raises UNAVAILABLE when no key can be had at all."""
        age_s = time.monotonic() - self._asked_at
        found = self._known(key_id)
        if age_s > _KEYS_LIFETIME_S or (found is None and age_s > _REFETCH_PAUSE_S):
            await self._refresh()
            found = self._known(key_id)
        if not self._keys:
            raise ServiceError(
                ErrorCode.UNAVAILABLE, "Tokens cannot be checked at the moment; try again.", retry_after_s=5
            )
        return found

    def _known(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == key_id), None)

    async def _refresh(self) -> None:
        async with self._lock:
            if time.monotonic() - self._asked_at < _REFETCH_PAUSE_S:
                return
            try:
                document = await asyncio.to_thread(self._client.get_jwk_set)
            except jwt.PyJWTError as error:
                # Old keys are better than none; the issuer is asked again after the pause.
                log.warning("signing_keys_unreachable", error=type(error).__name__)
            else:
                self._keys = [key for key in document.keys if key.algorithm_name in ASYMMETRIC]
            self._asked_at = time.monotonic()


class Verifier:
    """Checks tokens. Give `secret` or `jwks_url`, not both."""

    def __init__(
        self, *, issuer: str, audience: str, admin_role: str, secret: str | None = None, jwks_url: str | None = None
    ) -> None:
        if (secret is None) == (jwks_url is None):
            raise ValueError("give either JWT_SECRET or JWKS_URL: one family of signatures, never both")
        self._issuer = issuer
        self._audience = audience
        self._admin_role = admin_role
        self._secret = secret
        self._signing_keys = SigningKeys(jwks_url) if jwks_url is not None else None
        self._remembered: dict[str, tuple[Identity, float]] = {}

    async def identify(self, authorization: str | None) -> Identity:
        """The identity behind an `Authorization` header. Raises UNAUTHENTICATED with a sentence that says what to do."""
        token = bearer_token(authorization)
        identity, until = self._remembered.get(token, (None, 0.0))
        if identity is None or time.time() >= until:
            identity = await self._check(token)
        return identity

    async def _check(self, token: str) -> Identity:
        self._remembered.pop(token, None)
        try:
            claims = await self._claims(token)
        except jwt.ExpiredSignatureError:
            raise _refused("The token has expired; sign in again and send the new one.") from None
        except jwt.ImmatureSignatureError:
            raise _refused("The token is not valid yet; check the clock of whoever issued it.") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError):
            raise _refused("The token was issued by or for somebody else; sign in here and send that token.") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"The token lacks the claim {error.claim}; sign in here and send that token.") from None
        except jwt.InvalidAlgorithmError:
            raise _refused("The token is signed in a way that is not accepted here; sign in again.") from None
        except jwt.InvalidSignatureError:
            raise _refused("The token's signature is not ours; sign in here and send that token.") from None
        except jwt.PyJWTError:
            raise _refused("The token is not a readable JWT; sign in again and send the new one.") from None
        identity = self._identity(claims)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[token] = (identity, min(float(claims["exp"]), time.time() + _REMEMBERED_S))
        return identity

    async def _claims(self, token: str) -> dict[str, Any]:
        key: Any = self._secret
        algorithms = ["HS256"]
        if self._signing_keys is not None:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ASYMMETRIC:
                raise jwt.InvalidAlgorithmError
            found = await self._signing_keys.find(header.get("kid"))
            if found is None:
                raise jwt.InvalidSignatureError
            key, algorithms = found, [found.algorithm_name]
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            issuer=self._issuer,
            audience=self._audience,
            # `iat` decides nothing, and issuers' clocks run a second ahead of ours.
            options={"require": ["exp", "iss", "aud", "sub"], "verify_iat": False},
        )
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        try:
            user = _USER_ID.validate_python(claims["sub"])
        except ValidationError:
            raise _refused(
                "The token's sub is not usable as a user id: 1 to 200 characters, no spaces, no slashes."
            ) from None
        metadata = claims.get("app_metadata")
        roles = [*_roles(claims), *(_roles(metadata) if isinstance(metadata, dict) else [])]
        return Identity(user, admin=self._admin_role in roles)


def _roles(claims: dict[str, Any]) -> list[Any]:
    role = claims.get("role")
    return role if isinstance(role, list) else [role]
