"""The calls themselves, against the real stand-in in a process of its own: what arrives, what fails how, what is closed when."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx
import pytest
import pytest_asyncio

from contracts.catalog import Timeouts
from contracts.errors import ErrorCode
from services.executor.faults import Fault, UpstreamFailed
from services.executor.lines import Splitter
from services.executor.normalise import Answer, Normaliser
from services.executor.upstream import Deadlines, Upstream, read_generation
from tests.stack import ROOT, shared_data
from tests.waiting import until

FOLDER = shared_data() / "openrouter-responses"
KEY = "sk-or-test-CANARY-4711"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sandbox() -> AsyncIterator[str]:
    """Base address of a sandbox process, with `/api/v1`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deploy.sandbox",
        cwd=ROOT,
        env={"SANDBOX_RECORDINGS": str(FOLDER), "SANDBOX_TOKENS_PER_S": "0", "SANDBOX_FIRST_TOKEN_MS": "0"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    assert line.startswith("sandbox ready ")
    yield line.split()[-1]
    process.terminate()
    await process.wait()


@pytest_asyncio.fixture(loop_scope="session")
async def upstream(sandbox: str) -> AsyncIterator[Upstream]:
    client = Upstream("http://127.0.0.1:9/api/v1", sandbox)
    yield client
    await client.close()


@asynccontextmanager
async def tcp_server(handler: Handler) -> AsyncIterator[str]:
    """An HTTP server of a few hand-written bytes, for what no well-behaved server does."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1"
    server.close()
    for writer in writers:
        writer.close()


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return head, await reader.readexactly(length)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TEXT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


def body_of(model: str, prompt: str = "hello", **extra: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True, **extra}


def deadlines_of(end_at_s: float | None = None, **seconds: float) -> Deadlines:
    timeouts = Timeouts(**{"first_token_s": 10, "idle_s": 10, "total_s": 30, **seconds})
    return Deadlines(timeouts, asyncio.get_running_loop().time(), end_at_s)


async def run(
    upstream: Upstream,
    model: str,
    deadlines: Deadlines | None = None,
    on_read: Callable[[], None] = lambda: None,
    **extra: Any,
) -> Answer:
    """One call from request to normal form, as the run loop makes it."""
    splitter, normaliser, loop = Splitter(), Normaliser(), asyncio.get_running_loop()
    deadlines = deadlines or deadlines_of()
    async with upstream.open("test", KEY, body_of(model, **extra), deadlines) as call:
        while not normaliser.done and (chunk := await call.next()) is not None:
            if [delta for frame in splitter.feed(chunk) for delta in normaliser.feed(frame)]:
                deadlines.note_content(loop.time())
            if normaliser.ended:
                deadlines.note_end(loop.time())
            on_read()
        for frame in splitter.finish():
            normaliser.feed(frame)
    return normaliser.finish()


async def fault_of(upstream: Upstream, model: str, deadlines: Deadlines | None = None, **extra: Any) -> Fault:
    with pytest.raises(UpstreamFailed) as failure:
        await run(upstream, model, deadlines, **extra)
    assert KEY not in repr(failure.getrepr(style="long"))
    return failure.value.fault


async def ledger_row(sandbox: str, prompt_model: str) -> dict[str, Any]:
    """The newest call of a model in the sandbox's ledger."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(sandbox.removesuffix("/api/v1") + "/sandbox/calls")
    rows: list[dict[str, Any]] = [row for row in answer.json()["calls"] if row["requested"] == prompt_model]
    return rows[-1] if rows else {}


# What arrives ---------------------------------------------------------------------------------------------------------


async def test_an_answer_comes_through_with_its_id_and_cost(upstream: Upstream, sandbox: str) -> None:
    async with upstream.open("test", KEY, body_of("sandbox/echo"), deadlines_of()) as call:
        assert (call.status, call.generation_id) == (200, call.headers["x-generation-id"])
    answer = await run(upstream, "sandbox/echo", prompt="héllo 🎉")
    assert (answer.text, answer.fault) == ("héllo 🎉", None)
    row = await ledger_row(sandbox, "sandbox/echo")
    assert row["generation_id"] == answer.generation_id
    assert answer.cost_usd == Decimal(row["cost"])


@pytest.mark.parametrize("name", sorted(path.name.split(".")[0] for path in FOLDER.glob("*.meta.json")))
async def test_every_recording_ends_the_same_over_the_wire(upstream: Upstream, name: str) -> None:
    meta = json.loads((FOLDER / f"{name}.meta.json").read_bytes())
    if meta["status"] >= 400:
        fault = await fault_of(upstream, f"recorded/{name}")
        assert fault.upstream_status == meta["status"]
        return
    answer = await run(upstream, f"recorded/{name}")
    splitter, normaliser = Splitter(), Normaliser()
    body = (FOLDER / meta["body_file"]).read_bytes()
    for frame in [*splitter.feed(body), *splitter.finish()]:
        normaliser.feed(frame)
    direct = normaliser.finish()
    assert (answer.text, answer.cost_usd, answer.fault) == (direct.text, direct.cost_usd, direct.fault)


@pytest.mark.parametrize("mode", ["split-utf8", "plain", "no-done", "byok", "content-list", "audio", "image-two"])
async def test_odd_but_whole_answers_are_whole(upstream: Upstream, mode: str) -> None:
    answer = await run(upstream, f"sandbox/{mode}")
    assert (answer.complete, answer.truncated) == (True, False)
    assert answer.cost_usd


@pytest.mark.parametrize(
    "mode", ["garbage", "garbage-frame", "cut-plain-end", "error-in-200", "choices-null", "error-first"]
)
async def test_broken_answers_end_with_a_fault(upstream: Upstream, mode: str) -> None:
    answer = await run(upstream, f"sandbox/{mode}")
    assert answer.fault is not None
    assert answer.fault.code == ErrorCode.UPSTREAM


async def test_a_large_request_goes_out_whole(upstream: Upstream) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 8_000_000}}
    answer = await run(
        upstream, "sandbox/echo", messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, image]}]
    )
    assert answer.complete


async def test_the_key_the_trace_and_nothing_of_the_environment_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "not-for-them")
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await request_of(reader))
        writer.write(SSE_HEAD + chunked(TEXT + FINISH) + chunked(b""))

    async with tcp_server(handler) as url:
        upstream = Upstream(url, None)
        async with upstream.open("live", "sk-or-v1-one", body_of("a/b"), deadlines_of(), "00-aa-bb-01") as call:
            assert await call.next() == TEXT + FINISH
        await upstream.close()
    head, body = seen
    assert b"authorization: bearer sk-or-v1-one\r\n" in head.lower()
    assert b"traceparent: 00-aa-bb-01\r\n" in head.lower()
    assert b"not-for-them" not in head
    assert json.loads(body) == body_of("a/b")


async def test_what_one_read_brings_is_one_chunk_without_waiting_for_more(upstream: Upstream) -> None:
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(SSE_HEAD + chunked(TEXT))
        await go.wait()
        writer.write(chunked(TEXT + TEXT) + chunked(FINISH) + chunked(b""))

    async with tcp_server(handler) as url:
        client = Upstream(url, None)
        async with client.open("live", KEY, body_of("a/b"), deadlines_of()) as call:
            assert await call.next() == TEXT
            go.set()
            rest = b""
            while (chunk := await call.next()) is not None:
                rest += chunk
            assert rest == TEXT + TEXT + FINISH
        await client.close()


async def test_connections_are_used_again_after_a_finished_answer() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await request_of(reader)
            writer.write(SSE_HEAD + chunked(TEXT + FINISH + b"data: [DONE]\n\n"))
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(chunked(b""))

    async with tcp_server(handler) as url:
        client = Upstream("http://127.0.0.1:9", url)
        for _ in range(5):
            assert (await run(client, "a/b")).complete
        await client.close()
    assert connections == 1


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "code", "retry"),
    [
        ("status-400", ErrorCode.INVALID, False),
        ("status-401", ErrorCode.KEY_REJECTED, False),
        ("status-402", ErrorCode.CREDITS_EXHAUSTED, False),
        ("status-402-max-tokens", ErrorCode.CREDITS_EXHAUSTED, False),
        ("status-402-in-flight", ErrorCode.CREDITS_EXHAUSTED, True),
        ("status-403", ErrorCode.MODEL_UNAVAILABLE, False),
        ("status-403-limit", ErrorCode.SPEND_LIMIT, False),
        ("status-403-moderation", ErrorCode.MODERATED, False),
        ("status-404", ErrorCode.MODEL_UNAVAILABLE, False),
        ("status-408", ErrorCode.TIMEOUT, True),
        ("status-413", ErrorCode.INVALID, False),
        ("status-429", ErrorCode.RATE_LIMITED, True),
        ("status-429-platform", ErrorCode.RATE_LIMITED, True),
        ("status-429-upstream", ErrorCode.RATE_LIMITED, True),
        ("status-500", ErrorCode.UPSTREAM, True),
        ("status-502", ErrorCode.UPSTREAM, True),
        ("status-503", ErrorCode.UNAVAILABLE, True),
        ("status-504", ErrorCode.TIMEOUT, True),
        ("status-524", ErrorCode.TIMEOUT, True),
        ("status-529", ErrorCode.UNAVAILABLE, True),
    ],
)
async def test_a_refusal_is_the_fault_of_its_status_and_keeps_its_id(
    upstream: Upstream, mode: str, code: ErrorCode, retry: bool
) -> None:
    with pytest.raises(UpstreamFailed) as failure:
        await run(upstream, f"sandbox/{mode}", max_tokens=1000)
    fault = failure.value.fault
    assert (fault.code, fault.retry, fault.billed) == (code, retry, "no")
    assert failure.value.generation_id is not None


async def test_a_connection_that_nobody_takes_is_unavailable_and_may_be_tried_again() -> None:
    client = Upstream("http://127.0.0.1:9/api/v1", "http://127.0.0.1:9/api/v1")
    fault = await fault_of(client, "a/b")
    assert (fault.code, fault.retry, fault.billed) == (ErrorCode.UNAVAILABLE, True, "no")
    await client.close()


async def test_a_test_key_without_a_sandbox_is_refused_before_anything_is_sent() -> None:
    client = Upstream("http://127.0.0.1:9/api/v1", None)
    assert (await fault_of(client, "a/b")).code == ErrorCode.KEY_REJECTED
    await client.close()


async def test_a_connection_that_breaks_before_the_answer_may_be_billed() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.close()

    async with tcp_server(handler) as url:
        client = Upstream(url, url)
        fault = await fault_of(client, "a/b")
        assert (fault.code, fault.retry, fault.billed) == (ErrorCode.UPSTREAM, False, "maybe")
        await client.close()


async def test_a_connection_that_is_reset_in_mid_stream_fails_with_what_was_delivered(upstream: Upstream) -> None:
    fault = await fault_of(upstream, "sandbox/cut")
    assert (fault.code, fault.truncated, fault.billed, fault.retry) == (ErrorCode.UPSTREAM, True, "maybe", False)


async def test_an_endless_error_body_is_read_to_a_point_only() -> None:
    sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(chunked(b"x" * 16_384))
            sent += 16_384
            await writer.drain()

    async with tcp_server(handler) as url:
        client = Upstream(url, url)
        assert (await fault_of(client, "a/b")).code == ErrorCode.UPSTREAM
        await client.close()
    assert sent < 64 * 1024 * 1024


async def test_a_refusal_before_a_large_request_was_read_is_heard_at_once() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(30)

    async with tcp_server(handler) as url:
        client = Upstream(url, url)
        fault, took_s = await timed(fault_of(client, "a/b", prompt="x" * 20_000_000))
        assert (fault.code, fault.upstream_status) == (ErrorCode.INVALID, 413)
        assert took_s < 10
        await client.close()


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")

    async with tcp_server(handler) as url:
        client = Upstream(url, url)
        fault = await fault_of(client, "a/b")
        assert (fault.code, fault.upstream_status) == (ErrorCode.UPSTREAM, 307)
        await client.close()


# Deadlines ------------------------------------------------------------------------------------------------------------


async def timed(awaitable: Awaitable[Fault]) -> tuple[Fault, float]:
    began = time.monotonic()
    return await awaitable, time.monotonic() - began


@pytest.mark.parametrize("mode", ["silence-no-headers", "silence", "slow"])
async def test_keep_alives_do_not_count_as_a_first_token(upstream: Upstream, mode: str) -> None:
    fault, took_s = await timed(fault_of(upstream, f"sandbox/{mode}", deadlines_of(first_token_s=0.4)))
    assert (fault.code, fault.billed, fault.retry, fault.truncated) == (ErrorCode.TIMEOUT, "maybe", False, False)
    assert "begin" in fault.message
    assert took_s >= 0.35


async def test_an_answer_that_stalls_is_given_up_after_the_idle_time(upstream: Upstream) -> None:
    fault, took_s = await timed(fault_of(upstream, "sandbox/stall", deadlines_of(idle_s=0.4)))
    assert (fault.code, fault.truncated) == (ErrorCode.TIMEOUT, True)
    assert "middle" in fault.message
    assert took_s >= 0.35


async def test_comments_between_content_do_not_keep_an_answer_alive() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(SSE_HEAD + chunked(TEXT))
        while True:
            writer.write(chunked(b": OPENROUTER PROCESSING\n\n"))
            await asyncio.sleep(0.02)

    async with tcp_server(handler) as url:
        client = Upstream(url, url)
        fault = await fault_of(client, "a/b", deadlines_of(idle_s=0.4))
        assert (fault.code, fault.truncated) == (ErrorCode.TIMEOUT, True)
        await client.close()


async def test_a_flood_of_comments_cannot_outrun_the_deadline() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(SSE_HEAD)
        flood = chunked(b": OPENROUTER PROCESSING\n\n" * 2000)
        while True:
            writer.write(flood)
            await writer.drain()

    async with tcp_server(handler) as url:
        client = Upstream(url, url)
        fault = await fault_of(client, "a/b", deadlines_of(first_token_s=0.2))
        assert fault.code in {ErrorCode.TIMEOUT, ErrorCode.UPSTREAM}
        await client.close()


async def test_the_total_time_ends_an_answer_that_keeps_coming(upstream: Upstream) -> None:
    fault, took_s = await timed(fault_of(upstream, "sandbox/long", deadlines_of(total_s=0.5)))
    assert (fault.code, fault.truncated) == (ErrorCode.TIMEOUT, True)
    assert "longer than this resource allows" in fault.message
    assert took_s >= 0.45


async def test_the_end_of_the_whole_run_counts_for_a_later_attempt(upstream: Upstream) -> None:
    soon = asyncio.get_running_loop().time() + 0.3
    fault = await fault_of(upstream, "sandbox/silence", deadlines_of(end_at_s=soon))
    assert "longer than this resource allows" in fault.message


async def test_an_answer_whose_usage_never_comes_is_whole_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.executor.upstream._TAIL_S", 0.3)
    hang = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(SSE_HEAD + chunked(TEXT + FINISH))
        await hang.wait()

    async with tcp_server(handler) as url:
        client = Upstream(url, url)
        answer = await run(client, "a/b")
        assert (answer.text, answer.complete, answer.cost_usd) == ("x", True, None)
        hang.set()
        await client.close()


# Closing --------------------------------------------------------------------------------------------------------------


async def closed_within_a_second(sandbox: str, model: str, canceled_at: float) -> None:
    async def ended() -> bool:
        return bool((await ledger_row(sandbox, model))["state"] != "running")

    await until(ended)
    row = await ledger_row(sandbox, model)
    assert row["state"] == "cancelled"
    assert row["ended_at"] - canceled_at < 1


@pytest.mark.parametrize("mode", ["silence-no-headers", "silence", "long"])
async def test_a_cancel_closes_the_connection_within_a_second_in_every_phase(
    upstream: Upstream, sandbox: str, mode: str
) -> None:
    model = f"sandbox/{mode}"
    reads = 0

    def count() -> None:
        nonlocal reads
        reads += 1

    before = (await ledger_row(sandbox, model)).get("generation_id")

    async def under_way() -> bool:
        row = await ledger_row(sandbox, model)
        return bool(row.get("generation_id") != before and (mode != "long" or reads >= 3))

    task = asyncio.create_task(run(upstream, model, on_read=count))
    await until(under_way)
    canceled_at = time.time()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.time() - canceled_at < 0.5
    await closed_within_a_second(sandbox, model, canceled_at)


async def test_leaving_the_block_early_closes_the_connection(upstream: Upstream, sandbox: str) -> None:
    def fail() -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        await run(upstream, "sandbox/long", on_read=fail)
    await closed_within_a_second(sandbox, "sandbox/long", time.time())


async def test_leaving_an_unfinished_answer_in_good_order_closes_the_connection(
    upstream: Upstream, sandbox: str
) -> None:
    async with upstream.open("test", KEY, body_of("sandbox/long"), deadlines_of()) as call:
        await call.next()
    await closed_within_a_second(sandbox, "sandbox/long", time.time())


async def test_a_hundred_calls_at_once_all_end(upstream: Upstream) -> None:
    answers = await asyncio.gather(*(run(upstream, "sandbox/fast") for _ in range(100)))
    assert all(answer.complete for answer in answers)


# Generations ----------------------------------------------------------------------------------------------------------


async def test_a_cost_that_was_not_said_is_found_a_moment_later(upstream: Upstream, sandbox: str) -> None:
    answer = await run(upstream, "sandbox/no-usage")
    assert answer.cost_usd is None
    assert answer.generation_id is not None
    for _ in range(100):
        generation = await upstream.lookup_generation("test", KEY, answer.generation_id)
        if generation is not None:
            break
        await asyncio.sleep(0.02)
    assert generation is not None
    assert generation.cost_usd == Decimal((await ledger_row(sandbox, "sandbox/no-usage"))["cost"])
    assert (generation.served, generation.canceled) == ("sandbox/no-usage", False)
    assert generation.usage.completion_tokens


async def test_a_generation_that_nobody_knows_is_none_and_trouble_is_trouble(upstream: Upstream) -> None:
    assert await upstream.lookup_generation("test", KEY, "gen-0-unknown") is None
    with pytest.raises(UpstreamFailed) as failure:
        await upstream.lookup_generation("live", KEY, "gen-0-unknown")
    assert failure.value.fault.code == ErrorCode.UNAVAILABLE


def test_the_recorded_generation_is_read_exactly() -> None:
    generation = read_generation((FOLDER / "generation-image.body.json").read_bytes())
    assert generation is not None
    assert generation.cost_usd == Decimal("0.014")
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (19, 4096)
    assert (generation.provider, generation.finish_reason) == ("Black Forest Labs", "complete")


@pytest.mark.parametrize(
    ("data", "cost"),
    [
        ({"total_cost": 0, "is_byok": True, "upstream_inference_cost": 0.002}, Decimal("0.002")),
        ({"total_cost": 0.0001, "is_byok": True, "upstream_inference_cost": 0.002}, Decimal("0.0021")),
        ({"total_cost": 0, "is_byok": True, "upstream_inference_cost": None}, None),
        ({"total_cost": 0.003, "is_byok": False, "upstream_inference_cost": 0.003}, Decimal("0.003")),
        ({"usage": 1e-05, "is_byok": False}, Decimal("0.00001")),
        ({}, None),
    ],
)
def test_the_cost_of_a_generation_follows_the_rule_of_usage(data: dict[str, Any], cost: Decimal | None) -> None:
    generation = read_generation(json.dumps({"data": data}).encode())
    assert generation is not None
    assert generation.cost_usd == cost


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data":[]}', b"<html>", b"[" * 10_000])
def test_a_generation_answer_that_is_something_else_is_none(body: bytes) -> None:
    assert read_generation(body) is None
