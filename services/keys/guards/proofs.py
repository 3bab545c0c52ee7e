"""Whether a lease request comes from an executor: signed by their identity, of now, and never answered before.

Replicas share the nonces through Postgres. They are kept for longer than a request can be good for, so one that is not
among them any more is refused for its age.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import LeaseKey
from services.keys.guards.store import GuardRows
from services.runtime.identity import ExecutorIdentities

CLOCK_WINDOW = timedelta(seconds=30)


async def is_proven(request: LeaseKey, identities: ExecutorIdentities, rows: GuardRows) -> bool:
    """Whether it may be answered; when it may, its nonce is spent with the transaction of `rows`."""
    # The signature first: nobody else gets to spend a nonce.
    if not identities.signed(request):
        return False
    assert request.signed_at is not None
    assert request.nonce is not None
    if abs(datetime.now(UTC) - request.signed_at) > CLOCK_WINDOW:
        return False
    return await rows.spend_nonce(request.nonce)


def not_proven() -> ServiceError:
    """One sentence for every reason: whoever has to guess learns nothing."""
    return ServiceError(
        ErrorCode.FORBIDDEN,
        "The request for a key is not signed by an executor of this deployment, is not of now, or was made before. "
        "Compare EXECUTOR_IDENTITY with EXECUTOR_IDENTITIES, and the clocks.",
    )
