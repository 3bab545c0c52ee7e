"""Prices as the page of a model words and draws them, the odd ones too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from contracts.catalog import ModelPricing, PriceChange
from contracts.providers import ModelProvider
from services.console import prices, text

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)


def pricing(prompt: str = "0.000001", completion: str = "0.000002", kind: str = "fixed", **more: Any) -> ModelPricing:
    return ModelPricing.model_validate({"prompt": prompt, "completion": completion, "price_kind": kind, **more})


def tiered(*overrides: dict[str, Any], **more: str) -> ModelPricing:
    return pricing(kind="tiered", overrides=list(overrides), **more)


def test_tiers_hold_what_the_lower_ones_changed() -> None:
    found = prices.tiers(
        tiered(
            {"min_prompt_tokens": 32_000, "prompt": "0.000002", "input_cache_read": "0.0000005"},
            {"min_prompt_tokens": 128_000, "completion": "0.000008"},
            input_cache_read="0.0000001",
        )
    )
    assert found.columns == ["In", "Out", "Read from the cache"]
    assert found.rows == [
        ("the prompt has up to 32K tokens", ["$1.00", "$2.00", "$0.10"]),
        ("the prompt has more than 32K tokens", ["$2.00", "$2.00", "$0.50"]),
        ("the prompt has more than 128K tokens", ["$2.00", "$8.00", "$0.50"]),
    ]


def test_conditions_of_time_and_strange_ones_are_told_and_never_mixed() -> None:
    found = prices.tiers(
        tiered(
            {"utc_start": "1630", "utc_end": "0030", "prompt": "0.0000005"},
            {"min_prompt_tokens": 1000, "utc_start": "2200", "completion": "0.000001"},
            {"unreadable_condition": "1", "prompt": "what?", "audio": "0.000003"},
        )
    )
    assert [row.when for row in found.rows] == [
        "otherwise",
        "it is 16:30 to 00:30 UTC",
        "the prompt has more than 1K tokens and it is 22:00 to 00:00 UTC",
        "a condition holds that only OpenRouter knows",
    ]
    assert [row.prices for row in found.rows] == [
        ["$1.00", "$2.00", "—"],
        ["$0.50", "$2.00", "—"],
        ["$1.00", "$1.00", "—"],
        ["unknown", "$2.00", "$3.00"],
    ]


def test_what_is_priced_beside_text_is_told_with_its_unit() -> None:
    stated = {"web_search": "0.014", "audio": "0.000001", "strange_thing": "0.5", "discount": "0.1", "image": "-1"}
    assert prices.beside(pricing(**stated)) == [
        ("Pictures in, per million", "unknown"),
        ("Sound in, per million", "$1.00"),
        ("Each web search", "$0.0140"),
        ("strange thing", "0.5"),
    ]
    assert prices.beside(tiered({"min_prompt_tokens": 1, "audio": "0.000002"}, audio="0.000001")) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [("runtime", "decided at run time"), ("unknown", "not stated"), ("free", "free"), ("fixed", "$1.00")],
)
def test_a_price_that_is_none_is_said_in_words(kind: str, words: str) -> None:
    assert prices.shown(pricing(kind=kind), "prompt") == words


def test_the_history_is_drawn_from_first_to_now_with_a_gap_where_nothing_is_known() -> None:
    known = [
        pricing(),
        pricing("0", "0", "unknown"),
        pricing("0.000002", "0.000004", input_cache_read="0.000001"),
        tiered({"min_prompt_tokens": 1, "prompt": "0.000009"}),
    ]
    changes = [PriceChange(since=NOW - timedelta(days=8 - 2 * n), pricing=each) for n, each in enumerate(known)]
    found = prices.history(changes, NOW)
    assert found.highest == Decimal(4)
    assert found.prompt == ["0.0,122.0 160.0,122.0", "320.0,84.0 480.0,84.0 480.0,122.0 640.0,122.0"]
    assert found.completion == ["0.0,84.0 160.0,84.0", "320.0,8.0 480.0,8.0 480.0,84.0 640.0,84.0"]
    assert found.ticks == [160, 320, 480]
    assert [(row.prompt, row.others) for row in found.rows] == [
        ("$1.00", ["read from the cache", "conditions"]),
        ("$2.00", ["read from the cache"]),
        ("not stated", []),
        ("$1.00", []),
    ]
    assert found.described == (
        "The price has changed 3 times since 15 Nov 2026: in from $1.00 to $1.00, out from $2.00 to $2.00."
    )


def test_a_history_of_one_price_is_a_level_line_and_none_at_all_is_nothing() -> None:
    found = prices.history([PriceChange(since=NOW, pricing=pricing())], NOW)
    assert found.prompt == ["0.0,84.0 0.0,84.0"]
    assert found.described == "The price has not changed since 23 Nov 2026: $1.00 in, $2.00 out."
    assert prices.history([], NOW).rows == []
    free = prices.history([PriceChange(since=NOW, pricing=pricing("0", "0", "free"))], NOW)
    unknown = prices.history([PriceChange(since=NOW, pricing=pricing("-1", "-1", "runtime"))], NOW)
    assert free.highest == Decimal(0)
    assert unknown.highest is None


@pytest.mark.parametrize(
    ("typical", "healthy", "lowest"),
    [
        (["2", "1", None], [True, None, True], "1"),
        (["2", "1"], [True, False], None),
        (["1", "1"], [True, True], None),
        (["1", None], [True, True], None),
        ([], [], None),
    ],
)
def test_the_cheapest_is_well_and_cheaper_than_somebody(
    typical: list[str | None], healthy: list[bool | None], lowest: str | None
) -> None:
    offers = [
        ModelProvider.model_validate({"name": "x", "pricing": pricing(), "typical_call_usd": price, "healthy": well})
        for price, well in zip(typical, healthy, strict=True)
    ]
    assert prices.cheapest(offers) == (Decimal(lowest) if lowest else None)


@pytest.mark.parametrize(
    ("share", "words"), [(100, "100%"), (99.999, "99.99%"), (99.91164, "99.91%"), (0, "0%"), (Decimal("12.5"), "12.5%")]
)
def test_only_all_is_a_hundred_percent(share: float | Decimal, words: str) -> None:
    assert text.percent(share) == words
