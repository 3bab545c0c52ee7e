"""What is said of a wrong value: a sentence of ours for every kind of error that a request of the HTTP interface can meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from contracts.money import Price
from services.gateway.app import create_app
from services.runtime.wrong_values import PATTERNS, SENTENCES, wrong_value

KINDS: dict[str, set[str]] = {
    "bool": {"bool_type", "bool_parsing"},
    "int": {"int_type", "int_parsing", "int_from_float", "int_parsing_size", "finite_number"},
    "float": {"float_type", "float_parsing", "finite_number"},
    "decimal": {"decimal_type", "decimal_parsing", "finite_number"},
    "str": {"string_type"},
    "list": {"list_type"},
    "dict": {"dict_type"},
    "model": {"model_type", "model_attributes_type"},
    "literal": {"literal_error"},
    "uuid": {"uuid_type", "uuid_parsing"},
    "tagged-union": {"union_tag_invalid", "union_tag_not_found"},
    "function-before": {"value_error"},
    "function-after": {"value_error"},
    "function-plain": {"value_error"},
    "is-instance": set(),  # of a Decimal, before our own validator, which makes one; and of JSON's own types
    "none": set(),  # the null among JSON's own types
    "any": set(),
}
"""What each kind of node in a validator says by itself."""
HOLDERS = {
    "default", "nullable", "definitions", "definition-ref", "model-fields", "model-field", "no-info", "json-or-python",
    "lax-or-strict", "union",
}  # fmt: skip
CONSTRAINTS = {
    ("str", "min_length"): "string_too_short", ("str", "max_length"): "string_too_long",
    ("str", "pattern"): "string_pattern_mismatch", ("list", "min_length"): "too_short", ("list", "max_length"): "too_long",
    ("dict", "min_length"): "too_short", ("dict", "max_length"): "too_long", ("model-field", "required"): "missing",
}  # fmt: skip
BOUNDS = {"gt": "greater_than", "ge": "greater_than_equal", "lt": "less_than", "le": "less_than_equal"}
SPOKEN = re.compile(r"[A-Z].*[.]")


class _Inner(BaseModel):
    mode: Literal["one"]


class _Other(BaseModel):
    mode: Literal["two"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


def _refused(_value: Any) -> Any:
    raise ValueError("it cannot be so; send another")


_Either = Annotated[_Inner | _Other, Field(discriminator="mode")]

SAID: list[tuple[Any, Any, str, str]] = [
    (_Strict, {}, "missing", "This is missing: fill it in."),
    (_Strict, {"name": "a", "nam": 1}, "extra_forbidden", "There is no such field: check its spelling, or leave it out."),
    (_Strict, "text", "model_type", "This must be an object with named fields."),
    (str, 1, "string_type", "This must be a text."),
    (Annotated[str, Field(min_length=1)], "", "string_too_short", "This is empty: write something."),
    (Annotated[str, Field(min_length=3)], "a", "string_too_short", "Write at least 3 characters."),
    (Annotated[str, Field(max_length=3)], "abcd", "string_too_long", "Write at most 3 characters."),
    (Annotated[str, StringConstraints(pattern="^x$")], "a", "string_pattern_mismatch", "This has characters that cannot stand here."),
    (bool, "perhaps", "bool_parsing", "This must be true or false."),
    (bool, [], "bool_type", "This must be true or false."),
    (int, [], "int_type", "This must be a whole number."),
    (int, "a", "int_parsing", "This must be a whole number."),
    (int, 1.5, "int_from_float", "This must be a whole number."),
    (int, "1" * 5000, "int_parsing_size", "This number has too many digits."),
    (float, [], "float_type", "This must be a number."),
    (float, "a", "float_parsing", "This must be a number."),
    (Decimal, [], "decimal_type", "This must be a number."),
    (Decimal, "a", "decimal_parsing", "This must be a number."),
    (Annotated[float, Field(allow_inf_nan=False)], "inf", "finite_number", "This must be a number that is not infinite."),
    (Annotated[int, Field(gt=3)], 3, "greater_than", "This must be more than 3."),
    (Annotated[int, Field(ge=3)], 2, "greater_than_equal", "This must be at least 3."),
    (Annotated[int, Field(lt=3)], 3, "less_than", "This must be less than 3."),
    (Annotated[int, Field(le=3)], 4, "less_than_equal", "This must be at most 3."),
    (Annotated[float, Field(le=2)], 3, "less_than_equal", "This must be at most 2."),
    (list[int], 1, "list_type", "This must be a list."),
    (Annotated[list[int], Field(min_length=1)], [], "too_short", "Give at least one of these."),
    (Annotated[list[int], Field(min_length=2)], [], "too_short", "Give at least 2 of these."),
    (Annotated[list[int], Field(max_length=1)], [1, 2], "too_long", "Give at most 1 of these."),
    (dict[str, int], 1, "dict_type", "This must be an object with named fields."),
    (Literal["a", "b", "c"], "d", "literal_error", "This must be 'a', 'b' or 'c'."),
    (UUID, "a", "uuid_parsing", "This must be an id of 32 hexadecimal digits, as the service gives them."),
    (UUID, 1, "uuid_type", "This must be an id of 32 hexadecimal digits, as the service gives them."),
    (_Either, {"mode": "secret"}, "union_tag_invalid", "Its 'mode' must be one of 'one', 'two'."),
    (_Either, {}, "union_tag_not_found", "Say which kind this is: it has no 'mode'."),
    (Annotated[str, BeforeValidator(_refused)], "a", "value_error", "It cannot be so; send another."),
    (Price, "-1", "greater_than_equal", "This must be at least 0."),
]  # fmt: skip
"""A type, a wrong value, what pydantic calls the error, and what is said."""


@pytest.mark.parametrize(("kind", "value", "name", "sentence"), SAID)
def test_each_error_has_a_sentence(kind: Any, value: Any, name: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    (error,) = caught.value.errors()
    assert (error["type"], wrong_value(error)) == (name, sentence)


def test_every_sentence_is_seen_here() -> None:
    # FastAPI alone meets it: it reads bodies as objects with attributes.
    assert set(SENTENCES) - {name for _, _, name, _ in SAID} == {"model_attributes_type"}
    assert all(SPOKEN.fullmatch(sentence) for sentence in (*SENTENCES.values(), *PATTERNS.values()))


def test_what_is_not_in_the_table_keeps_pydantics_sentence() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(bytes).validate_python(1)
    assert wrong_value(caught.value.errors()[0]) == "Input should be a valid bytes"


def _validators() -> Iterator[Any]:
    """Of every body, parameter and header of every route."""
    for route in create_app(None, "http://localhost").router.routes:  # type: ignore[arg-type]
        if isinstance(route, APIRoute):
            taken = route.dependant
            body = [route.body_field] if route.body_field else []
            for field in (*taken.query_params, *taken.path_params, *taken.header_params, *body):
                yield field._type_adapter.core_schema


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema
        for value in schema.values():
            yield from _nodes(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _nodes(value)


def test_everything_that_a_request_can_meet_is_in_the_table() -> None:
    possible = {"missing", "value_error"}
    patterns = set()
    for schema in _validators():
        for node in _nodes(schema):
            kind = node["type"]
            assert kind in KINDS or kind in HOLDERS, f"say in KINDS which errors {kind!r} can have"
            possible |= KINDS.get(kind, set())
            possible |= {error for (of, name), error in CONSTRAINTS.items() if of == kind and name in node}
            possible |= {error for name, error in BOUNDS.items() if name in node}
            if node.get("extra_behavior") == "forbid":
                possible.add("extra_forbidden")
            if kind == "str" and "pattern" in node:
                patterns.add(node["pattern"])
    assert len(possible) > 20
    assert possible - set(SENTENCES) == {"value_error", "string_pattern_mismatch"}
    assert patterns == set(PATTERNS)
