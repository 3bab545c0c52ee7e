"""Answers with a status of 3xx, 4xx or 5xx: nothing was generated, and nothing is billed unless an edge gave up waiting."""

from __future__ import annotations

import json
from typing import Any

from tests.matrix import endings as end
from tests.matrix.case import LOOKUP, NONE, Case
from tests.matrix.endings import Ending
from tests.matrix.plays import LEAK, WHOLE, Play, body, provider_error, refusal, stream

SOON = {"Retry-After": "0.05"}
LIMITS = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"}


def case(name: str, says: str, play: Play, ending: Ending, attempts: int = 1, **more: Any) -> Case:
    """A refusal, the same every time."""
    return Case(name, says, (play,), ending, attempts=attempts, **{"cost": NONE, **more})


def worded(word: str, status: int, ending: Ending, attempts: int = 1) -> Case:
    """A refusal that only its documented stable word explains."""
    says = f"{status}, `error_type: {word}`"
    return case(f"word-{word}", says, refusal(status, error_type=word), ending, attempts)


def available(
    code: str, status: int, ending: Ending, attempts: int = 1, *, retryable: bool = False, **more: Any
) -> Case:
    """A refusal with an `availability` object, as documented since August 2026."""
    facts = {"code": code, "retryable": retryable, "docs_url": LEAK, **more}
    says = f"{status}, `availability: {code}`{', retryable' if retryable else ''}"
    return case(f"availability-{code}", says, refusal(status, availability=facts), ending, attempts)


_ZOD = {"success": False, "error": {"name": "ZodError", "message": json.dumps([{"path": ["model"], "message": LEAK}])}}
_AFFORD = "This request requires more credits, or fewer max_tokens. You requested up to 999 tokens, but can only afford"

INVALID = [
    case("400", "400, anything that nothing below says", refusal(400), end.BAD_REQUEST),
    case(
        "400-zod",
        "400 in the second envelope (`ZodError`)",
        body(json.dumps(_ZOD).encode(), status=400),
        end.BAD_REQUEST,
    ),
    case(
        "400-model",
        "400, “… is not a valid model ID”, also one of a fallback list",
        refusal(400, "a/b is not a valid model ID"),
        end.NOT_SERVED,
    ),
    case(
        "400-endpoint",
        "400, wrong endpoint for this kind of model",
        refusal(400, "Use the /images endpoint instead."),
        end.NOT_FOR_CHAT,
    ),
    case(
        "400-context",
        "400, longer than the context, whose length is named",
        refusal(
            400,
            "This endpoint's maximum context length is 4096 tokens.",
            error_type="context_length_exceeded",
            previous_errors=[],
        ),
        end.LONG_INPUT_BY,
        mode="status-400",
    ),
    case(
        "400-hidden",
        "400, “Provider returned error”, the cause in `metadata.raw`, JSON in a string",
        provider_error(400, '{"error":{"code":"context_length_exceeded"}}'),
        end.LONG_INPUT,
        quirks=(19,),
    ),
    case(
        "400-hidden-text",
        "the same, the cause in plain words",
        provider_error(400, "prompt is too long: 9000 tokens"),
        end.LONG_INPUT,
        quirks=(19,),
    ),
    case(
        "400-reasoning",
        "400, “Reasoning is mandatory for this endpoint…”",
        refusal(400, "Reasoning is mandatory for this endpoint and cannot be disabled."),
        end.REASONING,
    ),
    case(
        "400-effort",
        "400, reasoning and effort contradict each other",
        refusal(400, "Only one of reasoning_effort and reasoning.effort may be set"),
        end.REASONING,
    ),
    case(
        "400-image-url",
        "400, “Invalid image URL…”",
        refusal(400, "Invalid image URL: content_type='text/html'"),
        end.IMAGE,
    ),
    case(
        "400-policy",
        "400, the provider's usage policy, in `metadata.raw`",
        provider_error(400, "This request violates our usage policy"),
        end.MODERATED,
    ),
    case("412", "412", refusal(412), end.BAD_REQUEST),
    case("413", "413", refusal(413), end.LARGE_INPUT, mode="status-413"),
    case("422", "422", refusal(422), end.BAD_REQUEST),
]

KEYS = [
    case(
        "401",
        "401, “User not found.”: the key is unknown or revoked",
        refusal(401, "User not found."),
        end.KEY_REJECTED,
        mode="status-401",
    ),
    case(
        "401-header",
        "401, “No auth credentials found” and its two other wordings",
        refusal(401, "No cookie auth credentials found"),
        end.KEY_REJECTED,
    ),
    case(
        "401-provider", "401 of a provider, not of OpenRouter", provider_error(401, "invalid x-api-key"), end.NOT_LET_IN
    ),
    case(
        "403-management",
        "403, the key is a management key",
        refusal(403, "Management keys cannot be used for inference: this is a management key."),
        end.MANAGEMENT_KEY,
    ),
]

MONEY = [
    case(
        "402",
        "402, out of credits or negative balance",
        refusal(402, "Insufficient credits.", limit_source="openrouter_credits"),
        end.NO_CREDITS,
        mode="status-402",
    ),
    case(
        "402-max-tokens",
        "402, “fewer max_tokens… can only afford M”: the smallest M of all providers is named",
        refusal(402, f"{_AFFORD} 400.", previous_errors=[{"code": 402, "message": f"{_AFFORD} 100."}]),
        end.FEW_CREDITS,
        mode="status-402-max-tokens",
    ),
    case(
        "402-prompt",
        "402, “Prompt tokens limit exceeded”",
        refusal(402, "Prompt tokens limit exceeded: 900 > 500."),
        end.COSTLY_INPUT,
    ),
    case(
        "402-in-flight",
        "402, `in_flight_budget_exhausted`, with `Retry-After`",
        refusal(402, "x", SOON, reason="in_flight_budget_exhausted", limit_source="openrouter_in_flight_budget"),
        end.CREDITS_IN_USE,
        3,
        mode="status-402-in-flight",
    ),
    Case(
        "402-in-flight-once",
        "the same, and the next attempt passes",
        (refusal(402, "x", SOON, reason="in_flight_budget_exhausted"), stream(*WHOLE)),
        attempts=2,
        text="fine",
    ),
    case(
        "402-weight",
        "402, `weight_exceeds_budget`",
        refusal(402, "x", reason="weight_exceeds_budget"),
        end.COSTLY_INPUT,
    ),
    case(
        "402-balance",
        "402, “requires at least $1.00 in balance for image or video output”",
        refusal(
            402,
            "This request requires at least $1.00 in balance for image or video output",
            limit_source="openrouter_key_limit",
        ),
        end.LOW_BALANCE,
    ),
    case(
        "402-key-limit",
        "402 with `limit_source: openrouter_key_limit`, as the documentation has it",
        refusal(402, "x", limit_source="openrouter_key_limit"),
        end.KEY_SPENT,
    ),
    case(
        "403-key-limit",
        "403, “Key limit exceeded (total limit)…”, as it was seen",
        refusal(403, "Key limit exceeded (total limit)."),
        end.KEY_SPENT,
        mode="status-403-limit",
    ),
    case(
        "403-workspace",
        "403, `limit_source: openrouter_workspace_budget`",
        refusal(403, "x", limit_source="openrouter_workspace_budget", scope="workspace", resets_at="2026-12-01"),
        end.KEY_SPENT,
    ),
    case(
        "403-guardrail-budget",
        "403, `limit_source: openrouter_guardrail_budget`",
        refusal(403, "x", limit_source="openrouter_guardrail_budget"),
        end.KEY_SPENT,
    ),
]

FORBIDDEN = [
    case("403", "403 without a word that we know", refusal(403), end.UNEXPLAINED),
    case(
        "403-moderation",
        "403, moderation, which quotes the input back",
        refusal(
            403,
            "requires moderation. Your input was flagged",
            reasons=["misc"],
            flagged_input=LEAK,
            provider_name=LEAK,
            model_slug="a/b",
        ),
        end.MODERATED,
        mode="status-403-moderation",
    ),
    case("403-guardrail", "403, a guardrail with `patterns`", refusal(403, "x", patterns=["ssn"]), end.MODERATED),
    case(
        "403-region", "403, not in this region", refusal(403, "This model is not available in your region"), end.REGION
    ),
    case(
        "403-provider",
        "403, provider not allowed",
        refusal(403, "Provider not allowed by your settings."),
        end.NOT_ALLOWED,
        mode="status-403",
    ),
]

MISSING = [
    case(
        "404",
        "404, nothing serves a listed model",
        refusal(404, "No endpoints found for a/b."),
        end.NOT_SERVED,
        quirks=(23,),
    ),
    case(
        "404-input",
        "404, “No endpoints found that support image input”",
        refusal(404, "No endpoints found that support image input"),
        end.WRONG_KIND,
    ),
    case(
        "404-tools",
        "404, “No endpoints found that support tool use”",
        refusal(404, "No endpoints found that support tool use."),
        end.WRONG_KIND,
    ),
    case(
        "404-parameters",
        "404, “… that can handle the requested parameters” (a strict schema, often)",
        refusal(404, "No endpoints found that can handle the requested parameters."),
        end.WRONG_PARAMETERS,
        quirks=(17,),
        mode="status-404",
    ),
    case(
        "404-policy",
        "404, “… matching your data policy”",
        refusal(
            404,
            "No endpoints found matching your data policy (Free model training).",
            routing_funnel=[],
            failed_routing_step="Filter by Data Policy",
        ),
        end.PRIVACY,
    ),
    case(
        "404-batch",
        "404, “only available through the Batch API”",
        refusal(404, "This model is only available through the Batch API. Use the /api/beta/batches endpoint instead."),
        end.NOT_FOR_CHAT,
    ),
    case(
        "404-free",
        "404, the free period of a `:free` id is over",
        refusal(404, "The free period for this model has ended"),
        end.FREE_ENDED,
        quirks=(27,),
    ),
]

BUSY = [
    case(
        "429",
        "429 of a provider, without a hint",
        provider_error(429, "a/b is temporarily rate-limited upstream.", limit_source="upstream_provider_shared_pool"),
        end.PROVIDER_BUSY,
        3,
        mode="status-429",
    ),
    case(
        "429-hint",
        "429 of a provider, with `Retry-After`",
        refusal(429, "Provider returned error", SOON, provider_name=LEAK, raw="rate-limited upstream"),
        end.PROVIDER_BUSY,
        3,
        mode="status-429-upstream",
    ),
    case(
        "429-hint-inside",
        "429 of a provider, `retry_after_seconds` in the body",
        provider_error(429, "rate-limited upstream", retry_after_seconds=0.05, is_byok=True),
        end.PROVIDER_BUSY,
        3,
    ),
    case(
        "429-hint-long",
        "429 of a provider, to come back in a minute: longer than anybody waits here",
        provider_error(429, "rate-limited upstream", retry_after_seconds=60),
        end.PROVIDER_BUSY,
    ),
    case(
        "429-free-day",
        "429, `free-models-per-day`: the key rests until the reset",
        refusal(
            429,
            "Rate limit exceeded: free-models-per-day.",
            {**LIMITS, "X-RateLimit-Reset": "32503680000000"},
            limit_source="openrouter_free_tier_daily",
        ),
        end.FREE_LIMIT,
    ),
    case(
        "429-free-minute",
        "429, `free-models-per-min`, the headers mirrored in the body",
        refusal(429, "Rate limit exceeded: free-models-per-min.", headers=LIMITS),
        end.FREE_LIMIT,
        3,
        mode="status-429-platform",
    ),
    case(
        "429-rpm",
        "429, `limit_rpm/…` of the platform",
        refusal(429, "Rate limit exceeded: limit_rpm/a/b", SOON),
        end.KEY_BUSY,
        3,
    ),
    case(
        "503",
        "503, nobody meets the routing requirements, or all are overloaded",
        refusal(503, "No available model provider meets your routing requirements."),
        end.DOWN,
        3,
        mode="status-503",
    ),
    case("503-hint", "503 with `Retry-After`", refusal(503, "x", SOON), end.DOWN, 3),
    Case(
        "503-once",
        "503 once, and then an answer",
        (refusal(503), stream(*WHOLE)),
        attempts=2,
        text="fine",
        mode="flaky",
    ),
    case(
        "529",
        "529, the provider is overloaded",
        provider_error(529, '{"type":"overloaded_error"}'),
        end.DOWN,
        3,
        mode="status-529",
    ),
]

BROKEN = [
    case("408", "408", refusal(408), end.PROVIDER_SLOW, 3, mode="status-408"),
    case(
        "500",
        "500, masked: it may be a lasting cause, so once more only",
        refusal(500, "Internal Server Error"),
        end.FAILED,
        2,
        mode="status-500",
    ),
    case(
        "502",
        "502, the provider is down or answered nonsense",
        provider_error(502, '{"error":{"message":"bad gateway"}}'),
        end.FAILED,
        3,
        mode="status-502",
    ),
    case("502-html", "502 as a web page", body(b"<html>502 Bad Gateway</html>", status=502), end.FAILED, 3),
    case(
        "504",
        "504, the provider timed out",
        provider_error(504, "upstream request timeout"),
        end.PROVIDER_SLOW,
        3,
        mode="status-504",
    ),
    case(
        "504-html",
        "504 as a web page: the edge gave up, the call behind it may go on",
        body(b"<html>504</html>", status=504),
        end.PROVIDER_SLOW,
        cost=LOOKUP,
    ),
    case("520", "520 to 527, the edge", body(b"<html>522</html>", status=522), end.DOWN, 3),
    case(
        "524",
        "524, the edge timed out, said in the main envelope",
        refusal(524, "A timeout occurred."),
        end.PROVIDER_SLOW,
        3,
        mode="status-524",
    ),
    case("524-html", "524 as a web page", body(b"error code: 524", status=524), end.PROVIDER_SLOW, cost=LOOKUP),
    case(
        "302",
        "302: redirects are not followed",
        Play((b"x",), status=302, headers={"Location": "http://127.0.0.1:1/"}),
        end.UNEXPLAINED,
    ),
    case("418", "any other 4xx", body(b"short and stout", status=418), end.UNEXPLAINED),
    case(
        "500-huge",
        "an error body of a megabyte",
        body(b'{"error":{"message":"' + b"x" * 1_000_000, status=500),
        end.FAILED,
        2,
    ),
]

WORDS = [
    worded("context_length_exceeded", 400, end.LONG_INPUT),
    worded("max_tokens_exceeded", 400, end.LONG_ANSWER),
    worded("token_limit_exceeded", 400, end.LONG_INPUT),
    worded("string_too_long", 400, end.LONG_INPUT),
    worded("authentication", 401, end.KEY_REJECTED),
    worded("permission_denied", 403, end.UNEXPLAINED),
    worded("payment_required", 402, end.NO_CREDITS),
    worded("rate_limit_exceeded", 429, end.KEY_BUSY),
    worded("provider_overloaded", 529, end.DOWN, 3),
    worded("provider_unavailable", 502, end.FAILED, 3),
    worded("invalid_request", 400, end.BAD_REQUEST),
    worded("invalid_prompt", 400, end.BAD_REQUEST),
    worded("not_found", 404, end.NOT_SERVED),
    worded("precondition_failed", 412, end.BAD_REQUEST),
    worded("payload_too_large", 413, end.LARGE_INPUT),
    worded("unprocessable", 422, end.BAD_REQUEST),
    worded("content_policy_violation", 400, end.MODERATED),
    worded("refusal", 400, end.MODERATED),
    worded("invalid_image", 400, end.IMAGE),
    worded("image_too_large", 400, end.IMAGE),
    worded("image_too_small", 400, end.IMAGE),
    worded("unsupported_image_format", 400, end.IMAGE),
    worded("image_not_found", 400, end.IMAGE),
    worded("image_download_failed", 400, end.IMAGE),
    worded("server", 500, end.FAILED, 2),
    worded("timeout", 504, end.PROVIDER_SLOW, 3),
    worded("unmapped", 502, end.FAILED, 3),
]

AVAILABILITY = [
    available("model_not_found", 400, end.NOT_SERVED),
    available("wrong_endpoint", 400, end.NOT_FOR_CHAT),
    available("no_endpoints", 404, end.NOT_SERVED),
    available("model_deprecated", 404, end.NOT_SERVED),
    available("model_unavailable_upstream", 404, end.NOT_SERVED),
    available("capacity_exhausted", 429, end.PROVIDER_BUSY, 3, retryable=True, retry_after=0.05),
    available("temporarily_unavailable", 503, end.DOWN, 3, retryable=True),
    available("region_restricted", 403, end.REGION),
    available("privacy_restricted", 404, end.PRIVACY),
    available("constraint_filtered", 404, end.WRONG_PARAMETERS, constraint={"field": "max_price", "detail": LEAK}),
    available("free_variant_ended", 404, end.FREE_ENDED, fallback_models=["a/b"]),
    available("never_heard_of", 404, end.NOT_SERVED),
]

REFUSALS = {
    "Statuses: the request": INVALID,
    "Statuses: the key": KEYS,
    "Statuses: money": MONEY,
    "Statuses: forbidden": FORBIDDEN,
    "Statuses: nothing serves it": MISSING,
    "Statuses: later": BUSY,
    "Statuses: broken": BROKEN,
    "The documented words (`metadata.error_type`)": WORDS,
    "The documented `availability`": AVAILABILITY,
}
