"""Each mode misbehaves as its sentence says: streamed and plain, over real HTTP."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deploy.sandbox.app import Settings, running
from deploy.sandbox.modes import MODES, STATUSES

KEY = {"Authorization": "Bearer sk-or-test-modes"}
CHAT = "/api/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
PROMPT = "Say “héllo” to everybody here"


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with running(Settings()) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        yield client


def body_of(mode: str, *, streamed: bool, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": f"sandbox/{mode}", "messages": messages, "stream": streamed, **more}


async def post(client: httpx.AsyncClient, mode: str, *, streamed: bool, **more: Any) -> httpx.Response:
    return await client.post(CHAT, json=body_of(mode, streamed=streamed, **more))


async def received(client: httpx.AsyncClient, mode: str, timeout_s: float = 0.4) -> tuple[bytes, str]:
    """What came, and how it ended: "end", "cut" or "silent"."""
    data, ending = b"", "end"
    try:
        async with client.stream("POST", CHAT, json=body_of(mode, streamed=True), timeout=timeout_s) as response:
            async for part in response.aiter_raw():
                data += part
    except httpx.ReadTimeout:
        ending = "silent"
    except (httpx.ReadError, httpx.RemoteProtocolError):
        ending = "cut"
    return data, ending


def events(data: bytes) -> list[Any]:
    found = []
    for line in data.split(b"\n"):
        if line.startswith(b"data: {"):
            with suppress(ValueError):
                found.append(json.loads(line[6:]))
    return found


def joined(found: list[Any], field: str = "content") -> str:
    deltas = [choice["delta"] for event in found for choice in event["choices"] or []]
    return "".join(delta.get(field) or "" for delta in deltas if isinstance(delta.get(field), (str, type(None))))


def message_of(response: httpx.Response) -> Any:
    return response.json()["choices"][0]["message"]


def finishes(found: list[Any]) -> list[str]:
    return [choice["finish_reason"] for event in found for choice in event["choices"] or [] if choice["finish_reason"]]


async def test_every_mode_is_a_model_with_its_sentence(client: httpx.AsyncClient) -> None:
    models = {model["id"]: model for model in (await client.get("/api/v1/models")).json()["data"]}
    for mode, sentence in MODES.items():
        model = models[f"sandbox/{mode}"]
        assert model["description"] == sentence
        assert {"text", "image", "audio"} <= set(model["architecture"]["output_modalities"])
        assert "temperature" in model["supported_parameters"]


@pytest.mark.parametrize("mode", STATUSES)
@pytest.mark.parametrize("streamed", [True, False])
async def test_status_mode_refuses_with_its_status(client: httpx.AsyncClient, mode: str, streamed: bool) -> None:
    response = await post(client, mode, streamed=streamed)
    status = int(mode.split("-")[1])
    assert (response.status_code, response.json()["error"]["code"]) == (status, status)
    assert response.headers["content-type"] == "application/json"
    ledger = (await client.get("/sandbox/calls")).json()
    assert (ledger["calls"], [refused["status"] for refused in ledger["refused"]]) == ([], [status])


async def test_status_modes_carry_the_hints_of_the_real_ones(client: httpx.AsyncClient) -> None:
    assert (await post(client, "status-402-in-flight", streamed=True)).headers["retry-after"] == "1"
    assert (await post(client, "status-429-upstream", streamed=True)).headers["retry-after"] == "1"
    assert "retry-after" not in (await post(client, "status-429", streamed=True)).headers
    asked_ms = time.time() * 1000
    platform = await post(client, "status-429-platform", streamed=True)
    reset_ms = int(platform.headers["x-ratelimit-reset"])
    assert asked_ms < reset_ms <= time.time() * 1000 + 3000
    assert platform.json()["error"]["metadata"]["headers"]["X-RateLimit-Reset"] == str(reset_ms)
    moderation = (await post(client, "status-403-moderation", streamed=True)).json()["error"]["metadata"]
    assert moderation["flagged_input"] == PROMPT
    assert (await post(client, "status-402-max-tokens", streamed=False, max_tokens=100)).status_code == 200


@pytest.mark.parametrize("mode", ["echo", "flaky-again"])
async def test_echo_answers_the_message_verbatim(client: httpx.AsyncClient, mode: str) -> None:
    if mode == "flaky-again":
        mode = "flaky"
        first = await post(client, mode, streamed=True)
        assert (first.status_code, first.headers["retry-after"]) == (503, "0")
    assert joined(events((await post(client, mode, streamed=True)).content)) == PROMPT
    assert message_of(await post(client, mode, streamed=False))["content"] == PROMPT


@pytest.mark.parametrize(("mode", "chunks"), [("fast", 20), ("fast-1", 1)])
async def test_fast_modes_have_as_many_chunks_as_they_say(client: httpx.AsyncClient, mode: str, chunks: int) -> None:
    response = await post(client, mode, streamed=True)
    found = events(response.content)
    assert response.content.endswith(DONE)
    assert sum(bool(event["choices"] and event["choices"][0]["delta"]["content"]) for event in found) == chunks
    assert {event["id"] for event in found} == {response.headers["x-generation-id"]}
    plain = await post(client, mode, streamed=False)
    assert message_of(plain)["content"] == joined(found)
    assert plain.json()["id"] == plain.headers["x-generation-id"] != found[0]["id"]


async def timed(client: httpx.AsyncClient, mode: str, parts: int) -> tuple[list[float], bytes]:
    """Seconds from the request to each of the first parts with an event in it, and all that came."""
    started, times, data = time.monotonic(), [], b""
    async with client.stream("POST", CHAT, json=body_of(mode, streamed=True), timeout=30) as response:
        async for part in response.aiter_raw():
            data += part
            if b"data: " in part:
                times.append(time.monotonic() - started)
            if len(times) == parts:
                break
    return times, data


async def test_paced_modes_keep_their_pace(client: httpx.AsyncClient) -> None:
    slow, drip, long = await asyncio.gather(
        timed(client, "slow", 1), timed(client, "drip", 2), timed(client, "long", 200)
    )
    assert slow[0][0] > 2.9
    assert slow[1].count(b": OPENROUTER PROCESSING\n\n") >= 6
    assert drip[0][0] > 1.9
    assert drip[0][1] > 3.9
    assert long[0][-1] > 3.9
    assert joined(events(long[1])).endswith("word199 ")


FAULTS: dict[str, tuple[str, bool, list[str]]] = {
    "mid-stream-error": ("end", False, ["error"]),
    "error-first": ("end", False, []),
    "cut": ("cut", False, []),
    "cut-plain-end": ("end", False, []),
    "no-done": ("end", False, ["stop"]),
    "silence": ("silent", False, []),
    "silence-no-headers": ("silent", False, []),
    "stall": ("silent", False, []),
    "garbage": ("end", False, []),
    "garbage-frame": ("end", True, ["stop"]),
    "half-json": ("end", False, ["stop"]),
    "no-usage": ("end", True, ["stop"]),
    "split-utf8": ("end", True, ["stop"]),
    "choices-null": ("end", True, []),
}


@pytest.mark.parametrize("mode", FAULTS)
async def test_fault_ends_the_stream_as_described(client: httpx.AsyncClient, mode: str) -> None:
    ending, done, finish = FAULTS[mode]
    data, ended = await received(client, mode)
    found = events(data)
    assert ended == ending
    assert data.endswith(DONE) == done
    assert finishes(found)[:1] == finish
    usages = [event for event in found if "usage" in event]
    assert bool(usages) == (mode in ("no-done", "garbage-frame", "split-utf8"))
    errors = [event["error"]["code"] for event in found if "error" in event]
    assert errors == ([502] if "error" in mode else [])
    if mode in ("mid-stream-error", "cut", "cut-plain-end", "stall"):
        assert joined(found) == "The sandbox answers"


async def test_silence_keeps_sending_comments_alone(client: httpx.AsyncClient) -> None:
    data = b""
    async with client.stream("POST", CHAT, json=body_of("silence", streamed=True), timeout=30) as response:
        async for part in response.aiter_raw():
            data += part
            if data.count(b"\n\n") == 4:
                break
    assert data == b": OPENROUTER PROCESSING\n\n" * 4


async def test_split_utf8_cuts_characters_between_reads(client: httpx.AsyncClient) -> None:
    parts: list[bytes] = []
    async with client.stream("POST", CHAT, json=body_of("split-utf8", streamed=True)) as response:
        parts.extend([part async for part in response.aiter_raw()])
    assert any(part[0] & 0xC0 == 0x80 for part in parts)
    assert "世界! 🎉🎉 naïve" in joined(events(b"".join(parts)))
    assert joined(events(b"".join(parts))).endswith(PROMPT)


async def test_garbage_frame_leaves_the_rest_of_the_stream_whole(client: httpx.AsyncClient) -> None:
    data = (await post(client, "garbage-frame", streamed=True)).content
    frames = [frame for frame in data.split(b"\n\n") if frame.startswith(b"data: {")]
    assert len(frames) == len(events(data)) + 1
    assert joined(events(data)).endswith(PROMPT)


async def test_oversize_sends_six_megabytes_in_one_frame(client: httpx.AsyncClient) -> None:
    data = (await post(client, "oversize", streamed=True)).content
    assert max(map(len, data.split(b"\n\n"))) > 6_000_000
    assert data.endswith(DONE)


@pytest.mark.parametrize("streamed", [True, False])
async def test_200_without_an_answer_is_a_plain_document(client: httpx.AsyncClient, streamed: bool) -> None:
    error = await post(client, "error-in-200", streamed=streamed)
    assert (error.status_code, error.headers["content-type"]) == (200, "application/json")
    assert error.json()["error"]["code"] == 502
    assert "choices" not in error.json()
    plain = await post(client, "plain", streamed=streamed)
    assert plain.headers["content-type"] == "application/json"
    assert PROMPT in message_of(plain)["content"]


async def test_faults_have_a_plain_form(client: httpx.AsyncClient) -> None:
    middle = (await post(client, "mid-stream-error", streamed=False)).json()["choices"][0]
    assert (middle["finish_reason"], middle["error"]["code"]) == ("error", 502)
    assert middle["message"]["content"] == "The sandbox answers"
    assert "error" in (await post(client, "error-first", streamed=False)).json()
    nothing = (await post(client, "choices-null", streamed=False)).json()
    assert nothing["choices"] is None
    for mode in ("garbage", "garbage-frame", "half-json", "cut-plain-end"):
        response = await post(client, mode, streamed=False)
        assert response.status_code == 200
        with pytest.raises(ValueError):
            json.loads(response.content)
    with pytest.raises(httpx.TransportError):
        await post(client, "cut", streamed=False)


@pytest.mark.parametrize(
    ("mode", "finish", "content"),
    [
        ("empty", "stop", ""),
        ("length", "length", None),
        ("content-filter", "content_filter", "This part was fine, but"),
        ("thinking-only", "length", ""),
        ("no-usage", "stop", None),
        ("byok", "stop", None),
        ("tools", "tool_calls", None),
        ("image", "stop", ""),
    ],
)
async def test_finish_and_text_agree_streamed_and_plain(
    client: httpx.AsyncClient, mode: str, finish: str, content: str | None
) -> None:
    plain = await post(client, mode, streamed=False)
    found = events((await post(client, mode, streamed=True)).content)
    assert plain.json()["choices"][0]["finish_reason"] == finish
    assert finishes(found)[0] == finish
    assert joined(found) == (message_of(plain)["content"] or "")
    if content is not None:
        assert joined(found) == content


async def test_bills_of_special_modes_are_special(client: httpx.AsyncClient) -> None:
    empty = (await post(client, "empty", streamed=False)).json()["usage"]
    assert (empty["completion_tokens"], empty["cost"]) == (0, 0)
    thinking = (await post(client, "thinking-only", streamed=False)).json()["usage"]
    assert thinking["completion_tokens_details"]["reasoning_tokens"] == thinking["completion_tokens"] > 0
    assert thinking["cost"] > 0
    byok = (await post(client, "byok", streamed=False)).json()["usage"]
    assert (byok["is_byok"], byok["cost"]) == (True, 0)
    assert byok["cost_details"]["upstream_inference_cost"] > 0
    cited = (await post(client, "citations", streamed=False)).json()["usage"]
    assert cited["cost"] > cited["cost_details"]["upstream_inference_cost"] + 0.0099
    assert "usage" not in (await post(client, "no-usage", streamed=False)).json()
    for mode in ("mid-stream-error", "error-in-200", "cut"):
        await received(client, mode)
    calls = (await client.get("/sandbox/calls")).json()["calls"]
    billed = {call["requested"].removeprefix("sandbox/"): float(call["cost"]) > 0 for call in calls}
    assert billed == {
        "empty": False,
        "thinking-only": True,
        "byok": False,
        "citations": True,
        "no-usage": True,
        "mid-stream-error": False,
        "error-in-200": False,
        "cut": True,
    }


async def test_special_contents_have_their_real_shapes(client: httpx.AsyncClient) -> None:
    refusal = message_of(await post(client, "refusal", streamed=False))
    assert refusal["content"] is None
    assert refusal["refusal"].startswith("I cannot")
    parts = message_of(await post(client, "content-list", streamed=False))["content"]
    assert [part["type"] for part in parts] == ["thinking", "text"]
    reasoning = message_of(await post(client, "reasoning", streamed=False))
    assert reasoning["reasoning"] == reasoning["reasoning_details"][0]["text"] != ""
    citations = message_of(await post(client, "citations", streamed=False))["annotations"]
    assert [set(citation["url_citation"]) for citation in citations][1] == {"url"}
    call = message_of(await post(client, "tools", streamed=False))["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": PROMPT})
    bare = message_of(await post(client, "tools-no-args", streamed=False))["tool_calls"][0]["function"]
    assert bare == {"name": "ping"}


@pytest.mark.parametrize(
    ("mode", "beginnings"),
    [
        ("image", [b"\x89PNG"]),
        ("image-two", [b"\x89PNG", b"\x89PNG"]),
        ("image-bad", [b"this is no picture"]),
        ("svg-image", [b"<svg"]),
    ],
)
async def test_pictures_are_what_the_mode_says(client: httpx.AsyncClient, mode: str, beginnings: list[bytes]) -> None:
    found = events((await post(client, mode, streamed=True)).content)
    streamed = [image for event in found for choice in event["choices"] for image in choice["delta"].get("images", [])]
    assert streamed == message_of(await post(client, mode, streamed=False))["images"]
    contents = [base64.b64decode(image["image_url"]["url"].partition(",")[2]) for image in streamed]
    assert len(set(contents)) == len(contents)
    for content, beginning in zip(contents, beginnings, strict=True):
        assert content.startswith(beginning)


async def test_audio_has_a_transcript_and_a_wav(client: httpx.AsyncClient) -> None:
    audio = message_of(await post(client, "audio", streamed=False))["audio"]
    assert base64.b64decode(audio["data"]).startswith(b"RIFF")
    assert PROMPT in audio["transcript"]
