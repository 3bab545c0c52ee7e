"""What the upstream of the fault matrix does, as data: the bytes of one answer, the waits between them, and how it ends.

`GEN` stands for the generation id of the call wherever it appears; the server puts a fresh one in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GEN = "gen-of-this-call"
STATED = "0.00002"
"""What an answer with `USAGE` says that it cost, in USD."""
LOOKED_UP = "0.00042"
"""What `GET /generation` says of a call whose answer did not state a cost."""
LEAK = "user_2xLEAKED"

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.00002, "is_byok": False}
HEAD = {"id": GEN, "model": "matrix/served-20260101", "provider": "Matrix"}
PROCESSING = b": OPENROUTER PROCESSING\n\n"
PADDING = b"\n         \n"

Step = bytes | float
Ending = Literal["end", "no-end", "reset", "hang"]


@dataclass(frozen=True)
class Play:
    """One answer. A step is bytes, written as they stand, or seconds of waiting.

    `ending`: the body ends as HTTP wants it, without that, with a reset, or never (then `heartbeat` comes on and on).
    `status` None: what is answered, if anything, is not HTTP.
    """

    steps: tuple[Step, ...]
    status: int | None = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ending: Ending = "end"
    heartbeat: bytes = b""
    id_in_header: bool = True


# Streams --------------------------------------------------------------------------------------------------------------


def piece(delta: Mapping[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a stream."""
    return {**HEAD, "choices": [{"index": 0, "delta": {**(delta or {})}, "finish_reason": finish}], **more}


def said(text: str) -> dict[str, Any]:
    """One chunk with text."""
    return piece({"role": "assistant", "content": text})


STOP = piece({"content": ""}, "stop")
BILL = {**HEAD, "choices": [], "usage": USAGE}
WHOLE = (said("fi"), said("ne"), STOP, BILL)


def events(*chunks: Any) -> bytes:
    """Server-sent events."""
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def stream(*chunks: Any, done: bool = True, **more: Any) -> Play:
    """A stream of these chunks, as OpenRouter frames it."""
    body = PROCESSING + events(*chunks) + (b"data: [DONE]\n\n" if done else b"")
    return streamed(body, **more)


def streamed(*steps: Step, **more: Any) -> Play:
    """A stream of these bytes."""
    return Play(steps, headers={"Content-Type": "text/event-stream", **more.pop("headers", {})}, **more)


# Documents ------------------------------------------------------------------------------------------------------------


def completion(message: Mapping[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {**HEAD, "choices": [choice], "usage": USAGE, **more}


def document(value: Any, **more: Any) -> Play:
    """A JSON document behind the usual padding, with the status 200."""
    return body(PADDING, json.dumps(value).encode(), **more)


def body(*steps: Step, **more: Any) -> Play:
    """Bytes that say that they are JSON."""
    return Play(steps, headers={"Content-Type": "application/json", **more.pop("headers", {})}, **more)


def refusal(status: int, message: str = "x", sent: Mapping[str, str] | None = None, **metadata: Any) -> Play:
    """An error in the main envelope. `sent` are headers; `availability` goes beside the metadata, all else into it."""
    availability = metadata.pop("availability", None)
    error: dict[str, Any] = {"code": status, "message": f"{message} {LEAK}", "metadata": metadata}
    if availability is not None:
        # As documented: the availability comes with a status and a word of its own, and without a code.
        error = {"http_status": status, "error_type": "x", "message": LEAK, "availability": availability}
    return body(json.dumps({"error": error, "user_id": LEAK}).encode(), status=status, headers=sent or {})


def provider_error(status: int, raw: str, **metadata: Any) -> Play:
    """An error of a provider: the cause is in `metadata.raw` alone."""
    return refusal(status, "Provider returned error", raw=raw, provider_name=LEAK, **metadata)


def error_alone(code: Any, message: str = "x", **metadata: Any) -> dict[str, Any]:
    """The body of a 200 that is only an error."""
    return {"error": {"code": code, "message": f"{message} {LEAK}", "metadata": metadata}, "user_id": LEAK}
