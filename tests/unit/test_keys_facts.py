"""What `GET /key` says, and the health that follows from it."""

import json
from decimal import Decimal
from typing import Any

import pytest

from services.keys.facts import KeyFacts, Refusal, health_of, read_facts


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
