"""How the console writes amounts, counts and moments."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.market import RunCost
from services.console import text

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("amount", "written"),
    [
        (None, "unknown"),
        ("0", "$0.00"),
        ("12.3", "$12.30"),
        ("1234.5", "$1,234.50"),
        ("0.01", "$0.01"),
        ("0.0091", "$0.0091"),
        ("0.00912", "$0.0091"),
        ("0.0000258", "$0.0000258"),
        ("0.00000001792", "$0.0000000179"),
        ("1E-10", "$0.0000000001"),
        ("-0.005", "−$0.0050"),
        ("-2", "−$2.00"),
    ],
)
def test_amounts_are_written_for_people(amount: str | None, written: str) -> None:
    assert text.money(None if amount is None else Decimal(amount)) == written


def _cost(model: str | None, price: str | None) -> RunCost:
    known = model is not None and price is not None
    markup = Decimal(price or 0) - Decimal(model or 0) if known else None
    return RunCost(
        model_usd=None if model is None else Decimal(model),
        markup_usd=markup,
        price_usd=None if price is None else Decimal(price),
    )


@pytest.mark.parametrize(
    ("model", "price", "written"),
    [
        ("0.001", "0.01", ("$0.0010", "$0.0090", "$0.0100")),
        ("0.0000258", "0.01", ("$0.0000258", "$0.0099742", "$0.0100000")),
        ("0.5", "2", ("$0.5000", "$1.5000", "$2.0000")),
        ("1.5", "1234", ("$1.50", "$1,232.50", "$1,234.00")),
        ("0.02", "0.01", ("$0.0200", "−$0.0100", "$0.0100")),
        ("0", "0.01", ("$0.0000", "$0.0100", "$0.0100")),
        (None, "0.01", ("unknown", "unknown", "$0.0100")),
    ],
)
def test_a_breakdown_has_its_digits_below_each_other(
    model: str | None, price: str | None, written: tuple[str, str, str]
) -> None:
    assert text.breakdown(_cost(model, price)) == written


@given(model=st.decimals("0", "100", places=12), price=st.decimals("0", "100", places=12))
def test_a_breakdown_adds_up_as_it_stands(model: Decimal, price: Decimal) -> None:
    shown = [
        Decimal(each.replace("−", "-").replace("$", "").replace(",", ""))
        for each in text.breakdown(_cost(str(model), str(price)))
    ]
    assert shown[0] + shown[1] == shown[2]


def test_several_breakdowns_side_by_side_have_as_many_places() -> None:
    low, expected, ceiling = text.breakdowns(
        [_cost("0.0004291", "0.03"), _cost("0.00233", "0.03"), _cost("0.03978", "0.03")]
    )
    assert low == ("$0.0004", "$0.0296", "$0.0300")
    assert expected == ("$0.0023", "$0.0277", "$0.0300")
    assert ceiling == ("$0.0398", "−$0.0098", "$0.0300")
    cheap, unknown = text.breakdowns([_cost("0.0000258", "0.01"), _cost(None, "0.01")])
    assert (cheap, unknown) == (("$0.000026", "$0.009974", "$0.010000"), ("unknown", "unknown", "$0.010000"))


@given(st.decimals(min_value="1e-15", max_value="1e8", allow_nan=False))
def test_an_amount_is_never_written_as_nothing_or_with_an_exponent(amount: Decimal) -> None:
    written = text.money(amount)
    assert "E" not in written
    shown = Decimal(written.removeprefix("$").replace(",", ""))
    assert shown > 0
    assert abs(shown - amount) <= max(amount / 100, Decimal("0.00005") if amount < 1 else Decimal("0.005"))


@pytest.mark.parametrize(
    ("per_token", "written"),
    [
        ("0.00000015", "$0.15"),
        ("0.000003", "$3.00"),
        ("0.0000000896", "$0.0896"),
        ("0.000000435", "$0.435"),
        ("0", "$0.00"),
    ],
)
def test_prices_are_per_million_tokens(per_token: str, written: str) -> None:
    assert text.per_million(per_token) == written


@pytest.mark.parametrize(
    ("passed", "written"),
    [
        (timedelta(seconds=20), "just now"),
        (timedelta(seconds=60), "1 minute ago"),
        (timedelta(minutes=59), "59 minutes ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(days=1, hours=1), "yesterday"),
        (timedelta(days=6), "6 days ago"),
        (timedelta(days=7), "16 Nov 2026"),
        (timedelta(days=-3), "26 Nov 2026"),
    ],
)
def test_moments_are_said_as_people_say_them(passed: timedelta, written: str) -> None:
    assert text.ago(NOW - passed, NOW) == written


@pytest.mark.parametrize(
    ("number", "written"), [(None, "unknown"), (512, "512"), (128_000, "128K"), (1_048_576, "1.05M")]
)
def test_tokens_are_counted_in_short(number: int | None, written: str) -> None:
    assert text.tokens(number) == written


@pytest.mark.parametrize(
    ("milliseconds", "written"),
    [
        (None, "unknown"),
        (0, "0 ms"),
        (999, "999 ms"),
        (4_240, "4.2 s"),
        (59_940, "59.9 s"),
        (59_960, "1 min"),
        (128_400, "2 min 8 s"),
        (3_600_000, "1 h"),
        (12_030_000, "3 h 20 min"),
    ],
)
def test_durations_are_written_for_people(milliseconds: int | None, written: str) -> None:
    assert text.seconds(milliseconds) == written
