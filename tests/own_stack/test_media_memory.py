"""How much memory large files take in real processes: two pictures of 20 MB at a time, in and out, in every way there is."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from contracts.attachments import MAX_ATTACHMENT_BYTES
from deploy.local.stack import Stack
from deploy.sandbox.media import png
from tests.conftest import StackFactory
from tests.e2e.client import connected, good

TIMES = 5
SAMPLE_S = 0.01


def large(number: int) -> bytes:
    """A picture of 20 MB, another one for every number."""
    picture = png(f"large {number}")
    return picture + bytes([number]) * (MAX_ATTACHMENT_BYTES - len(picture))


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def record(folder: Path, number: int) -> None:
    """An answer that is one large picture, streamed as OpenRouter does: in one line."""
    delta = {
        "role": "assistant",
        "content": "",
        "images": [{"type": "image_url", "image_url": {"url": data_url(large(number))}}],
    }
    chunk = {"id": "gen-1-large", "model": "a/b", "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}
    usage = {
        "id": "gen-1-large",
        "model": "a/b",
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.01},
    }
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in (chunk, usage)) + "data: [DONE]\n\n"
    meta: dict[str, Any] = {"status": 200, "headers": {"content-type": "text/event-stream"}, "stream": True}
    (folder / f"large-{number}.meta.json").write_text(json.dumps(meta))
    (folder / f"large-{number}.body.sse").write_text(body)


class Watched:
    """The most memory that each service took above what it had at the beginning, in bytes."""

    def __init__(self, stack: Stack) -> None:
        self._processes = {
            name: psutil.Process(stack.parts[name].child.pid)
            for name in stack.parts
            if name.startswith(("gateway", "executor"))
        }
        self._before = {name: process.memory_info().rss for name, process in self._processes.items()}
        self.most = dict.fromkeys(self._processes, 0)

    def look(self) -> None:
        for name, process in self._processes.items():
            self.most[name] = max(self.most[name], process.memory_info().rss - self._before[name])


@contextmanager
def watching(stack: Stack) -> Iterator[Watched]:
    watched, done = Watched(stack), threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            watched.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield watched
    finally:
        done.set()
        thread.join()


async def test_two_large_pictures_at_a_time_take_five_times_their_size_at_most(
    stack_factory: StackFactory, tmp_path: Path
) -> None:
    for number in (1, 2):
        record(tmp_path, number)
    async with (
        stack_factory(settings={"sandbox": {"SANDBOX_RECORDINGS": str(tmp_path)}}) as stack,
        connected(stack, "alice") as alice,
    ):
        viewer = (
            await alice.create(
                model="openai/gpt-4o-mini", inputs=[{"name": "photo", "type": "image"}], config={"prompt_template": "?"}
            )
        )["id"]
        painters = [(await alice.create(model=f"recorded/large-{number}"))["id"] for number in (1, 2)]
        small = good(await alice.http.post("/media", content=png("small")))
        await alice.result(viewer, input={"photo": small["url"]})
        await alice.result((await alice.create(model="sandbox/image"))["id"])
        bodies = [
            json.dumps({"resource": viewer, "input": {"photo": data_url(large(number))}}).encode() for number in (3, 4)
        ]

        async def upload(number: int) -> str:
            url: str = good(await alice.http.post("/media", content=large(number)))["url"]
            return url

        found: dict[str, dict[str, int]] = {}
        with watching(stack) as watched:
            urls = await asyncio.gather(upload(1), upload(2))
        found["uploads"] = watched.most
        with watching(stack) as watched:
            await asyncio.gather(*(alice.result(viewer, input={"photo": url}) for url in urls))
        found["runs with uploads"] = watched.most
        with watching(stack) as watched:
            for answer in await asyncio.gather(*(alice.http.post("/api/execute", content=body) for body in bodies)):
                good(answer)
        found["data URLs in the request"] = watched.most
        with watching(stack) as watched:
            results = await asyncio.gather(*(alice.result(painter) for painter in painters))
        found["pictures made"] = watched.most
        outputs = [part for result in results for part in result["outputs"]]
        assert [(part["type"], part["bytes"]) for part in outputs] == [("image", MAX_ATTACHMENT_BYTES)] * 2
        with watching(stack) as watched:
            for answer in await asyncio.gather(*(alice.http.get(part["url"]) for part in outputs)):
                assert len(answer.content) == MAX_ATTACHMENT_BYTES
        found["downloads"] = watched.most
        assert len([file for call in await alice.upstream_calls() for file in call["files"]]) == 5
    times = {
        what: {name: size / (2 * MAX_ATTACHMENT_BYTES) for name, size in most.items()} for what, most in found.items()
    }
    assert max(of for most in times.values() for of in most.values()) <= TIMES, times
