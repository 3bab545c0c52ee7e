"""SQL is in `store.py` and migrations, HTTP statuses are the gateway's and stand in its `problems.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.source import ROOT, SERVICE_NAMES, python_files, strings, tree, where

SQL = re.compile(
    r"^\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\s|DELETE\s+FROM\s|WITH\s+\S+\s+AS\s|SET\s+LOCAL\s|LISTEN\s|NOTIFY\s"
    r"|CREATE\s+(TABLE|INDEX|FUNCTION|SCHEMA|ROLE)|ALTER\s|DROP\s|TRUNCATE\s|LOCK\s+TABLE|GRANT\s|REVOKE\s|VACUUM)"
)
ERROR_STATUSES = range(400, 600)
DOCUMENTATION = ("documentation.py", "examples.py")


def error_statuses(path: Path) -> Iterator[ast.AST]:
    """Every whole number of a file that can be an HTTP status of an error; what a decorator documents decides nothing."""
    documented = {
        id(node)
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in function.decorator_list
        for node in ast.walk(decorator)
    }
    limits = {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.keyword) and "status" not in (node.arg or "")
    }
    for node in ast.walk(tree(path)):
        if (
            id(node) not in documented | limits
            and isinstance(node, ast.Constant)
            and type(node.value) is int
            and node.value in ERROR_STATUSES
        ):
            yield node


def status_arguments(path: Path) -> Iterator[ast.AST]:
    """Every status that a response is given, with a number or out of `http.HTTPStatus`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "HTTPStatus":
            yield node


def test_sql_is_in_store_and_migrations_alone() -> None:
    found = [
        f"{where(path, node)}: {text.split(chr(10))[0][:60]!r}"
        for path in python_files("services")
        if not path.name.endswith("store.py") and path.relative_to(ROOT).as_posix() != "services/runtime/postgres.py"
        for text, node in strings(path)
        if SQL.match(text)
    ]
    assert found == [], "put the statement into the store.py of its service"


def test_http_statuses_of_errors_are_in_problems_alone() -> None:
    found = [
        where(path, node)
        for path in python_files("services/gateway")
        if path.name not in ("problems.py", *DOCUMENTATION)
        for node in error_statuses(path)
    ]
    assert found == [], "raise a ServiceError; services/gateway/problems.py knows its status"


def test_statuses_are_numbers_and_other_services_have_none() -> None:
    found = [
        where(path, node)
        for service in SERVICE_NAMES
        for path in python_files(f"services/{service}")
        for node in status_arguments(path)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["SELECT a FROM b", "\n  INSERT INTO t VALUES ($1)", "UPDATE t SET a = 1", "WITH x AS (SELECT 1)"]
)
def test_a_statement_would_be_found(text: str) -> None:
    assert SQL.match(text)


@pytest.mark.parametrize("text", ["Select a model first.", "update the key", "With all of it"])
def test_a_sentence_is_no_statement(text: str) -> None:
    assert not SQL.match(text)
