"""The bus: functions that call, serve, publish and listen by a row of the registry, over FastStream's NATS connection.

A caller sees a function: `await bus.call(KEYS_STATUS, …)` returns the reply or raises the error that the other side
raised. Deadlines travel: a handler's calls never wait longer than whoever called the handler. Replies and frames go out
through the raw connection, because FastStream's metrics would make a time series of every inbox.

Stopping loses nothing: every subscription is drained first (the server stops sending, what has arrived is handled),
then running handlers are waited for, and only then the connection closes. FastStream alone drops what arrives between
its stop and its unsubscribe.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import nats.errors
import structlog
from faststream.middlewares import AckPolicy
from faststream.nats import NatsBroker, NatsMessage
from faststream.nats.prometheus import NatsPrometheusMiddleware
from faststream.security import SASLPlaintext
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import ValidationError

from contracts.base import Contract
from contracts.errors import ErrorBody, ErrorCode, FieldProblem, ServiceError
from contracts.permissions import inbox_prefix
from contracts.subjects import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    TIMEOUT_HEADER,
    TRACE_HEADER,
    Event,
    Rpc,
    Stream,
    publisher_of,
)
from services.runtime.trace import traceparent
from services.runtime.wrong_values import wrong_value

log = structlog.get_logger()

Q = TypeVar("Q", bound=Contract)
R = TypeVar("R")
M = TypeVar("M", bound=Contract)
Handler = Callable[[Q], Awaitable[R]]

# A callee gets this much less than its caller has left, so that its own timeout can still be reported by name.
_MARGIN_S = 0.05
_DEADLINE_DIGITS = 12
_MAX_CONCURRENT_HANDLERS = 2_000  # Far above any admission limit: refuse, never queue in the bus.
_TOO_LONG = ErrorBody(code=ErrorCode.UPSTREAM, message="The answer is too long to be sent in one message.")
_UNSPOKEN = ErrorBody(code=ErrorCode.INTERNAL, message="The other side failed without saying how.")


@dataclass(frozen=True)
class Call:
    """The request being handled right now."""

    subject: str
    deadline: float
    traceparent: str | None

    @property
    def publisher(self) -> str:
        """The caller's name on an `as.…` subject."""
        return publisher_of(self.subject)

    def remaining_s(self) -> float:
        return self.deadline - time.monotonic()


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The request being handled. Raises LookupError outside of a handler."""
    call = _current.get()
    if call is None:
        raise LookupError("not inside a handler")
    return call


def parse(model: type[M], data: bytes) -> M:
    """A message out of the wire's bytes. Raises ServiceError INVALID that names every wrong field and repeats no input."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise invalid_input(error) from None


def invalid_input(error: ValidationError) -> ServiceError:
    """A pydantic error as ours: every wrong field by path, never what was sent."""
    problems = [
        FieldProblem(path=".".join(str(part) for part in item["loc"]), message=wrong_value(item))
        for item in error.errors(include_input=False, include_url=False)[:20]
    ]
    first = problems[0]
    where = f"{first.path}: " if first.path else ""
    sentence = f"The request is not valid. {where}{first.message.rstrip('.')}."
    return ServiceError(ErrorCode.INVALID, sentence, fields=problems)


def encode(message: Any, rpc: Rpc[Any, Any] | None = None) -> bytes:
    """The wire form of a message, or of a reply that may be one of several models."""
    if isinstance(message, Contract):
        return message.__pydantic_serializer__.to_json(message)
    assert rpc is not None
    return rpc.adapter.dump_json(message)


def error_headers(body: ErrorBody) -> dict[str, str]:
    """The standard error headers of NATS services (ADR-32); header values are one line of ASCII."""
    sentence = " ".join(body.message.split()).encode("ascii", "replace").decode()
    return {ERROR_HEADER: sentence[:500], ERROR_CODE_HEADER: body.code.value}


class Bus:
    """One connection of one service instance."""

    js: JetStreamContext
    """From the start on."""

    def __init__(
        self, *, service: str, instance: str, url: str, user: str, password: str, registry: CollectorRegistry
    ) -> None:
        self.instance = instance
        self.served: set[str] = set()
        self.listened: set[str] = set()
        self._raw: list[tuple[str, str, Callable[[Msg], Awaitable[None]]]] = []
        self._raw_subscriptions: list[Subscription] = []
        self._handling = 0
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reconnected: list[Callable[[], Awaitable[None]]] = []
        # code: ok and ErrorCode; rpc: names of the registry
        self._requests = Counter(
            "x402jobs_requests", "Requests answered over the bus.", ["rpc", "code"], registry=registry
        )
        self._seconds = Histogram(
            "x402jobs_request_seconds", "Time to answer a request over the bus.", ["rpc"], registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300),
        )  # fmt: skip
        self.broker = NatsBroker(
            url,
            security=SASLPlaintext(username=user, password=password),
            name=f"{service}/{instance}",
            inbox_prefix=inbox_prefix(user),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,  # type: ignore[arg-type]
            ping_interval=10,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            middlewares=[NatsPrometheusMiddleware(registry=registry, app_name=service, metrics_prefix="x402jobs_bus")],
            logger=None,
            graceful_timeout=1,
        )

    # Connection -------------------------------------------------------------------------------------------------------

    @property
    def nc(self) -> Client:
        """The raw connection, for the hot path."""
        return self.broker.connection

    @property
    def connected(self) -> bool:
        connection = self.broker._connection  # noqa: SLF001 - FastStream offers no question that does not raise
        return connection is not None and connection.is_connected

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Called after every reconnect: what a restarted server has forgotten is said again there."""
        self._reconnected.append(callback)

    async def _on_error(self, error: Exception) -> None:
        log.warning("bus_error", error=type(error).__name__, detail=str(error)[:300])

    async def _on_disconnected(self) -> None:
        log.warning("bus_disconnected")

    async def _on_reconnected(self) -> None:
        log.warning("bus_reconnected")
        for callback in self._reconnected:
            # The client awaits this hook before it goes on; a callback that asks the bus would wait for itself.
            self._spawn(self._call_back(callback))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _call_back(self, callback: Callable[[], Awaitable[None]]) -> None:
        try:
            await callback()
        except Exception as error:
            log.exception("reconnect_callback_failed", error=type(error).__name__)

    async def start(self) -> None:
        """Connect and subscribe; on return the server has seen every subscription."""
        await self.broker.start()
        self.js = self.nc.jetstream(timeout=5)
        for subject, queue, callback in self._raw:
            self._raw_subscriptions.append(await self.nc.subscribe(subject, queue=queue, cb=callback))
        # The first ping may overtake subscriptions that still wait in the client's buffer; the second one cannot.
        await self.nc.flush()
        await self.nc.flush()

    async def drain(self, timeout_s: float) -> None:
        """Take no new work and finish what has arrived, for at most `timeout_s`."""
        subscriptions = [*self._raw_subscriptions]
        for subscriber in self.broker.subscribers:
            if getattr(subscriber, "subscription", None) is not None:
                subscriptions.append(subscriber.subscription)  # type: ignore[attr-defined]
                # FastStream's own stop would unsubscribe a second time and fail.
                subscriber.subscription = None  # type: ignore[attr-defined]
        drains = [subscription.drain() for subscription in subscriptions]  # type: ignore[no-untyped-call]
        await asyncio.gather(*drains, return_exceptions=True)
        await asyncio.sleep(0.05)  # what the drain handed over becomes a running handler
        if self._handling:
            self._idle.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("drain_incomplete", handlers=self._handling)

    async def close(self) -> None:
        if self.connected:
            await self.nc.flush()
        await self.broker.stop()

    # Requests ---------------------------------------------------------------------------------------------------------

    async def call(
        self, rpc: Rpc[Q, R], request: Q, *, timeout_s: float | None = None, subject: str | None = None
    ) -> R:
        """Ask and wait. Raises the ServiceError that the other side raised, UNAVAILABLE or TIMEOUT."""
        reply = await self.call_raw(rpc, encode(request), timeout_s=timeout_s, subject=subject)
        return rpc.adapter.validate_json(reply)

    async def call_raw(
        self, rpc: Rpc[Any, Any], payload: bytes, *, timeout_s: float | None = None, subject: str | None = None
    ) -> bytes:
        """As `call`, with bytes in and out, for replies that are only passed on."""
        timeout_s = rpc.timeout_s if timeout_s is None else timeout_s
        call = _current.get()
        if call is not None:
            timeout_s = min(timeout_s, call.remaining_s() - _MARGIN_S)
        if timeout_s <= 0:
            raise ServiceError(ErrorCode.TIMEOUT, "There was no time left to answer; try again.")
        headers = {TIMEOUT_HEADER: str(int(timeout_s * 1000))}
        if (trace := traceparent.get()) is not None:
            headers[TRACE_HEADER] = trace
        try:
            message = await self.nc.request(subject or rpc.subject, payload, timeout=timeout_s, headers=headers)
        except nats.errors.NoRespondersError:
            raise ServiceError(
                ErrorCode.UNAVAILABLE, "A part of the service is starting or down; try again shortly.", retry_after_s=1
            ) from None
        except (nats.errors.TimeoutError, TimeoutError):
            raise ServiceError(ErrorCode.TIMEOUT, "The answer took too long; try again.") from None
        except nats.errors.Error as error:
            raise ServiceError(
                ErrorCode.UNAVAILABLE,
                "The message bus cannot be reached at the moment; try again shortly.",
                retry_after_s=1,
            ) from error
        if message.headers and ERROR_CODE_HEADER in message.headers:
            try:
                body = ErrorBody.model_validate_json(message.data)
            except ValidationError:
                body = _UNSPOKEN
            raise ServiceError.from_body(body)
        return message.data

    def serve(self, rpc: Rpc[Q, R], handler: Handler[Q, R]) -> None:
        """Answer a request of the registry, through FastStream."""
        self._will_serve(rpc)

        async def answer(message: NatsMessage) -> None:
            await self._answer(rpc, handler, message.raw_message)

        self.broker.subscriber(
            rpc.subject,
            queue=rpc.owner,
            max_workers=_MAX_CONCURRENT_HANDLERS,
            no_reply=True,
            ack_policy=AckPolicy.MANUAL,
            title=rpc.name,
            description=rpc.doc,
        )(answer)

    def serve_raw(self, rpc: Rpc[Q, R], handler: Handler[Q, R]) -> None:
        """Answer on a plain subscription: saves 0.35 to 0.65 ms of FastStream's decoding and injection on the hot path."""
        self._will_serve(rpc)

        async def receive(message: Msg) -> None:
            self._spawn(self._answer(rpc, handler, message))

        self._raw.append((rpc.subject, rpc.owner, receive))

    def _will_serve(self, rpc: Rpc[Q, R]) -> None:
        self.served.add(rpc.subject)
        for code in ("ok", ErrorCode.INTERNAL.value):  # an alert sees the first one too
            self._requests.labels(rpc.name, code)

    async def _answer(self, rpc: Rpc[Q, R], handler: Handler[Q, R], message: Msg) -> None:
        """Decode, handle, reply; whatever goes wrong becomes a typed error, and the subscriber lives on."""
        self._handling += 1
        started = time.monotonic()
        code = "ok"
        try:
            try:
                reply = encode(await self._handle(rpc, handler, message, started), rpc)
                headers = None
            except ServiceError as error:
                code = error.code.value
                reply, headers = encode(error.body), error_headers(error.body)
            if message.reply:
                try:
                    await self.nc.publish(message.reply, reply, headers=headers)
                except nats.errors.MaxPayloadError:
                    code = _TOO_LONG.code.value
                    await self.nc.publish(message.reply, encode(_TOO_LONG), headers=error_headers(_TOO_LONG))
        except nats.errors.Error as error:
            log.warning("reply_failed", rpc=rpc.name, error=type(error).__name__)
        finally:
            self._handling -= 1
            if not self._handling:
                self._idle.set()
            self._requests.labels(rpc.name, code).inc()
            self._seconds.labels(rpc.name).observe(time.monotonic() - started)

    async def _handle(self, rpc: Rpc[Q, R], handler: Handler[Q, R], message: Msg, started: float) -> R:
        headers = message.headers or {}
        timeout_s = min(_timeout_of(headers.get(TIMEOUT_HEADER)) or rpc.timeout_s, rpc.timeout_s)
        trace = headers.get(TRACE_HEADER)
        _current.set(Call(message.subject, started + timeout_s, trace))
        traceparent.set(trace)
        try:
            async with asyncio.timeout(timeout_s):
                return await handler(parse(rpc.request, message.data))
        except ServiceError:
            raise
        except TimeoutError:
            raise ServiceError(ErrorCode.TIMEOUT, "The answer took too long; try again.") from None
        except Exception as error:
            reference = uuid4().hex[:12]
            log.exception("handler_failed", rpc=rpc.name, reference=reference, error=type(error).__name__)
            raise ServiceError(
                ErrorCode.INTERNAL,
                f"Something went wrong on our side; try again, and if it lasts, report it as {reference}.",
            ) from None

    # Events -----------------------------------------------------------------------------------------------------------

    async def publish(self, event: Event[M], message: M, *, subject: str | None = None) -> None:
        """Say a fact; nobody answers."""
        trace = traceparent.get()
        headers = {TRACE_HEADER: trace} if trace is not None else None
        await self.nc.publish(subject or event.subject, encode(message), headers=headers)

    def listen(self, event: Event[M], handler: Handler[M, None]) -> None:
        """Hear an event, on every instance. A malformed one is logged and dropped; it never ends the subscription."""
        self.listened.add(event.subject)

        async def hear(message: NatsMessage) -> None:
            try:
                await handler(parse(event.message, message.body))
            except Exception as error:
                log.exception("event_failed", event_name=event.name, error=type(error).__name__)

        self.broker.subscriber(
            event.subject,
            max_workers=16,
            no_reply=True,
            ack_policy=AckPolicy.MANUAL,
            title=event.name,
            description=event.doc,
        )(hear)

    # Streams ----------------------------------------------------------------------------------------------------------

    async def declare(self, stream: Stream, *, duplicate_window_s: float = 120) -> None:
        """Make the stream exist as the registry has it. Its owner calls this at start and after every reconnect."""
        config = StreamConfig(
            name=stream.name,
            subjects=list(stream.subjects),
            storage=StorageType.MEMORY if stream.storage == "memory" else StorageType.FILE,
            retention=RetentionPolicy.WORK_QUEUE if stream.retention == "workqueue" else RetentionPolicy.LIMITS,
            max_age=stream.max_age_s,
            max_bytes=stream.max_bytes,
            # What was acknowledged must not be pushed out by what comes later.
            discard=DiscardPolicy.NEW if stream.retention == "workqueue" else DiscardPolicy.OLD,
            duplicate_window=duplicate_window_s,
            description=stream.doc,
        )
        try:
            await self.js.add_stream(config)
        except BadRequestError:
            # It exists with another configuration: an older version of us declared it.
            await self.js.update_stream(config)

    async def ping(self) -> None:
        """For readiness: a round trip to the server."""
        if not self.connected:
            raise ConnectionError("not connected to NATS")
        await self.nc.flush(timeout=2)


def _timeout_of(header: str | None) -> float | None:
    """Seconds out of the deadline header; a header that is no sensible number of milliseconds is ignored."""
    # Python refuses to read thousands of digits, and to make a float of hundreds.
    if header is None or not header.isdecimal() or len(header) > _DEADLINE_DIGITS:
        return None
    return int(header) / 1000
