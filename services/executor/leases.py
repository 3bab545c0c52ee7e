"""Creators' keys, leased for a minute each and held in this process's memory alone.

A key arrives sealed to this instance's own key pair, which is made at start and never written anywhere. It is dropped as
soon as the keys service says that it changed, after every reconnect, because what was said meanwhile was not heard, and when
its minute is over, also where nobody asks for it again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import KeyRefusal, KeysChanged, Mode, VerifyKey
from contracts.subjects import KEYS_LEASE, KEYS_VERIFY
from services.runtime.bus import Bus
from services.runtime.identity import ExecutorIdentity
from services.runtime.sealing import RecipientKey, lease_context

log = structlog.get_logger()

_DOUBT_AGAIN_S = 20.0
_RENEW_BEFORE = timedelta(seconds=5)


@dataclass(frozen=True)
class Lease:
    api_key: str = field(repr=False)
    mode: Mode
    version: int
    expires_at: datetime


@dataclass
class _Request:
    """A request for a lease under way; dropped when its answer may be of a former key."""

    task: asyncio.Task[Lease]
    dropped: bool = False


class KeyLeases:
    """At most one lease, and one request for it, per owner at a time."""

    def __init__(self, bus: Bus, identity: ExecutorIdentity) -> None:
        self._bus = bus
        self._identity = identity
        self._recipient = RecipientKey.generate(bus.instance)
        self._held: dict[str, Lease] = {}
        self._asking: dict[str, _Request] = {}
        self._doubted: dict[str, float] = {}
        self._verifying: set[asyncio.Task[None]] = set()

    async def get(self, owner: str) -> Lease:
        """The owner's key. Raises what the keys service raised, KEY_MISSING for one."""
        return await self._get(owner, again=True)

    async def _get(self, owner: str, *, again: bool) -> Lease:
        held = self._held.get(owner)
        if held is not None and held.expires_at - datetime.now(UTC) > _RENEW_BEFORE:
            return held
        request = self._asking.get(owner)
        if request is None:
            request = self._asking[owner] = _Request(asyncio.create_task(self._ask(owner)))
            request.task.add_done_callback(lambda task: self._asked(owner, task))
        try:
            # Whoever waits may give up without taking the answer away from the others.
            lease = await asyncio.shield(request.task)
        except ServiceError:
            if not (again and request.dropped):
                raise
        else:
            if not (again and request.dropped):
                return lease
        # The key changed while it was asked for. Once: who replaces a key all the time gets runs with one of them.
        return await self._get(owner, again=False)

    async def _ask(self, owner: str) -> Lease:
        request = self._identity.lease_request(owner, self._bus.instance, self._recipient.public_key, datetime.now(UTC))
        try:
            reply = await self._bus.call(KEYS_LEASE, request)
        except ServiceError as error:
            if error.code is not ErrorCode.FORBIDDEN:
                raise
            # Not the caller's doing: this deployment is set up wrongly, or a clock is.
            log.critical("lease_forbidden", reason=str(error))
            raise ServiceError(
                ErrorCode.UNAVAILABLE, "The key behind this resource cannot be used at the moment; try again later."
            ) from None
        api_key = self._recipient.open(reply.sealed, lease_context(owner, self._bus.instance)).decode()
        return Lease(api_key, reply.mode, reply.version, reply.expires_at)

    def _asked(self, owner: str, task: asyncio.Task[Lease]) -> None:
        request = self._asking.get(owner)
        if request is not None and request.task is task:
            del self._asking[owner]
            if not task.cancelled() and task.exception() is None:
                lease = self._held[owner] = task.result()
                left = lease.expires_at - datetime.now(UTC)
                # The moment stands for the lease: a timer that held the lease would keep the key that it is to drop.
                asyncio.get_running_loop().call_later(left.total_seconds(), self._expire, owner, lease.expires_at)

    def _expire(self, owner: str, expires_at: datetime) -> None:
        held = self._held.get(owner)
        if held is not None and held.expires_at == expires_at:
            del self._held[owner]

    def doubt(self, owner: str, version: int, refused: KeyRefusal) -> None:
        """Upstream refused a run with this key: have the keys service ask about it, in its own time and not too often."""
        held = self._held.get(owner)
        if held is not None and held.version > version:
            return
        self._held.pop(owner, None)
        now = time.monotonic()
        if self._doubted.get(owner, 0) < now:
            self._doubted = {known: until for known, until in self._doubted.items() if until > now}
            self._doubted[owner] = now + _DOUBT_AGAIN_S
            task = asyncio.create_task(self._verify(VerifyKey(owner=owner, version=version, refused=refused)))
            self._verifying.add(task)
            task.add_done_callback(self._verifying.discard)

    async def _verify(self, request: VerifyKey) -> None:
        try:
            status = await self._bus.call(KEYS_VERIFY, request)
            log.info("key_verified", health=status.health)
        except ServiceError as error:
            log.info("key_not_verified", code=error.code.value)

    async def changed(self, event: KeysChanged) -> None:
        """Drop what is held, and what is being asked for: it may be the former key."""
        self._held.pop(event.owner, None)
        self._drop_request(event.owner)

    async def forget(self) -> None:
        self._held.clear()
        for owner in list(self._asking):
            self._drop_request(owner)

    def _drop_request(self, owner: str) -> None:
        request = self._asking.pop(owner, None)
        if request is not None:
            request.dropped = True
