"""The SQL of what waits in the database: jobs that nobody runs yet, costs that are being looked up, messages to be sent."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg


@dataclass(frozen=True)
class Backlog:
    """What waits, over all executors. Ages are those of the oldest, in seconds; 0 where nothing waits."""

    jobs: int
    costs: int
    oldest_job_s: float
    oldest_lookup_s: float
    oldest_message_s: float


class BacklogStore:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def read(self) -> Backlog:
        """By the database's clock, which wrote the times. Jobs that rest after a failure of ours wait too; dead letters are
        the operator's, and counted elsewhere."""
        row = await self._pool.fetchrow(
            """WITH jobs AS (
                   SELECT e.created_at FROM executor.executions e
                   WHERE e.status = 'queued' OR e.status = 'waiting' AND e.not_before IS NOT NULL
               ), costs AS (
                   SELECT a.started_at FROM executor.attempts a WHERE a.cost_status = 'pending'
               ), since (job, cost, message) AS (
                   SELECT (SELECT min(created_at) FROM jobs),
                          (SELECT min(started_at) FROM costs),
                          (SELECT min(created_at) FROM executor.outbox)
               )
               SELECT (SELECT count(*) FROM jobs)::int AS jobs,
                      (SELECT count(*) FROM costs)::int AS costs,
                      coalesce(extract(epoch FROM now() - job), 0)::float8 AS oldest_job_s,
                      coalesce(extract(epoch FROM now() - cost), 0)::float8 AS oldest_lookup_s,
                      coalesce(extract(epoch FROM now() - message), 0)::float8 AS oldest_message_s
               FROM since"""
        )
        return Backlog(**row)
