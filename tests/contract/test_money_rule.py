"""Money is `Decimal` in code and a string on the wire; no float comes near it, except into a metric."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from contracts import attachments, catalog, errors, execution, keys, listings, market, providers
from contracts.document import schemas
from tests.contract.source import python_files, tree, where

MONEY = re.compile(r"(^|_)(usd|price|cost|money|markup|credits)(_|$)", re.IGNORECASE)
# What is about money and is not an amount.
NOT_AMOUNTS = re.compile(r"(kind|status|mode|version|history|at|url|change|expected_version)$")
METRIC_METHODS = ("inc", "dec", "set", "observe")

MODELS = [
    model
    for module in (attachments, catalog, errors, execution, keys, listings, market, providers)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == module.__name__
]


def is_money(text: str) -> bool:
    return any(MONEY.search(word) and not NOT_AMOUNTS.search(word) for word in re.findall(r"\w+", text))


def floats(path: Path) -> Iterator[ast.AST]:
    """Where a file makes a float of an amount, or says that an amount is one."""
    in_metrics = {
        id(argument)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METRIC_METHODS
        for argument in node.args
    }
    for node in ast.walk(tree(path)):
        match node:
            case ast.Call(func=ast.Name(id="float"), args=[argument]) if is_money(ast.unparse(argument)):
                if id(node) not in in_metrics:
                    yield node
            case ast.AnnAssign(target=target, annotation=kind) if is_money(ast.unparse(target)) and names_float(kind):
                yield node
            case ast.arg(arg=name, annotation=kind) if kind is not None and is_money(name) and names_float(kind):
                yield node
            case ast.FunctionDef(name=name, returns=kind) | ast.AsyncFunctionDef(name=name, returns=kind):
                if kind is not None and is_money(name) and names_float(kind):
                    yield node


def names_float(annotation: ast.AST) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "float" for node in ast.walk(annotation))


def kinds(annotation: Any) -> set[Any]:
    arguments = get_args(annotation)
    return set().union(*map(kinds, arguments)) if arguments else {annotation}


@pytest.mark.parametrize("folder", ["contracts", "services"])
def test_no_amount_is_a_float(folder: str) -> None:
    assert [where(path, node) for path in python_files(folder) for node in floats(path)] == []


def test_amounts_of_messages_are_decimal() -> None:
    amounts = 0
    for model in MODELS:
        for name, field in model.model_fields.items():
            if name.endswith("_usd") or (is_money(name) and float in kinds(field.annotation)):
                assert Decimal in kinds(field.annotation), f"{model.__name__}.{name} is Usd or Price"
                assert not kinds(field.annotation) & {float, int}, f"{model.__name__}.{name}"
                amounts += 1
    assert amounts > 15


def test_amounts_are_strings_on_the_wire() -> None:
    def check(schema: Any, path: str) -> int:
        if isinstance(schema, list):
            return sum(check(item, path) for item in schema)
        if not isinstance(schema, dict):
            return 0
        found = 0
        for name, field in schema.get("properties", {}).items():
            if name.endswith("_usd"):
                types = {branch.get("type") for branch in field.get("anyOf", [field])}
                assert types <= {"string", "null"}, f"{path}.{name}"
                found += 1
        return found + sum(check(value, path) for value in schema.values())

    assert sum(check(schema, name) for name, schema in schemas().items()) > 50


@pytest.mark.parametrize(
    "source",
    [
        "float(receipt.cost.model_usd)",
        "price_usd: float = 0.1",
        "def price_of(run: Run) -> float: ...",
        "def charge(amount_usd: float | None) -> None: ...",
    ],
)
def test_a_float_would_be_found(source: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert list(floats(path))


@pytest.mark.parametrize("source", ["price_usd.inc(float(cost.price_usd))", "float(timeout_s)", "price_usd: Decimal"])
def test_a_metric_and_a_time_may_be_floats(source: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert not list(floats(path))
