"""The SQL of models and of syncs: what a sync reads and writes while it alone may.

A sync holds one connection with an advisory lock, so that one replica at a time reads upstream; the lock dies with the
connection. Everything a sync writes is one transaction: whoever dies in the middle leaves the catalog as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import asyncpg

from contracts.catalog import CuratedGap, ModelPricing, SyncReport
from services.catalog.diffs import SyncPlan
from services.catalog.models import CatalogModel

_MOST_CHANGES = 10_000
"""Over all reports of an answer, so that it stays within what a message may hold."""
_FORMER_KEPT_FOR = timedelta(hours=1)
"""How long after a sync the list before it can still be paged through, on a replica that does not have it in memory."""

MODEL_COLUMNS = (
    "id",
    "canonical_slug",
    "name",
    "description",
    "created_at",
    "context_length",
    "max_completion_tokens",
    "input_modalities",
    "output_modalities",
    "pricing",
    "supported_parameters",
    "alias_target",
    "retires_on",
    "status",
    "popularity_rank",
)
MODELS = f"SELECT {', '.join(MODEL_COLUMNS)} FROM catalog.ai_models"
# $1 is how many changes a report shows at most.
_SYNCS = """SELECT s.id, s.outcome, s.requested_by, s.models, s.skipped, s.added, s.retired, s.returned, s.repriced, s.forced,
        s.curated_missing, s.reason, s.started_at, s.finished_at, coalesce(c.total, 0) AS changes_total,
        coalesce(c.shown, '[]') AS changes
    FROM catalog.syncs AS s LEFT JOIN LATERAL (
        SELECT max(of_sync.total) AS total, jsonb_agg(to_jsonb(of_sync) - 'total' - 'sync_id') AS shown
        FROM (SELECT *, count(*) OVER () AS total FROM catalog.sync_changes
              WHERE sync_id = s.id ORDER BY model_id, change LIMIT $1) AS of_sync
    ) AS c ON true"""


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Who asked for a sync, of what, and when it began by the database's clock. `due` is the daily reading that it is."""

    requested_by: str
    source: str
    due: datetime | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What came of a reading. `reason` says why it was refused or failed, or looked wrong and was forced."""

    outcome: str
    models: int = 0
    skipped: int = 0
    etag: str | None = None
    reason: str | None = None
    forced: bool = False
    curated_missing: Sequence[CuratedGap] = ()


class SyncSession:
    """What a sync reads and writes while it alone may."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def report_since(self, moment: datetime) -> SyncReport | None:
        """The latest sync that began at or after the moment: somebody else's, which we have just waited for."""
        row = await self._connection.fetchrow(
            f"{_SYNCS} WHERE s.started_at >= $2 ORDER BY s.id DESC LIMIT 1", _MOST_CHANGES, moment
        )
        return None if row is None else _report_of(row)

    async def covers(self, due: datetime, source: str) -> bool:
        """Whether the daily reading has been made, by whoever, or upstream has been read since it was due."""
        covered: bool = await self._connection.fetchval(
            """SELECT EXISTS (SELECT FROM catalog.syncs WHERE source = $2 AND outcome <> 'failed'
                                                          AND (due = $1 OR started_at >= $1))""",
            due,
            source,
        )
        return covered

    async def was_cut_short(self) -> bool:
        """Whether a sync began and never ended: whoever made it died, because now the lock is ours."""
        cut_short: bool = await self._connection.fetchval(
            "SELECT EXISTS (SELECT FROM catalog.sync_attempts WHERE ended_at IS NULL)"
        )
        return cut_short

    async def begin(self, requested_by: str, source: str, due: datetime | None) -> SyncRequest:
        """Remembered at once, so that a sync that never ends is repeated at the next start."""
        begun_at = await self._connection.fetchval(
            "INSERT INTO catalog.sync_attempts (requested_by) VALUES ($1) RETURNING begun_at", requested_by
        )
        return SyncRequest(requested_by, source, due, begun_at)

    async def known(self) -> dict[str, CatalogModel]:
        return {row["id"]: model_of(row) for row in await self._connection.fetch(MODELS)}

    async def etag(self, source: str) -> str | None:
        """The ETag of the list that the catalog was last made of, if it came from this source."""
        row = await self._connection.fetchrow(
            """SELECT source, etag FROM catalog.syncs WHERE outcome IN ('applied', 'unchanged') ORDER BY id DESC LIMIT 1"""
        )
        return row["etag"] if row is not None and row["source"] == source else None

    async def write(self, request: SyncRequest, result: SyncResult, plan: SyncPlan) -> SyncReport:
        """All of it or nothing."""
        async with self._connection.transaction():
            sync_id = await self._insert_sync(request, result, plan)
            if plan.changed:
                await _keep_former(self._connection, sync_id, [model.id for model in plan.changed])
            await self._upsert(plan.changed)
            await self._connection.executemany(
                "INSERT INTO catalog.ai_model_prices (model_id, sync_id, pricing) VALUES ($1, $2, $3)",
                [(model.id, sync_id, _pricing_json(model)) for model in plan.new_prices],
            )
            await self._connection.executemany(
                "INSERT INTO catalog.sync_changes (sync_id, model_id, change, name, fields) VALUES ($1, $2, $3, $4, $5)",
                [
                    (sync_id, change.model_id, change.change, change.name, change.model_dump(mode="json")["fields"])
                    for change in plan.changes
                ],
            )
            await self._connection.execute(
                "UPDATE catalog.sync_attempts SET ended_at = clock_timestamp() WHERE ended_at IS NULL"
            )
            row = await self._connection.fetchrow(f"{_SYNCS} WHERE s.id = $2", _MOST_CHANGES, sync_id)
        return _report_of(row)

    async def unannounced(self) -> list[SyncReport]:
        """Applied syncs of which nobody has been told yet, oldest first: ours, or those of a replica that died."""
        rows = await self._connection.fetch(
            f"{_SYNCS} WHERE s.outcome = 'applied' AND s.announced_at IS NULL ORDER BY s.id", 0
        )
        return [_report_of(row) for row in rows]

    async def expiries(self, sync_id: int) -> dict[str, date | None]:
        """The models of which a sync changed the announced end, with the new one."""
        rows = await self._connection.fetch(
            """SELECT c.model_id, (field ->> 'after')::date AS retires_on
               FROM catalog.sync_changes AS c, jsonb_array_elements(c.fields) AS field
               WHERE c.sync_id = $1 AND c.change = 'expiry_changed' AND field ->> 'field' = 'retires_on'
               ORDER BY c.model_id""",
            sync_id,
        )
        return {row["model_id"]: row["retires_on"] for row in rows}

    async def mark_announced(self, sync_id: int) -> None:
        await self._connection.execute(
            "UPDATE catalog.syncs SET announced_at = clock_timestamp() WHERE id = $1", sync_id
        )

    async def _insert_sync(self, request: SyncRequest, result: SyncResult, plan: SyncPlan) -> int:
        sync_id: int = await self._connection.fetchval(
            """INSERT INTO catalog.syncs (requested_by, source, due, started_at, outcome, etag, models, skipped, forced,
                                          added, retired, returned, repriced, curated_missing, reason)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING id""",
            request.requested_by,
            request.source,
            request.due,
            request.started_at,
            result.outcome,
            result.etag,
            result.models,
            result.skipped,
            result.forced,
            plan.added,
            plan.retired,
            plan.returned,
            plan.repriced,
            [gap.model_dump(mode="json") for gap in result.curated_missing],
            result.reason,
        )
        return sync_id

    async def _upsert(self, models: Sequence[CatalogModel]) -> None:
        columns = ", ".join(MODEL_COLUMNS)
        updates = ", ".join(f"{c} = excluded.{c}" for c in MODEL_COLUMNS if c not in {"id", "created_at"})
        values = ", ".join(f"${number}" for number in range(1, len(MODEL_COLUMNS) + 1))
        values = values.replace("$5", "coalesce($5, now())", 1)  # created_at: upstream does not always say
        await self._connection.executemany(
            f"""INSERT INTO catalog.ai_models ({columns}) VALUES ({values})
                ON CONFLICT ON CONSTRAINT ai_models_pkey DO UPDATE SET {updates}""",
            [_model_fields(model) for model in models],
        )


async def read_syncs(connection: asyncpg.Connection, limit: int) -> list[SyncReport]:
    """The latest syncs, newest first."""
    rows = await connection.fetch(f"{_SYNCS} ORDER BY s.id DESC LIMIT $2", _MOST_CHANGES // limit, limit)
    return [_report_of(row) for row in rows]


# Former lists ---------------------------------------------------------------------------------------------------------


async def _keep_former(connection: asyncpg.Connection, sync_id: int, model_ids: Sequence[str]) -> None:
    """Remember models as they are before a sync overwrites them, and forget what older syncs did; within its transaction."""
    await connection.execute(
        """INSERT INTO catalog.former_models (sync_id, model_id, model)
           SELECT $1, changed.id, to_jsonb(m)
           FROM unnest($2::text[]) AS changed (id) LEFT JOIN catalog.ai_models AS m ON m.id = changed.id""",
        sync_id,
        list(model_ids),
    )
    await connection.execute("UPDATE catalog.syncs SET restorable = true WHERE id = $1", sync_id)
    await connection.execute(
        """WITH old AS (
               UPDATE catalog.syncs SET restorable = false
               WHERE restorable AND finished_at < clock_timestamp() - $1::interval RETURNING id)
           DELETE FROM catalog.former_models WHERE sync_id IN (SELECT id FROM old)""",
        _FORMER_KEPT_FOR,
    )


async def former_models(connection: asyncpg.Connection, sync_id: int) -> dict[str, CatalogModel | None] | None:
    """How models were after this sync that were changed since; None for one that was not there yet.

    None where it is not known any more, or there has been no such sync.
    """
    known: bool = await connection.fetchval(
        """SELECT EXISTS (SELECT FROM catalog.syncs WHERE id = $1 AND outcome IN ('applied', 'unchanged'))
              AND NOT EXISTS (SELECT FROM catalog.syncs WHERE id > $1 AND outcome = 'applied' AND NOT restorable)""",
        sync_id,
    )
    if not known:
        return None
    columns = ", ".join(f"m.{column}" for column in MODEL_COLUMNS)
    rows = await connection.fetch(
        f"""SELECT DISTINCT ON (f.model_id) f.model_id, {columns}
            FROM catalog.former_models AS f
                LEFT JOIN LATERAL jsonb_populate_record(NULL::catalog.ai_models, f.model) AS m ON f.model IS NOT NULL
            WHERE f.sync_id > $1 ORDER BY f.model_id, f.sync_id""",
        sync_id,
    )
    return {row["model_id"]: None if row["id"] is None else model_of(row) for row in rows}


# Rows -----------------------------------------------------------------------------------------------------------------


def model_of(row: Mapping[str, Any], prefix: str = "") -> CatalogModel:
    """A row that holds MODEL_COLUMNS, each with the prefix."""
    values = {column: row[prefix + column] for column in MODEL_COLUMNS}
    for column in ("input_modalities", "output_modalities", "supported_parameters"):
        values[column] = tuple(values[column])
    values["pricing"] = ModelPricing.model_validate(values["pricing"])
    return CatalogModel(**values)


def _model_fields(model: CatalogModel) -> list[Any]:
    return [_pricing_json(model) if column == "pricing" else getattr(model, column) for column in MODEL_COLUMNS]


def _pricing_json(model: CatalogModel) -> dict[str, Any]:
    return model.pricing.model_dump(mode="json", exclude_none=True)


def _report_of(row: Mapping[str, Any]) -> SyncReport:
    return SyncReport.model_validate(dict(row))
