"""Prometheus' own checker takes the configuration and the rules, and every alert fires when it should and is silent when it should."""

from __future__ import annotations

import subprocess

import pytest

from tests.stack import ROOT
from tests.watching import PLAYS, promtool


@pytest.mark.parametrize(
    "command", [["check", "config", "deploy/prometheus/prometheus.yml"], ["test", "rules", *PLAYS]]
)
def test_promtool_finds_nothing_wrong(command: list[str]) -> None:
    done = subprocess.run([promtool() or "", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
