"""The table of upstream errors: one for HTTP statuses and for error objects inside a 200, so that the same failure gets the
same code however it arrives.

Upstream text is read for classification only and never repeated: it holds account ids and people's words. A status of 4xx
or 5xx comes before anything was generated, so nothing is billed unless a fault says `maybe`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from contracts.errors import ErrorCode
from services.executor.faults import KEYS_URL, Fault

CREDITS_URL = "https://openrouter.ai/settings/credits"
PRIVACY_URL = "https://openrouter.ai/settings/privacy"

FREE_TIER = (
    "The daily or per-minute limit of free models is reached for your OpenRouter account. Wait, or buy credits: "
    "ten dollars once lift the daily limit from 50 to 1000 requests."
)
KEY_LIMITED = "OpenRouter limits the requests of the key behind this resource. Try again later."
PROVIDER_LIMITED = "The provider of this model takes no more requests at the moment. Try again shortly."
KEY_REST_S = 60.0
"""How long a key rests after the platform's 429 that names no time."""

_MAX_CLASSIFIED_CHARS = 20_000
_MAX_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class _Facts:
    """What an error says, in the few words that decide."""

    status: int
    word: str
    text: str
    metadata: dict[str, Any]
    availability: dict[str, Any]
    headers: dict[str, str]
    in_stream: bool

    def has(self, pattern: str) -> bool:
        return re.search(pattern, self.text) is not None

    @property
    def limit_source(self) -> str:
        return _word(self.metadata.get("limit_source"))

    @property
    def from_provider(self) -> bool:
        return bool(self.metadata.get("provider_name")) or "provider returned error" in self.text


_STATUS_OF_WORD = {
    "authentication": 401, "authentication_error": 401, "invalid_api_key": 401, "permission_denied": 403,
    "payment_required": 402, "insufficient_quota": 402, "rate_limit_exceeded": 429, "rate_limit_error": 429,
    "provider_overloaded": 529, "overloaded_error": 529, "provider_unavailable": 502, "invalid_request": 400,
    "invalid_request_error": 400, "invalid_prompt": 400, "not_found": 404, "precondition_failed": 412,
    "payload_too_large": 413, "unprocessable": 422, "server": 500, "server_error": 500, "api_error": 500,
    "timeout": 504, "context_length_exceeded": 400, "max_tokens_exceeded": 400, "token_limit_exceeded": 400,
    "string_too_long": 400, "content_policy_violation": 400, "refusal": 400, "content_filter": 400,
    "invalid_image": 400, "image_too_large": 400, "image_too_small": 400, "unsupported_image_format": 400,
    "image_not_found": 400, "image_download_failed": 400,
}  # fmt: skip


def from_response(status: int, headers: Mapping[str, str], body: bytes, *, now_s: float | None = None) -> Fault:
    """The fault of an HTTP answer that is not a success. `now_s` is the Unix time that reset moments are measured from."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    error = parsed.get("error") if isinstance(parsed, dict) else None
    fault = _classify(_facts(error, status, headers, in_stream=False), time.time() if now_s is None else now_s)
    # An edge that gave up waiting says nothing about the request behind it, which may still be running.
    if status in {504, 524} and error is None:
        fault = replace(fault, retry=False, billed="maybe")
    return fault


def from_error(error: object, *, delivered: bool = False, now_s: float | None = None) -> Fault:
    """The fault of an error object inside a 200. Where nothing was delivered, OpenRouter bills nothing for it."""
    fault = _classify(_facts(error, 502, {}, in_stream=True), time.time() if now_s is None else now_s)
    if delivered:
        fault = replace(fault, retry=False, billed="maybe", truncated=True)
    return fault


def _facts(error: object, status: int, headers: Mapping[str, str], *, in_stream: bool) -> _Facts:
    fields: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    metadata = _object(fields.get("metadata"))
    code, kind = fields.get("code"), _word(metadata.get("error_type") or fields.get("error_type") or fields.get("type"))
    word = kind if kind in _STATUS_OF_WORD else _word(code)
    # The HTTP status is the truth where there is one; inside a 200 the error itself has to say.
    if in_stream:
        stated = _status(code) or _status(fields.get("http_status"))
        status = stated or _STATUS_OF_WORD.get(word, status)
    sources = (fields.get("message"), metadata.get("raw"), metadata.get("reason"), metadata.get("provider_error_code"))
    text = " ".join(_flat(source) for source in sources if source)
    return _Facts(
        status,
        word,
        text[:_MAX_CLASSIFIED_CHARS].lower(),
        metadata,
        _object(fields.get("availability")),
        {name.lower(): value for name, value in headers.items()},
        in_stream,
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str:
    return value.lower()[:80] if isinstance(value, str) else ""


def _flat(value: object) -> str:
    """Text to search in; a nested object (metadata.raw, parsed by somebody on the way) as JSON."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError, RecursionError):
        return ""


def _status(code: object) -> int | None:
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599:
        return code
    return None


def _retry_after(facts: _Facts, now_s: float) -> float | None:
    """Seconds until a retry makes sense, from whichever of the five places says so."""
    nested = {name.lower(): value for name, value in _object(facts.metadata.get("headers")).items()}
    seconds = (
        _seconds(facts.headers.get("retry-after"), now_s)
        or _seconds(facts.availability.get("retry_after"), now_s)
        or _seconds(facts.metadata.get("retry_after_seconds"), now_s)
        or _seconds(nested.get("retry-after"), now_s)
    )
    if seconds is None:
        reset = _seconds(facts.headers.get("x-ratelimit-reset") or nested.get("x-ratelimit-reset"), now_s)
        seconds = max(0.0, reset / 1000 - now_s) if reset is not None else None
    return None if seconds is None else min(seconds, _MAX_RETRY_AFTER_S)


def _seconds(value: object, now_s: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        try:
            return max(0.0, parsedate_to_datetime(str(value)).timestamp() - now_s)
        except (ValueError, OverflowError, OSError):
            return None
    return number if math.isfinite(number) and number >= 0 else None


# The table ------------------------------------------------------------------------------------------------------------

_TOO_LONG = (
    r"context.?length|context window|maximum context|token limit|prompt is too long|too many tokens|input is too long"
)
_POLICY = r"content.?policy|content_policy_violation|safety system|violates? .{0,40}polic|usage polic"
_UNAVAILABLE_CODES = frozenset({
    "model_not_found", "wrong_endpoint", "no_endpoints", "model_deprecated", "model_unavailable_upstream",
    "region_restricted", "privacy_restricted", "constraint_filtered", "free_variant_ended",
})  # fmt: skip


def _classify(facts: _Facts, now_s: float) -> Fault:
    fault = _by_availability(facts) or _by_status(facts)
    retryable = facts.availability.get("retryable")
    if isinstance(retryable, bool):
        fault = replace(fault, retry=retryable)
    hinted = fault.retry or fault.code in {ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE}
    retry_after_s = _retry_after(facts, now_s) if hinted else None
    if retry_after_s is None and fault.cools in {"key", "free"}:
        retry_after_s = KEY_REST_S
    return replace(fault, upstream_status=facts.status, retry_after_s=retry_after_s)


def _by_availability(facts: _Facts) -> Fault | None:
    code = _word(facts.availability.get("code"))
    if code in _UNAVAILABLE_CODES:
        return _model_unavailable(facts)
    if code == "capacity_exhausted":
        return _provider_limit()
    if code == "temporarily_unavailable":
        return _provider_down()
    return None


def _by_status(facts: _Facts) -> Fault:
    if facts.status in {400, 412, 413, 422}:
        return _refused_request(facts)
    if facts.status == 401:
        return _unauthorised(facts)
    if facts.status == 402:
        return _unpaid(facts)
    if facts.status == 403:
        return _forbidden(facts)
    if facts.status == 404:
        return _model_unavailable(facts)
    if facts.status == 429:
        return _limited(facts)
    if facts.status in {408, 504, 524}:
        return Fault(ErrorCode.TIMEOUT, "The model's provider did not answer in time. Try again.", retry=True)
    if facts.status in {503, 529} or 520 <= facts.status <= 527:
        return _provider_down()
    if facts.status >= 500:
        return Fault(ErrorCode.UPSTREAM, "OpenRouter or the model's provider failed. Try again.", retry=True)
    return _unexplained()


def _unexplained() -> Fault:
    return Fault(
        ErrorCode.UPSTREAM,
        "OpenRouter refused the request and did not say why. Try again later; if it lasts, tell the owner of the resource.",
    )


def _refused_request(facts: _Facts) -> Fault:
    if facts.word in {"content_policy_violation", "refusal", "content_filter"} or facts.has(_POLICY):
        return _moderated()
    if facts.has(r"not a valid model|model .{0,80}(does not exist|not found)|batch api|endpoint instead"):
        return _model_unavailable(facts)
    if facts.word in {"context_length_exceeded", "token_limit_exceeded", "string_too_long"} or facts.has(_TOO_LONG):
        most = re.search(r"maximum context length (?:is|of) (\d{3,9})", facts.text)
        limit = f" (at most {int(most[1]):,} tokens)" if most else ""
        return Fault(ErrorCode.INVALID, f"The input is too long for this model{limit}. Send less, or ask for less.")
    if facts.word == "max_tokens_exceeded":
        return Fault(
            ErrorCode.INVALID,
            "The resource asks for a longer answer than its model can give. Its owner must lower max_tokens.",
        )
    if facts.status == 413 or facts.word == "payload_too_large":
        return Fault(ErrorCode.INVALID, "The input is too large for OpenRouter. Send less.")
    if facts.has(r"reasoning is mandatory|reasoning.{0,40}effort"):
        return Fault(
            ErrorCode.INVALID,
            "OpenRouter refused the reasoning settings of this resource. Its owner must change its parameters.",
        )
    if "image" in facts.word or facts.has(r"invalid image|image url|image_url"):
        return Fault(ErrorCode.INVALID, "OpenRouter could not use an image of the request. Send another one.")
    return Fault(
        ErrorCode.INVALID,
        "OpenRouter refused the request as invalid. Change the input; should every input be refused, the owner of the "
        "resource must change its parameters.",
    )


def _unauthorised(facts: _Facts) -> Fault:
    if facts.from_provider:
        return Fault(
            ErrorCode.UPSTREAM,
            "The model's provider does not let OpenRouter in. Try again later; if it lasts, the owner of the resource "
            "must choose another model.",
        )
    return Fault(
        ErrorCode.KEY_REJECTED,
        "OpenRouter does not accept your key any more. Connect a valid one, then run it again.",
        action_url=KEYS_URL,
        health="suspect",
    )


def _unpaid(facts: _Facts) -> Fault:
    if facts.has("in_flight_budget") or facts.limit_source == "openrouter_in_flight_budget":
        return Fault(
            ErrorCode.CREDITS_EXHAUSTED,
            "Too many runs are reserving credits of your OpenRouter account at once. Try again in a moment, or add credits.",
            retry=True,
            action_url=CREDITS_URL,
        )
    if facts.has(r"fewer max_tokens|can only afford"):
        # One quote per provider: the smallest passes with all of them.
        quotes = facts.text + _flat(facts.metadata.get("previous_errors"))[:_MAX_CLASSIFIED_CHARS].lower()
        affordable = re.findall(r"can only afford (\d{1,9})", quotes)
        limit = f" to {min(map(int, affordable))} or less" if affordable else ""
        sentence = (
            "Your OpenRouter account cannot cover the longest possible answer. "
            f"Add credits, or lower max_tokens{limit}."
        )
        return Fault(ErrorCode.CREDITS_EXHAUSTED, sentence, action_url=CREDITS_URL)
    if facts.has(r"prompt tokens limit exceeded|weight_exceeds_budget"):
        sentence = "Your OpenRouter account cannot cover a request of this size. Send a shorter input, or add credits."
        return Fault(ErrorCode.CREDITS_EXHAUSTED, sentence, action_url=CREDITS_URL)
    if facts.has(r"at least \$[\d.]+ in balance"):
        sentence = (
            "OpenRouter asks for a minimum balance before it makes images or video. Add credits, or raise the limit of "
            "your key."
        )
        return Fault(ErrorCode.CREDITS_EXHAUSTED, sentence, action_url=CREDITS_URL)
    if _is_spending_limit(facts):
        return _key_spent()
    return Fault(
        ErrorCode.CREDITS_EXHAUSTED,
        "Your OpenRouter account is out of credits. Add some at OpenRouter, then run it again.",
        action_url=CREDITS_URL,
        health="exhausted",
    )


def _forbidden(facts: _Facts) -> Fault:
    if _is_spending_limit(facts) or facts.has("budget"):
        return _key_spent()
    flagged = any(name in facts.metadata for name in ("reasons", "flagged_input", "patterns"))
    if flagged or facts.has(r"moderation|flagged|guardrail") or facts.has(_POLICY):
        return _moderated()
    if facts.has(r"management key|provisioning key"):
        return Fault(
            ErrorCode.KEY_REJECTED,
            "Your key is a management key, which cannot run models. Connect an ordinary one.",
            action_url=KEYS_URL,
            health="suspect",
        )
    if facts.from_provider or facts.has(r"region|country|territor|privacy|data policy|provider"):
        return _model_unavailable(facts)
    return _unexplained()


def _is_spending_limit(facts: _Facts) -> bool:
    """The key's own cap: 403 as seen, 402 as the documentation still says."""
    budgets = {"openrouter_key_limit", "openrouter_workspace_budget", "openrouter_guardrail_budget"}
    return facts.limit_source in budgets or facts.has(r"limit exceeded|spend(ing)? limit")


def _key_spent() -> Fault:
    return Fault(
        ErrorCode.SPEND_LIMIT,
        "Your OpenRouter key has reached its own spending limit. Raise it at OpenRouter, then run it again.",
        action_url=KEYS_URL,
        health="exhausted",
    )


def _moderated() -> Fault:
    return Fault(ErrorCode.MODERATED, "A moderation refused the input. Change it and try again.")


def _model_unavailable(facts: _Facts) -> Fault:
    code, url = _word(facts.availability.get("code")), None
    if facts.has("batch api") or code == "wrong_endpoint" or facts.has("endpoint instead"):
        sentence = "This model cannot be used for chat. The owner of the resource must choose another one."
    elif facts.has("data policy") or code == "privacy_restricted":
        sentence = (
            "The privacy settings of your OpenRouter account rule out every provider of this model. "
            "Change them, or choose another model."
        )
        url = PRIVACY_URL
    elif facts.has(r"support (image|audio|video|file|tool)"):
        sentence = "No provider of this model takes this kind of request. Its owner must choose a model that does."
    elif facts.has(r"requested parameters") or code == "constraint_filtered":
        sentence = "No provider of this model takes all the parameters of the resource. Its owner must change them."
    elif facts.has(r"region|country|territor") or code == "region_restricted":
        sentence = (
            "This model is not offered in the region that asked. The owner of the resource must choose another one."
        )
    elif facts.status == 403:
        sentence = "No provider that may serve this resource has its model. Its owner must choose another one."
    elif facts.has("free period|free variant|free model.{0,40}end") or code == "free_variant_ended":
        sentence = "The free period of this model is over. The owner must choose its paid version or another model."
    else:
        sentence = "Nothing serves this model at present. The owner of the resource must choose another one."
    return Fault(ErrorCode.MODEL_UNAVAILABLE, sentence, action_url=url)


def _limited(facts: _Facts) -> Fault:
    if "free-models" in facts.text or facts.limit_source.startswith("openrouter_free_tier"):
        return Fault(
            ErrorCode.RATE_LIMITED, FREE_TIER, retry=True, scope="key", action_url=CREDITS_URL, cools="free"
        )  # fmt: skip
    # What breaks a stream that has begun is the provider's limit: the platform's own is checked before the 200.
    if facts.from_provider or facts.in_stream or facts.limit_source.startswith("upstream") or "upstream" in facts.text:
        return _provider_limit()
    return Fault(ErrorCode.RATE_LIMITED, KEY_LIMITED, retry=True, scope="key", cools="key")


def _provider_limit() -> Fault:
    return Fault(ErrorCode.RATE_LIMITED, PROVIDER_LIMITED, retry=True, cools="model")


def _provider_down() -> Fault:
    return Fault(ErrorCode.UNAVAILABLE, "No provider of this model can answer at the moment. Try again.", retry=True)
