"""The SQL of models as they are read, and of resources; what a sync writes is in `sync_store.py`. Records become models and
dataclasses here and do not leave it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import SecretStr

from contracts.catalog import ModelPricing, PriceChange, ResourceDraft, ResourceStatus, SyncReport
from contracts.errors import ErrorCode, FieldProblem, ServiceError
from services.catalog.market_store import remember_new_models
from services.catalog.models import CatalogModel
from services.catalog.sizes import MeasuredTokens
from services.catalog.sync_store import MODEL_COLUMNS, MODELS, SyncSession, former_models, model_of, read_syncs
from services.runtime.postgres import create_pool, ping, unavailable_when_down

_SYNC_LOCK = 0x7834303263617401  # "x402cat" and a number: no other part of the system takes this advisory lock.
_WAIT_FOR_SYNC_S = 100
_CLOSE_TIMEOUT_S = 5

_RESOURCES = f"""SELECT r.id, r.owner, r.slug, r.resource_type, r.name, r.description, r.openrouter_config, r.inputs, r.pricing,
        r.timeouts, r.example_output, r.margin_rule, r.version, r.status, r.created_at, r.updated_at, r.deleted_at,
        {", ".join(f"m.{column} AS model_{column}" for column in MODEL_COLUMNS)}
    FROM catalog.x402_resources AS r JOIN catalog.ai_models AS m ON m.id = r.model_id"""
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
class Snapshot:
    """Every model that was ever listed, the sync that they are the result of (0 for none), and when that was."""

    models: list[CatalogModel]
    sync_id: int
    synced_at: datetime | None


class Store:
    """Every method raises ServiceError UNAVAILABLE when the database cannot be reached."""

    def __init__(self, url: SecretStr) -> None:
        self._url = url

    async def open(self) -> None:
        async with unavailable_when_down():
            self._pool = await create_pool(self._url.get_secret_value(), service="catalog")

    async def close(self) -> None:
        await self._pool.close()

    def pool(self) -> asyncpg.Pool:
        """For the other stores of this service, once it is open."""
        return self._pool

    async def ping(self) -> None:
        """For readiness."""
        await ping(self._pool)

    # Models -----------------------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """The whole catalog as the latest sync left it."""
        async with self._reading() as connection:
            return await _snapshot(connection)

    async def former_snapshot(self, sync_id: int) -> Snapshot | None:
        """The whole catalog as this sync left it; None where that is not known any more, or there was no such sync."""
        async with self._reading() as connection:
            former = await former_models(connection, sync_id)
            if former is None:
                return None
            latest = await _snapshot(connection)
        models = former | {model.id: model for model in latest.models if model.id not in former}
        return Snapshot([model for model in models.values() if model is not None], sync_id, latest.synced_at)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection that sees the database of one moment."""
        async with (
            unavailable_when_down(),
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield connection

    async def models_by_id(self, ids: Sequence[str]) -> dict[str, CatalogModel]:
        """Those of the ids that are in the catalog."""
        async with unavailable_when_down():
            return await _models_by_id(self._pool, ids)

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
        async with unavailable_when_down(), self._pool.acquire() as connection:
            return await read_syncs(connection, limit)

    @asynccontextmanager
    async def syncing(self) -> AsyncIterator[SyncSession]:
        """The right to sync; waits while another replica does. Raises TIMEOUT when that takes too long."""
        async with unavailable_when_down(), self._pool.acquire() as connection:
            try:
                try:
                    await connection.execute("SELECT pg_advisory_lock($1)", _SYNC_LOCK, timeout=_WAIT_FOR_SYNC_S)
                except TimeoutError:
                    raise ServiceError(
                        ErrorCode.TIMEOUT, "Another sync is still running; ask for its result later."
                    ) from None
                yield SyncSession(connection)
                await connection.execute("SELECT pg_advisory_unlock($1)", _SYNC_LOCK)
            except BaseException:
                # The lock may have been granted at the moment we gave up, and the pool resets nothing: it goes with the
                # connection, or no replica would ever sync again. Closing waits until the server has given up as well.
                with suppress(Exception):
                    await connection.close(timeout=_CLOSE_TIMEOUT_S)
                raise

    # Resources --------------------------------------------------------------------------------------------------------

    async def create_resource(self, resource_id: UUID, owner: str, draft: ResourceDraft) -> StoredResource:
        """Raises CONFLICT when the owner has another resource of that slug."""
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            fields = _resource_fields(draft)
            with _slug_conflicts():
                await connection.execute(
                    """INSERT INTO catalog.x402_resources
                           (id, owner, slug, resource_type, name, description, model_id,
                            openrouter_config, inputs, pricing, timeouts, example_output, margin_rule)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)""",
                    resource_id,
                    owner,
                    *fields,
                )
            await _insert_version(connection, resource_id, 1, draft)
            await remember_new_models(connection, resource_id)
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

    async def measured_tokens(self, resource_ids: Sequence[UUID]) -> dict[UUID, MeasuredTokens]:
        """What the runs of the newest version that has been run took, of every resource that has been.

        Live runs, where there are any: what a test key took is only better than a guess.
        """
        async with unavailable_when_down():
            rows = await self._pool.fetch(
                """SELECT DISTINCT ON (resource_id)
                       resource_id, runs, prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens
                   FROM catalog.resource_token_stats WHERE resource_id = ANY ($1::uuid[])
                   ORDER BY resource_id, mode = 'live' DESC, version DESC""",
                list(resource_ids),
            )
        sums = [dict(row) for row in rows]
        return {each.pop("resource_id"): MeasuredTokens(**each) for each in sums}

    async def resources_on(self, model_ids: Sequence[str]) -> list[StoredResource]:
        """Those that run on one of the models."""
        async with unavailable_when_down():
            rows = await self._pool.fetch(
                f"{_RESOURCES} WHERE r.deleted_at IS NULL AND r.model_id = ANY ($1::text[])", list(model_ids)
            )
        return [_resource(row) for row in rows]

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


class ResourceChange:
    """A resource held for a change; `current` is None when there is none of that id.

    What is written over `connection` meanwhile is written together with the change.
    """

    def __init__(self, connection: asyncpg.Connection, current: StoredResource | None) -> None:
        self.connection = connection
        self.current = current

    async def models_by_id(self, ids: Sequence[str]) -> dict[str, CatalogModel]:
        """As the store's, without a second connection: a pool full of changes that each wait for one would stand still."""
        return await _models_by_id(self.connection, ids)

    async def save(self, draft: ResourceDraft) -> StoredResource:
        """A new version with this content. Raises CONFLICT when the owner has another resource of that slug."""
        assert self.current is not None
        with _slug_conflicts():
            version: int = await self.connection.fetchval(
                """UPDATE catalog.x402_resources
                   SET slug = $2, resource_type = $3, name = $4, description = $5, model_id = $6, openrouter_config = $7,
                       inputs = $8, pricing = $9, timeouts = $10, example_output = $11, margin_rule = $12,
                       version = version + 1, updated_at = clock_timestamp()
                   WHERE id = $1 RETURNING version""",
                self.current.id,
                *_resource_fields(draft),
            )
        await _insert_version(self.connection, self.current.id, version, draft)
        await remember_new_models(self.connection, self.current.id)
        return await self._again()

    async def set_status(self, status: ResourceStatus) -> StoredResource:
        assert self.current is not None
        await self.connection.execute(
            "UPDATE catalog.x402_resources SET status = $2, updated_at = clock_timestamp() WHERE id = $1",
            self.current.id,
            status,
        )
        return await self._again()

    async def delete(self) -> None:
        """Mark it deleted: it is gone for everybody, its slug is free, its versions stay for the receipts that name them."""
        assert self.current is not None
        await self.connection.execute(
            "UPDATE catalog.x402_resources SET deleted_at = clock_timestamp() WHERE id = $1", self.current.id
        )

    async def _again(self) -> StoredResource:
        assert self.current is not None
        return _resource(await self.connection.fetchrow(f"{_RESOURCES} WHERE r.id = $1", self.current.id))


@contextmanager
def _slug_conflicts() -> Iterator[None]:
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "x402_resources_owner_slug_key":
            raise
        message = "You have another resource with this slug; choose a different one."
        raise ServiceError(ErrorCode.CONFLICT, message, fields=[FieldProblem(path="slug", message=message)]) from None


async def _snapshot(connection: asyncpg.Connection) -> Snapshot:
    rows = await connection.fetch(MODELS)
    latest = await connection.fetchrow(
        """SELECT max(id) AS sync_id, max(finished_at) AS finished_at
           FROM catalog.syncs WHERE outcome IN ('applied', 'unchanged')"""
    )
    return Snapshot([model_of(row) for row in rows], latest["sync_id"] or 0, latest["finished_at"])


async def _models_by_id(connection: asyncpg.Connection | asyncpg.Pool, ids: Sequence[str]) -> dict[str, CatalogModel]:
    rows = await connection.fetch(f"{MODELS} WHERE id = ANY ($1::text[])", list(ids))
    return {row["id"]: model_of(row) for row in rows}


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
    """slug, resource_type, name, description, model_id, openrouter_config, inputs, pricing, timeouts, example_output,
    margin_rule."""
    content = draft.model_dump(mode="json")
    return (
        draft.slug,
        draft.resource_type,
        draft.name,
        draft.description,
        draft.openrouter_config.model_id,
        *(content[field] for field in ("openrouter_config", "inputs", "pricing", "timeouts")),
        draft.example_output,
        draft.margin_rule,
    )


def _resource(row: Mapping[str, Any]) -> StoredResource:
    fields = ("slug", "resource_type", "name", "description", "openrouter_config", "inputs", "pricing", "timeouts",
              "example_output", "margin_rule")  # fmt: skip
    return StoredResource(
        id=row["id"],
        owner=row["owner"],
        version=row["version"],
        status=row["status"],
        draft=ResourceDraft.model_validate({field: row[field] for field in fields}),
        model=model_of(row, prefix="model_"),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted=row["deleted_at"] is not None,
    )
