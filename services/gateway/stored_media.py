"""Generated files out of the object store, part by part, so that no file is ever held whole and a range costs its parts alone.

Chunks are fetched by direct gets rather than through the client's object store, which opens a consumer for every object
and needs more of the JetStream API than a gateway may use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import nats.errors
from nats.js.errors import NotFoundError
from nats.js.object_store import ObjectStore

from contracts.errors import ErrorCode, ServiceError
from contracts.media import PART_BYTES, StoredMedia, part_name, read_media_headers
from contracts.subjects import MEDIA_BUCKET
from services.gateway.ranges import ByteRange
from services.runtime.bus import Bus

_STREAM = f"OBJ_{MEDIA_BUCKET}"


class MediaStore:
    """Reads the bucket that executors write."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def find(self, name: str) -> StoredMedia | None:
        """What is stored under this name; None when nothing is. Raises UNAVAILABLE when the store does not answer."""
        try:
            info = await self._objects().get_info(part_name(name, 0))
        except NotFoundError:
            return None
        except (nats.errors.Error, TimeoutError):
            raise ServiceError(
                ErrorCode.UNAVAILABLE,
                "Generated files cannot be read at the moment; try again shortly.",
                retry_after_s=2,
            ) from None
        headers = info.headers or {}
        return read_media_headers({key: [value] if isinstance(value, str) else value for key, value in headers.items()})

    async def read(self, name: str, wanted: ByteRange) -> AsyncIterator[bytes]:
        """The bytes of a range, a part at a time."""
        for number in range(wanted.first // PART_BYTES, wanted.last // PART_BYTES + 1):
            start = number * PART_BYTES
            part = await self._part(part_name(name, number))
            yield part[max(0, wanted.first - start) : wanted.last - start + 1]

    async def _part(self, name: str) -> bytes:
        js = self._bus.js
        info = await self._objects().get_info(name)
        chunks: list[bytes] = []
        sequence = 1
        while sum(map(len, chunks)) < (info.size or 0):
            message = await js.get_msg(
                _STREAM, seq=sequence, subject=f"$O.{MEDIA_BUCKET}.C.{info.nuid}", next=True, direct=True
            )
            assert message.seq is not None
            chunks.append(message.data or b"")
            sequence = message.seq + 1
        return b"".join(chunks)

    def _objects(self) -> ObjectStore:
        # Built by hand, because asking for a bucket by name costs a round trip for every file.
        return ObjectStore(MEDIA_BUCKET, _STREAM, self._bus.js)
