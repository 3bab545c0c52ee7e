"""How often an owner may try. Counted in Postgres, so that all replicas count together and a restart forgets nothing.

What is limited is what costs somebody else something: guesses (keys that upstream refuses), connects and tests (upstream is
asked each time), and authorizations begun. Runs and what the service asks on its own account are not.
"""

from __future__ import annotations

from datetime import timedelta

from contracts.errors import ErrorCode, ServiceError
from services.keys.guards.store import AttemptKind
from services.keys.store import Store

WINDOW = timedelta(minutes=10)
MOST: dict[AttemptKind, int] = {"guess": 10, "connect": 60, "verify": 30, "oauth": 20}
_SENTENCES: dict[AttemptKind, str] = {
    "guess": "Too many keys that OpenRouter does not accept: wait, then connect a key that you have checked.",
    "connect": "You connected a key many times in the last minutes: wait before you do it again.",
    "verify": "You tested the key many times in the last minutes: wait before you do it again.",
    "oauth": "You began to connect many times in the last minutes: wait before you do it again.",
}


class Limits:
    """The limits of every owner."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def admit(self, owner: str, kind: AttemptKind) -> int:
        """Count an attempt; its id. Raises ServiceError RATE_LIMITED, with the time to wait, when there were too many."""
        async with self._store.rows_of(owner) as rows:
            attempt_id = await rows.attempt(kind, MOST[kind], WINDOW)
            wait_s = 0.0 if attempt_id is not None else await rows.wait_s(kind, WINDOW)
        if attempt_id is None:
            raise ServiceError(
                ErrorCode.RATE_LIMITED, _SENTENCES[kind], retry_after_s=max(1.0, round(wait_s, 1)), scope="caller"
            )
        return attempt_id

    async def take_back(self, owner: str, attempt_id: int) -> None:
        """It turned out not to be one."""
        async with self._store.rows_of(owner) as rows:
            await rows.take_back_attempt(attempt_id)
