"""SQL of the market: what was last seen of a resource's models, what creators are told, and which versions there were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import TypeAdapter

from contracts.market import BudgetReached, ResourceNotice
from services.catalog.reviews import LOSSES_LOOKED_AT, Finding, Look, Losses
from services.runtime.postgres import unavailable_when_down

BUDGET_NOTICE = "budget_reached"

# What there is to see today of every model that a resource names.
_LOOKS = """(SELECT jsonb_object_agg(m.id, jsonb_build_object(
        'status', m.status, 'retires_on', m.retires_on, 'pricing', m.pricing,
        'price_id', (SELECT coalesce(max(p.sync_id), 0) FROM catalog.ai_model_prices AS p WHERE p.model_id = m.id)))
    FROM catalog.ai_models AS m
    WHERE m.id = r.model_id OR r.openrouter_config -> 'fallback_models' ? m.id)"""


@dataclass(frozen=True, slots=True)
class Unannounced:
    """A notice that the stream has not acknowledged."""

    id: int
    notice: ResourceNotice | BudgetReached


@dataclass(frozen=True, slots=True)
class StoredVersion:
    version: int
    draft: dict[str, Any]
    created_at: datetime


class MarketStore:
    """Every method that takes no connection raises ServiceError UNAVAILABLE when the database cannot be reached."""

    def __init__(self, pool: Callable[[], asyncpg.Pool]) -> None:
        self._pool = pool

    # Reviews ----------------------------------------------------------------------------------------------------------

    async def unreviewed(self, limit: int) -> list[UUID]:
        """Resources whose models look different from when they were last looked at."""
        async with unavailable_when_down():
            rows = await self._pool().fetch(
                f"""SELECT r.id FROM catalog.x402_resources AS r
                    LEFT JOIN catalog.resource_reviews AS v ON v.resource_id = r.id
                    WHERE r.deleted_at IS NULL AND v.models IS DISTINCT FROM {_LOOKS} ORDER BY r.id LIMIT $1""",
                limit,
            )
        return [row["id"] for row in rows]

    async def review(
        self, connection: asyncpg.Connection, resource_id: UUID
    ) -> tuple[Mapping[str, Look], Mapping[str, Look]]:
        """What was last seen of its models and what is seen now, which is remembered; within the caller's transaction."""
        before = await connection.fetchval(
            "SELECT models FROM catalog.resource_reviews WHERE resource_id = $1", resource_id
        )
        after = await connection.fetchval(
            f"""INSERT INTO catalog.resource_reviews (resource_id, models)
                SELECT r.id, {_LOOKS} FROM catalog.x402_resources AS r WHERE r.id = $1
                ON CONFLICT ON CONSTRAINT resource_reviews_pkey DO UPDATE SET models = excluded.models
                RETURNING models""",
            resource_id,
        )
        return _looks(before or {}), _looks(after)

    async def price_id(self, connection: asyncpg.Connection, model_ids: Sequence[str]) -> tuple[int, datetime | None]:
        """The sync that last changed a price of one of the models, and since when all their present prices hold."""
        row = await connection.fetchrow(
            """SELECT sync_id, since FROM catalog.ai_model_prices
               WHERE model_id = ANY ($1::text[]) ORDER BY sync_id DESC LIMIT 1""",
            list(model_ids),
        )
        return (0, None) if row is None else (row["sync_id"], row["since"])

    async def losses(
        self, connection: asyncpg.Connection, resource_id: UUID, version: int, since: datetime | None
    ) -> Losses:
        """The latest runs of a version that were paid for, as far as their cost is known.

        Live runs alone once the resource has had any: what the sandbox bills must not pause what earns money.
        """
        row = await connection.fetchrow(
            """SELECT count(*) AS runs, coalesce(sum(model_usd), 0) AS model_usd, coalesce(sum(price_usd), 0) AS price_usd
               FROM (SELECT model_usd, price_usd FROM catalog.runs
                     WHERE resource_id = $1 AND version = $2 AND status = 'succeeded' AND markup_usd IS NOT NULL
                         AND finished_at >= coalesce($3, finished_at)
                         AND mode = CASE WHEN EXISTS (
                             SELECT FROM catalog.runs WHERE resource_id = $1 AND mode = 'live'
                         ) THEN 'live' ELSE 'test' END
                     ORDER BY finished_at DESC LIMIT $4) AS latest""",
            resource_id,
            version,
            since,
            LOSSES_LOOKED_AT,
        )
        return Losses(**dict(row))

    # Notices ----------------------------------------------------------------------------------------------------------

    async def add_notice(
        self,
        connection: asyncpg.Connection,
        *,
        owner: str,
        resource_id: UUID,
        slug: str,
        version: int,
        finding: Finding,
    ) -> bool:
        """Remember something to tell; False where its cause was told already. Within the caller's transaction."""
        body = {
            "slug": slug,
            "version": version,
            "model_id": finding.model_id,
            "message": finding.message,
            "difference": finding.difference.model_dump(mode="json") if finding.difference else None,
            "replacement": finding.replacement.model_dump(mode="json") if finding.replacement else None,
            "cost": finding.cost.model_dump(mode="json") if finding.cost else None,
        }
        return await insert_notice(connection, owner, resource_id, finding.kind, finding.cause, body)

    async def was_told(self, connection: asyncpg.Connection, owner: str, cause: str) -> bool:
        """Within the caller's transaction."""
        told: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM catalog.notices WHERE owner = $1 AND cause = $2)", owner, cause
        )
        return told

    async def notices_of(self, resource_ids: Sequence[UUID], latest: int) -> dict[UUID, list[ResourceNotice]]:
        """The latest notices of each resource, newest first."""
        async with unavailable_when_down():
            rows = await self._pool().fetch(
                """SELECT n.id, n.owner, n.resource_id, n.kind, n.body, n.created_at
                   FROM unnest($1::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
                       SELECT id, owner, resource_id, kind, body, created_at FROM catalog.notices
                       WHERE resource_id = wanted.id AND kind <> $3 ORDER BY id DESC LIMIT $2) AS n
                   ORDER BY n.id DESC""",
                list(resource_ids),
                latest,
                BUDGET_NOTICE,
            )
        found: dict[UUID, list[ResourceNotice]] = defaultdict(list)
        for row in rows:
            found[row["resource_id"]].append(_resource_notice(row))
        return found

    async def unannounced(self, limit: int) -> list[Unannounced]:
        """Oldest first."""
        async with unavailable_when_down():
            rows = await self._pool().fetch(
                """SELECT id, owner, resource_id, kind, body, created_at FROM catalog.notices
                   WHERE announced_at IS NULL ORDER BY id LIMIT $1""",
                limit,
            )
        return [
            Unannounced(row["id"], _budget_notice(row) if row["kind"] == BUDGET_NOTICE else _resource_notice(row))
            for row in rows
        ]

    async def announced(self, notice_id: int) -> None:
        async with unavailable_when_down():
            await self._pool().execute(
                "UPDATE catalog.notices SET announced_at = clock_timestamp() WHERE id = $1 AND announced_at IS NULL",
                notice_id,
            )

    # Versions ---------------------------------------------------------------------------------------------------------

    async def versions(self, resource_id: UUID, below: int | None, limit: int) -> tuple[list[StoredVersion], int]:
        """A page, newest first, and how many there are on all pages."""
        async with unavailable_when_down(), self._pool().acquire() as connection:
            total: int = await connection.fetchval(
                "SELECT count(*) FROM catalog.x402_resource_versions WHERE resource_id = $1", resource_id
            )
            rows = await connection.fetch(
                """SELECT version, draft, created_at FROM catalog.x402_resource_versions
                   WHERE resource_id = $1 AND ($2::integer IS NULL OR version < $2) ORDER BY version DESC LIMIT $3""",
                resource_id,
                below,
                limit,
            )
        return [StoredVersion(**dict(row)) for row in rows], total


async def insert_notice(
    connection: asyncpg.Connection,
    owner: str,
    resource_id: UUID | None,
    kind: str,
    cause: str | None,
    body: dict[str, Any],
) -> bool:
    """False where the cause was told already; one without a cause is always told."""
    inserted = await connection.fetchval(
        """INSERT INTO catalog.notices (owner, resource_id, kind, cause, body) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT ON CONSTRAINT notices_cause_key DO NOTHING RETURNING id""",
        owner,
        resource_id,
        kind,
        cause,
        body,
    )
    return inserted is not None


async def remember_new_models(connection: asyncpg.Connection, resource_id: UUID) -> None:
    """Begin to look at the models that a resource newly names; within the transaction that names them.

    What was seen of the others stays: what changed about them since has not been told yet.
    """
    await connection.execute(
        f"""INSERT INTO catalog.resource_reviews AS v (resource_id, models)
            SELECT r.id, {_LOOKS} FROM catalog.x402_resources AS r WHERE r.id = $1
            ON CONFLICT ON CONSTRAINT resource_reviews_pkey DO UPDATE SET models = excluded.models || (
                SELECT coalesce(jsonb_object_agg(seen.key, seen.value), '{{}}') FROM jsonb_each(v.models) AS seen
                WHERE excluded.models ? seen.key)""",
        resource_id,
    )


def _looks(models: Mapping[str, Any]) -> dict[str, Look]:
    return {model_id: _LOOK.validate_python(look) for model_id, look in models.items()}


_LOOK: TypeAdapter[Look] = TypeAdapter(Look)


def _resource_notice(row: Mapping[str, Any]) -> ResourceNotice:
    facts = {name: row[name] for name in ("id", "owner", "resource_id", "kind", "created_at")}
    return ResourceNotice.model_validate({**row["body"], **facts})


def _budget_notice(row: Mapping[str, Any]) -> BudgetReached:
    return BudgetReached.model_validate({**row["body"], **{name: row[name] for name in ("id", "owner", "created_at")}})
