"""The object stores of media, part by part, so that no file is ever held whole and a range costs its parts alone.

Everything is a direct get or a plain publish rather than a call of the client's object store, which opens a consumer for
every object, takes away the bytes of whoever writes the same file at the same time, and needs more of the JetStream API
than a gateway may use. What a part is overwritten with leaves the former bytes for the janitor.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import Header, ObjectInfo, StorageType
from nats.js.errors import NotFoundError
from nats.js.object_store import ObjectStore

from contracts.errors import ErrorCode, ServiceError
from contracts.media import PART_BYTES, StoredMedia, is_input_name, media_headers, part_name, read_media_headers
from contracts.subjects import INPUTS_BUCKET, MEDIA_BUCKET
from services.runtime.bus import Bus

BUCKETS = (MEDIA_BUCKET, INPUTS_BUCKET)


@contextmanager
def unavailable_when_away() -> Iterator[None]:
    """Turn a store that does not answer into ServiceError UNAVAILABLE."""
    try:
        yield
    except (nats.errors.Error, TimeoutError) as error:
        raise ServiceError(
            ErrorCode.UNAVAILABLE, "Files cannot be read or kept at the moment; try again shortly.", retry_after_s=2
        ) from error


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One object of a bucket: the part of a file, and where its bytes are."""

    name: str
    nuid: str
    written_at: datetime | None

    @property
    def file(self) -> str:
        """The name of the file that it is a part of."""
        return self.name.rpartition("/")[0]


class Files:
    """Generated files and inputs. Raises ServiceError UNAVAILABLE while the store does not answer."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @property
    def _js(self) -> JetStreamContext:
        return self._bus.js

    async def declare(self) -> None:
        """Creates the buckets where they are missing."""
        for bucket in BUCKETS:
            await self._js.create_object_store(bucket, storage=StorageType.FILE)

    async def find(self, name: str) -> StoredMedia | None:
        """What is stored under this name; None when nothing is, or not all of it yet."""
        info = await self._info(name, 0)
        if info is None:
            return None
        headers = info.headers or {}
        return read_media_headers({key: [value] if isinstance(value, str) else value for key, value in headers.items()})

    async def read(self, name: str, first: int, last: int) -> AsyncIterator[bytes]:
        """The bytes of a range (both ends included), a part at a time. Raises NOT_FOUND where a part is gone."""
        for number in range(first // PART_BYTES, last // PART_BYTES + 1):
            start = number * PART_BYTES
            part = await self._part(name, number)
            yield part[max(0, first - start) : last - start + 1]

    async def put(self, name: str, media: StoredMedia, parts: Sequence[bytes | memoryview]) -> None:
        """Stores a file that is not there. Part 0 goes last: once it is there, all are."""
        for number in reversed(range(len(parts))):
            await self._put_part(name, number, bytes(parts[number]), media_headers(media) if number == 0 else None)

    async def delete(self, name: str, parts: int) -> None:
        """Deletes a file. Part 0 goes first, marked before its bytes go: what is half deleted counts as not there.

        Interrupted anywhere, the same call again deletes the rest.
        """
        with unavailable_when_away():
            for number in range(parts):
                await self._delete_part(part_name(name, number))

    async def _delete_part(self, name: str) -> None:
        bucket = _bucket(name)
        try:
            info = await self._objects(bucket).get_info(name, show_deleted=True)
        except NotFoundError:
            return
        if not info.deleted:
            await self._publish_info(ObjectInfo(name=name, bucket=bucket, nuid=info.nuid, size=0, deleted=True))
        await self._js.purge_stream(_stream(bucket), subject=_bytes_subject(bucket, info.nuid))
        await self._js.purge_stream(_stream(bucket), subject=_info_subject(bucket, name))

    # For the janitor --------------------------------------------------------------------------------------------------

    async def listed(self, bucket: str) -> list[StoredPart]:
        """Every part of every file in a bucket."""
        with unavailable_when_away():
            subjects = await self._subjects(bucket, "M")
            if not subjects:
                return []
            subscription = await self._js.subscribe(f"$O.{bucket}.M.>", stream=_stream(bucket), ordered_consumer=True)
            try:
                found: list[StoredPart] = []
                pending = 1
                while pending:
                    message = await subscription.next_msg(timeout=5)
                    pending = message.metadata.num_pending
                    info = json.loads(message.data)
                    found.append(StoredPart(info["name"], info["nuid"], message.metadata.timestamp))
                return found
            finally:
                await subscription.unsubscribe()

    async def nuids(self, bucket: str) -> set[str]:
        """Where there are bytes in a bucket, whether or not a part refers to them."""
        with unavailable_when_away():
            return {subject.rpartition(".")[2] for subject in await self._subjects(bucket, "C")}

    async def age_of(self, bucket: str, nuid: str) -> datetime | None:
        """When these bytes were written; None when they are gone."""
        with unavailable_when_away():
            try:
                return (await self._js.get_msg(_stream(bucket), subject=_bytes_subject(bucket, nuid), direct=True)).time
            except NotFoundError:
                return None

    async def purge_bytes(self, bucket: str, nuid: str) -> None:
        """Deletes bytes that no part refers to."""
        with unavailable_when_away():
            await self._js.purge_stream(_stream(bucket), subject=_bytes_subject(bucket, nuid))

    async def _subjects(self, bucket: str, kind: str) -> Iterable[str]:
        info = await self._js.stream_info(_stream(bucket), subjects_filter=f"$O.{bucket}.{kind}.>")
        return info.state.subjects or {}

    # Parts ------------------------------------------------------------------------------------------------------------

    async def _info(self, name: str, number: int) -> ObjectInfo | None:
        with unavailable_when_away():
            try:
                return await self._objects(_bucket(name)).get_info(part_name(name, number))
            except NotFoundError:
                return None

    async def _part(self, name: str, number: int) -> bytes:
        info = await self._info(name, number)
        if info is None:
            raise gone()
        bucket = _bucket(name)
        chunks: list[bytes] = []
        sequence = 1
        while sum(map(len, chunks)) < (info.size or 0):
            with unavailable_when_away():
                try:
                    message = await self._js.get_msg(
                        _stream(bucket), seq=sequence, subject=_bytes_subject(bucket, info.nuid), next=True, direct=True
                    )
                except NotFoundError:
                    raise gone() from None
            assert message.seq is not None
            chunks.append(message.data or b"")
            sequence = message.seq + 1
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _put_part(self, name: str, number: int, content: bytes, headers: dict[str, list[str]] | None) -> None:
        bucket = _bucket(name)
        nuid = self._bus.nc._nuid.next().decode()  # noqa: SLF001 - as the client's own object store makes its ids
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
        info = ObjectInfo(
            name=part_name(name, number),
            bucket=bucket,
            nuid=nuid,
            size=len(content),
            chunks=1 if content else 0,
            digest=f"SHA-256={digest}",
            mtime=datetime.now(UTC).isoformat(),
            headers=headers,
        )
        with unavailable_when_away():
            if content:
                await self._js.publish(_bytes_subject(bucket, nuid), content)
            await self._publish_info(info)

    async def _publish_info(self, info: ObjectInfo) -> None:
        payload = json.dumps({name: value for name, value in info.as_dict().items() if value is not None}).encode()
        await self._js.publish(_info_subject(info.bucket, info.name), payload, headers={Header.ROLLUP: "sub"})

    def _objects(self, bucket: str) -> ObjectStore:
        # Built by hand, because asking for a bucket by name costs a round trip for every file.
        return ObjectStore(bucket, _stream(bucket), self._js)


def gone() -> ServiceError:
    """What is asked for is not kept any more."""
    return ServiceError(ErrorCode.NOT_FOUND, "There is no such file; files are kept for a limited time.")


def _bucket(name: str) -> str:
    return INPUTS_BUCKET if is_input_name(name) else MEDIA_BUCKET


def _stream(bucket: str) -> str:
    return f"OBJ_{bucket}"


def _bytes_subject(bucket: str, nuid: str) -> str:
    return f"$O.{bucket}.C.{nuid}"


def _info_subject(bucket: str, name: str) -> str:
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
