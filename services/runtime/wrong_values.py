"""What is wrong with a value that somebody sent, in words for people: the one table of pydantic's errors by their type.

A sentence stands below a field of a form as well as in an API's answer. It never repeats what was sent. A type that is not in
the table keeps pydantic's own sentence; `tests/unit/test_wrong_values.py` knows which types our requests can produce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NUMBER = "This must be a number."
_WHOLE = "This must be a whole number."
_YES_NO = "This must be true or false."
_OBJECT = "This must be an object with named fields."
_ID = "This must be an id of 32 hexadecimal digits, as the service gives them."
_CHARACTERS = "This has characters that cannot stand here."

SENTENCES: Mapping[str, str] = {
    "missing": "This is missing: fill it in.",
    "extra_forbidden": "There is no such field: check its spelling, or leave it out.",
    "string_type": "This must be a text.",
    "string_too_short": "Write at least {min_length} characters.",
    "string_too_long": "Write at most {max_length} characters.",
    "bool_type": _YES_NO,
    "bool_parsing": _YES_NO,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": "This number has too many digits.",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "decimal_type": _NUMBER,
    "decimal_parsing": _NUMBER,
    "finite_number": "This must be a number that is not infinite.",
    "greater_than": "This must be more than {gt}.",
    "greater_than_equal": "This must be at least {ge}.",
    "less_than": "This must be less than {lt}.",
    "less_than_equal": "This must be at most {le}.",
    "list_type": "This must be a list.",
    "too_short": "Give at least {min_length} of these.",
    "too_long": "Give at most {max_length} of these.",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "literal_error": "This must be {expected}.",
    "uuid_type": _ID,
    "uuid_parsing": _ID,
    "union_tag_invalid": "Its {discriminator} must be one of {expected_tags}.",
    "union_tag_not_found": "Say which kind this is: it has no {discriminator}.",
}

PATTERNS: Mapping[str, str] = {
    r"^[a-z0-9]+(?:-[a-z0-9]+)*$": "Write small letters and digits, with single hyphens between them.",
    r"^[A-Za-z_][A-Za-z0-9_]{0,63}$": "Write a letter first, then letters, digits and underscores.",
    r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$": "Write a letter first, then letters, digits, underscores and hyphens.",
    r"^[^\s\x00-\x1f/]+$": "This must be the name of a user, without spaces and slashes.",
    r"^[a-z]+/[a-z0-9.+-]{1,80}$": "This must be a media type, such as image/png.",
}
"""What a text must look like, for the patterns of requests."""


def wrong_value(error: Mapping[str, Any]) -> str:
    """The sentence of one error of pydantic or FastAPI: `{"type": …, "msg": …, "ctx": …}`."""
    kind, context = error["type"], {name: _written(value) for name, value in error.get("ctx", {}).items()}
    if kind == "value_error":
        # Raised by a validator of ours: pydantic sets two words before its sentence.
        said = error["msg"].removeprefix("Value error, ").rstrip(".")
        return f"{said[:1].upper()}{said[1:]}."
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], _CHARACTERS)
    if kind == "string_too_short" and context["min_length"] == 1:
        return "This is empty: write something."
    if kind == "too_short" and context["min_length"] == 1:
        return "Give at least one of these."
    sentence = SENTENCES.get(kind)
    return error["msg"] if sentence is None else sentence.format_map(context)


def _written(value: Any) -> Any:
    """A bound as people write it: 2, not 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
