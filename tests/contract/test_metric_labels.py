"""Metrics have names of one form and labels out of closed sets: no id, model, owner or subject is ever a label."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.contract.source import python_files, tree, where

KINDS = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
LABELS = {
    "code": "ok or an ErrorCode",
    "kind": "of tokens: prompt, completion, reasoning, cached; under a master key: data_key, key_pair, verifier; "
    "of media: output, input; of what waits: job, cost, message",
    "direction": "of a difference: more, less",
    "method": "HTTP methods that have a route, or other",
    "needs": "what readiness asks: bus, postgres, catalog, gateway",
    "outcome": "of a sync: applied, unchanged, refused, failed; of a comparison of costs: same, differs, found, untold",
    "reason": "of a refusal: cooling, rate, budget; of a cooldown: platform, free_tier, provider",
    "result": "a Literal in the code beside the metric",
    "route": "the template of a route of the gateway, or none",
    "rpc": "names of the registry",
    "state": "of a connection: busy, idle",
    "status": "of an execution, of a model, or an HTTP status",
    "task": "what `Process.background` was told of",
}


def metrics(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            yield node


def argument(call: ast.Call, position: int, name: str) -> ast.AST | None:
    given = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return given or (call.args[position] if len(call.args) > position else None)


def all_metrics() -> list[tuple[Path, ast.Call]]:
    return [(path, call) for path in python_files("services") for call in metrics(path)]


def test_labels_are_known_ones() -> None:
    for path, call in all_metrics():
        labels = argument(call, 2, "labelnames")
        if labels is None:
            continue
        assert isinstance(labels, ast.List | ast.Tuple), f"{where(path, call)}: write the labels out"
        for label in labels.elts:
            assert isinstance(label, ast.Constant), where(path, call)
            assert label.value in LABELS, f"{where(path, call)}: {label.value!r} is not known to be a closed set"


def test_names_begin_with_ours_and_end_with_a_unit_or_a_noun() -> None:
    names = []
    for path, call in all_metrics():
        name = argument(call, 0, "name")
        assert isinstance(name, ast.Constant), f"{where(path, call)}: write the name out"
        assert isinstance(name.value, str), where(path, call)
        assert re.fullmatch(r"x402jobs_[a-z_]+", name.value), where(path, call)
        assert not re.search(r"_(ms|millis|minutes|kb|mb)$", name.value), f"{where(path, call)}: base units"
        names.append(name.value)
    assert len(set(names)) == len(names), "one metric, one place"
    assert len(names) > 5


def test_every_metric_goes_into_an_injected_registry() -> None:
    for path, call in all_metrics():
        registry = next((keyword.value for keyword in call.keywords if keyword.arg == "registry"), None)
        assert registry is not None, f"{where(path, call)}: pass registry=, or two services in one test collide"
        assert ast.unparse(registry) != "REGISTRY", where(path, call)


def test_every_metric_with_labels_has_a_comment_with_their_values() -> None:
    for path, call in all_metrics():
        if argument(call, 2, "labelnames") is None:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        # One comment may introduce a few metrics that stand together.
        before = lines[max(0, call.lineno - 8) : call.end_lineno]
        assert any("#" in line for line in before), f"{where(path, call)}: say which values the labels have"
