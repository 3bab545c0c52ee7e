"""Recordings come back byte for byte, whatever a folder of them looks like."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.sandbox.app import Settings, running
from deploy.sandbox.recordings import FRAMING
from tests.stack import shared_data

KEY = {"Authorization": "Bearer sk-or-test-unit"}
FOLDER = shared_data() / "openrouter-responses"
CASES = sorted(file.name.removesuffix(".meta.json") for file in FOLDER.glob("*.meta.json"))
CHAT = "/api/v1/chat/completions"


def body_of(case: str, *, streamed: bool) -> dict[str, Any]:
    return {"model": f"recorded/{case}", "messages": [{"role": "user", "content": "x"}], "stream": streamed}


async def test_every_recording_is_replayed_byte_for_byte_streamed_and_plain() -> None:
    assert len(CASES) >= 32
    async with running(Settings(recordings=FOLDER)) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        for case in CASES:
            meta = json.loads((FOLDER / f"{case}.meta.json").read_bytes())
            for streamed in (True, False):
                response = await client.post(CHAT, json=body_of(case, streamed=streamed))
                assert response.content == (FOLDER / meta["body_file"]).read_bytes(), case
                assert response.status_code == meta["status"]
                expected = {name: value for name, value in meta["headers"].items() if name not in FRAMING}
                got = {name: value for name, value in response.headers.items() if name not in FRAMING}
                assert got == expected, case
        listed = {model["id"] for model in (await client.get("/api/v1/models")).json()["data"]}
        assert {f"recorded/{case}" for case in CASES} <= listed


async def test_generation_has_the_recorded_cost_and_404_where_none_is_stated() -> None:
    known = {
        "gen-1780944401-namV5AZs6fqyIUZng5UV": Decimal("0.000241"),
        "gen-1773012759-4u9w7As08eMtL75bWtu8": Decimal("0.000837"),
        "gen-1790983685-vELIl0vh5b8ltNURLhyU": Decimal("0.04"),
        "gen-img-1790983552-TOdyb7qrp6185EBMwzAV": Decimal("0.014"),
    }
    unknown = ("gen-1762047030-dJUcJW4ildNGqK4UV6iJ", "gen-abc123", "gen-1790981403-wrnRYGs8VBhCEKopNY1F")
    async with running(Settings(recordings=FOLDER)) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        for generation_id, cost in known.items():
            response = await client.get(f"/api/v1/generation?id={generation_id}")
            data = json.loads(response.content, parse_float=Decimal)["data"]
            assert (data["id"], data["total_cost"]) == (generation_id, cost)
        for generation_id in unknown:
            response = await client.get(f"/api/v1/generation?id={generation_id}")
            assert (response.status_code, response.json()["error"]["code"]) == (404, 404)


async def test_ledger_has_the_recorded_cost_of_a_replay() -> None:
    async with running(Settings(recordings=FOLDER)) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        for case in ("chat-structured-output", "chat-tools", "error-429-upstream-retry-after"):
            await client.post(CHAT, json=body_of(case, streamed=True))
        ledger = (await client.get("/sandbox/calls")).json()
    assert [call["cost"] for call in ledger["calls"]] == ["0.000241", None]
    assert [refused["status"] for refused in ledger["refused"]] == [429]


ODD: dict[str, tuple[dict[str, Any], str | None, bytes]] = {
    "bare": ({}, "bare.body.bin", b"\x00\xff\xfe"),
    "with.dots_and_underscores-1": ({"status": 529}, "with.dots_and_underscores-1.body.json", b"{}"),
    "with": ({"status": 200}, "with.body.txt", b"not the dotted one"),
    "empty": ({"status": 204, "headers": {}}, None, b""),
    "empty-error": ({"status": 502, "headers": {"content-type": "text/html"}}, "empty-error.body.html", b""),
    "renamed": ({"status": 599, "body_file": "elsewhere.sse"}, "elsewhere.sse", b"data: {\n\n"),
    "lost-file": ({"body_file": "nowhere.json"}, "lost-file.body.json", b"found after all"),
    "lists": (
        {"headers": {"x-a": ["1", "2"], "x-n": 5, "bad name": "x", "x-bad": "a\r\nb"}},
        "lists.body.json",
        b"[1]",
    ),
    "lying-length": (
        {"headers": {"Content-Length": "3", "Transfer-Encoding": "chunked"}},
        "lying-length.body",
        b"12345",
    ),
    "gzip": ({"headers": {"content-encoding": "gzip", "content-type": "text/plain"}}, "gzip.body.txt", b"plain"),
    "wrong-types": (
        {"status": "200", "headers": None, "request": "GET", "usage": []},
        "wrong-types.body.json",
        b"null",
    ),
    "odd-usage": ({}, "odd-usage.body.json", b'{"id":"gen-odd","usage":{"cost":"much"},"data":[1]}'),
    "reset content": ({"status": 418}, "reset content.body.json", "ü".encode() * 100_000),
}


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    for case, (meta, file, body) in ODD.items():
        (tmp_path / f"{case}.meta.json").write_text(json.dumps(meta))
        if file is not None:
            (tmp_path / file).write_bytes(body)
    (tmp_path / "broken.meta.json").write_text("{")
    (tmp_path / "README.md").write_text("no recording")
    return tmp_path


async def test_any_folder_is_replayed_when_its_files_are_odd(odd_folder: Path) -> None:
    async with running(Settings(recordings=odd_folder)) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        for case, (meta, _, body) in ODD.items():
            for streamed in (True, False):
                response = await client.post(CHAT, json=body_of(case, streamed=streamed))
                status = meta.get("status", 200)
                assert (response.status_code, response.content) == (int(status), body), case
                stated = (meta.get("headers") or {}).get("content-type")
                assert response.headers.get("content-type") == stated, case
        lists = (await client.post(CHAT, json=body_of("lists", streamed=True))).headers
        assert (lists["x-a"], lists["x-n"], "x-bad" in lists) == ("1, 2", "5", False)
        assert (await client.get("/api/v1/generation?id=gen-odd")).status_code == 404
        unread = await client.post(CHAT, json=body_of("broken", streamed=True))
        assert unread.json()["error"]["message"] == "recorded/broken is not a valid model ID"


async def test_recorded_generation_is_known_at_once(tmp_path: Path) -> None:
    answer = {"id": "gen-1-x", "model": "a/b", "usage": {"cost": 1e-05, "is_byok": True, "prompt_tokens": 3}}
    (tmp_path / "one.meta.json").write_text("{}")
    (tmp_path / "one.body.json").write_text(json.dumps(answer))
    async with running(Settings(recordings=tmp_path)) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        response = await client.get("/api/v1/generation?id=gen-1-x")
        assert response.status_code == 200
        data = json.loads(response.content, parse_float=Decimal)["data"]
        assert (data["total_cost"], data["is_byok"], data["tokens_prompt"]) == (Decimal("0.00001"), True, 3)
        assert b"0.00001," in response.content
