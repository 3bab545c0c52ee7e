"""The SQL of limits that is not part of admission: cooldowns begin and end, and what a minute or a day has left behind goes."""

from __future__ import annotations

from datetime import timedelta

import asyncpg

_KEEP_DAYS = 7


class LimitsStore:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def cool(self, owner: str, about: str, reason: str, rest: timedelta, key_version: int) -> None:
        """Leave a key, its free models or one of its models alone for `rest`; of two cooldowns the longer one holds."""
        await self._pool.execute(
            """INSERT INTO executor.cooldowns AS c (owner, about, reason, until, key_version)
               VALUES ($1, $2, $3, now() + $4, $5)
               ON CONFLICT (owner, about) DO UPDATE
               SET reason = EXCLUDED.reason, key_version = EXCLUDED.key_version,
                   until = CASE WHEN EXCLUDED.key_version > c.key_version THEN EXCLUDED.until
                                ELSE greatest(c.until, EXCLUDED.until) END
               WHERE EXCLUDED.key_version >= c.key_version""",
            owner, about, reason, rest, key_version,
        )  # fmt: skip

    async def warm_up(self, owner: str, key_version: int) -> None:
        """The owner has another key now: what concerned a former one is over."""
        await self._pool.execute(
            "DELETE FROM executor.cooldowns WHERE owner = $1 AND key_version < $2", owner, key_version
        )

    async def clean(self) -> None:
        """Forget cooldowns and minutes that are over, and days that nobody asks about any more."""
        await self._pool.execute("DELETE FROM executor.cooldowns WHERE until < now()")
        await self._pool.execute("DELETE FROM executor.request_rates WHERE due < now()")
        await self._pool.execute("DELETE FROM executor.budget_days WHERE day < current_date - $1::int", _KEEP_DAYS)
