"""Problems: a status for every code, RFC 9457 members, and nothing of what was sent."""

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from contracts.errors import ErrorBody, ErrorCode, FieldProblem, ServiceError
from services.gateway.problems import (
    STATUSES,
    TITLES,
    HttpError,
    Problem,
    documented,
    problem_of,
    problem_response,
    too_large,
    wrong_method,
)
from services.gateway.routing import invalid_request, unknown_fields


def test_every_code_has_a_status_and_a_title() -> None:
    assert set(STATUSES) == set(ErrorCode) == set(TITLES)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.INVALID, 422),
        (ErrorCode.UNAUTHENTICATED, 401),
        (ErrorCode.FORBIDDEN, 403),
        (ErrorCode.NOT_FOUND, 404),
        (ErrorCode.CONFLICT, 409),
        (ErrorCode.KEY_MISSING, 409),
        (ErrorCode.KEY_REJECTED, 409),
        (ErrorCode.CREDITS_EXHAUSTED, 409),
        (ErrorCode.SPEND_LIMIT, 409),
        (ErrorCode.MODEL_UNAVAILABLE, 409),
        (ErrorCode.MODERATED, 422),
        (ErrorCode.RATE_LIMITED, 429),
        (ErrorCode.OVERLOADED, 429),
        (ErrorCode.TIMEOUT, 504),
        (ErrorCode.UPSTREAM, 502),
        (ErrorCode.UNAVAILABLE, 503),
        (ErrorCode.INTERNAL, 500),
    ],
)
def test_status_of_each_code(code: ErrorCode, status: int) -> None:
    response = problem_response(ServiceError(code, "A sentence."))
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert Problem.model_validate_json(bytes(response.body)).code is code


def test_members_that_say_nothing_are_left_out() -> None:
    assert problem_of(ErrorBody(code=ErrorCode.NOT_FOUND, message="Not here.")) == {
        "type": "urn:x402jobs:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": "Not here.",
        "code": "not_found",
        "retryable": False,
    }


def test_all_members_are_said() -> None:
    error = ServiceError(
        ErrorCode.RATE_LIMITED,
        "Wait.",
        retry_after_s=1.2,
        scope="key",
        fields=[FieldProblem(path="a", message="b")],
        action_url="https://example.com",
        truncated=True,
    )
    response = problem_response(error)
    assert response.headers["retry-after"] == "2"
    assert orjson.loads(response.body) == {
        "type": "urn:x402jobs:problem:rate_limited",
        "title": "Too many requests",
        "status": 429,
        "detail": "Wait.",
        "code": "rate_limited",
        "retryable": True,
        "retry_after_s": 1.2,
        "scope": "key",
        "errors": [{"path": "a", "message": "b"}],
        "action_url": "https://example.com",
        "truncated": True,
    }


@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE])
def test_waiting_is_always_told(code: ErrorCode) -> None:
    assert problem_response(ServiceError(code, "Wait.")).headers["retry-after"] == "1"


def test_unauthenticated_says_how() -> None:
    assert problem_response(ServiceError(ErrorCode.UNAUTHENTICATED, "Sign in.")).headers["www-authenticate"] == "Bearer"


def test_http_errors_keep_their_status_and_headers() -> None:
    assert problem_response(too_large("Too large.")).status_code == 413
    response = problem_response(wrong_method("GET"))
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    rejected = ErrorBody(code=ErrorCode.KEY_REJECTED, message="No.")
    assert orjson.loads(problem_response(HttpError(422, rejected)).body)["status"] == 422


def test_documented_problems_are_problems() -> None:
    for status, response in documented([400, 401, 403, 404, 405, 409, 413, 416, 422, 429, 500, 502, 503, 504]).items():
        example = Problem.model_validate(response["content"]["application/problem+json"]["example"])
        assert example.status == status


class _Body(BaseModel):
    api_key: int


def test_validation_errors_do_not_repeat_the_input() -> None:
    with pytest.raises(ValidationError) as caught:
        _Body.model_validate({"api_key": "sk-or-v1-secret"})
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    problem = bytes(problem_response(invalid_request(errors)).body)
    assert b"secret" not in problem
    assert orjson.loads(problem)["errors"][0]["path"] == "api_key"


@pytest.mark.parametrize(
    ("sent", "read", "found"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1, "b": 2}, {"a": 1}, ["b"]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, ["a.c"]),
        ({"a": [{"b": 1}, {"c": 2}]}, {"a": [{"b": 1}, {}]}, ["a.1.c"]),
        ({"price": "0.01"}, {"price": {"mode": "fixed", "price_usd": "0.01"}}, []),
        ([1], {}, []),
    ],
)
def test_unknown_fields_are_found_at_any_depth(sent: object, read: object, found: list[str]) -> None:
    assert unknown_fields(sent, read) == found
