"""All SQL of workflows. Whoever changes one holds its lock, in a transaction; everybody else looks, or flags a cancel.

How a run of a step stands is read from its own row: no second copy of it exists that could be wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import asyncpg

from contracts.execution import Caller, CostStatus, ExecutionStatus
from contracts.workflows import StepStatus, WorkflowStatus
from services.runtime.postgres import unavailable_when_down

_WORKFLOW_COLUMNS = """id, caller_kind, caller_id, status, cancel_requested, max_price_usd, definition, definition_key_id,
    last_seq, begun_seq, created_at, finished_at"""
_LOCK = "hashtextextended('x402jobs.executor.workflow:' || $1, 0)"


@dataclass(frozen=True)
class AttemptOfStep:
    """A run of a step: its row, and how the run stands (`run` is None where there is none yet, or never will be)."""

    number: int
    execution_id: UUID
    refusal: dict[str, Any] | None
    run: ExecutionStatus | None
    owner: str | None
    error: dict[str, Any] | None
    price_usd: Decimal | None
    cost_usd: Decimal | None
    cost_status: CostStatus | None
    kept_bytes: int | None


@dataclass(frozen=True)
class Step:
    """A row of `workflow_steps` with its attempts, oldest first."""

    name: str
    resource: str
    depends_on: list[str]
    highest_usd: Decimal
    status: StepStatus
    starts: int
    attempts: list[AttemptOfStep]

    @property
    def latest(self) -> AttemptOfStep | None:
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True)
class Workflow:
    """A row of `workflows` with its steps in the order they were sent."""

    id: UUID
    caller_kind: Literal["user", "service"]
    caller_id: str
    status: WorkflowStatus
    cancel_requested: bool
    max_price_usd: Decimal | None
    definition: bytes | None
    definition_key_id: str | None
    last_seq: int
    begun_seq: int
    created_at: datetime
    finished_at: datetime | None
    steps: list[Step]

    @property
    def caller(self) -> Caller:
        return Caller(kind=self.caller_kind, id=self.caller_id)

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


@dataclass(frozen=True)
class ListedWorkflow:
    id: UUID
    status: WorkflowStatus
    created_at: datetime
    finished_at: datetime | None
    steps: dict[str, StepStatus]


@dataclass(frozen=True)
class NewStep:
    name: str
    resource: str
    depends_on: list[str]
    highest_usd: Decimal


@dataclass(frozen=True)
class NewWorkflow:
    id: UUID
    caller: Caller
    idempotency_key: str | None
    request_hash: bytes
    max_price_usd: Decimal | None
    definition: bytes
    definition_key_id: str
    steps: list[NewStep]


@dataclass(frozen=True)
class StepChange:
    """A step's new status; `begins` is the id of a new run of it."""

    name: str
    status: StepStatus
    begins: UUID | None = None


class HeldWorkflow:
    """A workflow that nobody else changes until the transaction ends."""

    def __init__(self, connection: Any, workflow_id: UUID) -> None:
        self._connection = connection
        self._id = workflow_id

    async def load(self) -> Workflow | None:
        return await _load(self._connection, self._id)

    async def change(self, changes: Sequence[StepChange], *, last_seq: int, status: WorkflowStatus) -> datetime | None:
        """New statuses of steps and of the whole, and the numbers of the frames that will tell them. When it has ended."""
        for change in changes:
            number = await self._connection.fetchval(
                """UPDATE executor.workflow_steps
                   SET status = $3, starts = starts + $4::int, attempt = attempt + $4::int
                   WHERE workflow_id = $1 AND name = $2 RETURNING attempt""",
                self._id, change.name, change.status, int(change.begins is not None),
            )  # fmt: skip
            if change.begins is not None:
                await self._connection.execute(
                    """INSERT INTO executor.workflow_attempts (workflow_id, step, number, execution_id)
                       VALUES ($1, $2, $3, $4)""",
                    self._id, change.name, number, change.begins,
                )  # fmt: skip
        finished_at: datetime | None = await self._connection.fetchval(
            """UPDATE executor.workflows
               SET last_seq = $2, status = $3, finished_at = CASE WHEN $3 = 'running' THEN NULL ELSE now() END,
                   definition = CASE WHEN $3 = 'succeeded' THEN NULL ELSE definition END
               WHERE id = $1 RETURNING finished_at""",
            self._id, last_seq, status,
        )  # fmt: skip
        return finished_at

    async def refuse(self, execution_id: UUID, error: dict[str, Any]) -> None:
        """Note why an attempt cannot become a run."""
        await self._connection.execute(
            "UPDATE executor.workflow_attempts SET error = $2 WHERE execution_id = $1", execution_id, error
        )

    async def look_again(self, delay: timedelta) -> None:
        """Leave it alone for a while."""
        await self._connection.execute(
            "UPDATE executor.workflows SET look_again_at = now() + $2 WHERE id = $1", self._id, delay
        )

    async def resume(self) -> None:
        """Everything that did not succeed waits again."""
        await self._connection.execute(
            """UPDATE executor.workflow_steps SET status = 'waiting', starts = 0
               WHERE workflow_id = $1 AND status <> 'succeeded'""",
            self._id,
        )
        await self._connection.execute(
            """UPDATE executor.workflows
               SET status = 'running', finished_at = NULL, cancel_requested = false, begun_seq = last_seq, look_again_at = now()
               WHERE id = $1""",
            self._id,
        )


class WorkflowStore:
    """The tables of workflows, through the executor's pool."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def held(self, workflow_id: UUID, *, patient: bool = False) -> AsyncIterator[HeldWorkflow | None]:
        """The workflow under its lock; None when another executor has it and we are not `patient`."""
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            if patient:
                await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})", str(workflow_id))
            elif not await connection.fetchval(f"SELECT pg_try_advisory_xact_lock({_LOCK})", str(workflow_id)):
                yield None
                return
            yield HeldWorkflow(connection, workflow_id)

    async def insert(self, new: NewWorkflow) -> tuple[Literal["accepted", "existing", "conflict"], UUID]:
        """Write a workflow with its steps, or find the one that the same request made before."""
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                """UPDATE executor.workflows SET idempotency_key = NULL
                   WHERE caller_kind = $1 AND caller_id = $2 AND idempotency_key = $3
                     AND created_at < now() - interval '24 hours'""",
                new.caller.kind, new.caller.id, new.idempotency_key,
            )  # fmt: skip
            inserted = await connection.fetchval(
                """INSERT INTO executor.workflows (
                       id, caller_kind, caller_id, idempotency_key, request_hash, max_price_usd, definition, definition_key_id)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING RETURNING id""",
                new.id, new.caller.kind, new.caller.id, new.idempotency_key, new.request_hash, new.max_price_usd,
                new.definition, new.definition_key_id,
            )  # fmt: skip
            if inserted is not None:
                await connection.executemany(
                    """INSERT INTO executor.workflow_steps (workflow_id, name, position, resource, depends_on, highest_usd)
                       VALUES ($1, $2, $3, $4, $5, $6)""",
                    [
                        (new.id, step.name, position, step.resource, step.depends_on, step.highest_usd)
                        for position, step in enumerate(new.steps)
                    ],
                )
                return "accepted", new.id
            known = await connection.fetchrow(
                """SELECT id, request_hash, caller_kind, caller_id FROM executor.workflows
                   WHERE id = $1 OR (caller_kind = $2 AND caller_id = $3 AND idempotency_key = $4)
                   ORDER BY (id = $1) DESC LIMIT 1""",
                new.id, new.caller.kind, new.caller.id, new.idempotency_key,
            )  # fmt: skip
        same = (known["request_hash"], known["caller_kind"], known["caller_id"]) == (
            new.request_hash,
            new.caller.kind,
            new.caller.id,
        )
        return ("existing" if same else "conflict"), known["id"]

    async def find_same(
        self, workflow_id: UUID, caller: Caller, idempotency_key: str | None, request_hash: bytes
    ) -> UUID | None:
        """The workflow that the same request of the same caller made before, by its id or its key."""
        async with unavailable_when_down():
            found: UUID | None = await self._pool.fetchval(
                """SELECT id FROM executor.workflows
                   WHERE caller_kind = $2 AND caller_id = $3 AND request_hash = $5
                     AND (id = $1 OR (idempotency_key = $4 AND created_at >= now() - interval '24 hours'))
                   ORDER BY (id = $1) DESC LIMIT 1""",
                workflow_id, caller.kind, caller.id, idempotency_key, request_hash,
            )  # fmt: skip
        return found

    async def request_cancel(self, workflow_id: UUID, caller: Caller) -> None:
        """Flag a workflow of this caller that has not ended."""
        async with unavailable_when_down():
            await self._pool.execute(
                """UPDATE executor.workflows SET cancel_requested = true, look_again_at = now()
                   WHERE id = $1 AND caller_kind = $2 AND caller_id = $3 AND status = 'running'""",
                workflow_id, caller.kind, caller.id,
            )  # fmt: skip

    async def forget_definitions(self, keep: timedelta) -> int:
        """Delete what ended workflows would need to be resumed, after `keep`."""
        status: str = await self._pool.execute(
            """UPDATE executor.workflows SET definition = NULL
               WHERE definition IS NOT NULL AND finished_at < now() - $1::interval""",
            keep,
        )
        return int(status.rpartition(" ")[2])

    # Looking ----------------------------------------------------------------------------------------------------------

    async def due(self, limit: int) -> tuple[list[UUID], bool]:
        """Workflows in which something is to be done: a run has ended or must be handed over, or a cancel was asked for;
        and whether any workflow is under way at all."""
        record = await self._pool.fetchrow(
            """SELECT EXISTS (SELECT FROM executor.workflows WHERE status = 'running') AS under_way, ARRAY(
                   SELECT w.id FROM executor.workflows w
                   WHERE w.status = 'running' AND w.look_again_at <= now() AND (
                       w.cancel_requested
                       OR NOT EXISTS (SELECT FROM executor.workflow_steps s WHERE s.workflow_id = w.id AND s.status = 'running')
                       OR EXISTS (
                           SELECT FROM executor.workflow_steps s
                           JOIN executor.workflow_attempts a ON (a.workflow_id, a.step, a.number) = (w.id, s.name, s.attempt)
                           LEFT JOIN executor.executions e ON e.id = a.execution_id
                           WHERE s.workflow_id = w.id AND s.status = 'running' AND (e.id IS NULL OR e.finished_at IS NOT NULL)))
                   ORDER BY w.look_again_at LIMIT $1) AS due""",
            limit,
        )
        return record["due"], record["under_way"]

    async def get(self, workflow_id: UUID) -> Workflow | None:
        """The workflow as it stands at one moment."""
        async with (
            unavailable_when_down(),
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await _load(connection, workflow_id)

    async def page(
        self, caller: Caller, *, status: str | None, before: UUID | None, limit: int
    ) -> list[ListedWorkflow]:
        """Newest first, each with the statuses of its steps; the id is the order and the cursor."""
        async with unavailable_when_down():
            records = await self._pool.fetch(
                """SELECT w.id, w.status, w.created_at, w.finished_at,
                          ARRAY(SELECT ARRAY[s.name, s.status] FROM executor.workflow_steps s
                                WHERE s.workflow_id = w.id ORDER BY s.position) AS steps
                   FROM executor.workflows w
                   WHERE w.caller_kind = $1 AND w.caller_id = $2 AND ($3::text IS NULL OR w.status = $3)
                     AND ($4::uuid IS NULL OR w.id < $4)
                   ORDER BY w.id DESC LIMIT $5""",
                caller.kind, caller.id, status, before, limit,
            )  # fmt: skip
        return [ListedWorkflow(**{**record, "steps": dict(record["steps"])}) for record in records]


async def _load(connection: Any, workflow_id: UUID) -> Workflow | None:
    row = await connection.fetchrow(f"SELECT {_WORKFLOW_COLUMNS} FROM executor.workflows WHERE id = $1", workflow_id)
    if row is None:
        return None
    attempts: dict[str, list[AttemptOfStep]] = {}
    for record in await connection.fetch(
        """SELECT a.step, a.number, a.execution_id, a.error AS refusal, e.owner, e.error, e.price_usd, e.cost_usd, e.cost_status,
                  CASE e.status WHEN 'waiting' THEN 'queued' ELSE e.status END AS run, length(e.result) AS kept_bytes
           FROM executor.workflow_attempts a LEFT JOIN executor.executions e ON e.id = a.execution_id
           WHERE a.workflow_id = $1 ORDER BY a.number""",
        workflow_id,
    ):
        attempt = AttemptOfStep(**{name: record[name] for name in AttemptOfStep.__dataclass_fields__})
        attempts.setdefault(record["step"], []).append(attempt)
    steps = await connection.fetch(
        """SELECT name, resource, depends_on, highest_usd, status, starts FROM executor.workflow_steps
           WHERE workflow_id = $1 ORDER BY position""",
        workflow_id,
    )
    return Workflow(**dict(row), steps=[Step(**dict(step), attempts=attempts.get(step["name"], [])) for step in steps])
