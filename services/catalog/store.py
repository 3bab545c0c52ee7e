"""All SQL of the catalog service. Records become models and dataclasses here and do not leave it.

A sync holds one connection with an advisory lock, so that one replica at a time reads upstream; the lock dies with the
connection. Everything a sync writes is one transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import SecretStr

from contracts.catalog import (
    ModelPricing,
    PriceChange,
    ResourceDraft,
    ResourceStatus,
    SyncReport,
)
from contracts.errors import ErrorCode, FieldProblem, ServiceError
from services.catalog.diffs import SyncPlan
from services.catalog.models import CatalogModel
from services.runtime.postgres import create_pool, ping, unavailable_when_down

_SYNC_LOCK = 0x7834303263617401  # "x402cat" and a number: no other part of the system takes this advisory lock.
_WAIT_FOR_SYNC_S = 100

_MODEL_COLUMNS = (
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
_MODELS = f"SELECT {', '.join(_MODEL_COLUMNS)} FROM catalog.ai_models"
_RESOURCES = f"""SELECT r.id, r.owner, r.slug, r.resource_type, r.name, r.description, r.openrouter_config, r.inputs, r.pricing,
        r.timeouts, r.version, r.status, r.created_at, r.updated_at, r.deleted_at,
        {", ".join(f"m.{column} AS model_{column}" for column in _MODEL_COLUMNS)}
    FROM catalog.x402_resources AS r JOIN catalog.ai_models AS m ON m.id = r.model_id"""
_SYNCS = """SELECT id, outcome, requested_by, models, added, retired, returned, repriced, reason, started_at, finished_at
    FROM catalog.syncs"""
# What a person sees as status; a model that is gone makes a published resource unavailable.
_SHOWN_STATUS = "CASE WHEN r.status = 'published' AND m.status = 'retired' THEN 'unavailable' ELSE r.status END"

Place = tuple[datetime, UUID]


@dataclass(frozen=True, slots=True)
class StoredResource:
    id: UUID
    owner: str
    version: int
    status: ResourceStatus
    """As stored: `published` also while the model is retired."""
    draft: ResourceDraft
    model: CatalogModel
    created_at: datetime
    updated_at: datetime
    deleted: bool


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Who asked for a sync, of what, and when it began by the database's clock."""

    requested_by: str
    source: str
    started_at: datetime


class Store:
    """Every method raises ServiceError UNAVAILABLE when the database cannot be reached."""

    def __init__(self, url: SecretStr) -> None:
        self._url = url

    async def open(self) -> None:
        async with unavailable_when_down():
            self._pool = await create_pool(self._url.get_secret_value(), service="catalog")

    async def close(self) -> None:
        await self._pool.close()

    async def ping(self) -> None:
        """For readiness."""
        await ping(self._pool)

    # Models -----------------------------------------------------------------------------------------------------------

    async def all_models(self) -> list[CatalogModel]:
        async with unavailable_when_down():
            return [_model(row) for row in await self._pool.fetch(_MODELS)]

    async def models_by_id(self, ids: Sequence[str]) -> dict[str, CatalogModel]:
        """Those of the ids that are in the catalog."""
        async with unavailable_when_down():
            rows = await self._pool.fetch(f"{_MODELS} WHERE id = ANY ($1::text[])", list(ids))
        return {row["id"]: _model(row) for row in rows}

    async def price_history(self, model_id: str, limit: int = 100) -> list[PriceChange]:
        """The latest prices, newest first."""
        async with unavailable_when_down():
            rows = await self._pool.fetch(
                """SELECT since, pricing FROM catalog.ai_model_prices
                   WHERE model_id = $1 ORDER BY since DESC, sync_id DESC LIMIT $2""",
                model_id,
                limit,
            )
        return [PriceChange(since=row["since"], pricing=ModelPricing.model_validate(row["pricing"])) for row in rows]

    # Syncs ------------------------------------------------------------------------------------------------------------

    async def now(self) -> datetime:
        """The database's clock, which all replicas share."""
        async with unavailable_when_down():
            moment: datetime = await self._pool.fetchval("SELECT clock_timestamp()")
        return moment

    async def syncs(self, limit: int) -> list[SyncReport]:
        """The latest, newest first."""
        async with unavailable_when_down():
            rows = await self._pool.fetch(f"{_SYNCS} ORDER BY id DESC LIMIT $1", limit)
        return [_sync_report(row) for row in rows]

    async def last_success(self) -> datetime | None:
        """When the catalog was last known to be right."""
        async with unavailable_when_down():
            moment: datetime | None = await self._pool.fetchval(
                "SELECT max(finished_at) FROM catalog.syncs WHERE outcome IN ('applied', 'unchanged')"
            )
        return moment

    @asynccontextmanager
    async def syncing(self) -> AsyncIterator[SyncSession]:
        """The right to sync; waits while another replica does. Raises TIMEOUT when that takes too long."""
        async with unavailable_when_down(), self._pool.acquire() as connection:
            try:
                await connection.execute("SELECT pg_advisory_lock($1)", _SYNC_LOCK, timeout=_WAIT_FOR_SYNC_S)
            except TimeoutError:
                raise ServiceError(
                    ErrorCode.TIMEOUT, "Another sync is still running; ask for its result later."
                ) from None
            try:
                yield SyncSession(connection)
            finally:
                if not connection.is_closed():
                    await connection.execute("SELECT pg_advisory_unlock($1)", _SYNC_LOCK)

    # Resources --------------------------------------------------------------------------------------------------------

    async def create_resource(self, resource_id: UUID, owner: str, draft: ResourceDraft) -> StoredResource:
        """Raises CONFLICT when the owner has another resource of that slug."""
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            fields = _resource_fields(draft)
            with _slug_conflicts():
                await connection.execute(
                    """INSERT INTO catalog.x402_resources
                           (id, owner, slug, resource_type, name, description, model_id,
                            openrouter_config, inputs, pricing, timeouts)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)""",
                    resource_id,
                    owner,
                    *fields,
                )
            await _insert_version(connection, resource_id, 1, draft)
            row = await connection.fetchrow(f"{_RESOURCES} WHERE r.id = $1", resource_id)
        return _resource(row)

    async def resource(self, resource_id: UUID) -> StoredResource | None:
        """Deleted ones too."""
        async with unavailable_when_down():
            row = await self._pool.fetchrow(f"{_RESOURCES} WHERE r.id = $1", resource_id)
        return None if row is None else _resource(row)

    async def resource_by_slug(self, owner: str, slug: str) -> StoredResource | None:
        async with unavailable_when_down():
            row = await self._pool.fetchrow(
                f"{_RESOURCES} WHERE r.owner = $1 AND r.slug = $2 AND r.deleted_at IS NULL", owner, slug
            )
        return None if row is None else _resource(row)

    @asynccontextmanager
    async def changing(self, resource_id: UUID) -> AsyncIterator[ResourceChange]:
        """One transaction in which nobody else changes the resource."""
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(f"{_RESOURCES} WHERE r.id = $1 FOR UPDATE OF r", resource_id)
            yield ResourceChange(connection, None if row is None else _resource(row))

    async def resources_of(
        self, owner: str, status: ResourceStatus | None, after: Place | None, limit: int
    ) -> tuple[list[StoredResource], int]:
        """A page of the owner's resources, newest first, and how many there are on all pages."""
        which = f"r.owner = $1 AND r.deleted_at IS NULL AND ($2::text IS NULL OR {_SHOWN_STATUS} = $2)"
        return await self._page(which, [owner, status], after, limit)

    async def listings(self, words: Sequence[str], after: Place | None, limit: int) -> tuple[list[StoredResource], int]:
        """A page of what is published and holds all the words, newest first, and how many there are on all pages."""
        which = """r.status = 'published' AND r.deleted_at IS NULL AND NOT EXISTS (
            SELECT FROM unnest($1::text[]) AS word
            WHERE position(word IN lower(concat_ws(' ', r.name, r.slug, r.owner, r.description))) = 0)"""
        return await self._page(which, [list(words)], after, limit)

    async def _page(
        self, which: str, arguments: list[Any], after: Place | None, limit: int
    ) -> tuple[list[StoredResource], int]:
        count = len(arguments)
        moment, row_id = after or (None, None)
        async with unavailable_when_down(), self._pool.acquire() as connection:
            total: int = await connection.fetchval(
                f"SELECT count(*) FROM ({_RESOURCES} WHERE {which}) AS matching",
                *arguments,
            )
            rows = await connection.fetch(
                f"""{_RESOURCES} WHERE {which}
                        AND (${count + 1}::timestamptz IS NULL OR (r.created_at, r.id) < (${count + 1}, ${count + 2}::uuid))
                    ORDER BY r.created_at DESC, r.id DESC LIMIT ${count + 3}""",
                *arguments,
                moment,
                row_id,
                limit,
            )
        return [_resource(row) for row in rows], total


class SyncSession:
    """What a sync reads and writes while it alone may."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def report_since(self, moment: datetime) -> SyncReport | None:
        """The latest sync that began at or after the moment: somebody else's, which we have just waited for."""
        row = await self._connection.fetchrow(
            f"{_SYNCS} WHERE started_at >= $1 ORDER BY id DESC LIMIT 1",
            moment,
        )
        return None if row is None else _sync_report(row)

    async def begin(self, requested_by: str, source: str) -> SyncRequest:
        return SyncRequest(requested_by, source, await self._connection.fetchval("SELECT clock_timestamp()"))

    async def known(self) -> dict[str, CatalogModel]:
        return {row["id"]: _model(row) for row in await self._connection.fetch(_MODELS)}

    async def etag(self, source: str) -> str | None:
        """The ETag of the list that the catalog was last made of, if it came from this source."""
        row = await self._connection.fetchrow(
            """SELECT source, etag FROM catalog.syncs WHERE outcome IN ('applied', 'unchanged') ORDER BY id DESC LIMIT 1"""
        )
        return row["etag"] if row is not None and row["source"] == source else None

    async def reject(self, request: SyncRequest, outcome: str, reason: str, models: int, skipped: int) -> SyncReport:
        """Remember a sync that changed nothing because it was `refused` or `failed`."""
        return await self._insert_sync(request, outcome, None, models, skipped, SyncPlan(), reason)

    async def apply(
        self, request: SyncRequest, plan: SyncPlan, *, etag: str | None, models: int, skipped: int
    ) -> tuple[SyncReport, list[StoredResource]]:
        """Write all of it or nothing. Also returns the resources whose model went or came back."""
        async with self._connection.transaction():
            outcome = "applied" if plan.changed else "unchanged"
            report = await self._insert_sync(request, outcome, etag, models, skipped, plan, None)
            await self._upsert(plan.changed)
            await self._connection.executemany(
                "INSERT INTO catalog.ai_model_prices (model_id, sync_id, pricing) VALUES ($1, $2, $3)",
                [(model.id, report.id, _pricing_json(model)) for model in plan.new_prices],
            )
            rows = await self._connection.fetch(
                f"{_RESOURCES} WHERE r.deleted_at IS NULL AND r.model_id = ANY ($1::text[])",
                plan.retired + plan.returned,
            )
        return report, [_resource(row) for row in rows]

    async def _insert_sync(
        self,
        request: SyncRequest,
        outcome: str,
        etag: str | None,
        models: int,
        skipped: int,
        plan: SyncPlan,
        reason: str | None,
    ) -> SyncReport:
        row = await self._connection.fetchrow(
            """INSERT INTO catalog.syncs (requested_by, source, started_at, outcome, etag, models, skipped,
                                          added, retired, returned, repriced, reason)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
               RETURNING id, outcome, requested_by, models, added, retired, returned, repriced, reason,
                         started_at, finished_at""",
            request.requested_by,
            request.source,
            request.started_at,
            outcome,
            etag,
            models,
            skipped,
            plan.added,
            plan.retired,
            plan.returned,
            plan.repriced,
            reason,
        )
        return _sync_report(row)

    async def _upsert(self, models: Sequence[CatalogModel]) -> None:
        columns = ", ".join(_MODEL_COLUMNS)
        updates = ", ".join(f"{c} = excluded.{c}" for c in _MODEL_COLUMNS if c not in {"id", "created_at"})
        values = ", ".join(f"${number}" for number in range(1, len(_MODEL_COLUMNS) + 1))
        values = values.replace("$5", "coalesce($5, now())", 1)  # created_at: upstream does not always say
        await self._connection.executemany(
            f"""INSERT INTO catalog.ai_models ({columns}) VALUES ({values})
                ON CONFLICT ON CONSTRAINT ai_models_pkey DO UPDATE SET {updates}""",
            [_model_fields(model) for model in models],
        )


class ResourceChange:
    """A resource held for a change; `current` is None when there is none of that id."""

    def __init__(self, connection: asyncpg.Connection, current: StoredResource | None) -> None:
        self._connection = connection
        self.current = current

    async def save(self, draft: ResourceDraft) -> StoredResource:
        """A new version with this content. Raises CONFLICT when the owner has another resource of that slug."""
        assert self.current is not None
        with _slug_conflicts():
            version: int = await self._connection.fetchval(
                """UPDATE catalog.x402_resources
                   SET slug = $2, resource_type = $3, name = $4, description = $5, model_id = $6, openrouter_config = $7,
                       inputs = $8, pricing = $9, timeouts = $10, version = version + 1, updated_at = clock_timestamp()
                   WHERE id = $1 RETURNING version""",
                self.current.id,
                *_resource_fields(draft),
            )
        await _insert_version(self._connection, self.current.id, version, draft)
        return await self._again()

    async def set_status(self, status: ResourceStatus) -> StoredResource:
        assert self.current is not None
        await self._connection.execute(
            "UPDATE catalog.x402_resources SET status = $2, updated_at = clock_timestamp() WHERE id = $1",
            self.current.id,
            status,
        )
        return await self._again()

    async def delete(self) -> None:
        """Mark it deleted: it is gone for everybody, its slug is free, its versions stay for the receipts that name them."""
        assert self.current is not None
        await self._connection.execute(
            "UPDATE catalog.x402_resources SET deleted_at = clock_timestamp() WHERE id = $1", self.current.id
        )

    async def _again(self) -> StoredResource:
        assert self.current is not None
        return _resource(await self._connection.fetchrow(f"{_RESOURCES} WHERE r.id = $1", self.current.id))


@contextmanager
def _slug_conflicts() -> Iterator[None]:
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "x402_resources_owner_slug_key":
            raise
        message = "You have another resource with this slug; choose a different one."
        raise ServiceError(ErrorCode.CONFLICT, message, fields=[FieldProblem(path="slug", message=message)]) from None


async def _insert_version(
    connection: asyncpg.Connection, resource_id: UUID, version: int, draft: ResourceDraft
) -> None:
    await connection.execute(
        "INSERT INTO catalog.x402_resource_versions (resource_id, version, draft) VALUES ($1, $2, $3)",
        resource_id,
        version,
        draft.model_dump(mode="json"),
    )


# Rows -----------------------------------------------------------------------------------------------------------------


def _resource_fields(draft: ResourceDraft) -> tuple[Any, ...]:
    """slug, resource_type, name, description, model_id, openrouter_config, inputs, pricing, timeouts."""
    content = draft.model_dump(mode="json")
    return (
        draft.slug,
        draft.resource_type,
        draft.name,
        draft.description,
        draft.openrouter_config.model_id,
        *(content[field] for field in ("openrouter_config", "inputs", "pricing", "timeouts")),
    )


def _resource(row: Mapping[str, Any]) -> StoredResource:
    fields = ("slug", "resource_type", "name", "description", "openrouter_config", "inputs", "pricing", "timeouts")
    return StoredResource(
        id=row["id"],
        owner=row["owner"],
        version=row["version"],
        status=row["status"],
        draft=ResourceDraft.model_validate({field: row[field] for field in fields}),
        model=_model(row, prefix="model_"),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted=row["deleted_at"] is not None,
    )


def _model(row: Mapping[str, Any], prefix: str = "") -> CatalogModel:
    values = {column: row[prefix + column] for column in _MODEL_COLUMNS}
    for column in ("input_modalities", "output_modalities", "supported_parameters"):
        values[column] = tuple(values[column])
    values["pricing"] = ModelPricing.model_validate(values["pricing"])
    return CatalogModel(**values)


def _model_fields(model: CatalogModel) -> list[Any]:
    return [_pricing_json(model) if column == "pricing" else getattr(model, column) for column in _MODEL_COLUMNS]


def _pricing_json(model: CatalogModel) -> dict[str, Any]:
    return model.pricing.model_dump(mode="json", exclude_none=True)


def _sync_report(row: Mapping[str, Any]) -> SyncReport:
    return SyncReport(**dict(row))
