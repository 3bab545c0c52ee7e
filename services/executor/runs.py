"""A run from admission to receipt: call the upstream, pass on what comes, decide how it ended, commit, and only then tell.

Whatever happens to a run (an answer, a fault, a cancel, a lost lease, a shutdown) goes through `_end`, once. The caller
hears the end after it is committed; if somebody else ended the run first, the caller hears that end instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import structlog

from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import (
    Caller,
    Execute,
    ExecutionAccepted,
    ExecutionResult,
    MediaPart,
    RunReply,
    ServedModel,
    Started,
    Timing,
    Usage,
)
from services.executor.access import error_for_caller
from services.executor.calls import Calls, Run
from services.executor.endings import (
    EndedRun,
    EndStatus,
    ending_of,
    for_caller,
    interrupted,
    result_of,
    total_cost,
)
from services.executor.faults import Fault, UpstreamFailed
from services.executor.frames import Frames
from services.executor.limits import KeyLimits, cooldowns_of, refusal
from services.executor.metrics import ExecutorMetrics
from services.executor.normalise import Answer
from services.executor.preparation import Prepared, request_hash
from services.executor.pricing import cost_of
from services.executor.results import Results, cost_of_row
from services.executor.slots import Slots
from services.executor.store import Ending, Execution, Store
from services.runtime.bus import Bus

log = structlog.get_logger()

_NO_USAGE = Usage()

_COMMIT_PATIENCE_S = 120.0
_REMEMBER_CANCEL_S = 60.0
_MOST_REMEMBERED = 10_000


class Runner:
    """All runs of this process."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        calls: Calls,
        results: Results,
        slots: Slots,
        metrics: ExecutorMetrics,
        limits: KeyLimits,
        max_running: int,
    ) -> None:
        self._bus = bus
        self._store = store
        self._calls = calls
        self._results = results
        self._slots = slots
        self._metrics = metrics
        self._limits = limits
        self._max_running = max_running
        metrics.slots.set(max_running)
        self.runs: dict[UUID, Run] = {}
        self._tasks: set[asyncio.Task[RunReply]] = set()
        self._canceled_early: dict[tuple[UUID, Caller], float] = {}
        self.at_end: list[Callable[[], None]] = []
        """Called whenever a run ends here: a slot may be free, a message may be waiting."""

    # Beginning --------------------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        return len(self.runs) < self._max_running

    def check_room(self) -> None:
        """Raises OVERLOADED (scope instance) when this process has enough to do: another one may not."""
        if not self.has_room():
            raise ServiceError(
                ErrorCode.OVERLOADED,
                "Too many runs are under way here at the moment; try again.",
                retry_after_s=1,
                scope="instance",
            )

    async def run(self, prepared: Prepared) -> RunReply:
        """Admit and run, or find the run that the same request made before. Raises the error that the run ended with."""
        self.check_room()
        # Whoever waits may give up in mid-admission; the row that is being written must still find its run.
        return await asyncio.shield(self._track(self._admit_and_run(prepared)))

    async def _admit_and_run(self, prepared: Prepared) -> RunReply:
        token = uuid4()
        row = prepared.as_row()
        asked_s = time.monotonic()
        caller, cooling = prepared.execute.caller, cooldowns_of(prepared.resource)
        admission = await self._slots.admit(
            row.owner,
            caller,
            lambda: self._store.admit(
                row,
                mode=prepared.lease.mode,
                running_per_key=self._limits.running,
                executor=self._bus.instance,
                lease_token=token,
                rates=self._limits.rates,
                hold=prepared.hold,
                cooling=cooling,
            ),
        )
        if admission.outcome == "conflict":
            raise conflicting_request()
        if admission.outcome == "existing":
            return await self.reply_of(admission.execution_id)
        if admission.outcome != "admitted":
            self._metrics.refused.labels(admission.outcome).inc()
            raise refusal(admission, row.owner, caller, prepared.hold)
        queued_ms = round((time.monotonic() - asked_s) * 1000)
        return await self.begin(prepared, token, queued_ms)

    def begin(self, prepared: Prepared, token: UUID, queued_ms: int) -> asyncio.Task[RunReply]:
        """Start a run whose row is running under `token`. The task outlives whoever waits for it."""
        frames = Frames(self._bus.nc, prepared.execute.viewer, prepared.id, self._metrics.frames_lost)
        run = Run(prepared.id, token, prepared, frames, queued_ms, time.monotonic())
        self.runs[token] = run
        self._metrics.slots_in_use.inc()
        if self._canceled_early.pop((prepared.id, prepared.execute.caller), 0) > time.monotonic():
            run.stop("canceled")
        return self._track(self._perform(run))

    def _track(self, work: Coroutine[Any, Any, RunReply]) -> asyncio.Task[RunReply]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Nobody may be waiting any more, or ever have been; the error is on the receipt.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def find_same(self, execute: Execute) -> Execution | None:
        """The run that this request made when it was sent before."""
        return await self._store.find_same(
            execute.execution_id, execute.caller, execute.idempotency_key, request_hash(execute)
        )

    async def reply_of(self, execution_id: UUID) -> RunReply:
        """How a run stands, as the answer to a repeated request."""
        row = await self._store.get(execution_id)
        if row is None:
            raise ServiceError(ErrorCode.NOT_FOUND, "There is no such run.")
        return self._reply(row)

    def _reply(self, row: Execution) -> RunReply:
        if row.status in ("queued", "running"):
            return ExecutionAccepted(execution_id=row.id, status=row.status)
        if row.error is not None:
            caller = Caller(kind=row.caller_kind, id=row.caller_id)
            raise ServiceError.from_body(error_for_caller(ErrorBody.model_validate(row.error), row.owner, caller))
        result = self._results.open(row)
        if result is None:
            return ExecutionAccepted(execution_id=row.id, status=row.status, output_expired=True, cost=cost_of_row(row))
        return result

    # Stopping ---------------------------------------------------------------------------------------------------------

    def cancel(self, execution_id: UUID, caller: Caller) -> bool:
        """Stop this caller's run if it is one of ours."""
        for run in self.runs.values():
            if run.id == execution_id and run.prepared.execute.caller == caller:
                run.stop("canceled")
                return True
        return False

    def cancel_early(self, execution_id: UUID, caller: Caller) -> None:
        """The caller left before the run was admitted; should it be admitted here after all, it ends at once."""
        now = time.monotonic()
        remembered = self._canceled_early
        remembered[execution_id, caller] = now + _REMEMBER_CANCEL_S
        # The oldest are in front: anybody may cancel ids that nobody has, and that must stay cheap.
        while remembered and (len(remembered) > _MOST_REMEMBERED or next(iter(remembered.values())) < now):
            del remembered[next(iter(remembered))]

    async def wait_until_idle(self) -> None:
        """For a shutdown: every run of this process has ended."""
        if self._tasks:
            log.info("waiting_for_runs", runs=len(self._tasks))
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send_snapshots(self) -> None:
        """After a reconnect: frames may have been lost, so every viewer gets all there is so far."""
        for run in list(self.runs.values()):
            # The number of a last frame is committed before it is sent: nothing may come between.
            if not run.ending:
                await run.frames.snapshot()

    # Running ----------------------------------------------------------------------------------------------------------

    async def _perform(self, run: Run) -> RunReply:
        structlog.contextvars.bind_contextvars(execution_id=str(run.id))
        try:
            await run.frames.send("started", Started(execution_id=run.id, model=run.prepared.resource.config.model_id))
            run.calling = asyncio.create_task(self._calls.make(run))
            if run.stop_reason is not None:
                run.calling.cancel()
            answer, fault = await self._answer_of(run)
            return await self._end(run, answer, fault)
        finally:
            self.runs.pop(run.token, None)
            self._metrics.slots_in_use.dec()
            self._slots.freed(run.prepared.resource.owner)
            for tell in self.at_end:
                tell()

    async def _answer_of(self, run: Run) -> tuple[Answer | None, Fault | None]:
        """What came of the call: an answer (perhaps part of one) and, if it failed, why."""
        assert run.calling is not None
        try:
            answer = await run.calling
        except UpstreamFailed as failed:
            return self._partial(run), failed.fault
        except asyncio.CancelledError:
            if run.stop_reason is None:  # this process is being torn down around us
                run.stop_reason = "interrupted"
            return self._partial(run), None
        except ServiceError as error:
            return self._partial(run), Fault(error.code, error.body.message)
        except Exception as error:
            log.exception("run_failed", error=type(error).__name__)
            return self._partial(run), Fault(
                ErrorCode.INTERNAL,
                "Something went wrong on our side while this ran. Try again; if it lasts, report it.",
                billed="maybe",
            )
        return answer, answer.fault

    def _partial(self, run: Run) -> Answer | None:
        return run.normaliser.finish() if run.normaliser is not None else None

    # Ending -----------------------------------------------------------------------------------------------------------

    async def _end(self, run: Run, answer: Answer | None, fault: Fault | None) -> RunReply:
        """Decide, commit, tell."""
        run.upstream_until_s = run.upstream_until_s or time.monotonic()
        status: EndStatus = run.stop_reason or ("succeeded" if fault is None else "failed")
        if status in ("canceled", "interrupted"):
            fault = None
        if run.normaliser is not None:  # between two calls there is none to close
            self._calls.close(run, run.attempts[-1], answer, fault, status)
        error = self._error(run, status, fault)
        ended = self._ended_run(run, status, error, answer)
        result = result_of(ended, answer, run.stored) if error is None else None
        run.ending = True
        keep = self._results.keep_of(needed=run.prepared.result_needed)
        ending = ending_of(
            ended,
            last_seq=run.frames.seq + 1,
            result=self._results.lock(result, keep) if result is not None else None,
            keep=keep,
            media=[part.url.rpartition("/")[2] for part in run.stored.values() if isinstance(part, MediaPart)],
        )
        row = await self._commit(run, ending)
        if row is not None:
            # Somebody else ended it first; theirs is the end that counts, and what they wrote is what is told.
            return await self._tell_other_end(run, row)
        self._count(run, ended)
        if error is not None:
            told = error_for_caller(error, ended.owner, ended.caller)
            await run.frames.send("failed", told)
            raise ServiceError.from_body(told)
        assert result is not None
        shown = for_caller(result, ended.owner, ended.caller)
        await run.frames.send("completed", shown)
        return shown

    def _error(self, run: Run, status: EndStatus, fault: Fault | None) -> ErrorBody | None:
        truncated = run.normaliser is not None and run.normaliser.delivered
        if status == "interrupted":
            return interrupted(run.id).model_copy(update={"truncated": truncated})
        if fault is None:
            return None
        return fault.error(run.id).body.model_copy(update={"truncated": truncated})

    def _ended_run(self, run: Run, status: EndStatus, error: ErrorBody | None, answer: Answer | None) -> EndedRun:
        resource, prepared = run.prepared.resource, run.prepared
        model_usd, cost_status = total_cost(run.attempts)
        text_delivered = run.normaliser is not None and run.normaliser.text_seen
        first = run.first_output_s
        return EndedRun(
            id=run.id,
            owner=resource.owner,
            caller=prepared.execute.caller,
            payment=None,
            mode=prepared.lease.mode,
            resource_id=resource.resource_id,
            resource_version=resource.version,
            pricing=resource.pricing,
            status=status,
            error=error,
            truncated=_is_truncated(status, error, answer, text_delivered=text_delivered),
            model=ServedModel(
                requested=resource.config.model_id,
                served=answer.served if answer else None,
                provider=answer.provider if answer else None,
            ),
            usage=answer.usage if answer else _NO_USAGE,
            cost=cost_of(
                resource.pricing, status, text_delivered=text_delivered, model_usd=model_usd, cost_status=cost_status
            ),
            attempts=[attempt.as_contract() for attempt in run.attempts],
            timing=Timing(
                queued_ms=run.queued_ms,
                first_token_ms=None if first is None else round((first - run.begun_s) * 1000),
                total_ms=round((time.monotonic() - run.begun_s) * 1000) + run.queued_ms,
            ),
            created_at=prepared.received_at,
            finished_at=datetime.now(UTC),
        )

    async def _commit(self, run: Run, ending: Ending) -> Execution | None:
        """Write the end. None when it is ours; the row when the run had been ended by somebody else.

        The call is over and has its price: while the database is away there is nothing better to do than to wait for it.
        Our lease cannot be renewed meanwhile either, and the reaper gives it a whole lease once the database is back.
        """
        give_up_s = time.monotonic() + _COMMIT_PATIENCE_S
        delay_s = 0.1
        while True:
            try:
                if await self._store.finish(run.id, run.token, ending):
                    return None
                return await self._ended_by(run, ending)
            except ServiceError as error:
                if error.code is not ErrorCode.UNAVAILABLE or time.monotonic() > give_up_s:
                    log.exception("receipt_not_written", execution_id=str(run.id))
                    raise
                log.warning("receipt_waits_for_database", execution_id=str(run.id))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 2.0)

    async def _ended_by(self, run: Run, ending: Ending) -> Execution | None:
        """Our update found nothing to end: perhaps an earlier try of ours was committed and its answer lost."""
        row = await self._store.get(run.id)
        assert row is not None
        ours = row.lease_token == run.token and row.status == ending.status and row.last_seq == ending.last_seq
        return None if ours else row

    async def _tell_other_end(self, run: Run, row: Execution) -> RunReply:
        try:
            reply = self._reply(row)
        except ServiceError as error:
            await run.frames.send("failed", error.body)
            raise
        if isinstance(reply, ExecutionResult):
            await run.frames.send("completed", for_caller(reply, row.owner, run.prepared.execute.caller))
        return reply

    def _count(self, run: Run, ended: EndedRun) -> None:
        metrics = self._metrics
        code = ended.error.code.value if ended.error is not None else "ok"
        metrics.executions.labels(ended.status, code).inc()
        now = time.monotonic()
        metrics.seconds.labels(ended.status).observe(now - run.begun_s + run.queued_ms / 1000)
        if run.first_output_s is not None:
            metrics.first_token_seconds.observe(run.first_output_s - run.begun_s)
        if run.upstream_from_s is not None and run.upstream_until_s is not None:
            metrics.overhead_seconds.observe(now - run.begun_s - (run.upstream_until_s - run.upstream_from_s))
        for kind in ("prompt", "completion", "reasoning", "cached"):
            metrics.tokens.labels(kind).inc(getattr(ended.usage, f"{kind}_tokens") or 0)
        hold = run.prepared.hold
        if hold is not None and ended.cost.model_usd is not None and ended.cost.model_usd > hold.usd:
            metrics.ceilings_exceeded.inc()
            log.error("ceiling_exceeded", held_usd=str(hold.usd), cost_usd=str(ended.cost.model_usd))
        metrics.count_money(ended.cost.model_usd, ended.cost.price_usd)
        unknown = sum(attempt.cost_status == "unknown" for attempt in ended.attempts)
        if unknown:
            metrics.cost_unknown.inc(unknown)
            log.error("cost_unknown", attempts=unknown)
        log.info(
            "executed", status=ended.status, code=code, total_ms=ended.timing.total_ms, attempts=len(ended.attempts),
            cost_status=ended.cost.status, mode=ended.mode,
        )  # fmt: skip


def conflicting_request() -> ServiceError:
    return ServiceError(
        ErrorCode.CONFLICT,
        "This Idempotency-Key or execution id was used with another request; send a new one.",
    )


def _is_truncated(status: EndStatus, error: ErrorBody | None, answer: Answer | None, *, text_delivered: bool) -> bool:
    """Of a canceled run this says whether there was text: a price that is settled later depends on it."""
    if error is not None:
        return error.truncated
    if status == "canceled":
        return text_delivered
    return answer is not None and answer.truncated
