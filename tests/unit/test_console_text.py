"""How the console writes amounts, counts and moments."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
