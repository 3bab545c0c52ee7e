"""How an answer travels: a list of frames with waits, and an end. The faults of the modes are made here, and nothing is sent.

A script is played by `chat`; whatever it plays, a client that leaves is noticed between two frames or in any wait.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from typing import Literal

import orjson

from deploy.sandbox.pricing import ZERO
from deploy.sandbox.wire import (
    DONE,
    PADDING,
    PROCESSING,
    Composition,
    Frame,
    choice,
    chunk,
    comments,
    document,
    event,
    finish_frames,
    piece_frames,
    stream_frames,
)

PLAIN = "application/json"
STREAM = "text/event-stream"
HEARTBEAT_S = 0.5
SPLIT_S = 0.01
BEFORE_CUT_S = 0.05

UPSTREAM_ERROR = {"code": 502, "message": "Provider disconnected unexpectedly"}
GARBAGE = b"\xff\xfe<html>\x00\x9d 502 nonsense {{{\n\ndata: \xc3\x28 not json\n\n"


@dataclass(frozen=True, slots=True)
class Script:
    """What to write and how to end. `heartbeat` is written every half second of any wait, and for ever while hanging."""

    frames: list[Frame]
    content_type: str
    ending: Literal["end", "reset", "hang", "mute"] = "end"
    heartbeat: bytes | None = None
    billed: bool = True


def script_of(made: Composition, mode: str | None, stream: bool) -> Script:
    """The script of a mode (None: an ordinary model) for a streamed or a plain request."""
    fault = _STREAMED.get(mode or "") if stream else _PLAIN.get(mode or "")
    if fault is not None:
        return fault(made)
    script = _good_stream(made) if stream else _good_document(made)
    if mode == "slow":
        return _delayed(script, 3.0)
    return script


def paced(script: Script, first_token_s: float, tokens_per_s: float) -> Script:
    """The script at the speed of a model: a wait before the first token, then one before every other frame with tokens."""
    if not first_token_s and not tokens_per_s:
        return script
    frames = []
    wait_s = first_token_s
    for frame in script.frames:
        if frame.tokens:
            own_s = frame.tokens / tokens_per_s if tokens_per_s else 0.0
            frames.append(replace(frame, wait_s=wait_s + own_s))
            wait_s = 0.0
        else:
            frames.append(frame)
    return replace(script, frames=frames)


def bill(script: Script, made: Composition, frames: int, stream: bool) -> Decimal:
    """USD that the provider charges when `frames` frames went out: a plain answer is charged in full, whoever left."""
    if not script.billed:
        return ZERO
    done = script.frames[:frames]
    tokens = sum(frame.tokens for frame in done)
    if not stream or tokens >= made.completion_tokens:
        return made.inference_cost
    return made.prompt_cost + sum((frame.cost for frame in done), ZERO) if tokens else ZERO


def _good_stream(made: Composition) -> Script:
    return Script(stream_frames(made), STREAM, heartbeat=PROCESSING)


def _good_document(made: Composition) -> Script:
    body = orjson.dumps(document(made))
    frames = [Frame(PADDING), Frame(body, tokens=made.completion_tokens)]
    return Script(frames, PLAIN, heartbeat=PADDING)


def _delayed(script: Script, wait_s: float) -> Script:
    first, second, *rest = script.frames
    return replace(script, frames=[first, replace(second, wait_s=wait_s), *rest])


def _head(made: Composition, keep: int = 3) -> list[Frame]:
    """The beginning of a stream: comments and the first pieces, with something left for later."""
    return [Frame(comments(made)), *list(piece_frames(made))[:keep]]


def _waiting(frames: list[Frame], wait_s: float) -> list[Frame]:
    return [replace(frame, wait_s=wait_s) if frame.tokens else frame for frame in frames]


def _long(made: Composition) -> Script:
    return Script(_waiting(stream_frames(made), 0.02), STREAM)


def _drip(made: Composition) -> Script:
    return Script(_waiting(stream_frames(made), 2.0), STREAM)


def _drip_document(made: Composition) -> Script:
    return _delayed(_good_document(made), 2.0 * len(made.answer.pieces))


def _split_utf8(made: Composition) -> Script:
    whole = b"".join(frame.data for frame in stream_frames(made))
    # orjson writes UTF-8 as it is, so a continuation byte marks a place inside a character.
    inside = [at for at, byte in enumerate(whole) if byte & 0xC0 == 0x80][:40]
    edges = [0, *inside, len(whole)]
    parts = [whole[start:stop] for start, stop in pairwise(edges)]
    frames = [Frame(part, wait_s=SPLIT_S) for part in parts]
    frames[-1] = replace(frames[-1], tokens=made.completion_tokens)
    return Script(frames, STREAM)


def _error_body(_: Composition) -> Script:
    body = {"error": UPSTREAM_ERROR | {"metadata": {"error_type": "provider_unavailable"}}, "user_id": "user_SANDBOX"}
    return Script([Frame(PADDING + orjson.dumps(body))], PLAIN, billed=False)


def _error_first(made: Composition) -> Script:
    data = event(chunk(made, [], error=UPSTREAM_ERROR))
    return Script([Frame(comments(made)), Frame(data)], STREAM, billed=False)


def _mid_stream_error(made: Composition) -> Script:
    error = {**UPSTREAM_ERROR, "metadata": {"error_type": "provider_unavailable"}}
    data = event(chunk(made, [choice({"content": ""}, "error", None)], error=error))
    return Script([*_head(made), Frame(data)], STREAM, billed=False)


def _error_in_choice(made: Composition) -> Script:
    pieces = made.answer.pieces[:3]
    partial = replace(made, answer=replace(made.answer, pieces=pieces, finish="error", native_finish=None))
    body = orjson.dumps(document(partial, error=UPSTREAM_ERROR))
    return Script([Frame(PADDING + body)], PLAIN, billed=False)


def _cut(made: Composition) -> Script:
    # The reset may overtake what was sent: the wait lets the client read it first.
    return Script([*_head(made), Frame(b"", wait_s=BEFORE_CUT_S)], STREAM, "reset")


def _half(made: Composition, ending: Literal["end", "reset", "hang"]) -> Script:
    body = orjson.dumps(document(made))
    frame = Frame(PADDING + body[: len(body) // 2], tokens=made.completion_tokens)
    return Script([frame, Frame(b"", wait_s=BEFORE_CUT_S)], PLAIN, ending)


def _half_stream(made: Composition) -> Script:
    frames = stream_frames(made)[:-1]
    last = frames.pop()
    return Script([*frames, replace(last, data=last.data[: len(last.data) // 2])], STREAM)


def _broken_frame(made: Composition) -> Script:
    frames = stream_frames(made)
    frames.insert(2, Frame(b'data: {"id":"gen-broken","choices":[{"index":0,"del\n\n'))
    return Script(frames, STREAM)


def _null_choices(made: Composition, stream: bool) -> Script:
    if stream:
        return Script([Frame(event(chunk(made, None))), Frame(DONE)], STREAM, billed=False)
    return Script([Frame(PADDING + orjson.dumps({**document(made), "choices": None}))], PLAIN, billed=False)


_STREAMED: dict[str, Callable[[Composition], Script]] = {
    "long": _long,
    "drip": _drip,
    "split-utf8": _split_utf8,
    "plain": _good_document,
    "error-in-200": _error_body,
    "choices-null": lambda made: _null_choices(made, stream=True),
    "error-first": _error_first,
    "mid-stream-error": _mid_stream_error,
    "cut": _cut,
    "cut-plain-end": lambda made: Script(_head(made), STREAM),
    "no-done": lambda made: Script([*_head(made, keep=400), *finish_frames(made)], STREAM),
    "silence": lambda _: Script([Frame(PROCESSING)], STREAM, "hang", PROCESSING, billed=False),
    "silence-no-headers": lambda _: Script([], STREAM, "mute", billed=False),
    "stall": lambda made: Script(_head(made), STREAM, "hang"),
    "garbage": lambda _: Script([Frame(GARBAGE)], STREAM, billed=False),
    "garbage-frame": _broken_frame,
    "half-json": _half_stream,
}

_PLAIN: dict[str, Callable[[Composition], Script]] = {
    "drip": _drip_document,
    "error-in-200": _error_body,
    "choices-null": lambda made: _null_choices(made, stream=False),
    "error-first": _error_body,
    "mid-stream-error": _error_in_choice,
    "cut": lambda made: _half(made, "reset"),
    "cut-plain-end": lambda made: _half(made, "end"),
    "silence": lambda _: Script([Frame(PADDING)], PLAIN, "hang", PADDING, billed=False),
    "silence-no-headers": lambda _: Script([], PLAIN, "mute", billed=False),
    "stall": lambda made: _half(made, "hang"),
    "garbage": lambda _: Script([Frame(GARBAGE)], PLAIN, billed=False),
    "garbage-frame": lambda made: Script([Frame(orjson.dumps(document(made)) + b"}")], PLAIN),
    "half-json": lambda made: _half(made, "end"),
}
