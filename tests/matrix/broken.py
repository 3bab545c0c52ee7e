"""A status of 200, and then no answer or only part of one: errors inside it, cuts, silence, nonsense, too much."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any

from contracts.catalog import Timeouts
from tests.matrix import endings as end
from tests.matrix.case import FINAL, LOOKUP, NONE, UNKNOWN, Case
from tests.matrix.endings import Ending
from tests.matrix.plays import (
    BILL,
    GEN,
    PADDING,
    PROCESSING,
    STOP,
    USAGE,
    WHOLE,
    Play,
    body,
    completion,
    document,
    error_alone,
    events,
    piece,
    said,
    stream,
    streamed,
)

QUICK = Timeouts(first_token_s=3, idle_s=25, total_s=60)
STALLING = Timeouts(first_token_s=25, idle_s=2, total_s=60)
SHORT = Timeouts(first_token_s=25, idle_s=25, total_s=4)


def failing(
    name: str, says: str, ending: Ending, plays: Play | Sequence[Play], plain: Play | None = None, **more: Any
) -> Case:
    """A failure; unless told otherwise the call has to be looked up."""
    played = (plays,) if isinstance(plays, Play) else tuple(plays)
    return Case(name, says, played, ending, plain, **{"cost": LOOKUP, "finish": None, **more})


def alone(code: Any, ending: Ending, attempts: int = 1, mode: str | None = None) -> Case:
    """A 200 that holds nothing but an error: the body, and the first and only event."""
    error = error_alone(code)
    says = f"only an error with code `{json.dumps(code)}`"
    plays = stream({**error, "choices": []}, done=False)
    return failing(f"alone-{code}", says, ending, plays, document(error), attempts=attempts, cost=NONE, mode=mode)


_error_choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
_late = {**error_alone(502), "choices": [_error_choice]}
_half = completion({"content": "fine"}, "error")
_half["choices"][0]["error"] = {"code": 502, "message": "x"}
_without_usage = {key: value for key, value in _half.items() if key != "usage"}

INSIDE = [
    alone(400, end.BAD_REQUEST),
    alone(401, end.KEY_REJECTED),
    alone(402, end.NO_CREDITS),
    alone(429, end.PROVIDER_BUSY, 3),
    alone(500, end.FAILED, 2),
    alone(502, end.FAILED, 3, "error-in-200"),
    alone(524, end.PROVIDER_SLOW, 3),
    alone("server_error", end.FAILED, 2),
    alone("never_heard_of", end.FAILED, 3),
    alone(None, end.FAILED, 3),
    failing(
        "error-word",
        "an error without a code, explained by `error_type` alone",
        end.DOWN,
        stream({"error": {"message": "x", "metadata": {"error_type": "provider_overloaded"}}}),
        document({"error": {"metadata": {"error_type": "provider_overloaded"}}}),
        attempts=3,
        cost=NONE,
    ),
    failing(
        "error-text",
        "an error that is a string",
        end.FAILED,
        stream({"error": "it broke"}),
        document({"error": "it broke"}),
        attempts=3,
        cost=NONE,
    ),
    failing(
        "error-first",
        "the documented error event, before any text",
        end.FAILED,
        stream(_late, done=False),
        attempts=3,
        cost=NONE,
        mode="error-first",
        quirks=(5,),
    ),
    failing(
        "error-late",
        "the documented error event, after some text: `finish_reason: error`",
        end.FAILED,
        stream(said("fi"), said("ne"), _late, done=False),
        document(_without_usage),
        truncated=True,
        text="fine",
        mode="mid-stream-error",
        quirks=(5, 20),
    ),
    failing(
        "error-late-billed",
        "the same, and the usage with its cost",
        end.FAILED,
        stream(said("fi"), said("ne"), _late, BILL),
        document(_half),
        truncated=True,
        text="fine",
        cost=FINAL,
    ),
    failing(
        "error-first-billed",
        "an error and a cost: billed, so not asked for again",
        end.FAILED,
        stream({**error_alone(502), "choices": [], "usage": USAGE}),
        document({**error_alone(502), "usage": USAGE}),
        cost=FINAL,
    ),
    failing(
        "error-finish",
        "`finish_reason: error` and no error object",
        end.FAILED,
        stream(said("fi"), said("ne"), piece({}, "error")),
        document({**completion({"content": "fine"}, "error"), "usage": None}),
        truncated=True,
        text="fine",
        quirks=(5,),
    ),
    failing(
        "error-finish-first",
        "`finish_reason: error` at once, without any text: not billed, asked for again",
        end.FAILED,
        stream(piece({}, "error")),
        document({**completion({"content": None}, "error"), "usage": None}),
        attempts=3,
        cost=NONE,
    ),
    failing(
        "error-after-length",
        "400 “Token limit reached” after a `length` finish, the usage behind it",
        end.LONG_INPUT,
        stream(
            said("fi"),
            said("ne"),
            piece({}, "length"),
            {**error_alone(400, "Token limit reached"), "choices": []},
            BILL,
        ),
        truncated=True,
        text="fine",
        cost=FINAL,
    ),
    failing(
        "error-moderated",
        "the provider's policy, after some text",
        end.MODERATED,
        stream(said("fine"), error_alone(400, "x", error_type="content_policy_violation"), done=False),
        truncated=True,
        text="fine",
    ),
    failing(
        "choices-null",
        "`choices: null` and no error",
        end.NO_COMPLETION,
        stream({**BILL, "usage": None, "choices": None}),
        document({**completion({}), "choices": None, "usage": None}),
        mode="choices-null",
    ),
    failing(
        "choices-empty",
        "`choices: []` and nothing else",
        end.NO_COMPLETION,
        stream({**BILL, "usage": None}),
        document({**completion({}), "choices": [], "usage": None}),
    ),
    failing(
        "choices-odd",
        "`choices` of another type",
        end.NO_COMPLETION,
        stream({"id": GEN, "choices": {"0": 1}}),
        document({"id": GEN, "choices": [None]}),
    ),
    failing(
        "other-document",
        "some other document (a list of models, the form of `/responses`)",
        end.NO_COMPLETION,
        stream({"type": "response.created", "response": {"id": GEN}}),
        document({"object": "list", "data": []}),
    ),
    Case(
        "nested",
        "a completion nested under `provider`",
        (stream(*WHOLE),),
        plain=document({"id": GEN, "provider": completion({"content": "fine"})}),
        text="fine",
    ),
]

_line = events(said("fi"), said("ne"))
_whole_document = json.dumps(completion({"content": "fine"})).encode()
_half_document = _whole_document[: len(_whole_document) // 2]

CUTS = [
    failing(
        "reset-at-once",
        "the connection is reset before any status",
        end.BROKEN_OFF,
        Play((), status=None, ending="reset"),
        cost=UNKNOWN,
    ),
    failing(
        "reset-first",
        "reset after the status, before any text",
        end.BROKEN_OFF,
        streamed(PROCESSING, ending="reset"),
        body(PADDING, ending="reset"),
    ),
    failing(
        "reset",
        "some text, then a reset",
        end.BROKEN_OFF,
        streamed(PROCESSING + _line, ending="reset"),
        truncated=True,
        text="fine",
        mode="cut",
        quirks=(20,),
    ),
    failing("reset-document", "half a document, then a reset", end.BROKEN_OFF, body(_half_document, ending="reset")),
    failing(
        "no-end",
        "some text, then the connection closes without the end of the body",
        end.BROKEN_OFF,
        streamed(_line, ending="no-end"),
        truncated=True,
        text="fine",
        quirks=(20,),
    ),
    failing(
        "eof",
        "some text, then a clean end: no finish, no usage, no `[DONE]`",
        end.CUT_OFF,
        stream(said("fi"), said("ne"), done=False),
        truncated=True,
        text="fine",
        mode="cut-plain-end",
        quirks=(20,),
    ),
    failing(
        "eof-in-line",
        "a clean end in the middle of a line",
        end.UNREADABLE,
        streamed(_line + b'data: {"id":"gen-1","choices":[{"ind'),
        truncated=True,
        text="fine",
    ),
    failing("eof-document", "half a document, then a clean end", end.UNREADABLE, body(PADDING + _half_document)),
    failing(
        "eof-first",
        "a clean end before any text",
        end.CUT_OFF,
        stream(piece({"role": "assistant", "content": ""}), done=False),
    ),
    failing(
        "empty-body",
        "200 and no body, or only keep-alives",
        end.NO_COMPLETION,
        streamed(PROCESSING * 3),
        body(PADDING * 3),
    ),
    failing(
        "not-http",
        "an answer that is not HTTP",
        end.BROKEN_OFF,
        Play((b"220 ready\r\n\r\n",), status=None),
        cost=UNKNOWN,
    ),
    failing(
        "not-gzip",
        "a body that says that it is compressed, and is not",
        end.BROKEN_OFF,
        stream(*WHOLE, headers={"Content-Encoding": "gzip"}),
    ),
    Case(
        "gzip",
        "a compressed body, although none was asked for",
        (streamed(gzip.compress(events(*WHOLE)), headers={"Content-Encoding": "gzip"}),),
        text="fine",
    ),
    failing("done-alone", "`[DONE]` and nothing else", end.NO_COMPLETION, streamed(b"data: [DONE]\n\n")),
    failing(
        "eof-no-id",
        "cut off, and no generation id anywhere",
        end.CUT_OFF,
        streamed(events(*[{**said("fine"), "id": None}]), id_in_header=False),
        truncated=True,
        text="fine",
        cost=UNKNOWN,
    ),
    failing(
        "eof-id-in-chunk",
        "cut off, the generation id in the first chunk only",
        end.CUT_OFF,
        stream(said("fine"), done=False, id_in_header=False),
        truncated=True,
        text="fine",
    ),
    failing(
        "eof-id-in-header",
        "cut off, the generation id in the header only",
        end.CUT_OFF,
        stream({**said("fine"), "id": None}, done=False),
        truncated=True,
        text="fine",
    ),
    Case(
        "no-done",
        "finish and usage, and an end without `[DONE]`",
        (stream(*WHOLE, done=False),),
        text="fine",
        mode="no-done",
    ),
    Case(
        "cut-usage",
        "a finish, and an end in the middle of the usage",
        (streamed(events(*WHOLE[:3]) + b'data: {"usage":{"co'),),
        text="fine",
        cost=LOOKUP,
        mode="half-json",
    ),
    Case(
        "hang-after-finish",
        "finish and usage, and then the line stays open",
        (stream(*WHOLE, done=True, ending="hang"),),
        text="fine",
    ),
]

SILENCE = [
    failing(
        "silence",
        "no status, nothing, for ever",
        end.NOT_BEGUN,
        Play((), status=None, ending="hang"),
        timeouts=QUICK,
        cost=UNKNOWN,
        mode="silence-no-headers",
    ),
    failing(
        "keep-alives",
        "a status and keep-alives for ever",
        end.NOT_BEGUN,
        streamed(PROCESSING, ending="hang", heartbeat=PROCESSING),
        body(PADDING, ending="hang", heartbeat=PADDING),
        timeouts=QUICK,
        mode="silence",
    ),
    failing(
        "empty-chunks",
        'chunks with `content: ""` for ever',
        end.NOT_BEGUN,
        streamed(PROCESSING, ending="hang", heartbeat=events(said(""))),
        timeouts=QUICK,
    ),
    failing(
        "late",
        "keep-alives, and an answer that begins too late",
        end.NOT_BEGUN,
        streamed(PROCESSING, 8.0, events(*WHOLE)),
        timeouts=QUICK,
        mode="slow",
    ),
    failing(
        "stall",
        "some text, and then nothing for ever",
        end.STALLED,
        streamed(_line, ending="hang"),
        timeouts=STALLING,
        truncated=True,
        text="fine",
        mode="stall",
    ),
    failing(
        "stall-keep-alives",
        "some text, and then keep-alives for ever",
        end.STALLED,
        streamed(_line, ending="hang", heartbeat=PROCESSING),
        timeouts=STALLING,
        truncated=True,
        text="fine",
    ),
    failing(
        "drip",
        "text in drops, beyond the time that the whole may take",
        end.TOO_LONG,
        streamed(_line, ending="hang", heartbeat=PROCESSING + events(piece({"reasoning": "hm"}))),
        timeouts=SHORT,
        truncated=True,
        text="fine",
    ),
    failing(
        "padding",
        "a document that stops half way and hangs",
        end.NOT_BEGUN,
        body(PADDING, _half_document, ending="hang"),
        timeouts=QUICK,
    ),
    Case(
        "drip-in-time",
        "text in drops, each in time",
        (streamed(PROCESSING, events(said("fi")), 0.1, PROCESSING, 0.1, events(said("ne")), 0.1, events(STOP, BILL)),),
        text="fine",
    ),
]

_broken = events(said("fi"), said("ne")) + b'data: {"id":"gen-1","choices":[{"index":0,"del\n\n' + events(STOP, BILL)
_long = "x" * (5 * 1024 * 1024)

NONSENSE = [
    failing(
        "garbage",
        "bytes that are neither JSON nor UTF-8",
        end.NO_COMPLETION,
        streamed(b"\xff\xfe<html>\x00\x9d {{{\n\n"),
        body(b"\x00\xff\xfe"),
    ),
    failing(
        "garbage-events",
        "events that are neither JSON nor UTF-8",
        end.UNREADABLE,
        streamed(b"data: \xc3\x28 not json\n\n"),
        body(b"{\xc3\x28"),
        mode="garbage",
    ),
    failing(
        "broken-frame",
        "one broken event in the middle of a good stream",
        end.UNREADABLE,
        streamed(_broken),
        truncated=True,
        text="fine",
        cost=FINAL,
        mode="garbage-frame",
    ),
    failing("more", "a whole document and a character too many", end.UNREADABLE, body(_whole_document + b"}")),
    failing(
        "html",
        "200 and a web page",
        end.NO_COMPLETION,
        Play((b"<html>hi</html>",), headers={"Content-Type": "text/html"}),
    ),
    failing(
        "not-objects",
        "JSON that is no object",
        end.NO_COMPLETION,
        streamed(b"data: 3\n\ndata: null\n\ndata: [1]\n\n"),
        body(b"[1, 2]"),
    ),
    failing(
        "deep",
        "JSON nested a hundred thousand deep",
        end.UNREADABLE,
        streamed(b"data: " + b"[" * 100_000 + b"\n\n"),
        body(b"[" * 100_000 + b"]" * 100_000),
    ),
    failing(
        "long-text",
        "5 MiB of text",
        end.TOO_LARGE,
        stream(*[said(_long[: 256 * 1024])] * 20),
        truncated=True,
    ),
    failing(
        "long-piece",
        "5 MiB of text in one piece: none of it is told",
        end.TOO_LARGE,
        stream(said(_long), STOP),
        mode="oversize",
    ),
    failing(
        "long-document",
        "the same in a document, which says what it cost",
        end.TOO_LARGE,
        document(completion({"content": _long})),
        cost=FINAL,
    ),
    failing(
        "long-reasoning",
        "8 MB of reasoning",
        end.TOO_LARGE,
        stream(*[piece({"reasoning": "hm, " * 65_536})] * 32),
        truncated=True,
    ),
    failing(
        "long-arguments",
        "5 MiB of arguments of a tool",
        end.TOO_LARGE,
        stream(
            *[piece({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": _long[: 256 * 1024]}}]})] * 20
        ),
        truncated=True,
    ),
    failing(
        "many-parts",
        "ten thousand parts of a kind that nobody knows",
        end.TOO_LARGE,
        stream(piece({"content": [{"type": "speck", "n": n} for n in range(10_000)]})),
        truncated=True,
    ),
    failing(
        "large-parts",
        "many large parts of a kind that nobody knows",
        end.TOO_LARGE,
        stream(*[piece({"content": [{"type": "blob", "n": n, "data": "x" * 60_000}]}) for n in range(150)]),
        truncated=True,
    ),
    failing(
        "long-citations",
        "citations with megabytes of text and addresses",
        end.TOO_LARGE,
        stream(
            *[
                piece(
                    {
                        "annotations": [
                            {
                                "type": "url_citation",
                                "url_citation": {"url": f"https://x.example/{n}{'x' * 60_000}", "title": "t" * 10_000},
                            }
                        ]
                    }
                )
                for n in range(150)
            ]
        ),
        truncated=True,
    ),
    Case(
        "unknown-field",
        "a field that nobody knows, of megabytes: told by its size",
        (stream(said("fine"), *[piece({"scent": "x" * 60_000}) for _ in range(50)], STOP, BILL),),
        text="fine",
        kinds=("text", "other"),
    ),
]

BROKEN_ANSWERS = {
    "Errors inside a 200": INSIDE,
    "Cuts": CUTS,
    "Silence": SILENCE,
    "Nonsense, and too much": NONSENSE,
}
