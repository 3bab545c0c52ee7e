"""Executing over HTTP: a run is asked for, followed to its end, and stopped when whoever started it leaves.

The request is idempotent by the execution id that is made here, so it may be sent again when the bus lost it. A full
executor says so at once; then another one is tried, twice at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

import orjson
import structlog

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import TERMINAL_STATUSES, Execute, GetExecution
from contracts.subjects import EXECUTION_CANCEL, EXECUTION_RUN
from contracts.workflows import GetWorkflow
from services.gateway import sse
from services.gateway.endings import read_error, result_of, with_run
from services.gateway.problems import problem_of
from services.gateway.sequence import Step
from services.gateway.watch import RETRY_S, SILENCE_S, Client, Outages, Watch
from services.gateway.workflow_watch import WorkflowWatch
from services.runtime.bus import Bus, encode

log = structlog.get_logger()

_TRIES_WHEN_FULL = 3
_MOST_SENDS = 3
_ACCEPTED_MAX_BYTES = 1024
_OVERTAKEN_S = 0.05
_CANCEL_TRIES = 10
_CANCEL_PAUSE_S = 0.3


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody left to answer."""


class _Request:
    """The pending request to run. `reply` is its answer, which wakes the view when it comes."""

    def __init__(self, bus: Bus, execute: Execute, watch: Watch) -> None:
        self._bus = bus
        self._payload = encode(execute)
        self._watch = watch
        self._sends = 0
        self.reply: asyncio.Task[bytes] = self._send()

    def _send(self) -> asyncio.Task[bytes]:
        self._sends += 1
        task = asyncio.create_task(self._ask())
        task.add_done_callback(self._answered)
        return task

    def _answered(self, task: asyncio.Task[bytes]) -> None:
        if not task.cancelled():
            task.exception()  # marks it as seen: after a disconnect nobody else looks at it
            self._watch.wake()

    async def _ask(self) -> bytes:
        for _ in range(_TRIES_WHEN_FULL - 1):
            try:
                return await self._bus.call_raw(EXECUTION_RUN, self._payload)
            except ServiceError as error:
                if error.code is not ErrorCode.OVERLOADED or error.body.scope != "instance":
                    raise
        return await self._bus.call_raw(EXECUTION_RUN, self._payload)

    def send_again(self) -> None:
        """The executor knows no such run: the request was lost on the way. Raises UNAVAILABLE when that happens for ever."""
        if self._sends >= _MOST_SENDS:
            raise ServiceError(
                ErrorCode.UNAVAILABLE, "The request keeps getting lost on its way; try again shortly.", retry_after_s=5
            )
        self.abandon()
        self.reply = self._send()

    def abandon(self) -> None:
        self.reply.cancel()


class Runs:
    """Runs on behalf of HTTP clients."""

    def __init__(self, bus: Bus, outages: Outages) -> None:
        self._bus = bus
        self._outages = outages

    # Plain ------------------------------------------------------------------------------------------------------------

    async def plain(self, execute: Execute, client: Client, *, cancels: bool) -> bytes:
        """The ExecutionResult as JSON. Raises how the run failed, or `ClientGoneError`.

        `cancels`: the run stops when the client leaves.
        """
        ref = _ref(execute)
        async with Watch(self._bus, self._outages, client, ref) as watch:
            request = _Request(self._bus, execute, watch)
            try:
                return await self._answer(request, watch)
            except ClientGoneError:
                if cancels:
                    await self._cancel(ref, request.reply)
                raise
            finally:
                request.abandon()

    async def _answer(self, request: _Request, watch: Watch) -> bytes:
        pause_s = SILENCE_S
        while True:
            woken = await watch.wait(pause_s)
            if request.reply.done():
                return await self._settle(request.reply, watch)
            if watch.client.gone:
                raise ClientGoneError
            if woken and not watch.outage:
                continue
            try:
                view = await watch.look()
            except ServiceError:
                pause_s = RETRY_S
                continue
            pause_s = SILENCE_S
            if view is None:
                request.send_again()
            elif view.status in TERMINAL_STATUSES:
                return encode(result_of(view))
            elif watch.outage:
                # The reply may have been said while nobody heard it.
                return await self._follow(watch.ref, watch.client)
            watch.outage = False

    async def _settle(self, reply: asyncio.Task[bytes], watch: Watch) -> bytes:
        try:
            payload = reply.result()
        except ServiceError as error:
            if error.code is not ErrorCode.TIMEOUT or error.body.execution_id is not None:
                raise
            view = await watch.look()
            if view is None:
                raise
            if view.status in TERMINAL_STATUSES:
                return encode(result_of(view))
            raise ServiceError.from_body(with_run(error.body, view.execution_id)) from None
        if len(payload) <= _ACCEPTED_MAX_BYTES and (accepted := orjson.loads(payload))["status"] in {
            "queued",
            "running",
        }:
            ref = GetExecution(execution_id=UUID(accepted["execution_id"]), caller=watch.ref.caller)
            return await self._follow(ref, watch.client)
        return payload

    async def _follow(self, ref: GetExecution, client: Client) -> bytes:
        """The result of a run that another request started, as soon as it ends."""
        async with Watch(self._bus, self._outages, client, ref) as watch:
            if await watch.replay() is None:
                await watch.listen()
            watch.question()
            async for steps in watch.steps():
                for step in steps:
                    if step.kind == "failed":
                        raise ServiceError.from_body(read_error(step.data, ref.execution_id))
                    if step.is_last:
                        return orjson.dumps(step.data)
        raise ClientGoneError

    # Streams ----------------------------------------------------------------------------------------------------------

    async def stream(self, execute: Execute, client: Client, *, cancels: bool) -> AsyncGenerator[bytes, None]:
        """The run as server-sent events. Raises the error before the first event when the run is not admitted."""
        ref = _ref(execute)
        async with Watch(self._bus, self._outages, client, ref) as watch:
            await watch.listen()
            request = _Request(self._bus, execute, watch)
            try:
                other = await self._opening(request, watch)
                if other is not None:
                    other_ref = GetExecution(execution_id=other, caller=ref.caller)
                    async with aclosing(self.view(other_ref, client)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    return
                async for steps in watch.steps(request.reply):
                    yield _encode(steps, ref.execution_id)
                if client.gone and cancels and not watch.sequence.ended:
                    await self._cancel(ref, request.reply)
            finally:
                request.abandon()

    async def _opening(self, request: _Request, watch: Watch) -> UUID | None:
        """Waits for the first frame. The id of another run when the idempotency key belongs to that; raises a refusal."""
        pause_s = SILENCE_S
        while not watch.has_frames:
            woken = await watch.wait(pause_s)
            if watch.has_frames or watch.client.gone:
                break
            if request.reply.done():
                return await self._overtaking(request.reply, watch)
            if woken and not watch.outage:
                continue
            try:
                view = await watch.look()
            except ServiceError:
                pause_s = RETRY_S
                continue
            pause_s = SILENCE_S
            if view is not None:
                watch.question()
                break
            request.send_again()
            watch.outage = False
        return None

    async def _overtaking(self, reply: asyncio.Task[bytes], watch: Watch) -> UUID | None:
        """The reply came before any frame: a refusal, another run's, or just faster than the frames."""
        try:
            execution_id = UUID(orjson.loads(reply.result())["execution_id"])
        except ServiceError as error:
            if error.body.execution_id is None or error.code is ErrorCode.CONFLICT:
                raise
            if error.body.execution_id == watch.ref.execution_id:
                # Admitted, and ended at once: its frames were said before the reply and are on their way.
                await watch.wait(_OVERTAKEN_S)
                if not watch.has_frames:
                    raise
            execution_id = error.body.execution_id
        return None if execution_id == watch.ref.execution_id else execution_id

    def view(
        self, ref: GetExecution, client: Client, *, after: int = 0, ended: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """A run from behind frame `after` to its end, as server-sent events; leaving it never cancels the run.

        `ended`: the run is known to be over.
        """
        watch = Watch(self._bus, self._outages, client, ref, after=after, whole=True)
        return _followed(watch, ref.execution_id, ended=ended)

    def view_workflow(
        self, ref: GetWorkflow, client: Client, *, after: int, begun_seq: int, ended: bool
    ) -> AsyncGenerator[bytes, None]:
        """The same for a workflow; what was said before frame `begun_seq` belongs to an earlier start and ends nothing."""
        watch = WorkflowWatch(self._bus, self._outages, client, ref, after=after, begun_seq=begun_seq)
        return _followed(watch, None, ended=ended)

    # Leaving ----------------------------------------------------------------------------------------------------------

    async def _cancel(self, ref: GetExecution, reply: asyncio.Task[bytes]) -> None:
        """Stop the run. One that still waits for its admission is not known yet, so it is asked for again."""
        for _ in range(_CANCEL_TRIES):
            if reply.done():
                return
            try:
                await self._bus.call_raw(EXECUTION_CANCEL, encode(ref))
            except ServiceError as error:
                log.info("cancel_failed", code=error.code.value, execution_id=str(ref.execution_id))
            else:
                return
            await asyncio.wait({reply}, timeout=_CANCEL_PAUSE_S)


def _ref(execute: Execute) -> GetExecution:
    assert execute.execution_id is not None
    return GetExecution(execution_id=execute.execution_id, caller=execute.caller)


async def _followed(watch: Watch, execution_id: UUID | None, *, ended: bool) -> AsyncGenerator[bytes, None]:
    async with watch:
        if not await watch.replay():
            watch.question()
        if not watch.is_open:
            await watch.listen()
        yield sse.COMMENT
        async for steps in watch.steps(ended=ended):
            yield _encode(steps, execution_id)
        if watch.must_move and not watch.sequence.ended:
            yield sse.RECONNECT


def _encode(steps: list[Step], execution_id: UUID | None) -> bytes:
    """What leaves in one piece: all steps that came together, or a comment that keeps the connection awake."""
    return b"".join(_event(step, execution_id) for step in steps) or sse.COMMENT


def _event(step: Step, execution_id: UUID | None) -> bytes:
    data = step.data
    if step.kind == "failed":
        data = problem_of(read_error(data, execution_id))
    return sse.encode_event(step.seq, step.kind, orjson.dumps(data))
