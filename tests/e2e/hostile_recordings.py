"""A folder of recordings that nobody recorded: odd names, odd metadata, odd bytes. Every case has a right end.

`CASES` says it: the text, tool calls or cost of a success, or the code of a failure. A cost of `pending` means that the
answer does not state it but names a generation to ask for, `unknown` that it names none; None means that the case is not about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GIF = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}


@dataclass(frozen=True)
class Case:
    """One recording and its right end. `meta` None writes an empty metadata object."""

    body: bytes
    meta: Mapping[str, Any] | None
    suffix: str = "json"
    text: str | None = None
    code: str | None = None
    cost: str | None = None
    finish: str | None = None
    truncated: bool | None = None
    tools: list[tuple[str, Any]] = field(default_factory=list)
    kinds: list[str] | None = None


def completion(text: Any = "fine", **changes: Any) -> dict[str, Any]:
    """A plain completion."""
    message = {"role": "assistant", "content": text, **changes.pop("message", {})}
    choice = {"index": 0, "finish_reason": "stop", "message": message, **changes.pop("choice", {})}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.00002, "is_byok": False}
    return {"id": "gen-1-hostile", "model": "a/b", "provider": "P", "choices": [choice], "usage": usage, **changes}


def chunk(text: str | None = None, finish: str | None = None, **changes: Any) -> dict[str, Any]:
    """One chunk of a stream."""
    choice = {"index": 0, "delta": {"content": text, **changes.pop("delta", {})}, "finish_reason": finish}
    return {"id": "gen-1-hostile", "model": "a/b", "provider": "P", "choices": [choice], **changes}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.00002}}
GOOD = (chunk("fi"), chunk("ne"), chunk("", "stop"), USAGE)


def plain(document: Any) -> bytes:
    """A JSON body."""
    return json.dumps(document).encode()


def sse(*chunks: Any, newline: str = "\n", done: bool = True) -> bytes:
    """A stream of chunks."""
    blocks = [f"data: {json.dumps(part)}" for part in chunks] + (["data: [DONE]"] if done else [])
    return "".join(f"{block}{newline}{newline}" for block in blocks).encode()


def ok(headers: Mapping[str, str] = JSON, status: int = 200, **more: Any) -> dict[str, Any]:
    """Metadata of an answer."""
    return {"status": status, "headers": headers, **more}


def costing(cost: Any, **usage: Any) -> bytes:
    """A completion that states this cost, written as given when it is bytes-like text."""
    return plain(completion(usage={"prompt_tokens": 3, "completion_tokens": 5, "cost": cost, **usage}))


def tool_call(**changes: Any) -> bytes:
    """A completion that calls one tool."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}, **changes}]
    return plain(completion(None, message={"tool_calls": calls}, choice={"finish_reason": "tool_calls"}))


def image(url: Any) -> bytes:
    """A completion with one image at this address."""
    return plain(completion("", message={"images": [{"type": "image_url", "image_url": {"url": url}}]}))


_good = plain(completion())
_cut_line = sse(chunk("fi"), chunk("ne"), done=False) + b'data: {"id":"gen-1-hostile","choices":[{"ind'

CASES: dict[str, Case] = {
    # Names and metadata
    "Upper.Case_with.dots-and_1": Case(_good, ok(), text="fine"),
    "empty-meta": Case(_good, None, text="fine", cost="0.00002"),
    "headers-as-list": Case(_good, {"status": 200, "headers": [["content-type", "application/json"]]}, text="fine"),
    "status-as-text": Case(_good, {"status": "200", "headers": JSON}, text="fine"),
    "status-201": Case(_good, ok(status=201), text="fine"),
    "meta-with-wrong-body-file": Case(_good, ok(body_file="nowhere.json"), text="fine"),
    "length-lies": Case(_good, ok({**JSON, "content-length": "7"}), text="fine"),
    "encoding-lies": Case(_good, ok({**JSON, "content-encoding": "gzip"}), text="fine"),
    "chunking-lies": Case(_good, ok({**JSON, "transfer-encoding": "chunked", "connection": "close"}), text="fine"),
    "type-lies": Case(_good, ok({"content-type": "text/event-stream"}), text="fine"),
    "type-lies-other-way": Case(sse(*GOOD), ok(JSON), "sse", text="fine", cost="0.00002"),
    "no-content-type": Case(sse(*GOOD), ok({}), "sse", text="fine"),
    "no-body": Case(b"", ok(), "json", code="upstream"),
    "only-white-space": Case(b"\n   \n   \n", ok(), code="upstream"),
    "binary": Case(bytes(range(256)) * 8, ok({"content-type": "application/octet-stream"}), "bin", code="upstream"),
    # Statuses
    "teapot": Case(b"short and stout", ok({"content-type": "text/plain"}, 418), "txt", code="upstream"),
    "status-529": Case(plain({"error": {"code": 529, "message": "Overloaded"}}), ok(status=529), code="unavailable"),
    "status-302": Case(b"", ok({"location": "http://127.0.0.1:9/"}, 302), code="upstream"),
    "status-204": Case(b"", ok({}, 204), code="upstream"),
    "html-502": Case(b"<html>502</html>", ok({"content-type": "text/html"}, 502), "html", code="upstream"),
    "html-200": Case(b"<html>hi</html>", ok({"content-type": "text/html"}), "html", code="upstream"),
    "error-is-text": Case(plain({"error": "it broke"}), ok(status=500), code="upstream"),
    "error-is-list": Case(plain([{"error": 1}]), ok(status=500), code="upstream"),
    "error-code-is-text": Case(plain({"error": {"code": "server_error", "message": 5}}), ok(), code="upstream"),
    "retry-after-a-day": Case(plain({"error": {"code": 429}}), ok({"retry-after": "86400"}, 429), code="rate_limited"),
    "retry-after-nonsense": Case(
        plain({"error": {"code": 404}}), ok({"retry-after": "1e999"}, 404), code="model_unavailable"
    ),
    # Framing
    "crlf": Case(sse(*GOOD, newline="\r\n"), ok(SSE), "sse", text="fine", cost="0.00002"),
    "lone-cr": Case(sse(*GOOD, newline="\r"), ok(SSE), "sse", text="fine", cost="0.00002"),
    "byte-order-mark": Case(b"\xef\xbb\xbf" + sse(*GOOD), ok(SSE), "sse", text="fine"),
    "no-space-after-colon": Case(sse(*GOOD).replace(b"data: ", b"data:"), ok(SSE), "sse", text="fine"),
    "other-sse-fields": Case(b"retry: 5\n: hello\nevent: x\nid: 7\n\n" + sse(*GOOD), ok(SSE), "sse", text="fine"),
    "data-in-two-lines": Case(
        b'data: {"model":"a/b",\ndata: "choices":[{"index":0,"finish_reason":"stop","delta":{"content":"fine"}}]}\n\n',
        ok(SSE),
        "sse",
        text="fine",
        cost="unknown",
    ),
    "no-blank-lines": Case(sse(*GOOD).replace(b"\n\n", b"\n"), ok(SSE), "sse", code="upstream"),
    "cut-in-json-line": Case(_cut_line, ok(SSE), "sse", code="upstream", truncated=True),
    "cut-after-text": Case(sse(chunk("fi"), chunk("ne"), done=False), ok(SSE), "sse", code="upstream", truncated=True),
    "no-final-newline": Case(sse(*GOOD).rstrip(b"\n"), ok(SSE), "sse", text="fine"),
    "garbage-after-done": Case(sse(*GOOD) + b"\xff\xfe{{{\n\n", ok(SSE), "sse", text="fine"),
    "half-plain-json": Case(_good[: len(_good) // 2], ok(), code="upstream"),
    "two-documents": Case(_good + _good, ok(), code="upstream"),
    "long-line": Case(sse(chunk("x" * 1_000_000), *GOOD), ok(SSE), "sse", text="x" * 1_000_000 + "fine"),
    "many-comments": Case(b": OPENROUTER PROCESSING\n\n" * 20_000 + sse(*GOOD), ok(SSE), "sse", text="fine"),
    # Characters
    "not-utf-8": Case(_good.replace(b"fine", b"f\xff\xfene"), ok(), code="upstream"),
    "half-characters": Case(
        sse(chunk("fi\ud83d"), chunk("\ude00ne"), chunk("", "stop"), USAGE), ok(SSE), "sse", text="fi😀ne"
    ),
    "lone-half": Case(plain(completion("fi\ud83dne")), ok(), text="fi�ne"),
    "nul-character": Case(plain(completion("fi\0ne", model="a\0b", provider="P\0", id="gen-\0")), ok(), text="fi\0ne"),
    "nul-in-tool": Case(
        tool_call(id="c\0", function={"name": "lo\0ok", "arguments": '{"a":"\\u0000"}'}),
        ok(),
        text="",
        tools=[("lo\0ok", {"a": "\0"})],
    ),
    # Numbers
    "cost-text": Case(costing("0.00042"), ok(), text="fine", cost="0.00042"),
    "cost-exponent": Case(costing(1e-05), ok(), text="fine", cost="0.00001"),
    "cost-zero": Case(costing(0), ok(), text="fine", cost="0"),
    "cost-null": Case(costing(None), ok(), text="fine", cost="pending"),
    "cost-true": Case(costing(True), ok(), text="fine", cost="pending"),
    "cost-infinite": Case(costing("1e999"), ok(), text="fine", cost="pending"),
    "cost-negative": Case(costing(-1), ok(), text="fine", cost="pending"),
    "cost-not-a-number": Case(costing(float("nan")), ok(), text="fine", cost="pending"),
    "cost-precise": Case(
        costing("0.000000000000000000123456789"), ok(), text="fine", cost="0.000000000000000000123456789"
    ),
    "byok": Case(
        costing(0, is_byok=True, cost_details={"upstream_inference_cost": 0.00012}), ok(), text="fine", cost="0.00012"
    ),
    "byok-with-fee": Case(
        costing(0.000006, is_byok=True, cost_details={"upstream_inference_cost": 0.00012}),
        ok(),
        text="fine",
        cost="0.000126",
    ),
    "byok-without-cost": Case(costing(0, is_byok=True), ok(), text="fine", cost="pending"),
    "not-byok-is-not-summed": Case(
        costing(0.00012, is_byok=False, cost_details={"upstream_inference_cost": 0.00012}),
        ok(),
        text="fine",
        cost="0.00012",
    ),
    "no-usage": Case(plain(completion(usage=None)), ok(), text="fine", cost="pending"),
    "huge-counts": Case(
        plain(completion(created=10**40, usage={"prompt_tokens": 10**30, "completion_tokens": -5, "cost": 0.00002})),
        ok(),
        text="fine",
        cost="0.00002",
    ),
    # Shapes
    "list-body": Case(b"[1,2]", ok(), code="upstream"),
    "null-body": Case(b"null", ok(), code="upstream"),
    "text-body": Case(b'"hello"', ok(), code="upstream"),
    "deep-body": Case(b"[" * 200_000 + b"]" * 200_000, ok(), code="upstream"),
    "deep-inside": Case(
        b'{"choices":[{"message":{"content":' + b"[" * 50_000 + b"]" * 50_000 + b"}}]}", ok(), code="upstream"
    ),
    "choices-empty": Case(plain(completion(choices=[])), ok(), code="upstream"),
    "choices-null": Case(plain(completion(choices=None)), ok(), code="upstream"),
    "choices-object": Case(plain(completion(choices={"0": 1})), ok(), code="upstream"),
    "choice-null": Case(plain(completion(choices=[None])), ok(), code="upstream"),
    "message-null": Case(
        plain(completion(choices=[{"index": 0, "finish_reason": "stop", "message": None}])), ok(), code="upstream"
    ),
    "usage-alone": Case(sse(USAGE), ok(SSE), "sse", code="upstream"),
    "done-alone": Case(sse(), ok(SSE), "sse", code="upstream"),
    "finish-unknown": Case(plain(completion(choice={"finish_reason": "bored"})), ok(), text="fine", finish="other"),
    "finish-missing": Case(plain(completion(choice={"finish_reason": None})), ok(), text="fine"),
    "finish-twice": Case(
        sse(*GOOD[:3], chunk("", "stop", usage=USAGE["usage"])),
        ok(SSE),
        "sse",
        text="fine",
        finish="stop",
        cost="0.00002",
    ),
    "length": Case(
        sse(chunk("fi"), chunk("", "length"), USAGE), ok(SSE), "sse", text="fi", finish="length", truncated=True
    ),
    "error-after-text": Case(
        sse(chunk("fi"), {"error": {"code": 502, "message": "x"}}), ok(SSE), "sse", code="upstream", truncated=True
    ),
    "error-after-length": Case(
        sse(chunk("fi"), chunk("", "length"), {"error": {"code": 400, "message": "Token limit reached"}}, USAGE),
        ok(SSE),
        "sse",
        code="invalid",
        truncated=True,
    ),
    "content-in-parts": Case(
        plain(completion([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}])), ok(), text="fine"
    ),
    "content-is-number": Case(plain(completion(5)), ok()),
    "two-choices": Case(
        plain(
            completion(
                choices=[
                    {"index": n, "finish_reason": "stop", "message": {"content": t}}
                    for n, t in enumerate(("fine", "no"))
                ]
            )
        ),
        ok(),
        text="fine",
    ),
    "names-of-other-types": Case(plain(completion(model=["a"], provider={"name": "P"}, id=7)), ok(), text="fine"),
    "long-names": Case(plain(completion(model="m" * 100_000, provider="p" * 100_000)), ok(), text="fine"),
    "refusal": Case(plain(completion(None, message={"refusal": "I will not."})), ok(), text="", kinds=["refusal"]),
    # Tools and files
    "tool": Case(tool_call(), ok(), text="", tools=[("look", {})], finish="tool_calls"),
    "tool-arguments-object": Case(
        tool_call(function={"name": "look", "arguments": {"a": 1}}), ok(), text="", tools=[("look", {"a": 1})]
    ),
    "tool-arguments-broken": Case(
        tool_call(function={"name": "look", "arguments": '{"a":'}), ok(), text="", tools=[("look", None)]
    ),
    "tool-arguments-missing": Case(tool_call(function={"name": "look"}), ok(), text="", tools=[("look", {})]),
    "tool-without-function": Case(tool_call(function=None), ok(), text="", tools=[("", {})]),
    "tool-in-pieces": Case(
        sse(
            chunk(
                None, delta={"tool_calls": [{"index": 0, "id": "a", "function": {"name": "one", "arguments": '{"x"'}}]}
            ),
            chunk(None, delta={"tool_calls": [{"index": 1, "id": "b", "function": {"name": "two", "arguments": ""}}]}),
            chunk(None, delta={"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
            chunk("", "tool_calls"),
            USAGE,
        ),
        ok(SSE),
        "sse",
        text="",
        tools=[("one", {"x": 1}), ("two", {})],
    ),
    "image": Case(image(f"data:image/gif;base64,{GIF}"), ok(), text="", kinds=["image"]),
    "image-broken": Case(image("data:image/png;base64,!!!!"), ok(), text=""),
    "image-not-one": Case(image("data:image/png;base64,bm90IGFuIGltYWdl"), ok(), text=""),
    "image-address": Case(image("http://169.254.169.254/latest/meta-data"), ok(), text="", kinds=["other"]),
    "image-address-odd": Case(image(["x"]), ok(), text=""),
    "audio-broken": Case(
        plain(completion("", message={"audio": {"data": "####", "transcript": "hello"}})), ok(), text=""
    ),
}


def write(folder: Path) -> None:
    """Writes all cases in the form of a folder of recordings."""
    for name, case in CASES.items():
        (folder / f"{name}.meta.json").write_text(json.dumps(case.meta or {}))
        if case.body:
            (folder / f"{name}.body.{case.suffix}").write_bytes(case.body)
    (folder / "not-a-case.txt").write_text("a file that belongs to no case")
    (folder / "broken.meta.json").write_text("{this is not JSON")
    (folder / "folder.body.json").mkdir()
