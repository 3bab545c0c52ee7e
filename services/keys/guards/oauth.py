"""Connecting without pasting a key: OAuth with PKCE, as OpenRouter has it.

We keep the verifier, the browser carries the state and the code. The state is a nonce of ours inside the callback's address,
since OpenRouter documents no `state` parameter; it is kept as a hash, works once, for ten minutes, and only for the user who
began. So nobody can bind a key to somebody else's account, and nobody's code is worth anything without what lies here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Collection
from datetime import timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
from pydantic import SecretStr

from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.keys import BeginOAuth, CompleteOAuth, OAuthBegun
from services.keys.envelope import read_key
from services.keys.guards.limits import Limits
from services.keys.store import Store
from services.runtime.cookies import no_cookies
from services.runtime.sealing import Keyring

LIFETIME = timedelta(minutes=10)
TIMEOUT_S = 10
METHOD = "S256"
_STATE = "state"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def challenge_of(verifier: str) -> str:
    """The S256 challenge of RFC 7636."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def callback_with(state: str, callback_url: str, allowed_origins: Collection[str]) -> str:
    """The callback's address with our state in it.

    Raises ServiceError INVALID unless it is https at an allowed origin, or plain http at this very machine.
    """
    try:
        parts = urlsplit(callback_url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise invalid("callback_url", "This is not an address.") from None
    plain = callback_url.isascii() and callback_url.isprintable() and " " not in callback_url
    if not plain or "\\" in callback_url or parts.username is not None or parts.password is not None or parts.fragment:
        raise invalid("callback_url", "Give a plain address, without a user name and without a fragment.")
    origin = f"{parts.scheme}://{parts.netloc.lower()}"
    local = parts.scheme == "http" and host in _LOOPBACK and port != 0
    if not local and not (parts.scheme == "https" and host and origin in allowed_origins):
        raise invalid(
            "callback_url", "OpenRouter may send people back to localhost, or to https addresses allowed here, only."
        )
    query = parse_qsl(parts.query, keep_blank_values=True)
    if any(name in {_STATE, "code"} for name, _ in query):
        raise invalid("callback_url", "Leave the parameters state and code to us.")
    return urlunsplit(parts._replace(query=urlencode([*query, (_STATE, state)])))


def exchange_base(auth_url: str, live_url: str, sandbox_url: str | None) -> str:
    """Where codes of this authorization page are exchanged: at the sandbox for the sandbox's own page."""
    if sandbox_url is not None and urlsplit(auth_url).netloc == urlsplit(sandbox_url).netloc:
        return sandbox_url.rstrip("/")
    return live_url.rstrip("/")


class Authorizations:
    """Authorizations under way. `auth_url` is the page where people agree, `base_url` ends in `/api/v1`."""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        limits: Limits,
        *,
        auth_url: str,
        base_url: str,
        allowed_origins: Collection[str],
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._limits = limits
        self._auth_url = auth_url
        self._base_url = base_url
        self._allowed_origins = allowed_origins
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, cookies=no_cookies())

    async def close(self) -> None:
        await self._client.aclose()

    async def begin(self, request: BeginOAuth) -> OAuthBegun:
        """Where to send the browser. Without a callback OpenRouter shows the code, to be copied."""
        state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(64)
        query = {"code_challenge": challenge_of(verifier), "code_challenge_method": METHOD}
        if request.callback_url is not None:
            query = {"callback_url": callback_with(state, request.callback_url, self._allowed_origins), **query}
        await self._limits.admit(request.owner, "oauth")
        state_hash = _hash(state)
        locked = self._keyring.encrypt(verifier.encode(), _bound(request.owner, state_hash))
        async with self._store.rows_of(request.owner) as rows:
            expires_at = await rows.put_authorization(state_hash, locked, LIFETIME)
        return OAuthBegun(authorize_url=f"{self._auth_url}?{urlencode(query)}", state=state, expires_at=expires_at)

    async def complete(self, request: CompleteOAuth) -> SecretStr:
        """The key that OpenRouter made.

        Raises ServiceError NOT_FOUND unless this user began it, lately, and did not complete it before; INVALID when
        OpenRouter does not take the code; UNAVAILABLE or UPSTREAM when it gives no key.
        """
        state_hash = _hash(request.state)
        async with self._store.rows_of(request.owner) as rows:
            locked = await rows.take_authorization(state_hash)
        if locked is None:
            raise _begin_again(ErrorCode.NOT_FOUND, "There is no such authorization of yours under way any more")
        try:
            verifier = self._keyring.decrypt(locked.key_id, locked.blob, _bound(request.owner, state_hash)).decode()
        except (KeyError, ValueError):
            raise _begin_again(ErrorCode.NOT_FOUND, "This authorization cannot be completed any more") from None
        return await self._exchange(request.code, verifier)

    async def _exchange(self, code: str, verifier: str) -> SecretStr:
        body = {"code": code, "code_verifier": verifier, "code_challenge_method": METHOD}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                response = await self._client.post(f"{self._base_url}/auth/keys", json=body)
        except (httpx.HTTPError, TimeoutError):
            raise _begin_again(ErrorCode.UNAVAILABLE, "OpenRouter cannot be reached at the moment") from None
        match response.status_code:
            case 200:
                return _key_in(response.content)
            case 400 | 403 | 404:
                raise _begin_again(
                    ErrorCode.INVALID, "OpenRouter does not take this code: it is wrong, used or too old"
                )
            case 408 | 429:
                raise _begin_again(ErrorCode.UNAVAILABLE, "OpenRouter takes no more requests at the moment")
            case status if status >= 500:
                raise _begin_again(ErrorCode.UNAVAILABLE, "OpenRouter cannot answer at the moment")
            case _:
                raise _begin_again(ErrorCode.UPSTREAM, "OpenRouter gave no usable answer")


async def relock_verifiers(store: Store, keyring: Keyring) -> int:
    """Lock the verifiers of all authorizations under way under the active master key; how many.

    One that does not open stays where it is, and ends with its authorization.
    """
    done = 0
    for owner in await store.authorizing_outside(keyring.active_id):
        async with store.rows_of(owner) as rows:
            for state_hash, locked in await rows.verifiers_outside(keyring.active_id):
                bound = _bound(owner, state_hash)
                try:
                    verifier = keyring.decrypt(locked.key_id, locked.blob, bound)
                except (KeyError, ValueError):
                    continue
                await rows.relock_verifier(state_hash, keyring.encrypt(verifier, bound))
                done += 1
    return done


def _key_in(body: bytes) -> SecretStr:
    try:
        return read_key(json.loads(body)["key"].encode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ServiceError):
        raise _begin_again(ErrorCode.UPSTREAM, "OpenRouter gave no usable answer") from None


def _begin_again(code: ErrorCode, what: str) -> ServiceError:
    # A code works once: the same request can never succeed again.
    return ServiceError(code, f"{what}; nothing was connected. Begin to connect again.", retryable=False)


def _hash(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()


def _bound(owner: str, state_hash: bytes) -> bytes:
    return json.dumps(["x402jobs", "oauth-verifier", owner, state_hash.hex()]).encode()
