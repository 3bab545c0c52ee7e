"""Conditional and range requests (RFC 9110 §13 and §14), decided on strings and numbers alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BYTE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class ByteRange:
    """First and last byte, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


class UnsatisfiableRangeError(ValueError):
    """The range begins behind the end."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The part that a `Range` header asks for; None for the whole.

    Several ranges, other units and nonsense are answered with the whole, as the standard allows. Raises
    `UnsatisfiableRangeError` for a range behind the end.
    """
    found = _BYTE_RANGE.fullmatch(header) if header else None
    if found is None:
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    if not first:
        suffix = int(last)
        if suffix == 0 or size == 0:
            raise UnsatisfiableRangeError
        return ByteRange(max(0, size - suffix), size - 1)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableRangeError
    return ByteRange(int(first), min(int(last), size - 1) if last else size - 1)


def matches_etag(header: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header names this strong ETag (or `*`); weak comparison, as that header asks for."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def range_still_holds(if_range: str | None, etag: str) -> bool:
    """Whether `If-Range` lets the range stand; only our strong ETag does, a date never does."""
    return if_range is None or if_range.strip() == etag
