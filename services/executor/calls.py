"""The calls of a run: ask the upstream, pass on what comes, and ask again where that is free of charge.

What arrives together leaves together: what one read from the upstream brings becomes one frame, without ever waiting for
more. Once anything was delivered, a failed call is the end of the run.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import structlog

from contracts.errors import ErrorCode
from contracts.execution import OutputPart
from services.executor.cooldowns import Cooldowns
from services.executor.endings import AttemptRecord, EndStatus
from services.executor.faults import Fault, UpstreamFailed, withheld
from services.executor.frames import Frames
from services.executor.generations import GenerationNotes
from services.executor.leases import KeyLeases
from services.executor.limits import cooldowns_of
from services.executor.lines import Splitter
from services.executor.media import MediaStore
from services.executor.metrics import ExecutorMetrics
from services.executor.normalise import Answer, Delta, Normaliser, Output, Reasoning, Text
from services.executor.parts import RawMedia
from services.executor.preparation import Prepared
from services.executor.retries import MAX_ATTEMPTS, delay_before_retry
from services.executor.store import Store
from services.executor.upstream import Deadlines, Upstream
from services.runtime.trace import traceparent

log = structlog.get_logger()

StopReason = Literal["canceled", "interrupted"]


@dataclass
class Run:
    """A run of this process."""

    id: UUID
    token: UUID
    prepared: Prepared
    frames: Frames
    queued_ms: int
    begun_s: float
    attempts: list[AttemptRecord] = field(default_factory=list)
    normaliser: Normaliser | None = None
    stored: dict[RawMedia, OutputPart] = field(default_factory=dict)
    calling: asyncio.Task[Answer] | None = None
    stop_reason: StopReason | None = None
    ending: bool = False
    first_output_s: float | None = None
    upstream_from_s: float | None = None
    upstream_until_s: float | None = None

    def stop(self, reason: StopReason) -> None:
        """Close the upstream call now, in whatever phase it is; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            if self.calling is not None:
                self.calling.cancel()


class Calls:
    """Makes the upstream calls of runs."""

    def __init__(
        self,
        store: Store,
        leases: KeyLeases,
        upstream: Upstream,
        generations: GenerationNotes,
        cooldowns: Cooldowns,
        metrics: ExecutorMetrics,
        media: MediaStore,
    ) -> None:
        self._store = store
        self._cooldowns = cooldowns
        self._leases = leases
        self._upstream = upstream
        self._generations = generations
        self._metrics = metrics
        self._media = media

    async def make(self, run: Run) -> Answer:
        """Call the upstream until it answers, fails for good, or has delivered something."""
        end_at_s = asyncio.get_running_loop().time() + run.prepared.resource.timeouts.total_s
        run.upstream_from_s = time.monotonic()
        cooling = cooldowns_of(run.prepared.resource)
        fault: Fault | None = None
        while True:
            number = len(run.attempts) + 1
            if fault is not None and not await self._store.begin_attempt(run.id, number, cooling):
                raise UpstreamFailed(fault)
            attempt = AttemptRecord(number, datetime.now(UTC))
            run.attempts.append(attempt)
            answer: Answer | None = None
            try:
                answer = await self._attempt(run, attempt, end_at_s)
                fault = answer.fault or nothing_answered(answer, number)
            except UpstreamFailed as failed:
                fault = failed.fault
                attempt.generation_id = attempt.generation_id or failed.generation_id
                attempt.http_status = attempt.http_status or fault.upstream_status
            assert run.normaliser is not None
            delay_s = None
            # What was billed is not asked for again: daily limits hold the price of one answer.
            billed = answer is not None and bool(answer.cost_usd)
            if fault is not None and not run.normaliser.delivered and not billed and number < MAX_ATTEMPTS:
                delay_s = delay_before_retry(fault, number, end_at_s - asyncio.get_running_loop().time())
            # A provider's limit often passes with the next try; one that says how long it lasts is believed at once.
            if fault is not None and (fault.cools != "model" or fault.retry_after_s is not None or delay_s is None):
                await self._cooldowns.note(run.prepared, fault)
            if fault is None or delay_s is None:
                run.upstream_until_s = time.monotonic()
                if answer is None or (fault is not None and answer.fault is None):
                    assert fault is not None
                    raise UpstreamFailed(fault)
                return answer
            log.info("attempt_failed", number=number, code=fault.code.value, retry_in_s=round(delay_s, 3))
            self.close(run, attempt, answer or run.normaliser.finish(), fault, "failed")
            run.normaliser = None
            await asyncio.sleep(delay_s)

    async def _attempt(self, run: Run, attempt: AttemptRecord, end_at_s: float) -> Answer:
        request, lease = run.prepared.request, run.prepared.lease
        loop = asyncio.get_running_loop()
        audio = request.body.get("audio")
        audio_format = audio.get("format") if isinstance(audio, dict) else None
        splitter = Splitter()
        normaliser = run.normaliser = Normaliser(audio_format if isinstance(audio_format, str) else None)
        deadlines = Deadlines(run.prepared.resource.timeouts, loop.time(), end_at_s)
        async with self._upstream.open(
            lease.mode, lease.api_key, request.body, deadlines, traceparent.get(), request.attachments
        ) as call:
            attempt.http_status = call.status
            self._note_generation(run, attempt, call.generation_id)
            while not normaliser.done and (chunk := await call.next()) is not None:
                deltas = [delta for frame in splitter.feed(chunk) for delta in normaliser.feed(frame)]
                if deltas:
                    deadlines.note_content(loop.time())
                    await self._deliver(run, deltas)
                if attempt.generation_id is None:
                    self._note_generation(run, attempt, normaliser.generation_id)
                if normaliser.ended:
                    deadlines.note_end(loop.time())
            deltas = [delta for frame in splitter.finish() for delta in normaliser.feed(frame)]
        answer = normaliser.finish()
        await self._deliver(run, [*deltas, *answer.deltas])
        attempt.generation_id = attempt.generation_id or answer.generation_id
        return answer

    def _note_generation(self, run: Run, attempt: AttemptRecord, generation_id: str | None) -> None:
        if generation_id is not None:
            attempt.generation_id = generation_id
            self._generations.note(run.id, attempt.number, generation_id)

    async def _deliver(self, run: Run, deltas: list[Delta]) -> None:
        """What came together leaves together: neighbouring pieces of text become one frame."""
        if deltas and run.first_output_s is None:
            run.first_output_s = time.monotonic()
        text: list[str] = []
        reasoning: list[str] = []

        async def flush() -> None:
            if reasoning:
                await run.frames.reasoning("".join(reasoning))
                reasoning.clear()
            if text:
                await run.frames.text("".join(text))
                text.clear()

        for delta in deltas:
            if isinstance(delta, Text):
                text.append(delta.text)
            elif isinstance(delta, Reasoning):
                if text:
                    await flush()
                reasoning.append(delta.text)
            else:
                await flush()
                await run.frames.output(await self._part(run, delta))
        await flush()

    async def _part(self, run: Run, delta: Output) -> OutputPart:
        if not isinstance(delta, RawMedia):
            return delta
        part = run.stored[delta] = await self._media.store(delta)
        return part

    def close(
        self, run: Run, attempt: AttemptRecord, answer: Answer | None, fault: Fault | None, status: EndStatus
    ) -> None:
        """Decide what is known of a call at its end."""
        self._generations.forget(attempt.generation_id)
        attempt.status = status
        cost_usd = answer.cost_usd if answer is not None else None
        if fault is not None:
            attempt.code = fault.code
            self._metrics.upstream_errors.labels(fault.code.value).inc()
            match fault.code:
                case ErrorCode.KEY_REJECTED | ErrorCode.CREDITS_EXHAUSTED | ErrorCode.SPEND_LIMIT if fault.health:
                    self._leases.doubt(run.prepared.resource.owner, run.prepared.lease.version, fault.code)
        attempt.settle(cost_usd, billed=fault.billed if fault is not None else "maybe")


def nothing_answered(answer: Answer, number: int) -> Fault | None:
    """A `stop` without a single token happens on cold starts and is not billed: once more usually helps. One that was
    billed (hidden thoughts, say), or of which we do not know, is not asked for again."""
    if not answer.empty or answer.finish_reason == "length":
        return None
    if answer.finish_reason == "content_filter":
        return withheld()
    free = answer.cost_usd == 0 and not answer.usage.completion_tokens
    return Fault(
        ErrorCode.UPSTREAM,
        "The model answered with nothing at all. Try again.",
        retry=free and number == 1,
        retry_after_s=0 if free else None,
        billed="maybe",
    )
