"""The upstream of the fault matrix: a small HTTP server that plays what a case says, byte for byte, and keeps books.

It is written on bare sockets because half of the cases are things that no HTTP library lets a server do. The model of a
request names what to play, its last message names the run, so that the attempts of a run can be told apart.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.matrix.plays import GEN, LOOKED_UP, Play

_BEAT_S = 0.05


@dataclass
class MatrixUpstream:
    """`plays` says what each model does, attempt by attempt; the last one repeats. `attempts` counts them by run."""

    plays: Mapping[str, Sequence[Play]]
    url: str = ""
    attempts: Counter[str] = field(default_factory=Counter)
    _handlers: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            self._handlers.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target = head.split(" ", 2)[:2]
        if method == "GET":
            found = parse_qs(urlsplit(target).query)["id"][0]
            data = {"id": found, "total_cost": float(LOOKED_UP), "is_byok": False, "model": "matrix/served"}
            await _play(writer, Play((json.dumps({"data": data}).encode(),), id_in_header=False), found)
            return
        length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length"))
        request = json.loads(await reader.readexactly(int(length.split(":")[1])))
        run = request["messages"][-1]["content"]
        number = self.attempts[run]
        self.attempts[run] += 1
        plays = self.plays[request["model"]]
        await _play(writer, plays[min(number, len(plays) - 1)], f"gen-{run}-{number + 1}")

    async def close(self) -> None:
        """Lets go of the connections that are held open for ever."""
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


async def _play(writer: asyncio.StreamWriter, play: Play, generation_id: str) -> None:
    if play.status is None:
        writer.writelines(step for step in play.steps if isinstance(step, bytes))
        await (_end(writer, play) if play.ending != "end" else writer.drain())
        return
    headers = {"Transfer-Encoding": "chunked", "Connection": "close", **play.headers}
    if play.id_in_header:
        headers["X-Generation-Id"] = generation_id
    lines = [f"HTTP/1.1 {play.status} Any", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
    for step in play.steps:
        if isinstance(step, float):
            await asyncio.sleep(step)
        else:
            _write(writer, step.replace(GEN.encode(), generation_id.encode()))
            await writer.drain()
    await _end(writer, play)


async def _end(writer: asyncio.StreamWriter, play: Play) -> None:
    if play.ending == "end":
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    elif play.ending == "reset":
        # A reset may overtake what was sent; whoever reads must have it first.
        await asyncio.sleep(_BEAT_S)
        writer.transport.abort()
    while play.ending == "hang" and not writer.is_closing():
        await asyncio.sleep(_BEAT_S)
        if play.heartbeat:
            _write(writer, play.heartbeat)
            await writer.drain()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


@asynccontextmanager
async def matrix_upstream(plays: Mapping[str, Sequence[Play]]) -> AsyncIterator[MatrixUpstream]:
    """The server; `url` is its root."""
    upstream = MatrixUpstream(plays)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, backlog=1000)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        await upstream.close()
