"""Waiting for what happens elsewhere: in another process, on the bus, in a database. The machines that tests run on are busy, so a
test asks again and again, passes as soon as it sees what it waits for, and gives up only when that will never come."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import psutil  # type: ignore[import-untyped,unused-ignore]

PATIENCE_S = 30

Found = TypeVar("Found")


@overload
async def until(look: Callable[[], Awaitable[Found | None]], timeout_s: float = PATIENCE_S) -> Found: ...
@overload
async def until(look: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool: ...
async def until(look: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """What `look` answers, as soon as that is true. Fails with its last answer when it is not in time."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while True:
        answer = look()
        found = await answer if inspect.isawaitable(answer) else answer
        if found:
            return found
        assert loop.time() < deadline_s, f"still {found!r} after {timeout_s:g} s"
        await asyncio.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended yet; one that nobody has waited for has. It may end between two looks at it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
