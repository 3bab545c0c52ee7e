"""The same bytes give the same payloads, however the network cuts them."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ErrorCode
from services.executor.faults import UpstreamFailed
from services.executor.lines import Splitter
from tests.stack import shared_data

FOLDER = shared_data() / "openrouter-responses"
RECORDINGS = {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.body.*"))}


def split(*chunks: bytes) -> list[bytes]:
    splitter = Splitter()
    payloads = [payload for chunk in chunks for payload in splitter.feed(chunk)]
    return payloads + splitter.finish()


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


@settings(deadline=None)
@given(st.sampled_from(sorted(RECORDINGS)), st.lists(st.integers(min_value=0), max_size=12), st.booleans())
def test_every_recording_splits_the_same_however_it_is_cut(name: str, places: list[int], crlf: bool) -> None:
    body = RECORDINGS[name].replace(b"\n", b"\r\n") if crlf else RECORDINGS[name]
    assert split(*cut(body, places)) == split(body)


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(min_value=0), max_size=6))
def test_any_bytes_split_the_same_however_they_are_cut(body: bytes, places: list[int]) -> None:
    assert split(*cut(body, places)) == split(body)


def test_a_recorded_stream_comes_out_as_its_events_byte_by_byte() -> None:
    body = RECORDINGS["stream-tools.body.sse"]
    expected = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert len(expected) == 10
    assert split(*(body[at : at + 1] for at in range(len(body)))) == expected


def test_events_come_out_as_soon_as_they_are_complete() -> None:
    splitter = Splitter()
    assert splitter.feed(b': OPENROUTER PROCESSING\n\ndata: {"a":1}\n') == []
    assert splitter.feed(b'\ndata: {"b"') == [b'{"a":1}']
    assert splitter.feed(b":2}\n\ndata: [DONE]\n") == [b'{"b":2}', b"[DONE]"]
    assert splitter.finish() == []


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_all_three_line_ends_comments_and_several_data_lines_are_understood(newline: bytes) -> None:
    lines = [b": note", b"event: message", b"data: {", b'data:"a": 1}', b"id: 3", b"", b"data:[DONE]", b""]
    assert split(newline.join(lines) + newline) == [b'{\n"a": 1}', b"[DONE]"]


def test_a_plain_document_behind_padding_is_one_payload() -> None:
    assert split(b"\n   \n", b"   ", b'  {"choices"', b":\n\n[]}\n") == [b'{"choices":\n\n[]}\n']


def test_the_last_event_counts_although_its_blank_line_never_came() -> None:
    assert split(b'data: {"a":1}\n\ndata: {"b":2}') == [b'{"a":1}', b'{"b":2}']


@pytest.mark.parametrize("body", [b"", b"   \n", b"<html><body>502</body></html>", b"\xff\xfe\x00garbage"])
def test_what_is_neither_events_nor_json_gives_nothing(body: bytes) -> None:
    assert split(body) == []


@pytest.mark.parametrize("start", [b"data: ", b'{"a":"'])
def test_an_answer_beyond_the_cap_is_refused_while_it_arrives(start: bytes) -> None:
    splitter = Splitter(max_frame_bytes=10_000, max_answer_bytes=50_000)
    for _ in range(50):
        splitter.feed(start.ljust(998, b"x") + b"\n\n")
    with pytest.raises(UpstreamFailed) as failure:
        splitter.feed(b"x")
    assert failure.value.fault.code == ErrorCode.UPSTREAM
    assert failure.value.fault.billed == "maybe"


def test_one_frame_beyond_its_cap_is_refused_and_many_small_ones_are_not() -> None:
    splitter = Splitter(max_frame_bytes=10_000, max_answer_bytes=1_000_000)
    for _ in range(20):
        assert len(splitter.feed(b"data: " + b"x" * 1000 + b"\n\n")) == 1
    with pytest.raises(UpstreamFailed):
        splitter.feed(b"data: " + b"x" * 10_001)


def test_a_frame_of_megabytes_in_small_reads_takes_linear_time() -> None:
    splitter = Splitter()
    for _ in range(2000):
        assert splitter.feed(b"data: x"[: 7 if _ == 0 else 0] + b"y" * 8192) == []
    assert len(splitter.feed(b"\n\n")[0]) == 1 + 2000 * 8192
