"""When a failed call is made again, and after how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorCode
from services.executor.faults import Fault
from services.executor.refusals import from_response
from services.executor.retries import delay_before_retry

LONG = 300.0


def fault(**changes: object) -> Fault:
    return Fault(**{"code": ErrorCode.UPSTREAM, "message": "No.", "retry": True, **changes})  # type: ignore[arg-type]


def test_fault_that_may_not_be_tried_again_is_not() -> None:
    assert delay_before_retry(fault(retry=False), 1, LONG) is None
    assert delay_before_retry(fault(retry=False, retry_after_s=1), 1, LONG) is None


@given(st.integers(1, 10), st.floats(0, 600))
def test_delay_without_a_hint_grows_is_spread_and_stays_inside_the_time_left(made: int, left_s: float) -> None:
    delay_s = delay_before_retry(fault(), made, left_s)
    assert delay_s is None or 0 <= delay_s <= min(8, 0.25 * 2**made)
    assert delay_s is None or delay_s < left_s


def test_delays_are_not_all_the_same() -> None:
    assert len({delay_before_retry(fault(), 2, LONG) for _ in range(20)}) > 10


@given(st.integers(1, 2))
def test_hint_of_upstream_is_followed_and_not_undercut(made: int) -> None:
    delay_s = delay_before_retry(fault(retry_after_s=1.5), made, LONG)
    assert delay_s is not None
    assert 1.5 <= delay_s <= 1.6


@pytest.mark.parametrize(("hint_s", "left_s"), [(8.001, LONG), (3600, LONG), (2, 2), (2, 1), (0, 0)])
def test_hint_beyond_what_there_is_time_for_ends_the_run(hint_s: float, left_s: float) -> None:
    assert delay_before_retry(fault(retry_after_s=hint_s), 1, left_s) is None


def test_masked_error_is_tried_once_more_only() -> None:
    masked = fault(upstream_status=500)
    assert delay_before_retry(masked, 1, LONG) is not None
    assert delay_before_retry(masked, 2, LONG) is None


@pytest.mark.parametrize(
    ("status", "again"),
    [
        (400, False),
        (401, False),
        (403, False),
        (404, False),
        (413, False),
        (429, False),  # the key rests for a minute, longer than a run waits
        (502, True),
        (503, True),
        (524, False),
    ],
)
def test_statuses_of_upstream_are_tried_again_where_nothing_was_begun(status: int, again: bool) -> None:
    found = from_response(status, {}, b"" if status == 524 else b'{"error": {"code": %d, "message": "no"}}' % status)
    assert (delay_before_retry(found, 1, LONG) is not None) is again
