"""One view of one run: its frames as they come, whether its client is still there, and what to do when nothing comes.

Frames come from one source at a time, never from a mix: live from the bus for whoever started the run, or from the
stream that captured them for whoever comes later. After an outage of the bus the live source has holes, so the view
changes to the stored one behind the last frame that it showed. Whenever the view is in doubt (silence, a gap, an
outage, a reply that overtook its frames) it asks the executor, so that nobody waits for the total timeout because some
process died.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from starlette.types import Receive

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import TERMINAL_STATUSES, ExecutionView, GetExecution
from contracts.subjects import EXECUTION_GET, FRAMES_STREAM, frames_subject
from services.gateway.endings import failed_step, last_steps
from services.gateway.sequence import Sequence, Step, read_step
from services.runtime.bus import Bus

log = structlog.get_logger()

VIEWER = "gateway"
SILENCE_S = 10.0
COMMENT_S = 15.0
GRACE_S = 1.0
RETRY_S = 0.5
_FORGOTTEN_CONSUMER_S = 30.0


class Client:
    """Whoever made the HTTP request; `gone` from the moment the connection is closed. Use as a context manager."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self.on_gone: list[Callable[[], None]] = []
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        for callback in self.on_gone:
            callback()

    def start(self) -> None:
        """Begin to watch the connection; the request's body must have been read."""
        self._task = asyncio.create_task(self._until_gone())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> Self:
        if self._task is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Outages:
    """Tells every open view when the bus came back: what was said meanwhile is lost to it. And when this gateway goes."""

    def __init__(self, bus: Bus) -> None:
        self.views: set[Watch] = set()
        self.leaving = False
        bus.on_reconnect(self._announce)

    async def leave(self) -> None:
        """This gateway stops: whoever can go on watching at another one is sent there."""
        self.leaving = True
        for view in self.views:
            view.wake()

    async def _announce(self) -> None:
        for view in self.views:
            view.question(outage=True)


class _Source:
    """Where frames come from now: a subscription, and the consumer behind it when it is a stored one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.payloads: list[bytes] = []
        self.subscription: Subscription | None = None
        self.consumer: str | None = None
        self._wake = wake

    async def receive(self, message: Msg) -> None:
        self.payloads.append(message.data)
        self._wake()


class Watch:
    """One view of the run `ref`, from behind frame `after`. `whole` views get a snapshot where frames are gone."""

    def __init__(
        self, bus: Bus, outages: Outages, client: Client, ref: GetExecution, *, after: int = 0, whole: bool = False
    ) -> None:
        self.ref = ref
        self.client = client
        self.sequence = Sequence(after)
        self._bus = bus
        self._outages = outages
        self._whole = whole
        self._changed = asyncio.Event()
        self.outage = False
        self._doubt = False
        self._asked_behind: int | None = None
        self._missing = False
        self._source: _Source | None = None

    async def __aenter__(self) -> Self:
        self._outages.views.add(self)
        self.client.on_gone.append(self.wake)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._outages.views.discard(self)
        self.client.on_gone.remove(self.wake)
        await self._close(self._source)

    # Waiting ----------------------------------------------------------------------------------------------------------

    @property
    def must_move(self) -> bool:
        """Whether this view ends here without an end of its run: its client asks another gateway for the rest."""
        return self._whole and self._outages.leaving

    def wake(self) -> None:
        """Something happened: whoever waits looks again."""
        self._changed.set()

    def question(self, *, outage: bool = False) -> None:
        """What this view knows may be stale: ask the executor now."""
        self._doubt = True
        self.outage = self.outage or outage
        self.wake()

    async def wait(self, timeout_s: float) -> bool:
        """Until something happens, at most `timeout_s`; whether something did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        woken = self._changed.is_set()
        self._changed.clear()
        return woken

    async def look(self) -> ExecutionView | None:
        """The run as the executor knows it; None when it knows none. Raises UNAVAILABLE or TIMEOUT when nobody answers."""
        try:
            return await self._bus.call(EXECUTION_GET, self.ref)
        except ServiceError as error:
            if error.code is ErrorCode.NOT_FOUND:
                return None
            raise

    # Sources ----------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._source is not None

    @property
    def has_frames(self) -> bool:
        return self._source is not None and bool(self._source.payloads)

    async def listen(self) -> None:
        """Frames from now on, as they are said. Call this before the request, and no frame is missed."""
        source = _Source(self.wake)
        subject = frames_subject(VIEWER, self.ref.execution_id)
        source.subscription = await self._bus.nc.subscribe(subject, cb=source.receive)
        await self._change(source)

    async def replay(self) -> int | None:
        """Frames from the first that is still stored, then on as they come. How many are stored; None without a stream."""
        source = _Source(self.wake)
        inbox = self._bus.nc.new_inbox()
        try:
            source.subscription = await self._bus.nc.subscribe(inbox, cb=source.receive)
            # A plain push consumer: the frames are numbered, so the view itself notices whatever an ordered one would.
            info = await self._bus.js.add_consumer(
                FRAMES_STREAM.name,
                ConsumerConfig(
                    deliver_subject=inbox,
                    filter_subject=frames_subject(VIEWER, self.ref.execution_id),
                    deliver_policy=DeliverPolicy.ALL,
                    ack_policy=AckPolicy.NONE,
                    inactive_threshold=_FORGOTTEN_CONSUMER_S,
                    mem_storage=True,
                    num_replicas=1,
                ),
            )
        except (nats.errors.Error, TimeoutError) as error:
            log.info("replay_unavailable", error=type(error).__name__)
            await self._close(source)
            return None
        source.consumer = info.name
        await self._change(source)
        return info.num_pending or 0

    async def _change(self, source: _Source) -> None:
        former, self._source = self._source, source
        self.sequence.restart()
        await self._close(former)

    async def _close(self, source: _Source | None) -> None:
        """Both may be gone already, with the connection or with the server's memory."""
        if source is None or source.subscription is None:
            return
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await source.subscription.unsubscribe()
            if source.consumer is not None:
                await self._bus.js.delete_consumer(FRAMES_STREAM.name, source.consumer)

    def _arrived(self) -> list[Step]:
        assert self._source is not None
        payloads, self._source.payloads = self._source.payloads, []
        steps = [read_step(payload) for payload in payloads]
        return [step for step in steps if step is not None]

    # Following --------------------------------------------------------------------------------------------------------

    async def steps(
        self, reply: asyncio.Task[bytes] | None = None, *, ended: bool = False
    ) -> AsyncGenerator[list[Step], None]:
        """The steps to show, several at once when they came together, until the last; an empty list after 15 s of nothing.

        Ends early when the client is gone or has to move. `reply` is the pending answer to the request that started the run: an error
        in it counts when no last frame follows within a second. `ended`: the run is over, its frames cannot be far.
        """
        clock = asyncio.get_running_loop().time
        ask_at, comment_at = clock() + SILENCE_S, clock() + COMMENT_S
        settle_at = clock() + GRACE_S if ended else None
        while not (self.client.gone or self.must_move):
            if shown := self.sequence.take(self._arrived()):
                yield shown
                if self.sequence.ended:
                    return
                ask_at, comment_at = clock() + SILENCE_S, clock() + COMMENT_S
                continue
            if settle_at is None and reply is not None and reply.done():
                settle_at = clock() + GRACE_S
            if settle_at is not None and clock() >= settle_at and (ending := self._error_of(reply)):
                yield ending
                return
            if self._must_ask() or clock() >= min(ask_at, settle_at or ask_at):
                ending, pause_s = await self._ask()
                if ending:
                    yield ending
                    return
                ask_at = clock() + pause_s
                settle_at = None if settle_at is None else clock() + GRACE_S
            if clock() >= comment_at:
                yield []
                comment_at = clock() + COMMENT_S
            await self.wait(max(0, min(ask_at, comment_at, settle_at or ask_at) - clock()))

    def _must_ask(self) -> bool:
        """A gap is asked about once: where a replay does not close it, only a snapshot or the end will."""
        new_gap = self.sequence.broken and self._asked_behind != self.sequence.last
        if new_gap:
            self._asked_behind = self.sequence.last
        return self._doubt or new_gap

    def _error_of(self, reply: asyncio.Task[bytes] | None) -> list[Step]:
        """The last step out of an error reply. One that our own side made up counts only where no run is known."""
        error = reply.exception() if reply is not None and not reply.cancelled() else None
        if not isinstance(error, ServiceError):
            return []
        if error.code in {ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE} and not self._missing:
            return []
        return [failed_step(error.body, self.ref.execution_id, self.sequence.last + 1)]

    async def _ask(self) -> tuple[list[Step], float]:
        """The last steps if the run has ended, and else how long to wait before asking again."""
        outage, self._doubt, self.outage = self.outage, False, False
        try:
            self._missing, ending = await self._state()
        except ServiceError:
            # Whoever should answer may be reconnecting too.
            self.outage = outage
            return [], RETRY_S
        if ending:
            return ending, 0
        if (outage or self.sequence.broken) and await self.replay() is None and self._is_stored():
            await self.listen()
        return [], SILENCE_S

    async def _state(self) -> tuple[bool, list[Step]]:
        """Whether the executor knows of no such run, and its last steps if it has ended. Raises as `look`."""
        view = await self.look()
        if view is None or view.status not in TERMINAL_STATUSES:
            return view is None, []
        return False, last_steps(view, self.sequence.last, whole=self._whole)

    def _is_stored(self) -> bool:
        """After an outage a consumer may be gone with the server's memory; without a stream only live frames are left."""
        return self._source is not None and self._source.consumer is not None
