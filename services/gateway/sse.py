"""Server-sent events as bytes (WHATWG HTML §9.2): `id` is the number of the frame, `event` its type, `data` one line of JSON."""

from __future__ import annotations

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
COMMENT = b": keep-alive\n\n"
RECONNECT = b"retry: 500\n\n"
"""Before a view ends early: a browser asks again this many milliseconds later, with the number of its last event."""
MAX_EVENT_ID = 2**53


def encode_event(seq: int, kind: str, data: bytes) -> bytes:
    """One event. `data` is JSON without line breaks, as orjson writes it."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (seq, kind.encode(), data)


def parse_event_id(text: str | None) -> int:
    """The number of the last event that a client has; 0 when it has none, or sends something that is not ours."""
    if text is None or not text.isascii() or not text.isdecimal():
        return 0
    return min(int(text[:20]), MAX_EVENT_ID)
