"""`make run` as a program starts it: a signal that reaches make alone stops everything, and leaves no process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.local.ports import free_port
from deploy.local.process import inherited_environment
from deploy.local.stack import ROOT

# make itself passes SIGTERM on; what else it was told can only be seen on Linux.
TOLD = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL] if sys.platform == "linux" else [signal.SIGTERM]


def wait_for(what: str, condition: object, timeout_s: float) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} took too long"
        time.sleep(0.1)


@pytest.mark.parametrize("told", TOLD)
def test_stack_stops_when_make_alone_is_told_to(tmp_path: Path, told: signal.Signals) -> None:
    ports = {"GATEWAY_PORT": str(free_port()), "CONSOLE_PORT": str(free_port())}
    environment = {**inherited_environment(), "LOCAL_DIR": str(tmp_path), **ports}
    with (tmp_path / "terminal").open("w") as terminal:
        make = subprocess.Popen(
            ["make", "--old-file=.venv/.installed", "run"],
            cwd=ROOT,
            env=environment,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            # Where the tests run in the background of a script, interrupts are ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for("the start", (tmp_path / "stack.json").exists, 60)
        described = json.loads((tmp_path / "stack.json").read_text())
        pids = [part["pid"] for group in ("services", "servers") for part in described[group].values()]
        assert all(psutil.pid_exists(pid) for pid in pids)
        os.kill(make.pid, told)
        wait_for("the end", lambda: not any(psutil.pid_exists(pid) for pid in pids), 30)
        make.wait(10)
    finally:
        if make.poll() is None:
            os.killpg(make.pid, signal.SIGINT)
            make.wait(30)
    assert not [name for name in ("stack.json", "targets.json") if (tmp_path / name).exists()]
