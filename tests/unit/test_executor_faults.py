"""The table of upstream failures: what each is for the caller, the key and the retry, and what no message may hold."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ErrorCode
from services.executor.faults import KEYS_URL, Fault, timed_out, unreachable
from services.executor.refusals import CREDITS_URL, KEY_REST_S, from_error, from_response
from tests.stack import shared_data

FOLDER = shared_data() / "openrouter-responses"
NOW_S = 1_790_000_000.0


def refused(status: int, error: Any, headers: Mapping[str, str] | None = None) -> Fault:
    return from_response(status, headers or {}, json.dumps({"error": error, "user_id": "user_1"}).encode(), now_s=NOW_S)


def message(text: str, code: int | str = 400, **metadata: Any) -> dict[str, Any]:
    return {"message": text, "code": code, "metadata": metadata}


RECORDED = {
    "error-400-invalid-model": (ErrorCode.MODEL_UNAVAILABLE, False, None, None),
    "error-401-no-auth": (ErrorCode.KEY_REJECTED, False, "suspect", None),
    "error-401-user-not-found": (ErrorCode.KEY_REJECTED, False, "suspect", None),
    "error-402-balance-for-image": (ErrorCode.CREDITS_EXHAUSTED, False, None, None),
    "error-403-moderation": (ErrorCode.MODERATED, False, None, None),
    "error-404-batch-only": (ErrorCode.MODEL_UNAVAILABLE, False, None, None),
    "error-404-data-policy": (ErrorCode.MODEL_UNAVAILABLE, False, None, None),
    "error-404-generation-not-found": (ErrorCode.MODEL_UNAVAILABLE, False, None, None),
    "error-429-upstream-retry-after": (ErrorCode.RATE_LIMITED, True, None, "model"),
}


def test_every_recorded_error_means_what_the_reference_says() -> None:
    metas = [json.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.meta.json"))]
    errors = [meta for meta in metas if meta["status"] >= 400]
    assert {meta["name"] for meta in errors} == set(RECORDED)
    for meta in errors:
        fault = from_response(meta["status"], meta["headers"], (FOLDER / meta["body_file"]).read_bytes(), now_s=NOW_S)
        assert (fault.code, fault.retry, fault.health, fault.cools) == RECORDED[meta["name"]], meta["name"]
        assert (fault.billed, fault.upstream_status) == ("no", meta["status"])


def test_the_recorded_limit_of_a_provider_says_when_to_come_back() -> None:
    body = (FOLDER / "error-429-upstream-retry-after.body.json").read_bytes()
    assert from_response(429, {"retry-after": "1"}, body).retry_after_s == 1
    fault = from_response(429, {}, body)
    assert (fault.retry_after_s, fault.scope, fault.cools) == (1, None, "model")


TABLE: list[tuple[int, Any, ErrorCode, bool]] = [
    (400, message("This endpoint's maximum context length is 8192 tokens."), ErrorCode.INVALID, False),
    (
        400,
        message("Provider returned error", raw='{"error":{"code":"context_length_exceeded"}}'),
        ErrorCode.INVALID,
        False,
    ),
    (400, message("Reasoning is mandatory for this endpoint"), ErrorCode.INVALID, False),
    (400, message("x", error_type="invalid_image"), ErrorCode.INVALID, False),
    (400, message("x", error_type="content_policy_violation"), ErrorCode.MODERATED, False),
    (400, message("Provider returned error", raw="This violates our usage policy"), ErrorCode.MODERATED, False),
    (400, message("a/b is not a valid model ID"), ErrorCode.MODEL_UNAVAILABLE, False),
    (400, message("anything else"), ErrorCode.INVALID, False),
    (401, message("User not found.", 401), ErrorCode.KEY_REJECTED, False),
    (401, message("Provider returned error", 401, provider_name="X"), ErrorCode.UPSTREAM, False),
    (402, message("Insufficient credits", 402, limit_source="openrouter_credits"), ErrorCode.CREDITS_EXHAUSTED, False),
    (402, message("Prompt tokens limit exceeded: 9 > 5", 402), ErrorCode.CREDITS_EXHAUSTED, False),
    (402, message("x", 402, reason="in_flight_budget_exhausted"), ErrorCode.CREDITS_EXHAUSTED, True),
    (402, message("x", 402, reason="weight_exceeds_budget"), ErrorCode.CREDITS_EXHAUSTED, False),
    (403, message("Key limit exceeded (total limit).", 403), ErrorCode.SPEND_LIMIT, False),
    (403, message("x", 403, limit_source="openrouter_workspace_budget"), ErrorCode.SPEND_LIMIT, False),
    (403, message("x", 403, flagged_input="…", reasons=["misc"]), ErrorCode.MODERATED, False),
    (403, message("Blocked by guardrail", 403, patterns=["ssn"]), ErrorCode.MODERATED, False),
    (403, message("This model is not available in your region", 403), ErrorCode.MODEL_UNAVAILABLE, False),
    (403, message("Provider X is not allowed", 403), ErrorCode.MODEL_UNAVAILABLE, False),
    (403, message("Management keys cannot; this is a management key", 403), ErrorCode.KEY_REJECTED, False),
    (403, message("no", 403), ErrorCode.UPSTREAM, False),
    (404, message("No endpoints found that support image input", 404), ErrorCode.MODEL_UNAVAILABLE, False),
    (408, message("timeout", 408), ErrorCode.TIMEOUT, True),
    (412, message("precondition", 412), ErrorCode.INVALID, False),
    (413, message("too large", 413), ErrorCode.INVALID, False),
    (418, message("teapot", 418), ErrorCode.UPSTREAM, False),
    (422, message("semantic", 422), ErrorCode.INVALID, False),
    (429, message("Rate limit exceeded: limit_rpm/a/b", 429), ErrorCode.RATE_LIMITED, True),
    (500, message("Internal Server Error", 500), ErrorCode.UPSTREAM, True),
    (502, message("Provider returned error", 502, provider_name="X"), ErrorCode.UPSTREAM, True),
    (503, message("No provider meets your routing requirements", 503), ErrorCode.UNAVAILABLE, True),
    (504, message("timeout", 504), ErrorCode.TIMEOUT, True),
    (522, message("edge", 522), ErrorCode.UNAVAILABLE, True),
    (524, message("timeout", 524), ErrorCode.TIMEOUT, True),
    (529, message("overloaded", 529), ErrorCode.UNAVAILABLE, True),
]


@pytest.mark.parametrize(("status", "error", "code", "retry"), TABLE)
def test_each_row_of_the_table_means_the_same_as_a_status_and_inside_a_200(
    status: int, error: Any, code: ErrorCode, retry: bool
) -> None:
    assert (refused(status, error).code, refused(status, error).retry) == (code, retry)
    inside = from_error({**error, "code": status}, now_s=NOW_S)
    assert (inside.code, inside.retry, inside.upstream_status) == (code, retry, status)
    delivered = from_error({**error, "code": str(status)}, delivered=True, now_s=NOW_S)
    assert (delivered.code, delivered.retry, delivered.billed, delivered.truncated) == (code, False, "maybe", True)


def test_the_platforms_own_limit_cools_the_key_until_its_reset_in_epoch_milliseconds() -> None:
    limit = message("Rate limit exceeded: free-models-per-day. Add 10 credits", 429)
    fault = refused(429, limit, {"X-RateLimit-Reset": str(int((NOW_S + 90) * 1000)), "X-RateLimit-Limit": "50"})
    assert (fault.cools, fault.scope, fault.action_url) == ("free", "key", CREDITS_URL)
    assert fault.retry_after_s == pytest.approx(90)
    assert "free models" in fault.message
    assert "credits" in fault.message
    mirrored = {"headers": {"X-RateLimit-Reset": (NOW_S + 30) * 1000}}
    assert refused(429, message("Rate limit exceeded", 429, **mirrored)).retry_after_s == pytest.approx(30)
    unhinted = refused(429, message("Rate limit exceeded", 429))
    assert (unhinted.cools, unhinted.retry_after_s) == ("key", KEY_REST_S)


def test_the_402_quotes_name_the_smallest_amount_that_would_pass() -> None:
    previous = [{"code": 402, "message": "…"}]
    text = (
        "This request requires more credits, or fewer max_tokens. You requested up to 999 tokens, but can only afford"
    )
    fault = refused(402, message(f"{text} 400. … but can only afford 120.", 402, previous_errors=previous))
    assert (fault.code, fault.health, fault.action_url) == (ErrorCode.CREDITS_EXHAUSTED, None, CREDITS_URL)
    assert "lower max_tokens to 120 or less" in fault.message
    assert refused(402, message("Insufficient credits", 402)).health == "exhausted"


def test_a_spent_key_points_to_the_key_settings_and_marks_the_key() -> None:
    fault = refused(403, message("Key limit exceeded (monthly limit). Manage it at …", 403))
    assert (fault.action_url, fault.health, fault.retry) == (KEYS_URL, "exhausted", False)


def test_the_context_length_is_named_when_it_is_known() -> None:
    fault = refused(400, message("This endpoint's maximum context length is 8192 tokens. However, you requested 9000"))
    assert "at most 8,192 tokens" in fault.message


@pytest.mark.parametrize(
    ("availability", "status", "code", "retry"),
    [
        ({"code": "capacity_exhausted", "retryable": True, "retry_after": 7}, 429, ErrorCode.RATE_LIMITED, True),
        ({"code": "temporarily_unavailable", "retryable": False}, 503, ErrorCode.UNAVAILABLE, False),
        ({"code": "model_not_found", "retryable": False}, 400, ErrorCode.MODEL_UNAVAILABLE, False),
        ({"code": "region_restricted", "retryable": False}, 403, ErrorCode.MODEL_UNAVAILABLE, False),
        ({"code": "free_variant_ended", "retryable": False}, 404, ErrorCode.MODEL_UNAVAILABLE, False),
        ({"code": "something_new", "retryable": True}, 404, ErrorCode.MODEL_UNAVAILABLE, True),
    ],
)
def test_the_availability_object_decides_first(
    availability: dict[str, Any], status: int, code: ErrorCode, retry: bool
) -> None:
    error = {"message": "x", "http_status": status, "error_type": "whatever", "availability": availability}
    for fault in (refused(status, error), from_error(error, now_s=NOW_S)):
        assert (fault.code, fault.retry) == (code, retry)
    if "retry_after" in availability:
        assert refused(status, error).retry_after_s == 7


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("server_error", ErrorCode.UPSTREAM),
        ("rate_limit_exceeded", ErrorCode.RATE_LIMITED),
        ("503", ErrorCode.UNAVAILABLE),
        ("never heard of", ErrorCode.UPSTREAM),
        (None, ErrorCode.UPSTREAM),
        (True, ErrorCode.UPSTREAM),
        (1e99, ErrorCode.UPSTREAM),
    ],
)
def test_codes_inside_a_200_are_coerced(code: Any, expected: ErrorCode) -> None:
    assert from_error({"message": "x", "code": code}).code == expected


def test_the_second_envelope_and_bodies_that_are_no_json_are_classified_by_status() -> None:
    zod = b'{"success":false,"error":{"name":"ZodError","message":"[{\\"path\\":[\\"model\\"]}]"}}'
    assert from_response(400, {}, zod).code == ErrorCode.INVALID
    html = b"<html><head><title>502 Bad Gateway</title></head></html>"
    for status, code, retry, billed in (
        (502, ErrorCode.UPSTREAM, True, "no"),
        (520, ErrorCode.UNAVAILABLE, True, "no"),
        (524, ErrorCode.TIMEOUT, False, "maybe"),
        (504, ErrorCode.TIMEOUT, False, "maybe"),
        (403, ErrorCode.UPSTREAM, False, "no"),
        (302, ErrorCode.UPSTREAM, False, "no"),
        (401, ErrorCode.KEY_REJECTED, False, "no"),
    ):
        fault = from_response(status, {"content-type": "text/html"}, html)
        assert (fault.code, fault.retry, fault.billed) == (code, retry, billed), status
    assert from_response(500, {}, b"").code == ErrorCode.UPSTREAM
    assert from_response(500, {}, b'{"error":"plain words"}').code == ErrorCode.UPSTREAM


def test_a_date_in_retry_after_is_seconds_from_now() -> None:
    headers = {"Retry-After": "Mon, 21 Sep 2026 14:13:50 GMT"}
    assert refused(503, message("x", 503), headers).retry_after_s == pytest.approx(30)
    assert refused(503, message("x", 503), {"Retry-After": "soon"}).retry_after_s is None
    assert refused(503, message("x", 503), {"Retry-After": "1e12"}).retry_after_s == 86_400
    assert refused(400, message("x"), {"Retry-After": "5"}).retry_after_s is None


def test_our_own_deadlines_are_only_retried_before_anything_was_sent() -> None:
    assert (timed_out("connect").retry, timed_out("connect").billed) == (True, "no")
    for phase in ("first_token", "idle", "total"):
        fault = timed_out(phase)
        assert (fault.code, fault.retry, fault.billed) == (ErrorCode.TIMEOUT, False, "maybe")
    assert (unreachable().code, unreachable().retry, unreachable().billed) == (ErrorCode.UNAVAILABLE, True, "no")


def test_the_error_that_callers_get_carries_what_helps_them() -> None:
    body = refused(403, message("Key limit exceeded", 403)).error().body
    assert (body.code, body.retryable, body.action_url) == (ErrorCode.SPEND_LIMIT, False, KEYS_URL)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
error_like = st.fixed_dictionaries(
    {},
    optional={
        "code": anything | st.integers(390, 610),
        "message": anything,
        "metadata": st.dictionaries(
            st.sampled_from(
                ["raw", "provider_name", "headers", "retry_after_seconds", "limit_source", "error_type", "reason"]
            ),
            anything,
        ),
        "availability": st.dictionaries(st.sampled_from(["code", "retryable", "retry_after"]), anything) | anything,
    },
)


@settings(deadline=None)
@given(
    st.integers(300, 599),
    error_like | anything,
    st.dictionaries(st.sampled_from(["retry-after"]), st.text(max_size=12)),
)
def test_no_error_breaks_the_table(status: int, error: Any, headers: dict[str, str]) -> None:
    for fault in (from_error(error, now_s=NOW_S), refused(status, error, headers)):
        assert fault.retry_after_s is None or 0 <= fault.retry_after_s <= 86_400
        assert fault.message.endswith(".")


CANARY = "CANARY-4711"


@pytest.mark.parametrize("row", TABLE)
def test_no_upstream_text_reaches_a_message(row: tuple[int, Any, ErrorCode, bool]) -> None:
    status, error, _, _ = row
    spiked = {
        "code": status,
        "message": f"{CANARY} {error['message']} {CANARY}",
        "metadata": {**error["metadata"], "flagged_word": CANARY, "provider_message": CANARY},
    }
    for fault in (refused(status, spiked), from_error(spiked, now_s=NOW_S)):
        assert CANARY not in repr(fault)
