"""Which refusals of upstream are reasons to ask about the key: of the six kinds of 402 one, of the kinds of 403 the limits."""

import json
from typing import Any

import pytest

from contracts.errors import ErrorCode
from services.executor.refusals import from_response


@pytest.mark.parametrize(
    ("status", "message", "metadata", "code", "health"),
    [
        (401, "User not found.", {}, ErrorCode.KEY_REJECTED, "suspect"),
        (401, "Provider returned error", {"provider_name": "X"}, ErrorCode.UPSTREAM, None),
        # The six kinds of 402: only an empty account says something about every other run.
        (402, "Insufficient credits", {"limit_source": "openrouter_credits"}, ErrorCode.CREDITS_EXHAUSTED, "exhausted"),
        (402, "You requested up to 9 tokens, but can only afford 5. Use fewer max_tokens", {},
         ErrorCode.CREDITS_EXHAUSTED, None),
        (402, "Prompt tokens limit exceeded: 9 > 5", {}, ErrorCode.CREDITS_EXHAUSTED, None),
        (402, "x", {"reason": "in_flight_budget_exhausted"}, ErrorCode.CREDITS_EXHAUSTED, None),
        (402, "x", {"reason": "weight_exceeds_budget"}, ErrorCode.CREDITS_EXHAUSTED, None),
        (402, "Image generation needs at least $0.5 in balance", {}, ErrorCode.CREDITS_EXHAUSTED, None),
        # A spending limit answers 403; other 403s say nothing about the key.
        (403, "Key limit exceeded (total limit).", {}, ErrorCode.SPEND_LIMIT, "exhausted"),
        (403, "x", {"limit_source": "openrouter_workspace_budget"}, ErrorCode.SPEND_LIMIT, "exhausted"),
        (403, "x", {"reasons": ["misc"], "flagged_input": "…"}, ErrorCode.MODERATED, None),
        (403, "Provider not allowed by your settings.", {}, ErrorCode.MODEL_UNAVAILABLE, None),
        (429, "Rate limit exceeded: limit_rpm/a/b", {}, ErrorCode.RATE_LIMITED, None),
    ],
)  # fmt: skip
def test_only_refusals_about_the_key_itself_have_it_asked_about(
    status: int, message: str, metadata: dict[str, Any], code: ErrorCode, health: str | None
) -> None:
    body = json.dumps({"error": {"code": status, "message": message, "metadata": metadata}}).encode()
    fault = from_response(status, {}, body, now_s=0)
    assert (fault.code, fault.health) == (code, health)
