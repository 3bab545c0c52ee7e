"""The service's own key pairs: whoever hands a provider key over seals it to the one of today.

A pair lives for one UTC day and is accepted for an hour after it, so that what was sealed just before midnight still
opens; then it is erased. It lies in Postgres locked under the master key, since any replica may get what was sealed to
another; replicas that make one at the same moment end up with the same.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from contracts.errors import invalid
from services.keys.envelope import EnvelopeError
from services.keys.store import Store, StoredRecipient
from services.runtime.sealing import Keyring, Locked, RecipientKey

_GRACE = timedelta(hours=1)
_HOUSEKEEPING_S = 600


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Recipients:
    """Hands out the key pair of today and opens what was sealed to it or to its predecessor."""

    def __init__(self, store: Store, keyring: Keyring, now: Callable[[], datetime] = _utc_now) -> None:
        self._store = store
        self._keyring = keyring
        self._now = now

    async def current(self) -> RecipientKey:
        """Raises EnvelopeError when the ring has another key under the id of its active one than it had before, or lacks
        the one that rotation has put the pair under."""
        today = self._now().date()
        while (stored := await self._store.recipient_of(today, self._keyring.active_id)) is None:
            pair = RecipientKey.generate(secrets.token_hex(16))
            locked = self._keyring.encrypt(pair.private_bytes, _bound(pair.key_id))
            made = StoredRecipient(pair.key_id, today, locked.key_id, locked.key_id, locked.blob)
            await self._store.offer_recipient(made)
        return unlock_pair(stored, self._keyring)

    async def open(self, key_id: str, sealed: str, context: str) -> bytes:
        """Raises ServiceError INVALID when it is sealed to no key of ours, or not for this context."""
        stored = await self._store.recipient_named(key_id)
        if stored is None or stored.day < self._oldest_accepted() or stored.master_key_id not in self._keyring:
            raise invalid(
                "recipient_key_id", "The key was sealed to a public key that is not valid any more; fetch it again."
            )
        return unlock_pair(stored, self._keyring).open(sealed, context)

    async def keep_fresh(self) -> None:
        """Erase in time what may not be opened any more, and have the pair of the day before it is asked for."""
        while True:
            await self._store.erase_recipients_before(self._oldest_accepted())
            await self.current()
            await asyncio.sleep(_HOUSEKEEPING_S)

    def _oldest_accepted(self) -> date:
        return (self._now() - _GRACE).date()


def unlock_pair(stored: StoredRecipient, keyring: Keyring) -> RecipientKey:
    """Raises EnvelopeError when the ring has no such master key, or another one under its id."""
    try:
        private_bytes = keyring.decrypt(stored.master_key_id, stored.wrapped_private_key, _bound(stored.key_id))
    except KeyError:
        raise EnvelopeError(f"master key {stored.master_key_id!r} is not in the ring") from None
    except ValueError:
        raise EnvelopeError(
            f"master key {stored.master_key_id!r} does not open what was locked under that id"
        ) from None
    return RecipientKey.from_private_bytes(stored.key_id, private_bytes)


def rewrap_pair(stored: StoredRecipient, keyring: Keyring) -> Locked:
    """The private half under the ring's active master key. Raises EnvelopeError as `unlock_pair`."""
    return keyring.encrypt(unlock_pair(stored, keyring).private_bytes, _bound(stored.key_id))


def _bound(key_id: str) -> bytes:
    return json.dumps(["x402jobs", "recipient", key_id]).encode()
