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
import re
import struct
from dataclasses import dataclass
from weakref import WeakValueDictionary

import filetype
from nats.js import JetStreamContext
from nats.js.api import ObjectMeta, ObjectMetaOptions, StorageType
from nats.js.errors import ObjectNotFoundError
from nats.js.object_store import ObjectStore

from contracts.execution import MediaPart, OtherPart
from contracts.media import (
    EXTENSIONS,
    PART_BYTES,
    StoredMedia,
    media_headers,
    media_path,
    part_count,
    part_name,
)
from contracts.subjects import MEDIA_BUCKET
from services.executor.faults import UpstreamFailed, too_large
from services.executor.parts import MediaKind, RawMedia

MAX_MEDIA_BYTES = 64 * 1024 * 1024
_THREAD_FROM_CHARS = 256 * 1024
_UNKNOWN_TYPE = "application/octet-stream"
_PCM_SAMPLES_PER_S = 24_000

# One run of base64 with its padding: providers send pieces of one string, or strings that are padded one by one.
_BASE64_RUN = re.compile(r"[^=]+={0,2}")
_SVG = re.compile(rb"(?:\s|<\?xml[^>]*\?>|<!--.*?-->|<!DOCTYPE\s+svg[^>]*>)*<svg[\s>]", re.DOTALL | re.IGNORECASE)
_KINDS: dict[str, MediaKind] = {"image": "image", "audio": "audio", "video": "video"}
_SAME_TYPE = {
    "image/apng": "image/png",
    "audio/x-wav": "audio/wav",
    "audio/x-flac": "audio/flac",
    "video/x-m4v": "video/mp4",
    "audio/m4a": "audio/mp4",
}


class MediaStore:
    """The object store of generated files. `public_url` is where callers reach the gateway."""

    def __init__(
        self, js: JetStreamContext, public_url: str, name_secret: bytes, max_bytes: int = MAX_MEDIA_BYTES
    ) -> None:
        self._js = js
        self._public_url = public_url.rstrip("/")
        self._name_secret = name_secret
        self._max_bytes = max_bytes
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Built by hand, because asking for a bucket by name costs a round trip for every file.
        self._objects = ObjectStore(MEDIA_BUCKET, f"OBJ_{MEDIA_BUCKET}", js)

    async def declare(self) -> None:
        """Creates the bucket where it is missing."""
        await self._js.create_object_store(MEDIA_BUCKET, storage=StorageType.FILE)

    async def store(self, raw: RawMedia) -> MediaPart | OtherPart:
        """Stores a file unless it is there already, and says where. What does not decode becomes an `other` part.

        Raises UpstreamFailed where the file is larger than `max_bytes`.
        """
        size = sum(map(len, raw.pieces))
        if size * 3 // 4 > self._max_bytes + 2:
            raise UpstreamFailed(too_large(delivered=True))
        if size > _THREAD_FROM_CHARS:
            file = await asyncio.to_thread(read_media, raw, self._name_secret)
        else:
            file = read_media(raw, self._name_secret)
        if file is None:
            return OtherPart(kind=f"invalid_{raw.kind}", data={"declared_mime_type": raw.declared_mime})
        # Two runs that make the same file must not write it at once: the second would take the first one's bytes away.
        lock = self._locks.setdefault(file.name, asyncio.Lock())
        async with lock:
            if not await self._is_stored(file.name):
                await self._put(file)
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

    async def _is_stored(self, name: str) -> bool:
        try:
            await self._objects.get_info(part_name(name, 0))
        except ObjectNotFoundError:
            return False
        return True

    async def _put(self, file: MediaFile) -> None:
        """Part 0 goes last: once it is there, all are."""
        parts = part_count(len(file.content))
        for number in reversed(range(parts)):
            headers = media_headers(StoredMedia(file.mime_type, len(file.content), parts)) if number == 0 else None
            await self._objects.put(
                part_name(file.name, number),
                file.content[number * PART_BYTES : (number + 1) * PART_BYTES],
                ObjectMeta(headers=headers, options=ObjectMetaOptions(max_chunk_size=PART_BYTES)),
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


def read_media(raw: RawMedia, name_secret: bytes) -> MediaFile | None:
    """The file behind what arrived; None where its base64 does not decode to anything."""
    content = decode_base64(raw.pieces)
    if not content:
        return None
    mime_type = recognise(content)
    if mime_type == _UNKNOWN_TYPE and raw.kind == "audio" and raw.declared_mime in ("audio/pcm16", "audio/pcm"):
        content, mime_type = wrap_pcm(content), "audio/wav"
    kind = _KINDS.get(mime_type.partition("/")[0], "file")
    width, height = dimensions(content, mime_type)
    digest = hmac.new(name_secret, hashlib.sha256(content).digest(), hashlib.sha256).hexdigest()
    return MediaFile(f"{digest}.{EXTENSIONS[mime_type]}", kind, mime_type, content, width, height)


def decode_base64(pieces: tuple[str, ...]) -> bytes | None:
    """The bytes of base64 in pieces, in either alphabet, with or without padding; None where it is not base64."""
    text = "".join("".join(pieces).split()).translate({ord("-"): "+", ord("_"): "/"})
    try:
        return b"".join(_decode_run(run[0]) for run in _BASE64_RUN.finditer(text))
    except (binascii.Error, ValueError):
        return None


def _decode_run(run: str) -> bytes:
    return base64.b64decode(run.rstrip("=") + "=" * (-len(run.rstrip("=")) % 4), validate=True)


def recognise(content: bytes) -> str:
    """The MIME type that the content itself shows, one of EXTENSIONS."""
    if _SVG.match(content[:4096].removeprefix(b"\xef\xbb\xbf")):
        return "image/svg+xml"
    guessed = filetype.guess_mime(content[:8192]) or _UNKNOWN_TYPE
    mime_type = _SAME_TYPE.get(guessed, guessed)
    return mime_type if mime_type in EXTENSIONS else _UNKNOWN_TYPE


def wrap_pcm(samples: bytes) -> bytes:
    """Raw 16-bit mono sound, which no player opens, as a WAV file; OpenAI's models stream it at 24 kHz."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _PCM_SAMPLES_PER_S, _PCM_SAMPLES_PER_S * 2, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


# Dimensions -----------------------------------------------------------------------------------------------------------

_Size = tuple[int, int] | tuple[None, None]
_UNKNOWN_SIZE: _Size = (None, None)


def dimensions(content: bytes, mime_type: str) -> _Size:
    """Width and height in pixels out of the file's header; nothing where it does not say."""
    readers = {
        "image/png": _png_size,
        "image/jpeg": _jpeg_size,
        "image/gif": _gif_size,
        "image/webp": _webp_size,
    }
    reader = readers.get(mime_type)
    try:
        return reader(content) if reader else _UNKNOWN_SIZE
    except (struct.error, IndexError):
        return _UNKNOWN_SIZE


def _png_size(content: bytes) -> _Size:
    if content[12:16] != b"IHDR":
        return _UNKNOWN_SIZE
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


def _gif_size(content: bytes) -> _Size:
    width, height = struct.unpack_from("<HH", content, 6)
    return width, height


def _jpeg_size(content: bytes) -> _Size:
    """Walks the segments to the frame header (SOF); the three markers left out lie among its numbers and are none."""
    at = 2
    while at < len(content):
        if content[at] != 0xFF:
            return _UNKNOWN_SIZE
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        elif marker in (0xD9, 0xDA):
            return _UNKNOWN_SIZE
        else:
            at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    return _UNKNOWN_SIZE


def _webp_size(content: bytes) -> _Size:
    kind = content[12:16]
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    return _UNKNOWN_SIZE
