"""Every recorded answer and every known quirk in one normal form, and nothing that can arrive breaks it."""

import base64
import copy
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from contracts.errors import ErrorCode
from contracts.execution import CitationPart, OtherPart, OutputPart, RefusalPart, TextPart, ToolCallPart, Usage
from services.executor.lines import Splitter
from services.executor.normalise import Answer, Delta, Normaliser, RawMedia, Reasoning, Text
from tests.stack import shared_data

FOLDER = shared_data() / "openrouter-responses"
PARTS: TypeAdapter[list[OutputPart]] = TypeAdapter(list[OutputPart])
PNG = "data:image/png;base64,iVBORw0KGgo="


def recording(name: str) -> bytes:
    return next(FOLDER.glob(f"{name}.body.*")).read_bytes()


def read(*chunks: bytes) -> tuple[Answer, list[Delta]]:
    splitter, normaliser = Splitter(), Normaliser()
    deltas: list[Delta] = []
    for chunk in chunks:
        for payload in splitter.feed(chunk):
            deltas += normaliser.feed(payload)
    for payload in splitter.finish():
        deltas += normaliser.feed(payload)
    answer = normaliser.finish()
    return answer, [*deltas, *answer.deltas]


def sse(*chunks: Any, done: bool = True) -> bytes:
    frames = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return b"".join(frames) + (b"data: [DONE]\n\n" if done else b"")


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **head: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {"id": "gen-1", "model": "a/b-2026", "provider": "P", "choices": [choice], **head}


def plain(message: dict[str, Any], finish: str | None = "stop", **head: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"id": "gen-1", "model": "a/b-2026", "provider": "P", "choices": [choice], **head}).encode()


ORDER = ("reasoning", "content", "refusal", "tool_calls", "images", "videos", "audio", "annotations")
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.00002, "is_byok": False}


def streamed(message: dict[str, Any], finish: str = "stop", pieces: int = 3) -> bytes:
    """A plain message as the stream that would have carried it, with text cut into pieces."""
    chunks: list[Any] = []
    for key, value in sorted(message.items(), key=lambda item: ORDER.index(item[0])):
        if key == "content" and isinstance(value, str):
            size = max(1, -(-len(value) // pieces))
            chunks += [chunk({key: value[at : at + size]}) for at in range(0, len(value), size)]
        elif isinstance(value, list):
            chunks += [chunk({key: [entry]}) for entry in value]
        else:
            chunks.append(chunk({key: value}))
    return sse(*chunks, chunk({"content": ""}, finish), chunk({"content": ""}, finish, usage=USAGE))


def same(one: Answer, other: Answer) -> bool:
    """Equal in everything that callers see; files by what they hold."""

    def key(answer: Answer) -> Any:
        outputs = [
            ("media", part.kind, "".join(part.pieces), part.declared_mime, part.transcript)
            if isinstance(part, RawMedia)
            else part
            for part in answer.outputs
        ]
        told = (answer.text, outputs, answer.reasoning, answer.finish_reason, answer.usage, answer.cost_usd)
        return told, answer.truncated, answer.complete, answer.served, answer.provider, answer.generation_id

    return bool(key(one) == key(other))


# Recordings -----------------------------------------------------------------------------------------------------------

COSTS = {
    "chat-annotations": "0.007637029",
    "chat-image-output": "0.0387036",
    "chat-reasoning": "0.000924",
    "chat-structured-output": "0.000241",
    "chat-text": "0.00005",
    "chat-text-anthropic": "0.001452",
    "chat-tools": None,
    "chat-tools-anthropic": "0.001008",
    "stream-audio-output": "0.04",
    "stream-reasoning": "0.000669",
    "stream-server-tool-websearch": "0.0133176",
    "stream-text": "0.000837",
    "stream-text-2": "0.00006",
    "stream-tools": "0.001008",
}


@pytest.mark.parametrize(("name", "cost"), COSTS.items())
def test_every_recorded_completion_is_whole_and_costs_what_it_states(name: str, cost: str | None) -> None:
    answer, _ = read(recording(name))
    assert answer.fault is None
    assert answer.complete
    assert not answer.truncated
    assert not answer.empty
    assert answer.cost_usd == (None if cost is None else Decimal(cost))
    assert answer.finish_reason == ("tool_calls" if "tools" in name else "stop")
    assert answer.generation_id is not None
    assert answer.generation_id.startswith("gen-")
    assert answer.served
    assert answer.provider
    assert answer.usage.prompt_tokens
    assert answer.usage.completion_tokens


def test_the_text_recordings_read_as_they_were_said() -> None:
    assert read(recording("chat-text"))[0].text == "Hello!"
    assert read(recording("stream-text"))[0].text == "Hello!"
    assert read(recording("stream-text-2"))[0].text == "1\n2\n3"
    assert read(recording("chat-structured-output"))[0].text == '{"name":"Alice","age":28}'
    assert read(recording("stream-server-tool-websearch"))[0].text.startswith("https://github.com/pydantic/pydantic-ai")
    assert read(recording("chat-text-anthropic"))[0].text.startswith("# Weather Overview\n\nI'd be happy")


def test_the_reasoning_recordings_keep_reasoning_apart_and_once() -> None:
    spoken, _ = read(recording("chat-reasoning"))
    assert spoken.text == "ok"
    assert spoken.reasoning is not None
    assert spoken.reasoning.startswith("The user is asking me to reply")
    assert spoken.reasoning.count("straightforward request") == 1
    assert spoken.usage == Usage(prompt_tokens=43, completion_tokens=53, reasoning_tokens=48, cached_tokens=0)
    streamed_answer, deltas = read(recording("stream-reasoning"))
    assert streamed_answer.reasoning == "This is a simple arithmetic question. 2+2 equals 4."
    assert "".join(delta.text for delta in deltas if isinstance(delta, Reasoning)) == streamed_answer.reasoning
    assert "".join(delta.text for delta in deltas if isinstance(delta, Text)) == streamed_answer.text


def test_the_tool_recordings_are_one_call_with_parsed_arguments() -> None:
    weather = {"latitude": "52.5200", "longitude": "13.4050"}
    for name in ("stream-tools", "chat-tools-anthropic"):
        answer, deltas = read(recording(name))
        (call,) = answer.outputs
        assert isinstance(call, ToolCallPart)
        assert (call.name, call.arguments, json.loads(call.arguments_text)) == ("weather", weather, weather)
        assert [delta for delta in deltas if isinstance(delta, ToolCallPart)] == [call]


def test_the_image_recording_is_an_answer_without_text() -> None:
    answer, deltas = read(recording("chat-image-output"))
    (image,) = answer.outputs
    assert isinstance(image, RawMedia)
    assert (answer.text, image.kind, image.declared_mime) == ("", "image", "image/png")
    assert base64.b64decode("".join(image.pieces)).startswith(b"\x89PNG")
    assert deltas == [image]


def test_the_audio_recording_is_text_and_then_a_file() -> None:
    answer, _ = read(recording("stream-audio-output"))
    text, audio = answer.outputs
    assert isinstance(text, TextPart)
    assert text.text.startswith("[0.0:3.7] HELLO WORLD")
    assert isinstance(audio, RawMedia)
    assert base64.b64decode("".join(audio.pieces)).startswith(b"ID3")


def test_the_annotation_recording_cites_every_page_once() -> None:
    answer, deltas = read(recording("chat-annotations"))
    assert isinstance(answer.outputs[0], TextPart)
    citations = [part for part in answer.outputs if isinstance(part, CitationPart)]
    assert citations == list(answer.outputs[1:])
    assert citations[0].url == "https://github.com/pydantic/pydantic-ai"
    assert citations[1].title is None
    assert len({citation.url for citation in citations}) == len(citations)
    assert [delta for delta in deltas if isinstance(delta, CitationPart)] == citations


def test_the_documented_error_in_a_stream_fails_with_the_text_so_far() -> None:
    answer, _ = read(recording("stream-error-documented"))
    assert answer.text == "Once upon"
    assert answer.truncated
    assert answer.fault is not None
    assert (answer.fault.code, answer.fault.retry, answer.fault.cools) == (ErrorCode.RATE_LIMITED, False, "model")


def test_the_error_in_a_200_fails_with_the_code_that_it_states() -> None:
    answer, _ = read(recording("ok200-error-invalid-request"))
    assert answer.fault is not None
    assert (answer.fault.code, answer.fault.billed, answer.fault.upstream_status) == (ErrorCode.INVALID, "no", 400)
    assert not answer.truncated


@pytest.mark.parametrize(
    "name",
    [
        "generation-image",
        "images-generate",
        "key-limited",
        "model-endpoints",
        "models-list-trimmed",
        "responses-image-input-stream",
        "videos-poll-completed",
    ],
)
def test_a_recording_that_is_no_completion_fails_as_upstream_trouble(name: str) -> None:
    answer, deltas = read(recording(name))
    assert deltas == []
    assert answer.fault is not None
    assert answer.fault.code == ErrorCode.UPSTREAM
    assert "not a chat completion" in answer.fault.message


@pytest.mark.parametrize("name", [name for name in COSTS if name.startswith("chat-")])
def test_a_recorded_plain_answer_reads_the_same_as_a_stream(name: str) -> None:
    document = json.loads(recording(name), parse_float=str)
    (choice,) = document["choices"]
    head = {key: document[key] for key in ("id", "model", "provider")}
    usage = json.loads(recording(name))["usage"]
    message = {key: value for key, value in choice["message"].items() if value is not None}
    chunks = [{**head, "choices": [{"index": 0, "delta": {key: value}}]} for key, value in message.items()]
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    stream = sse(*chunks, {**head, "choices": [end]}, {**head, "choices": [], "usage": usage})
    assert same(read(stream)[0], read(recording(name))[0])


# Streams and plain documents say the same -----------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
tool_calls = st.lists(
    st.fixed_dictionaries({
        "id": st.sampled_from(["call_1", "call_2", "call_3"]),
        "type": st.just("function"),
        "function": st.fixed_dictionaries({
            "name": st.sampled_from(["f", "g"]), "arguments": st.sampled_from(["{}", '{"a": 1}', '{"a": 1', '[1]'])
        }),
    }),
    max_size=3,
    unique_by=lambda call: str(call["id"]),
)  # fmt: skip
messages = st.fixed_dictionaries(
    {},
    optional={
        "reasoning": words,
        "content": words,
        "refusal": words,
        "tool_calls": tool_calls,
        "images": st.lists(
            st.sampled_from([PNG, PNG + "AAAA", "https://x.example/a.png"]).map(
                lambda url: {"type": "image_url", "image_url": {"url": url}}
            ),
            max_size=3,
            unique_by=str,
        ),
        "videos": st.just([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]),
        "audio": st.just({"id": "a", "data": "UklGRg==", "transcript": "Hm."}),
        "annotations": st.lists(
            st.sampled_from(["https://a.example", "https://b.example"]).map(
                lambda url: {"type": "url_citation", "url_citation": {"url": url}}
            ),
            max_size=3,
        ),
    },
)


@settings(deadline=None)
@given(messages)
def test_a_message_reads_the_same_streamed_and_plain(message: dict[str, Any]) -> None:
    for number, call in enumerate(message.get("tool_calls", [])):
        call["index"] = number
    one, _ = read(plain(message, usage=USAGE))
    other, deltas = read(streamed(message))
    assert same(one, other)
    assert one.fault is None
    assert "".join(delta.text for delta in deltas if isinstance(delta, Text)) == one.text
    files_and_parts = [delta for delta in deltas if not isinstance(delta, Text | Reasoning)]
    shown = [part for part in other.outputs if not isinstance(part, TextPart)]
    assert sorted(map(id, files_and_parts)) == sorted(map(id, shown))


# Quirks, by their number in the reference -----------------------------------------------------------------------------


def tool(delta: dict[str, Any]) -> dict[str, Any]:
    return chunk({"tool_calls": [delta]})


def calls_of(*deltas: dict[str, Any]) -> list[tuple[str, str, Any]]:
    answer, _ = read(sse(*map(tool, deltas), chunk({}, "tool_calls")))
    assert answer.fault is None
    return [(part.id, part.name, part.arguments) for part in answer.outputs if isinstance(part, ToolCallPart)]


def test_quirk_2_a_finish_seen_twice_counts_once_and_all_three_usage_shapes_are_read() -> None:
    usage = {"usage": USAGE}
    for last in (
        {**chunk(), "choices": [], **usage},
        chunk({"content": ""}, "stop", **usage),
        chunk({"content": ""}, None, **usage),
    ):
        call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
        answer, deltas = read(sse(tool(call), chunk({}, "stop"), last))
        assert answer.cost_usd == Decimal("0.00002")
        assert sum(isinstance(delta, ToolCallPart) for delta in deltas) == 1
        assert answer.finish_reason == "stop"


def test_quirk_2_a_tool_call_repeated_with_the_second_finish_is_not_doubled() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a":1}'}}
    answer, _ = read(sse(tool(call), chunk({}, "tool_calls"), chunk({"tool_calls": [call]}, "tool_calls", usage=USAGE)))
    assert [part.arguments for part in answer.outputs if isinstance(part, ToolCallPart)] == [{"a": 1}]


def test_quirk_4_native_finish_and_5_unknown_finish_reasons_do_not_break() -> None:
    for finish, expected in (("stop", "stop"), ("MAX_TOKENS", "length"), ("moon", "other"), ("end_turn", "stop")):
        choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": finish, "native_finish_reason": None}
        answer, _ = read(sse({"choices": [choice]}))
        assert (answer.finish_reason, answer.native_finish_reason, answer.fault) == (expected, None, None)


def test_quirk_5_finish_error_without_an_error_object_fails() -> None:
    answer, _ = read(sse(chunk({"content": "half"}), chunk({}, "error")))
    assert answer.fault is not None
    assert (answer.fault.code, answer.fault.retry, answer.truncated) == (ErrorCode.UPSTREAM, False, True)


def test_quirk_6_a_missing_finish_with_tool_calls_is_tool_calls() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
    assert read(sse(tool(call)))[0].finish_reason == "tool_calls"
    answer, _ = read(plain({"content": None, "tool_calls": [call]}, None))
    assert (answer.finish_reason, answer.complete) == ("tool_calls", True)


def test_quirk_7_a_missing_usage_is_pending_and_never_zero() -> None:
    answer, _ = read(plain({"content": "x"}))
    assert (answer.cost_usd, answer.usage, answer.complete) == (None, Usage(), True)


@pytest.mark.parametrize("arguments", [None, "", "   "])
def test_quirk_8_missing_arguments_are_an_empty_object(arguments: str | None) -> None:
    assert calls_of({"index": 0, "id": "c", "function": {"name": "now", "arguments": arguments}}) == [("c", "now", {})]


def test_quirk_8_arguments_as_an_object_are_taken_and_broken_ones_survive_as_text() -> None:
    assert calls_of({"index": 0, "id": "c", "function": {"name": "f", "arguments": {"a": 1}}}) == [("c", "f", {"a": 1})]
    answer, _ = read(plain({"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a": '}}]}))
    (call,) = answer.outputs
    assert isinstance(call, ToolCallPart)
    assert (call.arguments, call.arguments_text) == (None, '{"a": ')


def test_quirk_9_a_new_id_is_a_new_call_although_the_index_repeats() -> None:
    first = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
    second = {"index": 0, "id": "c2", "function": {"name": "g", "arguments": "{}"}}
    assert calls_of(first, second) == [("c1", "f", {}), ("c2", "g", {})]


def test_quirk_9_a_repeated_id_with_another_index_or_whole_arguments_is_a_new_call() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert calls_of({"index": 0, **call}, {"index": 1, **call}) == [("c", "f", {"a": 1})] * 2
    assert calls_of({"index": 0, **call}, {"index": 0, **call}) == [("c", "f", {"a": 1})] * 2
    plain_answer, _ = read(plain({"tool_calls": [call, call]}))
    assert len(plain_answer.outputs) == 2


def test_quirk_9_pieces_find_their_call_by_index_by_id_or_by_order() -> None:
    def piece(text: str, **where: Any) -> dict[str, Any]:
        return {**where, "function": {"arguments": text}}

    def named(name: str, **where: Any) -> dict[str, Any]:
        return {**where, "function": {"name": name, "arguments": ""}}

    expected = [("c1", "f", {"a": 1}), ("c2", "g", {"b": 2})]
    by_index = [named("f", index=0, id="c1"), named("g", index=1, id="c2"), piece('{"b":', index=1),
                piece('{"a":', index=0), piece("2}", index=1), piece("1}", index=0)]  # fmt: skip
    assert calls_of(*by_index) == expected
    by_id = [named("f", index=0, id="c1"), piece('{"a":1}', index=0, id="c1"), named("g", index=0, id="c2"),
             piece('{"b":2}', index=0, id="c2")]  # fmt: skip
    assert calls_of(*by_id) == expected
    by_order = [named("f", id="c1"), piece('{"a":1}'), named("g", id="c2"), piece('{"b":2}')]
    assert calls_of(*by_order) == expected
    repeated_name = [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": text}} for text in ('{"a"', ":1}")]
    assert calls_of(*repeated_name) == [("c1", "f", {"a": 1})]


def test_quirk_10_and_11_redacted_and_encrypted_reasoning_is_none() -> None:
    details = [{"type": "reasoning.encrypted", "data": "AAAA"}]
    answer, _ = read(plain({"content": "x", "reasoning": "[REDACTED]", "reasoning_details": details}))
    assert answer.reasoning is None
    summary = [{"type": "reasoning.summary", "summary": "Short."}, {"type": "reasoning.text", "text": " Long."}]
    assert read(plain({"content": "x", "reasoning_details": summary}))[0].reasoning == "Short. Long."


def test_quirk_12_the_same_reasoning_under_three_names_is_there_once_and_tags_stay_in_the_text() -> None:
    thought = {"reasoning": "Hm.", "reasoning_content": "Hm.", "reasoning_details": [{"text": "Hm."}]}
    answer, _ = read(plain({"content": "<think>ah</think>yes", **thought}))
    assert (answer.reasoning, answer.text) == ("Hm.", "<think>ah</think>yes")
    assert read(plain({"content": "yes", "reasoning_content": "Hm."}))[0].reasoning == "Hm."


def test_quirk_13_content_as_a_list_of_parts_is_read_part_by_part() -> None:
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]},
        {"type": "text", "text": "See "},
        "this:",
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "hologram", "beam": 1},
    ]
    answer, _ = read(plain({"content": content}))
    assert (answer.text, answer.reasoning) == ("See this:", "Let me see.")
    assert isinstance(answer.outputs[1], RawMedia)
    assert answer.outputs[2] == OtherPart(kind="hologram", data={"type": "hologram", "beam": 1})
    assert same(answer, read(sse(*(chunk({"content": [part]}) for part in content), chunk({}, "stop")))[0])


def test_quirk_14_an_image_repeated_in_the_last_chunk_is_there_once() -> None:
    image = {"type": "image_url", "image_url": {"url": PNG}}
    answer, deltas = read(sse(chunk({"images": [image]}), chunk({"images": [image]}, "stop")))
    assert len(answer.outputs) == len(deltas) == 1


def test_quirk_15_an_empty_stop_is_whole_and_empty() -> None:
    answer, deltas = read(sse(chunk({"content": ""}), chunk({"content": ""}, "stop")))
    assert (answer.complete, answer.empty, answer.outputs, deltas) == (True, True, (), [])


def test_quirk_16_citations_without_their_optional_fields_and_twice_are_one() -> None:
    note = {"type": "url_citation", "url_citation": {"url": "https://a.example"}}
    answer, _ = read(sse(chunk({"annotations": [note]}), chunk({"annotations": [note, {"type": "file"}]}, "stop")))
    assert answer.outputs == (
        CitationPart(url="https://a.example"), OtherPart(kind="file", data={"type": "file"})
    )  # fmt: skip


def test_quirk_20_a_stream_that_just_ends_is_truncated_and_may_be_billed() -> None:
    answer, _ = read(sse(chunk({"content": "half of"}), done=False))
    assert answer.fault is not None
    assert (answer.fault.code, answer.truncated, answer.complete) == (ErrorCode.UPSTREAM, True, False)
    assert (answer.fault.billed, answer.fault.retry, answer.fault.truncated) == ("maybe", False, True)


def test_quirk_20_a_finish_makes_an_answer_whole_without_the_end_mark_and_without_usage() -> None:
    answer, _ = read(sse(chunk({"content": "all of it"}), chunk({}, "stop"), done=False))
    assert (answer.complete, answer.cost_usd) == (True, None)
    cut_usage = sse(chunk({"content": "all of it"}), chunk({}, "stop"), done=False) + b'data: {"usage":{"co'
    assert read(cut_usage)[0].complete


def test_the_end_mark_makes_an_answer_whole_only_after_some_output() -> None:
    assert read(sse(chunk({"content": "x"})))[0].complete
    assert not read(sse(chunk({"content": ""})))[0].complete
    assert not read(sse())[0].complete


def test_quirk_21_byok_costs_the_fee_and_what_the_provider_charges() -> None:
    def cost(**usage: Any) -> Decimal | None:
        return read(plain({"content": "x"}, usage=usage))[0].cost_usd

    details = {"cost_details": {"upstream_inference_cost": 0.0012}}
    assert cost(cost=0, is_byok=True, **details) == Decimal("0.0012")
    assert cost(cost=0.0001, is_byok=True, **details) == Decimal("0.0013")
    assert cost(cost=0.0012, is_byok=False, **details) == Decimal("0.0012")
    assert cost(cost=0.0012, **details) == Decimal("0.0012")
    assert cost(cost=0, is_byok=False) == 0
    assert cost(cost=0, is_byok=True) is None
    assert cost(cost=0, **details) is None
    assert cost(**details) is None


@pytest.mark.parametrize("raw", ["1e-05", "0.00001", "0.000010", '"0.00001"'])
def test_money_is_exact_in_every_notation(raw: str) -> None:
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"cost":%s}}' % raw.encode()
    assert read(body)[0].cost_usd == Decimal("0.00001")


@pytest.mark.parametrize("raw", ["NaN", "Infinity", "-1", "true", "null", "{}", '"a lot"', "1e400", "1e-400", "[]"])
def test_money_that_makes_no_sense_is_unknown(raw: str) -> None:
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"cost":%s}}' % raw.encode()
    answer, _ = read(body)
    assert (answer.complete, answer.cost_usd) == (True, None)


def test_quirk_22_leading_white_space_of_the_answer_is_kept() -> None:
    assert read(plain({"content": "\n\n hi"}))[0].text == "\n\n hi"


def test_quirk_24_and_25_a_refusal_with_null_content_is_a_part() -> None:
    nothing = {"content": None, "reasoning": None, "tool_calls": None, "images": None, "audio": None}
    answer, deltas = read(plain({**nothing, "refusal": "I will not."}))
    assert answer.outputs == (RefusalPart(text="I will not."),)
    assert (answer.text, answer.empty, deltas) == ("", False, [RefusalPart(text="I will not.")])


def test_quirk_26_absent_names_are_none() -> None:
    answer, _ = read(b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')
    assert (answer.served, answer.provider, answer.generation_id, answer.complete) == (None, None, None, True)


# Errors inside a 200 --------------------------------------------------------------------------------------------------


def fault_of(body: bytes) -> tuple[ErrorCode, bool, str]:
    answer, _ = read(body)
    assert answer.fault is not None
    assert not answer.complete
    return answer.fault.code, answer.fault.retry, answer.fault.billed


def test_an_error_alone_is_retryable_as_its_code_says() -> None:
    for code, expected in ((502, (ErrorCode.UPSTREAM, True, "no")), (524, (ErrorCode.TIMEOUT, True, "no")),
                           (400, (ErrorCode.INVALID, False, "no")), ("server_error", (ErrorCode.UPSTREAM, True, "no")),
                           ("429", (ErrorCode.RATE_LIMITED, True, "no"))):  # fmt: skip
        error = {"error": {"code": code, "message": "x"}, "user_id": "user_1"}
        assert fault_of(json.dumps(error).encode()) == expected
        assert fault_of(sse({**error, "choices": []}, done=False)) == expected


def test_an_error_in_the_choice_keeps_the_partial_text() -> None:
    choice = {"message": {"content": "half"}, "finish_reason": "error", "error": {"code": 502, "message": "x"}}
    answer, _ = read(json.dumps({"choices": [choice]}).encode())
    assert (answer.text, answer.truncated) == ("half", True)
    assert answer.fault is not None
    assert (answer.fault.retry, answer.fault.billed) == (False, "maybe")


def test_an_error_after_the_finish_fails_and_its_cost_is_still_known() -> None:
    late = {"error": {"code": 400, "message": "Token limit reached"}, "choices": []}
    answer, _ = read(sse(chunk({"content": "long"}), chunk({}, "length"), late, {"choices": [], "usage": USAGE}))
    assert answer.fault is not None
    assert (answer.fault.code, answer.truncated, answer.cost_usd) == (ErrorCode.INVALID, True, Decimal("0.00002"))


def test_nothing_is_delivered_after_a_broken_frame() -> None:
    body = (
        sse(chunk({"content": "one"}), done=False)
        + b'data: {"choices": [\n\n'
        + sse(chunk({"content": " two"}, "stop"))
    )
    answer, deltas = read(body)
    assert answer.fault is not None
    assert (answer.text, answer.fault.code, answer.truncated) == ("one", ErrorCode.UPSTREAM, True)
    assert deltas == [Text("one")]


def test_a_billed_failure_is_not_retried() -> None:
    error = {"error": {"code": 502, "message": "x"}, "choices": [], "usage": USAGE}
    assert fault_of(sse(error)) == (ErrorCode.UPSTREAM, False, "maybe")


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": null}', b'{"choices": []}', b"[]", b"[1, 2]", b'{"choices": [null]}', b"{", b'{"choices": [{"mess',
        b'{"object": "list", "data": []}', b"data: 3\n\n", b"data: null\n\ndata: [DONE]\n\n", b"", b"<html>",
    ],
)  # fmt: skip
def test_what_is_no_completion_ends_as_upstream_trouble(body: bytes) -> None:
    assert fault_of(body) == (ErrorCode.UPSTREAM, False, "maybe")


def test_a_completion_nested_under_provider_is_found() -> None:
    nested = json.loads(plain({"content": "here"}, usage=USAGE))
    answer, _ = read(json.dumps({"id": "outer", "provider": nested}).encode())
    assert (answer.text, answer.provider, answer.cost_usd) == ("here", "P", Decimal("0.00002"))


# Odd text and size ----------------------------------------------------------------------------------------------------


def test_half_characters_of_two_chunks_become_one() -> None:
    halves = rb'{"choices":[{"delta":{"content":"a\ud83c"}}]}', rb'{"choices":[{"delta":{"content":"\udf89b"}}]}'
    body = b"".join(b"data: " + half + b"\n\n" for half in halves) + sse(chunk({}, "stop"))
    answer, deltas = read(body)
    assert answer.text == "a🎉b"
    assert "".join(delta.text for delta in deltas if isinstance(delta, Text)) == "a🎉b"


def test_half_a_character_for_good_is_replaced() -> None:
    body = rb'data: {"choices":[{"delta":{"content":"a\ud83c"},"finish_reason":"stop"}]}' + b"\n\n"
    answer, deltas = read(body)
    assert answer.text == "a�"
    assert deltas == [Text("a"), Text("�")]


def test_text_beyond_four_mebibytes_ends_the_run_and_the_reading() -> None:
    normaliser = Normaliser()
    for _ in range(5):
        normaliser.take(chunk({"content": "x" * 1024 * 1024}))
    answer = normaliser.finish()
    assert normaliser.done
    assert answer.fault is not None
    assert (answer.fault.code, answer.truncated) == (ErrorCode.UPSTREAM, True)


def test_an_unknown_file_of_megabytes_is_told_by_its_size() -> None:
    answer, _ = read(plain({"content": [{"type": "blob", "data": "x" * 100_000}]}))
    (part,) = answer.outputs
    assert isinstance(part, OtherPart)
    assert isinstance(part.data, dict)
    assert part.data.keys() == {"omitted_bytes"}


def test_a_field_nobody_knows_is_passed_on_once() -> None:
    answer, _ = read(sse(chunk({"scent": "ro"}), chunk({"scent": "se", "content": "x"}), chunk({}, "stop")))
    assert answer.outputs == (TextPart(text="x"), OtherPart(kind="scent", data="rose"))


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"image_url": {"url": "https://x.example/a.png"}}, "image_url"),
        ({"image_url": {"url": "data:image/png;base64,"}}, "invalid_image"),
        ({"image_url": {"url": "ftp://x.example/a.png"}}, "invalid_image"),
        ("not an object", "invalid_image"),
        ({"image_url": 7}, "image"),
    ],
)
def test_images_that_are_no_files_are_other_parts(entry: Any, kind: str) -> None:
    answer, _ = read(plain({"content": None, "images": [entry]}))
    (part,) = answer.outputs
    assert isinstance(part, OtherPart)
    assert part.kind == kind


@pytest.mark.parametrize(
    "entry",
    [
        {"image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"image_url": "data:image/png;base64,iVBORw0KGgo="},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        {"b64_json": "iVBORw0KGgo=", "media_type": "image/png"},
        {"url": "DATA:image/png;BASE64,iVBORw0KGgo="},
        {"image_url": {"url": "data:image/png,%89PNG%0D%0A%1A%0A"}},
    ],
)
def test_an_image_is_found_in_every_shape(entry: Any) -> None:
    answer, _ = read(plain({"content": None, "images": [entry]}))
    (part,) = answer.outputs
    assert isinstance(part, RawMedia)
    assert (part.kind, part.declared_mime) == ("image", "image/png")
    assert base64.b64decode("".join(part.pieces)) == b"\x89PNG\r\n\x1a\n"


def test_sound_in_pieces_is_one_file_with_its_transcript() -> None:
    pieces = [
        {"id": "a", "transcript": "Hel"},
        {"data": "UklG", "transcript": "lo"},
        {"data": "Rg=="},
        {"expires_at": 1},
    ]
    normaliser = Normaliser("pcm16")
    for piece in pieces:
        normaliser.take(chunk({"audio": piece}))
    normaliser.take(chunk({}, "stop"))
    (audio,) = normaliser.finish().outputs
    assert isinstance(audio, RawMedia)
    assert (audio.pieces, audio.transcript, audio.declared_mime) == (("UklG", "Rg=="), "Hello", "audio/pcm16")


def test_finishing_twice_gives_the_same_answer() -> None:
    normaliser = Normaliser()
    normaliser.take(chunk({"audio": {"data": "UklG"}}, "stop"))
    assert normaliser.finish() is normaliser.finish()


def test_a_stored_file_takes_the_place_of_what_arrived_and_a_lost_one_is_left_out() -> None:
    answer, _ = read(plain({"content": "x", "images": [{"image_url": {"url": url}} for url in (PNG, PNG + "AAAA")]}))
    first, _second = (part for part in answer.outputs if isinstance(part, RawMedia))
    stored = OtherPart(kind="stored", data=None)
    assert answer.parts({first: stored}) == [TextPart(text="x"), stored]


# Anything ---------------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
keys = st.sampled_from([
    "role", "content", "refusal", "reasoning", "reasoning_content", "reasoning_details", "tool_calls", "images", "videos",
    "audio", "annotations", "function", "name", "arguments", "index", "id", "type", "text", "thinking", "image_url", "url",
    "url_citation", "data", "transcript", "file", "source",
])  # fmt: skip
message_like = st.recursive(
    scalars | st.sampled_from([PNG, "function", "text", "image_url", "thinking"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
choice_like = st.fixed_dictionaries(
    {},
    optional={
        "index": anything,
        "delta": message_like,
        "message": message_like,
        "text": anything,
        "finish_reason": st.sampled_from(["stop", "error", ""]) | anything,
        "native_finish_reason": anything,
        "error": anything,
    },
)
chunk_like = st.fixed_dictionaries(
    {},
    optional={
        "id": anything,
        "model": anything,
        "provider": anything,
        "choices": st.lists(choice_like | anything, max_size=3) | anything,
        "usage": st.dictionaries(st.sampled_from(["cost", "is_byok", "cost_details", "prompt_tokens"]), anything),
        "error": anything,
    },
)


@settings(deadline=None)
@given(st.lists(chunk_like | anything, max_size=4))
def test_no_json_breaks_it_and_what_comes_out_can_be_sent(chunks: list[Any]) -> None:
    normaliser = Normaliser()
    for value in copy.deepcopy(chunks):
        normaliser.feed(json.dumps(value).encode())
    answer = normaliser.finish()
    parts = [part for part in answer.outputs if not isinstance(part, RawMedia)]
    assert PARTS.validate_json(PARTS.dump_json(parts)) == parts
    assert answer.complete == (answer.fault is None)
    assert answer.cost_usd is None or (isinstance(answer.cost_usd, Decimal) and answer.cost_usd >= 0)
    (answer.text + (answer.reasoning or "") + (answer.served or "") + (answer.provider or "")).encode()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_no_bytes_break_it(payloads: list[bytes]) -> None:
    normaliser = Normaliser()
    for payload in payloads:
        normaliser.feed(payload)
    assert not normaliser.finish().complete


@pytest.mark.parametrize("payload", [b"[" * 100_000, b'{"usage":' * 5000, b'{"cost":1e999999999999999999999}'])
def test_hostile_numbers_and_nesting_are_one_more_broken_frame(payload: bytes) -> None:
    normaliser = Normaliser()
    assert normaliser.feed(payload) == []
    assert not normaliser.finish().complete
