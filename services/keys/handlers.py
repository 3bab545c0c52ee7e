"""Answers of the keys service: each handler opens what came in, asks or stores, says what changed, and replies.

Upstream is asked before a transaction begins, and `keys.changed` goes out after it was committed: nobody drops a lease
for a change that did not happen, and no row is locked while OpenRouter thinks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog
from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr

from contracts.base import Empty
from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.keys import (
    Access,
    AccessPage,
    BeginOAuth,
    CompleteOAuth,
    ConnectKey,
    KeyLease,
    KeysChanged,
    KeyStatus,
    LeaseKey,
    ListAccess,
    OAuthBegun,
    OwnerRef,
    Recipient,
    VerifyKey,
)
from contracts.subjects import (
    KEYS_ACCESS_LIST,
    KEYS_CHANGED,
    KEYS_CONNECT,
    KEYS_DISCONNECT,
    KEYS_LEASE,
    KEYS_OAUTH_BEGIN,
    KEYS_OAUTH_COMPLETE,
    KEYS_RECIPIENT,
    KEYS_STATUS,
    KEYS_VERIFY,
)
from services.keys.checks import Checks
from services.keys.connections import KEYS_URL, Connections
from services.keys.envelope import read_key, unlock
from services.keys.guards.limits import Limits
from services.keys.guards.oauth import Authorizations
from services.keys.guards.proofs import is_proven, not_proven
from services.keys.recipient import Recipients
from services.keys.store import LAST_SEQ, AccessEntry, Store, StoredKey
from services.runtime.bus import Bus
from services.runtime.identity import ExecutorIdentities
from services.runtime.sealing import Keyring, connect_context, lease_context, seal

LEASE_S = 60

log = structlog.get_logger()


class Handlers:
    """One per instance; holds no state of its own."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        keyring: Keyring,
        recipients: Recipients,
        identities: ExecutorIdentities,
        limits: Limits,
        connections: Connections,
        authorizations: Authorizations,
        checks: Checks,
        registry: CollectorRegistry,
    ) -> None:
        self._bus = bus
        self._store = store
        self._keyring = keyring
        self._recipients = recipients
        self._identities = identities
        self._limits = limits
        self._connections = connections
        self._authorizations = authorizations
        self._checks = checks
        # result: granted, missing, rejected, forbidden
        self._leases = Counter("x402jobs_key_leases", "Leases asked for, by result.", ["result"], registry=registry)
        for result in ("granted", "missing", "rejected", "forbidden"):  # an alert sees the first one too
            self._leases.labels(result)

    def register(self) -> None:
        """Put every handler on its subject."""
        self._bus.serve(KEYS_RECIPIENT, self.recipient)
        self._bus.serve(KEYS_CONNECT, self.connect)
        self._bus.serve(KEYS_STATUS, self.status)
        self._bus.serve(KEYS_VERIFY, self.verify)
        self._bus.serve(KEYS_OAUTH_BEGIN, self.begin_oauth)
        self._bus.serve(KEYS_OAUTH_COMPLETE, self.complete_oauth)
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
        return _status(await self._connections.connect(request.owner, read_key(opened)))

    async def begin_oauth(self, request: BeginOAuth) -> OAuthBegun:
        """Where to send the browser."""
        return await self._authorizations.begin(request)

    async def complete_oauth(self, request: CompleteOAuth) -> KeyStatus:
        """Fetch the key that OpenRouter made for whoever began, and store it as any other."""
        key = await self._authorizations.complete(request)
        return _status(await self._connections.connect_made(request.owner, key))

    async def status(self, request: OwnerRef) -> KeyStatus:
        """What the owner may know of their key."""
        async with self._store.rows_of(request.owner) as rows:
            stored = await rows.key()
        return _status(stored)

    async def verify(self, request: VerifyKey) -> KeyStatus:
        """Ask upstream about the stored key; what a run was refused with is a reason to ask, not an answer."""
        if request.refused is not None:
            stored = await self._checks.after_refusal(request)
        else:
            await self._limits.admit(request.owner, "verify")
            stored = await self._checks.check(request.owner)
            if stored is None:
                raise _missing()
        return _status(stored)

    async def disconnect(self, request: OwnerRef) -> KeyStatus:
        """Erase the owner's key and its data key; without one there is nothing to do and nothing to say."""
        async with self._store.rows_of(request.owner) as rows:
            version = await rows.erase()
            if version is not None:
                await rows.log_access("disconnect", "done", instance=self._bus.instance, version=version)
        if version is not None:
            await self._bus.publish(
                KEYS_CHANGED, KeysChanged(owner=request.owner, version=version, change="disconnected")
            )
        return _status(None)

    async def lease(self, request: LeaseKey) -> KeyLease:
        """Hand the key to one executor for a minute; what is handed over is in the log, committed before it leaves."""
        sealed = ""
        async with self._store.rows_of(request.owner) as rows:
            proven = await is_proven(request, self._identities, rows)
            stored = await rows.key(hold=True)
            if not proven:
                version = stored.version if stored is not None else None
                await rows.log_access("lease", "refused", instance=request.instance, version=version)
            elif stored is not None and stored.health == "rejected":
                await rows.log_access("lease", "rejected", instance=request.instance, version=stored.version)
            elif stored is not None:
                key = unlock(stored.envelope, request.owner, self._keyring)
                sealed = _sealed_for(request, key)
                await rows.log_access("lease", "granted", instance=request.instance, version=stored.version)
        if not proven:
            self._leases.labels("forbidden").inc()
            log.warning("lease_refused", instance=request.instance)
            raise not_proven()
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
        credits_remaining_usd=stored.facts.credits_remaining,
        is_free_tier=stored.facts.is_free_tier,
        expires_at=stored.facts.expires_at,
    )


def _missing() -> ServiceError:
    return ServiceError(ErrorCode.KEY_MISSING, "No OpenRouter key is connected: connect an OpenRouter key first.")


def _rejected() -> ServiceError:
    return ServiceError(
        ErrorCode.KEY_REJECTED,
        "OpenRouter does not accept the connected key any more: its owner has to test it again or connect a new one.",
        action_url=KEYS_URL,
    )
