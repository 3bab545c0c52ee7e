"""What upstream says about a key, and the health that follows from it. Decides only; `verify.py` does the asking.

The one thing a reader would get wrong: `limit: null` means that the key has no cap of its own, not that the account
behind it has money. Only `limit_remaining` at zero says that a key cannot pay.
"""

from __future__ import annotations

import json
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from contracts.keys import Health
from contracts.money import Usd

REJECTIONS_TO_BELIEVE = 2
"""OpenRouter had outages that answered 401 to good keys, so a stored key is called dead when it happens again."""


class Refusal(StrEnum):
    """Clear answers of upstream that are not facts about a usable key."""

    UNKNOWN_KEY = "unknown_key"
    MANAGEMENT_KEY = "management_key"
    NO_CREDITS = "no_credits"


class KeyFacts(BaseModel):
    """The part of `GET /key` that is kept. Account ids and the label (often the owner's own words) are not."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    limit: Usd | None = None
    limit_remaining: Usd | None = None
    limit_reset: Annotated[str, StringConstraints(max_length=40)] | None = None
    usage: Usd | None = None
    is_free_tier: bool | None = None
    expires_at: AwareDatetime | None = None

    @property
    def health(self) -> Health:
        return "exhausted" if self.limit_remaining is not None and self.limit_remaining <= 0 else "ok"


class _KeyData(KeyFacts):
    is_management_key: bool | None = None
    is_provisioning_key: bool | None = None


class _KeyAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    data: _KeyData


def read_facts(body: bytes) -> KeyFacts | Refusal:
    """What a 200 of `GET /key` says. Raises ValueError, without quoting it, for a body that is not such an answer."""
    try:
        data = _KeyAnswer.model_validate(json.loads(body, parse_float=Decimal)).data
    except (ValueError, ValidationError, RecursionError):
        raise ValueError("not an answer of GET /key") from None
    if data.is_management_key or data.is_provisioning_key:
        return Refusal.MANAGEMENT_KEY
    return data
