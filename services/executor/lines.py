"""Cuts the bytes of an upstream answer into JSON payloads, whichever way the network cut them before.

An answer is server-sent events, or a plain JSON document although a stream was asked for: the first byte that is not white
space decides, because headers lie and both begin with keep-alive padding. Nothing is decoded here; a character split
between two reads is whole again by the time its line is. Bytes that are neither come out as no payload at all.
"""

from __future__ import annotations

import re

from services.executor.faults import UpstreamFailed, too_large

MAX_FRAME_BYTES = 48 * 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
DONE = b"[DONE]"

_PADDING = b" \t\r\n\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Splitter:
    """Feed it what the socket gives; it returns what became complete. Raises UpstreamFailed beyond its caps (in bytes)."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._max_answer_bytes = max_answer_bytes
        self._answer_bytes = 0
        self._plain: bool | None = None
        # The unfinished line (or plain document) in pieces: joining them once keeps a megabyte line linear in time.
        self._rest: list[bytes] = []
        self._data: list[bytes] = []
        self._frame_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that are complete with this chunk; `b"[DONE]"` is one of them."""
        self._answer_bytes += len(chunk)
        if self._answer_bytes > self._max_answer_bytes:
            raise UpstreamFailed(too_large())
        if self._plain is None:
            chunk = chunk.lstrip(_PADDING)
            if not chunk:
                return []
            self._plain = chunk[:1] in (b"{", b"[")
        if self._plain:
            self._rest.append(chunk)
            return []
        return self._split(chunk)

    def finish(self) -> list[bytes]:
        """What is left when the answer ends: a whole plain document, or an event whose blank line never came."""
        rest = b"".join(self._rest)
        self._rest.clear()
        if self._plain:
            return [rest]
        payloads: list[bytes] = []
        if rest:
            self._take(rest.rstrip(b"\r"), payloads)
        self._dispatch(payloads)
        return payloads

    def _split(self, chunk: bytes) -> list[bytes]:
        """Cuts at line ends. A carriage return at the very end waits: its newline may come with the next chunk."""
        self._frame_bytes += len(chunk)
        if self._rest and self._rest[-1].endswith(b"\r"):
            chunk = self._rest.pop() + chunk
        payloads: list[bytes] = []
        start = 0
        for end in _LINE_END.finditer(chunk):
            if end.end() == len(chunk) and end.group() == b"\r":
                break
            line = chunk[start : end.start()]
            if self._rest:
                line = b"".join((*self._rest, line))
                self._rest.clear()
            start = end.end()
            if line:
                self._take(line, payloads)
            else:
                self._dispatch(payloads)
                self._frame_bytes = len(chunk) - start
        if start < len(chunk):
            self._rest.append(chunk[start:])
        if self._frame_bytes > self._max_frame_bytes:
            raise UpstreamFailed(too_large())
        return payloads

    def _take(self, line: bytes, payloads: list[bytes]) -> None:
        """One line of an event; the end mark is an event of its own, also where the blank line before it is missing."""
        if not line.startswith(b"data:"):
            return
        data = line[6:] if line[5:6] == b" " else line[5:]
        if data == DONE:
            self._dispatch(payloads)
            payloads.append(data)
        else:
            self._data.append(data)

    def _dispatch(self, payloads: list[bytes]) -> None:
        if self._data:
            payload = b"\n".join(self._data).strip()
            self._data.clear()
            if payload:
                payloads.append(payload)
