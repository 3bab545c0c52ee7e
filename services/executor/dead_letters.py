"""Jobs that cannot be carried out for our reasons: tried again with growing pauses, and at last put aside for an operator.

A part of ours that is away, a locked body that does not open, a bug: none of it is the caller's doing, so the job stays
accepted. It waits in the status `waiting`, which callers see as queued, and never stands in the way of other jobs. After an
hour or so of trying it is a dead letter: counted, alerted, listed, requeued by an operator under the same execution id, or
ended as failed after a week. A run that has begun is never one: what it did has a receipt.
"""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import UUID

import structlog
from nats.aio.msg import Msg

from contracts.errors import ErrorCode, ServiceError
from contracts.subjects import publisher_of
from services.executor.dead_letter_store import DeadLetterStore
from services.executor.results import Results
from services.executor.store import Execution

log = structlog.get_logger()

MOST_TRIES = 20
_LONGEST_PAUSE_S = 300.0
KEPT_WAITING = timedelta(days=7)
KEPT = timedelta(days=30)


def pause_s(tries: int) -> float:
    """How long to wait after so many tries: a second, then twice as long every time, with jitter."""
    return min(2.0 ** min(tries - 1, 30), _LONGEST_PAUSE_S) * random.uniform(0.5, 1)  # noqa: S311 - spreads load


class DeadLetters:
    """Puts aside what cannot be carried out now."""

    def __init__(self, store: DeadLetterStore, results: Results) -> None:
        self._store = store
        self._results = results

    async def postpone(self, row: Execution, error: ServiceError, *, at_once: bool = False) -> bool:
        """Have a claimed job wait; `at_once` for an operator. False when its end was asked for meanwhile."""
        assert row.lease_token is not None
        outcome = await self._store.postpone(
            row.id,
            row.lease_token,
            error.code,
            str(error),
            most_tries=0 if at_once else MOST_TRIES,
            longest_s=_LONGEST_PAUSE_S,
        )
        if outcome == "dead":
            log.error("dead_letter", execution_id=str(row.id), code=error.code.value, reason=str(error))
        return outcome is not None

    async def keep_message(self, letter_id: UUID, execution_id: UUID, message: Msg, error: ServiceError) -> None:
        """Put a message aside that was delivered often enough."""
        locked = self._results.lock_message(letter_id, message.data)
        await self._store.keep_message(
            letter_id,
            execution_id=execution_id,
            publisher=publisher_of(message.subject),
            code=error.code,
            reason=str(error),
            tries=message.metadata.num_delivered,
            came_at=message.metadata.timestamp,
            payload=locked.blob,
            payload_key_id=locked.key_id,
        )
        log.error("dead_letter", execution_id=str(execution_id), code=error.code.value, reason=str(error))

    async def note_unreadable(self, letter_id: UUID, message: Msg) -> None:
        """A message that is no JSON object. Its publisher is told; that it came is kept, what it says is not."""
        await self._store.keep_message(
            letter_id,
            execution_id=None,
            publisher=publisher_of(message.subject),
            code=ErrorCode.INVALID,
            reason="The message is no JSON object; its publisher was told so.",
            tries=message.metadata.num_delivered,
            came_at=message.metadata.timestamp,
            payload=None,
            payload_key_id=None,
        )
