"""Who may run what, at which price: decisions without I/O. The gateway guards nothing; these do."""

from __future__ import annotations

from contracts.catalog import ResolvedResource
from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import Caller, ExecuteRequest
from contracts.money import plain
from services.executor.pricing import highest_price


def is_creator(owner: str, caller: Caller) -> bool:
    """A publisher is never a creator, whatever it is called."""
    return caller.kind == "user" and caller.id == owner


_PASSES = "This resource is asked for too often at the moment. Try again later."
_MODEL_IS_GONE = "The model of this resource cannot be used, and only its owner can change that."
_FOR_ITS_OWNER = (
    "This resource cannot run at the moment, and only its owner can put that right. "
    "Try again later, or use another one."
)


def error_for_caller(error: ErrorBody, owner: str, caller: Caller) -> ErrorBody:
    """An error as this caller may see it. What its creator can put right at OpenRouter is about the account there: how much
    it can pay, how it is set, where to change it. That is nobody else's business, and nothing that they could do."""
    for_creator = error.action_url is not None or error.code is ErrorCode.KEY_MISSING
    if not for_creator or is_creator(owner, caller):
        return error
    gone = error.code is ErrorCode.MODEL_UNAVAILABLE
    message = _PASSES if error.retryable else _MODEL_IS_GONE if gone else _FOR_ITS_OWNER
    return error.model_copy(update={"message": message, "action_url": None})


def check_run(resource: ResolvedResource, caller: Caller, request: ExecuteRequest) -> None:
    """Raises ServiceError when the caller may not run this, or not under the conditions that the request names."""
    if resource.status != "published" and not is_creator(resource.owner, caller):
        raise ServiceError(
            ErrorCode.NOT_FOUND,
            "There is no published resource of this name or id; check it, or ask its creator to publish.",
        )
    if not resource.availability.available:
        # What could take over is for the creator to choose.
        reason = resource.availability.reason if is_creator(resource.owner, caller) else None
        raise ServiceError(
            ErrorCode.MODEL_UNAVAILABLE,
            reason or "What this resource runs on is not offered any more; its creator has been told.",
        )
    if request.expected_version is not None and request.expected_version != resource.version:
        raise ServiceError(
            ErrorCode.CONFLICT,
            f"The resource is at version {resource.version} now; look at it again and send that expected_version.",
        )
    if request.max_price_usd is not None and (most := highest_price(resource.pricing)) > request.max_price_usd:
        raise ServiceError(
            ErrorCode.CONFLICT,
            f"A run may cost up to {plain(most)} USD, more than the {plain(request.max_price_usd)} USD that you agreed to "
            "(max_price_usd). Look at the price again, and raise that to go on.",
        )
