"""Whatever the bytes of an answer are and however they arrive: one answer or one typed failure, the same for stream and plain,
and never more than fits into a message."""

import json
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.execution import MAX_RESULT_BYTES, OutputPart
from services.executor.faults import Fault, UpstreamFailed
from services.executor.lines import Splitter
from services.executor.normalise import Answer, Delta, Normaliser, RawMedia, Reasoning, Text
from tests.matrix.cases import CASES
from tests.stack import shared_data
from tests.unit.test_executor_normalise import PARTS, chunk, same, sse

FOLDER = shared_data() / "openrouter-responses"
RECORDED = {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.body.*"))}
# Cases whose answers are small enough to be taken apart a thousand times.
PLAYED = {
    f"{case.name}/{number}": b"".join(step for step in play.steps if isinstance(step, bytes))
    for case in CASES
    for number, play in enumerate((*case.plays, *([case.plain] if case.plain else [])))
    if play.status == 200
}
SMALL = {name: body for name, body in {**RECORDED, **PLAYED}.items() if len(body) < 200_000}
STREAMS = [name for name in RECORDED if name.startswith("stream-") and "error" not in name]
LARGEST_MESSAGE = 8 * 1024 * 1024


def read(pieces: list[bytes]) -> tuple[Answer, list[Delta], Fault | None]:
    """An answer as the run loop reads it; the fault is what the splitter refused, if it did."""
    splitter, normaliser = Splitter(), Normaliser()
    deltas: list[Delta] = []
    refused = None
    try:
        for piece in pieces:
            if normaliser.done:
                break
            deltas += [delta for frame in splitter.feed(piece) for delta in normaliser.feed(frame)]
        deltas += [delta for frame in splitter.finish() for delta in normaliser.feed(frame)]
    except UpstreamFailed as failure:
        refused = failure.fault
    answer = normaliser.finish()
    return answer, [*deltas, *answer.deltas], refused


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def told(deltas: list[Delta], kind: type[Text] | type[Reasoning]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, kind))


def parts_of(answer: Answer) -> list[OutputPart]:
    return [part for part in answer.outputs if not isinstance(part, RawMedia)]


def is_sound(answer: Answer, deltas: list[Delta]) -> None:
    """It can be stored and sent: as a result, and every piece by itself; and it has exactly one end."""
    parts = parts_of(answer)
    sent = PARTS.dump_json(parts)
    assert PARTS.validate_json(sent) == parts
    result = len(sent) + len(orjson.dumps([answer.text, answer.reasoning, answer.served, answer.provider]))
    assert result <= MAX_RESULT_BYTES + 10_000
    for delta in deltas:
        if not isinstance(delta, RawMedia):
            size = orjson.dumps(delta.text) if isinstance(delta, Text | Reasoning) else delta.model_dump_json().encode()
            assert len(size) < LARGEST_MESSAGE
    assert answer.complete == (answer.fault is None)
    assert told(deltas, Text) == answer.text
    assert told(deltas, Reasoning) == (answer.reasoning or "")


# However it is cut ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.sampled_from(sorted(RECORDED)),
    st.lists(st.integers(min_value=0), max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b"\xef\xbb\xbf", b" \n"]),
)
def test_every_recording_is_the_same_answer_however_it_is_cut(
    name: str, places: list[int], newline: bytes, before: bytes
) -> None:
    whole, _, _ = read([RECORDED[name]])
    body = before + RECORDED[name].replace(b"\n", newline)
    answer, deltas, refused = read(cut(body, places))
    assert same(answer, whole)
    assert (refused, answer.fault) == (None, whole.fault)
    is_sound(answer, deltas)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(SMALL)), st.lists(st.integers(min_value=0), max_size=8))
def test_every_answer_of_the_matrix_is_the_same_however_it_is_cut(name: str, places: list[int]) -> None:
    whole, _, _ = read([SMALL[name]])
    answer, deltas, _ = read(cut(SMALL[name], places))
    assert same(answer, whole)
    assert (answer.fault is None) == (whole.fault is None)
    is_sound(answer, deltas)


@pytest.mark.parametrize("name", sorted(name for name in RECORDED if len(RECORDED[name]) < 20_000))
def test_every_recording_is_the_same_answer_byte_by_byte(name: str) -> None:
    body = RECORDED[name]
    answer, deltas, _ = read([body[at : at + 1] for at in range(len(body))])
    assert same(answer, read([body])[0])
    is_sound(answer, deltas)


# Whatever is in it ----------------------------------------------------------------------------------------------------

pieces_of_json = st.sampled_from(
    [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"data: ", b"\n\n", b"\r", b"[DONE]", b"data: [DONE]\n\n", b"null", b"1e999", b"NaN",
     b'"', b"{", b"}", b"[" * 2000, b"\\u0000", b"\\ud800", b'"content":', b'"error":{"code":502},', b'"usage":{"cost":-1}']
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(SMALL)),
    st.lists(
        st.tuples(st.integers(min_value=0), st.integers(0, 40), st.binary(max_size=20) | pieces_of_json), max_size=4
    ),
    st.lists(st.integers(min_value=0), max_size=4),
)
@example("stream-tools.body.sse", [(400, 3, b"\\ud800")], [])
@example("402-in-flight-once/1", [(0, 0, b"data:[DONE]\n")], [12])
@example("chat-text.body.json", [(0, 0, b"data: ")], [3])
def test_garbage_in_any_answer_is_a_typed_end(
    name: str, garbage: list[tuple[int, int, bytes]], places: list[int]
) -> None:
    body = SMALL[name]
    for place, gone, put in garbage:
        at = place % (len(body) + 1)
        body = body[:at] + put + body[at + gone :]
    answer, deltas, refused = read(cut(body, places))
    assert refused is None
    is_sound(answer, deltas)
    assert same(answer, read([body])[0])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=80) | pieces_of_json, max_size=12))
def test_any_bytes_are_a_typed_end(pieces: list[bytes]) -> None:
    answer, deltas, _ = read(pieces)
    is_sound(answer, deltas)


# Stream and plain -----------------------------------------------------------------------------------------------------


def as_document(stream: bytes) -> bytes:
    """The completion that a recorded stream would have been without streaming; made by no code of ours."""
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    choices = [choice for part in chunks for choice in part["choices"]]
    message: dict[str, Any] = {"role": "assistant"}
    for choice in choices:
        add_delta(message, {key: value for key, value in choice["delta"].items() if key != "role"})
    if "tool_calls" in message:
        message["tool_calls"] = list(message["tool_calls"].values())
    finish = next(choice["finish_reason"] for choice in choices if choice.get("finish_reason"))
    usage = next(part["usage"] for part in reversed(chunks) if part.get("usage"))
    head = {"id": chunks[0]["id"], "model": chunks[-1]["model"], "provider": chunks[-1].get("provider")}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({**head, "choices": [choice], "usage": usage}).encode()


def add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Text is continued, lists grow, an object is continued member by member, calls are told apart by their index."""
    for key, value in delta.items():
        if key == "tool_calls":
            for piece in value:
                call = message.setdefault(key, {}).setdefault(piece["index"], {"function": {}})
                call["id"] = call.get("id") or piece.get("id")
                add_delta(call["function"], piece["function"])
        elif isinstance(value, dict):
            add_delta(message.setdefault(key, {}), value)
        elif isinstance(value, str | list):
            message[key] = message.get(key, type(value)()) + value


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_has_the_parts_of_the_same_answer_in_one_piece(name: str) -> None:
    streamed, _, _ = read([RECORDED[name]])
    plain, _, _ = read([as_document(RECORDED[name])])
    assert streamed.complete
    assert streamed.outputs
    assert same(streamed, plain)


@pytest.mark.parametrize("case", [case for case in CASES if case.plain is not None], ids=lambda case: case.name)
def test_a_case_has_the_same_parts_streamed_and_in_one_piece(case: Any) -> None:
    bodies = [b"".join(step for step in play.steps if isinstance(step, bytes)) for play in (case.plays[-1], case.plain)]
    streamed, plain = (read([body])[0] for body in bodies)
    if case.succeeds and case.attempts == 1:
        assert same(streamed, plain)
    else:
        assert (streamed.fault and streamed.fault.code) == (plain.fault and plain.fault.code)


# However much it is ---------------------------------------------------------------------------------------------------

MEGABYTE = 1024 * 1024


def call(**function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": function}]}


def cited(**fields: Any) -> dict[str, Any]:
    return {"annotations": [{"type": "url_citation", "url_citation": {"url": "https://a.example", **fields}}]}


GROWING: dict[str, Any] = {
    "text": lambda _: {"content": "x" * MEGABYTE},
    "text of control characters": lambda _: {"content": "\x01" * 100_000},
    "text of quotes": lambda _: {"content": '"\\' * 100_000},
    "text of emoji": lambda _: {"content": "🎉" * 100_000},
    "reasoning": lambda _: {"reasoning": "\x01" * 100_000},
    "reasoning details": lambda _: {"reasoning_details": [{"type": "reasoning.summary", "summary": "x" * MEGABYTE}]},
    "refusal": lambda _: {"refusal": "x" * MEGABYTE},
    "refusals as parts": lambda n: {"content": [{"type": "refusal", "refusal": f"{n}" * MEGABYTE}]},
    "name of a tool": lambda n: call(name=f"{n}" * MEGABYTE),
    "arguments of a tool": lambda _: call(name="f", arguments="x" * MEGABYTE),
    "arguments that are objects": lambda n: call(name="f", arguments={f"{n}": "x" * MEGABYTE}),
    "arguments of quotes": lambda _: call(name="f", arguments='"' * MEGABYTE),
    "tools": lambda n: {"tool_calls": [{"index": n, "id": f"{n}", "function": {"name": "f"}}]},
    "transcript": lambda _: {"audio": {"transcript": "x" * MEGABYTE}},
    "citation texts": lambda n: cited(start_index=n, content="x" * MEGABYTE),
    "citation titles": lambda n: cited(start_index=n, title="x" * MEGABYTE),
    "citations": lambda n: cited(start_index=n),
    "addresses": lambda n: {"annotations": [{"url_citation": {"url": f"https://{n}" + "x" * MEGABYTE}}]},
    "names of files": lambda n: {
        "content": [{"type": "file", "file": {"filename": "x" * MEGABYTE, "file_data": f"data:a/b;base64,{n:04}"}}]
    },
    "types of files": lambda n: {"images": [f"data:{'x' * MEGABYTE};base64,{n:04}"]},
    "files": lambda n: {"images": [{"image_url": {"url": f"data:image/png;base64,{n:04}"}}]},
    "unknown parts": lambda _: {"content": [{"type": "blob", "data": "x" * 60_000}]},
    "kinds of unknown parts": lambda _: {"content": [{"type": "x" * MEGABYTE}]},
    "tiny unknown parts": lambda n: {"content": [{"n": n}]},
    "an unknown field": lambda _: {"scent": "x" * 60_000},
    "unknown fields": lambda n: {f"scent{n}": ["x" * 60_000]},
    "deep unknown parts": lambda _: {"content": [{"type": "x", "data": json.loads("[" * 400 + "]" * 400)}]},
}


@pytest.mark.parametrize("what", GROWING)
def test_an_answer_that_grows_without_end_stays_within_one_message(what: str) -> None:
    normaliser = Normaliser()
    deltas: list[Delta] = []
    for number in range(2000):
        if normaliser.done:
            break
        deltas += normaliser.take(chunk(GROWING[what](number)))
        if number > 100 and "field" in what:
            break
    normaliser.take(chunk({}, "stop"))
    answer = normaliser.finish()
    is_sound(answer, [*deltas, *answer.deltas])
    if answer.fault is not None:
        assert "larger than can be handled" in answer.fault.message
        assert answer.fault.truncated == normaliser.delivered


def test_what_is_just_small_enough_is_whole_streamed_and_plain() -> None:
    text = "word " * 700_000
    chunks = [chunk({"content": text[at : at + 1000]}) for at in range(0, len(text), 1000)]
    assert read([sse(*chunks, chunk({}, "stop"))])[0].complete
    document = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    assert read([json.dumps(document).encode()])[0].complete
