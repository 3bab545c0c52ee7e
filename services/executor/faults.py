"""What an upstream failure means: for the caller, for the creator's key, and for whether to try again; and the faults that no
answer states, because there was none or it cannot be read. What an error of the upstream means is decided in `refusals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from contracts.errors import ErrorCode, Scope, ServiceError

KEYS_URL = "https://openrouter.ai/settings/keys"

Phase = Literal["connect", "first_token", "idle", "total"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A classified failure. `message` is a sentence of ours; `retry` is true only while nothing was delivered.

    `billed` is `maybe` where the upstream may have charged something: look the generation up. `health` is a hint for
    the key; `cools` says what should rest for `retry_after_s` after a 429.
    """

    code: ErrorCode
    message: str
    retry: bool = False
    retry_after_s: float | None = None
    scope: Scope | None = None
    action_url: str | None = None
    billed: Literal["no", "maybe"] = "no"
    upstream_status: int | None = None
    health: Literal["suspect", "exhausted"] | None = None
    cools: Literal["key", "free", "model"] | None = None
    truncated: bool = False

    def error(self, execution_id: UUID | None = None) -> ServiceError:
        """The error that the caller gets."""
        return ServiceError(
            self.code,
            self.message,
            # Out of credits for a moment is the one failure that passes although its code as such does not.
            retryable=True if self.retry else None,
            retry_after_s=self.retry_after_s,
            scope=self.scope,
            action_url=self.action_url,
            execution_id=execution_id,
            truncated=self.truncated,
        )


class UpstreamFailed(Exception):  # noqa: N818 - a fact about the upstream, not an error of ours
    """Raised where a call cannot go on; carries what it means, and the generation id where one was given."""

    def __init__(self, fault: Fault, generation_id: str | None = None) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.generation_id = generation_id


# Faults that are not in any answer ------------------------------------------------------------------------------------


def unreachable() -> Fault:
    """No connection came about; nothing was sent."""
    return Fault(ErrorCode.UNAVAILABLE, "OpenRouter could not be reached. Try again in a moment.", retry=True)


def no_sandbox() -> Fault:
    """A test key where no sandbox is configured; nothing was sent."""
    return Fault(
        ErrorCode.KEY_REJECTED, "Test keys do not work here. Connect a real OpenRouter key.", action_url=KEYS_URL
    )


def dropped(*, delivered: bool = False) -> Fault:
    """The connection broke after the request was sent; the upstream may be working on it."""
    return Fault(
        ErrorCode.UPSTREAM, "The connection to OpenRouter broke before the answer was complete. Try again.",
        billed="maybe", truncated=delivered,
    )  # fmt: skip


def timed_out(phase: Phase, *, delivered: bool = False) -> Fault:
    """A deadline of ours passed. Only a connection that never came about may be tried again: the rest may be billed."""
    if phase == "connect":
        return Fault(ErrorCode.TIMEOUT, "OpenRouter did not accept a connection in time. Try again.", retry=True)
    sentence = {
        "first_token": "The model did not begin to answer in the time that this resource allows. Try again.",
        "idle": "The model stopped in the middle of its answer. Try again.",
        "total": "The answer took longer than this resource allows. Ask for less.",
    }[phase]
    return Fault(ErrorCode.TIMEOUT, sentence, billed="maybe", truncated=delivered)


def too_large(*, delivered: bool = False) -> Fault:
    """The answer is bigger than we take."""
    return Fault(
        ErrorCode.UPSTREAM, "The model's answer is larger than can be handled. Ask for a shorter one.",
        billed="maybe", truncated=delivered,
    )  # fmt: skip


def cut_off(*, delivered: bool) -> Fault:
    """The answer ended without saying that it was finished."""
    return Fault(
        ErrorCode.UPSTREAM, "The model's answer ended before it was complete. Try again.",
        billed="maybe", truncated=delivered,
    )  # fmt: skip


def broken_frame(*, delivered: bool) -> Fault:
    """A piece of the answer does not parse."""
    return Fault(
        ErrorCode.UPSTREAM, "OpenRouter sent an answer that cannot be read. Try again.",
        billed="maybe", truncated=delivered,
    )  # fmt: skip


def withheld() -> Fault:
    """A provider's filter left nothing of the answer; it may be billed all the same."""
    return Fault(
        ErrorCode.MODERATED, "A content filter withheld the answer. Change the input and try again.", billed="maybe"
    )


def not_a_completion() -> Fault:
    """A 200 whose body is something else: no choices, and no error either."""
    return Fault(
        ErrorCode.UPSTREAM, "OpenRouter answered with something that is not a chat completion. Try again later.",
        billed="maybe",
    )  # fmt: skip
