"""Asking upstream about stored keys: when an owner wants to know, when a run was refused, and every few hours by itself.

A key is believed dead only when upstream says so again after a while, and says at the same time that keys of other owners
work (or says nothing else for a whole day): OpenRouter had outages that answered 401 to good keys. What was believed is asked
again all the time, so health comes back by itself.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import structlog
from prometheus_client import CollectorRegistry, Counter

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import Health, KeyRefusal, KeysChanged, VerifyKey
from contracts.subjects import KEYS_CHANGED
from services.keys.envelope import EnvelopeError, unlock
from services.keys.facts import Refusal, health_of, is_dead, needs_witnesses
from services.keys.store import Store, StoredKey
from services.keys.verify import Verifier
from services.runtime.bus import Bus
from services.runtime.sealing import Keyring

log = structlog.get_logger()

_POLL_S = 5.0
_PAUSE_S = 1.0
"""Between two keys of one replica: a rate that upstream does not notice, and 80,000 keys a day."""
_SWEEP_S = 60.0
_HINT_SPACING = timedelta(seconds=5)
_FRESH = timedelta(minutes=1)
_WITNESSES = 3
_WITNESSES_S = 5.0


class Checks:
    """Keeps what is known of every key's health."""

    def __init__(
        self, bus: Bus, store: Store, keyring: Keyring, verifier: Verifier, registry: CollectorRegistry
    ) -> None:
        self._bus = bus
        self._store = store
        self._keyring = keyring
        self._verifier = verifier
        # result: the health that follows: ok, suspect, rejected, exhausted
        self._checks = Counter(
            "x402jobs_key_checks", "Answers of upstream about stored keys.", ["result"], registry=registry
        )
        for result in ("ok", "suspect", "rejected", "exhausted"):  # an alert sees the first one too
            self._checks.labels(result)

    async def after_refusal(self, request: VerifyKey) -> StoredKey | None:
        """A run was refused: ask, unless upstream was asked just now or the key is another one already."""
        async with self._store.rows_of(request.owner) as rows:
            stored = await rows.key()
        if stored is None or request.version not in {None, stored.version} or stored.asked_ago < _HINT_SPACING:
            return stored
        return await self.check(request.owner, request.refused)

    async def check(self, owner: str, refused: KeyRefusal | None = None) -> StoredKey | None:
        """Ask upstream about the owner's key and record what follows; None without a key.

        `refused` is what a run was refused with. Raises ServiceError UNAVAILABLE or UPSTREAM without a verdict.
        """
        async with self._store.rows_of(owner) as rows:
            before = await rows.key()
        if before is None:
            return None
        after = await self._ask(owner, before, refused)
        if after is not None and after.health == "suspect" and needs_witnesses(after.rejections):
            others_work = await self._others_work_soon(owner, after)
            if is_dead(after.rejections, after.refused_for, others_work=others_work):
                after = await self._reject(owner, after)
        if after is None:
            # Replaced or disconnected while upstream was asked: its answer is about a key that is gone.
            async with self._store.rows_of(owner) as rows:
                return await rows.key()
        self._checks.labels(after.health).inc()
        await self._say_if_changed(owner, before.health, after)
        return after

    async def _ask(self, owner: str, before: StoredKey, refused: KeyRefusal | None = None) -> StoredKey | None:
        answer = await self._verifier.ask(unlock(before.envelope, owner, self._keyring))
        async with self._store.rows_of(owner) as rows:
            match answer:
                case Refusal.UNKNOWN_KEY | Refusal.MANAGEMENT_KEY:
                    after = await rows.record_rejection(before.version)
                case Refusal.NO_CREDITS | Refusal.SPEND_LIMIT:
                    after = await rows.record_exhausted(before.version)
                case facts:
                    after = await rows.record_facts(before.version, facts, health_of(facts, refused))
            if after is not None:
                await rows.log_access("verify", after.health, instance=self._bus.instance, version=after.version)
        return after

    async def _others_work_soon(self, owner: str, doubted: StoredKey) -> bool | None:
        """As `_others_work`; an upstream that takes longer than whoever asked can wait is not shown to work."""
        try:
            async with asyncio.timeout(_WITNESSES_S):
                return await self._others_work(owner, doubted)
        except TimeoutError:
            return False

    async def _others_work(self, owner: str, doubted: StoredKey) -> bool | None:
        """Whether upstream accepts a key of another owner at this moment; None where there is no other key to ask about."""
        heard = None
        for other in await self._store.witnesses(doubted.mode, owner, _WITNESSES):
            async with self._store.rows_of(other) as rows:
                before = await rows.key()
            if before is None:
                continue
            heard = False
            after: StoredKey | None = before
            # One that upstream has never accepted says nothing by what was written down of it.
            if before.asked_ago > _FRESH or before.verified_at is None:
                try:
                    after = await self._ask(other, before)
                except (ServiceError, EnvelopeError):
                    continue
                if after is not None:
                    await self._say_if_changed(other, before.health, after)
            if after is not None and after.rejections == 0:
                return True
        return heard

    async def _reject(self, owner: str, suspect: StoredKey) -> StoredKey | None:
        async with self._store.rows_of(owner) as rows:
            rejected = await rows.reject(suspect.version)
            if rejected is not None:
                await rows.log_access("verify", "rejected", instance=self._bus.instance, version=suspect.version)
        return rejected

    async def _say_if_changed(self, owner: str, before: Health, after: StoredKey) -> None:
        if after.health != before:
            await self._bus.publish(KEYS_CHANGED, KeysChanged(owner=owner, version=after.version, change="health"))

    # By itself --------------------------------------------------------------------------------------------------------

    async def keep_checking(self) -> None:
        """Ask about every key in its time, each by one replica, slowly."""
        while True:
            owner = await self._store.claim_check()
            if owner is not None:
                await self.check_quietly(owner)
            await asyncio.sleep((_POLL_S if owner is None else _PAUSE_S) * random.uniform(0.8, 1.2))  # noqa: S311

    async def check_quietly(self, owner: str) -> None:
        """As `check`, for nobody: without an answer the claim runs out, and it is asked again."""
        try:
            await self.check(owner)
        except (ServiceError, EnvelopeError) as error:
            code = error.code if isinstance(error, ServiceError) else ErrorCode.INTERNAL
            log.info("key_not_checked", code=code.value)

    async def keep_clean(self) -> None:
        """Erase what is over."""
        while True:
            await self._store.sweep()
            await asyncio.sleep(_SWEEP_S)
