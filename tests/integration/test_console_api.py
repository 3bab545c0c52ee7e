"""The console's client of the HTTP interface against servers that behave and ones that do not: problems become errors that can be
shown, and a stream that breaks goes on where it was."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from contracts.attachments import Upload
from contracts.errors import ErrorCode
from contracts.keys import KeyStatus
from deploy.local.ports import free_port
from services.console.api import Api, ApiError, Gateway
from services.gateway import examples

RUN = "01930000-0000-7000-8000-000000000001"


@asynccontextmanager
async def serving(handler: Callable[[web.Request], object]) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    gateway = Gateway(f"http://127.0.0.1:{port}")
    try:
        yield gateway.as_user("a-token")
    finally:
        await gateway.close()
        await runner.cleanup()


def event(seq: int, kind: str, **data: object) -> bytes:
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def test_a_problem_becomes_an_error_that_says_what_to_do() -> None:
    async def refuse(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer a-token"
        problem = {
            "type": "urn:x402jobs:problem:rate_limited", "title": "Too many requests", "status": 429, "code": "rate_limited",
            "detail": "Wait a moment.", "retryable": True, "retry_after_s": 7, "new_member": {"later": "versions"},
        }  # fmt: skip
        return web.json_response(problem, status=429, content_type="application/problem+json")

    async with serving(refuse) as api:
        with pytest.raises(ApiError) as refused:
            await api.get("/api/integrations/openrouter", KeyStatus)
    problem = refused.value.problem
    assert (problem.code, problem.detail, problem.retry_after_s) == (ErrorCode.RATE_LIMITED, "Wait a moment.", 7)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (502, "<h1>Bad gateway</h1>", ErrorCode.UNAVAILABLE),
        (200, "<h1>hello</h1>", ErrorCode.INTERNAL),
        (404, "nothing", ErrorCode.INTERNAL),
    ],
)
async def test_what_is_no_answer_of_ours_is_never_shown(status: int, body: str, code: ErrorCode) -> None:
    async def strange(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with serving(strange) as api:
        with pytest.raises(ApiError) as refused:
            await api.get("/api/integrations/openrouter", KeyStatus)
    assert refused.value.problem.code is code
    assert body not in refused.value.problem.detail


async def test_nobody_there_is_unavailable_and_may_be_tried_again() -> None:
    gateway = Gateway(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ApiError) as refused:
        await gateway.as_user(None).get("/api/models", KeyStatus)
    assert refused.value.problem.retryable
    await gateway.close()


async def test_a_stream_that_breaks_goes_on_behind_the_last_event() -> None:
    asked: list[str | None] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        last = request.headers.get("Last-Event-ID")
        asked.append(last)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if last is None:
            await response.write(b": awake\n\n" + event(1, "started", execution_id=RUN) + event(2, "text", text="a: b"))
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write(event(3, "text", text="c") + event(4, "completed", text="a: bc"))
        return response

    async with serving(stream) as api:
        seen = [event async for event in api.events(RUN)]
    assert asked == [None, "2"]
    assert [(one.seq, one.kind) for one in seen] == [(1, "started"), (2, "text"), (3, "text"), (4, "completed")]
    assert seen[1].data == {"text": "a: b"}


async def test_a_run_is_started_to_go_on_without_its_starter() -> None:
    bodies: list[dict[str, object]] = []

    async def start(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        assert request.headers["Idempotency-Key"] == "a-key"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event(1, "started", execution_id=RUN))
        return response

    async with serving(start) as api:
        assert await api.start_run("/api/execute", {"resource": "a/b", "input": {}}, key="a-key") == RUN
    assert bodies == [{"resource": "a/b", "input": {}, "stream": True, "on_disconnect": "continue"}]


async def test_a_file_is_handed_over_as_it_comes() -> None:
    came: list[bytes] = []

    async def keep(request: web.Request) -> web.Response:
        came.append(await request.read())
        if len(came) > 1:
            problem = {"title": "The request is not valid", "status": 413, "code": "invalid", "detail": "Too large."}
            return web.json_response(problem, status=413, content_type="application/problem+json")
        assert (request.path, request.headers["Content-Length"]) == ("/media", "6")
        return web.json_response(examples.UPLOAD, status=201)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    async with serving(keep) as api:
        upload = await api.upload(pieces(), Upload, size=6)
        with pytest.raises(ApiError) as refused:
            await api.upload(pieces(), Upload, size=6)
    assert came[0] == b"abcdef"
    assert (upload.url, upload.width) == (examples.UPLOAD["url"], 1024)
    assert refused.value.problem.detail == "Too large."


async def test_what_answers_nothing_can_be_deleted() -> None:
    async def gone(request: web.Request) -> web.Response:
        assert request.method == "DELETE"
        return web.Response(status=204)

    async with serving(gone) as api:
        await api.delete(f"/api/resources/{RUN}")
