"""The template language of prompts: `{{name}}` stands for an input, everything else is literal text.

Catalog (which names a template uses) and executor (what it becomes) must agree to the letter, so both use this file.
Rendering is one pass: a value that itself contains `{{other}}` is never expanded, because values come from strangers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The same names as `InputField.name` in contracts/catalog.py; ASCII white space is allowed inside the braces.
_VARIABLE = re.compile(r"\{\{[ \t\r\n]*([A-Za-z_][A-Za-z0-9_]{0,63})[ \t\r\n]*\}\}")


def find_variables(template: str) -> list[str]:
    """The names that the template uses, each once, in order of first use. `{{` without a valid name is literal text."""
    return list(dict.fromkeys(_VARIABLE.findall(template)))


def render(template: str, values: Mapping[str, str]) -> str:
    """The template with every variable replaced by its value. Raises KeyError for a variable without a value."""
    return _VARIABLE.sub(lambda found: values[found.group(1)], template)
