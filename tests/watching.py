"""What operators are given, as tests read it: the rules, the board, and what their PromQL asks for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import promql_parser as promql
import yaml

from tests.stack import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
PLAYS = ("deploy/prometheus/rules_test.yml", "deploy/prometheus/rules_test_days.yml")
"""What is played to the alerts by promtool."""
BOARD = ROOT / "deploy" / "grafana" / "board.json"
PROMTOOL_LEFT_OUT = "what promtool says of the alerts is left out: it is not here (apt-get install prometheus)"
_VARIABLES = {"$__rate_interval": "1m", "$__range": "1h"}


@dataclass(frozen=True)
class Asked:
    """One metric that an expression asks for: by which values of labels, and, where its series are added up, which labels are left."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    left: frozenset[str] | None


def promtool() -> str | None:
    """The path of Prometheus' own checker."""
    return shutil.which("promtool")


@cache
def rules() -> list[dict[str, Any]]:
    """Every rule of the file."""
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recordings() -> dict[str, str]:
    """The expressions that are recorded, by the name of what they make."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


@cache
def board() -> dict[str, Any]:
    """The board as it is imported."""
    read: dict[str, Any] = json.loads(BOARD.read_text(encoding="utf-8"))
    return read


def board_expressions() -> list[str]:
    """Every expression of the board, with values for the variables that Grafana puts in."""
    expressions = [target["expr"] for panel in board()["panels"] for target in panel.get("targets", [])]
    for variable, value in _VARIABLES.items():
        expressions = [expression.replace(variable, value) for expression in expressions]
    return expressions


def asked(expression: str) -> list[Asked]:
    """All that an expression asks for. Raises ValueError where it is not PromQL."""
    return list(_asked(promql.parse(expression), None))


def _asked(node: Any, left: frozenset[str] | None) -> Iterator[Asked]:
    match node:
        case promql.VectorSelector():
            matchers = tuple((each.name, str(each.op), each.value) for each in node.matchers.matchers)
            yield Asked(node.name or "", matchers, left)
        case promql.MatrixSelector():
            yield from _asked(node.vector_selector, left)
        case promql.AggregateExpr():
            by = frozenset(node.modifier.labels) if node.modifier else frozenset()
            yield from _asked(node.expr, (left or frozenset()) | by)
        case promql.BinaryExpr():
            if node.modifier and node.modifier.matching:
                left = (left or frozenset()) | frozenset(node.modifier.matching.labels)
            yield from _asked(node.lhs, left)
            yield from _asked(node.rhs, left)
        case promql.Call():
            for argument in node.args:
                yield from _asked(argument, left)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from _asked(node.expr, left)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise AssertionError(f"unknown kind of expression: {type(node).__name__}")
