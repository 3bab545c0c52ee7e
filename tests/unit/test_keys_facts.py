"""What `GET /key` says, and the health that follows from it."""

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from contracts.errors import ErrorCode
from contracts.keys import Health, KeyRefusal
from services.keys.facts import (
    KeyFacts,
    Refusal,
    health_of,
    is_dead,
    is_spend_limit,
    needs_witnesses,
    next_check_in,
    read_credits,
    read_facts,
)


def answer(**data: Any) -> bytes:
    facts = {"label": "sk-or-v1-abc...123", "limit": None, "limit_remaining": None, "usage": 0, "is_free_tier": False}
    return json.dumps({"data": {**facts, **data}}).encode()


def test_read_facts_keeps_amounts_exact() -> None:
    facts = read_facts(b'{"data": {"limit": 10, "limit_remaining": 0.10000000000000000001, "usage": 9.9}}')
    assert isinstance(facts, KeyFacts)
    assert facts.limit == Decimal(10)
    assert facts.limit_remaining == Decimal("0.10000000000000000001")
    assert facts.usage == Decimal("9.9")
    assert facts.is_free_tier is None


@pytest.mark.parametrize(("remaining", "health"), [(None, "ok"), (0.01, "ok"), (0, "exhausted"), (-1.5, "exhausted")])
def test_health_is_exhausted_when_nothing_remains_and_ok_without_a_cap(remaining: float | None, health: str) -> None:
    facts = read_facts(answer(limit_remaining=remaining))
    assert isinstance(facts, KeyFacts)
    assert health_of(facts) == health


@pytest.mark.parametrize("flag", ["is_management_key", "is_provisioning_key"])
def test_read_facts_refuses_management_keys_under_both_names(flag: str) -> None:
    assert read_facts(answer(**{flag: True})) is Refusal.MANAGEMENT_KEY


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"data": null}', b"<html>", b"\xff\xfe", b'{"data": {"limit": NaN}}', b"[" * 100_000],
)
def test_read_facts_raises_when_the_body_is_no_such_answer(body: bytes) -> None:
    with pytest.raises(ValueError, match="not an answer of GET /key"):
        read_facts(body)


# Credits and limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"data": {"total_credits": 10.5, "total_usage": 0.10000000000000000001}}', "10.39999999999999999999"),
        (b'{"data": {"total_credits": 1, "total_usage": 3}}', "-2"),
        (b'{"data": {"total_credits": 1}}', None),
        (b'{"data": {"total_credits": "many", "total_usage": 0}}', None),
        (b"<html>", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_credits_are_exact_or_unknown(body: bytes, left: str | None) -> None:
    assert read_credits(body) == (None if left is None else Decimal(left))


def test_an_answer_about_the_key_says_nothing_of_credits() -> None:
    facts = read_facts(answer(credits_remaining=5))
    assert isinstance(facts, KeyFacts)
    assert facts.credits_remaining is None


@pytest.mark.parametrize(
    ("body", "limited"),
    [
        (b'{"error": {"message": "Key limit exceeded (total limit). Manage it using ..."}}', True),
        (b'{"error": {"metadata": {"limit_source": "openrouter_workspace_budget"}}}', True),
        (b'{"error": {"metadata": {"limit_source": "openrouter_guardrail_budget"}}}', True),
        (b'{"error": {"message": "Provider not allowed by your settings."}}', False),
        (b"", False),
    ],
)
def test_a_403_is_a_spending_limit_only_when_it_says_so(body: bytes, limited: bool) -> None:
    assert is_spend_limit(body) is limited


@pytest.mark.parametrize(
    ("credit", "free", "health"),
    [("1", False, "ok"), ("0", False, "exhausted"), ("0", True, "ok"), ("0", None, "ok"), ("-1", True, "exhausted")],
)
def test_an_account_that_never_bought_credits_is_not_exhausted_and_one_that_owes_is(
    credit: str, free: bool | None, health: Health
) -> None:
    assert health_of(KeyFacts(credits_remaining=Decimal(credit), is_free_tier=free)) == health


@pytest.mark.parametrize(
    ("refused", "limit_remaining", "credit", "health"),
    [
        (ErrorCode.KEY_REJECTED, None, None, "ok"),
        (ErrorCode.CREDITS_EXHAUSTED, None, None, "exhausted"),
        (ErrorCode.CREDITS_EXHAUSTED, "5", None, "exhausted"),
        (ErrorCode.CREDITS_EXHAUSTED, None, "5", "ok"),
        (ErrorCode.SPEND_LIMIT, None, None, "exhausted"),
        (ErrorCode.SPEND_LIMIT, None, "5", "exhausted"),
        (ErrorCode.SPEND_LIMIT, "5", None, "ok"),
    ],
)
def test_what_can_be_read_counts_more_than_a_refused_run(
    refused: KeyRefusal, limit_remaining: str | None, credit: str | None, health: Health
) -> None:
    facts = KeyFacts.model_validate({"limit_remaining": limit_remaining, "credits_remaining": credit})
    assert health_of(facts, refused) == health


# Belief ---------------------------------------------------------------------------------------------------------------


def test_one_rejection_kills_no_key_whatever_else_is_known() -> None:
    for others_work in (True, False, None):
        assert not is_dead(1, timedelta(days=30), others_work=others_work)
    assert not needs_witnesses(1)


def test_repeated_rejections_kill_a_key_while_others_work() -> None:
    assert is_dead(2, timedelta(minutes=1), others_work=True)


def test_while_no_key_works_it_takes_many_rejections_and_a_whole_day() -> None:
    assert not is_dead(1000, timedelta(hours=23), others_work=False)
    assert not is_dead(99, timedelta(days=30), others_work=False)
    assert is_dead(100, timedelta(days=1), others_work=False)


def test_without_others_it_takes_more_rejections_over_a_longer_time() -> None:
    assert not is_dead(2, timedelta(days=1), others_work=None)
    assert not is_dead(10, timedelta(minutes=14), others_work=None)
    assert is_dead(3, timedelta(minutes=15), others_work=None)


@pytest.mark.parametrize(("health", "minutes"), [("ok", 360), ("exhausted", 15), ("suspect", 5), ("rejected", 30)])
def test_checks_of_many_keys_spread(health: Health, minutes: int) -> None:
    waits = [next_check_in(health).total_seconds() / 60 for _ in range(200)]
    assert 0.8 * minutes <= min(waits) < 0.9 * minutes
    assert 1.1 * minutes < max(waits) <= 1.2 * minutes
