"""All SQL of the executor. What must happen together happens in one statement or one transaction here; nobody else commits.

Records become dataclasses before they leave. Whoever ends a run goes through `finish`, whose update is conditional on
the lease token: of two that try, one wins and the other learns it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Literal, cast
from uuid import UUID

import asyncpg

from contracts.execution import Caller, CostStatus, ExecutionStatus
from contracts.keys import Mode
from services.executor.batch_store import admit_all, finish_all, json_text
from services.executor.batches import Batches
from services.executor.limits import UNLIMITED, Admission, Hold, Rates
from services.runtime.postgres import unavailable_when_down

# A job that waits for a part of ours is queued to everybody else.
_EXECUTION_COLUMNS = """id, owner, caller_kind, caller_id, viewer, payment, resource_id, resource_version, model_id, mode,
    pricing, CASE status WHEN 'waiting' THEN 'queued' ELSE status END AS status, idempotency_key, lease_token,
    cancel_requested, job, job_key_id, created_at, started_at, finished_at, last_seq, truncated, error, price_usd, cost_usd,
    cost_status, result, result_key_id"""
# A list shows no outputs, and two hundred long ones would not fit into memory.
_LISTED_COLUMNS = _EXECUTION_COLUMNS.replace(" job,", " NULL::bytea AS job,").replace(
    " result,", " NULL::bytea AS result,"
)

RESULT_IS_PAST = """result IS NOT NULL AND result_expires_at < now() AND NOT EXISTS (
    SELECT FROM executor.workflow_attempts a JOIN executor.workflows w ON w.id = a.workflow_id
    WHERE a.execution_id = executions.id AND w.status = 'running')"""
"""Of a row of `executions`: nobody may ask for its output any more, and no workflow under way may need it."""


@dataclass(frozen=True)
class Execution:
    """A row of `executions`."""

    id: UUID
    owner: str
    caller_kind: Literal["user", "service"]
    caller_id: str
    viewer: str
    payment: str | None
    resource_id: UUID | None
    resource_version: int
    model_id: str
    mode: Mode
    pricing: dict[str, Any]
    status: ExecutionStatus
    idempotency_key: str | None
    lease_token: UUID | None
    cancel_requested: bool
    job: bytes | None
    job_key_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    last_seq: int | None
    truncated: bool
    error: dict[str, Any] | None
    price_usd: Decimal | None
    cost_usd: Decimal | None
    cost_status: CostStatus | None
    result: bytes | None
    result_key_id: str | None


@dataclass(frozen=True)
class AttemptRow:
    """A row of `attempts`."""

    number: int
    started_at: datetime
    generation_id: str | None
    status: str
    code: str | None
    http_status: int | None
    cost_usd: Decimal | None
    cost_status: CostStatus | None


@dataclass(frozen=True)
class NewExecution:
    """What admission and the queue need to know of a run."""

    id: UUID
    owner: str
    caller_kind: str
    caller_id: str
    viewer: str
    resource_id: UUID | None
    resource_version: int
    model_id: str
    pricing: dict[str, Any]
    idempotency_key: str | None
    request_hash: bytes
    media: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutgoingMessage:
    """Something to publish because of what is committed with it."""

    subject: str
    message_id: str
    payload: bytes


@dataclass(frozen=True)
class Ending:
    """Everything that is written when a run ends."""

    status: Literal["succeeded", "failed", "canceled", "interrupted"]
    mode: Mode
    error: dict[str, Any] | None
    truncated: bool
    last_seq: int | None
    price_usd: Decimal | None
    cost_usd: Decimal | None
    cost_status: CostStatus
    result: bytes | None
    result_key_id: str | None
    keep: timedelta
    receipt: dict[str, Any]
    attempts: list[dict[str, Any]]
    media: list[str]
    messages: list[OutgoingMessage]


@dataclass(frozen=True)
class Revision:
    """A further revision of a receipt, and what changes with it."""

    number: int
    receipt: dict[str, Any]
    price_usd: Decimal | None
    cost_usd: Decimal | None
    cost_status: CostStatus
    price_was_unknown: bool
    messages: list[OutgoingMessage]


@dataclass(frozen=True)
class PendingCost:
    """An attempt whose cost is still to be looked up."""

    execution_id: UUID
    number: int
    owner: str
    mode: Mode
    generation_id: str
    lookups: int


def _hold_arguments(hold: Hold | None) -> tuple[Decimal | None, ...]:
    return (None, None, None, None) if hold is None else (hold.usd, hold.key_usd, hold.resource_usd, hold.caller_usd)


def _execution(record: asyncpg.Record) -> Execution:
    return Execution(**{name: record[name] for name in Execution.__dataclass_fields__})


def _attempt(record: asyncpg.Record) -> AttemptRow:
    return AttemptRow(**{name: record[name] for name in AttemptRow.__dataclass_fields__})


class Store:
    """The executor's tables, through one pool."""

    def __init__(self, pool: asyncpg.Pool, *, lease_s: float) -> None:
        self._pool = pool
        self._lease = timedelta(seconds=lease_s)
        self._admissions = Batches(partial(admit_all, pool, self._lease))
        self._endings = Batches(partial(finish_all, pool))

    # Beginning --------------------------------------------------------------------------------------------------------

    async def admit(
        self,
        new: NewExecution,
        *,
        mode: Mode,
        running_per_key: int,
        executor: str,
        lease_token: UUID,
        rates: Rates = UNLIMITED,
        hold: Hold | None = None,
        cooling: Sequence[str] = (),
    ) -> Admission:
        """Look the request up, check every limit, insert the run with its first attempt: one round trip.

        `cooling` names the cooldowns that concern the run, `hold` what it may cost where its creator limits a day.
        """
        record = await self._admissions.call(
            (
                new.id, new.owner, new.caller_kind, new.caller_id, new.viewer, new.resource_id, new.resource_version,
                new.model_id, mode, json_text(new.pricing), new.idempotency_key, new.request_hash, running_per_key,
                executor, lease_token, " ".join(cooling), rates.per_key, rates.per_caller, *_hold_arguments(hold),
            )
        )  # fmt: skip
        return Admission(*record)

    async def enqueue(
        self, new: NewExecution, *, mode: Mode, job: bytes, job_key_id: str, hold: Hold | None = None
    ) -> Admission:
        """Insert a queued run, or find the one that the same request made before."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                "SELECT * FROM executor.enqueue($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19)",
                new.id, new.owner, new.caller_kind, new.caller_id, new.viewer, new.resource_id, new.resource_version,
                new.model_id, mode, new.pricing, new.idempotency_key, new.request_hash, job, job_key_id, new.media,
                *_hold_arguments(hold),
            )  # fmt: skip
        return Admission(*record)

    async def find_same(
        self, execution_id: UUID | None, caller: Caller, idempotency_key: str | None, request_hash: bytes
    ) -> Execution | None:
        """The run that the same request of the same caller made before, by its id or its key."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                f"""SELECT {_EXECUTION_COLUMNS} FROM executor.executions
                    WHERE caller_kind = $2 AND caller_id = $3 AND request_hash = $5
                      AND (id = $1 OR (idempotency_key = $4 AND created_at >= now() - interval '24 hours'))
                    ORDER BY id = $1 DESC LIMIT 1""",
                execution_id, caller.kind, caller.id, idempotency_key, request_hash,
            )  # fmt: skip
        return None if record is None else _execution(record)

    async def claim(
        self, *, running_per_key: int, executor: str, lease_token: UUID, rates: Rates = UNLIMITED
    ) -> Execution | None:
        """Take one queued run whose key has a free slot, is in no cooldown, and whose minute has room."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                "SELECT * FROM executor.claim($1, $2, $3, $4, $5, $6)",
                running_per_key, executor, lease_token, self._lease, rates.per_key, rates.per_caller,
            )  # fmt: skip
        return None if record is None else _execution(record)

    async def has_queued(self) -> bool:
        found = await self._pool.fetchval("SELECT EXISTS (SELECT FROM executor.executions WHERE status = 'queued')")
        return cast("bool", found)

    async def begin_attempt(self, execution_id: UUID, number: int, cooling: Sequence[str] = ()) -> bool:
        """Committed before the call that it is for; False when one of the cooldowns in `cooling` has begun meanwhile."""
        async with unavailable_when_down():
            begun = await self._pool.fetchval(
                """INSERT INTO executor.attempts (execution_id, number)
                   SELECT $1, $2 FROM executor.executions e
                   WHERE e.id = $1 AND NOT EXISTS (
                       SELECT FROM executor.cooldowns c
                       WHERE c.owner = e.owner AND c.about = ANY($3::text[]) AND c.until > now())
                   RETURNING true""",
                execution_id, number, cooling,
            )  # fmt: skip
        return begun is not None

    async def note_generations(self, generations: list[tuple[UUID, int, str]]) -> None:
        """Write generation ids of calls that are under way, so that their cost can be found should we die."""
        await self._pool.execute(
            """UPDATE executor.attempts a SET generation_id = t.generation_id
               FROM unnest($1::uuid[], $2::int[], $3::text[]) AS t (execution_id, number, generation_id)
               WHERE a.execution_id = t.execution_id AND a.number = t.number AND a.generation_id IS NULL""",
            [g[0] for g in generations], [g[1] for g in generations], [g[2] for g in generations],
        )  # fmt: skip

    # Running ----------------------------------------------------------------------------------------------------------

    async def renew(self, tokens: list[UUID]) -> dict[UUID, bool]:
        """Renew all leases of this process at once, by the database's clock. Answers those still held, by token, and
        whether somebody asked to cancel the run."""
        records = await self._pool.fetch(
            """WITH held AS (
                   SELECT id FROM executor.executions WHERE status = 'running' AND lease_token = ANY($1::uuid[])
                   ORDER BY id FOR UPDATE
               )
               UPDATE executor.executions e SET lease_until = now() + $2 FROM held WHERE e.id = held.id
               RETURNING e.lease_token, e.cancel_requested""",
            tokens, self._lease,
        )  # fmt: skip
        return {record["lease_token"]: record["cancel_requested"] for record in records}

    async def request_cancel(self, execution_id: UUID) -> ExecutionStatus | None:
        """Flag a run that has not ended; answers its status before, or None when there is no such run."""
        async with unavailable_when_down():
            status = await self._pool.fetchval(
                """UPDATE executor.executions SET cancel_requested = true
                   WHERE id = $1 AND status IN ('queued', 'waiting', 'running')
                   RETURNING CASE status WHEN 'waiting' THEN 'queued' ELSE status END""",
                execution_id,
            )
        return cast("ExecutionStatus | None", status)

    async def take_queued(self, execution_id: UUID, *, executor: str, lease_token: UUID) -> bool:
        """Make a queued run ours without a slot, in order to end it."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                """UPDATE executor.executions
                   SET status = 'running', executor = $2, lease_token = $3, lease_until = now() + $4, started_at = now()
                   WHERE id = $1 AND status IN ('queued', 'waiting') RETURNING id""",
                execution_id, executor, lease_token, self._lease,
            )  # fmt: skip
        return record is not None

    async def put_back(self, execution_id: UUID, lease_token: UUID) -> bool:
        """Queue a claimed run again that could not begin; False when its end was asked for meanwhile."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                """UPDATE executor.executions
                   SET status = 'queued', executor = NULL, lease_token = NULL, lease_until = NULL, started_at = NULL
                   WHERE id = $1 AND status = 'running' AND lease_token = $2 AND NOT cancel_requested RETURNING id""",
                execution_id, lease_token,
            )  # fmt: skip
        return record is not None

    # Ending -----------------------------------------------------------------------------------------------------------

    async def finish(self, execution_id: UUID, lease_token: UUID, ending: Ending) -> bool:
        """End a run with everything that belongs to it in one transaction; False when it had already been ended."""
        return await self._endings.call((execution_id, lease_token, ending))

    async def expired(self, limit: int = 20) -> list[Execution]:
        """Runs whose executor has died. Nobody could renew while the database was down, so a freshly started one gives
        every executor a whole lease first."""
        records = await self._pool.fetch(
            f"""SELECT {_EXECUTION_COLUMNS} FROM executor.executions
                WHERE status = 'running' AND lease_until < now() AND now() - pg_postmaster_start_time() > $1
                ORDER BY lease_until LIMIT $2""",
            self._lease, limit,
        )  # fmt: skip
        return [_execution(record) for record in records]

    async def publish_later(self, messages: list[OutgoingMessage]) -> None:
        """Put messages into the outbox on their own, for jobs that were refused before they became a run."""
        async with unavailable_when_down():
            await self._pool.executemany(
                "INSERT INTO executor.outbox (subject, message_id, payload) VALUES ($1, $2, $3)",
                [(m.subject, m.message_id, m.payload) for m in messages],
            )

    async def outgoing(self, limit: int) -> list[tuple[int, OutgoingMessage]]:
        """The oldest messages of the outbox. Two relays may read the same ones: the message id makes that harmless."""
        records = await self._pool.fetch(
            "SELECT id, subject, message_id, payload FROM executor.outbox ORDER BY id LIMIT $1", limit
        )
        return [(r["id"], OutgoingMessage(r["subject"], r["message_id"], r["payload"])) for r in records]

    async def sent(self, ids: list[int]) -> None:
        await self._pool.execute("DELETE FROM executor.outbox WHERE id = ANY($1::bigint[])", ids)

    async def outbox_size(self) -> int:
        return cast("int", await self._pool.fetchval("SELECT count(*) FROM executor.outbox"))

    async def erase_expired_results(self) -> int:
        """Delete outputs that need not be kept any longer; receipts stay. Steps of a workflow under way may need theirs."""
        status: str = await self._pool.execute(
            f"UPDATE executor.executions SET result = NULL, result_key_id = NULL WHERE {RESULT_IS_PAST}"
        )
        return int(status.rpartition(" ")[2])

    # Costs that were not known at the end -----------------------------------------------------------------------------

    async def pending_costs(self, limit: int, retry_after: timedelta) -> list[PendingCost]:
        """Take attempts whose cost is due to be looked up; each is left alone by others for `retry_after`."""
        records = await self._pool.fetch(
            """WITH due AS (
                   SELECT execution_id, number FROM executor.attempts
                   WHERE cost_status = 'pending' AND next_lookup_at <= now()
                   ORDER BY next_lookup_at LIMIT $1 FOR UPDATE SKIP LOCKED
               )
               UPDATE executor.attempts a
               SET lookups = a.lookups + 1, next_lookup_at = now() + $2::interval * power(2, least(a.lookups, 12))
               FROM due, executor.executions e
               WHERE a.execution_id = due.execution_id AND a.number = due.number AND e.id = a.execution_id
               RETURNING a.execution_id, a.number, a.generation_id, a.lookups, e.owner, e.mode""",
            limit, retry_after,
        )  # fmt: skip
        return [PendingCost(**{name: r[name] for name in PendingCost.__dataclass_fields__}) for r in records]

    async def settle_attempt(
        self,
        execution_id: UUID,
        number: int,
        cost_usd: Decimal | None,
        cost_status: CostStatus,
        revise: Callable[[Execution, list[AttemptRow], dict[str, Any]], Revision],
        was: CostStatus = "pending",
    ) -> Revision | None:
        """Write one attempt's cost and, once no attempt of the run is pending, what `revise` makes of the run, its attempts
        and its latest receipt: one transaction, since nobody would look at a settled attempt again. Answers the revision.
        """
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            run = await connection.fetchrow(
                f"SELECT {_EXECUTION_COLUMNS} FROM executor.executions WHERE id = $1 FOR UPDATE", execution_id
            )
            ours = await connection.fetchval(
                """UPDATE executor.attempts SET cost_usd = $3, cost_status = $4, next_lookup_at = NULL
                   WHERE execution_id = $1 AND number = $2 AND cost_status = $5
                     AND (cost_usd, cost_status) IS DISTINCT FROM ($3, $4) RETURNING true""",
                execution_id, number, cost_usd, cost_status, was,
            )  # fmt: skip
            attempts = await self._attempts(connection, execution_id)
            if not ours or any(attempt.cost_status == "pending" for attempt in attempts):
                return None
            latest = await connection.fetchval(
                "SELECT body FROM executor.receipts WHERE execution_id = $1 ORDER BY revision DESC LIMIT 1",
                execution_id,
            )
            revision = revise(_execution(run), attempts, latest)
            await connection.execute(
                "INSERT INTO executor.receipts (execution_id, revision, owner, body) VALUES ($1, $2, $3, $4)",
                execution_id, revision.number, run["owner"], revision.receipt,
            )  # fmt: skip
            await connection.execute(
                "UPDATE executor.executions SET price_usd = $2, cost_usd = $3, cost_status = $4 WHERE id = $1",
                execution_id, revision.price_usd, revision.cost_usd, revision.cost_status,
            )  # fmt: skip
            await connection.executemany(
                "INSERT INTO executor.outbox (subject, message_id, payload) VALUES ($1, $2, $3)",
                [(m.subject, m.message_id, m.payload) for m in revision.messages],
            )
        return revision

    # Looking ----------------------------------------------------------------------------------------------------------

    async def get(self, execution_id: UUID) -> Execution | None:
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                f"SELECT {_EXECUTION_COLUMNS} FROM executor.executions WHERE id = $1", execution_id
            )
        return None if record is None else _execution(record)

    async def _attempts(self, connection: Any, execution_id: UUID) -> list[AttemptRow]:
        records = await connection.fetch(
            """SELECT number, started_at, generation_id, status, code, http_status, cost_usd, cost_status
               FROM executor.attempts WHERE execution_id = $1 ORDER BY number""",
            execution_id,
        )
        return [_attempt(record) for record in records]

    async def attempts(self, execution_id: UUID) -> list[AttemptRow]:
        return await self._attempts(self._pool, execution_id)

    async def get_with_receipts(self, execution_id: UUID) -> tuple[Execution, list[dict[str, Any]]] | None:
        """The row and every revision of its receipt with its `written_at`, as they stood at one moment."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                f"""SELECT {_EXECUTION_COLUMNS}, (
                        SELECT jsonb_agg(r.body || jsonb_build_object('written_at', r.created_at) ORDER BY r.revision)
                        FROM executor.receipts r WHERE r.execution_id = e.id
                    ) AS receipts
                    FROM executor.executions e WHERE id = $1""",
                execution_id,
            )
        return None if record is None else (_execution(record), record["receipts"] or [])

    async def page(
        self,
        *,
        caller: tuple[str, str] | None,
        owner: str | None,
        resource_id: UUID | None,
        status: str | None,
        before: UUID | None,
        limit: int,
    ) -> list[Execution]:
        """Newest first; ids are UUIDv7, so the id is the order and the cursor."""
        kind, caller_id = caller or (None, None)
        async with unavailable_when_down():
            records = await self._pool.fetch(
                f"""SELECT {_LISTED_COLUMNS} FROM executor.executions
                    WHERE ($1::text IS NULL OR (caller_kind = $1 AND caller_id = $2))
                      AND ($3::text IS NULL OR owner = $3)
                      AND ($4::uuid IS NULL OR resource_id = $4)
                      AND ($5::text IS NULL OR status = $5 OR ($5 = 'queued' AND status = 'waiting'))
                      AND ($6::uuid IS NULL OR id < $6)
                    ORDER BY id DESC LIMIT $7""",
                kind, caller_id, owner, resource_id, status, before, limit,
            )  # fmt: skip
        return [_execution(record) for record in records]
