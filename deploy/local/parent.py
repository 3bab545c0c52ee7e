"""What `make run` is told while the stack runs: a signal that was sent to make alone must stop the stack as Ctrl-C does.

In a terminal Ctrl-C reaches both. Sent to make's process alone, make notes an interrupt, waits for its command to end, and
passes nothing on; killed, it leaves its command behind. On Linux both can be seen from the command's side.
"""

import asyncio
import os
import signal
from pathlib import Path

_LOOK_S = 0.3


def _catches_interrupt(pid: int) -> bool:
    """Whether the process has a handler for SIGINT: make takes its handler away once it has been interrupted."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)


def _is_make(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip().endswith("make")
    except OSError:
        return False


async def until_make_is_told_to_stop() -> None:
    """Returns when the make that runs this was interrupted or has died; never when something else runs it."""
    parent = os.getppid()
    if "MAKELEVEL" not in os.environ or not _is_make(parent):
        await asyncio.Event().wait()
    # Started in the background by a script, make ignores interrupts from the beginning.
    interruptible = _catches_interrupt(parent)
    while os.getppid() == parent and _catches_interrupt(parent) == interruptible:  # noqa: ASYNC110 - nothing tells of it but a look
        await asyncio.sleep(_LOOK_S)
