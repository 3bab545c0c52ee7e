"""Executing over HTTP against an executor that answers late, twice, in the wrong order, or not at all."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from uuid import UUID

import httpx
import orjson
import pytest
import pytest_asyncio

from contracts.base import new_execution_id
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Execute, ExecutionAccepted, PriceOnly, RunReply
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.gateway import examples, runs, watch
from tests.integration.gateway_parts import (
    Event,
    Script,
    ScriptedExecutor,
    bearer,
    error_body,
    events_of,
    failure_for,
    result_for,
    running_gateway,
    scripted_executor,
)
from tests.waiting import until

BODY = {"resource": "alice/haiku-maker", "input": {"topic": "rain"}}
STREAMED = {**BODY, "stream": True}
Executor = Callable[[Script], AbstractAsyncContextManager[ScriptedExecutor]]


@pytest_asyncio.fixture(scope="module")
async def client(nats_server: Nats, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway on the bus of the session."""
    async with running_gateway(nats_server, credentials) as client:
        yield client


@pytest.fixture
def executor(nats_server: Nats, credentials: Credentials) -> Executor:
    """Starts the other side with a script."""
    return lambda script: scripted_executor(nats_server, credentials, script)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of silence pass in a moment."""
    monkeypatch.setattr(watch, "SILENCE_S", 0.2)
    monkeypatch.setattr(runs, "SILENCE_S", 0.2)


def id_of(request: Execute) -> UUID:
    assert request.execution_id is not None
    return request.execution_id


async def succeed(_executor: ScriptedExecutor, request: Execute) -> RunReply:
    return result_for(id_of(request))


async def stream_three(executor: ScriptedExecutor, request: Execute) -> RunReply:
    run = id_of(request)
    await executor.started(run)
    await executor.text(run, 2, "Rain on ")
    await executor.text(run, 3, "the tin roof")
    await executor.completed(run, 4)
    return result_for(run)


async def hang(executor: ScriptedExecutor, request: Execute) -> RunReply:
    await executor.started(request.execution_id)
    executor.know(id_of(request))
    await executor.release.wait()
    return result_for(id_of(request))


# Plain ----------------------------------------------------------------------------------------------------------------


async def test_plain_run_answers_with_its_result(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(succeed) as other:
        response = await client.post("/api/execute", json={**BODY, "max_price_usd": "0.01", "expected_version": 2})
    assert response.status_code == 200
    (request,) = other.runs
    assert response.json() == result_for(id_of(request)).model_dump(mode="json")
    assert request.execution_id is not None
    assert request.execution_id.version == 7
    assert (request.caller.kind, request.caller.id, request.viewer) == ("user", "bob", "gateway")
    assert (str(request.max_price_usd), request.expected_version) == ("0.01", 2)


async def test_failed_plain_run_is_a_problem_with_its_id(client: httpx.AsyncClient, executor: Executor) -> None:
    async def fail(_executor: ScriptedExecutor, request: Execute) -> RunReply:
        raise failure_for(id_of(request), ErrorCode.CREDITS_EXHAUSTED)

    async with executor(fail) as other:
        response = await client.post("/api/execute", json=BODY)
    problem = error_body(response)
    assert (response.status_code, problem["code"]) == (409, "credits_exhausted")
    assert problem["execution_id"] == str(other.runs[0].execution_id)


async def test_nobody_listening_is_unavailable(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/execute", json=BODY)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_full_executor_is_tried_twice_more(client: httpx.AsyncClient, executor: Executor) -> None:
    async def full_at_first(other: ScriptedExecutor, request: Execute) -> RunReply:
        if len(other.runs) < 3:
            raise ServiceError(ErrorCode.OVERLOADED, "Full.", scope="instance", retry_after_s=1)
        return result_for(id_of(request))

    async with executor(full_at_first) as other:
        response = await client.post("/api/execute", json=BODY)
    assert response.status_code == 200
    assert len({request.execution_id for request in other.runs}) == 1
    assert len(other.runs) == 3


@pytest.mark.parametrize(("scope", "tries"), [("instance", 3), ("key", 1)])
async def test_overload_is_told_with_a_time(
    client: httpx.AsyncClient, executor: Executor, scope: str, tries: int
) -> None:
    async def full(_executor: ScriptedExecutor, _request: Execute) -> RunReply:
        raise ServiceError(ErrorCode.OVERLOADED, "Full.", scope=scope, retry_after_s=2.5)  # type: ignore[arg-type]

    async with executor(full) as other:
        response = await client.post("/api/execute", json=STREAMED)
    assert error_body(response)["scope"] == scope
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert len(other.runs) == tries


@pytest.mark.usefixtures("impatient")
async def test_silent_executor_is_asked_and_its_word_taken(client: httpx.AsyncClient, executor: Executor) -> None:
    async def die(other: ScriptedExecutor, request: Execute) -> RunReply:
        other.know(id_of(request), "interrupted")
        await other.release.wait()
        raise AssertionError("never answers")

    async with executor(die) as other:
        response = await client.post("/api/execute", json=BODY)
        assert error_body(response)["execution_id"] == str(other.runs[0].execution_id)
        assert response.status_code == 503
        assert "interrupted" in response.text
        other.release.set()


@pytest.mark.usefixtures("impatient")
async def test_silent_executor_that_finished_gives_the_stored_result(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async def finish_unheard(other: ScriptedExecutor, request: Execute) -> RunReply:
        other.know(id_of(request), "succeeded", result=result_for(id_of(request), "stored"))
        await other.release.wait()
        raise AssertionError("never answers")

    async with executor(finish_unheard) as other:
        response = await client.post("/api/execute", json=BODY)
        assert (response.status_code, response.json()["text"]) == (200, "stored")
        other.release.set()


@pytest.mark.usefixtures("impatient")
async def test_request_that_got_lost_is_sent_again_with_the_same_id(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async def lose_the_first(other: ScriptedExecutor, request: Execute) -> RunReply:
        if len(other.runs) == 1:
            await other.release.wait()
        return result_for(id_of(request), "second")

    async with executor(lose_the_first) as other:
        response = await client.post("/api/execute", json=BODY)
        assert (response.status_code, response.json()["text"]) == (200, "second")
        assert len(other.runs) == 2
        assert len({request.execution_id for request in other.runs}) == 1
        other.release.set()


async def test_same_key_while_running_waits_for_the_first(client: httpx.AsyncClient, executor: Executor) -> None:
    first = new_execution_id()

    async def already_running(other: ScriptedExecutor, _request: Execute) -> RunReply:
        other.know(first)
        await other.started(first)
        return ExecutionAccepted(execution_id=first, status="running")

    async with executor(already_running) as other:
        pending = asyncio.create_task(client.post("/api/execute", json=BODY, headers={"Idempotency-Key": "k"}))
        await until(lambda: first in other.asked)
        await other.completed(first, 2, "the first")
        response = await pending
    assert (response.status_code, response.json()["text"]) == (200, "the first")
    assert other.runs[0].idempotency_key == "k"


async def test_leaving_cancels_a_plain_run(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(hang) as other:
        pending = asyncio.create_task(client.post("/api/execute", json=BODY))
        await until(lambda: bool(other.views))
        pending.cancel()
        await until(other.cancel_seen.is_set)
        assert other.canceled == [other.runs[0].execution_id]
        other.release.set()


async def test_leaving_before_the_admission_cancels_as_soon_as_it_can(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async def wait_for_a_slot(other: ScriptedExecutor, request: Execute) -> RunReply:
        await other.release.wait()
        return result_for(id_of(request))

    async with executor(wait_for_a_slot) as other:
        pending = asyncio.create_task(client.post("/api/execute", json=BODY))
        await until(lambda: bool(other.runs))
        pending.cancel()
        await until(lambda: len(other.canceled) == 1)
        other.know(id_of(other.runs[0]))
        await until(lambda: len(other.canceled) == 2)
        other.release.set()


@pytest.mark.parametrize(
    ("extra", "headers"),
    [({"on_disconnect": "continue"}, {}), ({}, {"Idempotency-Key": "mine"})],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_lets_it_run_where_that_is_wanted(
    client: httpx.AsyncClient, executor: Executor, extra: dict[str, str], headers: dict[str, str], stream: bool
) -> None:
    async with executor(hang) as other:
        body = {**BODY, **extra, "stream": stream}
        pending = asyncio.create_task(client.post("/api/execute", json=body, headers=headers))
        await until(lambda: bool(other.views))
        pending.cancel()
        await asyncio.sleep(0.3)
        assert other.canceled == []
        other.release.set()


async def test_async_run_is_accepted_at_once(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(succeed) as other:
        headers = {"Prefer": "wait=1, Respond-Async"}
        response = await client.post("/api/execute", json=STREAMED, headers=headers)
    run = str(other.runs[0].execution_id)
    assert response.status_code == 202
    assert response.json() == {"execution_id": run, "status": "queued", "output_expired": False, "cost": None}
    assert response.headers["location"] == f"/api/executions/{run}"
    assert response.headers["preference-applied"] == "respond-async"


@pytest.mark.parametrize("stream", [False, True])
async def test_repeat_of_a_run_whose_output_has_expired_is_told_so(
    client: httpx.AsyncClient, executor: Executor, stream: bool
) -> None:
    first = new_execution_id()
    price = PriceOnly(price_usd=Decimal("0.01"))

    async def repeat(_other: ScriptedExecutor, _request: Execute) -> RunReply:
        return ExecutionAccepted(execution_id=first, status="succeeded", output_expired=True, cost=price)

    async with executor(repeat) as other:
        other.know(first, "succeeded", last_seq=4, output_expired=True)
        headers = {"Idempotency-Key": "mine"}
        response = await client.post("/api/execute", json={**BODY, "stream": stream}, headers=headers)
    assert response.status_code == 200
    if stream:
        (event,) = events_of(response.text)
        assert (event.kind, event.data["code"], event.data["execution_id"]) == ("failed", "not_found", str(first))
        assert "still has its receipt" in event.data["detail"]
    else:
        expired = {"status": "succeeded", "output_expired": True, "cost": {"price_usd": "0.01"}}
        assert response.json() == {"execution_id": str(first), **expired}


async def test_preview_runs_the_draft(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(succeed) as other:
        response = await client.post("/api/resources/preview", json=examples.PREVIEW)
    assert response.status_code == 200
    (request,) = other.runs
    assert request.resource is None
    assert request.draft is not None
    assert request.draft.slug == "haiku-maker"
    assert request.input == {"topic": "rain"}


async def test_preview_streams(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(stream_three):
        response = await client.post("/api/resources/preview", json={**examples.PREVIEW, "stream": True})
    assert [event.kind for event in events_of(response.text)] == ["started", "text", "text", "completed"]


async def test_large_input_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/execute", json={**BODY, "input": {"topic": "x" * (1024 * 1024 + 1)}})
    assert response.status_code == 413
    assert "1 MiB" in error_body(response)["detail"]


async def test_body_over_the_limit_is_refused_without_reading_it(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 65_536

    for content in (b"x" * (2 * 1024 * 1024 + 1), endless()):
        response = await client.post("/api/execute", content=content)
        assert response.status_code == 413
        error_body(response)


# Streams --------------------------------------------------------------------------------------------------------------


async def test_stream_is_numbered_and_ends_once(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(stream_three) as other:
        response = await client.post("/api/execute", json=STREAMED)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    events = events_of(response.text)
    assert [(event.seq, event.kind) for event in events] == [(1, "started"), (2, "text"), (3, "text"), (4, "completed")]
    assert "".join(event.data["text"] for event in events[1:3]) == "Rain on the tin roof"
    assert events[3].data == result_for(id_of(other.runs[0])).model_dump(mode="json")


async def test_error_before_the_start_is_a_status(client: httpx.AsyncClient, executor: Executor) -> None:
    async def refuse(_executor: ScriptedExecutor, _request: Execute) -> RunReply:
        raise ServiceError(ErrorCode.KEY_MISSING, "The creator has not connected a key.")

    async with executor(refuse):
        response = await client.post("/api/execute", json=STREAMED)
    assert (response.status_code, error_body(response)["code"]) == (409, "key_missing")


async def test_error_after_the_start_is_an_event(client: httpx.AsyncClient, executor: Executor) -> None:
    async def break_off(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)
        await other.started(run)
        await other.text(run, 2, "Rain")
        await other.failed(run, 3)
        raise failure_for(run)

    async with executor(break_off) as other:
        response = await client.post("/api/execute", json=STREAMED)
    events = events_of(response.text)
    assert response.status_code == 200
    assert [event.kind for event in events] == ["started", "text", "failed"]
    assert events[2].data["status"] == 502
    assert events[2].data["code"] == "upstream"
    assert events[2].data["execution_id"] == str(other.runs[0].execution_id)


async def test_reply_that_overtakes_its_frames_does_not_end_the_stream(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async def reply_first(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)

        async def say_later() -> None:
            await asyncio.sleep(0.1)
            await stream_three(other, request)

        other.later = asyncio.create_task(say_later())  # type: ignore[attr-defined]
        return result_for(run)

    async with executor(reply_first):
        response = await client.post("/api/execute", json=STREAMED)
    assert [event.seq for event in events_of(response.text)] == [1, 2, 3, 4]


async def test_last_frame_that_never_comes_is_built_from_the_stored_result(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async def forget_the_end(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)
        await other.started(run)
        other.know(run, "succeeded", result=result_for(run, "stored"), last_seq=7)
        return result_for(run, "stored")

    async with executor(forget_the_end):
        response = await client.post("/api/execute", json=STREAMED)
    events = events_of(response.text)
    assert [(event.seq, event.kind) for event in events] == [(1, "started"), (6, "snapshot"), (7, "completed")]
    assert events[1].data["text"] == events[2].data["text"] == "stored"


async def test_error_reply_ends_a_stream_whose_last_frame_never_comes(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async def fail_without_frame(other: ScriptedExecutor, request: Execute) -> RunReply:
        await other.started(request.execution_id)
        raise failure_for(id_of(request))

    async with executor(fail_without_frame):
        response = await client.post("/api/execute", json=STREAMED)
    assert [event.kind for event in events_of(response.text)] == ["started", "failed"]


@pytest.mark.usefixtures("impatient")
async def test_stream_of_a_dead_executor_ends_as_failed(client: httpx.AsyncClient, executor: Executor) -> None:
    async def die(other: ScriptedExecutor, request: Execute) -> RunReply:
        await other.started(request.execution_id)
        await other.text(request.execution_id, 2, "Rain")
        other.know(id_of(request), "interrupted")
        await other.release.wait()
        raise AssertionError("never answers")

    async with executor(die) as other:
        response = await client.post("/api/execute", json=STREAMED)
        events = events_of(response.text)
        assert [(event.seq, event.kind) for event in events] == [(1, "started"), (2, "text"), (3, "failed")]
        assert events[2].data["retryable"] is True
        other.release.set()


async def test_lost_frames_are_replayed_from_the_stream(
    client: httpx.AsyncClient, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lossy(source: object, message: object, receive: object = watch._Source.receive) -> None:
        # The live source loses frame 3; the stored one has it.
        live = source.consumer is None and source.subscription is not None  # type: ignore[attr-defined]
        if live and not message.reply and orjson.loads(message.data)["seq"] == 3:  # type: ignore[attr-defined]
            return
        await receive(source, message)  # type: ignore[operator]

    async def slowly(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)
        other.know(run)
        await other.started(run)
        for seq in range(2, 6):
            await other.text(run, seq, f"{seq} ")
        await until(lambda: run in other.asked)
        await other.completed(run, 6)
        return result_for(run)

    monkeypatch.setattr(watch._Source, "receive", lossy)
    async with executor(slowly):
        response = await client.post("/api/execute", json=STREAMED)
    events = events_of(response.text)
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]


async def test_snapshot_covers_frames_that_are_gone_for_good(client: httpx.AsyncClient, executor: Executor) -> None:
    async def skip(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)
        other.know(run)
        await other.started(run)
        await other.text(run, 4, "lost its beginning")
        await until(lambda: run in other.asked)
        await other.frame(
            run, 5, "snapshot", {"execution_id": str(run), "text": "Rain", "reasoning": "", "outputs": []}
        )
        await other.text(run, 6, " falls")
        await other.completed(run, 7)
        return result_for(run)

    async with executor(skip):
        response = await client.post("/api/execute", json=STREAMED)
    events = events_of(response.text)
    assert [(event.seq, event.kind) for event in events] == [
        (1, "started"),
        (5, "snapshot"),
        (6, "text"),
        (7, "completed"),
    ]


async def test_snapshot_without_loss_is_passed_on(client: httpx.AsyncClient, executor: Executor) -> None:
    async def repeat(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)
        await other.started(run)
        await other.frame(run, 2, "snapshot", {"execution_id": str(run), "text": "", "reasoning": "", "outputs": []})
        await other.text(run, 3, "Rain")
        await other.completed(run, 4)
        return result_for(run)

    async with executor(repeat):
        response = await client.post("/api/execute", json=STREAMED)
    events = events_of(response.text)
    assert [event.kind for event in events] == ["started", "snapshot", "text", "completed"]
    assert [event.seq for event in events] == [1, 2, 3, 4]


async def test_headers_wait_for_the_first_frame_and_frames_leave_at_once(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async def step_by_step(other: ScriptedExecutor, request: Execute) -> RunReply:
        await other.release.wait()
        return await hang_after_start(other, request)

    async def hang_after_start(other: ScriptedExecutor, request: Execute) -> RunReply:
        await other.started(request.execution_id)
        other.know(id_of(request))
        await other.cancel_seen.wait()
        raise ServiceError(ErrorCode.CONFLICT, "Canceled.")

    async with executor(step_by_step) as other:
        context = client.stream("POST", "/api/execute", json=STREAMED)
        entering = asyncio.create_task(context.__aenter__())
        done, _ = await asyncio.wait({entering}, timeout=0.2)
        assert not done
        other.release.set()
        response = await entering
        first = await anext(response.aiter_text())
        assert Event(first.strip()).kind == "started"
        await context.__aexit__(None, None, None)
        await until(other.cancel_seen.is_set)
        assert other.canceled == [other.runs[0].execution_id]


async def test_same_key_streams_the_first_run_from_its_beginning(client: httpx.AsyncClient, executor: Executor) -> None:
    async def once(other: ScriptedExecutor, request: Execute) -> RunReply:
        if len(other.runs) > 1:
            return result_for(id_of(other.runs[0]))
        other.know(id_of(request), "succeeded", result=result_for(id_of(request)), last_seq=4)
        return await stream_three(other, request)

    async with executor(once):
        headers = {"Idempotency-Key": "k"}
        first = events_of((await client.post("/api/execute", json=STREAMED, headers=headers)).text)
        second = events_of((await client.post("/api/execute", json=STREAMED, headers=headers)).text)
    assert [(event.seq, event.kind, event.data) for event in second] == [
        (event.seq, event.kind, event.data) for event in first
    ]


async def test_keep_alive_comments_are_sent(
    client: httpx.AsyncClient, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "COMMENT_S", 0.1)

    async def pause(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)
        await other.started(run)
        await asyncio.sleep(1)
        await other.completed(run, 2)
        return result_for(run)

    async with executor(pause):
        response = await client.post("/api/execute", json=STREAMED)
    assert response.text.count(": keep-alive\n\n") >= 2
    assert [event.kind for event in events_of(response.text)] == ["started", "completed"]


# Following ------------------------------------------------------------------------------------------------------------


async def test_view_resumes_behind_the_last_event(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(hang) as other:
        run = new_execution_id()
        other.know(run)
        await other.started(run)
        await other.text(run, 2, "Rain")
        path = f"/api/executions/{run}/events"
        pending = asyncio.create_task(client.get(path, headers={"Last-Event-ID": "1"}))
        await until(lambda: run in other.asked)
        await other.text(run, 3, " falls")
        await other.completed(run, 4)
        other.know(run, "succeeded", result=result_for(run), last_seq=4)
        assert [event.seq for event in events_of((await pending).text)] == [2, 3, 4]
        again = await client.get(path, params={"last_event_id": "3"})
        assert [event.seq for event in events_of(again.text)] == [4]
        over = await client.get(path, headers={"Last-Event-ID": "4"})
        assert (over.status_code, over.content) == (204, b"")


async def test_view_whose_frames_are_gone_gets_a_snapshot(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(hang) as other:
        run = new_execution_id()
        other.know(run, "succeeded", result=result_for(run), last_seq=9)
        events = events_of((await client.get(f"/api/executions/{run}/events")).text)
    assert [(event.seq, event.kind) for event in events] == [(8, "snapshot"), (9, "completed")]
    assert events[0].data["text"] == events[1].data["text"]


async def test_view_of_a_queued_run_opens_at_once_and_leaving_it_cancels_nothing(
    client: httpx.AsyncClient, executor: Executor
) -> None:
    async with executor(hang) as other:
        run = new_execution_id()
        other.know(run, "queued")
        async with client.stream("GET", f"/api/executions/{run}/events") as response:
            assert await anext(response.aiter_text()) == ": keep-alive\n\n"
        await asyncio.sleep(0.2)
        assert other.canceled == []


async def test_view_deletes_its_consumer(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(hang) as other:
        run = new_execution_id()
        other.know(run)
        before = await other.bus.js.stream_info("X402JOBS_FRAMES")
        async with client.stream("GET", f"/api/executions/{run}/events") as response:
            await anext(response.aiter_text())
            during = await other.bus.js.stream_info("X402JOBS_FRAMES")
        assert during.state.consumer_count == before.state.consumer_count + 1

        async def gone() -> bool:
            now = await other.bus.js.stream_info("X402JOBS_FRAMES")
            return now.state.consumer_count == before.state.consumer_count

        await until(gone)


@pytest.mark.parametrize("user", ["alice", "mallory"])
async def test_frames_are_for_the_caller_alone(client: httpx.AsyncClient, executor: Executor, user: str) -> None:
    async with executor(hang) as other:
        run = new_execution_id()
        other.know(run, "succeeded", result=result_for(run), last_seq=2)
        await other.completed(run, 2)
        response = await client.get(f"/api/executions/{run}/events", headers=bearer(user))
    assert response.status_code == 404
    assert "Rain" not in response.text


async def test_run_is_seen_listed_and_canceled(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(hang) as other:
        run = new_execution_id()
        other.know(run)
        seen = await client.get(f"/api/executions/{run}")
        listed = await client.get("/api/executions", params={"role": "owner", "limit": 1})
        stopped = await client.post(f"/api/executions/{run}/cancel")
        missing = await client.get(f"/api/executions/{new_execution_id()}")
    assert seen.json()["execution_id"] == str(run)
    assert listed.json()["items"][0]["execution_id"] == str(run)
    assert (stopped.status_code, other.canceled) == (200, [run])
    assert (missing.status_code, error_body(missing)["code"]) == (404, "not_found")


async def read_along(asking: AbstractAsyncContextManager[httpx.Response], seen: list[str]) -> int:
    """The status of an answer whose text is in `seen` as it comes."""
    async with asking as response:
        async for text in response.aiter_text():
            seen.append(text)  # noqa: PERF401 - whoever waits for text looks at what has come so far
    return response.status_code


# Outages --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_killed_bus_still_gives_the_caller_an_end(own_nats: Nats, credentials: Credentials, stream: bool) -> None:
    back = asyncio.Event()

    async def over_an_outage(other: ScriptedExecutor, request: Execute) -> RunReply:
        run = id_of(request)
        other.know(run)
        await other.started(run)
        await other.bus.nc.flush()
        await back.wait()
        other.know(run, "succeeded", result=result_for(run, "survived"), last_seq=3)
        raise AssertionError("this answer goes nowhere")

    async with (
        running_gateway(own_nats, credentials) as client,
        scripted_executor(own_nats, credentials, over_an_outage) as other,
    ):
        seen: list[str] = []
        asking = client.stream("POST", "/api/execute", json={**BODY, "stream": stream}, timeout=60)
        pending = asyncio.create_task(read_along(asking, seen))
        await until(lambda: bool(other.views) and (not stream or "started" in "".join(seen)))
        await own_nats.kill()
        await own_nats.start()
        await until(lambda: other.bus.connected)
        back.set()
        assert await asyncio.wait_for(pending, 60) == 200
    if stream:
        events = events_of("".join(seen))
        assert [event.kind for event in events] == ["started", "snapshot", "completed"]
        assert events[1].data["text"] == events[2].data["text"] == "survived"
    else:
        assert orjson.loads("".join(seen))["text"] == "survived"


async def test_stopping_gateway_finishes_what_it_has_begun(
    nats_server: Nats, credentials: Credentials, executor: Executor
) -> None:
    async with executor(hang) as other, httpx.AsyncClient(headers=bearer()) as outside:
        async with running_gateway(nats_server, credentials) as inside:
            pending = asyncio.create_task(outside.post(f"{inside.base_url}/api/execute", json=BODY))
            await until(lambda: bool(other.views))
            asyncio.get_running_loop().call_later(0.2, other.release.set)
        assert (await pending).status_code == 200


async def test_stopping_gateway_sends_its_views_to_another_one(
    client: httpx.AsyncClient, nats_server: Nats, credentials: Credentials, executor: Executor
) -> None:
    async with executor(hang) as other, httpx.AsyncClient(headers=bearer()) as outside:
        run = new_execution_id()
        other.know(run)
        await other.started(run)
        await other.text(run, 2, "Rain")
        path = f"/api/executions/{run}/events"
        read: list[str] = []
        async with running_gateway(nats_server, credentials) as inside:
            following = asyncio.create_task(read_along(outside.stream("GET", f"{inside.base_url}{path}"), read))
            await until(lambda: "Rain" in "".join(read))
        await following
        seen = "".join(read)
        assert seen.endswith("retry: 500\n\n")
        assert [event.kind for event in events_of(seen.removesuffix("retry: 500\n\n"))] == ["started", "text"]
        await other.completed(run, 3)
        other.know(run, "succeeded", result=result_for(run), last_seq=3)
        rest = await client.get(path, headers={"Last-Event-ID": "2"})
        assert [(event.seq, event.kind) for event in events_of(rest.text)] == [(3, "completed")]


async def test_client_that_is_cut_off_is_noticed(client: httpx.AsyncClient, executor: Executor) -> None:
    async with executor(hang) as other:
        url = client.base_url
        body = orjson.dumps(STREAMED)
        head = (
            f"POST /api/execute HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: {bearer()['Authorization']}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(head.encode() + body)
        assert b"200 OK" in await reader.readline()
        raw: socket.socket = writer.get_extra_info("socket")
        # An abortive close (RST), as a crashed client or a cut network leaves it.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()
        await until(other.cancel_seen.is_set)
        other.release.set()
