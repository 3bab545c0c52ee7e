"""Files that models make: decoded, recognised by their content, and put into the object store for the gateway to serve.

What a model claims a file to be is only believed where the content cannot tell (raw sound). A file's name is a keyed hash
of its content, so the same file is stored once and nobody can guess whether a certain one exists.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass

from contracts.execution import MediaPart, OtherPart
from contracts.media import EXTENSIONS, PART_BYTES, StoredMedia, media_path, part_count
from services.executor.faults import UpstreamFailed, too_large
from services.executor.media_store import IndexedFile, MediaIndex
from services.executor.metrics import ExecutorMetrics
from services.executor.parts import MediaKind, RawMedia
from services.runtime.files import Files
from services.runtime.media_types import UNKNOWN_TYPE, dimensions, recognise

MAX_MEDIA_BYTES = 64 * 1024 * 1024
_THREAD_FROM_CHARS = 256 * 1024
_PCM_SAMPLES_PER_S = 24_000

_BLOCK_CHARS = 1024 * 1024
_ONE_ALPHABET = bytes.maketrans(b"-_", b"+/")
_KINDS: dict[str, MediaKind] = {"image": "image", "audio": "audio", "video": "video"}


class MediaStore:
    """Keeps generated files. `public_url` is where callers reach the gateway."""

    def __init__(
        self,
        files: Files,
        index: MediaIndex,
        metrics: ExecutorMetrics,
        public_url: str,
        name_secret: bytes,
        max_bytes: int = MAX_MEDIA_BYTES,
    ) -> None:
        self._files = files
        self._index = index
        self._metrics = metrics
        self._public_url = public_url.rstrip("/")
        self._name_secret = name_secret
        self._max_bytes = max_bytes

    async def store(self, raw: RawMedia) -> MediaPart | OtherPart:
        """Stores a file unless it is there already, and says where. What does not decode becomes an `other` part.

        Its base64 is dropped on the way: the run may go on for long.

        Raises UpstreamFailed where the file is larger than `max_bytes`.
        """
        size = sum(map(len, raw.pieces))
        if size * 3 // 4 > self._max_bytes + 2:
            raise UpstreamFailed(too_large(delivered=True))
        if size > _THREAD_FROM_CHARS:
            file = await asyncio.to_thread(read_media, raw, self._name_secret)
        else:
            file = read_media(raw, self._name_secret)
        raw.pieces = ()
        if file is None:
            return OtherPart(kind=f"invalid_{raw.kind}", data={"declared_mime_type": raw.declared_mime})
        _, new = await self._index.claim(
            IndexedFile(file.name, file.mime_type, len(file.content), file.width, file.height)
        )
        if await self._files.find(file.name) is None:
            await self._files.put(file.name, *_in_parts(file))
        if new:
            self._metrics.media_bytes.inc(len(file.content))
        return MediaPart(
            type=file.kind,
            url=self._public_url + media_path(file.name),
            mime_type=file.mime_type,
            bytes=len(file.content),
            width=file.width,
            height=file.height,
            transcript=raw.transcript,
            filename=raw.filename,
        )


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A decoded file and what its content says it is."""

    name: str
    kind: MediaKind
    mime_type: str
    content: bytes
    width: int | None
    height: int | None


def _in_parts(file: MediaFile) -> tuple[StoredMedia, list[memoryview]]:
    count, content = part_count(len(file.content)), memoryview(file.content)
    parts = [content[number * PART_BYTES : (number + 1) * PART_BYTES] for number in range(count)]
    return StoredMedia(file.mime_type, len(file.content), count), parts


def read_media(raw: RawMedia, name_secret: bytes) -> MediaFile | None:
    """The file behind what arrived; None where its base64 does not decode to anything."""
    content = decode_base64(raw.pieces)
    if not content:
        return None
    mime_type = recognise(content)
    if mime_type == UNKNOWN_TYPE and raw.kind == "audio" and raw.declared_mime in ("audio/pcm16", "audio/pcm"):
        content, mime_type = wrap_pcm(content), "audio/wav"
    kind = _KINDS.get(mime_type.partition("/")[0], "file")
    width, height = dimensions(content, mime_type)
    digest = hmac.new(name_secret, hashlib.sha256(content).digest(), hashlib.sha256).hexdigest()
    return MediaFile(f"{digest}.{EXTENSIONS[mime_type]}", kind, mime_type, content, width, height)


def decode_base64(pieces: tuple[str, ...]) -> bytes | None:
    """The bytes of base64 in pieces, in either alphabet, with or without padding; None where it is not base64.

    Providers send pieces of one string, or strings that are padded one by one. Taken block by block: a picture of many
    megabytes is not copied again for every step.
    """
    decoded: list[bytes] = []
    rest = b""
    try:
        for piece in pieces:
            for start in range(0, len(piece), _BLOCK_CHARS):
                block = piece[start : start + _BLOCK_CHARS].encode("ascii").translate(_ONE_ALPHABET, b" \t\r\n\v\f")
                *padded, rest = (rest + block).split(b"=")
                decoded += [_decode_run(run) for run in padded if run]
                whole = len(rest) // 4 * 4
                decoded.append(base64.b64decode(rest[:whole], validate=True))
                rest = rest[whole:]
        decoded.append(_decode_run(rest))
    except (binascii.Error, ValueError):
        return None
    return b"".join(decoded)


def _decode_run(run: bytes) -> bytes:
    return base64.b64decode(run + b"=" * (-len(run) % 4), validate=True)


def wrap_pcm(samples: bytes) -> bytes:
    """Raw 16-bit mono sound, which no player opens, as a WAV file; OpenAI's models stream it at 24 kHz."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _PCM_SAMPLES_PER_S, _PCM_SAMPLES_PER_S * 2, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data
