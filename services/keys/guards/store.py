"""The SQL of the guards: rows of one owner in the transaction that `services.keys.store` has begun for that owner."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import asyncpg

from services.runtime.sealing import Locked

AttemptKind = Literal["connect", "guess", "verify", "oauth"]


class GuardRows:
    """What is counted, spent and kept for a while, of one owner."""

    def __init__(self, connection: asyncpg.Connection, owner: str) -> None:
        self._connection = connection
        self._owner = owner

    async def spend_nonce(self, nonce: str) -> bool:
        """Whether the nonce of a lease request was never seen before, by any replica; from now on it was."""
        spent = await self._connection.fetchval(
            "INSERT INTO keys.lease_nonces (nonce) VALUES ($1) ON CONFLICT (nonce) DO NOTHING RETURNING true", nonce
        )
        return spent is True

    async def attempt(self, kind: AttemptKind, most: int, window: timedelta) -> int | None:
        """Count an attempt of the owner, unless there were `most` within the window: its id, or None when there were."""
        # One at a time per owner, or two at once would both find room for one.
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('keys.attempts ' || $1, 0))", self._owner
        )
        counted: int | None = await self._connection.fetchval(
            """INSERT INTO keys.attempts (owner, kind)
               SELECT $1, $2 WHERE $3 > (
                   SELECT count(*) FROM keys.attempts WHERE owner = $1 AND kind = $2 AND at > now() - $4::interval)
               RETURNING attempt_id""",
            self._owner,
            kind,
            most,
            window,
        )
        return counted

    async def wait_s(self, kind: AttemptKind, window: timedelta) -> float:
        """Seconds until the oldest attempt that counts no longer does."""
        # Not `now()`: this transaction may have begun, and waited for its turn, before those attempts were made.
        wait_s = await self._connection.fetchval(
            """SELECT extract(epoch FROM min(at) + $3::interval - clock_timestamp()) FROM keys.attempts
               WHERE owner = $1 AND kind = $2 AND at > now() - $3::interval""",
            self._owner,
            kind,
            window,
        )
        return max(0.0, float(wait_s or 0))

    async def take_back_attempt(self, attempt_id: int) -> None:
        """An attempt that turned out not to count."""
        await self._connection.execute(
            "DELETE FROM keys.attempts WHERE owner = $1 AND attempt_id = $2", self._owner, attempt_id
        )

    async def put_authorization(self, state_hash: bytes, verifier: Locked, lifetime: timedelta) -> datetime:
        """Keep our half of an authorization; the moment at which it expires."""
        expires_at: datetime = await self._connection.fetchval(
            """INSERT INTO keys.oauth_attempts (state_hash, owner, master_key_id, locked_verifier, expires_at)
               VALUES ($2, $1, $3, $4, now() + $5::interval) RETURNING expires_at""",
            self._owner,
            state_hash,
            verifier.key_id,
            verifier.blob,
            lifetime,
        )
        return expires_at

    async def take_authorization(self, state_hash: bytes) -> Locked | None:
        """Our half of the owner's own authorization, once; None for somebody else's, an expired or a used one."""
        row = await self._connection.fetchrow(
            """DELETE FROM keys.oauth_attempts WHERE owner = $1 AND state_hash = $2 AND expires_at > now()
               RETURNING master_key_id, locked_verifier""",
            self._owner,
            state_hash,
        )
        return None if row is None else Locked(row["master_key_id"], row["locked_verifier"])

    async def verifiers_outside(self, master_key_id: str) -> list[tuple[bytes, Locked]]:
        """State hash and verifier of the owner's authorizations under way that are locked under another master key."""
        rows = await self._connection.fetch(
            """SELECT state_hash, master_key_id, locked_verifier FROM keys.oauth_attempts
               WHERE owner = $1 AND master_key_id <> $2 AND expires_at > now()""",
            self._owner,
            master_key_id,
        )
        return [(row["state_hash"], Locked(row["master_key_id"], row["locked_verifier"])) for row in rows]

    async def relock_verifier(self, state_hash: bytes, verifier: Locked) -> None:
        """Put the same verifier under another master key, unless it was used meanwhile."""
        await self._connection.execute(
            """UPDATE keys.oauth_attempts SET master_key_id = $3, locked_verifier = $4
               WHERE owner = $1 AND state_hash = $2""",
            self._owner,
            state_hash,
            verifier.key_id,
            verifier.blob,
        )
