"""The Grafana board: what is on it stands here, `board.json` is what Grafana imports. `make documents` writes it.

A row is a question that operators have, a panel one answer to it. Rates of what everybody looks at come from the recording rules of
`deploy/prometheus/rules.yml`. What executors count over all of them is the same number on each, so the largest is shown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("board.json")
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_WIDTH = 8
_HEIGHT = 8
_THEIRS = 'x402jobs:upstream_errors:rate5m{code=~"upstream|unavailable|timeout"}'
_RUN = 'rpc=~".*execution.run"'


@dataclass(frozen=True)
class Panel:
    """One panel. `lines` are PromQL with the names of its series; `unit` is one of Grafana's names; `about` explains what a
    title cannot. A `stat` shows a number for the whole time that is looked at."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    about: str = ""
    kind: str = "timeseries"


def _range(metric: str) -> str:
    return f"sum(increase({metric}[$__range]))"


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def _quantile(quantile: float, metric: str, by: str = "") -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


_COST, _PRICE = "x402jobs_model_cost_usd_total", "x402jobs_price_usd_total"

_ALERTS = [
    Panel("Firing", "short", (('count by (alertname, severity) (ALERTS{alertstate="firing"})', "{{alertname}} ({{severity}})"),),
          "What to do about each stands in deploy/README.md."),
    Panel("Not ready", "short", (("count by (service, needs) (x402jobs_ready == 0)", "{{service}}: {{needs}}"),
                                 ('count by (service) (up{job="x402jobs"} == 0)', "{{service}}: gone")),
          "Instances that cannot work, by what does not answer them."),
    Panel("Instances", "short", (('sum by (service) (up{job="x402jobs"})', "{{service}}"),)),
]  # fmt: skip

_MONEY = [
    Panel("Cost to creators", "currencyUSD", ((_range(_COST), ""),), "As far as it is known.", "stat"),
    Panel("Price to callers", "currencyUSD", ((_range(_PRICE), ""),), kind="stat"),
    Panel("Margin", "currencyUSD", ((f"{_range(_PRICE)} - {_range(_COST)}", ""),), "Without costs that are not known.", "stat"),
    Panel("USD an hour", "currencyUSD", ((f"3600 * sum(rate({_COST}[$__rate_interval]))", "cost"),
                                         (f"3600 * sum(rate({_PRICE}[$__rate_interval]))", "price"))),
    Panel("Costs that are not known", "short", (("sum(increase(x402jobs_cost_unknown_total[$__rate_interval]))", "unknown"),
                                                ("max(x402jobs_cost_pending)", "being looked up"))),
    Panel("More was billed than held", "short", ((_range("x402jobs_ceilings_exceeded_total"), ""),), kind="stat"),
    Panel("Compared with OpenRouter's accounts, a day", "short",
          (("sum by (outcome) (increase(x402jobs_cost_checks_total[1d]))", "{{outcome}}"),)),
    Panel("Drift, USD a day", "currencyUSD",
          (("sum by (direction) (increase(x402jobs_cost_drift_usd_total[1d]))", "{{direction}} than receipts said"),)),
    Panel("Tokens a second", "short", ((_rate("x402jobs_tokens_total", "kind"), "{{kind}}"),)),
]  # fmt: skip

_RUNS = [
    Panel("Runs a second", "short", (("sum by (status) (x402jobs:executions:rate5m)", "{{status}}"),)),
    Panel("Runs that did not succeed", "short", (('x402jobs:executions:rate5m{status!="succeeded"} > 0', "{{status}}: {{code}}"),)),
    Panel("Succeeded", "percentunit",
          (('sum(x402jobs:executions:rate5m{status="succeeded"}) / sum(x402jobs:executions:rate5m)', "of all that ended"),)),
    Panel("How long runs take", "s", (
        (_quantile(0.5, "x402jobs_execution_seconds", "status"), "{{status}}, half"),
        (_quantile(0.95, "x402jobs_execution_seconds", "status"), "{{status}}, 95 %"))),
    Panel("First token", "s", (("x402jobs:first_token_seconds:p50", "half"), ("x402jobs:first_token_seconds:p95", "95 %"))),
    Panel("Our own part of a run", "s", (("x402jobs:overhead_seconds:p50", "half"), ("x402jobs:overhead_seconds:p95", "95 %"))),
    Panel("Slots", "short", (("sum by (instance) (x402jobs_slots_in_use)", "{{instance}}"), ("sum(x402jobs_slots)", "there are"))),
    Panel("Refused by limits", "short", (
        (_rate("x402jobs_refused_total", "reason"), "{{reason}}"),
        (f'sum(x402jobs:requests:rate5m{{{_RUN}, code="overloaded"}})', "no slot"))),
    Panel("Workflows that ended", "short", ((_rate("x402jobs_workflows_total", "status"), "{{status}}"),)),
    Panel("Media kept", "bytes", (("max by (kind) (x402jobs_media_stored_bytes)", "{{kind}}"),)),
    Panel("Media a second", "Bps", (("sum(rate(x402jobs_media_bytes_total[$__rate_interval]))", "stored"),
                                    ("sum(rate(x402jobs_media_deleted_bytes_total[$__rate_interval]))", "deleted"))),
    Panel("Frames lost", "short", (("sum by (instance) (increase(x402jobs_frames_lost_total[$__rate_interval]))", "{{instance}}"),)),
]  # fmt: skip

_UPSTREAM = [
    Panel("Errors of OpenRouter and providers", "short",
          (("x402jobs:upstream_errors:rate5m > 0", "{{code}}"),), "Of calls, before retries."),
    Panel("Failed calls per run", "short", ((f"sum({_THEIRS}) / sum(x402jobs:executions:rate5m)", "their side"),)),
    Panel("Cooldowns", "short", (("sum by (reason) (increase(x402jobs_cooldowns_total[$__rate_interval]))", "{{reason}}"),)),
]  # fmt: skip

_KEYS = [
    Panel("Leases a second", "short", ((_rate("x402jobs_key_leases_total", "result"), "{{result}}"),)),
    Panel("Answers about keys, an hour", "short", (("sum by (result) (increase(x402jobs_key_checks_total[1h]))", "{{result}}"),)),
    Panel("Under a former master key", "short", (("max by (kind) (x402jobs_keys_under_old_master_key)", "{{kind}}"),)),
]  # fmt: skip

_CATALOG = [
    Panel("Age of the list", "s", (("max(x402jobs_catalog_age_seconds)", "since it was right"),)),
    Panel("Models", "short", (("max by (status) (x402jobs_catalog_models)", "{{status}}"),
                              ("max(x402jobs_catalog_curated_missing)", "recommended and not there"))),
    Panel("Readings, a day", "short", (("sum by (outcome) (increase(x402jobs_catalog_syncs_total[1d]))", "{{outcome}}"),)),
]  # fmt: skip

_QUEUES = [
    Panel("Requests over the bus", "short", (("sum by (rpc) (x402jobs:requests:rate5m) > 0", "{{rpc}}"),)),
    Panel("Requests that were refused", "short",
          (('sum by (rpc, code) (x402jobs:requests:rate5m{code!="ok"}) > 0', "{{rpc}}: {{code}}"),)),
    Panel("How long requests take, 95 %", "s", ((_quantile(0.95, "x402jobs_request_seconds", "rpc"), "{{rpc}}"),)),
    Panel("What waits", "short", (("max(x402jobs_jobs_waiting)", "jobs"), ("max(x402jobs_outbox_pending)", "messages"),
                                  ("max(x402jobs_dead_letters)", "dead letters"))),
    Panel("How long the oldest has waited", "s", (("max by (kind) (x402jobs_oldest_seconds)", "{{kind}}"),)),
    Panel("Jobs accepted from the bus", "short", (("sum(rate(x402jobs_jobs_accepted_total[$__rate_interval]))", "a second"),)),
    Panel("Database connections", "short", (("sum by (instance, state) (x402jobs_postgres_connections)", "{{instance}} {{state}}"),
                                            ("min(x402jobs_postgres_connections_max)", "at most"))),
]  # fmt: skip

_HTTP = [
    Panel("Requests a second", "reqps", (("sum by (service, status) (x402jobs:http_requests:rate5m)", "{{service}} {{status}}"),)),
    Panel("500, 502, 503, 504", "reqps", (('x402jobs:http_requests:rate5m{status=~"50[0234]"}', "{{service}} {{status}}"),),
          "502 and 504 are OpenRouter's and its providers'."),
    Panel("How long requests take, 95 %", "s", (("x402jobs:http_request_seconds:p95", "{{service}} {{route}}"),),
          "Routes that wait for a model take as long as it does."),
]  # fmt: skip

_PROCESSES = [
    Panel("Memory", "bytes", (('process_resident_memory_bytes{job="x402jobs"}', "{{instance}}"),)),
    Panel("CPU", "percentunit",
          (('rate(process_cpu_seconds_total{job="x402jobs"}[$__rate_interval])', "{{instance}}"),), "Of one core."),
    Panel("Open files", "short", (('process_open_fds{job="x402jobs"}', "{{instance}}"),)),
    Panel("How late the event loop is, 99 %", "s", (("x402jobs:loop_lag_seconds:p99", "{{instance}}"),)),
    Panel("Background work that died", "short",
          (("increase(x402jobs_background_failures_total[$__rate_interval]) > 0", "{{instance}}: {{task}}"),)),
    Panel("Up for", "s", (("time() - (x402jobs_started_timestamp_seconds > 0)", "{{instance}}"),)),
]  # fmt: skip

ROWS: dict[str, list[Panel]] = {
    "What needs somebody": _ALERTS,
    "Money": _MONEY,
    "Runs": _RUNS,
    "Upstream": _UPSTREAM,
    "Keys": _KEYS,
    "Catalog": _CATALOG,
    "Bus and database": _QUEUES,
    "HTTP": _HTTP,
    "Processes": _PROCESSES,
}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    instant = panel.kind == "stat"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": _STAT_OPTIONS if instant else _SERIES_OPTIONS,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _DATASOURCE,
                "expr": expression,
                "legendFormat": legend or panel.title,
                "instant": instant,
                "range": not instant,
            }
            for place, (expression, legend) in enumerate(panel.lines)
        ],
    }


_STAT_OPTIONS = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
_SERIES_OPTIONS = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def board() -> dict[str, Any]:
    """The board as Grafana's dashboard JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        y += 1
        for start in range(0, len(row), _COLUMNS // _WIDTH):
            for column, panel in enumerate(row[start : start + _COLUMNS // _WIDTH]):
                panels.append(_panel(panel, len(panels) + 1, column * _WIDTH, y))
            y += _HEIGHT
    datasource = {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }
    return {
        "uid": "x402jobs",
        "title": "x402jobs",
        "tags": ["x402jobs"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [datasource]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def text() -> str:
    """The file's text."""
    return json.dumps(board(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
