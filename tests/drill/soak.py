"""`make soak`: a hundred thousand executions, and what every process holds at the start, in the middle and at the end.

Memory and file descriptors must level off, subscriptions must not grow at all. The first sample is taken after a warm-up: pools,
caches and compiled statements are filled once. Plain calls of one chunk, receipts and frames on.

The bus is the exception: it keeps the frames of the last quarter of an hour in memory, up to a limit, so that views can resume.
What it holds beyond its share for them must level off too.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import nats
import orjson
import psutil

from contracts.permissions import inbox_prefix
from contracts.subjects import FRAMES_STREAM
from deploy.local.ports import free_port
from deploy.local.stack import Stack
from tests.bench.load import WARM_UP_CALLS, Target, measure
from tests.e2e.client import connected

_MIB = 1024 * 1024
_MAY_GROW = 1.10
_MAY_GROW_BYTES = 12 * _MIB
_MORE_FILES = 8
"""Connections of a pool that come and go."""
_PER_FRAME_BYTE = 4
"""Of the bus, for a byte of frames: the index of subjects beside it, and the room that Go's collector takes for itself."""
_WARM_UP = 0.05
_SLICE = 500


@dataclass(frozen=True)
class Sample:
    """What one process holds. `memory` in bytes: resident, of Postgres what its processes do not share. Each of those opens
    tables as it comes to them, so that their number is what must not grow. `frames` is the part of the bus that may."""

    memory: int
    files: int
    subscriptions: int | None
    processes: int = 1
    frames: int = 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=12, help="stop after this long, and say how many it were")
    return parser.parse_args()


async def main() -> int:
    args = _parse()
    settings = {
        "sandbox": {"SANDBOX_FIRST_TOKEN_MS": "0", "SANDBOX_TOKENS_PER_S": "0"},
        "executor": {
            "RUNNING_PER_KEY": "1000",
            "LOG_LEVEL": "WARNING",
            "REQUESTS_PER_MINUTE_PER_CALLER": "0",
            "REQUESTS_PER_MINUTE_PER_KEY": "0",
        },
        "gateway": {"LOG_LEVEL": "WARNING"},
    }
    with tempfile.TemporaryDirectory() as directory:
        stack = Stack(Path(directory), settings=settings)
        monitor = _monitored(stack)
        await stack.start()
        try:
            return await _soak(stack, monitor, args)
        finally:
            await stack.stop()


def _monitored(stack: Stack) -> str:
    """The monitoring address of this stack's nats-server: on the loopback, for this run alone."""
    port = free_port()
    stack.nats.child.command += ["--http_port", str(port)]
    return f"http://127.0.0.1:{port}"


async def _soak(stack: Stack, monitor: str, args: argparse.Namespace) -> int:
    async with connected(stack, "soak") as person:
        resource = await person.publish(model="sandbox/fast-1")
        target = Target(
            url=f"{stack.gateway_url}/api/execute",
            headers={"Authorization": f"Bearer {stack.token(person.name)}", "Content-Type": "application/json"},
            body={"resource": resource["id"], "input": {"text": "hello"}},
            first=b"{",
            last=b'"status":"succeeded"',
        )
        began_s = time.monotonic()
        samples: list[tuple[int, dict[str, Sample]]] = []
        done = 0
        for until in (args.executions * _WARM_UP, args.executions * (1 + _WARM_UP) / 2, args.executions):
            while done < until and time.monotonic() - began_s < args.minutes * 60:
                done += (await measure(target, connections=args.connections, calls=_SLICE)).calls
                done += args.connections * WARM_UP_CALLS
            samples.append((done, await _sample(stack, monitor)))
            print(f"  {done} executions after {time.monotonic() - began_s:.0f} s", flush=True)
    per_s = done / (time.monotonic() - began_s)
    frames = ", ".join(f"{sample['nats'].frames / _MIB:.1f}" for _, sample in samples)
    print(f"\n{done} executions, {per_s:.0f} a second; MiB of frames on the bus: {frames}\n")
    return _report(samples)


async def _sample(stack: Stack, monitor: str) -> dict[str, Sample]:
    await asyncio.sleep(3)  # what is under way ends, and connections that are not needed close
    subscriptions = await _subscriptions(monitor)
    sample = {name: _of(part.child.pid, subscriptions.get(name)) for name, part in stack.parts.items()}
    return {**sample, "nats": replace(sample["nats"], frames=await _frames_bytes(stack))}


def _of(pid: int | None, subscriptions: int | None) -> Sample:
    process = psutil.Process(pid)
    children = process.children(recursive=True)
    if children:
        own = [each.memory_full_info().uss for each in (process, *children)]
        files = sum(each.num_fds() for each in (process, *children))
        return Sample(sum(own), files, subscriptions, processes=len(own))
    return Sample(process.memory_info().rss, process.num_fds(), subscriptions)


async def _subscriptions(monitor: str) -> dict[str, int]:
    """By instance, as each names its connection."""
    async with aiohttp.ClientSession() as http, http.get(f"{monitor}/connz?limit=1000") as answer:
        connections: list[dict[str, Any]] = orjson.loads(await answer.read())["connections"]
    return {each["name"].rpartition("/")[2]: each["subscriptions"] for each in connections}


async def _frames_bytes(stack: Stack) -> int:
    """What the frames of the last quarter of an hour are, as they were sent."""
    client = await nats.connect(
        stack.nats.url,
        user="gateway",
        password=stack.credentials.nats_password("gateway"),
        inbox_prefix=inbox_prefix("gateway").encode(),
    )
    try:
        return (await client.jetstream().stream_info(FRAMES_STREAM.name)).state.bytes
    finally:
        await client.close()


def _report(samples: list[tuple[int, dict[str, Sample]]]) -> int:
    counts = [count for count, _ in samples]
    head = "".join(f"{f'after {count}':>15}" for count in counts)
    print(f"  {'memory, MiB':<12}{head}{'':>6}   {'files':>15}   {'subscriptions':>15}")
    grew = False
    for name in samples[0][1]:
        start, middle, end = (sample[name] for _, sample in samples)
        memory = "".join(f"{each.memory / _MIB:>15.1f}" for each in (start, middle, end))
        files = f"{start.files} {middle.files} {end.files}"
        subscriptions = f"{start.subscriptions} {middle.subscriptions} {end.subscriptions}"
        verdict = _verdict(start, middle, end)
        grew = grew or verdict.isupper()
        print(f"  {name:<12}{memory}{'':>6}   {files:>15}   {subscriptions:>15}   {verdict}")
    return 1 if grew else 0


def _verdict(start: Sample, middle: Sample, end: Sample) -> str:
    frames = max(0, end.frames - middle.frames)
    if end.memory > middle.memory * _MAY_GROW + _MAY_GROW_BYTES + frames * _PER_FRAME_BYTE:
        return "MEMORY GROWS"
    if end.processes > middle.processes + _MORE_FILES or (
        end.processes == 1 and end.files > middle.files + _MORE_FILES
    ):
        return "FILES GROW"
    if (end.subscriptions or 0) > (start.subscriptions or 0):
        return "SUBSCRIPTIONS GROW"
    return "with its frames" if frames else "flat"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
