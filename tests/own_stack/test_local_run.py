"""`make run` as somebody with a fresh checkout sees it: an almost empty environment, what is printed, Ctrl-C, kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped,unused-ignore]

from deploy.local.ports import free_port
from tests.stack import ROOT
from tests.waiting import lives

READY_S = 120
SECOND_START_S = 60
GONE_S = 60
MAKE = shutil.which("make") or "make"
BASH = shutil.which("bash") or "bash"
# The copy borrows the installed environment; nothing in it may be made anew by the test.
MAKE_COMMAND = (MAKE, "--old-file=.venv/.installed")


@dataclass
class Running:
    """A stack that somebody started in a terminal of their own."""

    process: subprocess.Popen[bytes]
    output: Path
    local: Path
    family: list[psutil.Process] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.local / "stack.json").read_text())
        return facts

    @property
    def curl(self) -> str:
        """What is to be pasted, as it is printed."""
        found = re.search(r"^curl .*?(?=\n\n)", self.text, re.MULTILINE | re.DOTALL)
        assert found is not None, self.text
        return found.group(0)

    @property
    def took_s(self) -> float:
        found = re.search(r"is ready, after ([0-9.]+) s", self.text)
        assert found is not None, self.text
        return float(found.group(1))

    async def until_gone(self) -> int:
        """The exit code, once neither the runner nor anything that it started is left."""
        deadline = time.monotonic() + GONE_S
        while self.process.poll() is None or any(lives(one) for one in self.family):
            assert time.monotonic() < deadline, [one for one in self.family if lives(one)]
            await asyncio.sleep(0.05)
        return self.process.wait()


def _family(process: subprocess.Popen[bytes], facts: dict[str, Any]) -> list[psutil.Process]:
    """The runner, every process that stack.json names, and all of their children."""
    named = [entry["pid"] for kind in ("services", "servers") for entry in facts[kind].values()]
    assert all(named)
    parents = [psutil.Process(pid) for pid in (process.pid, *named)]
    return list({one for parent in parents for one in (parent, *parent.children(recursive=True))})


def spawn(tree: Path, command: tuple[str, ...], local: str, variables: dict[str, str]) -> Running:
    """The command in a session of its own, with no other variables than these."""
    output = tree / f"{local.strip('.')}.out"
    with output.open("wb") as terminal:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(process, output, tree / local)


@asynccontextmanager
async def started(
    tree: Path, command: tuple[str, ...], local: str = ".local", **variables: str
) -> AsyncIterator[Running]:
    """Everything ready and the greeting printed; whatever is left at the end of the block is killed."""
    running = spawn(tree, command, local, variables)
    process = running.process
    try:
        deadline = time.monotonic() + READY_S
        while "Ctrl-C stops everything." not in running.text:
            assert process.poll() is None, running.text
            assert time.monotonic() < deadline, running.text
            await asyncio.sleep(0.05)
        running.family = _family(process, running.facts)
        yield running
    finally:
        if process.poll() is None:
            # What the runner started is ended by the kernel.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def run(command: tuple[str, ...], cwd: Path, **variables: str) -> str:
    """What a program prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (command, errors.decode())
    return output.decode()


async def copy_of_the_repository(directory: Path) -> Path:
    """What a clean clone holds, with the environment of this interpreter in the place of one that would be built."""
    await run(("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(directory)), ROOT, PATH=os.environ["PATH"])
    (directory / ".venv").symlink_to(sys.prefix)
    return directory


async def ask(running: Running, token: str, path: str) -> Any:
    async with httpx.AsyncClient(base_url=running.facts["gateway_url"], timeout=20) as client:
        answer = await client.get(path, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def paste(running: Running, tree: Path) -> dict[str, Any]:
    """The printed command, executed as it stands by a shell that has no environment."""
    answer: dict[str, Any] = json.loads(await run((BASH, "-c", running.curl), tree))
    assert answer["status"] == "succeeded", answer
    assert answer["text"]
    return answer


def free_ports() -> dict[str, str]:
    return {"GATEWAY_PORT": str(free_port()), "CONSOLE_PORT": str(free_port())}


async def test_a_clean_clone_runs_stops_and_starts_again_with_its_data(tmp_path: Path) -> None:
    tree = await copy_of_the_repository(tmp_path / "clone")
    python = (".venv/bin/python", "-m", "deploy.local", "run")
    port = str(free_port())

    console = str(free_port())
    async with started(tree, (*MAKE_COMMAND, "run"), GATEWAY_PORT=port, CONSOLE_PORT=console) as first:
        assert first.facts["gateway_url"] == f"http://127.0.0.1:{port}"
        assert first.facts["console_url"] == f"http://localhost:{console}"
        assert f"http://localhost:{console}/sign-in#token={first.facts['token']}\n" in first.text
        executed = await paste(first, tree)
        alice = (await run((*MAKE_COMMAND, "--silent", "token", "USER=alice"), tree)).strip()
        assert (await ask(first, alice, "/api/executions"))["items"] == [], "alice is somebody else"
        # A terminal sends Ctrl-C to the whole foreground group; make waits for the stack, then dies of it by itself.
        os.killpg(first.process.pid, signal.SIGINT)
        await first.until_gone()
        assert "stopped; data stays in .local" in first.text
        assert "Traceback" not in first.text
        assert not (first.local / "stack.json").exists()

    async with started(tree, python, GATEWAY_PORT=port, CONSOLE_PORT=console) as second:
        kept = await ask(second, second.facts["token"], "/api/executions")
        assert [item["execution_id"] for item in kept["items"]] == [executed["execution_id"]]
        assert second.took_s < SECOND_START_S
        second.process.send_signal(signal.SIGKILL)
        assert await second.until_gone() == -signal.SIGKILL

    # Two at a time from here on: one goes on where the killed one was, the other is new beside it.
    async with (
        started(tree, python, GATEWAY_PORT=port, CONSOLE_PORT=console) as third,
        started(tree, python, ".other", LOCAL_DIR=".other", **free_ports()) as beside,
    ):
        again, elsewhere = await asyncio.gather(paste(third, tree), paste(beside, tree))
        assert again["execution_id"] != elsewhere["execution_id"]
        kept = await ask(third, third.facts["token"], "/api/executions")
        expected = [again["execution_id"], executed["execution_id"]]
        assert [item["execution_id"] for item in kept["items"]] == expected, "nothing of the other stack"
        third.process.send_signal(signal.SIGINT)
        assert await third.until_gone() == 0
        assert await ask(beside, beside.facts["token"], "/api/integrations/openrouter"), "it still runs"
        beside.process.send_signal(signal.SIGINT)
        assert await beside.until_gone() == 0
