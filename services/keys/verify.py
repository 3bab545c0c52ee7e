"""Asks upstream about a key with `GET /key`, which is free, and about the account's credits where the key may read them. The
answer is facts or a clear refusal; everything that is neither (no answer, an outage, nonsense) is raised, because it says
nothing about the key.

No exception that leaves here has the request, and with it the key, in its chain.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

import httpx
from pydantic import SecretStr

from contracts.errors import ErrorCode, ServiceError, invalid
from services.keys.envelope import mode_of
from services.keys.facts import KeyFacts, Refusal, is_spend_limit, read_credits, read_facts
from services.runtime.cookies import no_cookies

TIMEOUT_S = 10
_CREDITS_TIMEOUT_S = 3
_RETRY_AFTER_S = 10


class Verifier:
    """The upstream of live keys, and the sandbox of test keys where one is configured. Base URLs end in `/api/v1`."""

    def __init__(self, live_url: str, sandbox_url: str | None) -> None:
        self._urls = {"live": live_url, "test": sandbox_url}
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, cookies=no_cookies())

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, key: SecretStr) -> KeyFacts | Refusal:
        """What upstream says about the key.

        Raises ServiceError INVALID for a test key where there is no test mode, UNAVAILABLE when upstream cannot be
        reached or is overloaded, UPSTREAM when its answer makes no sense.
        """
        base = self._urls[mode_of(key)]
        if base is None:
            raise invalid("api_key", "Test keys do not work here: connect a live OpenRouter key.")
        base = base.rstrip("/")
        response = await self._get(f"{base}/key", key, TIMEOUT_S)
        match response.status_code:
            case 200:
                try:
                    facts = read_facts(response.content)
                except ValueError:
                    raise _nonsense() from None
                if isinstance(facts, Refusal):
                    return facts
                return facts.model_copy(update={"credits_remaining": await self._credits(base, key)})
            case 401:
                return Refusal.UNKNOWN_KEY
            case 402 | 403 if is_spend_limit(response.content):
                return Refusal.SPEND_LIMIT
            case 402:
                return Refusal.NO_CREDITS
            case 408 | 429:
                raise _unreachable()
            case status if status >= 500:
                raise _unreachable()
            case _:
                raise _nonsense()

    async def _credits(self, base: str, key: SecretStr) -> Decimal | None:
        """What the account has left, or None: most keys may not read it, and nothing depends on it."""
        try:
            response = await self._get(f"{base}/credits", key, _CREDITS_TIMEOUT_S)
        except ServiceError:
            return None
        return read_credits(response.content) if response.status_code == 200 else None

    async def _get(self, url: str, key: SecretStr, timeout_s: float) -> httpx.Response:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.get(url, headers={"Authorization": f"Bearer {key.get_secret_value()}"})
        except (httpx.HTTPError, TimeoutError):
            raise _unreachable() from None


def _unreachable() -> ServiceError:
    return ServiceError(
        ErrorCode.UNAVAILABLE,
        "OpenRouter cannot be asked about the key at the moment; nothing was changed. Try again shortly.",
        retry_after_s=_RETRY_AFTER_S,
    )


def _nonsense() -> ServiceError:
    return ServiceError(
        ErrorCode.UPSTREAM,
        "OpenRouter gave no usable answer about the key; nothing was changed. Try again shortly.",
        retry_after_s=_RETRY_AFTER_S,
    )
