"""All SQL of the keys service. Rows of owners are reached only through `Store.rows_of(owner)`: one transaction with
`app.user_id` set, in which Postgres itself hides everybody else's rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

import asyncpg

from contracts.keys import Health, Mode
from services.keys.envelope import Envelope
from services.keys.facts import REJECTIONS_TO_BELIEVE, KeyFacts
from services.runtime.postgres import unavailable_when_down

LeaseResult = Literal["granted", "rejected"]

_COLUMNS = """version, mode, hint, master_key_id, wrapped_data_key, encrypted_key, health, limit_usd, limit_remaining_usd,
    limit_reset, usage_usd, is_free_tier, expires_at, connected_at, verified_at"""


@dataclass(frozen=True)
class StoredKey:
    """An owner's key as it lies in the table: locked."""

    envelope: Envelope
    mode: Mode
    hint: str
    health: Health
    facts: KeyFacts
    connected_at: datetime
    verified_at: datetime

    @property
    def version(self) -> int:
        return self.envelope.version


@dataclass(frozen=True)
class StoredRecipient:
    """One of the service's own key pairs: named, and locked under a master key."""

    key_id: str
    day: date
    master_key_id: str
    wrapped_private_key: bytes = field(repr=False)


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
        ),
        connected_at=row["connected_at"],
        verified_at=row["verified_at"],
    )


class OwnerRows:
    """The rows of one owner, inside one transaction."""

    def __init__(self, connection: asyncpg.Connection, owner: str) -> None:
        self._connection = connection
        self._owner = owner

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

    async def put(self, envelope: Envelope, mode: Mode, hint: str, facts: KeyFacts) -> StoredKey:
        """Store a key that was verified just now, in place of a former one.

        In place, not by delete and insert: a lease that waits for this row then finds the new key instead of none.
        """
        row = await self._connection.fetchrow(
            f"""INSERT INTO keys.user_openrouter_integrations
                    (owner, version, mode, hint, master_key_id, wrapped_data_key, encrypted_key, health,
                     limit_usd, limit_remaining_usd, limit_reset, usage_usd, is_free_tier, expires_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
                ON CONFLICT (owner) DO UPDATE SET
                    (version, mode, hint, master_key_id, wrapped_data_key, encrypted_key, health, rejections,
                     limit_usd, limit_remaining_usd, limit_reset, usage_usd, is_free_tier, expires_at,
                     connected_at, verified_at)
                  = ($2, $3, $4, $5, $6, $7, $8, 0, $9, $10, $11, $12, $13, $14, now(), now())
                RETURNING {_COLUMNS}""",
            self._owner,
            envelope.version,
            mode,
            hint,
            envelope.master_key_id,
            envelope.wrapped_data_key,
            envelope.encrypted_key,
            facts.health,
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

    async def record_facts(self, version: int, facts: KeyFacts) -> StoredKey | None:
        """Upstream knows the key: whatever was said against it is forgotten. None when that version is gone."""
        row = await self._connection.fetchrow(
            f"""UPDATE keys.user_openrouter_integrations
                SET health = $3, rejections = 0, verified_at = now(), limit_usd = $4, limit_remaining_usd = $5,
                    limit_reset = $6, usage_usd = $7, is_free_tier = $8, expires_at = $9
                WHERE owner = $1 AND version = $2 RETURNING {_COLUMNS}""",
            self._owner,
            version,
            facts.health,
            *_values(facts),
        )
        return None if row is None else _stored_key(row)

    async def record_exhausted(self, version: int) -> StoredKey | None:
        """Upstream knows the key and says that its account cannot pay. None when that version is gone."""
        row = await self._connection.fetchrow(
            f"""UPDATE keys.user_openrouter_integrations SET health = 'exhausted', rejections = 0, verified_at = now()
                WHERE owner = $1 AND version = $2 RETURNING {_COLUMNS}""",
            self._owner,
            version,
        )
        return None if row is None else _stored_key(row)

    async def record_rejection(self, version: int) -> StoredKey | None:
        """Upstream does not know the key: `suspect` at first, `rejected` when repeated. None when that version is gone."""
        row = await self._connection.fetchrow(
            f"""UPDATE keys.user_openrouter_integrations
                SET rejections = rejections + 1,
                    health = CASE WHEN rejections + 1 >= $3 THEN 'rejected' ELSE 'suspect' END
                WHERE owner = $1 AND version = $2 RETURNING {_COLUMNS}""",
            self._owner,
            version,
            REJECTIONS_TO_BELIEVE,
        )
        return None if row is None else _stored_key(row)

    async def log_lease(self, instance: str, version: int, result: LeaseResult) -> None:
        """Append to the owner's hash chain."""
        await self._connection.execute(
            "INSERT INTO keys.lease_log (owner, instance, version, result) VALUES ($1, $2, $3, $4)",
            self._owner,
            instance,
            version,
            result,
        )


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

    async def owners_outside(self, master_key_ids: Sequence[str], limit: int) -> list[str]:
        """Ids of owners whose data key is wrapped under none of these master keys."""
        async with unavailable_when_down():
            rows = await self._pool.fetch("SELECT keys.owners_outside($1, $2) AS owner", list(master_key_ids), limit)
        return [row["owner"] for row in rows]

    async def recipient_of(self, day: date, master_key_id: str) -> StoredRecipient | None:
        """The key pair to hand out on this day (UTC), if one was made under this master key."""
        async with unavailable_when_down():
            row = await self._pool.fetchrow(
                """SELECT key_id, day, master_key_id, wrapped_private_key FROM keys.recipients
                   WHERE day = $1 AND master_key_id = $2""",
                day,
                master_key_id,
            )
        return None if row is None else StoredRecipient(**row)

    async def recipient_named(self, key_id: str) -> StoredRecipient | None:
        """The key pair of this name."""
        async with unavailable_when_down():
            row = await self._pool.fetchrow(
                "SELECT key_id, day, master_key_id, wrapped_private_key FROM keys.recipients WHERE key_id = $1", key_id
            )
        return None if row is None else StoredRecipient(**row)

    async def offer_recipient(self, recipient: StoredRecipient) -> None:
        """Make this the key pair of its day, unless another replica was first."""
        async with unavailable_when_down():
            await self._pool.execute(
                """INSERT INTO keys.recipients (key_id, day, master_key_id, wrapped_private_key) VALUES ($1, $2, $3, $4)
                   ON CONFLICT ON CONSTRAINT recipients_day_key DO NOTHING""",
                recipient.key_id,
                recipient.day,
                recipient.master_key_id,
                recipient.wrapped_private_key,
            )

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
    )
