"""Answers of the keys service: each handler opens what came in, asks or stores, says what changed, and replies.

Upstream is asked before a transaction begins, and `keys.changed` goes out after it was committed: nobody drops a lease
for a change that did not happen, and no row is locked while OpenRouter thinks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr

from contracts.base import Empty
from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.keys import (
    Access,
    AccessAction,
    AccessPage,
    ConnectKey,
    KeyLease,
    KeysChanged,
    KeyStatus,
    LeaseKey,
    ListAccess,
    OwnerRef,
    Recipient,
)
from contracts.subjects import (
    KEYS_ACCESS_LIST,
    KEYS_CHANGED,
    KEYS_CONNECT,
    KEYS_DISCONNECT,
    KEYS_LEASE,
    KEYS_RECIPIENT,
    KEYS_STATUS,
    KEYS_VERIFY,
)
from services.keys.envelope import hint_of, lock, mode_of, read_key, unlock
from services.keys.facts import Refusal
from services.keys.recipient import Recipients
from services.keys.store import LAST_SEQ, AccessEntry, Store, StoredKey
from services.keys.verify import Verifier
from services.runtime.bus import Bus
from services.runtime.sealing import Keyring, connect_context, lease_context, seal

LEASE_S = 60
KEYS_URL = "https://openrouter.ai/settings/keys"
CREDITS_URL = "https://openrouter.ai/settings/credits"


class Handlers:
    """One per instance; holds no state of its own."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        keyring: Keyring,
        recipients: Recipients,
        verifier: Verifier,
        registry: CollectorRegistry,
    ) -> None:
        self._bus = bus
        self._store = store
        self._keyring = keyring
        self._recipients = recipients
        self._verifier = verifier
        # result: granted, missing, rejected
        self._leases = Counter("x402jobs_key_leases", "Leases asked for, by result.", ["result"], registry=registry)

    def register(self) -> None:
        """Put every handler on its subject."""
        self._bus.serve(KEYS_RECIPIENT, self.recipient)
        self._bus.serve(KEYS_CONNECT, self.connect)
        self._bus.serve(KEYS_STATUS, self.status)
        self._bus.serve(KEYS_VERIFY, self.verify)
        self._bus.serve(KEYS_DISCONNECT, self.disconnect)
        self._bus.serve(KEYS_LEASE, self.lease)
        self._bus.serve(KEYS_ACCESS_LIST, self.accesses)

    async def recipient(self, _request: Empty) -> Recipient:
        """The public key of today."""
        pair = await self._recipients.current()
        return Recipient(key_id=pair.key_id, public_key=pair.public_key)

    async def connect(self, request: ConnectKey) -> KeyStatus:
        """Verify a key and store it in place of the owner's former one; a key that is refused changes nothing."""
        opened = await self._recipients.open(request.recipient_key_id, request.sealed, connect_context(request.owner))
        key = read_key(opened)
        facts = await self._verifier.ask(key)
        if isinstance(facts, Refusal):
            async with self._store.rows_of(request.owner) as rows:
                action: AccessAction = "connect" if await rows.key() is None else "replace"
                await rows.log_access(action, "refused", instance=self._bus.instance, version=None)
            raise _refused(facts)
        async with self._store.rows_of(request.owner) as rows:
            version = await rows.next_version()
            former = await rows.key()
            envelope = lock(key, request.owner, version, self._keyring)
            stored = await rows.put(envelope, mode_of(key), hint_of(key), facts)
            action = "connect" if former is None else "replace"
            await rows.log_access(action, "done", instance=self._bus.instance, version=version)
        await self._say(request.owner, version, "connected" if former is None else "replaced")
        return _status(stored)

    async def status(self, request: OwnerRef) -> KeyStatus:
        """What the owner may know of their key."""
        async with self._store.rows_of(request.owner) as rows:
            stored = await rows.key()
        return _status(stored)

    async def verify(self, request: OwnerRef) -> KeyStatus:
        """Ask upstream about the stored key; one rejection makes it suspect, a second one in a row rejected."""
        async with self._store.rows_of(request.owner) as rows:
            before = await rows.key()
        if before is None:
            raise _missing()
        answer = await self._verifier.ask(unlock(before.envelope, request.owner, self._keyring))
        async with self._store.rows_of(request.owner) as rows:
            match answer:
                case Refusal.UNKNOWN_KEY | Refusal.MANAGEMENT_KEY:
                    after = await rows.record_rejection(before.version)
                case Refusal.NO_CREDITS:
                    after = await rows.record_exhausted(before.version)
                case facts:
                    after = await rows.record_facts(before.version, facts)
            if after is not None:
                await rows.log_access("verify", after.health, instance=self._bus.instance, version=after.version)
            # Replaced or disconnected while upstream was asked: its answer is about a key that is gone.
            current = after or await rows.key()
        if after is not None and after.health != before.health:
            await self._say(request.owner, after.version, "health")
        return _status(current)

    async def disconnect(self, request: OwnerRef) -> KeyStatus:
        """Erase the owner's key and its data key; without one there is nothing to do and nothing to say."""
        async with self._store.rows_of(request.owner) as rows:
            version = await rows.erase()
            if version is not None:
                await rows.log_access("disconnect", "done", instance=self._bus.instance, version=version)
        if version is not None:
            await self._say(request.owner, version, "disconnected")
        return _status(None)

    async def lease(self, request: LeaseKey) -> KeyLease:
        """Hand the key to one executor for a minute; what is handed over is in the log, committed before it leaves."""
        sealed = ""
        async with self._store.rows_of(request.owner) as rows:
            stored = await rows.key(hold=True)
            if stored is not None and stored.health == "rejected":
                await rows.log_access("lease", "rejected", instance=request.instance, version=stored.version)
            elif stored is not None:
                key = unlock(stored.envelope, request.owner, self._keyring)
                sealed = _sealed_for(request, key)
                await rows.log_access("lease", "granted", instance=request.instance, version=stored.version)
        if stored is None:
            self._leases.labels("missing").inc()
            raise _missing()
        if not sealed:
            self._leases.labels("rejected").inc()
            raise _rejected()
        self._leases.labels("granted").inc()
        expires_at = datetime.now(UTC) + timedelta(seconds=LEASE_S)
        return KeyLease(sealed=sealed, mode=stored.mode, version=stored.version, expires_at=expires_at)

    async def accesses(self, request: ListAccess) -> AccessPage:
        """What was done with the owner's key, newest first; the cursor is the number of the last entry shown."""
        before = _seq_of(request.cursor)
        async with self._store.rows_of(request.owner) as rows:
            head = await rows.head()
            entries = await rows.accesses_before(before, request.limit + 1)
        more = len(entries) > request.limit
        entries = entries[: request.limit]
        return AccessPage(
            items=[_access(entry) for entry in entries],
            total=head.seq if head is not None else 0,
            next_cursor=str(entries[-1].seq) if more else None,
        )

    async def _say(
        self, owner: str, version: int, change: Literal["connected", "replaced", "disconnected", "health"]
    ) -> None:
        await self._bus.publish(KEYS_CHANGED, KeysChanged(owner=owner, version=version, change=change))


def _seq_of(cursor: str | None) -> int:
    if cursor is None:
        return LAST_SEQ
    if not (cursor.isascii() and cursor.isdecimal() and int(cursor) <= LAST_SEQ):
        raise invalid("cursor", "This is not a cursor of this list: pass on next_cursor as it was.")
    return int(cursor)


def _access(entry: AccessEntry) -> Access:
    return Access(
        seq=entry.seq,
        at=entry.at,
        action=entry.action,
        result=entry.result,
        instance=entry.instance,
        version=entry.version,
        hash=entry.hash.hex(),
    )


def _sealed_for(request: LeaseKey, key: SecretStr) -> str:
    context = lease_context(request.owner, request.instance)
    return seal(key.get_secret_value().encode(), request.recipient_public_key, context)


def _status(stored: StoredKey | None) -> KeyStatus:
    if stored is None:
        return KeyStatus(connected=False)
    return KeyStatus(
        connected=True,
        mode=stored.mode,
        hint=stored.hint,
        health=stored.health,
        version=stored.version,
        connected_at=stored.connected_at,
        verified_at=stored.verified_at,
        limit_usd=stored.facts.limit,
        limit_remaining_usd=stored.facts.limit_remaining,
        limit_reset=stored.facts.limit_reset,
        usage_usd=stored.facts.usage,
        is_free_tier=stored.facts.is_free_tier,
        expires_at=stored.facts.expires_at,
    )


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


def _missing() -> ServiceError:
    return ServiceError(ErrorCode.KEY_MISSING, "No OpenRouter key is connected: connect an OpenRouter key first.")


def _rejected() -> ServiceError:
    return ServiceError(
        ErrorCode.KEY_REJECTED,
        "OpenRouter does not accept the connected key any more: its owner has to test it again or connect a new one.",
        action_url=KEYS_URL,
    )
