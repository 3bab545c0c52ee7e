"""Creators' keys, leased for a minute each and held in this process's memory alone.

A key arrives sealed to this instance's own key pair, which is made at start and never written anywhere. It is dropped as
soon as the keys service says that it changed, and after every reconnect, because what was said meanwhile was not heard.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from contracts.keys import KeysChanged, LeaseKey, Mode
from contracts.subjects import KEYS_LEASE
from services.runtime.bus import Bus
from services.runtime.sealing import RecipientKey, lease_context

_RENEW_BEFORE = timedelta(seconds=5)


@dataclass(frozen=True)
class Lease:
    api_key: str = field(repr=False)
    mode: Mode
    version: int
    expires_at: datetime


class KeyLeases:
    """At most one lease, and one request for it, per owner at a time."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._recipient = RecipientKey.generate(bus.instance)
        self._held: dict[str, Lease] = {}
        self._asking: dict[str, asyncio.Task[Lease]] = {}

    async def get(self, owner: str) -> Lease:
        """The owner's key. Raises what the keys service raised, KEY_MISSING for one."""
        held = self._held.get(owner)
        if held is not None and held.expires_at - datetime.now(UTC) > _RENEW_BEFORE:
            return held
        asking = self._asking.get(owner)
        if asking is None:
            asking = self._asking[owner] = asyncio.create_task(self._ask(owner))
            asking.add_done_callback(lambda task: self._asked(owner, task))
        # Whoever waits may give up without taking the answer away from the others.
        return await asyncio.shield(asking)

    async def _ask(self, owner: str) -> Lease:
        reply = await self._bus.call(
            KEYS_LEASE,
            LeaseKey(owner=owner, instance=self._bus.instance, recipient_public_key=self._recipient.public_key),
        )
        api_key = self._recipient.open(reply.sealed, lease_context(owner, self._bus.instance)).decode()
        return Lease(api_key, reply.mode, reply.version, reply.expires_at)

    def _asked(self, owner: str, task: asyncio.Task[Lease]) -> None:
        if self._asking.get(owner) is task:
            del self._asking[owner]
            if not task.cancelled() and task.exception() is None:
                self._held[owner] = task.result()

    async def changed(self, event: KeysChanged) -> None:
        """Drop what is held, and what is being asked for: it may be the former key."""
        self._held.pop(event.owner, None)
        self._asking.pop(event.owner, None)

    async def forget(self) -> None:
        self._held.clear()
        self._asking.clear()
