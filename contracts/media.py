"""How files lie in the object store, so that ranges can be streamed: what executors (outputs) and gateways (inputs) write.

A file `name` is stored as the objects `name/0`, `name/1`, … of one mebibyte each (the last is shorter). Part 0 is written
last and carries what the whole file is in its headers: a file whose part 0 is there is complete. Names are unguessable and
depend on the content alone (those of inputs on their owner as well), so a file never changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

PART_BYTES = 1024 * 1024

MIME_TYPE_HEADER = "X402jobs-Mime-Type"
BYTES_HEADER = "X402jobs-Bytes"
PARTS_HEADER = "X402jobs-Parts"
OWNER_HEADER = "X402jobs-Owner"

INPUT_PREFIX = "in-"
"""Begins the names of what callers have sent; everything else was made by a model."""

EXTENSIONS: Mapping[str, str] = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/svg+xml": "svg",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "audio/aac": "aac",
    "audio/mp4": "m4a",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "application/pdf": "pdf",
    "application/octet-stream": "bin",
}
"""Every type that is ever stored, with the extension of its name."""

_NAME = re.compile(rf"(?:{INPUT_PREFIX})?[0-9a-f]{{64}}\.(?:{'|'.join(EXTENSIONS.values())})")


@dataclass(frozen=True, slots=True)
class StoredMedia:
    """What part 0 says about the whole file."""

    mime_type: str
    bytes: int
    parts: int
    owner: str | None = None


def is_media_name(name: str) -> bool:
    """Whether this could be the name of a stored file; anything else must not reach the store."""
    return _NAME.fullmatch(name) is not None


def is_input_name(name: str) -> bool:
    """Whether a stored file is a caller's own, and so for its owner alone."""
    return name.startswith(INPUT_PREFIX)


def owner_of(kind: str, user_id: str) -> str:
    """A caller as the header of an input names them."""
    return f"{kind}:{user_id}"


def name_in(url: str, public_url: str) -> str | None:
    """The name of the file that an address of ours stands for, with or without the host; None for any other address."""
    path = url.removeprefix(public_url)
    name = path.removeprefix("/media/")
    return name if path != name and is_media_name(name) else None


def media_path(name: str) -> str:
    """Path of the file below the public address."""
    return f"/media/{name}"


def part_name(name: str, number: int) -> str:
    """Name of the object that holds one part of the file."""
    return f"{name}/{number}"


def part_count(size_bytes: int) -> int:
    """How many objects a file of this size takes; an empty file still has one."""
    return max(1, -(-size_bytes // PART_BYTES))


def media_headers(media: StoredMedia) -> dict[str, list[str]]:
    """The headers of the object of part 0."""
    headers = {
        MIME_TYPE_HEADER: [media.mime_type],
        BYTES_HEADER: [str(media.bytes)],
        PARTS_HEADER: [str(media.parts)],
    }
    return headers if media.owner is None else {**headers, OWNER_HEADER: [media.owner]}


def read_media_headers(headers: Mapping[str, list[str]] | None) -> StoredMedia | None:
    """What the headers of part 0 say; None where they are not ours."""
    try:
        found = {name: values[0] for name, values in (headers or {}).items()}
        size, parts = int(found[BYTES_HEADER]), int(found[PARTS_HEADER])
        return StoredMedia(found[MIME_TYPE_HEADER], size, parts, found.get(OWNER_HEADER))
    except (KeyError, IndexError, ValueError):
        return None
