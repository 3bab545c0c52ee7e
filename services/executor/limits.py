"""Limits on runs: what holds for which, and what somebody is told whose run is refused by one.

Pure. The numbers are compared in the database, under the lock of the key's owner; here they get names and sentences. A
creator is told which limit it was and how it stands, a caller only that it is reached and when to come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal
from uuid import UUID

from contracts.catalog import ResolvedResource
from contracts.errors import ErrorCode, Scope, ServiceError
from contracts.execution import Caller
from contracts.market import ResourceBudgets
from contracts.money import plain
from services.executor.access import error_for_caller, is_creator
from services.executor.faults import Fault
from services.executor.refusals import CREDITS_URL, FREE_TIER, KEY_LIMITED, KEY_REST_S, PROVIDER_LIMITED

MODEL_REST_S = 10.0
"""How long a model rests where its provider names no time."""
_CREATORS_DAY = "What the creator of this resource spends on runs in a day"
LONGEST_REST_S = 3600.0
"""Whatever upstream says, it is asked once an hour: credits may have been bought, and resets moved."""
_HELD_RETRY_S = 5.0
"""What runs under way hold is free again when they end, and most of it is not used."""

CoolingReason = Literal["platform", "free_tier", "provider"]


@dataclass(frozen=True)
class Rates:
    """Requests per minute on one key: of all its callers, and of each. 0 is no limit."""

    per_key: int
    per_caller: int


UNLIMITED = Rates(0, 0)


@dataclass(frozen=True)
class KeyLimits:
    """What every creator's key takes: runs at once, over all executors, and requests per minute."""

    running: int
    rates: Rates


@dataclass(frozen=True)
class Hold:
    """The most that a run can cost, and the daily limits that must have room for it. USD; None is no limit."""

    usd: Decimal
    key_usd: Decimal | None
    resource_usd: Decimal | None
    caller_usd: Decimal | None


@dataclass(frozen=True)
class Admission:
    """What became of a request. `reason` is that of a cooldown, or whose minute is full (`key`, `caller`), or which daily
    limit has no room (`key`, `resource`, `caller`); the amounts say how that limit stands."""

    outcome: Literal["admitted", "existing", "conflict", "cooling", "rate", "full", "budget"]
    execution_id: UUID
    at: datetime
    reason: str | None = None
    wait_s: float | None = None
    limit_usd: Decimal | None = None
    spent_usd: Decimal | None = None
    held_usd: Decimal | None = None


# Daily limits ---------------------------------------------------------------------------------------------------------


def is_limited(budgets: ResourceBudgets, owner: str, caller: Caller) -> bool:
    """Whether any daily limit concerns a run of this caller."""
    return any(
        limit is not None
        for limit in (budgets.key_daily_usd, budgets.resource_daily_usd, caller_limit(budgets, owner, caller))
    )


def caller_limit(budgets: ResourceBudgets, owner: str, caller: Caller) -> Decimal | None:
    """A caller's own limit, or the one of all callers, which never concerns the creator."""
    for own in budgets.callers:
        if (own.caller_kind, own.caller_id) == (caller.kind, caller.id):
            return own.daily_usd
    return None if is_creator(owner, caller) else budgets.caller_daily_usd


def hold_of(resource: ResolvedResource, caller: Caller, most_usd: Decimal) -> Hold:
    """What admission has to find room for. Raises CONFLICT when a limit is below what one run may cost."""
    budgets = resource.budgets
    hold = Hold(
        most_usd,
        budgets.key_daily_usd,
        budgets.resource_daily_usd,
        caller_limit(budgets, resource.owner, caller),
    )
    for scope, limit in (("key", hold.key_usd), ("resource", hold.resource_usd), ("caller", hold.caller_usd)):
        if limit is not None and most_usd > limit:
            raise ServiceError(
                ErrorCode.CONFLICT,
                f"This run may cost up to {plain(most_usd)} USD, more than {_whose(scope)}, {plain(limit)} USD a day. Raise"
                " it in your settings (PUT /api/budgets), or lower max_tokens of the resource."
                if is_creator(resource.owner, caller)
                else "This run may cost more than the creator of the resource spends in a day. Send a shorter input.",
            )
    return hold


def _whose(scope: str | None) -> str:
    return {"key": "the limit of your key", "resource": "the limit of this resource"}.get(
        scope or "", "the limit of this caller"
    )


# Cooldowns ------------------------------------------------------------------------------------------------------------


def cooldowns_of(resource: ResolvedResource) -> list[str]:
    """The cooldowns that concern runs of a resource. That of one model does not where upstream falls back by itself."""
    about = ["key"]
    if resource.model.price_kind == "free":
        about.append("free")
    if not resource.config.fallback_models:
        about.append(f"model:{resource.config.model_id}")
    return about


@dataclass(frozen=True)
class Cooldown:
    about: str
    reason: CoolingReason
    rest: timedelta


def cooldown_after(fault: Fault, resource: ResolvedResource) -> Cooldown | None:
    """What has to rest after this fault, and how long; None when nothing has to."""
    if fault.cools is None:
        return None
    default_s = MODEL_REST_S if fault.cools == "model" else KEY_REST_S
    hint_s = default_s if fault.retry_after_s is None else fault.retry_after_s
    rest = timedelta(seconds=min(hint_s, LONGEST_REST_S))
    if fault.cools == "model":
        # A resource may narrow down its providers, so what one meets says nothing about another creator's calls.
        return Cooldown(f"model:{resource.config.model_id}", "provider", rest)
    if fault.cools == "key":
        return Cooldown("key", "platform", rest)
    # Models that cost something go on, unless it was one of them that was refused.
    return Cooldown("free" if resource.model.price_kind == "free" else "key", "free_tier", rest)


# Refusals -------------------------------------------------------------------------------------------------------------


def refusal(admission: Admission, owner: str, caller: Caller, hold: Hold | None) -> ServiceError:
    """The error of an admission that was refused by a cooldown, the minute, or a daily limit."""
    if admission.outcome == "cooling":
        message = {"free_tier": FREE_TIER, "provider": PROVIDER_LIMITED}.get(admission.reason or "", KEY_LIMITED)
        action_url = CREDITS_URL if admission.reason == "free_tier" else None
        error = _limited(message, "key", admission.wait_s or 0.0, action_url=action_url)
        return ServiceError.from_body(error_for_caller(error.body, owner, caller))
    if admission.outcome == "rate":
        scope: Scope = "caller" if admission.reason == "caller" else "key"
        whose = "of yours on this creator's key" if scope == "caller" else "with this creator's key"
        return _limited(f"Too many requests {whose} in a minute. Send fewer, evenly.", scope, admission.wait_s or 0.0)
    assert hold is not None
    return _over_budget(admission, owner, caller, hold)


def _over_budget(admission: Admission, owner: str, caller: Caller, hold: Hold) -> ServiceError:
    assert admission.limit_usd is not None
    assert admission.spent_usd is not None
    assert admission.held_usd is not None
    until_midnight_s = (_next_midnight(admission.at) - admission.at).total_seconds()
    # What is merely held comes free when runs end, most of it unused; what is spent comes back tomorrow.
    soon = admission.spent_usd + hold.usd <= admission.limit_usd
    wait_s = min(_HELD_RETRY_S, until_midnight_s) if soon else until_midnight_s
    when = "in a few seconds, when runs under way have ended" if soon else "after midnight UTC"
    scope: Scope = "caller" if admission.reason == "caller" else "key"
    if is_creator(owner, caller):
        left = admission.limit_usd - admission.spent_usd - admission.held_usd
        return _limited(
            f"This run may cost up to {plain(hold.usd)} USD, and {_whose(admission.reason)} of"
            f" {plain(admission.limit_usd)} USD a day has {plain(max(left, Decimal(0)))} USD left"
            f" ({plain(admission.spent_usd)} spent, {plain(admission.held_usd)} held by runs under way)."
            f" Try again {when}, or raise it in your settings (PUT /api/budgets).",
            scope,
            wait_s,
        )
    used_up = "What the creator of this resource lets you use in a day" if scope == "caller" else _CREATORS_DAY
    return _limited(f"{used_up} is used up at the moment. Try again {when}.", scope, wait_s)


def _limited(message: str, scope: Scope, wait_s: float, *, action_url: str | None = None) -> ServiceError:
    return ServiceError(
        ErrorCode.RATE_LIMITED, message, retry_after_s=round(wait_s, 3), scope=scope, action_url=action_url
    )


def _next_midnight(moment: datetime) -> datetime:
    return datetime.combine(moment.astimezone(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
