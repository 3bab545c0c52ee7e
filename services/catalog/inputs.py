"""The inputs that a resource declares: whether the declarations make sense, and the JSON Schema that they amount to."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import JsonValue

from contracts.attachments import MAX_ATTACHMENT_BYTES, SENDABLE
from contracts.catalog import InputField
from contracts.errors import FieldProblem

ATTACHMENTS = frozenset(SENDABLE)
"""Inputs that are sent beside the prompt: no template has a place for them."""


def input_problems(inputs: list[InputField]) -> list[FieldProblem]:
    """What is wrong with the declarations, each under its own path."""
    problems: list[FieldProblem] = []
    seen: set[str] = set()
    for position, declaration in enumerate(inputs):
        path = f"inputs.{position}"
        if declaration.name in seen:
            problems.append(
                FieldProblem(path=f"{path}.name", message="Another input has this name already; rename one.")
            )
        seen.add(declaration.name)
        problems += [
            FieldProblem(path=f"{path}.{field}", message=message)
            for field, message in _declaration_problems(declaration)
        ]
    return problems


def input_schema(inputs: list[InputField]) -> dict[str, JsonValue]:
    """JSON Schema (2020-12) of the `input` object of an execution."""
    required: list[JsonValue] = [field.name for field in inputs if field.required and field.default is None]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {field.name: _property(field) for field in inputs},
        "required": required,
        "additionalProperties": False,
    }


def _declaration_problems(declaration: InputField) -> Iterable[tuple[str, str]]:
    if declaration.max_length is not None and declaration.type != "text":
        yield "max_length", "Only a text input has max_length; remove it."
    for field in ("minimum", "maximum"):
        limit = getattr(declaration, field)
        if limit is not None and declaration.type != "number":
            yield field, f"Only a number input has {field}; remove it."
        elif limit is not None and not math.isfinite(limit):
            yield field, f"{field} must be a finite number."
    if (
        declaration.minimum is not None
        and declaration.maximum is not None
        and declaration.minimum > declaration.maximum
    ):
        yield "minimum", "minimum is above maximum."
    if declaration.type == "choice" and not declaration.choices:
        yield "choices", "A choice input needs its choices: a list of strings."
    if declaration.type != "choice" and declaration.choices is not None:
        yield "choices", "Only a choice input has choices; remove them or make the type “choice”."
    yield from _attachment_problems(declaration)
    if declaration.choices is not None and len(set(declaration.choices)) < len(declaration.choices):
        yield "choices", "Two choices are the same."
    if declaration.default is not None and (message := _default_problem(declaration)) is not None:
        yield "default", message


def _attachment_problems(declaration: InputField) -> Iterable[tuple[str, str]]:
    for field in ("max_bytes", "accept"):
        if getattr(declaration, field) is not None and declaration.type not in ATTACHMENTS:
            yield field, f"Only an image, file or audio input has {field}; remove it."
    if declaration.max_bytes is not None and declaration.max_bytes > MAX_ATTACHMENT_BYTES:
        yield "max_bytes", f"Nothing larger than {MAX_ATTACHMENT_BYTES} bytes can be sent."
    sendable = SENDABLE.get(declaration.type, ())
    if sendable and not set(declaration.accept or []) <= set(sendable):
        yield "accept", f"The media types that can be sent here are {', '.join(sendable)}."


def _default_problem(declaration: InputField) -> str | None:
    default = declaration.default
    match declaration.type:
        case "text" if not isinstance(default, str):
            return "The default of a text input is a string."
        case "text" if declaration.max_length is not None and len(str(default)) > declaration.max_length:
            return "The default is longer than max_length."
        case "boolean" if not isinstance(default, bool):
            return "The default of a boolean input is true or false."
        case "choice" if default not in (declaration.choices or []):
            return "The default is not among the choices."
        case "image" | "file" | "audio":
            return "An image, file or audio input has no default; make it optional instead."
        case "number":
            return _number_problem(default, declaration.minimum, declaration.maximum)
    return None


def _number_problem(default: object, minimum: float | None, maximum: float | None) -> str | None:
    if isinstance(default, bool) or not isinstance(default, int | float) or not math.isfinite(default):
        return "The default of a number input is a finite number."
    if minimum is not None and default < minimum:
        return "The default is below minimum."
    if maximum is not None and default > maximum:
        return "The default is above maximum."
    return None


def _property(field: InputField) -> dict[str, JsonValue]:
    kinds: dict[str, JsonValue] = {"number": "number", "boolean": "boolean"}
    choices: list[JsonValue] | None = [*field.choices] if field.choices is not None else None
    attached = field.type in ATTACHMENTS
    accept: list[JsonValue] = [*(field.accept or SENDABLE.get(field.type, ()))]
    schema: dict[str, JsonValue] = {
        "type": kinds.get(field.type, "string"),
        "description": field.description,
        "maxLength": field.max_length,
        "minimum": field.minimum,
        "maximum": field.maximum,
        "enum": choices,
        "default": field.default,
        # The value is an address of ours or a data URL. Words with `x-` are our own, which other readers of the schema
        # ignore: a form makes a file chooser of them.
        "format": "uri-reference" if attached else None,
        "contentMediaType": accept[0] if len(accept) == 1 else None,
        "x-kind": field.type if attached else None,
        "x-accept": accept or None,
        "x-max-bytes": (field.max_bytes or MAX_ATTACHMENT_BYTES) if attached else None,
        "x-upload": "POST /media" if attached else None,
    }
    return {keyword: value for keyword, value in schema.items() if value is not None}
