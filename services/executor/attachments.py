"""The files of a run: found, checked against what the resource declares, and written into the request as they are sent.

A file is never held whole. It goes from the object store into the request's body part by part, so that a run with a large
file costs as much memory as one without. Only what a publisher sends within its message is in memory already.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from contracts.attachments import MAX_ATTACHED_BYTES, MAX_ATTACHMENT_BYTES, SENDABLE
from contracts.catalog import InputField
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller
from contracts.media import EXTENSIONS, name_in
from services.executor.faults import Fault
from services.executor.media_store import IndexedFile, MediaIndex
from services.runtime.files import Files
from services.runtime.media_types import FileFacts, examine

_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_ENCODED_BYTES = 192 * 1024  # a multiple of three, so that the base64 of every piece stands by itself
_NOT_OURS = (
    "Send the address of a file of yours (upload it with POST /media), of a generated file, or a base64 data URL;"
    " other addresses are not fetched."
)
_GONE = "There is no such file of yours; uploads are kept for a limited time. Upload it again."


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """A file that goes upstream. `marker` stands in the request where its base64 belongs."""

    mime_type: str
    size: int
    name: str | None
    content: bytes | None
    files: Files
    marker: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def encoded_bytes(self) -> int:
        """Length of its base64."""
        return -(-self.size // 3) * 4

    async def read(self) -> AsyncIterator[bytes]:
        """Its bytes as they come. Raises ServiceError where it cannot be read."""
        if self.content is not None:
            yield self.content
            return
        assert self.name is not None
        left = self.size
        async for piece in self.files.read(self.name, 0, self.size - 1):
            left -= len(piece)
            yield piece
        if left:
            raise ServiceError(ErrorCode.UNAVAILABLE, "A file of this run could not be read whole; try again.")


class Attachments:
    """Finds the files that a run is given."""

    def __init__(self, files: Files, index: MediaIndex, public_url: str) -> None:
        self._files = files
        self._index = index
        self._public_url = public_url.rstrip("/")

    async def of(
        self, caller: Caller, fields: Sequence[InputField], values: Mapping[str, JsonValue]
    ) -> dict[str, Attachment | str]:
        """What every image, file and audio input was given: the file, or a sentence on why it cannot be taken.

        The files are there until the run has ended.
        """
        given = {
            each.name: values[each.name]
            for each in fields
            if each.type in SENDABLE and values.get(each.name) is not None
        }
        if not given:
            return {}
        addresses = {value for value in given.values() if isinstance(value, str)}
        names = {value: name for value in addresses if (name := name_in(value, self._public_url))}
        rows = await self._index.use(sorted(set(names.values()))) if names else {}
        found: dict[str, Attachment | str] = {}
        total = 0
        for declared in (each for each in fields if each.name in given):
            value = given[declared.name]
            name = names.get(value) if isinstance(value, str) else None
            file = await self._of_data_url(value) if name is None else self._of_row(rows.get(name), caller)
            if isinstance(file, Attachment):
                total += file.size
                file = _misfit(declared, file, total) or file
            found[declared.name] = file
        return found

    def _of_row(self, row: IndexedFile | None, caller: Caller) -> Attachment | str:
        if row is None or row.owner not in (None, caller):
            return _GONE
        return Attachment(row.mime_type, row.bytes, row.name, None, self._files)

    async def _of_data_url(self, value: JsonValue) -> Attachment | str:
        """A small file within the message itself; gateways have put every other one into the store."""
        head = _DATA_URL.match(value) if isinstance(value, str) else None
        if head is None:
            return _NOT_OURS
        assert isinstance(value, str)
        try:
            content = base64.b64decode(value[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            return "The data URL is not valid base64."
        facts = await asyncio.to_thread(examine, [content])
        if not isinstance(facts, FileFacts):
            return facts
        return Attachment(facts.mime_type, len(content), None, content, self._files)


def _misfit(declared: InputField, attachment: Attachment, total: int) -> str | None:
    """Why this file is not what the input takes. `total` is the size of the run's files up to this one, in bytes."""
    allowed = [each for each in SENDABLE[declared.type] if declared.accept is None or each in declared.accept]
    if attachment.mime_type not in allowed:
        return f"Its content is {attachment.mime_type}; this input takes {', '.join(allowed)}."
    if total > MAX_ATTACHED_BYTES:
        return f"The files of one run may have {MAX_ATTACHED_BYTES} bytes together; send smaller ones."
    most = min(declared.max_bytes or MAX_ATTACHMENT_BYTES, MAX_ATTACHMENT_BYTES)
    return f"It is larger than {most} bytes; send a smaller one." if attachment.size > most else None


def content_part(name: str, attachment: Attachment) -> dict[str, JsonValue]:
    """The part of a message that carries the file of the input `name`."""
    url = f"data:{attachment.mime_type};base64,{attachment.marker}"
    if attachment.mime_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    extension = EXTENSIONS[attachment.mime_type]
    if attachment.mime_type.startswith("audio/"):
        return {"type": "input_audio", "input_audio": {"data": attachment.marker, "format": extension}}
    return {"type": "file", "file": {"filename": f"{name}.{extension}", "file_data": url}}


class Payload:
    """The body of a request with its files, made while it is sent. `failed` says that one of them could not be read."""

    def __init__(self, content: bytes, attachments: Sequence[Attachment]) -> None:
        self._pieces: list[bytes | Attachment] = [content]
        for attachment in attachments:
            at, before, after = self._cut(attachment)
            self._pieces[at : at + 1] = [before, attachment, after]
        self.failed = False

    def _cut(self, attachment: Attachment) -> tuple[int, bytes, bytes]:
        marker = attachment.marker.encode()
        for at, piece in enumerate(self._pieces):
            if isinstance(piece, bytes) and marker in piece:
                before, _, after = piece.partition(marker)
                return at, before, after
        raise LookupError("a file that the request does not mention")

    def __len__(self) -> int:
        return sum(piece.encoded_bytes if isinstance(piece, Attachment) else len(piece) for piece in self._pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            try:
                async for encoded in _encoded(piece.read()):
                    yield encoded
            except ServiceError:
                self.failed = True
                raise


async def _encoded(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Base64 of bytes as they come, in pieces that hold nobody else up."""
    rest = b""
    async for piece in pieces:
        data = memoryview(rest + piece)
        whole = len(data) // 3 * 3
        for start in range(0, whole, _ENCODED_BYTES):
            yield base64.b64encode(data[start : min(start + _ENCODED_BYTES, whole)])
        rest = bytes(data[whole:])
    if rest:
        yield base64.b64encode(rest)


def unreadable() -> Fault:
    """A file could not be read while the request was being sent: it was never whole, so nothing was done for it."""
    return Fault(ErrorCode.UNAVAILABLE, "A file of this run could not be read; try again.", retry=True)
