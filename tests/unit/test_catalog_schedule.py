"""When the daily reading is due."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from services.catalog.schedule import latest_daily, next_daily


def test_the_next_reading_is_at_three_utc() -> None:
    assert next_daily(datetime(2026, 8, 8, 2, 59, tzinfo=UTC)) == datetime(2026, 8, 8, 3, tzinfo=UTC)
    assert next_daily(datetime(2026, 8, 8, 3, 0, tzinfo=UTC)) == datetime(2026, 8, 9, 3, tzinfo=UTC)
    assert next_daily(datetime(2026, 12, 31, 23, tzinfo=UTC)) == datetime(2027, 1, 1, 3, tzinfo=UTC)
    zone = timezone(timedelta(hours=9))
    assert next_daily(datetime(2026, 8, 8, 11, tzinfo=zone)) == datetime(2026, 8, 8, 3, tzinfo=UTC)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - given a zone
def test_it_is_always_ahead_and_within_a_day(now: datetime) -> None:
    assert timedelta(0) < next_daily(now) - now <= timedelta(days=1)
    assert timedelta(0) <= now - latest_daily(now) < timedelta(days=1)
