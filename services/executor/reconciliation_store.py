"""The SQL of comparing receipts with upstream's accounts. What is to be asked is rows, so a restart goes on where it was, and
however many executors there are, each row is asked about by one of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, cast
from uuid import UUID

import asyncpg

from contracts.execution import CostStatus
from contracts.keys import Mode
from services.runtime.postgres import unavailable_when_down

Outcome = Literal["same", "differs", "found", "untold"]

# A day's attempts are read in one go.
_LISTING_TIMEOUT_S = 300


@dataclass(frozen=True)
class Check:
    """An attempt to ask upstream about."""

    reconciliation: int
    execution_id: UUID
    number: int
    tries: int
    owner: str
    mode: Mode
    generation_id: str
    cost_usd: Decimal | None
    cost_status: CostStatus


@dataclass(frozen=True)
class Reconciliation:
    """How far one is, or what it found. `drift_usd`: what upstream charged beyond the receipts; may be negative."""

    id: int
    nightly: bool
    from_at: datetime
    until_at: datetime
    finished_at: datetime | None
    checked: int
    differing: int
    found: int
    untold: int
    drift_usd: Decimal


def _reconciliation(record: asyncpg.Record) -> Reconciliation:
    return Reconciliation(**{name: record[name] for name in Reconciliation.__dataclass_fields__})


class ReconciliationStore:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def plan_night(self, quiet: timedelta, furthest: timedelta, sample: int) -> int | None:
        """Once a day over all replicas, `quiet` after midnight UTC: what was run since the last night that was planned, at most
        `furthest` back. None when that has been done; else how many attempts are to be asked about."""
        async with self._pool.acquire() as connection, connection.transaction():
            made = await connection.fetchval(
                """INSERT INTO executor.reconciliations (nightly, from_at, until_at)
                   SELECT true, greatest(coalesce(
                              (SELECT max(until_at) FROM executor.reconciliations WHERE nightly), d.until_at - interval '1 day'
                          ), d.until_at - $2::interval), d.until_at
                   FROM (SELECT date_trunc('day', now() AT TIME ZONE 'UTC' - $1::interval) AT TIME ZONE 'UTC' AS until_at) AS d
                   WHERE NOT EXISTS (SELECT FROM executor.reconciliations r WHERE r.nightly AND r.until_at >= d.until_at)
                   ON CONFLICT DO NOTHING RETURNING id""",
                quiet, furthest,
            )  # fmt: skip
            return None if made is None else await self._list(connection, made, sample)

    async def plan_now(self, back: timedelta, sample: int) -> Reconciliation:
        """Everything of the last while, because somebody asked."""
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            record = await connection.fetchrow(
                """INSERT INTO executor.reconciliations (nightly, from_at, until_at)
                   VALUES (false, now() - $1::interval, now()) RETURNING *""",
                back,
            )
            await self._list(connection, record["id"], sample)
        return _reconciliation(record)

    async def _list(self, connection: asyncpg.Connection, reconciliation: int, sample: int) -> int:
        listed = await connection.fetchval(
            "SELECT executor.list_cost_checks($1, $2, NULL)", reconciliation, sample, timeout=_LISTING_TIMEOUT_S
        )
        return cast("int", listed)

    async def widen(self, reconciliation: int, owner: str) -> int:
        """One of an owner's sample differed: ask about all of theirs. How many more; 0 when that was done before."""
        more = await self._pool.fetchval(
            """WITH first AS (
                   UPDATE executor.reconciliations SET widened = widened || $2::text
                   WHERE id = $1 AND NOT $2 = ANY (widened) RETURNING id
               )
               SELECT executor.list_cost_checks(first.id, 0, $2) FROM first""",
            reconciliation, owner, timeout=_LISTING_TIMEOUT_S,
        )  # fmt: skip
        return more or 0

    async def due(self, limit: int) -> list[Check]:
        """Take attempts that are to be asked about now; each is left alone by others for a minute, then four, then sixteen."""
        records = await self._pool.fetch(
            """WITH due AS (
                   SELECT execution_id, number FROM executor.cost_checks
                   WHERE NOT done AND due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
               )
               UPDATE executor.cost_checks c
               SET tries = c.tries + 1, due_at = now() + interval '1 minute' * power(4, least(c.tries, 5))
               FROM due
               JOIN executor.executions e ON e.id = due.execution_id
               JOIN executor.attempts a ON a.execution_id = due.execution_id AND a.number = due.number
               WHERE c.execution_id = due.execution_id AND c.number = due.number
               RETURNING c.reconciliation, c.execution_id, c.number, c.tries, e.owner, e.mode, a.generation_id, a.cost_usd,
                         a.cost_status""",
            limit,
        )
        return [Check(**{name: record[name] for name in Check.__dataclass_fields__}) for record in records]

    async def close(self, check: Check, outcome: Outcome, drift_usd: Decimal) -> None:
        """Count what came of a check, once."""
        await self._pool.execute(
            """WITH closed AS (
                   UPDATE executor.cost_checks SET done = true
                   WHERE execution_id = $1 AND number = $2 AND NOT done RETURNING reconciliation
               )
               UPDATE executor.reconciliations r
               SET checked = checked + 1, differing = differing + ($3 = 'differs')::int, found = found + ($3 = 'found')::int,
                   untold = untold + ($3 = 'untold')::int, drift_usd = drift_usd + $4
               FROM closed WHERE r.id = closed.reconciliation""",
            check.execution_id, check.number, outcome, drift_usd,
        )  # fmt: skip

    async def finish(self) -> list[Reconciliation]:
        """Those that have nothing left to ask, each told once."""
        records = await self._pool.fetch(
            """WITH finished AS (
                   UPDATE executor.reconciliations r SET finished_at = now()
                   WHERE finished_at IS NULL AND NOT EXISTS (
                       SELECT FROM executor.cost_checks c WHERE c.reconciliation = r.id AND NOT c.done
                   ) RETURNING *
               ), cleared AS (
                   DELETE FROM executor.cost_checks c USING finished WHERE c.reconciliation = finished.id
               )
               SELECT * FROM finished""",
        )
        return [_reconciliation(record) for record in records]

    async def progress(self, reconciliation: int) -> tuple[Reconciliation, int]:
        """How it stands, and how many attempts are still to be asked about."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                """SELECT r.*, (SELECT count(*) FROM executor.cost_checks c WHERE c.reconciliation = r.id AND NOT c.done) AS left
                   FROM executor.reconciliations r WHERE r.id = $1""",
                reconciliation,
            )
        return _reconciliation(record), record["left"]
