"""`make bench`: what the system adds to a bare upstream, in one run on one machine.

Everything shares the machine: the load, the sandbox that plays the upstream, NATS, Postgres and the services. So compare
figures of one run with each other and quote ratios. Receipts and frames are on, as they always are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.local.stack import Stack
from tests.bench.load import WARM_UP_CALLS, Target, Timings, measure
from tests.bench.search import measure_searches, write_catalog
from tests.stack import AS_FAST_AS_CAN_BE

KEY = "sk-or-test-benchmark"
TOKENS_PER_LONG_STREAM = 200
LONG_STREAMS = 16


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--calls", type=int, default=1500, help="counted calls per figure at 16 connections")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--executors", type=int, default=1)
    parser.add_argument("--gateways", type=int, default=1)
    return parser.parse_args()


async def _prepare(stack: Stack) -> str:
    """Connect the key and publish a resource per sandbox mode; answers the token."""
    token = stack.token("bench")
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=stack.gateway_url, headers=headers, timeout=30) as client:
        (await client.put("/api/integrations/openrouter", json={"api_key": KEY})).raise_for_status()
        for mode in ("fast-1", "fast", "long"):
            draft = {
                "resource_type": "openrouter_instant",
                "name": mode,
                "slug": mode,
                "openrouter_config": {"model_id": f"sandbox/{mode}", "prompt_template": "{{topic}}"},
                "inputs": [{"name": "topic", "type": "text"}],
                "pricing": {"mode": "fixed", "price_usd": "0.01"},
            }
            created = (await client.post("/api/resources", json=draft)).raise_for_status().json()
            (await client.post(f"/api/resources/{created['id']}/publish")).raise_for_status()
    return token


def _ours(stack: Stack, token: str, mode: str, *, stream: bool) -> Target:
    return Target(
        url=f"{stack.gateway_url}/api/execute",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        body={"resource": f"bench/{mode}", "input": {"topic": "autumn"}, "stream": stream},
        first=b"event: text" if stream else b"{",
        last=b"event: completed" if stream else b'"status":"succeeded"',
    )


def _sandbox_url(stack: Stack) -> str:
    """Including `/api/v1`."""
    url: str = json.loads((stack.directory / "stack.json").read_text())["sandbox_url"]
    return url


def _bare(stack: Stack, mode: str, *, stream: bool) -> Target:
    return Target(
        url=f"{_sandbox_url(stack)}/chat/completions",
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        body={"model": f"sandbox/{mode}", "messages": [{"role": "user", "content": "autumn"}], "stream": stream},
        first=b'"delta"' if stream else b"{",
        last=b"[DONE]" if stream else b'"usage"',
    )


def _cpu_seconds(stack: Stack) -> dict[str, float]:
    """CPU time so far of every process but the sandbox, children included (Postgres has one per connection)."""
    seconds: dict[str, float] = {}
    for name, part in stack.parts.items():
        if name == "sandbox":
            continue
        process = psutil.Process(part.child.pid)
        seconds[name] = sum(
            times.user + times.system for times in (p.cpu_times() for p in [process, *process.children(recursive=True)])
        )
    return seconds


def _row(name: str, at_many: Timings, at_one: Timings) -> str:
    return (
        f"  {name:<28} {at_many.per_second:>8.0f} {at_many.total_ms(50):>9.1f} {at_many.total_ms(99):>9.1f}"
        f" {at_one.total_ms(50):>9.2f} {at_one.total_ms(99):>9.2f} {at_one.first_ms(50):>11.2f}"
    )


async def _pairs(stack: Stack, token: str, args: argparse.Namespace) -> None:
    few = max(50, args.calls // 5)
    print(
        f"\n  {'':<28} {'calls/s':>8} {'p50 ms':>9} {'p99 ms':>9} {'p50 ms':>9} {'p99 ms':>9} {'first ms':>11}\n"
        f"  {'':<28} {f'at {args.connections} connections':>28} {'at 1 connection':>31}"
    )
    for title, mode, stream in (("plain", "fast-1", False), ("stream of 20 chunks", "fast", True)):
        figures: dict[str, tuple[Timings, Timings]] = {}
        for name, target in (
            (f"bare upstream, {title}", _bare(stack, mode, stream=stream)),
            (f"ours, {title}", _ours(stack, token, mode, stream=stream)),
        ):
            at_one = await measure(target, connections=1, calls=few)
            at_many = await measure(target, connections=args.connections, calls=args.calls)
            figures[name] = (at_many, at_one)
            print(_row(name, at_many, at_one), flush=True)
        (_, bare), (_, ours) = figures.values()
        print(
            f"  -> overhead at 1 connection: median {ours.total_ms(50) - bare.total_ms(50):.2f} ms,"
            f" p99 {ours.total_ms(99) - bare.total_ms(99):.2f} ms;"
            f" first output {ours.first_ms(50) - bare.first_ms(50):.2f} ms\n"
        )


async def _cpu_per_token(stack: Stack, token: str) -> None:
    before = _cpu_seconds(stack)
    paced = await measure(_ours(stack, token, "long", stream=True), connections=LONG_STREAMS, calls=LONG_STREAMS)
    spent = {name: seconds - before[name] for name, seconds in _cpu_seconds(stack).items()}
    # The warm-up of the load streams as well, and is not counted as calls.
    tokens = (paced.calls + WARM_UP_CALLS * LONG_STREAMS) * TOKENS_PER_LONG_STREAM
    print(
        f"  CPU per streamed token (paced stream, {tokens} tokens): {sum(spent.values()) / tokens * 1e6:.0f} µs in all"
    )
    print("    " + ", ".join(f"{name} {seconds / tokens * 1e6:.0f}" for name, seconds in sorted(spent.items())))


async def main() -> None:
    args = _parse()
    settings: dict[str, dict[str, Any]] = {
        "sandbox": {"SANDBOX_FIRST_TOKEN_MS": "0", "SANDBOX_TOKENS_PER_S": "0"},
        "executor": {"RUNNING_PER_KEY": "1000", "LOG_LEVEL": "WARNING", **AS_FAST_AS_CAN_BE},
        "gateway": {"LOG_LEVEL": "WARNING"},
    }
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory) / "models.json"
        write_catalog(models)
        settings["sandbox"]["SANDBOX_CATALOG"] = str(models)
        stack = Stack(Path(directory), executors=args.executors, gateways=args.gateways, settings=settings)
        await stack.start()
        try:
            token = await _prepare(stack)
            print(
                f"{psutil.cpu_count()} cores shared by load, upstream, NATS, Postgres, {args.executors} executor(s) and"
                f" {args.gateways} gateway(s); receipts and frames on"
            )
            await _pairs(stack, token, args)
            await _cpu_per_token(stack, token)
            await measure_searches(stack.gateway_url, token, calls=max(50, args.calls // 15))
        finally:
            await stack.stop()


if __name__ == "__main__":
    asyncio.run(main())
