"""Files that clients send: taken in bit by bit, looked at, registered, and put into the object store.

The bytes go from here straight into the store; the bus carries a name. A file is held once, in parts of a mebibyte, and all
uploads of a process together hold no more than they may: whoever would need more waits a moment and is told to come back.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import JsonValue

from contracts.attachments import MAX_ATTACHMENT_BYTES, ClaimMedia, Upload
from contracts.base import Utc
from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.execution import Caller
from contracts.media import PART_BYTES, StoredMedia, media_path, owner_of
from contracts.subjects import MEDIA_CLAIM
from services.gateway.problems import too_large
from services.runtime.bus import Bus
from services.runtime.files import Files
from services.runtime.media_types import FileFacts, examine, is_sendable

Read = TypeVar("Read")

MAX_RUN_BODY_BYTES = 30 * 1024 * 1024
"""Of a request to run something, files in it as data URLs."""
_HELD_BYTES = 64 * 1024 * 1024
_ROOM_WAIT_S = 5.0
_RECEIVE_TIMEOUT_S = 120.0
_LARGE_CHARS = 64 * 1024

_DATA_URL = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)
_DATA_URL_START = b'"data:'
_HEAD_BYTES = 300


@dataclass(frozen=True, slots=True)
class RunBody:
    """The JSON of a request to run something. `cut` are large data URLs, by the markers that stand in their place."""

    json: bytes
    cut: dict[str, memoryview]


class Uploads:
    """`public_url` is where clients reach the gateway."""

    def __init__(self, bus: Bus, files: Files, public_url: str) -> None:
        self._bus = bus
        self._files = files
        self._public_url = public_url.rstrip("/")
        self._held = 0
        self._freed = asyncio.Condition()

    # Uploads ----------------------------------------------------------------------------------------------------------

    async def receive(self, caller: Caller, chunks: AsyncIterator[bytes], declared_bytes: int | None) -> Upload:
        """Keep a file that comes as the body of a request. Raises INVALID, 413, OVERLOADED, TIMEOUT, UNAVAILABLE."""
        if declared_bytes is not None and declared_bytes > MAX_ATTACHMENT_BYTES:
            raise _too_large_file()
        async with self.room(declared_bytes or MAX_ATTACHMENT_BYTES):
            parts = await within_time(_in_parts(chunks))
            if not parts:
                raise invalid("", "The request has no body; send the file as it is.")
            name, facts, claimed = await self._keep(caller, parts, "")
        return Upload(
            url=self._public_url + media_path(name),
            bytes=sum(map(len, parts)),
            expires_at=claimed,
            mime_type=facts.mime_type,
            width=facts.width,
            height=facts.height,
            pages=facts.pages,
        )

    async def take_out(self, caller: Caller, values: dict[str, JsonValue], cut: dict[str, memoryview]) -> None:
        """Replace every file in the inputs by the path that it is kept under.

        A file is a value that is, as a whole, a base64 data URL of something that can be sent. The same file has the same
        path, so the same request stays the same request.
        """
        for name, value in values.items():
            if not isinstance(value, str):
                continue
            url, path = cut.pop(value, None), f"input.{name}"[:100]
            if url is not None:
                parts = await asyncio.to_thread(_decoded, url)
                if isinstance(parts, str):
                    raise invalid(path, parts)
            elif value[:5].lower() == "data:":
                parts = await asyncio.to_thread(_decoded, memoryview(value.encode(errors="replace")))
                if isinstance(parts, str) or not is_sendable(parts[0]):
                    continue  # perhaps it is a text; where it is to be a file, the executor says what is wrong
            else:
                continue
            values[name] = media_path((await self._keep(caller, parts, path))[0])
        if cut:
            raise invalid("input", "Only the value of an input may be a data URL of this size.")

    async def _keep(self, caller: Caller, parts: list[bytes], path: str) -> tuple[str, FileFacts, Utc]:
        """Name, facts and until when. Raises INVALID under `path` for a file that may not be sent."""
        size = sum(map(len, parts))
        if size > MAX_ATTACHMENT_BYTES:
            raise invalid(path, f"It is larger than {MAX_ATTACHMENT_BYTES} bytes; send a smaller one.")
        digest, facts = await asyncio.to_thread(_look_at, parts)
        if not isinstance(facts, FileFacts):
            raise invalid(path, facts)
        claim = ClaimMedia.model_validate(
            {
                "caller": caller,
                "sha256": digest,
                "mime_type": facts.mime_type,
                "bytes": size,
                "width": facts.width,
                "height": facts.height,
                "pages": facts.pages,
            }
        )
        claimed = await self._bus.call(MEDIA_CLAIM, claim)
        if await self._files.find(claimed.name) is None:
            owner = owner_of(caller.kind, caller.id)
            await self._files.put(claimed.name, StoredMedia(facts.mime_type, size, len(parts), owner), parts)
        return claimed.name, facts, claimed.expires_at

    # Room -------------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes for the block. Raises OVERLOADED where there is no room for them in time."""
        try:
            async with asyncio.timeout(_ROOM_WAIT_S), self._freed:
                await self._freed.wait_for(lambda: self._held + size <= _HELD_BYTES)
                self._held += size
        except TimeoutError:
            raise ServiceError(
                ErrorCode.OVERLOADED,
                "Too many large files are coming in; try again.",
                retry_after_s=5,
                scope="instance",
            ) from None
        try:
            yield
        finally:
            self._held -= size
            async with self._freed:
                self._freed.notify_all()


# Bodies ---------------------------------------------------------------------------------------------------------------


async def within_time(reading: Awaitable[Read]) -> Read:
    """What is read, within the time that a body may take. Raises TIMEOUT."""
    try:
        async with asyncio.timeout(_RECEIVE_TIMEOUT_S):
            return await reading
    except TimeoutError:
        raise ServiceError(ErrorCode.TIMEOUT, "The body did not arrive in time; try again.") from None


async def _in_parts(chunks: AsyncIterator[bytes]) -> list[bytes]:
    """What arrives, in parts as they are stored. Raises 413 before more than the limit is held."""
    parts: list[bytes] = []
    rest = bytearray()
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_ATTACHMENT_BYTES:
            raise _too_large_file()
        rest += chunk
        while len(rest) >= PART_BYTES:
            parts.append(bytes(memoryview(rest)[:PART_BYTES]))
            del rest[:PART_BYTES]
    return [*parts, bytes(rest)] if rest else parts


def _too_large_file() -> ServiceError:
    return too_large(f"The file is too large; send at most {MAX_ATTACHMENT_BYTES // 1024**2} MiB.")


def cut_data_urls(body: bytearray) -> RunBody:
    """A large body without its large data URLs: what is left is small enough to be read as JSON.

    They are found as strings of the JSON text; whether they stand where a file may stand is seen once it is read.
    """
    cut: dict[str, memoryview] = {}
    pieces: list[bytes | memoryview] = []
    whole = memoryview(body)
    done = 0
    at = body.find(_DATA_URL_START)
    while at >= 0:
        end = body.find(b'"', at + 1)
        if end < 0:
            break
        # An escaped quotation mark begins no string.
        if end - at > _LARGE_CHARS and body[at - 1 : at] != b"\\":
            marker = f"cut:{secrets.token_hex(16)}"
            cut[marker] = whole[at + 1 : end]
            pieces += [whole[done : at + 1], marker.encode()]
            done = end
        at = body.find(_DATA_URL_START, end)
    return RunBody(b"".join([*pieces, whole[done:]]), cut)


def _decoded(url: memoryview) -> list[bytes] | str:
    """The bytes of a data URL, in parts; a sentence where it is none. PHP writes every slash with a backslash before it."""
    text = bytes(url).replace(b"\\/", b"/") if b"\\" in bytes(url[:_HEAD_BYTES]) else url
    head = _DATA_URL.match(bytes(text[:_HEAD_BYTES]))
    if head is None:
        return "Send a data URL with base64: data:image/png;base64,…"
    data = memoryview(text)[head.end() :]
    step = PART_BYTES // 3 * 4
    decoded = bytearray()
    parts: list[bytes] = []
    try:
        for start in range(0, len(data), step):
            decoded += base64.b64decode(data[start : start + step], validate=True)
            while len(decoded) >= PART_BYTES:
                parts.append(bytes(memoryview(decoded)[:PART_BYTES]))
                del decoded[:PART_BYTES]
    except (binascii.Error, ValueError):
        return "The data URL is not valid base64."
    if decoded:
        parts.append(bytes(decoded))
    return parts or "The data URL holds no file."


def _look_at(parts: list[bytes]) -> tuple[str, FileFacts | str]:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest(), examine(parts)
