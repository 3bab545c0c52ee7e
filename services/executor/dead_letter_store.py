"""The SQL of jobs that cannot be carried out for the moment, or for now at all: waiting, dead letters, and the way back.

A job that waits is a row of `executions` with the status `waiting`, which nobody claims; a dead letter says why it waits for
an operator. Both are written in one statement, so that no job is parked without a letter, and none twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

import asyncpg

from contracts.errors import ErrorCode
from services.runtime.postgres import unavailable_when_down

Kind = Literal["job", "message"]

# A job that ended otherwise meanwhile (canceled, say) is no operator's business any more.
_LETTERS = """
    SELECT d.*, CASE WHEN d.ended_at IS NOT NULL THEN 'ended' WHEN d.requeued_at IS NOT NULL THEN 'requeued'
                     WHEN d.kind = 'job' AND NOT EXISTS (
                         SELECT FROM executor.executions e WHERE e.id = d.id AND e.status = 'waiting'
                     ) THEN 'ended'
                     ELSE 'waiting' END AS status
    FROM executor.dead_letters d"""


@dataclass(frozen=True)
class Letter:
    """A dead letter as it stands."""

    id: UUID
    number: int
    kind: Kind
    status: Literal["waiting", "requeued", "ended"]
    execution_id: UUID | None
    caller_kind: Literal["user", "service"]
    caller_id: str
    owner: str | None
    resource_id: UUID | None
    code: str
    reason: str
    tries: int
    accepted_at: datetime
    died_at: datetime
    requeued_at: datetime | None
    requeued_by: str | None
    payload: bytes | None
    payload_key_id: str | None


def _letter(record: asyncpg.Record) -> Letter:
    return Letter(**{name: record[name] for name in Letter.__dataclass_fields__})


class DeadLetterStore:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    # Waiting ----------------------------------------------------------------------------------------------------------

    async def postpone(
        self, execution_id: UUID, lease_token: UUID, code: ErrorCode, reason: str, *, most_tries: int, longest_s: float
    ) -> Literal["waits", "dead"] | None:
        """Give a claimed job back that cannot begin: it waits twice as long every time, with jitter, and becomes a dead letter
        after `most_tries`. None when it is not ours any more, or its end was asked for meanwhile."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                """WITH put AS (
                       UPDATE executor.executions
                       SET status = 'waiting', tries = tries + 1, executor = NULL, lease_token = NULL, lease_until = NULL,
                           started_at = NULL,
                           not_before = CASE WHEN tries + 1 < $5 THEN now()
                               + interval '1 second' * least(power(2, least(tries, 30)), $6::float8) * (0.5 + random() / 2) END
                       WHERE id = $1 AND status = 'running' AND lease_token = $2 AND NOT cancel_requested
                       RETURNING id, owner, caller_kind, caller_id, resource_id, tries, created_at, not_before
                   ), letter AS (
                       INSERT INTO executor.dead_letters (
                           id, kind, execution_id, caller_kind, caller_id, owner, resource_id, code, reason, tries, accepted_at)
                       SELECT id, 'job', id, caller_kind, caller_id, owner, resource_id, $3, $4, tries, created_at
                       FROM put WHERE not_before IS NULL
                       ON CONFLICT (id) DO UPDATE
                       SET number = DEFAULT, code = EXCLUDED.code, reason = EXCLUDED.reason, tries = EXCLUDED.tries,
                           died_at = now(), requeued_at = NULL, requeued_by = NULL, ended_at = NULL
                   )
                   SELECT not_before IS NULL AS dead FROM put""",
                execution_id, lease_token, code.value, reason, most_tries, longest_s,
            )  # fmt: skip
        if record is None:
            return None
        return "dead" if record["dead"] else "waits"

    async def release(self) -> int:
        """Queue again what has waited long enough; how many."""
        async with unavailable_when_down():
            status: str = await self._pool.execute(
                """UPDATE executor.executions SET status = 'queued', not_before = NULL
                   WHERE status = 'waiting' AND not_before <= now()"""
            )
        return int(status.rpartition(" ")[2])

    async def keep_message(
        self,
        letter_id: UUID,
        *,
        execution_id: UUID | None,
        publisher: str,
        code: ErrorCode,
        reason: str,
        tries: int,
        came_at: datetime,
        payload: bytes | None,
        payload_key_id: str | None,
    ) -> None:
        """A message of the inbox that did not become a job. Without a payload it is only told of: its end is known."""
        async with unavailable_when_down():
            await self._pool.execute(
                """INSERT INTO executor.dead_letters (
                       id, kind, execution_id, caller_kind, caller_id, code, reason, tries, accepted_at, payload,
                       payload_key_id, ended_at)
                   VALUES ($1, 'message', $2, 'service', $3, $4, $5, $6, $7, $8, $9,
                           CASE WHEN $8::bytea IS NULL THEN now() END)
                   ON CONFLICT DO NOTHING""",
                letter_id, execution_id, publisher, code.value, reason, tries, came_at, payload, payload_key_id,
            )  # fmt: skip

    # Operators --------------------------------------------------------------------------------------------------------

    async def get(self, letter_id: UUID) -> Letter | None:
        async with unavailable_when_down():
            record = await self._pool.fetchrow(f"{_LETTERS} WHERE d.id = $1", letter_id)
        return None if record is None else _letter(record)

    async def page(self, *, status: str | None, before: int | None, limit: int) -> list[Letter]:
        """Latest first, without what the messages say."""
        async with unavailable_when_down():
            records = await self._pool.fetch(
                f"""SELECT * FROM ({_LETTERS}) AS l
                    WHERE ($1::text IS NULL OR status = $1) AND ($2::bigint IS NULL OR number < $2)
                    ORDER BY number DESC LIMIT $3""",
                status, before, limit,
            )  # fmt: skip
        return [_letter(record) for record in records]

    async def requeue_job(self, letter_id: UUID, by: str) -> bool:
        """Let a job be claimed again, with all its tries; False when it does not wait for an operator any more."""
        async with unavailable_when_down():
            done: Any = await self._pool.fetchval(
                """WITH freed AS (
                       UPDATE executor.executions SET status = 'queued', tries = 0
                       WHERE id = $1 AND status = 'waiting' AND not_before IS NULL RETURNING id
                   )
                   UPDATE executor.dead_letters d SET requeued_at = now(), requeued_by = $2 FROM freed WHERE d.id = freed.id
                   RETURNING true""",
                letter_id, by,
            )  # fmt: skip
        return done is not None

    async def close_message(self, letter_id: UUID, by: str | None) -> None:
        """Its message became a job after all (`by` says who saw to that), or was refused for good. The payload goes."""
        async with unavailable_when_down():
            await self._pool.execute(
                """UPDATE executor.dead_letters
                   SET requeued_by = $2, requeued_at = CASE WHEN $2::text IS NULL THEN NULL ELSE now() END,
                       ended_at = CASE WHEN $2::text IS NULL THEN now() END, payload = NULL, payload_key_id = NULL
                   WHERE id = $1""",
                letter_id, by,
            )  # fmt: skip

    async def end(self, letter_id: UUID) -> None:
        """Nobody came for it in time; its job has ended."""
        async with unavailable_when_down():
            await self._pool.execute("UPDATE executor.dead_letters SET ended_at = now() WHERE id = $1", letter_id)

    async def overdue(self, kept: timedelta, limit: int) -> list[Letter]:
        """Letters that nobody requeued in time."""
        records = await self._pool.fetch(
            f"SELECT * FROM ({_LETTERS}) AS l WHERE status = 'waiting' AND died_at < now() - $1::interval LIMIT $2",
            kept, limit,
        )  # fmt: skip
        return [_letter(record) for record in records]

    async def forget(self, kept: timedelta) -> int:
        """Delete letters whose story ended so long ago; how many."""
        status: str = await self._pool.execute(
            """DELETE FROM executor.dead_letters
               WHERE greatest(requeued_at, ended_at) < now() - $1::interval
                  OR (died_at < now() - $1::interval AND kind = 'job' AND NOT EXISTS (
                      SELECT FROM executor.executions e WHERE e.id = dead_letters.id AND e.status = 'waiting'))""",
            kept,
        )
        return int(status.rpartition(" ")[2])

    async def count_waiting(self) -> int:
        return cast(
            "int", await self._pool.fetchval(f"SELECT count(*) FROM ({_LETTERS}) AS l WHERE status = 'waiting'")
        )
