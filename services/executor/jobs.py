"""Jobs are rows. The stream is only the inbox: what is published there becomes a queued row, and is acknowledged after
that row is committed. Executors claim rows where the creator's key has a free slot, callers of one key in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import Caller, CallerReceipt, Execute, ExecuteRequest, ExecutionAccepted
from contracts.keys import Mode
from contracts.subjects import JOBS_STREAM, publisher_of
from services.executor.access import error_for_caller
from services.executor.dead_letters import MOST_TRIES, DeadLetters, pause_s
from services.executor.endings import EndStatus, ended_row, ending_of, finished_for, for_caller, result_of
from services.executor.frames import Frames
from services.executor.limits import KeyLimits, is_limited, refusal
from services.executor.metrics import ExecutorMetrics
from services.executor.preparation import Preparation, Prepared
from services.executor.results import Results
from services.executor.runs import Runner, conflicting_request
from services.executor.store import Execution, Store
from services.runtime.bus import Bus, parse
from services.runtime.health import Health

log = structlog.get_logger()

_CONSUMER = "executor"
_FETCH = 20
_LOOK_AGAIN_S = 1.0
TRANSIENT = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.INTERNAL})
"""Codes for which nobody outside can do anything: the job is tried again."""
_JOB_IDS = UUID("7c0d6c1e-9d0e-5c3b-8f53-8e2b6f0f4a11")


class Jobs:
    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        preparation: Preparation,
        runner: Runner,
        results: Results,
        letters: DeadLetters,
        metrics: ExecutorMetrics,
        health: Health,
        limits: KeyLimits,
        outgoing: asyncio.Event,
    ) -> None:
        self._bus = bus
        self._store = store
        self._preparation = preparation
        self._runner = runner
        self._results = results
        self._letters = letters
        self._metrics = metrics
        self._health = health
        self._limits = limits
        self._outgoing = outgoing
        self._wake = asyncio.Event()
        self._jobs_wait = True

    # Accepting --------------------------------------------------------------------------------------------------------

    async def enqueue(self, execute: Execute, *, needed: bool = False) -> ExecutionAccepted:
        """Commit a run to be done later. `needed`: a workflow goes on with its result, which is kept for that whatever else is.

        Raises ServiceError for every reason not to.
        """
        try:
            prepared = await self._preparation.prepare(execute)
        except ServiceError:
            # What was accepted once stays accepted, also when it would be refused today.
            earlier = await self._runner.find_same(execute)
            if earlier is None:
                raise
            return ExecutionAccepted(execution_id=earlier.id, status=earlier.status)
        locked = self._results.lock_job(prepared.id, execute, prepared.resource, needed=needed)
        admission = await self._store.enqueue(
            prepared.as_row(), mode=prepared.lease.mode, job=locked.blob, job_key_id=locked.key_id, hold=prepared.hold
        )
        if admission.outcome == "conflict":
            raise conflicting_request()
        if admission.outcome == "budget":
            self._metrics.refused.labels(admission.outcome).inc()
            raise refusal(admission, prepared.resource.owner, execute.caller, prepared.hold)
        self._wake.set()
        earlier = await self._store.get(admission.execution_id) if admission.outcome == "existing" else None
        return ExecutionAccepted(execution_id=admission.execution_id, status=earlier.status if earlier else "queued")

    async def take_in(self) -> None:
        """Background work: empty the inbox into rows."""
        subscription = await self._bus.js.pull_subscribe(
            "",
            durable=_CONSUMER,
            stream=JOBS_STREAM.name,
            config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_deliver=-1, max_ack_pending=1000),
        )
        try:
            while not self._health.stopping:
                try:
                    messages = await subscription.fetch(_FETCH, timeout=1)
                except TimeoutError:  # the client's own kind of it, and sometimes the plain one
                    continue
                await asyncio.gather(*(self._accept(message) for message in messages))
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _accept(self, message: Msg) -> None:
        """One submitted job: a row, a refusal that is told in `finished`, or a later redelivery."""
        publisher = publisher_of(message.subject)
        try:
            await self.enqueue(execute_as(publisher, parse(ExecuteRequest, message.data), _id_of(message)))
        except ServiceError as error:
            if error.code in TRANSIENT:
                await self._later(message, error)
                return
            if not _is_object(message.data):
                await self._letters.note_unreadable(_id_of(message), message)
            await self.refuse(publisher, _claimed_id(message.data) or _id_of(message), error.body, _id_of(message))
        except Exception as error:
            # One message that nobody foresaw must not stop the intake of all others.
            log.exception("job_not_accepted", error=type(error).__name__)
            await self._later(message, _our_fault())
            return
        else:
            self._metrics.jobs_accepted.inc()
        await message.ack()

    async def _later(self, message: Msg, error: ServiceError) -> None:
        """Have it delivered again after a pause, or put it aside where that was done often enough."""
        tries = message.metadata.num_delivered
        if tries >= MOST_TRIES:
            letter_id = _id_of(message)
            with contextlib.suppress(ServiceError):  # nobody to keep it: then it stays where it is
                await self._letters.keep_message(letter_id, _claimed_id(message.data) or letter_id, message, error)
                await message.ack()
                return
        await message.nak(delay=pause_s(tries))

    async def refuse(self, publisher: str, execution_id: UUID, error: ErrorBody, message_id: UUID) -> None:
        """Tell a publisher how a job ended that never became a run."""
        log.info("job_refused", execution_id=str(execution_id), code=error.code.value)
        refusal = CallerReceipt(
            execution_id=execution_id,
            revision=1,
            status="failed",
            resource_id=None,
            resource_version=None,
            mode=None,
            price_usd=None,
            error=error.model_copy(update={"execution_id": execution_id}),
            finished_at=datetime.now(UTC),
        )
        # The id may be that of an earlier run; this refusal must not be taken for a repetition of its message.
        await self._store.publish_later([replace(finished_for(publisher, refusal), message_id=f"refused:{message_id}")])
        self._outgoing.set()

    # Running ----------------------------------------------------------------------------------------------------------

    def slot_freed(self) -> None:
        """A run has ended here. Where no job waits, as is usual, that is no reason to ask the database."""
        if self._jobs_wait:
            self._wake.set()

    def look_again(self) -> None:
        """Something was queued that this process did not queue."""
        self._wake.set()

    async def work(self) -> None:
        """Background work: claim queued runs while there is room, woken by a new job, by the end of a run, or after a second."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._wake.wait()
            self._wake.clear()
            while not self._health.stopping and self._runner.has_room() and (row := await self._claim()) is not None:
                if not await self._begin(row):
                    break
            self._jobs_wait = await self._store.has_queued()

    async def _claim(self) -> Execution | None:
        return await self._store.claim(
            running_per_key=self._limits.running,
            executor=self._bus.instance,
            lease_token=uuid4(),
            rates=self._limits.rates,
        )

    async def _begin(self, row: Execution) -> bool:
        """Start a claimed run, or end it where it cannot start any more (the key is gone, say).

        False when nothing can start for the moment: an accepted run waits for a part that is restarting.
        """
        assert row.lease_token is not None
        try:
            execute, resource, needed = self._results.open_job(row)
        except ServiceError as error:
            await self._put_aside(row, error, at_once=True)
            return True
        try:
            prepared = await self._preparation.resume(execute, resource, row.created_at)
            prepared = replace(prepared, id=row.id, result_needed=needed)
            check_mode(prepared, row.mode)
        except asyncio.CancelledError:
            await self._store.put_back(row.id, row.lease_token)
            raise
        except ServiceError as error:
            if error.code in TRANSIENT:
                await self._put_aside(row, error)
                return False
            await self.end_unbegun(
                row, row.lease_token, "failed", error.body.model_copy(update={"execution_id": row.id})
            )
            return True
        except Exception as error:
            log.exception("job_not_begun", execution_id=str(row.id), error=type(error).__name__)
            await self._put_aside(row, _our_fault())
            return True
        queued_ms = round((datetime.now(UTC) - row.created_at).total_seconds() * 1000)
        self._runner.begin(prepared, row.lease_token, queued_ms)
        return True

    async def _put_aside(self, row: Execution, error: ServiceError, *, at_once: bool = False) -> None:
        """Have a claimed job wait, unless its end was asked for meanwhile."""
        assert row.lease_token is not None
        if not await self._letters.postpone(row, error, at_once=at_once):
            await self.end_unbegun(row, row.lease_token, "canceled", None)

    async def end_unbegun(self, row: Execution, token: UUID, status: EndStatus, error: ErrorBody | None) -> None:
        """End a run that never reached upstream: nothing was billed."""
        ended = ended_row(row, [], status, error)
        result = None if error is not None else result_of(ended, None, {})
        locked = self._results.lock(result, self._results.keep) if result is not None else None
        if await self._store.finish(
            row.id, token, ending_of(ended, last_seq=1, result=locked, keep=self._results.keep)
        ):
            frames = Frames(self._bus.nc, row.viewer, row.id, self._metrics.frames_lost)
            if error is not None:
                await frames.send("failed", error_for_caller(error, ended.owner, ended.caller))
            elif result is not None:
                await frames.send("completed", for_caller(result, ended.owner, ended.caller))
        self._outgoing.set()

    async def cancel_queued(self, row: Execution) -> bool:
        """A queued run is made ours without a slot, and ended; False when somebody else has just claimed it."""
        token = uuid4()
        taken = await self._store.take_queued(row.id, executor=self._bus.instance, lease_token=token)
        if taken:
            await self.end_unbegun(row, token, "canceled", None)
        return taken

    async def end_waiting(self, execution_id: UUID, error: ErrorBody) -> None:
        """End a job that waited for too long."""
        row, token = await self._store.get(execution_id), uuid4()
        if row is not None and await self._store.take_queued(
            execution_id, executor=self._bus.instance, lease_token=token
        ):
            await self.end_unbegun(row, token, "failed", error)


def check_mode(prepared: Prepared, accepted: Mode) -> None:
    """Daily limits count test and live runs apart, and what a job holds is held where it was accepted."""
    resource, caller = prepared.resource, prepared.execute.caller
    if prepared.lease.mode != accepted and is_limited(resource.budgets, resource.owner, caller):
        raise ServiceError(
            ErrorCode.CONFLICT,
            "The key behind this resource was changed between test and live after this was accepted; send it again.",
        )


def execute_as(publisher: str, request: ExecuteRequest, default_id: UUID) -> Execute:
    """What a publisher asks for, with the caller that its subject names. Raises INVALID when it names no resource."""
    if request.resource is None:
        raise ServiceError(ErrorCode.INVALID, "Name the resource to run, by id or as owner/slug.")
    return Execute(
        **request.model_dump(exclude={"execution_id"}),
        execution_id=request.execution_id or default_id,
        caller=Caller(kind="service", id=publisher),
        viewer=publisher,
    )


def _id_of(message: Msg) -> UUID:
    """An id for a job that came without one: the same at every redelivery."""
    return uuid5(_JOB_IDS, f"{message.metadata.stream}:{message.metadata.sequence.stream}:{message.metadata.timestamp}")


def _our_fault() -> ServiceError:
    return ServiceError(ErrorCode.INTERNAL, "Something went wrong on our side before the job began; the log says what.")


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(orjson.loads(data), dict)
    except orjson.JSONDecodeError:
        return False


def _claimed_id(data: bytes) -> UUID | None:
    """The execution id of a job that is otherwise not valid, so that its sender can tell which one was refused."""
    try:
        return UUID(orjson.loads(data)["execution_id"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
