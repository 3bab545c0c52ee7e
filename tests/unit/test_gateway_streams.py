"""Server-sent events, ranges, the order of frames, and how a run ended: everything that is decided without I/O."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import ExecutionView
from services.gateway import examples
from services.gateway.endings import last_steps, result_of
from services.gateway.ranges import (
    ByteRange,
    UnsatisfiableRangeError,
    matches_etag,
    parse_range,
    range_still_holds,
)
from services.gateway.sequence import Sequence, Step, read_step
from services.gateway.sse import encode_event, parse_event_id
from services.runtime.edge import trace_of


def test_event_has_id_type_and_one_line_of_data() -> None:
    assert encode_event(3, "text", b'{"text":"a\\nb"}') == b'id: 3\nevent: text\ndata: {"text":"a\\nb"}\n\n'


@pytest.mark.parametrize(
    ("text", "number"),
    [(None, 0), ("", 0), ("7", 7), ("-1", 0), ("7.5", 0), ("abc", 0), ("٣", 0), ("9" * 40, 2**53)],
)
def test_last_event_id_is_a_number_or_nothing(text: str | None, number: int) -> None:
    assert parse_event_id(text) == number


# Ranges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("", None),
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=2-5", ByteRange(2, 5)),
        ("bytes=2-", ByteRange(2, 9)),
        ("bytes=2-99", ByteRange(2, 9)),
        ("bytes=-3", ByteRange(7, 9)),
        ("bytes=-99", ByteRange(0, 9)),
        ("Bytes = 1 - 2 ", ByteRange(1, 2)),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=-", None),
    ],
)
def test_range_of_ten_bytes(header: str | None, found: ByteRange | None) -> None:
    assert parse_range(header, 10) == found


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=-1", 0)]
)
def test_range_behind_the_end_is_unsatisfiable(header: str, size: int) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, size)


@given(st.text(max_size=30), st.integers(0, 1000))
def test_any_header_gives_a_range_inside_of_the_file(header: str, size: int) -> None:
    try:
        found = parse_range(f"bytes={header}", size)
    except UnsatisfiableRangeError:
        return
    assert found is None or 0 <= found.first <= found.last < size


def test_etags_match_weakly_and_by_star() -> None:
    assert matches_etag('"a", W/"b"', '"b"')
    assert matches_etag("*", '"b"')
    assert not matches_etag('"a"', '"b"')
    assert not matches_etag(None, '"b"')


def test_only_the_same_etag_keeps_a_range() -> None:
    assert range_still_holds(None, '"a"')
    assert range_still_holds('"a"', '"a"')
    assert not range_still_holds('"b"', '"a"')
    assert not range_still_holds("Wed, 21 Oct 2026 07:28:00 GMT", '"a"')


# Order ----------------------------------------------------------------------------------------------------------------


def step(seq: int, kind: str = "text") -> Step:
    return Step(seq, kind, {})


def shown(sequence: Sequence, *steps: Step) -> list[int]:
    return [each.seq for each in sequence.take(steps)]


def test_frames_are_shown_once_and_in_order() -> None:
    sequence = Sequence(after=2)
    assert shown(sequence, step(1), step(2), step(3), step(3), step(4)) == [3, 4]
    assert (sequence.last, sequence.broken) == (4, False)


def test_nothing_is_shown_after_a_gap_until_a_snapshot_covers_it() -> None:
    sequence = Sequence()
    assert shown(sequence, step(1), step(3), step(4)) == [1]
    assert sequence.broken
    assert shown(sequence, step(5), step(6, "snapshot"), step(7)) == [6, 7]
    assert not sequence.broken


def test_snapshot_across_a_gap_covers_everything_before() -> None:
    assert shown(Sequence(after=2), step(9, "snapshot"), step(10)) == [9, 10]


def test_snapshot_without_a_gap_is_shown_like_any_other_frame() -> None:
    sequence = Sequence()
    assert shown(sequence, step(1), step(2, "snapshot"), step(3)) == [1, 2, 3]


def test_replay_after_a_gap_shows_what_was_missing() -> None:
    sequence = Sequence()
    shown(sequence, step(1), step(4))
    sequence.restart()
    assert shown(sequence, step(1), step(2), step(3), step(4)) == [2, 3, 4]


@pytest.mark.parametrize(("kind", "numbers"), [("completed", [8, 9]), ("failed", [9])])
def test_last_frame_is_shown_in_spite_of_a_gap_and_only_once(kind: str, numbers: list[int]) -> None:
    sequence = Sequence(after=1)
    assert shown(sequence, step(5), step(9, kind), step(10), step(9, kind)) == numbers
    assert sequence.ended


def test_what_a_gap_has_swallowed_stands_in_a_snapshot_before_the_end() -> None:
    completed = Step(9, "completed", {"execution_id": "x", "text": "Rain", "reasoning": None, "outputs": [], "more": 1})
    snapshot, last = Sequence(after=7).take([completed])
    assert (snapshot.seq, snapshot.kind) == (8, "snapshot")
    assert snapshot.data == {"execution_id": "x", "text": "Rain", "reasoning": "", "outputs": []}
    assert last is completed
    assert Sequence(after=8).take([completed]) == [completed]


def test_last_frame_is_shown_even_where_the_client_claims_to_have_more() -> None:
    assert shown(Sequence(after=99), step(4), step(5, "completed")) == [5]


@given(st.permutations(list(range(1, 8))), st.integers(0, 7))
def test_whatever_the_order_nothing_is_shown_twice_or_before_its_predecessor(order: list[int], after: int) -> None:
    numbers = shown(Sequence(after), *(step(seq) for seq in order))
    assert numbers == list(range(after + 1, after + 1 + len(numbers)))


@pytest.mark.parametrize(
    "payload",
    [b"", b"nonsense", b"[]", b'{"seq":0,"type":"text","data":{}}', b'{"seq":1,"type":"a\\nb","data":{}}', b'{"seq":1}',
     b'{"seq":"1","type":"text","data":{}}', b'{"seq":1,"type":"text","data":[]}'],
)  # fmt: skip
def test_what_is_no_frame_is_passed_over(payload: bytes) -> None:
    assert read_step(payload) is None


def test_kinds_of_later_versions_are_passed_on() -> None:
    assert read_step(b'{"seq":1,"type":"thought","data":{"a":1},"new":true}') == Step(1, "thought", {"a": 1})


# Endings --------------------------------------------------------------------------------------------------------------


def ended(**changes: object) -> ExecutionView:
    return ExecutionView.model_validate({**examples.EXECUTION, **changes})


def test_lost_end_is_the_stored_result() -> None:
    steps = last_steps(ended(last_seq=9), 8, whole=False)
    assert [(each.seq, each.kind) for each in steps] == [(9, "completed")]
    assert steps[0].data["text"] == "Rain on the tin roof"
    assert steps[0].data["cost"] == {"price_usd": "0.01"}


def test_lost_end_with_lost_frames_before_it_is_a_snapshot_and_the_stored_result() -> None:
    steps = last_steps(ended(last_seq=9), 3, whole=False)
    assert [(each.seq, each.kind) for each in steps] == [(8, "snapshot"), (9, "completed")]
    assert steps[0].data["text"] == steps[1].data["text"] == "Rain on the tin roof"


def test_whole_view_gets_a_snapshot_in_front() -> None:
    steps = last_steps(ended(last_seq=None), 3, whole=True)
    assert [(each.seq, each.kind) for each in steps] == [(4, "snapshot"), (5, "completed")]
    assert steps[0].data["text"] == "Rain on the tin roof"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"status": "failed", "error": ErrorBody(code=ErrorCode.MODERATED, message="No.")}, ErrorCode.MODERATED),
        ({"status": "interrupted"}, ErrorCode.UNAVAILABLE),
        ({"status": "canceled"}, ErrorCode.CONFLICT),
        ({"status": "succeeded", "output_expired": True}, ErrorCode.NOT_FOUND),
    ],
)
def test_run_without_result_is_an_error_that_names_it(changes: dict[str, object], code: ErrorCode) -> None:
    view = ended(result=None, **changes)
    with pytest.raises(ServiceError) as caught:
        result_of(view)
    assert caught.value.code is code
    assert caught.value.body.execution_id == UUID(examples.EXECUTION_ID)
    (last,) = last_steps(view, 3, whole=True)
    assert (last.kind, last.data["code"]) == ("failed", code)


# Trace ----------------------------------------------------------------------------------------------------------------


def test_good_trace_context_is_kept_and_anything_else_replaced() -> None:
    good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert trace_of(good) == good
    for bad in (None, "", "00-" + "0" * 32 + "-b7ad6b7169203331-01", good.upper(), "ff" + good[2:], "x\r\ny"):
        made = trace_of(bad)
        assert made != bad
        assert trace_of(made) == made
