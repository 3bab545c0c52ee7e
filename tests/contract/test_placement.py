"""SQL is in `store.py` and migrations, whose names say when each may run. HTTP statuses are the gateway's and stand in its
`problems.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.source import PROCESS_NAMES, ROOT, python_files, strings, tree, where

SQL = re.compile(
    r"^\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\s|DELETE\s+FROM\s|WITH\s+\S+\s+AS\s|SET\s+LOCAL\s|LISTEN\s|NOTIFY\s"
    r"|CREATE\s+(TABLE|INDEX|FUNCTION|SCHEMA|ROLE)|ALTER\s|DROP\s|TRUNCATE\s|LOCK\s+TABLE|GRANT\s|REVOKE\s|VACUUM)"
)
ERROR_STATUSES = range(400, 600)
MIGRATION = re.compile(r"([0-9]{4}|[0-9]{14})_(pre|post)_[a-z0-9_]+\.sql")
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


def migrations() -> list[Path]:
    return sorted(ROOT.glob("services/*/migrations/*"))


def test_names_of_migrations_say_when_they_may_run() -> None:
    assert len(migrations()) > 10
    wrong = [str(path.relative_to(ROOT)) for path in migrations() if MIGRATION.fullmatch(path.name) is None]
    assert wrong == [], '<number>_<pre or post>_<what>.sql, see "A migration" in ARCHITECTURE.md'


def test_migrations_of_a_service_have_an_order() -> None:
    for folder in {path.parent for path in migrations()}:
        # Sorted by name, as dbmate does.
        numbers = [int(path.name.partition("_")[0]) for path in sorted(folder.iterdir())]
        assert numbers == sorted(set(numbers)), f"{folder}: two of one number, or a name that sorts before its number"


def test_every_migration_goes_up_and_down() -> None:
    for path in migrations():
        marks = re.findall(r"^-- migrate:(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert marks == ["up", "down"], path.name


@pytest.mark.parametrize(
    "name", ["0002_access_log.sql", "2_pre_x.sql", "0002_post.sql", "0002_pre_Access.sql", "20261123_pre_x.sql"]
)
def test_a_wrong_name_of_a_migration_would_be_found(name: str) -> None:
    assert MIGRATION.fullmatch(name) is None


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
        for service in PROCESS_NAMES
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
