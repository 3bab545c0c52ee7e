"""The bus on a real nats-server: typed errors, deadlines that travel, a drain that loses nothing, restarts that are survived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from contracts.base import Empty
from contracts.catalog import ModelRef
from contracts.errors import ErrorCode, FieldProblem, ServiceError
from contracts.keys import KeysChanged, KeyStatus, OwnerRef, Recipient, VerifyKey
from contracts.subjects import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    FRAMES_STREAM,
    KEYS_CHANGED,
    KEYS_DISCONNECT,
    KEYS_LEASE,
    KEYS_RECIPIENT,
    KEYS_STATUS,
    KEYS_VERIFY,
    MODELS_GET,
    TIMEOUT_HEADER,
    frames_subject,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.runtime.bus import Bus, current_call
from services.runtime.trace import traceparent
from tests.waiting import PATIENCE_S, until

BusMaker = Callable[..., Bus]


def bus_of(service: str, server: Nats, credentials: Credentials, *, instance: str = "1") -> Bus:
    registry = CollectorRegistry()
    bus = Bus(
        service=service,
        instance=f"{service}-{instance}",
        url=server.url,
        user=service,
        password=credentials.nats_password(service),
        registry=registry,
    )
    bus.registry = registry  # type: ignore[attr-defined]
    return bus


@asynccontextmanager
async def started(*buses: Bus) -> AsyncIterator[None]:
    async with AsyncExitStack() as cleanup:
        for bus in buses:
            await bus.start()
            cleanup.push_async_callback(bus.close)
            cleanup.push_async_callback(bus.drain, 2)
        yield


async def status_of(request: OwnerRef) -> KeyStatus:
    return KeyStatus(connected=True, hint=request.owner)


async def test_call_returns_the_reply_of_a_served_request(nats_server: Nats, credentials: Credentials) -> None:
    keys, gateway = bus_of("keys", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_STATUS, status_of)
    keys.serve_raw(KEYS_RECIPIENT, lambda _: asyncio.sleep(0, Recipient(key_id="a", public_key="AA==")))
    async with started(keys, gateway):
        assert (await gateway.call(KEYS_STATUS, OwnerRef(owner="alice"))).hint == "alice"
        assert (await gateway.call(KEYS_RECIPIENT, Empty())).key_id == "a"


async def test_error_raised_by_a_handler_is_raised_whole_at_the_caller(
    nats_server: Nats, credentials: Credentials
) -> None:
    async def refuse(_: OwnerRef) -> KeyStatus:
        raise ServiceError(
            ErrorCode.RATE_LIMITED,
            "Slow down – später.",
            retry_after_s=2.5,
            scope="caller",
            fields=[FieldProblem(path="a.b", message="no")],
            action_url="https://example.test/",
        )

    keys, gateway = bus_of("keys", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_STATUS, refuse)
    async with started(keys, gateway):
        with pytest.raises(ServiceError) as caught:
            await gateway.call(KEYS_STATUS, OwnerRef(owner="alice"))
        raw = await gateway.nc.request(KEYS_STATUS.subject, b'{"owner":"alice"}', timeout=PATIENCE_S)
    assert caught.value.body.model_dump(exclude_defaults=True) == {
        "code": ErrorCode.RATE_LIMITED,
        "message": "Slow down – später.",
        "retryable": True,
        "retry_after_s": 2.5,
        "scope": "caller",
        "fields": [{"path": "a.b", "message": "no"}],
        "action_url": "https://example.test/",
    }
    assert raw.headers is not None
    assert raw.headers[ERROR_CODE_HEADER] == "rate_limited"
    assert raw.headers[ERROR_HEADER].isascii()


@pytest.mark.parametrize("payload", [b"", b"\xff\x00", b"[]", b"{}", b'{"owner": 7}', b'{"owner": "s3cret value\\n"}'])
async def test_malformed_request_gets_a_typed_error_that_repeats_nothing(
    nats_server: Nats, credentials: Credentials, payload: bytes
) -> None:
    keys, gateway = bus_of("keys", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_STATUS, status_of)
    async with started(keys, gateway):
        with pytest.raises(ServiceError) as caught:
            await gateway.call_raw(KEYS_STATUS, payload)
        assert (await gateway.call(KEYS_STATUS, OwnerRef(owner="alice"))).connected
    assert caught.value.code is ErrorCode.INVALID
    assert caught.value.body.fields
    assert "s3cret" not in caught.value.body.model_dump_json()


async def test_bug_in_a_handler_is_internal_and_keeps_its_detail_to_itself(
    nats_server: Nats, credentials: Credentials, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(_: VerifyKey) -> KeyStatus:
        raise KeyError("detail of our own")

    keys, gateway = bus_of("keys", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_VERIFY, fail)
    async with started(keys, gateway):
        with pytest.raises(ServiceError) as caught:
            await gateway.call(KEYS_VERIFY, VerifyKey(owner="alice"))
    assert caught.value.code is ErrorCode.INTERNAL
    assert "detail" not in caught.value.body.message
    reference = caught.value.body.message.rstrip(".").rpartition(" ")[2]
    assert reference in capsys.readouterr().out


async def test_call_nobody_serves_is_unavailable_and_waits_for_no_timeout(
    nats_server: Nats, credentials: Credentials
) -> None:
    gateway = bus_of("gateway", nats_server, credentials)
    async with started(gateway):
        with pytest.raises(ServiceError) as caught:
            await gateway.call(MODELS_GET, ModelRef(id="a/b"))
    assert caught.value.code is ErrorCode.UNAVAILABLE


async def test_deadline_reaches_the_handler_and_what_it_calls(nats_server: Nats, credentials: Credentials) -> None:
    left: dict[str, float] = {}

    async def lease(_: object) -> None:
        left["callee"] = current_call().remaining_s()
        raise ServiceError(ErrorCode.KEY_MISSING, "none")

    async def status(_: OwnerRef) -> KeyStatus:
        left["handler"] = current_call().remaining_s()
        with pytest.raises(ServiceError):
            await executor.call_raw(KEYS_LEASE, lease_request)
        return KeyStatus(connected=False)

    lease_request = orjson.dumps({"owner": "a", "instance": "x", "recipient_public_key": "AA=="})
    keys = bus_of("keys", nats_server, credentials)
    executor, gateway = bus_of("executor", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_STATUS, status)
    keys.serve(KEYS_LEASE, lease)  # type: ignore[arg-type]
    async with started(keys, executor, gateway):
        await gateway.call(KEYS_STATUS, OwnerRef(owner="a"), timeout_s=4)
    assert 1 < left["callee"] < left["handler"] <= 4


async def test_handler_that_outlasts_the_deadline_answers_timeout(nats_server: Nats, credentials: Credentials) -> None:
    async def sleep(_: OwnerRef) -> KeyStatus:
        await asyncio.Event().wait()
        raise AssertionError

    keys, gateway = bus_of("keys", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_STATUS, sleep)
    async with started(keys, gateway):
        reply = await gateway.nc.request(
            KEYS_STATUS.subject, b'{"owner":"a"}', timeout=PATIENCE_S, headers={TIMEOUT_HEADER: "100"}
        )
        assert reply.headers is not None
        assert reply.headers[ERROR_CODE_HEADER] == "timeout"
        with pytest.raises(ServiceError) as caught:
            await gateway.call(KEYS_STATUS, OwnerRef(owner="a"), timeout_s=0.1)
    assert caught.value.code is ErrorCode.TIMEOUT


async def test_trace_context_is_carried_to_the_handler(nats_server: Nats, credentials: Credentials) -> None:
    seen = []

    async def status(_: OwnerRef) -> KeyStatus:
        seen.append(traceparent.get())
        return KeyStatus(connected=False)

    keys, gateway = bus_of("keys", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_STATUS, status)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with started(keys, gateway):
        token = traceparent.set(trace)
        await gateway.call(KEYS_STATUS, OwnerRef(owner="a"))
        traceparent.reset(token)
        await gateway.call(KEYS_STATUS, OwnerRef(owner="a"))
    assert seen == [trace, None]


async def test_drain_loses_no_request_when_one_of_two_replicas_stops(
    nats_server: Nats, credentials: Credentials
) -> None:
    async def slow(_: OwnerRef) -> KeyStatus:
        await asyncio.sleep(0.02)
        return KeyStatus(connected=True)

    gateway = bus_of("gateway", nats_server, credentials)
    first, second = (bus_of("keys", nats_server, credentials, instance=name) for name in ("1", "2"))
    for bus in (first, second):
        bus.serve(KEYS_STATUS, slow)
        bus.serve_raw(KEYS_DISCONNECT, slow)
    async with started(gateway, second):
        await first.start()

        async def ask(number: int) -> None:
            await asyncio.sleep(number * 0.0007)
            await gateway.call((KEYS_STATUS, KEYS_DISCONNECT)[number % 2], OwnerRef(owner="a"), timeout_s=PATIENCE_S)

        asking = [asyncio.create_task(ask(number)) for number in range(600)]
        await asyncio.sleep(0.15)
        await first.drain(5)
        await first.close()
        results = await asyncio.gather(*asking, return_exceptions=True)
    assert [result for result in results if result is not None] == []


async def test_no_inbox_becomes_a_label_of_a_metric(nats_server: Nats, credentials: Credentials) -> None:
    keys, gateway = bus_of("keys", nats_server, credentials), bus_of("gateway", nats_server, credentials)
    keys.serve(KEYS_STATUS, status_of)
    async with started(keys, gateway):
        for _ in range(5):
            await gateway.call(KEYS_STATUS, OwnerRef(owner="a"))
    for bus in (keys, gateway):
        exposition = generate_latest(bus.registry).decode()  # type: ignore[attr-defined]
        assert "_INBOX" not in exposition
    assert 'x402jobs_requests_total{code="ok",rpc="keys.status"} 5.0' in generate_latest(keys.registry).decode()  # type: ignore[attr-defined]


async def test_malformed_event_is_dropped_and_the_next_one_heard(nats_server: Nats, credentials: Credentials) -> None:
    heard: asyncio.Queue[KeysChanged] = asyncio.Queue()
    keys, executor = bus_of("keys", nats_server, credentials), bus_of("executor", nats_server, credentials)
    executor.listen(KEYS_CHANGED, heard.put)
    async with started(keys, executor):
        await keys.nc.publish(KEYS_CHANGED.subject, b"not json")
        await keys.publish(KEYS_CHANGED, KeysChanged(owner="a", version=1, change="connected"))
        event = await asyncio.wait_for(heard.get(), PATIENCE_S)
    assert (event.owner, heard.qsize()) == ("a", 0)


async def test_connection_survives_the_death_of_its_server(own_nats: Nats, credentials: Credentials) -> None:
    keys, gateway = bus_of("keys", own_nats, credentials), bus_of("gateway", own_nats, credentials)
    executor = bus_of("executor", own_nats, credentials)
    keys.serve(KEYS_STATUS, status_of)
    back = asyncio.Event()

    async def declare() -> None:
        await executor.declare(FRAMES_STREAM)
        back.set()

    executor.on_reconnect(declare)
    async with started(keys, gateway, executor):
        await executor.declare(FRAMES_STREAM)
        await own_nats.kill()
        await until(lambda: not gateway.connected)
        with pytest.raises(ConnectionError):
            await gateway.ping()
        await own_nats.start()
        await asyncio.wait_for(back.wait(), PATIENCE_S)

        async def answered() -> bool:
            try:
                await gateway.call(KEYS_STATUS, OwnerRef(owner="a"), timeout_s=1)
            except ServiceError:
                return False
            return True

        await until(answered)
        await executor.nc.publish(frames_subject("gateway", "x"), b"{}")

        async def kept() -> bool:
            return (await executor.js.stream_info(FRAMES_STREAM.name)).state.messages == 1

        await until(kept)
