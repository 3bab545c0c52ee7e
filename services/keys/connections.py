"""Connecting a key: upstream is asked, then the key is stored in place of the owner's former one.

In place and in one transaction: whoever leases meanwhile gets the former key or the new one, never none. Runs with the
former key finish with it.
"""

from __future__ import annotations

from pydantic import SecretStr

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import AccessAction, Health, KeysChanged
from contracts.subjects import KEYS_CHANGED
from services.keys.envelope import hint_of, lock, mode_of
from services.keys.facts import KeyFacts, Refusal
from services.keys.guards.limits import Limits
from services.keys.store import Store, StoredKey
from services.keys.verify import Verifier
from services.runtime.bus import Bus
from services.runtime.sealing import Keyring

KEYS_URL = "https://openrouter.ai/settings/keys"
CREDITS_URL = "https://openrouter.ai/settings/credits"


class Connections:
    """Connects and replaces keys."""

    def __init__(self, bus: Bus, store: Store, keyring: Keyring, verifier: Verifier, limits: Limits) -> None:
        self._bus = bus
        self._store = store
        self._keyring = keyring
        self._verifier = verifier
        self._limits = limits

    async def connect(self, owner: str, key: SecretStr) -> StoredKey:
        """Verify and store a key that somebody hands over.

        Raises ServiceError KEY_REJECTED, CREDITS_EXHAUSTED or SPEND_LIMIT for a key that upstream refuses, which changes
        nothing; RATE_LIMITED for an owner who tries too often; UNAVAILABLE or UPSTREAM without a verdict.
        """
        await self._limits.admit(owner, "connect")
        # Counted before it is known: guesses made at once must not all find room for one.
        guess = await self._limits.admit(owner, "guess")
        try:
            facts = await self._verifier.ask(key)
        except BaseException:
            await self._limits.take_back(owner, guess)
            raise
        if isinstance(facts, Refusal):
            async with self._store.rows_of(owner) as rows:
                action: AccessAction = "connect" if await rows.key() is None else "replace"
                await rows.log_access(action, "refused", instance=self._bus.instance, version=None)
            raise _refused(facts)
        await self._limits.take_back(owner, guess)
        return await self._store_key(owner, key, facts)

    async def connect_made(self, owner: str, key: SecretStr) -> StoredKey:
        """Store a key that upstream has just made for this owner.

        It is kept because of where it comes from, whatever upstream says of it yet: lost, it would be a key that its owner
        has to find and delete. What upstream does not accept at once is asked about again within minutes, and is suspect
        meanwhile. Raises ServiceError KEY_REJECTED for a management key.
        """
        try:
            facts = await self._verifier.ask(key)
        except ServiceError as error:
            if error.code not in {ErrorCode.UNAVAILABLE, ErrorCode.UPSTREAM}:
                raise
            return await self._store_key(owner, key, KeyFacts(), "suspect")
        match facts:
            case Refusal.MANAGEMENT_KEY:
                raise _refused(facts)
            case Refusal.UNKNOWN_KEY:
                return await self._store_key(owner, key, KeyFacts(), "suspect")
            case Refusal.NO_CREDITS | Refusal.SPEND_LIMIT:
                return await self._store_key(owner, key, KeyFacts(), "exhausted")
        return await self._store_key(owner, key, facts)

    async def _store_key(self, owner: str, key: SecretStr, facts: KeyFacts, health: Health | None = None) -> StoredKey:
        async with self._store.rows_of(owner) as rows:
            version = await rows.next_version()
            former = await rows.key()
            envelope = lock(key, owner, version, self._keyring)
            stored = await rows.put(envelope, mode_of(key), hint_of(key), facts, health)
            action: AccessAction = "connect" if former is None else "replace"
            await rows.log_access(action, "done", instance=self._bus.instance, version=version)
        change = KeysChanged(owner=owner, version=version, change="connected" if former is None else "replaced")
        await self._bus.publish(KEYS_CHANGED, change)
        return stored


def _refused(refusal: Refusal) -> ServiceError:
    match refusal:
        case Refusal.UNKNOWN_KEY:
            return ServiceError(
                ErrorCode.KEY_REJECTED,
                "OpenRouter does not accept this key: check that it is complete and not revoked, or create a new one.",
                action_url=KEYS_URL,
            )
        case Refusal.MANAGEMENT_KEY:
            return ServiceError(
                ErrorCode.KEY_REJECTED,
                "This is a management key, which cannot run models: create an ordinary API key and connect that.",
                action_url=KEYS_URL,
            )
        case Refusal.NO_CREDITS:
            return ServiceError(
                ErrorCode.CREDITS_EXHAUSTED,
                "The OpenRouter account of this key has no credits: add some, then connect the key again.",
                action_url=CREDITS_URL,
            )
    return ServiceError(
        ErrorCode.SPEND_LIMIT,
        "This key has reached its own spending limit: raise it at OpenRouter, then connect the key again.",
        action_url=KEYS_URL,
    )
