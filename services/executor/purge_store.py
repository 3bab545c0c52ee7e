"""The SQL of deleting what need not or must not be kept any longer. Each kind is counted and deleted by the same condition, so
that what was announced is what goes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID

import asyncpg

from services.executor.store import RESULT_IS_PAST
from services.runtime.postgres import unavailable_when_down

_TIMEOUT_S = 600


@dataclass(frozen=True)
class Kind:
    """One kind of data: what it is called, where it is, which of it goes (`$1` is a person, or how long letters are kept), and
    what is written instead, nothing where the rows go altogether."""

    what: str
    table: str
    condition: str
    instead: str | None = None


_RESULT = "result = NULL, result_key_id = NULL"
LETTERS = "dead letters whose story has ended"
PAST = (
    Kind(
        "results past their time",
        "executor.executions",
        f"{RESULT_IS_PAST} AND $1::interval IS NOT NULL",
        _RESULT,
    ),
    Kind(
        "idempotency keys that stand for nothing any more",
        "executor.executions",
        "idempotency_key IS NOT NULL AND created_at < now() - interval '24 hours' AND $1::interval IS NOT NULL",
        "idempotency_key = NULL",
    ),
    Kind(LETTERS, "executor.dead_letters", "greatest(requeued_at, ended_at) < now() - $1::interval"),
)
"""What is over by itself; executors delete it too, in their own time."""
_OWN = "caller_kind = 'user' AND caller_id = $1"
PERSONAL = (
    Kind("results", "executor.executions", f"result IS NOT NULL AND {_OWN}", f"{_RESULT}, result_expires_at = NULL"),
    Kind(
        "idempotency keys and fingerprints of requests",
        "executor.executions",
        rf"(idempotency_key IS NOT NULL OR request_hash <> '\x') AND finished_at IS NOT NULL AND {_OWN}",
        r"idempotency_key = NULL, request_hash = '\x'",
    ),
    Kind(
        "references to files, which go within the hour",
        "executor.media_references",
        f"execution_id IN (SELECT id FROM executor.executions WHERE finished_at IS NOT NULL AND {_OWN})",
    ),
    Kind(
        "uploads, which go within minutes",
        "executor.x402_cached_images",
        "kept_until > now() AND owner_kind = 'user' AND owner_id = $1",
        "kept_until = now()",
    ),
    Kind(
        "inputs of workflows",
        "executor.workflows",
        f"status <> 'running' AND definition IS NOT NULL AND {_OWN}",
        r"definition = NULL, definition_key_id = NULL, idempotency_key = NULL, request_hash = '\x'",
    ),
    Kind("dead letters", "executor.dead_letters", _OWN),
)
"""What one person sent and got. Receipts and rows of runs stay: they hold no text, and money was recorded on them."""


class PurgeStore:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def count(self, kind: Kind, argument: str | timedelta) -> int:
        async with unavailable_when_down():
            found = await self._pool.fetchval(
                f"SELECT count(*) FROM {kind.table} WHERE {kind.condition}", argument, timeout=_TIMEOUT_S
            )
        return cast("int", found)

    async def delete(self, kind: Kind, argument: str | timedelta) -> int:
        """How many went."""
        action = f"DELETE FROM {kind.table}" if kind.instead is None else f"UPDATE {kind.table} SET {kind.instead}"
        async with unavailable_when_down():
            status: str = await self._pool.execute(f"{action} WHERE {kind.condition}", argument, timeout=_TIMEOUT_S)
        return int(status.rpartition(" ")[2])

    async def unbegun(self, user: str) -> list[UUID]:
        """Jobs of this person that have not begun."""
        async with unavailable_when_down():
            records = await self._pool.fetch(
                f"SELECT id FROM executor.executions WHERE status IN ('queued', 'waiting') AND {_OWN}", user
            )
        return [record["id"] for record in records]

    async def running(self, user: str) -> int:
        """Runs and workflows of this person under way."""
        async with unavailable_when_down():
            found = await self._pool.fetchval(
                f"""SELECT (SELECT count(*) FROM executor.executions WHERE status = 'running' AND {_OWN})
                         + (SELECT count(*) FROM executor.workflows WHERE status = 'running' AND {_OWN})""",
                user,
            )
        return cast("int", found)
