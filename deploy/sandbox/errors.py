"""The refusals of OpenRouter, word for word where they were recorded.

A refusal is an answer with a status before any generation started; errors inside a 200 are made where the stream is made.
The message of a body is not to be matched by clients, its status and `metadata` are.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import orjson

USER_ID = "user_SANDBOX"
RATE_LIMIT_MS = 3000


@dataclass(frozen=True, slots=True)
class Refusal:
    """One error answer: HTTP status, body as served, and headers beside the content type."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def refuse(
    status: int,
    message: str,
    metadata: dict[str, Any] | None = None,
    *,
    user: bool = True,
    headers: dict[str, str] | None = None,
) -> Refusal:
    """An answer in the main envelope; `user` adds the account id, which real bodies leak once a key was read."""
    error: dict[str, Any] = {"message": message, "code": status}
    if metadata is not None:
        error["metadata"] = metadata
    body: dict[str, Any] = {"error": error}
    if user:
        body["user_id"] = USER_ID
    return Refusal(status, orjson.dumps(body), headers or {})


NO_AUTH = refuse(401, "No cookie auth credentials found", user=False)
UNKNOWN_KEY = refuse(401, "User not found.", user=False)
MANAGEMENT_KEY = refuse(403, "Management keys cannot be used for inference.", user=False)
OUT_OF_CREDITS = refuse(
    402,
    "Insufficient credits. Add more using https://openrouter.ai/settings/credits",
    {
        "error_type": "payment_required",
        "limit_source": "openrouter_credits",
        "remedy_hint": "Add credits at https://openrouter.ai/settings/credits.",
    },
)
KEY_LIMIT = refuse(
    403,
    "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys",
    {"limit_source": "openrouter_key_limit", "error_type": "permission_denied"},
)
TOO_LARGE = refuse(413, "Request body too large.", {"error_type": "payload_too_large"}, user=False)
BATCH_ONLY = refuse(
    404,
    "This model is only available through the Batch API. Use the /api/beta/batches endpoint instead.",
    user=False,
)


def invalid_query(parameter: str, message: str) -> Refusal:
    """The second envelope of OpenRouter: a 400 whose error has a name and no code."""
    issues = orjson.dumps([{"code": "invalid_value", "path": [parameter], "message": message}]).decode()
    return Refusal(400, orjson.dumps({"success": False, "error": {"name": "ZodError", "message": issues}}))


def unknown_model(model: str) -> Refusal:
    """An id that is nowhere in the catalog."""
    return refuse(400, f"{model} is not a valid model ID")


def no_endpoints(what: str) -> Refusal:
    """Nothing serves this model or this kind of input: `what` continues the sentence."""
    funnel = {"routing_funnel": [{"step": "Initial Endpoints", "endpoint_count": 0}]}
    return refuse(404, f"No endpoints found {what}.", funnel)


def provider_error(status: int, raw: str, error_type: str, **metadata: Any) -> Refusal:
    """The masked form: the cause is in `metadata.raw` alone."""
    facts = {"raw": raw, "provider_name": "Sandbox", "is_byok": False, "error_type": error_type}
    return refuse(status, "Provider returned error", facts | metadata)


def of_mode(mode: str, model: str, prompt: str, max_tokens: int | None) -> Refusal | None:
    """The refusal of a `status-…` mode, or None where the request passes.

    Args:
        mode: name of the mode, with its `status-` in front.
        model: the requested id, named in some messages.
        prompt: the last user message; moderation quotes it.
        max_tokens: what the request asked for; None reserves the maximum.
    """
    if mode == "status-402-max-tokens":
        return _max_tokens(max_tokens)
    if mode == "status-403-moderation":
        return _moderation(model, prompt)
    if mode == "status-429-platform":
        return _platform_limit()
    return _FIXED[mode]


def _max_tokens(max_tokens: int | None) -> Refusal | None:
    affordable = 100
    asked = 65536 if max_tokens is None else max_tokens
    if asked <= affordable:
        return None
    message = (
        f"This request requires more credits, or fewer max_tokens. You requested up to {asked} tokens, "
        f"but can only afford {affordable}. To increase, visit https://openrouter.ai/settings/credits"
    )
    previous = [{"code": 402, "message": message}]
    return refuse(402, message, {"error_type": "payment_required", "previous_errors": previous})


def _moderation(model: str, prompt: str) -> Refusal:
    flagged = prompt if len(prompt) <= 100 else f"{prompt[:50]}...{prompt[-47:]}"
    return refuse(
        403,
        f'{model} requires moderation on Sandbox. Your input was flagged for "misc". No credits were charged.',
        {"reasons": ["misc"], "flagged_input": flagged, "provider_name": "Sandbox", "model_slug": model},
    )


def _platform_limit() -> Refusal:
    headers = {
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int(time.time() * 1000) + RATE_LIMIT_MS),
    }
    metadata = {"headers": headers, "error_type": "rate_limit_exceeded"}
    return refuse(429, "Rate limit exceeded: free-models-per-min. ", metadata, headers=headers)


_FIXED = {
    "status-400": refuse(
        400,
        "This endpoint's maximum context length is 4096 tokens. However, you requested about 9000 tokens.",
        {"error_type": "context_length_exceeded", "previous_errors": []},
    ),
    "status-401": UNKNOWN_KEY,
    "status-402": OUT_OF_CREDITS,
    "status-402-in-flight": refuse(
        402,
        "Too many requests in flight for the remaining budget. Retry shortly.",
        {
            "error_type": "payment_required",
            "reason": "in_flight_budget_exhausted",
            "limit_source": "openrouter_in_flight_budget",
        },
        headers={"Retry-After": "1"},
    ),
    "status-403": refuse(403, "Provider not allowed by your settings.", {"error_type": "permission_denied"}),
    "status-403-limit": KEY_LIMIT,
    "status-404": no_endpoints("that can handle the requested parameters"),
    "status-408": refuse(408, "Request timed out.", {"error_type": "timeout"}),
    "status-413": TOO_LARGE,
    "status-429": provider_error(
        429,
        "sandbox/status-429 is temporarily rate-limited upstream. Please retry shortly.",
        "rate_limit_exceeded",
        limit_source="upstream_provider_shared_pool",
    ),
    "status-429-upstream": Refusal(
        429,
        provider_error(
            429,
            "sandbox/status-429-upstream is temporarily rate-limited upstream. Please retry shortly.",
            "rate_limit_exceeded",
            limit_source="upstream_provider_shared_pool",
            retry_after_seconds=1,
            headers={"Retry-After": "1"},
        ).body,
        {"Retry-After": "1"},
    ),
    "status-500": refuse(500, "Internal Server Error", {"error_type": "server"}),
    "status-502": provider_error(502, '{"error":{"message":"bad gateway"}}', "provider_unavailable"),
    "status-503": refuse(503, "No available model provider meets your routing requirements.", {"error_type": "server"}),
    "status-504": provider_error(504, "upstream request timeout", "timeout"),
    "status-524": refuse(524, "A timeout occurred.", {"error_type": "timeout"}, user=False),
    "status-529": provider_error(529, '{"type":"overloaded_error","message":"Overloaded"}', "provider_overloaded"),
}

FLAKY = refuse(503, "Temporarily unavailable.", {"error_type": "server"}, headers={"Retry-After": "0"})
