"""A subject, a header name and an error code are written once, in `contracts/`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.errors import ErrorCode
from contracts.subjects import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    MEDIA_BUCKET,
    MESSAGE_ID_HEADER,
    PREFIX,
    REGISTRY,
    STREAMS,
    TIMEOUT_HEADER,
)
from tests.contract.source import ROOT, python_files, strings, tree, where

CODES = {code.value for code in ErrorCode}
# `traceparent` is not ours: the W3C named it, and it is an HTTP header as well.
HEADERS = {ERROR_HEADER, ERROR_CODE_HEADER, TIMEOUT_HEADER, MESSAGE_ID_HEADER}
PARTS = (PREFIX, *(stream.name for stream in STREAMS))
WHOLE = {MEDIA_BUCKET, *(entry.name for entry in REGISTRY), *(header.lower() for header in HEADERS)}


def code_literals(path: Path) -> Iterator[ast.AST]:
    """Where an error code stands as text: compared with something called code, given as `code`, made into ErrorCode."""
    for node in ast.walk(tree(path)):
        match node:
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
                named = any(name_of(side) in ("code", "error_code") for side in sides)
                found = named and any(holds_code(side) for side in sides)
            case ast.Call(func=called, args=arguments, keywords=keywords):
                given = [keyword.value for keyword in keywords if keyword.arg == "code"]
                found = any(
                    holds_code(value) for value in [*given, *(arguments if name_of(called) == "ErrorCode" else [])]
                )
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                found = any(
                    isinstance(key, ast.Constant) and key.value == "code" and holds_code(value) for key, value in pairs
                )
            case _:
                found = False
        if found:
            yield node


def name_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute):
        return name_of(node.value) if node.attr == "value" else node.attr
    return node.id if isinstance(node, ast.Name) else None


def holds_code(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(holds_code(element) for element in node.elts)
    return isinstance(node, ast.Constant) and node.value in CODES


@pytest.mark.parametrize("folder", ["services", "deploy/local"])
def test_subjects_headers_and_streams_are_spelled_in_contracts_alone(folder: str) -> None:
    found = [
        f"{where(path, node)}: {text!r}"
        for path in python_files(folder)
        for text, node in strings(path)
        if text.lower() in WHOLE or any(part in text for part in PARTS)
    ]
    assert found == [], "use the constant of contracts/subjects.py"


def test_error_codes_are_spelled_in_contracts_alone() -> None:
    found = [where(path, node) for path in python_files("services") for node in code_literals(path)]
    assert found == [], "use contracts.errors.ErrorCode"


@pytest.mark.parametrize(
    "source",
    [
        'error.code == "not_found"',
        'error.body.code.value in ("timeout", "x")',
        'ServiceError(code="conflict", message="…")',
        '{"code": "invalid"}',
        'ErrorCode("upstream")',
    ],
)
def test_a_code_as_text_would_be_found(source: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(source, encoding="utf-8")
    assert list(code_literals(path))


def test_the_constants_are_not_defined_twice() -> None:
    defined = [
        path.relative_to(ROOT).as_posix()
        for path in python_files("contracts")
        if any(text == PREFIX for text, _ in strings(path))
    ]
    assert defined == ["contracts/subjects.py"]
