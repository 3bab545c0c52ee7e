"""The inputs of a resource as a form has them: one field per declared input, named `input.<name>` as problems name it."""

from __future__ import annotations

import re

from pydantic import JsonValue

from contracts.attachments import MAX_ATTACHMENT_BYTES, SENDABLE
from contracts.catalog import InputField
from services.console.forms import Form, refused

_WHOLE = re.compile(r"[+-]?\d{1,15}")
SHORT_TEXT_CHARS = 120
"""Up to here a text is written in one line."""


def input_values(form: Form, fields: list[InputField]) -> dict[str, JsonValue]:
    """What was filled in, as a run takes it; fields that were left empty are left out.

    What is missing or too long is the interface's to say. Raises `ApiError` for a number that is none.
    """
    values: dict[str, JsonValue] = {}
    for field in fields:
        name = f"input.{field.name}"
        if field.type == "boolean":
            values[field.name] = bool(form[name])
        elif form[name]:
            values[field.name] = _number(name, form[name]) if field.type == "number" else form[name]
    return values


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if _WHOLE.fullmatch(text) else float(text)
    except ValueError:
        raise refused(name, "Write a number, such as 2.5.") from None


def accepted(field: InputField) -> str:
    """The media types that a file input offers, as the `accept` of HTML."""
    return ",".join(field.accept or SENDABLE[field.type])


def largest_bytes(field: InputField) -> int:
    """How large its file may be."""
    return min(field.max_bytes or MAX_ATTACHMENT_BYTES, MAX_ATTACHMENT_BYTES)
