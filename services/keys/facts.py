"""What upstream says about a key, and the health that follows from it. Decides only; `verify.py` does the asking.

Two things a reader would get wrong. `limit: null` means that the key has no cap of its own, not that the account behind
it has money. And a 401 does not mean that a key is dead: OpenRouter had outages that answered 401 to good keys, so it
must come again after a while, and keys of other owners must work meanwhile. Where none of them does, only a day without a
single answer to the contrary tells dead keys from an outage.
"""

from __future__ import annotations

import json
import random
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from contracts.errors import ErrorCode
from contracts.keys import Health, KeyRefusal
from contracts.money import Usd

REJECTION_SPACING = timedelta(minutes=1)
"""Answers of 401 closer together than this are one: an outage repeats itself as well."""
_REJECTIONS = 2
_REJECTIONS_ALONE = 3
_ALONE_FOR = timedelta(minutes=15)
# Both, so that neither two refusals with a day of our own silence between them nor many at once are taken for a day of them.
_REJECTIONS_UNHEARD = 100
_UNHEARD_FOR = timedelta(days=1)
_CHECK_EVERY: dict[Health, timedelta] = {
    "ok": timedelta(hours=6),
    "exhausted": timedelta(minutes=15),
    "suspect": timedelta(minutes=5),
    "rejected": timedelta(minutes=30),
}
_JITTER = 0.2
_SPEND_LIMIT_WORDS = (
    b"limit exceeded",
    b"openrouter_key_limit",
    b"openrouter_workspace_budget",
    b"openrouter_guardrail_budget",
)


class Refusal(StrEnum):
    """Clear answers of upstream that are not facts about a usable key."""

    UNKNOWN_KEY = "unknown_key"
    MANAGEMENT_KEY = "management_key"
    NO_CREDITS = "no_credits"
    SPEND_LIMIT = "spend_limit"


class KeyFacts(BaseModel):
    """The part of `GET /key` that is kept. Account ids and the label (often the owner's own words) are not."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    limit: Usd | None = None
    limit_remaining: Usd | None = None
    limit_reset: Annotated[str, StringConstraints(max_length=40)] | None = None
    usage: Usd | None = None
    is_free_tier: bool | None = None
    expires_at: AwareDatetime | None = None
    credits_remaining: Usd | None = None


class _KeyData(KeyFacts):
    is_management_key: bool | None = None
    is_provisioning_key: bool | None = None


class _KeyAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    data: _KeyData


class _CreditsData(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    total_credits: Usd
    total_usage: Usd


class _CreditsAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    data: _CreditsData


def read_facts(body: bytes) -> KeyFacts | Refusal:
    """What a 200 of `GET /key` says. Raises ValueError, without quoting it, for a body that is not such an answer."""
    try:
        data = _KeyAnswer.model_validate(json.loads(body, parse_float=Decimal)).data
    except (ValueError, ValidationError, RecursionError):
        raise ValueError("not an answer of GET /key") from None
    if data.is_management_key or data.is_provisioning_key:
        return Refusal.MANAGEMENT_KEY
    return data.model_copy(update={"credits_remaining": None})


def read_credits(body: bytes) -> Decimal | None:
    """What a 200 of `GET /credits` says that the account has left, in USD; None for a body that is not such an answer."""
    try:
        data = _CreditsAnswer.model_validate(json.loads(body, parse_float=Decimal)).data
    except (ValueError, ValidationError, RecursionError):
        return None
    return data.total_credits - data.total_usage


def is_spend_limit(body: bytes) -> bool:
    """Whether a 402 or 403 is a spending limit: the documents of OpenRouter say 402 for it, and its answers 403."""
    text = body[:20_000].lower()
    return any(words in text for words in _SPEND_LIMIT_WORDS)


def health_of(facts: KeyFacts, refused: KeyRefusal | None = None) -> Health:
    """The health of a key that upstream knows. `refused` is what upstream refused a run with just now.

    What can be read counts more than the refused run: its answer may be older, and of another limit.
    """
    if facts.limit_remaining is not None and facts.limit_remaining <= 0:
        return "exhausted"
    credit = facts.credits_remaining
    # Free models run on an account that never bought credits, but on none that owes some.
    if credit is not None and (credit < 0 or (credit == 0 and facts.is_free_tier is False)):
        return "exhausted"
    if refused is ErrorCode.CREDITS_EXHAUSTED and credit is None:
        return "exhausted"
    # Budgets of a workspace or a guardrail answer as the key's own limit does, and are not among the facts.
    if refused is ErrorCode.SPEND_LIMIT and facts.limit_remaining is None:
        return "exhausted"
    return "ok"


def needs_witnesses(rejections: int) -> bool:
    """Whether so many rejections could mean a dead key, so that it is worth asking whether other keys work."""
    return rejections >= _REJECTIONS


def is_dead(rejections: int, refused_for: timedelta, *, others_work: bool | None) -> bool:
    """Whether a key that upstream refused so often, over so long, is believed to be dead.

    `others_work` is what upstream says of other owners' keys meanwhile, None where there is nobody to compare with.
    """
    if others_work is None:
        return rejections >= _REJECTIONS_ALONE and refused_for >= _ALONE_FOR
    if others_work:
        return needs_witnesses(rejections)
    # An outage, or the others are dead as well: only time tells.
    return rejections >= _REJECTIONS_UNHEARD and refused_for >= _UNHEARD_FOR


def next_check_in(health: Health) -> timedelta:
    """When to ask about a key again; with jitter, so that keys connected together are not asked about together."""
    return _CHECK_EVERY[health] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, guards nothing
