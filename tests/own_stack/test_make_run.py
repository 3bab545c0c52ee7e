"""`make run` as a program starts it: a signal that reaches make alone stops everything, and leaves no process."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from deploy.local.ports import free_port
from deploy.local.process import inherited_environment
from deploy.local.stack import ROOT
from tests.waiting import PATIENCE_S, until

# make itself passes SIGTERM on; what else it was told can only be seen on Linux.
TOLD = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL] if sys.platform == "linux" else [signal.SIGTERM]
START_S = 120


@pytest.mark.parametrize("told", TOLD)
async def test_stack_stops_when_make_alone_is_told_to(tmp_path: Path, told: signal.Signals) -> None:
    ports = {"GATEWAY_PORT": str(free_port()), "CONSOLE_PORT": str(free_port())}
    environment = {**inherited_environment(), "LOCAL_DIR": str(tmp_path), **ports}
    with (tmp_path / "terminal").open("w") as terminal:
        make = await asyncio.create_subprocess_exec(
            "make",
            "--old-file=.venv/.installed",
            "run",
            cwd=ROOT,
            env=environment,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            # Where the tests run in the background of a script, interrupts are ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        await until((tmp_path / "stack.json").exists, START_S)
        described = json.loads((tmp_path / "stack.json").read_text())
        pids = [part["pid"] for group in ("services", "servers") for part in described[group].values()]
        assert all(psutil.pid_exists(pid) for pid in pids)
        os.kill(make.pid, told)
        await until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 2 * PATIENCE_S)
        await asyncio.wait_for(make.wait(), PATIENCE_S)
    finally:
        if make.returncode is None:
            os.killpg(make.pid, signal.SIGINT)
            await make.wait()
    assert not [name for name in ("stack.json", "targets.json") if (tmp_path / name).exists()]
