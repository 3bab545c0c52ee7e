"""One child process with its log file. It runs in a session of its own, so that Ctrl-C reaches only the stack, and it
is ended by the kernel when the stack dies (Linux), so that even `kill -9` leaves nothing behind. The kernel watches
the *thread* that started it: start children from the main thread only."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
POLL_S = 0.02

# Loaded here and not in the child: between fork and exec nothing may be imported.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ProcessError(RuntimeError):
    """A process did not start, or ended by itself. The message ends with its last log lines."""


class Child:
    """A program to start, watch and stop; the same object starts it again.

    `user` runs it as that system user (needs root), `death_signal` is what the kernel sends it when the stack dies.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        cwd: Path,
        user: str | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = dict(env)
        self.log = log
        self.cwd = cwd
        self.user = user
        self.death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        rotate(log)

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the process lives now."""
        return self._process is not None and self._process.poll() is None

    @property
    def died(self) -> bool:
        """Whether it ended without having been asked to."""
        return self._wanted and not self.running

    @property
    def exit_code(self) -> int | None:
        """Exit code of the last run (negative: the signal that ended it), None before that."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Starts the program. It is not ready when this returns: see `wait_until`."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self._wanted = True
        parent = os.getpid()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                # After the change of user, which would clear the setting.
                preexec_fn=lambda: _die_with(parent, self.death_signal),
            )

    async def stop(self, stop_signal: signal.Signals = signal.SIGTERM, grace_s: float = 10) -> None:
        """Asks the process to end, and kills its whole group after the grace."""
        self._wanted = False
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, grace_s)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL for the process and everything it started in its session."""
        self._wanted = False
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)

    def tail(self, lines: int = 20) -> str:
        """The last lines of its log, indented."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (it wrote nothing)"

    def failure(self, what: str) -> ProcessError:
        """An error that says what happened to this process, with the end of its log."""
        return ProcessError(f"{self.name} {what}; the end of {self.log}:\n{self.tail()}")

    def check(self) -> None:
        """Raises `ProcessError` if the process died."""
        if self.died:
            raise self.failure(f"ended with exit code {self.exit_code}")


def rotate(log: Path) -> None:
    """Moves the log of the previous run to `<name>.log.1`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))


def inherited_environment() -> dict[str, str]:
    """The few variables that every child gets from the caller: what a program needs to run at all, and no secret."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    return {"PATH": os.defpath, **kept, **python}


def _die_with(parent: int, death_signal: signal.Signals) -> None:
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
    if os.getppid() != parent:
        os._exit(1)
