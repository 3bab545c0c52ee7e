"""What a file is, from its content alone: its media type, the pixels of a picture, the pages of a PDF.

Nothing is decoded: headers are read, which is cheap whatever they claim. What whoever sent the file says of it counts for
nothing here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import filetype

from contracts.attachments import MAX_IMAGE_PIXELS, MAX_PDF_PAGES, SENDABLE
from contracts.media import EXTENSIONS
from services.runtime.pdf import count_pages

UNKNOWN_TYPE = "application/octet-stream"

_SVG = re.compile(rb"(?:\s|<\?xml[^>]*\?>|<!--.*?-->|<!DOCTYPE\s+svg[^>]*>)*<svg[\s>]", re.DOTALL | re.IGNORECASE)
_SAME_TYPE = {
    "image/apng": "image/png",
    "audio/x-wav": "audio/wav",
    "audio/x-flac": "audio/flac",
    "video/x-m4v": "video/mp4",
    "audio/m4a": "audio/mp4",
}
_SENDABLE = frozenset(mime_type for types in SENDABLE.values() for mime_type in types)


def recognise(content: bytes) -> str:
    """The MIME type that the content itself shows, one of EXTENSIONS."""
    if _SVG.match(content[:4096].removeprefix(b"\xef\xbb\xbf")):
        return "image/svg+xml"
    guessed = filetype.guess_mime(content[:8192]) or UNKNOWN_TYPE
    mime_type = _SAME_TYPE.get(guessed, guessed)
    return mime_type if mime_type in EXTENSIONS else UNKNOWN_TYPE


# What may be sent -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file that may be sent to a model."""

    mime_type: str
    width: int | None = None
    height: int | None = None
    pages: int | None = None


def is_sendable(content: bytes) -> bool:
    """Whether upstream takes this type of file at all."""
    return recognise(content) in _SENDABLE


def examine(parts: Sequence[bytes]) -> FileFacts | str:
    """The facts of a file that may be sent, or a sentence on why it may not be. Headers are looked for in the first part."""
    content = parts[0] if parts else b""
    mime_type = recognise(content)
    if mime_type not in _SENDABLE:
        return (
            "Its content is no type that can be sent: send PNG, JPEG, WebP, GIF, PDF, WAV, MP3, OGG, FLAC, AAC or M4A."
        )
    if mime_type == "application/pdf":
        pages = count_pages(b"".join(parts))
        if pages is None:
            return "Its pages cannot be counted: it is encrypted or damaged. Save it anew, without a password."
        if pages > MAX_PDF_PAGES:
            return f"It has more than {MAX_PDF_PAGES} pages; send fewer."
        return FileFacts(mime_type, pages=pages)
    if not mime_type.startswith("image/"):
        return FileFacts(mime_type)
    width, height = dimensions(content, mime_type)
    if not width or not height:
        return "Its size in pixels cannot be read: it is damaged. Save it anew."
    if width * height > MAX_IMAGE_PIXELS:
        return f"It has more than {MAX_IMAGE_PIXELS // 10**6} million pixels; make it smaller."
    return FileFacts(mime_type, width, height)


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
