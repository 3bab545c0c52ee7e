"""All SQL of the keys service. Rows of owners are reached only through `Store.rows_of(owner)`: one transaction with
`app.user_id` set, in which Postgres itself hides everybody else's rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Literal

import asyncpg

from contracts.keys import AccessAction, AccessResult, Health, Mode
from services.keys.envelope import Envelope
from services.keys.facts import REJECTION_SPACING, KeyFacts, health_of, next_check_in
from services.keys.guards.store import GuardRows
from services.runtime.postgres import unavailable_when_down

LAST_SEQ = 2**63 - 1
"""Above every number of the access log."""

_ACCESS_COLUMNS = "seq, at, action, result, instance, version, prev_hash, hash"
_RECIPIENT_COLUMNS = "key_id, day, made_under, master_key_id, wrapped_private_key"
_COLUMNS = """version, mode, hint, master_key_id, wrapped_data_key, encrypted_key, health, limit_usd, limit_remaining_usd,
    limit_reset, usage_usd, is_free_tier, expires_at, credits_remaining_usd, connected_at, verified_at, rejections,
    coalesce(refused_at - first_refused_at, interval '0') AS refused_for, now() - asked_at AS asked_ago"""


@dataclass(frozen=True)
class StoredKey:
    """An owner's key as it lies in the table: locked."""

    envelope: Envelope
    mode: Mode
    hint: str
    health: Health
    facts: KeyFacts
    connected_at: datetime
    verified_at: datetime | None
    """None until upstream has accepted it."""
    rejections: int
    refused_for: timedelta
    """From the first of the rejections in a row to the latest that counted."""
    asked_ago: timedelta

    @property
    def version(self) -> int:
        return self.envelope.version


@dataclass(frozen=True)
class StoredRecipient:
    """One of the service's own key pairs: named, and locked under a master key."""

    key_id: str
    day: date
    made_under: str
    master_key_id: str
    wrapped_private_key: bytes = field(repr=False)


@dataclass(frozen=True)
class AccessEntry:
    """One entry of an owner's access log, with what chains it to the one before."""

    seq: int
    at: datetime
    action: AccessAction
    result: AccessResult
    instance: str
    version: int | None
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True)
class Head:
    """Where an owner's chain ends, as it is kept apart from the chain."""

    seq: int
    hash: bytes


@dataclass(frozen=True)
class Uses:
    """How many things of one kind lie under one master key."""

    master_key_id: str
    kind: Literal["data_key", "key_pair", "verifier"]
    count: int


def _stored_key(row: asyncpg.Record) -> StoredKey:
    return StoredKey(
        envelope=Envelope(row["version"], row["master_key_id"], row["wrapped_data_key"], row["encrypted_key"]),
        mode=row["mode"],
        hint=row["hint"],
        health=row["health"],
        facts=KeyFacts(
            limit=row["limit_usd"],
            limit_remaining=row["limit_remaining_usd"],
            limit_reset=row["limit_reset"],
            usage=row["usage_usd"],
            is_free_tier=row["is_free_tier"],
            expires_at=row["expires_at"],
            credits_remaining=row["credits_remaining_usd"],
        ),
        connected_at=row["connected_at"],
        verified_at=row["verified_at"],
        rejections=row["rejections"],
        refused_for=row["refused_for"],
        asked_ago=row["asked_ago"],
    )


class OwnerRows(GuardRows):
    """The rows of one owner, inside one transaction."""

    async def key(self, *, hold: bool = False) -> StoredKey | None:
        """The stored key; with `hold` it cannot be replaced or erased until the transaction ends."""
        row = await self._connection.fetchrow(
            f"""SELECT {_COLUMNS} FROM keys.user_openrouter_integrations
                WHERE owner = $1 {"FOR SHARE" if hold else ""}""",
            self._owner,
        )
        return None if row is None else _stored_key(row)

    async def next_version(self) -> int:
        """Count the owner's version up. Whoever else would change this owner's key waits for the transaction to end."""
        version: int = await self._connection.fetchval(
            """INSERT INTO keys.key_versions AS v (owner, version) VALUES ($1, 1)
               ON CONFLICT (owner) DO UPDATE SET version = v.version + 1 RETURNING version""",
            self._owner,
        )
        return version

    async def put(
        self, envelope: Envelope, mode: Mode, hint: str, facts: KeyFacts, health: Health | None = None
    ) -> StoredKey:
        """Store a key in place of a former one. Its health follows from the facts unless given: `suspect` was not verified.

        In place, not by delete and insert: a lease that waits for this row then finds the new key instead of none.
        """
        health = health or health_of(facts)
        row = await self._connection.fetchrow(
            f"""INSERT INTO keys.user_openrouter_integrations
                    (owner, version, mode, hint, master_key_id, wrapped_data_key, encrypted_key, health, next_check_at,
                     limit_usd, limit_remaining_usd, limit_reset, usage_usd, is_free_tier, expires_at,
                     credits_remaining_usd, verified_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + $9::interval, $10, $11, $12, $13, $14, $15, $16,
                        CASE WHEN $8 <> 'suspect' THEN now() END)
                ON CONFLICT (owner) DO UPDATE SET
                    (version, mode, hint, master_key_id, wrapped_data_key, encrypted_key, health, next_check_at,
                     limit_usd, limit_remaining_usd, limit_reset, usage_usd, is_free_tier, expires_at,
                     credits_remaining_usd, rejections, first_refused_at, refused_at,
                     connected_at, verified_at, asked_at)
                  = ($2, $3, $4, $5, $6, $7, $8, now() + $9::interval, $10, $11, $12, $13, $14, $15, $16, 0, NULL, NULL,
                     now(), EXCLUDED.verified_at, now())
                RETURNING {_COLUMNS}""",
            self._owner,
            envelope.version,
            mode,
            hint,
            envelope.master_key_id,
            envelope.wrapped_data_key,
            envelope.encrypted_key,
            health,
            next_check_in(health),
            *_values(facts),
        )
        return _stored_key(row)

    async def erase(self) -> int | None:
        """Delete the key and its data key; the version of that change, or None when there was no key."""
        # The version first, as in a connect: locks taken in one order cannot wait for each other.
        version: int | None = await self._connection.fetchval(
            """UPDATE keys.key_versions SET version = version + 1
               WHERE owner = $1 AND EXISTS (SELECT FROM keys.user_openrouter_integrations WHERE owner = $1)
               RETURNING version""",
            self._owner,
        )
        erased = await self._connection.fetchval(
            "DELETE FROM keys.user_openrouter_integrations WHERE owner = $1 AND $2::bigint IS NOT NULL RETURNING true",
            self._owner,
            version,
        )
        return version if erased else None

    async def record_facts(self, version: int, facts: KeyFacts, health: Health) -> StoredKey | None:
        """Upstream knows the key: whatever was said against it is forgotten. None when that version is gone."""
        row = await self._connection.fetchrow(
            f"""UPDATE keys.user_openrouter_integrations
                SET health = $3, next_check_at = now() + $4::interval, rejections = 0, first_refused_at = NULL,
                    refused_at = NULL, verified_at = now(), asked_at = now(), limit_usd = $5,
                    limit_remaining_usd = $6, limit_reset = $7, usage_usd = $8, is_free_tier = $9, expires_at = $10,
                    credits_remaining_usd = $11
                WHERE owner = $1 AND version = $2 RETURNING {_COLUMNS}""",
            self._owner,
            version,
            health,
            next_check_in(health),
            *_values(facts),
        )
        return None if row is None else _stored_key(row)

    async def record_exhausted(self, version: int) -> StoredKey | None:
        """Upstream knows the key and says that it cannot pay. None when that version is gone."""
        row = await self._connection.fetchrow(
            f"""UPDATE keys.user_openrouter_integrations
                SET health = 'exhausted', next_check_at = now() + $3::interval, rejections = 0,
                    first_refused_at = NULL, refused_at = NULL, verified_at = now(), asked_at = now()
                WHERE owner = $1 AND version = $2 RETURNING {_COLUMNS}""",
            self._owner,
            version,
            next_check_in("exhausted"),
        )
        return None if row is None else _stored_key(row)

    async def record_rejection(self, version: int) -> StoredKey | None:
        """Upstream does not know the key: it becomes suspect, unless it was believed dead before. None when that version
        is gone. Rejections that come close together count once."""
        row = await self._connection.fetchrow(
            f"""UPDATE keys.user_openrouter_integrations
                SET health = CASE health WHEN 'rejected' THEN health ELSE 'suspect' END,
                    next_check_at = now() + CASE health WHEN 'rejected' THEN $3::interval ELSE $4::interval END,
                    rejections = rejections + CASE WHEN refused_at > now() - $5::interval THEN 0 ELSE 1 END,
                    first_refused_at = coalesce(first_refused_at, now()),
                    -- Of the last one that counted: who asks all the time must not put the next one off for ever.
                    refused_at = CASE WHEN refused_at > now() - $5::interval THEN refused_at ELSE now() END,
                    asked_at = now()
                WHERE owner = $1 AND version = $2 RETURNING {_COLUMNS}""",
            self._owner,
            version,
            next_check_in("rejected"),
            next_check_in("suspect"),
            REJECTION_SPACING,
        )
        return None if row is None else _stored_key(row)

    async def reject(self, version: int) -> StoredKey | None:
        """The key is believed dead. None when that version is gone, or upstream has known it again meanwhile."""
        row = await self._connection.fetchrow(
            f"""UPDATE keys.user_openrouter_integrations SET health = 'rejected', next_check_at = now() + $3::interval
                WHERE owner = $1 AND version = $2 AND health = 'suspect' RETURNING {_COLUMNS}""",
            self._owner,
            version,
            next_check_in("rejected"),
        )
        return None if row is None else _stored_key(row)

    async def rewrap(self, former: Envelope, envelope: Envelope) -> bool:
        """Put the same data key under another master key; nothing else changes.

        False when the row is not what it was any more: replaced, erased, or rotated by somebody else.
        """
        changed = await self._connection.fetchval(
            """UPDATE keys.user_openrouter_integrations SET master_key_id = $4, wrapped_data_key = $5
               WHERE owner = $1 AND version = $2 AND master_key_id = $3 RETURNING true""",
            self._owner,
            former.version,
            former.master_key_id,
            envelope.master_key_id,
            envelope.wrapped_data_key,
        )
        return bool(changed)

    async def log_access(
        self, action: AccessAction, result: AccessResult, *, instance: str, version: int | None
    ) -> None:
        """Append to the owner's hash chain."""
        await self._connection.execute(
            "INSERT INTO keys.access_log (owner, action, result, instance, version) VALUES ($1, $2, $3, $4, $5)",
            self._owner,
            action,
            result,
            instance,
            version,
        )

    async def accesses_before(self, seq: int, limit: int) -> list[AccessEntry]:
        """The newest entries below this number, newest first."""
        rows = await self._connection.fetch(
            f"SELECT {_ACCESS_COLUMNS} FROM keys.access_log WHERE owner = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3",
            self._owner,
            seq,
            limit,
        )
        return [AccessEntry(**row) for row in rows]

    async def accesses_after(self, seq: int, limit: int) -> list[AccessEntry]:
        """The entries above this number, oldest first."""
        rows = await self._connection.fetch(
            f"SELECT {_ACCESS_COLUMNS} FROM keys.access_log WHERE owner = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            self._owner,
            seq,
            limit,
        )
        return [AccessEntry(**row) for row in rows]

    async def head(self) -> Head | None:
        """Where the owner's chain ends, as it is kept apart from it; None before the first entry."""
        row = await self._connection.fetchrow("SELECT seq, hash FROM keys.access_heads WHERE owner = $1", self._owner)
        return None if row is None else Head(**row)


class Store:
    """The tables of the keys service."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def rows_of(self, owner: str) -> AsyncIterator[OwnerRows]:
        """One transaction that sees one owner. Raises ServiceError UNAVAILABLE when the database cannot be reached."""
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.user_id', $1, true)", owner)
            yield OwnerRows(connection, owner)

    async def owners_outside(self, master_key_ids: Sequence[str], after: str, limit: int) -> list[str]:
        """A page of owners whose data key is wrapped under none of these master keys; begin with `after` empty."""
        async with unavailable_when_down():
            rows = await self._pool.fetch(
                "SELECT keys.owners_outside($1, $2, $3) AS owner", list(master_key_ids), after, limit
            )
        return [row["owner"] for row in rows]

    async def authorizing_outside(self, master_key_id: str) -> list[str]:
        """Owners with an authorization under way whose verifier is locked under another master key."""
        async with unavailable_when_down():
            rows = await self._pool.fetch("SELECT keys.authorizing_outside($1) AS owner", master_key_id)
        return [row["owner"] for row in rows]

    async def logged_owners(self, after: str, limit: int) -> list[str]:
        """A page of owners who have an access log; begin with `after` empty."""
        async with unavailable_when_down():
            rows = await self._pool.fetch("SELECT keys.logged_owners($1, $2) AS owner", after, limit)
        return [row["owner"] for row in rows]

    async def master_key_uses(self) -> list[Uses]:
        """What lies under which master key, of all owners and of the service itself."""
        async with unavailable_when_down():
            rows = await self._pool.fetch(
                """SELECT master_key_id, 'data_key' AS kind, uses AS count FROM keys.data_keys_per_master_key()
                   UNION ALL
                   SELECT master_key_id, 'verifier', uses FROM keys.verifiers_per_master_key()
                   UNION ALL
                   SELECT master_key_id, 'key_pair', count(*) FROM keys.recipients GROUP BY master_key_id
                   ORDER BY master_key_id, kind"""
            )
        return [Uses(**row) for row in rows]

    async def claim_check(self) -> str | None:
        """An owner whose key it is time to ask about; for some minutes no replica gets the same one."""
        async with unavailable_when_down():
            owner: str | None = await self._pool.fetchval("SELECT keys.claim_check()")
        return owner

    async def witnesses(self, mode: Mode, besides: str, limit: int) -> list[str]:
        """Owners of other keys of this mode that are not believed dead, those that worked last first."""
        async with unavailable_when_down():
            rows = await self._pool.fetch("SELECT keys.witnesses($1, $2, $3) AS owner", mode, besides, limit)
        return [row["owner"] for row in rows]

    async def sweep(self) -> None:
        """Erase what is over, of all owners: nonces, attempts, authorizations."""
        async with unavailable_when_down():
            await self._pool.execute("SELECT keys.sweep()")

    async def recipient_of(self, day: date, made_under: str) -> StoredRecipient | None:
        """The key pair to hand out on this day (UTC) by those whose active master key this is."""
        async with unavailable_when_down():
            row = await self._pool.fetchrow(
                f"SELECT {_RECIPIENT_COLUMNS} FROM keys.recipients WHERE day = $1 AND made_under = $2", day, made_under
            )
        return None if row is None else StoredRecipient(**row)

    async def recipient_named(self, key_id: str) -> StoredRecipient | None:
        """The key pair of this name."""
        async with unavailable_when_down():
            row = await self._pool.fetchrow(
                f"SELECT {_RECIPIENT_COLUMNS} FROM keys.recipients WHERE key_id = $1", key_id
            )
        return None if row is None else StoredRecipient(**row)

    async def recipients_outside(self, master_key_id: str) -> list[StoredRecipient]:
        """The key pairs that are wrapped under another master key."""
        async with unavailable_when_down():
            rows = await self._pool.fetch(
                f"SELECT {_RECIPIENT_COLUMNS} FROM keys.recipients WHERE master_key_id <> $1", master_key_id
            )
        return [StoredRecipient(**row) for row in rows]

    async def offer_recipient(self, recipient: StoredRecipient) -> None:
        """Make this the key pair of its day, unless another replica was first."""
        async with unavailable_when_down():
            await self._pool.execute(
                f"""INSERT INTO keys.recipients ({_RECIPIENT_COLUMNS}) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT ON CONSTRAINT recipients_day_key DO NOTHING""",
                recipient.key_id,
                recipient.day,
                recipient.made_under,
                recipient.master_key_id,
                recipient.wrapped_private_key,
            )

    async def rewrap_recipient(self, key_id: str, master_key_id: str, wrapped_private_key: bytes) -> None:
        """Put the same key pair under another master key."""
        async with unavailable_when_down():
            await self._pool.execute(
                "UPDATE keys.recipients SET master_key_id = $2, wrapped_private_key = $3 WHERE key_id = $1",
                key_id,
                master_key_id,
                wrapped_private_key,
            )

    async def announce(self, instance: str, master_key_ids: Sequence[str]) -> None:
        """Say that this instance runs and which master keys it holds, the active one first."""
        async with unavailable_when_down():
            await self._pool.execute(
                """INSERT INTO keys.instances (instance, master_key_ids) VALUES ($1, $2)
                   ON CONFLICT (instance) DO UPDATE SET (master_key_ids, seen_at) = ($2, now())""",
                instance,
                list(master_key_ids),
            )

    async def withdraw(self, instance: str) -> None:
        """Say that this instance does not run any more."""
        async with unavailable_when_down():
            await self._pool.execute("DELETE FROM keys.instances WHERE instance = $1", instance)

    async def announced(self, within_s: float) -> dict[str, list[str]]:
        """The master keys of every instance that was heard of lately; what is older than an hour is forgotten."""
        async with unavailable_when_down():
            await self._pool.execute("DELETE FROM keys.instances WHERE seen_at < now() - interval '1 hour'")
            rows = await self._pool.fetch(
                """SELECT instance, master_key_ids FROM keys.instances
                   WHERE seen_at > now() - make_interval(secs => $1) ORDER BY instance""",
                within_s,
            )
        return {row["instance"]: row["master_key_ids"] for row in rows}

    async def erase_recipients_before(self, day: date) -> None:
        """Delete older key pairs, so that what was sealed to them can never be opened again."""
        async with unavailable_when_down():
            await self._pool.execute("DELETE FROM keys.recipients WHERE day < $1", day)


def _values(facts: KeyFacts) -> tuple[object, ...]:
    return (
        facts.limit,
        facts.limit_remaining,
        facts.limit_reset,
        facts.usage,
        facts.is_free_tier,
        facts.expires_at,
        facts.credits_remaining,
    )
