"""The base of every message on the bus, and the few types that all of them share.

Messages are read tolerantly and written strictly: an unknown field is ignored, so that an old and a new service can run
side by side for a day, and a validation error never repeats the input, because the input may hold a key or a person's
text. Nothing here knows about a subject, a service or a database.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

Utc = Annotated[AwareDatetime, Field(description="A moment with its offset; we always write UTC.")]
UserId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[^\s\x00-\x1f/]+$"),
    Field(description="The `sub` of the user's token."),
]
Slug = Annotated[
    str,
    StringConstraints(min_length=1, max_length=80, pattern=r"^[a-z0-9]+(?:-[a-z0-9]+)*$"),
    Field(description="Lower-case letters, digits and single hyphens; unique per owner."),
]
Base64 = Annotated[str, StringConstraints(max_length=65_536, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]


class Contract(BaseModel):
    """What every message is: immutable once read, tolerant of fields it does not know, silent about its input in errors."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class Empty(Contract):
    """A request or reply that carries nothing."""


def new_execution_id() -> UUID:
    """A UUIDv7 (RFC 9562): sorts by the moment it was made, so that primary keys stay append-only.

    The standard library has `uuid.uuid7` from Python 3.14 on; delete this when that is the oldest version we run on.
    """
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    return UUID(int=bits)
