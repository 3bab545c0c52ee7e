"""Files that models make: stored, recognised by their content, and served by address as a browser and a cache want it; and tools."""

from __future__ import annotations

import json
from typing import Any

import httpx

from deploy.local.stack import Stack
from tests.e2e.client import Person, connected, problem


async def part_of(person: Person, mode: str, kind: str) -> dict[str, Any]:
    """The only output of this kind that a sandbox mode makes; the stream brings the same one."""
    resource = await person.create(model=f"sandbox/{mode}")
    result = await person.result(resource["id"])
    [part] = [part for part in result["outputs"] if part["type"] == kind]
    events = await person.stream(resource["id"])
    assert [event.data for event in events if event.kind == "output"] == [part]
    found: dict[str, Any] = part
    return found


async def test_image_is_served_for_ever_when_made(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, httpx.AsyncClient() as anybody:
        part = await part_of(alice, "image", "image")
        url = part["url"].replace(stack.gateway_urls[0], stack.gateway_urls[1])
        served = await anybody.get(url)
        assert (served.status_code, served.headers["content-type"]) == (200, "image/png")
        assert len(served.content) == part["bytes"] == int(served.headers["content-length"])
        assert served.content.startswith(b"\x89PNG")
        assert (part["width"], part["height"]) == tuple(int.from_bytes(served.content[at : at + 4]) for at in (16, 20))
        assert "immutable" in served.headers["cache-control"]
        assert served.headers["x-content-type-options"] == "nosniff"
        etag = served.headers["etag"]
        same = await anybody.get(url, headers={"If-None-Match": f'"other", {etag}'})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        last = part["bytes"] - 1
        for wanted, content in (
            ("bytes=0-9", served.content[:10]),
            ("bytes=10-", served.content[10:]),
            ("bytes=-7", served.content[-7:]),
            (f"bytes={last}-{last + 500}", served.content[-1:]),
        ):
            part_answer = await anybody.get(url, headers={"Range": wanted})
            assert (part_answer.status_code, part_answer.content) == (206, content)
            assert part_answer.headers["content-range"].endswith(f"/{part['bytes']}")
        beyond = await anybody.get(url, headers={"Range": f"bytes={last + 1}-"})
        problem(beyond, 416, "invalid")
        assert beyond.headers["content-range"] == f"bytes */{part['bytes']}"
        head = await anybody.head(url)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(part["bytes"]))
        problem(await anybody.get(url.replace(".png", ".jpg")), 404, "not_found")
        problem(await anybody.get(f"{stack.gateway_url}/media/..%2f..%2fetc%2fpasswd"), 404, "not_found")


async def test_two_images_and_their_text_are_parts_when_made(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        result = await alice.result((await alice.create(model="sandbox/image-two"))["id"])
        assert [part["type"] for part in result["outputs"]] == ["text", "image", "image"]
        assert result["outputs"][1]["url"] != result["outputs"][2]["url"]
        assert result["text"] == result["outputs"][0]["text"] == "Here are two."


async def test_svg_is_downloaded_and_not_shown_when_fetched(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, httpx.AsyncClient() as anybody:
        resource = await alice.create(model="sandbox/svg-image")
        [part] = (await alice.result(resource["id"]))["outputs"]
        served = await anybody.get(part["url"])
        assert b"<script>" in served.content
        assert served.headers["content-disposition"].startswith("attachment")
        assert served.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in served.headers["content-security-policy"]


async def test_lie_about_a_picture_is_not_served_as_one_when_fetched(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, httpx.AsyncClient() as anybody:
        resource = await alice.create(model="sandbox/image-bad")
        [part] = (await alice.result(resource["id"]))["outputs"]
        assert part["type"] != "image"
        if "url" in part:
            served = await anybody.get(part["url"])
            assert served.headers["content-type"] == "application/octet-stream"
            assert served.headers["content-disposition"].startswith("attachment")


async def test_audio_and_its_transcript_are_one_part_when_made(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, httpx.AsyncClient() as anybody:
        part = await part_of(alice, "audio", "audio")
        assert part["transcript"] == "You wrote: hello"
        served = await anybody.get(part["url"])
        assert served.headers["content-type"] == part["mime_type"] == "audio/wav"
        assert served.content.startswith(b"RIFF")
        assert len(served.content) == part["bytes"]


async def test_tool_call_is_a_part_when_the_model_asks_for_one(stack: Stack) -> None:
    tool = {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}},
    }
    async with connected(stack, "alice") as alice:
        resource = await alice.create(model="sandbox/tools", config={"parameters": {"tools": [tool]}})
        result = await alice.result(resource["id"])
        [part] = result["outputs"]
        assert (part["type"], part["name"], result["finish_reason"]) == ("tool_call", "look_up", "tool_calls")
        assert part["arguments"] == json.loads(part["arguments_text"])
        bare = await alice.result((await alice.create(model="sandbox/tools-no-args"))["id"])
        assert [(part["name"], part["arguments"]) for part in bare["outputs"]] == [("ping", {})]
