"""What operators do about dead letters, and what becomes of those that nobody looks after.

Only what has not begun can be requeued, so nothing is paid twice: a job is queued again with its frozen price, a message is
read as if it had just come. Both keep their execution id, and requeueing twice is requeueing once.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from contracts.dead_letters import DeadLetter, DeadLetterPage, ListDeadLetters, RequeueDeadLetter
from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.execution import Caller, ExecuteRequest
from services.executor.dead_letter_store import DeadLetterStore, Letter
from services.executor.dead_letters import KEPT, KEPT_WAITING
from services.executor.jobs import TRANSIENT, Jobs, execute_as
from services.executor.metrics import ExecutorMetrics
from services.executor.results import Results
from services.executor.store import Store
from services.runtime.bus import parse

log = structlog.get_logger()

_RELEASE_EVERY_S = 1.0
_COUNT_EVERY_S = 10.0
_CLEAN_EVERY_S = 300.0
_AT_ONCE = 50


class Requeue:
    def __init__(
        self, letters: DeadLetterStore, store: Store, results: Results, jobs: Jobs, metrics: ExecutorMetrics
    ) -> None:
        self._letters = letters
        self._store = store
        self._results = results
        self._jobs = jobs
        self._metrics = metrics

    # Operators --------------------------------------------------------------------------------------------------------

    async def list(self, request: ListDeadLetters) -> DeadLetterPage:
        """Latest first."""
        letters = await self._letters.page(
            status=request.status, before=_cursor(request.cursor), limit=request.limit + 1
        )
        shown = letters[: request.limit]
        return DeadLetterPage(
            items=[_shown(letter) for letter in shown],
            next_cursor=str(shown[-1].number) if len(letters) > request.limit else None,
        )

    async def requeue(self, request: RequeueDeadLetter) -> DeadLetter:
        """Raises NOT_FOUND, or CONFLICT with a sentence that says why it cannot be carried out any more."""
        letter = await self._letters.get(request.id)
        if letter is None:
            raise ServiceError(ErrorCode.NOT_FOUND, "There is no such dead letter.")
        if letter.status == "ended":
            raise ServiceError(ErrorCode.CONFLICT, _why_over(letter))
        if letter.status == "waiting":
            if letter.kind == "job":
                await self._requeue_job(letter, request.requested_by)
            else:
                await self._requeue_message(letter, request.requested_by)
            log.info("dead_letter_requeued", execution_id=str(letter.execution_id))
            letter = await self._letters.get(request.id)
            assert letter is not None
        return _shown(letter)

    async def _requeue_job(self, letter: Letter, by: str) -> None:
        row = await self._store.get(letter.id)
        if row is not None and row.job is not None:
            try:
                self._results.open_job(row)
            except ServiceError as error:
                raise ServiceError(ErrorCode.CONFLICT, f"It still cannot be carried out. {error}") from None
        await self._letters.requeue_job(letter.id, by)
        self._jobs.look_again()

    async def _requeue_message(self, letter: Letter, by: str) -> None:
        assert letter.execution_id is not None
        try:
            payload = self._results.open_message(letter.id, letter.payload_key_id, letter.payload)
        except ServiceError as error:
            raise ServiceError(ErrorCode.CONFLICT, f"It still cannot be carried out. {error}") from None
        try:
            request = parse(ExecuteRequest, payload)
            await self._jobs.enqueue(execute_as(letter.caller_id, request, letter.execution_id))
        except ServiceError as error:
            if error.code in TRANSIENT:
                raise
            await self._jobs.refuse(letter.caller_id, letter.execution_id, error.body, letter.id)
            await self._letters.close_message(letter.id, None)
            raise ServiceError(ErrorCode.CONFLICT, f"It was refused now, and its publisher was told: {error}") from None
        await self._letters.close_message(letter.id, by)

    # Time -------------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Background work: queue again what has waited long enough, count letters, end those that nobody looked after."""
        count_at_s = clean_at_s = 0.0
        while True:
            if await self._letters.release():
                self._jobs.look_again()
            now_s = time.monotonic()
            if now_s >= count_at_s:
                self._metrics.dead_letters.set(await self._letters.count_waiting())
                count_at_s = now_s + _COUNT_EVERY_S
            if now_s >= clean_at_s:
                await self.clean()
                clean_at_s = now_s + _CLEAN_EVERY_S
            await asyncio.sleep(_RELEASE_EVERY_S)

    async def clean(self) -> None:
        """End what waited for a week, forget what ended a month ago."""
        for letter in await self._letters.overdue(KEPT_WAITING, _AT_ONCE):
            error = ServiceError(
                ErrorCode.UNAVAILABLE,
                "The job could not be carried out on our side within a week; send it again.",
                execution_id=letter.execution_id,
            )
            if letter.kind == "job":
                await self._jobs.end_waiting(letter.id, error.body)
                await self._letters.end(letter.id)
            elif letter.execution_id is not None:
                await self._jobs.refuse(letter.caller_id, letter.execution_id, error.body, letter.id)
                await self._letters.close_message(letter.id, None)
        await self._letters.forget(KEPT)


def _why_over(letter: Letter) -> str:
    if letter.execution_id is None:
        return "Nobody could read this message; ask its publisher to send it again."
    if letter.kind == "message":
        return "This message was refused, and its publisher was told so; ask them to send it again."
    return "This job has ended meanwhile: it was canceled, or waited for too long. Its caller has to send it again."


def _shown(letter: Letter) -> DeadLetter:
    return DeadLetter(
        id=letter.id,
        kind=letter.kind,
        status=letter.status,
        execution_id=letter.execution_id,
        caller=Caller(kind=letter.caller_kind, id=letter.caller_id),
        owner=letter.owner,
        resource_id=letter.resource_id,
        code=ErrorCode(letter.code),
        reason=letter.reason,
        tries=letter.tries,
        accepted_at=letter.accepted_at,
        died_at=letter.died_at,
        requeued_at=letter.requeued_at,
        requeued_by=letter.requeued_by,
    )


def _cursor(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal():
        raise invalid("cursor", "This cursor is not one of ours; start again without it.")
    return int(text)
