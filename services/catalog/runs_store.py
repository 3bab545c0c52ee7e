"""SQL of what runs cost and brought: the projection of receipts, and the daily limits that it is held against.

A receipt may arrive twice, late, or after its own correction. One row per execution holds the highest revision seen, and
everything that is summed up beside it moves by the difference between that row's old and new content, in the same
transaction, under a lock that all replicas share: so any order of any deliveries ends in the same figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Any
from uuid import UUID

import asyncpg

from contracts.errors import ErrorCode
from contracts.execution import Receipt
from contracts.keys import Mode
from contracts.listings import Measured
from contracts.market import BudgetLimits, BudgetScope, DayFigures, Figures, ResourceStats
from services.catalog.budgets import Spent, caller_subject, marks_reached, sentence, states
from services.catalog.market_store import BUDGET_NOTICE, insert_notice
from services.runtime.postgres import unavailable_when_down

_RECEIPTS_LOCK = 0x7834303263617402  # Like the lock of syncs, with another number.
_MEASURED_RUNS = 200
_STALE_AFTER = timedelta(days=1)
"""Receipts that come later than this change figures, but nobody is told about a budget of last week."""

_FIGURES = """count(*) AS runs,
    count(*) FILTER (WHERE caller_kind = 'user' AND caller_id = owner) AS own_runs,
    count(*) FILTER (WHERE mode = 'test') AS test_runs,
    count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE status = 'failed') AS failed,
    count(*) FILTER (WHERE status = 'canceled') AS canceled,
    count(*) FILTER (WHERE status = 'interrupted') AS interrupted,
    coalesce(sum(model_usd), 0) AS model_usd,
    coalesce(sum(price_usd), 0) AS price_usd,
    coalesce(sum(markup_usd), 0) AS margin_usd,
    coalesce(sum(model_usd) FILTER (WHERE mode = 'test'), 0) AS test_model_usd,
    coalesce(sum(price_usd) FILTER (WHERE mode = 'test'), 0) AS test_price_usd,
    coalesce(sum(markup_usd) FILTER (WHERE mode = 'test'), 0) AS test_margin_usd,
    count(*) FILTER (WHERE model_usd IS NULL) AS cost_unknown_runs,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY total_ms) FILTER (WHERE status = 'succeeded') AS median_ms,
    percentile_disc(0.95) WITHIN GROUP (ORDER BY total_ms) FILTER (WHERE status = 'succeeded') AS p95_ms,
    coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
    coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens"""


@dataclass(frozen=True, slots=True)
class _Run:
    """What figures need of a receipt: a row of catalog.runs."""

    execution_id: UUID
    revision: int
    owner: str
    resource_id: UUID | None
    version: int
    caller_kind: str
    caller_id: str
    mode: Mode
    status: str
    code: str | None
    finished_at: datetime
    day: date
    total_ms: int
    model_usd: Decimal | None
    price_usd: Decimal | None
    markup_usd: Decimal | None
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None


_COLUMNS = [field.name for field in fields(_Run)]
_values_of = attrgetter(*_COLUMNS)
_Key = tuple[str, date, Mode, BudgetScope, str]
"""owner, day, mode, scope, subject: a row of catalog.spending."""


class RunsStore:
    """Every method raises ServiceError UNAVAILABLE when the database cannot be reached."""

    def __init__(self, pool: Callable[[], asyncpg.Pool]) -> None:
        self._pool = pool

    # Receipts ---------------------------------------------------------------------------------------------------------

    async def record(self, receipts: Sequence[Receipt]) -> None:
        """All of them or none; each counts once, at its highest revision. Budgets that are reached become notices."""
        async with unavailable_when_down(), self._pool().acquire() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _RECEIPTS_LOCK)
            known = await _known_runs(connection, [receipt.execution_id for receipt in receipts])
            before = dict(known)
            for receipt in receipts:
                run = known.get(receipt.execution_id)
                if run is None or run.revision < receipt.revision:
                    known[receipt.execution_id] = _run_of(receipt)
            changed = [(before.get(key), run) for key, run in known.items() if before.get(key) != run]
            await _write_runs(connection, [run for _, run in changed])
            spent = await _write_spending(connection, changed)
            await _write_tokens(connection, changed)
            await _tell_budgets(connection, spent)

    # Stats ------------------------------------------------------------------------------------------------------------

    async def stats(self, resource_id: UUID, since: date, until: date) -> ResourceStats:
        """Both days are part of it."""
        start = datetime.combine(since, time(), UTC)
        end = datetime.combine(until + timedelta(days=1), time(), UTC)
        where = "resource_id = $1 AND finished_at >= $2 AND finished_at < $3"
        async with (
            unavailable_when_down(),
            self._pool().acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            rows = await connection.fetch(
                f"""SELECT day, {_FIGURES} FROM catalog.runs WHERE {where}
                    GROUP BY GROUPING SETS ((day), ()) ORDER BY day NULLS FIRST""",
                resource_id,
                start,
                end,
            )
            codes = await connection.fetch(
                f"""SELECT day, code, count(*) AS runs FROM catalog.runs WHERE {where} AND code IS NOT NULL
                    GROUP BY GROUPING SETS ((day, code), (code)) ORDER BY runs DESC, code""",
                resource_id,
                start,
                end,
            )
        failures: dict[date | None, dict[ErrorCode, int]] = defaultdict(dict)
        for row in codes:
            failures[row["day"]][ErrorCode(row["code"])] = row["runs"]
        total, *days = [{**dict(row), "failures": failures[row["day"]]} for row in rows]
        return ResourceStats(
            resource_id=resource_id,
            since=since,
            until=until,
            total=Figures.model_validate(total),
            days=[DayFigures.model_validate(day) for day in days],
        )

    async def measured(self, resource_ids: Sequence[UUID]) -> dict[UUID, Measured]:
        """How the latest runs by others than the creator went, of every resource that has had any."""
        async with unavailable_when_down():
            rows = await self._pool().fetch(
                """SELECT wanted.id, latest.*
                   FROM unnest($1::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
                       SELECT count(*) AS runs, max(mode) AS mode,
                           count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
                           count(*) FILTER (WHERE status <> 'canceled') AS judged,
                           percentile_disc(0.5) WITHIN GROUP (ORDER BY total_ms)
                               FILTER (WHERE status = 'succeeded') AS median_ms,
                           percentile_disc(0.95) WITHIN GROUP (ORDER BY total_ms)
                               FILTER (WHERE status = 'succeeded') AS p95_ms
                       FROM (
                           SELECT mode, status, total_ms FROM catalog.runs AS r
                           WHERE resource_id = wanted.id AND NOT (caller_kind = 'user' AND caller_id = owner)
                               AND mode = CASE WHEN EXISTS (
                                   SELECT FROM catalog.runs AS l WHERE l.resource_id = wanted.id AND l.mode = 'live'
                                       AND NOT (l.caller_kind = 'user' AND l.caller_id = l.owner)
                               ) THEN 'live' ELSE 'test' END
                           ORDER BY finished_at DESC LIMIT $2) AS r) AS latest
                   WHERE latest.judged > 0""",
                list(resource_ids),
                _MEASURED_RUNS,
            )
        return {
            row["id"]: Measured(
                runs=row["runs"],
                success_rate=round(row["succeeded"] / row["judged"], 4),
                median_ms=row["median_ms"],
                p95_ms=row["p95_ms"],
                mode=row["mode"],
            )
            for row in rows
        }

    # Budgets ----------------------------------------------------------------------------------------------------------

    async def limits(self, owner: str) -> BudgetLimits:
        async with unavailable_when_down():
            return (await _limits_of(self._pool(), [owner])).get(owner, BudgetLimits())

    async def set_limits(self, owner: str, limits: BudgetLimits, today: date) -> None:
        """Replaces them; what today has reached of the new ones becomes a notice."""
        async with unavailable_when_down(), self._pool().acquire() as connection, connection.transaction():
            # Receipts that are being written belong to the old limits or to the new ones, never to neither.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _RECEIPTS_LOCK)
            await connection.execute(
                """INSERT INTO catalog.budgets (owner, limits) VALUES ($1, $2)
                   ON CONFLICT ON CONSTRAINT budgets_pkey
                       DO UPDATE SET limits = excluded.limits, updated_at = clock_timestamp()""",
                owner,
                limits.model_dump(mode="json"),
            )
            await _tell_owner(connection, owner, today, limits, await _spent_in(connection, owner, today))

    async def spent(self, owner: str, day: date) -> list[Spent]:
        async with unavailable_when_down():
            return await _spent_in(self._pool(), owner, day)

    async def owned(self, owner: str, resource_ids: Iterable[UUID]) -> list[UUID]:
        """Those of the ids that are living resources of the owner."""
        async with unavailable_when_down():
            rows = await self._pool().fetch(
                """SELECT id FROM catalog.x402_resources
                   WHERE owner = $1 AND id = ANY ($2::uuid[]) AND deleted_at IS NULL""",
                owner,
                list(resource_ids),
            )
        return [row["id"] for row in rows]


# Rows -----------------------------------------------------------------------------------------------------------------


def _run_of(receipt: Receipt) -> _Run:
    ended = receipt.finished_at.astimezone(UTC)
    return _Run(
        execution_id=receipt.execution_id,
        revision=receipt.revision,
        owner=receipt.owner,
        resource_id=receipt.resource_id,
        version=receipt.resource_version,
        caller_kind=receipt.caller.kind,
        caller_id=receipt.caller.id,
        mode=receipt.mode,
        status=receipt.status,
        code=receipt.code.value if receipt.code else None,
        finished_at=ended,
        day=ended.date(),
        total_ms=receipt.timing.total_ms,
        model_usd=receipt.cost.model_usd,
        price_usd=receipt.cost.price_usd,
        markup_usd=receipt.cost.markup_usd,
        prompt_tokens=receipt.usage.prompt_tokens,
        completion_tokens=receipt.usage.completion_tokens,
        reasoning_tokens=receipt.usage.reasoning_tokens,
        cached_tokens=receipt.usage.cached_tokens,
    )


async def _known_runs(connection: asyncpg.Connection, execution_ids: Sequence[UUID]) -> dict[UUID, _Run]:
    rows = await connection.fetch(
        f"SELECT {', '.join(_COLUMNS)} FROM catalog.runs WHERE execution_id = ANY ($1::uuid[])", list(execution_ids)
    )
    return {row["execution_id"]: _Run(**dict(row)) for row in rows}


async def _write_runs(connection: asyncpg.Connection, runs: Sequence[_Run]) -> None:
    values = ", ".join(f"${number}" for number in range(1, len(_COLUMNS) + 1))
    updates = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[1:])
    await connection.executemany(
        f"""INSERT INTO catalog.runs ({", ".join(_COLUMNS)}) VALUES ({values})
            ON CONFLICT ON CONSTRAINT runs_pkey DO UPDATE SET {updates}""",
        [_values_of(run) for run in runs],
    )


def _shares(run: _Run) -> list[_Key]:
    """The sums that a run is part of."""
    keys: list[_Key] = [
        (run.owner, run.day, run.mode, "key", ""),
        (run.owner, run.day, run.mode, "caller", caller_subject(run.caller_kind, run.caller_id)),
    ]
    if run.resource_id is not None:
        keys.append((run.owner, run.day, run.mode, "resource", str(run.resource_id)))
    return keys


async def _write_spending(
    connection: asyncpg.Connection, changed: Iterable[tuple[_Run | None, _Run]]
) -> dict[tuple[str, date], list[Spent]]:
    """Returns the sums that moved, as they are now, by owner and day."""
    moves: dict[_Key, tuple[Decimal, int]] = {}
    for before, after in changed:
        for sign, run in ((-1, before), (1, after)):
            if run is None:
                continue
            for key in _shares(run):
                usd, unknown = moves.get(key, (Decimal(0), 0))
                moves[key] = (usd + sign * (run.model_usd or 0), unknown + sign * (run.model_usd is None))
    spent: dict[tuple[str, date], list[Spent]] = defaultdict(list)
    for (owner, day, mode, scope, subject), (usd, unknown) in moves.items():
        row = await connection.fetchrow(
            """INSERT INTO catalog.spending AS s (owner, day, mode, scope, subject, model_usd, cost_unknown_runs)
               VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT ON CONSTRAINT spending_pkey DO UPDATE
                   SET model_usd = s.model_usd + excluded.model_usd,
                       cost_unknown_runs = s.cost_unknown_runs + excluded.cost_unknown_runs
               RETURNING mode, scope, subject, model_usd, cost_unknown_runs""",
            owner,
            day,
            mode,
            scope,
            subject,
            usd,
            unknown,
        )
        spent[owner, day].append(Spent(**dict(row)))
    return spent


_Tokens = tuple[int, int, int, int, int]
_NO_TOKENS: _Tokens = (0, 0, 0, 0, 0)


def _tokens(run: _Run | None) -> _Tokens:
    """What a run adds to the token sums of its version and mode: runs, prompt, completion, reasoning, cached."""
    if run is None or run.status != "succeeded" or run.prompt_tokens is None or run.completion_tokens is None:
        return _NO_TOKENS
    return (1, run.prompt_tokens, run.completion_tokens, run.reasoning_tokens or 0, run.cached_tokens or 0)


async def _write_tokens(connection: asyncpg.Connection, changed: Iterable[tuple[_Run | None, _Run]]) -> None:
    moves: dict[tuple[UUID, int, str], _Tokens] = {}
    for before, after in changed:
        if after.resource_id is not None:
            key = (after.resource_id, after.version, after.mode)
            former = moves.get(key, _NO_TOKENS)
            moves[key] = tuple(
                was + new - old for was, new, old in zip(former, _tokens(after), _tokens(before), strict=True)
            )  # type: ignore[assignment]
    for (resource_id, version, mode), move in moves.items():
        if move == _NO_TOKENS:
            continue
        updated = await connection.fetchval(
            """UPDATE catalog.resource_token_stats
               SET runs = runs + $4, prompt_tokens = prompt_tokens + $5, completion_tokens = completion_tokens + $6,
                   reasoning_tokens = reasoning_tokens + $7, cached_tokens = cached_tokens + $8
               WHERE resource_id = $1 AND version = $2 AND mode = $3 RETURNING runs""",
            resource_id,
            version,
            mode,
            *move,
        )
        if updated is None:
            # Of a resource that this database does not have there is nothing to expect.
            await connection.execute(
                """INSERT INTO catalog.resource_token_stats
                       (resource_id, version, mode, runs, prompt_tokens, completion_tokens, reasoning_tokens,
                        cached_tokens)
                   SELECT id, $2, $3, $4, $5, $6, $7, $8 FROM catalog.x402_resources WHERE id = $1""",
                resource_id,
                version,
                mode,
                *move,
            )


# Budgets --------------------------------------------------------------------------------------------------------------


async def _limits_of(connection: asyncpg.Connection | asyncpg.Pool, owners: Sequence[str]) -> dict[str, BudgetLimits]:
    rows = await connection.fetch(
        "SELECT owner, limits FROM catalog.budgets WHERE owner = ANY ($1::text[])", list(owners)
    )
    return {row["owner"]: BudgetLimits.model_validate(row["limits"]) for row in rows}


async def _spent_in(connection: asyncpg.Connection | asyncpg.Pool, owner: str, day: date) -> list[Spent]:
    rows = await connection.fetch(
        """SELECT mode, scope, subject, model_usd, cost_unknown_runs FROM catalog.spending
           WHERE owner = $1 AND day = $2 ORDER BY mode, scope, subject""",
        owner,
        day,
    )
    return [Spent(**dict(row)) for row in rows]


async def _tell_budgets(connection: asyncpg.Connection, spent: Mapping[tuple[str, date], Sequence[Spent]]) -> None:
    oldest = (datetime.now(UTC) - _STALE_AFTER).date()
    limits = await _limits_of(connection, sorted({owner for owner, _ in spent}))
    for (owner, day), moved in spent.items():
        if owner in limits and day >= oldest:
            await _tell_owner(connection, owner, day, limits[owner], moved)


async def _tell_owner(
    connection: asyncpg.Connection, owner: str, day: date, limits: BudgetLimits, spent: Sequence[Spent]
) -> None:
    for state in (*states(limits, spent, owner, "live"), *states(limits, spent, owner, "test")):
        for mark in marks_reached(state):
            facts: dict[str, Any] = state.model_dump(mode="json", exclude={"reached_percent", "cost_unknown_runs"})
            subject = state.resource_id or caller_subject(state.caller_kind or "", state.caller_id or "")
            kind = "budget" if state.mode == "live" else "test-budget"
            # A limit that is changed is another limit, and told about anew.
            cause = f"{kind}:{state.scope}:{subject}:{day}:{facts['daily_usd']}:{mark}"
            body = {**facts, "day": day.isoformat(), "percent": mark, "message": sentence(state)}
            await insert_notice(connection, owner, state.resource_id, BUDGET_NOTICE, cause, body)
