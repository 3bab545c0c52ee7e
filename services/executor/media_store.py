"""The index of stored files: what there is, whose it is, how long it is kept, and which runs refer to it.

The row comes before the file and goes after it. Whoever stores a file, or is about to use one, first moves the row's
`kept_until`; the janitor deletes under the lock of that row. So of the two one goes first, and the other finds the truth:
a file that is kept, or no row and no file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from contracts.execution import Caller
from services.runtime.postgres import unavailable_when_down

# Longer than any run takes, so that what a run begins with is there until it has ended.
GRACE = timedelta(hours=1)

_KEEP = "kept_until = greatest(m.kept_until, excluded.kept_until)"


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A row of the index. `owner` is None for what a model made."""

    name: str
    mime_type: str
    bytes: int
    width: int | None = None
    height: int | None = None
    pages: int | None = None
    owner: Caller | None = None


class MediaIndex:
    """`x402_cached_images` and `media_references`, through the executor's pool."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def claim(self, file: IndexedFile, keep: timedelta = GRACE) -> tuple[datetime, bool]:
        """Write the row of a file that is about to be stored, or keep the one there is for `keep` from now.

        Answers until when it is kept, and whether the row is new.
        """
        owner = (file.owner.kind, file.owner.id) if file.owner is not None else (None, None)
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                f"""INSERT INTO executor.x402_cached_images AS m (
                        name, mime_type, bytes, width, height, pages, owner_kind, owner_id, kept_until)
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + $9::interval)
                    ON CONFLICT (name) DO UPDATE SET {_KEEP} RETURNING kept_until, xmax = 0 AS inserted""",
                file.name, file.mime_type, file.bytes, file.width, file.height, file.pages, *owner, keep,
            )  # fmt: skip
        return record["kept_until"], record["inserted"]

    async def bytes_of(self, owner: Caller, *, besides: str) -> int:
        """How much of this caller's is stored, one file left out."""
        async with unavailable_when_down():
            stored: int = await self._pool.fetchval(
                """SELECT coalesce(sum(bytes), 0)::bigint FROM executor.x402_cached_images
                   WHERE owner_kind = $1 AND owner_id = $2 AND name <> $3""",
                owner.kind, owner.id, besides,
            )  # fmt: skip
        return stored

    async def use(self, names: list[str]) -> dict[str, IndexedFile]:
        """The rows of these files, each kept for the grace from now at least."""
        async with unavailable_when_down():
            records = await self._pool.fetch(
                """WITH used AS (
                       SELECT name FROM executor.x402_cached_images WHERE name = ANY($1::text[]) ORDER BY name FOR UPDATE
                   )
                   UPDATE executor.x402_cached_images m SET kept_until = greatest(m.kept_until, now() + $2::interval)
                   FROM used WHERE m.name = used.name
                   RETURNING m.name, mime_type, bytes, width, height, pages, owner_kind, owner_id""",
                names, GRACE,
            )  # fmt: skip
        return {record["name"]: _file(record) for record in records}

    # For the janitor --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def taking(self) -> AsyncIterator[IndexedFile | None]:
        """One file that is past its time, locked for the block and forgotten with its end; None when there is none.

        A file is needed by a run that waits or runs, and by a result for as long as that is kept, and the grace.
        """
        async with unavailable_when_down(), self._pool.acquire() as connection, connection.transaction():
            record = await connection.fetchrow(
                """SELECT m.name, mime_type, bytes, width, height, pages, owner_kind, owner_id
                   FROM executor.x402_cached_images m
                   WHERE kept_until < now() AND NOT EXISTS (
                       SELECT FROM executor.media_references r JOIN executor.executions e ON e.id = r.execution_id
                       WHERE r.name = m.name
                         AND (e.finished_at IS NULL
                              OR (m.owner_id IS NULL
                                  AND (e.result IS NOT NULL OR e.result_expires_at > now() - $1::interval))))
                   ORDER BY kept_until LIMIT 1 FOR UPDATE OF m SKIP LOCKED""",
                GRACE,
            )
            yield None if record is None else _file(record)
            if record is not None:
                await connection.execute("DELETE FROM executor.media_references WHERE name = $1", record["name"])
                await connection.execute("DELETE FROM executor.x402_cached_images WHERE name = $1", record["name"])

    async def known(self, names: list[str]) -> set[str]:
        """Those of the names that have a row."""
        async with unavailable_when_down():
            records = await self._pool.fetch(
                "SELECT name FROM executor.x402_cached_images WHERE name = ANY($1::text[])", names
            )
        return {record["name"] for record in records}

    async def stored_bytes(self) -> tuple[int, int]:
        """Bytes of outputs and of inputs."""
        async with unavailable_when_down():
            record = await self._pool.fetchrow(
                """SELECT coalesce(sum(bytes) FILTER (WHERE owner_id IS NULL), 0)::bigint AS outputs,
                          coalesce(sum(bytes) FILTER (WHERE owner_id IS NOT NULL), 0)::bigint AS inputs
                   FROM executor.x402_cached_images"""
            )
        return record["outputs"], record["inputs"]


def _file(record: asyncpg.Record) -> IndexedFile:
    owner = None if record["owner_id"] is None else Caller(kind=record["owner_kind"], id=record["owner_id"])
    return IndexedFile(
        record["name"], record["mime_type"], record["bytes"], record["width"], record["height"], record["pages"], owner
    )
