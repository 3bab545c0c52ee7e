"""Keyset cursors: the sort key of the last item of a page, so that the next page starts after it whatever was added meanwhile.

A cursor is opaque to callers and bound to the question that it answers; with another sort or another search text it is
refused rather than silently wrong.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from uuid import UUID

import orjson

from contracts.errors import ServiceError, invalid

_MOST_DIGITS = 60
"""More than any key has, before or behind the point; whoever makes cursors up must not have us write out 10**999999."""


def encode_cursor(question: str, parts: list[str]) -> str:
    """`question` names what is paged and how it is sorted; `parts` is the sort key of the last item."""
    return base64.urlsafe_b64encode(orjson.dumps([_fingerprint(question), *parts])).decode().rstrip("=")


def decode_cursor(question: str, cursor: str, length: int) -> list[str]:
    """The parts of a cursor that was made for the same question. Raises INVALID for anything else."""
    try:
        decoded = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise bad_cursor() from None
    if (
        not isinstance(decoded, list)
        or len(decoded) != length + 1
        or not all(isinstance(part, str) for part in decoded)
        or decoded[0] != _fingerprint(question)
    ):
        raise bad_cursor()
    return decoded[1:]


def cursor_number(text: str) -> Decimal:
    """A numeric part of a cursor. Raises INVALID when it is none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise bad_cursor() from None
    if not number.is_finite() or abs(number.adjusted()) > _MOST_DIGITS:
        raise bad_cursor()
    return number


def encode_place(question: str, created_at: datetime, row_id: UUID) -> str:
    """A cursor for lists that go by (created_at, id)."""
    return encode_cursor(question, [created_at.astimezone(UTC).isoformat(), str(row_id)])


def decode_place(question: str, cursor: str | None) -> tuple[datetime, UUID] | None:
    """Where a list by (created_at, id) goes on; None without a cursor. Raises INVALID for a bad one."""
    if cursor is None:
        return None
    created_at, row_id = decode_cursor(question, cursor, 2)
    try:
        moment, identifier = datetime.fromisoformat(created_at), UUID(row_id)
    except ValueError:
        raise bad_cursor() from None
    if moment.tzinfo is None:
        raise bad_cursor()
    return moment, identifier


def bad_cursor() -> ServiceError:
    return invalid("cursor", "This cursor does not belong to this search; start again without one.")


def _fingerprint(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:12]
