"""Answers: whole ones in all their shapes, ones that stop early, empty ones, and every way to say or not to say what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.matrix import endings as end
from tests.matrix.case import LOOKUP, NONE, UNKNOWN, Case
from tests.matrix.plays import (
    BILL,
    STOP,
    USAGE,
    WHOLE,
    body,
    completion,
    document,
    events,
    piece,
    said,
    stream,
    streamed,
)

GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
CITED = {"type": "url_citation", "url_citation": {"url": "https://a.example"}}
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}


def message(name: str, says: str, content: Mapping[str, Any], finish: str | None = "stop", **more: Any) -> Case:
    """A success with this message: every part of it in a chunk of its own, and all in one document."""
    chunks = [piece({key: value}) for key, value in content.items()]
    plays = (stream(*chunks, piece({"content": ""}, finish), BILL),)
    return Case(name, says, plays, plain=document(completion(content, finish)), **{"finish": finish, **more})


def priced(name: str, says: str, cost: str, usage: Mapping[str, Any] | None, **more: Any) -> Case:
    """A success that states this usage."""
    plays = (stream(*WHOLE[:3], {**BILL, "usage": usage}),)
    plain = document(completion({"content": "fine"}, usage=usage))
    return Case(name, says, plays, plain=plain, text="fine", cost=cost, **more)


WHOLE_ONES = [
    message("text", "text", {"content": "fine"}, text="fine", mode="echo", quirks=(1, 3, 25, 26)),
    message(
        "white-space", "text that begins with line breaks", {"content": "\n\n fine"}, text="\n\n fine", quirks=(22,)
    ),
    message(
        "reasoning",
        "reasoning under all three names, then text",
        {
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
            "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}],
            "content": "fine",
        },
        text="fine",
        mode="reasoning",
        quirks=(11, 12),
    ),
    message(
        "redacted",
        "reasoning that is redacted and encrypted",
        {
            "reasoning": "[REDACTED]",
            "reasoning_details": [{"type": "reasoning.encrypted", "data": "AAAA"}],
            "content": "fine",
        },
        text="fine",
        quirks=(10,),
    ),
    message(
        "content-list",
        "content as a list of parts, one of them thoughts",
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                {"type": "text", "text": "fine"},
            ]
        },
        text="fine",
        mode="content-list",
        quirks=(13,),
    ),
    message(
        "image",
        "an image and no text",
        {"images": [{"type": "image_url", "image_url": {"url": GIF}}]},
        kinds=("image",),
        mode="image",
        quirks=(14,),
    ),
    message(
        "audio",
        "sound with its transcript",
        {"audio": {"data": "UklGRiQAAABXQVZFZm10IBAAAAABAAEAIlYAAESsAAACABAAZGF0YQAAAAA=", "transcript": "Hello"}},
        kinds=("audio",),
        mode="audio",
    ),
    message("tool", "a tool call", {"tool_calls": [CALL]}, "tool_calls", kinds=("tool_call",), mode="tools"),
    Case(
        "tool-unfinished",
        "a tool call and `finish_reason: null`",
        (stream(piece({"tool_calls": [CALL]}), BILL),),
        plain=document(completion({"content": None, "tool_calls": [CALL]}, None)),
        finish="tool_calls",
        kinds=("tool_call",),
        quirks=(6,),
    ),
    message(
        "tool-bare",
        "a tool call without arguments",
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look"}}]},
        "tool_calls",
        kinds=("tool_call",),
        mode="tools-no-args",
        quirks=(8,),
    ),
    message(
        "tool-twins",
        "two calls with one id and one index",
        {"tool_calls": [CALL, CALL]},
        "tool_calls",
        kinds=("tool_call", "tool_call"),
        quirks=(9,),
    ),
    message(
        "citations",
        "text and a citation with nothing but its address",
        {"content": "fine", "annotations": [CITED]},
        text="fine",
        kinds=("text", "citation"),
        mode="citations",
        quirks=(16,),
    ),
    message(
        "refusal",
        "null content and a `refusal`",
        {"content": None, "refusal": "I will not."},
        kinds=("refusal",),
        mode="refusal",
        quirks=(24,),
    ),
    message(
        "schema",
        "JSON inside a fence, with prose before it",
        {"content": 'Here:\n```json\n{"a":1}\n```'},
        text='Here:\n```json\n{"a":1}\n```',
        quirks=(18,),
    ),
    message(
        "unknown",
        "a part and a field that nobody knows",
        {"content": [{"type": "hologram"}], "scent": "rose"},
        kinds=("other", "other"),
    ),
    Case(
        "native-finish",
        "`native_finish_reason` absent, and a finish of no known name",
        (stream(said("fine"), piece({}, "bored"), BILL),),
        plain=document(completion({"content": "fine"}, "bored")),
        text="fine",
        finish="other",
        quirks=(4,),
    ),
    Case(
        "finish-null",
        "text, `[DONE]`, and never a finish",
        (stream(said("fine"), BILL),),
        plain=document(completion({"content": "fine"}, None)),
        text="fine",
        finish=None,
    ),
    Case(
        "document",
        "a plain document although a stream was asked for",
        (document(completion({"content": "fine"})),),
        text="fine",
        mode="plain",
    ),
    Case(
        "crlf",
        "every line end of the standard, a byte order mark, comments, other fields",
        (
            streamed(
                b"\xef\xbb\xbfretry: 5\r\nevent: x\r\n\r\n"
                + events(*WHOLE[:1]).replace(b"\n", b"\r\n")
                + events(*WHOLE[1:2]).replace(b"\n", b"\r")
                + events(*WHOLE[2:])
            ),
        ),
        text="fine",
    ),
    Case(
        "no-names",
        "`provider`, `system_fingerprint` and `service_tier` absent, others null",
        (
            stream(
                {
                    "choices": [
                        {
                            "delta": {"content": "fine", "refusal": None, "reasoning": None},
                            "finish_reason": "stop",
                            "logprobs": None,
                        }
                    ]
                },
                {"usage": USAGE},
                id_in_header=False,
            ),
        ),
        text="fine",
        quirks=(25, 26),
    ),
]

_words = "Grüße, 世界! 🎉"
_utf8 = b"data: " + json.dumps(said(_words), ensure_ascii=False).encode() + b"\n\n" + events(STOP, BILL)
_at = _utf8.index("世".encode()) + 1

CHARACTERS = [
    Case(
        "split-utf8",
        "a character cut in half between two packets",
        (streamed(_utf8[:_at], 0.02, _utf8[_at:]),),
        text=_words,
        mode="split-utf8",
    ),
    Case(
        "byte-by-byte",
        "every byte of an event in a packet of its own",
        (streamed(*(_utf8[at : at + 1] for at in range(len(_utf8)))),),
        text=_words,
    ),
    Case(
        "surrogates",
        "a character cut in half between two chunks, as an escape",
        (stream(said("fi\ud83d"), said("\ude00ne"), STOP, BILL),),
        text="fi😀ne",
    ),
    Case(
        "half-character",
        "half of a character for good",
        (stream(said("fi\ud83dne"), STOP, BILL),),
        plain=document(completion({"content": "fi\ud83dne"})),
        text="fi\ufffdne",
    ),
    Case(
        "nul",
        "NUL characters in text, names, ids and tools",
        (
            stream(
                {**said("fi\0ne"), "model": "a\0b", "provider": "\0"},
                piece(
                    {
                        "tool_calls": [
                            {"id": "c\0", "function": {"name": "lo\0ok", "arguments": '{"\\u0000":"\\u0000"}'}}
                        ]
                    }
                ),
                STOP,
                BILL,
            ),
        ),
        text="fi\0ne",
        kinds=("text", "tool_call"),
    ),
    Case(
        "numbers",
        "numbers beyond all bounds, and keys that stand twice",
        (
            streamed(
                b'data: {"created":1e400,"choices":[{"index":0,"index":0,"delta":{"content":"no","content":"fine"},'
                b'"logprobs":{"x":-1e400,"n":123456789012345678901234567890}}]}\n\n' + events(STOP, BILL)
            ),
        ),
        text="fine",
    ),
    Case(
        "long-line",
        "a line of two megabytes",
        (stream(piece({"content": "fine", "logprobs": {"x": "y" * 2_000_000}}), STOP, BILL),),
        text="fine",
    ),
    Case(
        "odd-id",
        "a generation id in the header that is no text",
        (
            stream(
                *[{**chunk, "id": None} for chunk in WHOLE[:3]],
                headers={"X-Generation-Id": "gen-\xff\xfe"},
                id_in_header=False,
            ),
        ),
        text="fine",
        cost=LOOKUP,
    ),
]

_silent = completion({"content": ""}, usage={"prompt_tokens": 3, "completion_tokens": 0, "cost": 0})
_thought = {"content": "", "reasoning": "Hm."}

EARLY = [
    message(
        "length", "stops at the token limit", {"content": "fine"}, "length", text="fine", truncated=True, mode="length"
    ),
    message(
        "length-thoughts", "all tokens went into reasoning", _thought, "length", truncated=True, mode="thinking-only"
    ),
    message(
        "length-nothing",
        "stops at the token limit, and there is nothing at all",
        {"content": ""},
        "length",
        truncated=True,
    ),
    message(
        "filter",
        "`content_filter` after some text",
        {"content": "fine"},
        "content_filter",
        text="fine",
        truncated=True,
        mode="content-filter",
    ),
    message(
        "filter-nothing",
        "`content_filter`, and there is nothing at all",
        {"content": ""},
        "content_filter",
        ending=end.WITHHELD,
    ),
    Case(
        "empty",
        "`stop`, nothing at all, nothing billed: asked for once more",
        (stream(STOP, {**BILL, "usage": _silent["usage"]}),),
        end.NOTHING,
        document(_silent),
        attempts=2,
        cost=NONE,
        mode="empty",
        quirks=(15,),
    ),
    Case(
        "empty-once",
        "the same, and the next attempt answers",
        (document(_silent), stream(*WHOLE)),
        attempts=2,
        text="fine",
        quirks=(15,),
    ),
    Case(
        "empty-billed",
        "`stop`, nothing at all, and billed",
        (stream(STOP, BILL),),
        end.NOTHING,
        document(completion({"content": None})),
        quirks=(15,),
    ),
    Case(
        "empty-blank",
        "nothing at all, a blank finish, nothing billed",
        (stream(piece({"content": ""}), {**BILL, "usage": _silent["usage"]}, done=False),),
        end.CUT_OFF,
        document({**_silent, "choices": [{"index": 0, "message": {"content": ""}, "finish_reason": None}]}),
        attempts=3,
        cost=NONE,
        quirks=(15,),
    ),
    Case(
        "empty-tools",
        "`tool_calls`, and no call",
        (stream(piece({}, "tool_calls"), BILL),),
        end.NOTHING,
        document(completion({"content": None, "tool_calls": []}, "tool_calls")),
    ),
]

_byok = {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.00012}}

COSTS = [
    Case("usage-apart", "the usage in a chunk without choices", (stream(*WHOLE),), text="fine", quirks=(2,)),
    Case(
        "usage-repeated",
        "the usage in a chunk that repeats the finish",
        (stream(*WHOLE[:3], piece({"content": ""}, "stop", usage=USAGE)),),
        text="fine",
        quirks=(2,),
    ),
    Case(
        "usage-unfinished",
        "the usage in a chunk with `finish_reason: null`",
        (stream(*WHOLE[:3], piece({"content": ""}, None, usage=USAGE)),),
        text="fine",
        quirks=(2,),
    ),
    Case("usage-first", "the usage before the finish", (stream(*WHOLE[:2], BILL, STOP),), text="fine"),
    Case(
        "usage-everywhere",
        "the usage in every chunk, the last one counts",
        (stream(*({**chunk, "usage": {**USAGE, "cost": 0.00001 * n}} for n, chunk in enumerate(WHOLE[:3]))),),
        text="fine",
    ),
    priced("no-usage", "no usage at all", LOOKUP, None, mode="no-usage", quirks=(7,)),
    priced("no-cost", "a usage without a cost", LOOKUP, {"prompt_tokens": 3, "completion_tokens": 5}, quirks=(7,)),
    Case(
        "no-cost-no-id",
        "no usage, and no generation id to ask for",
        (stream(*({**chunk, "id": None} for chunk in WHOLE[:3]), id_in_header=False),),
        text="fine",
        cost=UNKNOWN,
    ),
    priced("free", "cost 0: a free model", NONE, {"cost": 0, "is_byok": False}),
    priced(
        "byok",
        "the account's own provider key: cost 0, and what the provider charges",
        "stated: 0.00012",
        _byok,
        mode="byok",
        quirks=(21,),
    ),
    priced(
        "byok-fee", "the same, with OpenRouter's fee", "stated: 0.000126", {**_byok, "cost": 0.000006}, quirks=(21,)
    ),
    priced(
        "byok-silent",
        "the same, and the provider's charge is not said",
        LOOKUP,
        {"cost": 0, "is_byok": True},
        quirks=(21,),
    ),
    priced(
        "not-byok",
        "both figures, and no key of the account's own: never summed",
        "stated: 0.00012",
        {"cost": 0.00012, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.00012}},
        quirks=(21,),
    ),
    priced(
        "search",
        "a web search: dearer than the tokens",
        "stated: 0.01606",
        {"cost": 0.01606, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.000176}},
    ),
    priced("exponent", "a cost in scientific notation", "stated: 0.00001", {"cost": 1e-05}),
    priced(
        "nonsense",
        "a cost that makes no sense",
        LOOKUP,
        {"cost": -1, "prompt_tokens": 1e300, "completion_tokens": True},
    ),
    Case(
        "not-a-number",
        "a cost that is no number",
        (streamed(events(*WHOLE[:3]) + b'data: {"usage":{"cost":NaN}}\n\n'),),
        plain=body(json.dumps({**completion({"content": "fine"}), "usage": {"cost": float("inf")}}).encode()),
        text="fine",
        cost=LOOKUP,
    ),
    Case(
        "model-differs",
        "another `model` than was asked for, and no `provider`",
        (
            stream(
                *(
                    {key: value for key, value in {**chunk, "model": "else/where"}.items() if key != "provider"}
                    for chunk in WHOLE
                )
            ),
        ),
        text="fine",
        quirks=(3, 26),
    ),
]

ANSWERS = {
    "Answers": WHOLE_ONES,
    "Characters, numbers, lines": CHARACTERS,
    "Answers that stop early, or say nothing": EARLY,
    "Costs": COSTS,
}
