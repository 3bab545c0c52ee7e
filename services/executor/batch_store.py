"""SQL of the two statements that every run needs, its admission and its end, for many runs at once.

The rules are those of the functions `executor.admit` and `executor.finish`; a batch only saves statements and commits. Batches
of two executors may want the same locks, so each takes them in one order: admissions by owner, ends by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import orjson

from services.runtime.postgres import unavailable_when_down

if TYPE_CHECKING:  # the store is what puts these statements to use
    from services.executor.store import Ending

_ADMIT = """
    SELECT a.outcome, a.execution_id, a.admitted_at, a.reason, a.wait_s, a.limit_usd, a.spent_usd, a.held_usd
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::int[], $8::text[], $9::text[],
        $10::text[], $11::text[], $12::bytea[], $13::int[], $14::text[], $15::uuid[], $16::text[], $17::int[],
        $18::int[], $19::numeric[], $20::numeric[], $21::numeric[], $22::numeric[]
    ) WITH ORDINALITY AS t (
        id, owner, caller_kind, caller_id, viewer, resource_id, resource_version, model_id, mode, pricing,
        idempotency_key, request_hash, running_per_key, executor, lease_token, cooling, per_key, per_caller, hold_usd,
        key_usd, resource_usd, caller_usd, number
    ), LATERAL executor.admit(
        t.id, t.owner, t.caller_kind, t.caller_id, t.viewer, t.resource_id, t.resource_version, t.model_id, t.mode,
        t.pricing::jsonb, t.idempotency_key, t.request_hash, t.running_per_key, t.executor, t.lease_token, $23,
        string_to_array(t.cooling, ' '), t.per_key, t.per_caller, t.hold_usd, t.key_usd, t.resource_usd, t.caller_usd
    ) AS a
    ORDER BY t.number"""

# The arrays of one run become rows of their own: an array of arrays would have to be a rectangle.
_FINISH = """
    WITH ended AS MATERIALIZED (
        SELECT t.number, t.id, executor.finish(
            t.id, t.lease_token, t.status, t.mode, t.error::jsonb, t.truncated, t.last_seq, t.price_usd, t.cost_usd,
            t.cost_status, t.result, t.result_key_id, t.keep, t.receipt::jsonb, t.attempts::jsonb, NULL, '{}', '{}', '{}'
        ) AS done
        FROM unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bool[], $7::int[], $8::numeric[],
            $9::numeric[], $10::text[], $11::bytea[], $12::text[], $13::interval[], $14::text[], $15::text[]
        ) WITH ORDINALITY AS t (
            id, lease_token, status, mode, error, truncated, last_seq, price_usd, cost_usd, cost_status, result,
            result_key_id, keep, receipt, attempts, number
        )
    ), referred AS (
        INSERT INTO executor.media_references (name, execution_id)
        SELECT m.name, ended.id FROM unnest($16::int[], $17::text[]) AS m (number, name) JOIN ended USING (number)
        WHERE ended.done
        ON CONFLICT DO NOTHING
    ), said AS (
        INSERT INTO executor.outbox (subject, message_id, payload)
        SELECT m.subject, m.message_id, m.payload
        FROM unnest($18::int[], $19::text[], $20::text[], $21::bytea[]) AS m (number, subject, message_id, payload)
            JOIN ended USING (number)
        WHERE ended.done
    )
    SELECT done FROM ended ORDER BY number"""

_FINISH_COLUMNS, _MEDIA_COLUMNS, _MESSAGE_COLUMNS = 15, 2, 4


async def admit_all(pool: asyncpg.Pool, lease: timedelta, asked: Sequence[tuple[Any, ...]]) -> list[asyncpg.Record]:
    """`asked`: the columns of `_ADMIT` for each run, its id first and then its owner. Answers their outcomes."""
    order = sorted(range(len(asked)), key=lambda place: (asked[place][1], asked[place][0]))
    async with unavailable_when_down():
        records = await pool.fetch(_ADMIT, *zip(*(asked[place] for place in order), strict=True), lease)
    return _as_asked(order, records)


async def finish_all(pool: asyncpg.Pool, ended: Sequence[tuple[UUID, UUID, Ending]]) -> list[bool]:
    """`ended`: execution id, lease token, and everything that is written of a run. Which of them were ours to end."""
    order = sorted(range(len(ended)), key=lambda place: ended[place][0])
    runs: list[tuple[Any, ...]] = []
    media: list[tuple[Any, ...]] = []
    messages: list[tuple[Any, ...]] = []
    for number, place in enumerate(order, start=1):
        execution_id, token, end = ended[place]
        runs.append(
            (
                execution_id, token, end.status, end.mode, json_text(end.error), end.truncated, end.last_seq,
                end.price_usd, end.cost_usd, end.cost_status, end.result, end.result_key_id, end.keep,
                json_text(end.receipt), json_text(end.attempts),
            )
        )  # fmt: skip
        media += [(number, name) for name in end.media]
        messages += [(number, m.subject, m.message_id, m.payload) for m in end.messages]
    columns = [
        *_columns(runs, _FINISH_COLUMNS),
        *_columns(media, _MEDIA_COLUMNS),
        *_columns(messages, _MESSAGE_COLUMNS),
    ]
    async with unavailable_when_down():
        records = await pool.fetch(_FINISH, *columns)
    return [record["done"] for record in _as_asked(order, records)]


def json_text(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(width)]


def _as_asked(order: Sequence[int], records: Sequence[asyncpg.Record]) -> list[asyncpg.Record]:
    placed = sorted(zip(order, records, strict=True), key=lambda pair: pair[0])
    return [record for _, record in placed]
