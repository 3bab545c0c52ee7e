"""What operators are given fits what the services really export: every metric, label and value that rules and board ask for, and
nothing of ours that neither shows."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from contracts.errors import ErrorCode
from contracts.subjects import RPCS
from deploy.local.stack import Stack
from services.console.pages import PAGES
from services.gateway.problems import STATUSES
from tests.e2e.client import connected, signed_in
from tests.watching import Asked, alerts, asked, board_expressions, recordings, rules

Exported = dict[str, dict[str, set[str]]]
"""Metrics by name: their labels, and the values of each that are known."""

OF_PROMETHEUS = {
    "up": {"job", "service", "instance"},
    "ALERTS": {"alertname", "severity", "alertstate"},
}
NOT_SHOWN = {
    "x402jobs_bus_": "FastStream's own; x402jobs_requests and what waits say the same by our names, raw subscriptions included",
}
SHAPES = ("_bucket", "_sum", "_count")


@pytest_asyncio.fixture(scope="module")
async def exported(stack: Stack) -> AsyncIterator[Exported]:
    """What all services export after runs that succeeded, failed and were refused, and a page of the console."""
    async with connected(stack, "watched") as creator, signed_in(stack, "watcher") as caller:
        good, bad = await creator.publish(), await creator.publish(model="sandbox/status-400")
        await caller.result(good["id"])
        assert (await caller.execute(bad["id"])).status_code == 422
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{stack.console_url}/listings")).status_code == 200
        groups = json.loads((stack.directory / "targets.json").read_text(encoding="utf-8"))
        found: Exported = defaultdict(lambda: defaultdict(set))
        for group in groups:
            [target] = group["targets"]
            text = (await http.get(f"http://{target}/metrics")).text
            for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
                for label, value in {**sample.labels, **group["labels"], "job": "x402jobs"}.items():
                    found[sample.name][label].add(value)
        paths = (await http.get(f"{stack.gateway_url}/openapi.json")).json()["paths"]
    _add_what_is_seen_later(found, paths)
    yield found


def _add_what_is_seen_later(found: Exported, paths: Iterable[str]) -> None:
    """Values of labels that appear when they first happen, out of the sets that the code names."""
    pages = [getattr(route, "path", "") for page in PAGES for route in page.router.routes]
    for name in (name for name in list(found) if name.startswith("x402jobs_http_request")):
        found[name]["route"] |= {*paths, *pages}
        if "status" in found[name]:
            found[name]["status"] |= {str(status) for status in STATUSES.values()}
    for name in ("x402jobs_requests_total", "x402jobs_executions_total"):
        found[name]["code"] |= {"ok", *ErrorCode}
    found["x402jobs_requests_total"]["rpc"] |= {rpc.name for rpc in RPCS}
    for name, labels in OF_PROMETHEUS.items():
        for label in labels:
            found[name][label] |= found["x402jobs_ready"][label]
    found["ALERTS"]["alertstate"] |= {"firing"}
    for name, expression in recordings().items():
        found[name].update()
        for each in asked(expression):
            for label in (each.left or frozenset()) - {"le"}:
                found[name][label] |= found[each.name][label]


def wrong(each: Asked, exported: Exported, needed: Iterable[str] = ()) -> list[str]:
    """What an expression asks for that nobody exports, as sentences."""
    if each.name not in exported:
        return [f"{each.name} is not exported"]
    labels = exported[each.name]
    problems = [
        f"{each.name} has no label {name}"
        for name in {*(each.left or ()), *needed, *(name for name, _, _ in each.matchers)}
        if name not in labels
    ]
    for name, how, value in each.matchers:
        choices = value.split("|") if how.endswith("Re") else [re.escape(value)]
        problems += [
            f"{each.name}: {name} is never {choice}"
            for choice in choices
            if not any(re.fullmatch(choice, known) for known in labels.get(name, ()))
        ]
    return problems


def test_all_that_rules_and_board_ask_for_is_exported(exported: Exported) -> None:
    expressions = [*(rule["expr"] for rule in rules()), *board_expressions()]
    problems = {
        problem for expression in expressions for each in asked(expression) for problem in wrong(each, exported)
    }
    assert problems == set()


def test_the_labels_that_summaries_speak_of_are_there(exported: Exported) -> None:
    problems = []
    for name, alert in alerts().items():
        spoken = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        spoken -= set(re.findall(r'label_replace\(.*?, "(\w+)"', alert["expr"], re.DOTALL))
        for each in asked(alert["expr"]):
            # Where series are added up, only the labels that they are added up by are left.
            lost = spoken - each.left if each.left is not None else set()
            problems += [f"{name}: {label} is added up" for label in lost]
            problems += [f"{name}: {problem}" for problem in wrong(each, exported, spoken - lost)]
    assert problems == []


def test_all_that_services_export_of_ours_is_on_the_board_or_has_a_reason(exported: Exported) -> None:
    shown: set[str] = set()
    for each in (each for expression in board_expressions() for each in asked(expression)):
        shown |= {each.name} | {inner.name for inner in asked(recordings().get(each.name, "vector(0)"))}
    shown = {name.removesuffix("_bucket") for name in shown}
    ours = {name for name in exported if name.startswith("x402jobs_") and not name.endswith("_created")}
    ours = {re.sub(f"({'|'.join(SHAPES)})$", "", name) for name in ours}
    assert {name for name in ours - shown if not name.startswith(tuple(NOT_SHOWN))} == set()


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("x402jobs_nowhere", "x402jobs_nowhere is not exported"),
        ("sum by (model) (x402jobs_executions_total)", "x402jobs_executions_total has no label model"),
        ('x402jobs_refused_total{reason=~"rate|mood"}', "x402jobs_refused_total: reason is never mood"),
        ('up{service="executors"}', "up: service is never executors"),
    ],
)
def test_what_does_not_fit_is_found(exported: Exported, expression: str, problem: str) -> None:
    assert [found for each in asked(expression) for found in wrong(each, exported)] == [problem]
