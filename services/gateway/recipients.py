"""Hands a provider key over: sealed to the keys service before it touches the bus, and forgotten.

The recipient's public key is kept for some minutes; when the keys service no longer knows it, it is fetched anew once.
"""

from __future__ import annotations

import time

from contracts.base import Empty
from contracts.errors import ErrorCode, ServiceError
from contracts.keys import ConnectKey, Recipient
from contracts.subjects import KEYS_CONNECT, KEYS_RECIPIENT
from services.runtime.bus import Bus, encode
from services.runtime.sealing import connect_context, seal

_LIFETIME_S = 300


class Recipients:
    """The public key that provider keys are sealed to."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: Recipient | None = None
        self._fetched_at = 0.0

    async def connect(self, owner: str, api_key: str) -> bytes:
        """Connects the key for this owner; the KeyStatus as JSON. Raises KEY_REJECTED when OpenRouter does not accept it."""
        recipient = await self._recipient()
        try:
            return await self._hand_over(owner, api_key, recipient)
        except ServiceError as error:
            if error.code is not ErrorCode.INVALID:
                raise
            self._known = None
            fresh = await self._recipient()
            if fresh.key_id == recipient.key_id:
                raise
        return await self._hand_over(owner, api_key, fresh)

    async def _hand_over(self, owner: str, api_key: str, recipient: Recipient) -> bytes:
        sealed = seal(api_key.encode(), recipient.public_key, connect_context(owner))
        message = ConnectKey(owner=owner, recipient_key_id=recipient.key_id, sealed=sealed)
        return await self._bus.call_raw(KEYS_CONNECT, encode(message))

    async def _recipient(self) -> Recipient:
        if self._known is None or time.monotonic() - self._fetched_at > _LIFETIME_S:
            self._known = await self._bus.call(KEYS_RECIPIENT, Empty())
            self._fetched_at = time.monotonic()
        return self._known
