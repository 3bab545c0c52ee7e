"""Everything that can go wrong, once, for all services; an error crosses the bus intact and is rendered for HTTP by the gateway alone.

    ServiceError
    ├── invalid              the caller must change the request
    ├── unauthenticated      no token, or not a good one
    ├── forbidden            a good token, and not for this
    ├── not_found · conflict
    ├── key_missing          the creator has not connected a key
    ├── key_rejected         OpenRouter does not accept the key
    ├── credits_exhausted    the creator's OpenRouter account cannot pay (action_url says where to add credits)
    ├── spend_limit          the key's own spending cap is reached
    ├── moderated            a moderation refused the input
    ├── model_unavailable    nothing serves the model, or not this kind of request
    ├── rate_limited         too many requests                     (retry_after_s, scope)
    ├── overloaded           no free slot; scope `instance`: try another one   (retry_after_s, scope)
    ├── timeout              a deadline passed
    ├── upstream             OpenRouter or its provider failed
    ├── unavailable          nobody is listening, or a part is down
    └── internal             our bug; the detail is in the log, never in the message

The message is a sentence for the user that says what to do. An upstream's raw body never becomes part of it: such bodies
hold account ids and people's text.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import Field

from contracts.base import Contract


class ErrorCode(StrEnum):
    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    KEY_MISSING = "key_missing"
    KEY_REJECTED = "key_rejected"
    CREDITS_EXHAUSTED = "credits_exhausted"
    SPEND_LIMIT = "spend_limit"
    MODERATED = "moderated"
    MODEL_UNAVAILABLE = "model_unavailable"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    UPSTREAM = "upstream"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


RETRYABLE = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.OVERLOADED,
        ErrorCode.TIMEOUT,
        ErrorCode.UPSTREAM,
        ErrorCode.UNAVAILABLE,
    }
)
"""Codes after which the same request may succeed later; a single error may know better."""

Scope = Literal["instance", "key", "caller"]


class FieldProblem(Contract):
    """One thing that is wrong with the request."""

    path: str = Field(description="Where, as in `openrouter_config.max_tokens`; empty for the whole body.")
    message: str = Field(description="What is wrong and what to send instead; never the value that was sent.")


class ErrorBody(Contract):
    """The body of every error reply on the bus, and what a `failed` frame carries."""

    code: ErrorCode
    message: str = Field(description="A sentence for the user that says what to do.")
    retryable: bool = False
    retry_after_s: float | None = Field(default=None, ge=0, description="Seconds to wait before trying again.")
    scope: Scope | None = Field(default=None, description="What is full or limited: this instance, the key, or you.")
    fields: list[FieldProblem] = []
    action_url: str | None = Field(default=None, description="Where the user can put it right.")
    execution_id: UUID | None = None
    truncated: bool = Field(default=False, description="True when some output had already been delivered.")


class ServiceError(Exception):
    """Raised where the fact is known, carried over the bus, raised again at the caller.

    `retryable` defaults to what the code implies.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        scope: Scope | None = None,
        fields: list[FieldProblem] | None = None,
        action_url: str | None = None,
        execution_id: UUID | None = None,
        truncated: bool = False,
    ) -> None:
        super().__init__(message)
        self.body = ErrorBody(
            code=code,
            message=message,
            retryable=code in RETRYABLE if retryable is None else retryable,
            retry_after_s=retry_after_s,
            scope=scope,
            fields=fields or [],
            action_url=action_url,
            execution_id=execution_id,
            truncated=truncated,
        )

    @property
    def code(self) -> ErrorCode:
        return self.body.code

    @classmethod
    def from_body(cls, body: ErrorBody) -> ServiceError:
        error = cls(body.code, body.message)
        error.body = body
        return error


def invalid(path: str, message: str) -> ServiceError:
    """The commonest error: one field of the request is wrong."""
    return ServiceError(ErrorCode.INVALID, message, fields=[FieldProblem(path=path, message=message)])
