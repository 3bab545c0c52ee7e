"""What an edit changed, field by field, from two versions of a resource. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from contracts.catalog import ResourceDraft
from contracts.market import VersionChange


def changes_between(before: ResourceDraft, after: ResourceDraft) -> list[VersionChange]:
    """Every field that differs, in the order of the draft."""
    return list(_differences("", before.model_dump(mode="json"), after.model_dump(mode="json")))


def _differences(path: str, before: Any, after: Any) -> Iterator[VersionChange]:
    if _written(before) == _written(after):
        return
    left, right = _by_name(before), _by_name(after)
    if left is None or right is None:
        yield VersionChange(path=path, before=before, after=after)
        return
    changed = False
    for name in dict.fromkeys([*left, *right]):
        for change in _differences(f"{path}.{name}".lstrip("."), left.get(name), right.get(name)):
            changed = True
            yield change
    if not changed:  # other members without a value, or the same ones in another order
        yield VersionChange(path=path, before=list(left), after=list(right))


def _by_name(value: Any) -> dict[str, Any] | None:
    """The members of an object, or of a list whose members have names, as inputs have."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        named = {str(item["name"]): item for item in value}
        return named if len(named) == len(value) else None
    return None


def _written(value: Any) -> str:
    # JSON tells true from 1, Python does not.
    return json.dumps(value, sort_keys=True)
