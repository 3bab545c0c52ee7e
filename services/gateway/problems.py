"""Errors as HTTP: the only place that knows statuses. Every error leaves as RFC 9457 `application/problem+json`.

A problem says what happened in a sentence for the user and what to do next; it never repeats what was sent, because that
may be a key or a person's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
from pydantic import Field
from starlette.responses import Response

from contracts.base import Contract
from contracts.errors import ErrorBody, ErrorCode, FieldProblem, Scope, ServiceError

MEDIA_TYPE = "application/problem+json"

STATUSES: dict[ErrorCode, int] = {
    ErrorCode.INVALID: 422,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.KEY_MISSING: 409,
    ErrorCode.KEY_REJECTED: 409,
    # 402 is kept for payment by the caller; here it is the creator who cannot pay.
    ErrorCode.CREDITS_EXHAUSTED: 409,
    ErrorCode.SPEND_LIMIT: 409,
    ErrorCode.MODERATED: 422,
    ErrorCode.MODEL_UNAVAILABLE: 409,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.OVERLOADED: 429,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.UPSTREAM: 502,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}

TITLES: dict[ErrorCode, str] = {
    ErrorCode.INVALID: "The request is not valid",
    ErrorCode.UNAUTHENTICATED: "A valid token is needed",
    ErrorCode.FORBIDDEN: "Not allowed",
    ErrorCode.NOT_FOUND: "Not found",
    ErrorCode.CONFLICT: "It does not fit the current state",
    ErrorCode.KEY_MISSING: "No OpenRouter key is connected",
    ErrorCode.KEY_REJECTED: "OpenRouter does not accept the key",
    ErrorCode.CREDITS_EXHAUSTED: "The OpenRouter credits are used up",
    ErrorCode.SPEND_LIMIT: "The key's spending limit is reached",
    ErrorCode.MODERATED: "The input was refused by a moderation",
    ErrorCode.MODEL_UNAVAILABLE: "The model cannot serve this",
    ErrorCode.RATE_LIMITED: "Too many requests",
    ErrorCode.OVERLOADED: "Too much is going on",
    ErrorCode.TIMEOUT: "It took too long",
    ErrorCode.UPSTREAM: "The model's provider failed",
    ErrorCode.UNAVAILABLE: "A part of the service is down",
    ErrorCode.INTERNAL: "Something went wrong on our side",
}

_RETRY_AFTER_STATUSES = frozenset({429, 503})

NOT_READY = 503


class Problem(Contract):
    """RFC 9457 problem details, with our members."""

    type: str = Field(description="A URI that names the kind of problem; the same for every problem of a `code`.")
    title: str = Field(description="The kind of problem, in words.")
    status: int = Field(description="The HTTP status, also where the problem arrives inside a stream.")
    detail: str = Field(description="What happened and what to do, for the user.")
    code: ErrorCode = Field(description="The kind of problem, for programs.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    retry_after_s: float | None = Field(default=None, description="Seconds to wait before trying again.")
    scope: Scope | None = Field(default=None, description="What is full or limited: this instance, the key, or you.")
    errors: list[FieldProblem] = Field(default=[], description="Every wrong field, by path.")
    action_url: str | None = Field(default=None, description="Where the user can put it right.")
    execution_id: UUID | None = Field(default=None, description="The run that this is about, where there is one.")
    truncated: bool = Field(default=False, description="True when some output had already been delivered.")


class HttpError(ServiceError):
    """An error whose status is not the usual one of its code, or that needs response headers."""

    def __init__(self, status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> None:
        super().__init__(body.code, body.message)
        self.body = body
        self.status = status
        self.headers = headers or {}


def not_json(detail: str) -> HttpError:
    """400: the body cannot be read as JSON at all."""
    return HttpError(400, ErrorBody(code=ErrorCode.INVALID, message=detail))


def too_large(detail: str) -> HttpError:
    """413."""
    return HttpError(413, ErrorBody(code=ErrorCode.INVALID, message=detail))


def no_such_route() -> HttpError:
    """404 for a path that is no route."""
    detail = "There is nothing at this address; /docs lists every route."
    return HttpError(404, ErrorBody(code=ErrorCode.NOT_FOUND, message=detail))


def unsatisfiable(size: int) -> HttpError:
    """416 for a range behind the end of a file of `size` bytes."""
    body = ErrorBody(code=ErrorCode.INVALID, message="The file is shorter than the range that was asked for.")
    return HttpError(416, body, {"Content-Range": f"bytes */{size}"})


def at_connect(error: ServiceError) -> ServiceError:
    """A rejected key while it is handed in: there the request is wrong, at a run it is the state that the run meets."""
    return HttpError(422, error.body) if error.code is ErrorCode.KEY_REJECTED else error


def wrong_method(allowed: str) -> HttpError:
    """405 for a route that does not know the method."""
    detail = f"This address does not take that method; it takes {allowed}."
    return HttpError(405, ErrorBody(code=ErrorCode.INVALID, message=detail), {"Allow": allowed})


def unrouted(status: int, headers: Mapping[str, str] | None) -> HttpError:
    """What the router refuses by itself: a method that the path does not take, or an unknown path."""
    return wrong_method((headers or {}).get("Allow", "another one")) if status == 405 else no_such_route()


def status_of(error: ServiceError) -> int:
    """The HTTP status of an error."""
    return error.status if isinstance(error, HttpError) else STATUSES[error.code]


def problem_of(body: ErrorBody, status: int | None = None) -> dict[str, Any]:
    """The members of a problem, without those that have nothing to say. `status` is the code's usual one unless given."""
    problem: dict[str, Any] = {
        "type": f"urn:x402jobs:problem:{body.code.value}",
        "title": TITLES[body.code],
        "status": STATUSES[body.code] if status is None else status,
        "detail": body.message,
        "code": body.code.value,
        "retryable": body.retryable,
    }
    if body.retry_after_s is not None:
        problem["retry_after_s"] = body.retry_after_s
    if body.scope is not None:
        problem["scope"] = body.scope
    if body.fields:
        problem["errors"] = [{"path": field.path, "message": field.message} for field in body.fields]
    if body.action_url is not None:
        problem["action_url"] = body.action_url
    if body.execution_id is not None:
        problem["execution_id"] = str(body.execution_id)
    if body.truncated:
        problem["truncated"] = True
    return problem


def problem_response(error: ServiceError) -> Response:
    """The response for an error."""
    status = status_of(error)
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.body.retry_after_s is not None or status in _RETRY_AFTER_STATUSES:
        # The header takes whole seconds; rounding up never sends a client back too early.
        headers["Retry-After"] = str(max(1, math.ceil(error.body.retry_after_s or 1)))
    return Response(
        orjson.dumps(problem_of(error.body, status)), status_code=status, headers=headers, media_type=MEDIA_TYPE
    )


# OpenAPI --------------------------------------------------------------------------------------------------------------

_EXAMPLES: dict[int, ErrorBody] = {
    400: ErrorBody(code=ErrorCode.INVALID, message="The body is not JSON; it breaks at character 17."),
    401: ErrorBody(
        code=ErrorCode.UNAUTHENTICATED, message="The token has expired; sign in again and send the new one."
    ),
    403: ErrorBody(code=ErrorCode.FORBIDDEN, message="Only administrators may do this."),
    404: ErrorBody(code=ErrorCode.NOT_FOUND, message="There is no such resource, or it is not yours."),
    405: ErrorBody(code=ErrorCode.INVALID, message="This address does not take that method; it takes GET."),
    409: ErrorBody(
        code=ErrorCode.KEY_MISSING, message="Connect an OpenRouter key first: PUT /api/integrations/openrouter."
    ),
    413: ErrorBody(code=ErrorCode.INVALID, message="The body is too large; send at most 2 MiB."),
    416: ErrorBody(code=ErrorCode.INVALID, message="The file is shorter than the range that was asked for."),
    422: ErrorBody(
        code=ErrorCode.INVALID,
        message="The request is not valid. openrouter_config.max_tokens: This must be at least 1.",
        fields=[FieldProblem(path="openrouter_config.max_tokens", message="This must be at least 1.")],
    ),
    429: ErrorBody(
        code=ErrorCode.RATE_LIMITED,
        message="This key serves as many runs as it may; try again in 2 seconds.",
        retryable=True,
        retry_after_s=2,
        scope="key",
    ),
    500: ErrorBody(
        code=ErrorCode.INTERNAL,
        message="Something went wrong on our side; try again, and if it lasts, report it as 3f2a9c01b7de.",
    ),
    502: ErrorBody(code=ErrorCode.UPSTREAM, message="The model's provider failed; try again.", retryable=True),
    503: ErrorBody(
        code=ErrorCode.UNAVAILABLE,
        message="A part of the service is starting or down; try again shortly.",
        retryable=True,
        retry_after_s=1,
    ),
    504: ErrorBody(code=ErrorCode.TIMEOUT, message="The answer took too long; try again.", retryable=True),
}


def documented(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route for these error statuses, each with an example."""
    return {
        status: {
            "description": TITLES[_EXAMPLES[status].code],
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": problem_of(_EXAMPLES[status], status),
                }
            },
        }
        for status in sorted(statuses)
    }
