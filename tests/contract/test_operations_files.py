"""Rules and board as files: they are PromQL, say all that somebody needs who is woken by them, and are what the pages say they are.
Whether the services export what they ask for is seen on a running stack, in `test_operations_live`."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import yaml

from contracts.subjects import SERVICES
from deploy.grafana.board import text
from tests.stack import ROOT
from tests.watching import BOARD, PLAYS, PROMETHEUS, alerts, asked, board, board_expressions, recordings, rules

SEVERITIES = {"critical", "warning", "info"}
UNITS = {"short", "s", "bytes", "Bps", "percentunit", "reqps", "currencyUSD"}
"""Units of Grafana that we use; one that it does not know it would show as text behind the number."""


def table() -> dict[str, list[str]]:
    """The alerts of deploy/README.md, with the cells behind the name."""
    lines = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if re.match(r"\| `[A-Z]", line)]
    assert len({row[0] for row in cells}) == len(cells)
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("expression", [rule["expr"] for rule in rules()] + board_expressions())
def test_every_expression_is_promql_that_asks_for_something(expression: str) -> None:
    assert asked(expression)


def test_a_name_is_given_once() -> None:
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert [name for name, count in Counter(names).items() if count > 1] == []


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_what_happened_and_what_to_do(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["annotations"].keys() == {"summary", "description"}
    assert alert["annotations"]["summary"].endswith(".")
    assert "{{" not in alert["annotations"]["description"], "what to do is the same whatever happened"
    assert len(alert["annotations"]["description"]) > 80
    # Where nothing is waited for, the expression looks back over a time by itself.
    assert "for" in alert or re.search(r"\[\d+[mhd]\]", alert["expr"])


def test_the_runbook_has_every_alert_as_it_is() -> None:
    expected = {
        name: [alert["labels"]["severity"], alert.get("for", "at once"), alert["annotations"]["description"]]
        for name, alert in alerts().items()
    }
    assert table() == expected


def test_every_alert_is_played_and_one_that_fires_is_silent_before() -> None:
    played = [group for file in PLAYS for group in yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["tests"]]
    checks = [check for group in played for check in group["promql_expr_test"]]
    fired = {name for check in checks for name in re.findall(r'alertname="(\w+)"', str(check["exp_samples"]))}
    assert fired == set(alerts())
    assert [group["name"] for group in played if all(check["exp_samples"] for check in group["promql_expr_test"])] == []


def test_what_is_recorded_is_used() -> None:
    expressions = [rule["expr"] for rule in rules() if "alert" in rule] + board_expressions()
    used = {each.name for expression in expressions for each in asked(expression)}
    assert set(recordings()) - used == set()


def test_the_board_is_the_one_that_its_source_makes() -> None:
    assert BOARD.read_text(encoding="utf-8") == text(), "run make documents"


def test_the_board_is_one_that_grafana_takes() -> None:
    made = board()
    assert made["schemaVersion"] >= 36
    assert [(each["type"], each["name"], each["query"]) for each in made["templating"]["list"]] == [
        ("datasource", "datasource", "prometheus")
    ]
    panels = made["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert [target["refId"] for target in panel["targets"]] == [chr(65 + i) for i in range(len(panel["targets"]))]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["instant"] is not target["range"]
            assert "[$__range]" not in target["expr"] or target["instant"]


def test_the_example_of_targets_names_every_service() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    [job] = config["scrape_configs"]
    assert job["job_name"] == "x402jobs"
    assert [(PROMETHEUS / name).exists() for name in config["rule_files"]] == [True]
    example = json.loads((PROMETHEUS / "targets.example.json").read_text(encoding="utf-8"))
    assert {group["labels"]["service"] for group in example} == {*SERVICES, "console"}
