"""`python -m deploy.local run` is what `make run` calls: the whole stack in one terminal until Ctrl-C. `token` prints a bearer
token for another user of it; the other verbs work on its master keys, its access log and its receipts. Where things are
and how many of each comes from the environment, see README."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from deploy.local import custody, demo, operations
from deploy.local.credentials import load_credentials
from deploy.local.parent import until_make_is_told_to_stop
from deploy.local.process import ProcessError
from deploy.local.settings import settings_from
from deploy.local.stack import CONSOLE_PORT, GATEWAY_PORT, Stack
from deploy.local.terminal import LogFollower
from deploy.local.tokens import sign_token

WATCH_S = 0.3
BACKOFF_S = (0.5, 1, 2, 5, 10, 30)
FORGET_S = 300


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="start the stack and keep it running until Ctrl-C")
    token = commands.add_parser("token", help="print a bearer token")
    token.add_argument("--user", default=demo.USER)
    token.add_argument("--admin", action="store_true")
    commands.add_parser("rotate-master-key", help="put all keys of the running stack under a new master key")
    in_use = commands.add_parser(
        "master-key-in-use", help="say whether a master key of the running stack is still needed"
    )
    in_use.add_argument("id")
    commands.add_parser("verify-access-log", help="walk the access log of every owner")
    reconcile = commands.add_parser("reconcile", help="compare receipts with upstream's accounts")
    reconcile.add_argument("--days", default="1")
    purge = commands.add_parser("purge", help="delete what is past its time, or what one person sent and got")
    purge.add_argument("--user")
    purge.add_argument("--yes", action="store_true")
    arguments = parser.parse_args()
    directory = Path(os.environ.get("LOCAL_DIR") or ".local")
    try:
        match arguments.command:
            case "token":
                return _print_token(directory, arguments.user, admin=arguments.admin)
            case "rotate-master-key":
                return custody.rotate_master_key(directory)
            case "master-key-in-use":
                return custody.master_key_in_use(directory, arguments.id)
            case "verify-access-log":
                return custody.verify_access_log(directory)
            case "reconcile":
                return operations.reconcile(directory, arguments.days)
            case "purge":
                return operations.purge(directory, arguments.user, do=arguments.yes)
        return asyncio.run(_run(directory))
    except (RuntimeError, ValueError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _print_token(directory: Path, user: str, *, admin: bool) -> int:
    if not (directory / "secrets.json").exists():
        raise RuntimeError(f"there is no stack in {directory} yet: `make run` makes one")
    print(sign_token(load_credentials(directory).jwt_secret, user, admin=admin))
    return 0


async def _run(directory: Path) -> int:
    began = time.monotonic()
    stack = Stack(
        directory,
        gateway_port=_number("GATEWAY_PORT", GATEWAY_PORT),
        console_port=_number("CONSOLE_PORT", CONSOLE_PORT),
        keys=_number("KEYS", 1),
        executors=_number("EXECUTORS", 1),
        gateways=_number("GATEWAYS", 1),
        settings=settings_from(os.environ),
    )
    asked_to_stop = _stop_signals(stack)
    listening = asyncio.create_task(_listen_to_make(asked_to_stop))
    print(f"starting; logs are in {directory}/logs", flush=True)
    starting = asyncio.create_task(stack.start())
    stop = asyncio.create_task(asked_to_stop.wait())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        print("\nstopping", flush=True)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return 0
    try:
        await starting
        took_s = time.monotonic() - began
        watching = asyncio.create_task(_watch(stack))
        welcoming = asyncio.create_task(_welcome(stack, directory, took_s))
        pending: set[asyncio.Task[Any]] = {stop, watching, welcoming}
        while not stop.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        print("\nstopping (once more Ctrl-C ends everything at once)", flush=True)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    finally:
        stop.cancel()
        listening.cancel()
        await stack.stop()
    print(f"stopped; data stays in {directory}", flush=True)
    return 0


async def _listen_to_make(asked: asyncio.Event) -> None:
    await until_make_is_told_to_stop()
    asked.set()


def _stop_signals(stack: Stack) -> asyncio.Event:
    """An event that the first Ctrl-C (or TERM, or a closed terminal) sets; the second one kills what is left."""
    asked = asyncio.Event()
    killing: list[asyncio.Task[list[None]]] = []

    async def kill_all() -> list[None]:
        return await asyncio.gather(*(part.kill() for part in stack.parts.values()))

    def ask() -> None:
        if asked.is_set():
            killing.append(asyncio.create_task(kill_all()))
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ask)
    return asked


async def _watch(stack: Stack) -> None:
    """Shows warnings and brings back what ends by itself."""
    follower = LogFollower(stack.directory / "logs")
    restarts: dict[str, list[float]] = {}
    down: set[str] = set()
    while True:
        for line in follower.serious_lines():
            print(line, flush=True)
        down.update(stack.died())
        for name in [name for name in stack.parts if name in down]:
            part = stack.parts[name]
            recent = [moment for moment in restarts.get(name, []) if time.monotonic() - moment < FORGET_S]
            wait_s = BACKOFF_S[min(len(recent), len(BACKOFF_S) - 1)]
            print(f"{name} ended with exit code {part.child.exit_code}; starting it again in {wait_s} s", flush=True)
            print(part.child.tail(8), flush=True)
            await asyncio.sleep(wait_s)
            restarts[name] = [*recent, time.monotonic()]
            try:
                await part.start()
            except ProcessError as error:
                print(error, file=sys.stderr, flush=True)
                continue
            down.discard(name)
            stack.describe()
            print(f"{name} runs again", flush=True)
        await asyncio.sleep(WATCH_S)


async def _welcome(stack: Stack, directory: Path, took_s: float) -> None:
    token = stack.token(demo.USER)
    try:
        resource = await demo.set_up_demo(stack.gateway_url, token)
        reason = "the demo user has only other resources"
    except demo.DemoError as error:
        resource, reason = None, str(error)
    url = stack.gateway_url
    print(f"""
x402jobs Instant Resources is ready, after {took_s:.1f} s

  console {stack.console_url}/sign-in#token={token}
  API     {url}
  docs    {url}/docs
  user    {demo.USER} (a token for another one: make token USER=alice)
  token   {token}
  data    {directory}/ (stack.json there says where everything listens)
""")
    if resource is None:
        print(f"No example to paste: {reason}\n")
    else:
        print(f"""Paste this; it answers in test mode and spends nothing:

curl -s {url}/api/execute -H 'Authorization: Bearer {token}' \\
  -H 'Content-Type: application/json' -d '{{"resource":"{resource}","input":{{"topic":"{demo.TOPIC}"}}}}'
""")
    print("Ctrl-C stops everything.", flush=True)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise ValueError(f"{variable} is {text!r}: give a number from 1 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
