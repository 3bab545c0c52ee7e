"""The stand-in's catalog, keys, ordinary answers, bills and ledger, over real HTTP."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deploy.sandbox.app import Settings, running
from deploy.sandbox.catalog import load_typed
from deploy.sandbox.modes import MODES
from deploy.sandbox.pricing import prices_of
from tests.stack import ROOT, shared_data

KEY = {"Authorization": "Bearer sk-or-test-unit"}


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with running(Settings()) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        yield client


async def ask(client: httpx.AsyncClient, model: str, prompt: str = "Why is the sky blue?", **more: Any) -> Any:
    messages = [{"role": "user", "content": prompt}]
    response = await client.post("/api/v1/chat/completions", json={"model": model, "messages": messages, **more})
    return json.loads(response.content, parse_float=Decimal)


async def stream(client: httpx.AsyncClient, model: str, prompt: str = "Why?", **more: Any) -> list[dict[str, Any]]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True, **more}
    text = (await client.post("/api/v1/chat/completions", json=body)).text
    assert text.startswith(": OPENROUTER PROCESSING\n\n")
    assert text.endswith("data: [DONE]\n\n")
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line, parse_float=Decimal) for line in data[:-1]]


def joined(events: list[dict[str, Any]], field: str) -> str:
    return "".join(choice["delta"].get(field) or "" for event in events for choice in event["choices"])


async def ledger(client: httpx.AsyncClient) -> Any:
    return (await client.get("/sandbox/calls")).json()


async def test_models_lists_text_models_newest_first_when_nothing_is_asked(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/api/v1/models")).json()
    created = [model["created"] for model in answer["data"]]
    assert created == sorted(created, reverse=True)
    assert answer["total_count"] == len(answer["data"])
    assert answer["links"] == {"next": None}
    ids = [model["id"] for model in answer["data"]]
    assert {f"sandbox/{mode}" for mode in MODES} <= set(ids)
    assert "openai/whisper-1" not in ids
    assert len(load_typed()) >= 40


async def test_models_shows_other_kinds_when_asked(client: httpx.AsyncClient) -> None:
    everything = (await client.get("/api/v1/models?output_modalities=all")).json()["data"]
    assert "openai/whisper-1" in {model["id"] for model in everything}
    videos = (await client.get("/api/v1/models?output_modalities=video")).json()["data"]
    assert [model["id"] for model in videos] == ["google/veo-3.1"]
    wrong = await client.get("/api/v1/models?output_modalities=smell")
    assert wrong.status_code == 400
    assert wrong.json()["error"]["name"] == "ZodError"


async def test_models_has_the_same_models_in_another_order_when_sorted_by_popularity(client: httpx.AsyncClient) -> None:
    newest = [model["id"] for model in (await client.get("/api/v1/models")).json()["data"]]
    popular = [model["id"] for model in (await client.get("/api/v1/models?sort=most-popular")).json()["data"]]
    assert popular != newest
    assert sorted(popular) == sorted(newest)
    assert popular[0] == "xiaomi/mimo-v2.5"


async def test_models_follows_links_to_the_whole_list_when_paged(client: httpx.AsyncClient) -> None:
    following, ids = "/api/v1/models?limit=50", []
    while following:
        page = (await client.get(following)).json()
        ids += [model["id"] for model in page["data"]]
        following = page["links"]["next"]
    whole = [model["id"] for model in (await client.get("/api/v1/models")).json()["data"]]
    assert ids == whole
    assert (await client.get("/api/v1/models?limit=0")).status_code == 400


async def test_models_answers_304_when_the_etag_is_known(client: httpx.AsyncClient) -> None:
    first = await client.get("/api/v1/models")
    assert first.headers["cache-control"].startswith("public, max-age=300")
    again = await client.get("/api/v1/models", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await client.get("/api/v1/models?sort=most-popular", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


async def test_models_serves_the_file_unchanged_and_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    real = json.loads((shared_data() / "openrouter-models.json").read_bytes())["data"]
    file.write_text(json.dumps({"data": real}))
    async with running(Settings(catalog=file)) as url, httpx.AsyncClient(base_url=url, headers=KEY) as client:
        first = await client.get("/api/v1/models")
        served = first.json()["data"]
        assert served[: len(real)] == real
        assert all(model["id"].startswith("sandbox/") for model in served[len(real) :])
        replacement = tmp_path / "other.json"
        replacement.write_text(json.dumps({"data": real[:100]}))
        replacement.replace(file)
        second = await client.get("/api/v1/models", headers={"If-None-Match": first.headers["etag"]})
        assert second.json()["data"][:101] == [*real[:100], served[len(real)]]
        gone = await ask(client, real[200]["id"])
        assert gone["error"] == {"message": f"{real[200]['id']} is not a valid model ID", "code": 400}
        file.write_text("{ broken")
        assert (await client.get("/api/v1/models")).json() == second.json()


async def test_model_and_endpoints_are_served_when_the_model_exists(client: httpx.AsyncClient) -> None:
    model = (await client.get("/api/v1/model/openai/gpt-4o-mini")).json()["data"]
    assert model["pricing"]["completion"] == "0.0000006"
    endpoints = (await client.get("/api/v1/models/openai/gpt-4o-mini/endpoints")).json()["data"]["endpoints"]
    assert endpoints[0]["pricing"]["prompt"] == "0.00000015"
    assert (await client.get("/api/v1/model/openai/none")).status_code == 404


async def test_every_authenticated_route_answers_401_as_recorded_when_the_key_is_bad(client: httpx.AsyncClient) -> None:
    for key, case in ((None, "error-401-no-auth"), ("sk-or-test-dead", "error-401-user-not-found")):
        recorded = json.loads((shared_data() / f"openrouter-responses/{case}.body.json").read_bytes())
        headers = {"Authorization": f"Bearer {key}" if key else ""}
        for method, path in (
            ("GET", "key"),
            ("GET", "credits"),
            ("GET", "generation?id=x"),
            ("POST", "chat/completions"),
        ):
            response = await client.request(method, f"/api/v1/{path}", headers=headers)
            assert (response.status_code, response.json()) == (401, recorded)


async def test_key_has_every_recorded_field_when_the_key_is_good(client: httpx.AsyncClient) -> None:
    recorded = json.loads((shared_data() / "openrouter-responses/key-limited.body.json").read_bytes())["data"]
    response = await client.get("/api/v1/key")
    assert set(response.json()["data"]) == set(recorded)
    assert response.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize(
    ("key", "field", "value", "status"),
    [
        ("sk-or-v1-plain", "is_management_key", False, 200),
        ("sk-or-v1-0deadf00d1", "is_management_key", False, 200),
        ("sk-or-test-mgmt", "is_management_key", True, 403),
        ("sk-or-test-poor", "limit", None, 402),
        ("sk-or-test-limit", "limit_remaining", 0, 403),
        ("sk-or-test-free", "is_free_tier", True, 200),
    ],
)
async def test_key_markers_show_in_key_and_in_chat(
    client: httpx.AsyncClient, key: str, field: str, value: object, status: int
) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    assert (await client.get("/api/v1/key", headers=headers)).json()["data"][field] == value
    body = {"model": "sandbox/echo", "messages": [{"role": "user", "content": "x"}]}
    assert (await client.post("/api/v1/chat/completions", json=body, headers=headers)).status_code == status


async def test_chat_says_the_same_streamed_and_plain_with_the_users_words(client: httpx.AsyncClient) -> None:
    plain = await ask(client, "openai/gpt-4o-mini", "Grüße,\n  ‘Welt’!")
    events = await stream(client, "openai/gpt-4o-mini", "Grüße,\n  ‘Welt’!")
    text = plain["choices"][0]["message"]["content"]
    assert "Grüße,\n  ‘Welt’!" in text
    assert joined(events, "content") == text
    assert all(event["choices"][0]["delta"]["role"] == "assistant" for event in events if event["choices"])
    assert events[-1]["usage"]["cost"] == plain["usage"]["cost"]
    other = await ask(client, "openai/gpt-4o-mini", "Something else")
    assert other["choices"][0]["message"]["content"] != text


async def test_chat_pads_plain_answers_with_white_space(client: httpx.AsyncClient) -> None:
    body = {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": "x"}]}
    response = await client.post("/api/v1/chat/completions", json=body)
    assert response.content.startswith(b"\n         \n{")
    assert response.headers["x-generation-id"] == response.json()["id"]


async def test_usage_chunk_comes_in_all_three_shapes_over_the_models(client: httpx.AsyncClient) -> None:
    shapes = set()
    for model in (
        "sandbox/echo",
        "openai/gpt-4o",
        "openai/gpt-4o-mini",
        "mistralai/mistral-nemo",
        "openai/gpt-4.1-mini",
    ):
        last = (await stream(client, model))[-1]
        assert "usage" in last
        shapes.add(last["choices"][0]["finish_reason"] if last["choices"] else "empty")
    assert shapes == {"empty", "stop", None}


async def test_cost_is_exact_from_the_catalog_prices(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "openai/gpt-4o-mini")
    usage = answer["usage"]
    expected = usage["prompt_tokens"] * Decimal("0.00000015") + usage["completion_tokens"] * Decimal("0.0000006")
    assert usage["cost"] == expected
    assert (await ledger(client))["calls"][0]["cost"] == format(expected, "f")


def test_prices_follow_tiers_only_beyond_their_threshold() -> None:
    model = next(model for model in load_typed() if model["id"] == "anthropic/claude-sonnet-4")
    assert prices_of(model, 200_000).prompt == Decimal("0.000003")
    assert prices_of(model, 200_001).prompt == Decimal("0.000006")


async def test_cost_is_zero_for_free_models_and_real_for_music_and_routers(client: httpx.AsyncClient) -> None:
    free = await ask(client, "openai/gpt-oss-20b:free")
    assert free["usage"]["cost"] == 0
    music = await ask(client, "google/lyria-3-clip-preview", modalities=["text", "audio"])
    assert music["usage"]["cost"] == Decimal("0.04")
    routed = await ask(client, "openrouter/auto")
    assert routed["usage"]["cost"] > 0
    assert routed["model"] != "openrouter/auto"


async def test_alias_answers_with_the_slug_of_its_target(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "~anthropic/claude-sonnet-latest")
    assert answer["model"] == "anthropic/claude-sonnet-5-20260630"


async def test_max_tokens_cuts_the_answer_with_finish_length(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "openai/gpt-4o-mini", max_tokens=7)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 7
    assert 24 < len(answer["choices"][0]["message"]["content"]) <= 28


@pytest.mark.parametrize(
    ("model", "limits", "most"),
    [
        ("openai/gpt-5.1-codex-mini", {"max_completion_tokens": 7}, 7),
        ("openai/gpt-5.1-codex-mini", {"max_tokens": 7}, None),
        ("mistralai/mistral-nemo", {"max_completion_tokens": 7}, None),
        ("mistralai/mistral-nemo", {"max_completion_tokens": 5, "max_tokens": 7}, 7),
        ("openai/gpt-4o-mini", {"max_completion_tokens": 5, "max_tokens": 7}, 5),
        ("openai/gpt-5.1-codex-mini", {"max_completion_tokens": 7, "max_tokens": 5}, 7),
    ],
)
async def test_a_limit_holds_under_the_name_that_the_model_supports_and_is_dropped_under_another(
    client: httpx.AsyncClient, model: str, limits: dict[str, Any], most: int | None
) -> None:
    answer = await ask(client, model, **limits)
    assert answer["choices"][0]["finish_reason"] == ("stop" if most is None else "length")
    assert most is None or answer["usage"]["completion_tokens"] == most


async def test_image_model_draws_a_png_of_the_prompt_when_asked(client: httpx.AsyncClient) -> None:
    answers = [
        await ask(client, "google/gemini-2.5-flash-image", prompt, modalities=["image", "text"])
        for prompt in ("a cat", "a dog", "a cat")
    ]
    urls = [answer["choices"][0]["message"]["images"][0]["image_url"]["url"] for answer in answers]
    assert urls[0] == urls[2] != urls[1]
    png = base64.b64decode(urls[0].removeprefix("data:image/png;base64,"))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert answers[0]["usage"]["completion_tokens_details"]["image_tokens"] == 1290
    assert answers[0]["usage"]["cost"] > 1290 * Decimal("0.00003")


async def test_audio_model_speaks_a_wav_in_parts_when_asked(client: httpx.AsyncClient) -> None:
    events = await stream(client, "openai/gpt-audio", modalities=["text", "audio"])
    parts = [choice["delta"]["audio"] for event in events for choice in event["choices"] if "audio" in choice["delta"]]
    assert len(parts) == 3
    sound = b"".join(base64.b64decode(part["data"]) for part in parts)
    with wave.open(io.BytesIO(sound)) as file:
        assert file.getnframes() == 4000
    assert base64.b64decode("".join(part["data"] for part in parts)) == sound


async def test_reasoning_model_thinks_unless_told_not_to(client: httpx.AsyncClient) -> None:
    events = await stream(client, "deepseek/deepseek-r1")
    assert "The user asks" in joined(events, "reasoning")
    hidden = await ask(client, "deepseek/deepseek-r1", reasoning={"exclude": True})
    assert hidden["choices"][0]["message"]["reasoning"] is None
    refused = await ask(client, "deepseek/deepseek-r1", reasoning={"effort": "none"})
    assert refused["error"]["code"] == 400


async def test_tools_are_called_with_arguments_of_their_schema(client: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"unit": {"enum": ["c", "f"]}, "days": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "forecast", "parameters": schema}}]
    plain = await ask(client, "openai/gpt-4o-mini", tools=tools)
    assert plain["choices"][0]["finish_reason"] == "tool_calls"
    call = plain["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("forecast", {"unit": "c", "days": 1})
    events = await stream(client, "openai/gpt-4o-mini", tools=tools)
    deltas = [
        delta for event in events for choice in event["choices"] for delta in choice["delta"].get("tool_calls", [])
    ]
    assert "".join(delta["function"]["arguments"] for delta in deltas) == call["arguments"]


async def test_json_schema_is_answered_with_json(client: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}, "tags": {"type": "array"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await ask(client, "openai/gpt-4o-mini", "Who?", response_format=wanted)
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"age": 1, "tags": ["Who?"]}


@pytest.mark.parametrize(
    ("model", "more", "status", "words"),
    [
        ("no/such", {}, 400, "no/such is not a valid model ID"),
        ("openai/gpt-4o", {"models": ["no/such"]}, 400, "no/such is not a valid model ID"),
        ("openai/gpt-4o-mini:batch", {}, 404, "only available through the Batch API"),
        ("black-forest-labs/flux.2-klein-4b", {}, 404, "No endpoints found"),
        ("openai/gpt-4o", {"provider": {"max_price": {"prompt": "1"}}}, 404, "maximum prompt price"),
        ("openai/gpt-oss-20b:free", {"provider": {"data_collection": "deny"}}, 404, "data policy"),
        ("openai/gpt-4o", {"messages": []}, 400, "messages"),
    ],
)
async def test_chat_refuses_what_openrouter_refuses(
    client: httpx.AsyncClient, model: str, more: dict[str, Any], status: int, words: str
) -> None:
    error = (await ask(client, model, **more))["error"]
    assert error["code"] == status
    assert words in error["message"]
    assert (await ledger(client))["calls"] == []


async def test_chat_refuses_pictures_when_the_model_cannot_see(client: httpx.AsyncClient) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"model": "microsoft/phi-4", "messages": [{"role": "user", "content": [picture]}]}
    response = await client.post("/api/v1/chat/completions", json=body)
    assert response.status_code == 404
    assert "support image input" in response.json()["error"]["message"]


async def test_fallback_model_answers_when_the_first_refuses(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "sandbox/status-503", models=["openai/gpt-4o-mini"])
    assert answer["model"] == "openai/gpt-4o-mini"


async def test_generation_is_404_at_first_and_then_has_the_cost(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "openai/gpt-4o-mini")
    path = f"/api/v1/generation?id={answer['id']}"
    assert (await client.get(path)).status_code == 404
    data = await eventually(client, path)
    assert data["total_cost"] == data["usage"] == answer["usage"]["cost"]
    assert data["cancelled"] is False
    free = await ask(client, "openai/gpt-oss-20b:free")
    await asyncio.sleep(0.4)
    assert (await client.get(f"/api/v1/generation?id={free['id']}")).status_code == 404


async def eventually(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while (response := await client.get(path)).status_code != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    data: dict[str, Any] = json.loads(response.content, parse_float=Decimal)["data"]
    return data


@pytest.mark.parametrize("model", ["sandbox/silence", "sandbox/silence-no-headers", "sandbox/stall", "sandbox/long"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_call_is_cancelled_in_the_ledger_when_the_client_leaves(
    client: httpx.AsyncClient, model: str, streamed: bool
) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}], "stream": streamed}
    if model == "sandbox/long" and not streamed:
        body["model"] = "sandbox/slow"
    with pytest.raises(httpx.ReadTimeout):
        await asyncio.wait_for(read_forever(client, body), 20)
    left_at = time.time()
    call = (await ledger(client))["calls"][0]
    while call["state"] == "running":
        assert time.time() < left_at + 20
        await asyncio.sleep(0.01)
        call = (await ledger(client))["calls"][0]
    assert call["state"] == "cancelled"
    data = await eventually(client, f"/api/v1/generation?id={call['generation_id']}")
    assert data["cancelled"] is True
    assert data["total_cost"] == Decimal(call["cost"])
    assert (data["total_cost"] == 0) == ("silence" in model)
    assert (await ledger(client))["running"] == {}


async def read_forever(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    deadline = time.monotonic() + 0.25
    async with client.stream("POST", "/api/v1/chat/completions", json=body, timeout=0.25) as response:
        async for _ in response.aiter_raw():
            if time.monotonic() > deadline:
                break
    raise httpx.ReadTimeout("left")


async def test_ledger_counts_running_calls_per_key_and_forgets_on_reset(client: httpx.AsyncClient) -> None:
    body = {"model": "sandbox/long", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 30}
    other = {"Authorization": "Bearer sk-or-test-other"}
    url = "/api/v1/chat/completions"
    await asyncio.gather(
        *(client.post(url, json=body) for _ in range(4)),
        *(client.post(url, json=body, headers=other) for _ in range(2)),
    )
    after = await ledger(client)
    assert sorted(after["max_running"].values()) == [2, 4]
    assert {len(name) for name in after["max_running"]} == {12}
    assert after["running"] == {}
    assert "sk-or" not in json.dumps(after)
    await client.post("/sandbox/reset")
    assert await ledger(client) == {"calls": [], "refused": [], "running": {}, "max_running": {}}


async def test_ordinary_models_are_paced_when_a_speed_is_set() -> None:
    async with running(Settings(tokens_per_s=200, first_token_s=0.2)) as url, httpx.AsyncClient(headers=KEY) as client:
        client.base_url = httpx.URL(url)
        started = time.monotonic()
        events = await stream(client, "openai/gpt-4o-mini", max_tokens=40)
        assert time.monotonic() - started > 0.38
        assert events[-1]["usage"]["completion_tokens"] == 40


def test_program_says_where_it_listens_and_stops_at_sigterm() -> None:
    environment = {**os.environ, "SANDBOX_PORT": "0", "SANDBOX_HOST": "127.0.0.1"}
    command = [sys.executable, "-m", "deploy.sandbox"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("sandbox ready http://127.0.0.1:")
        url = line.split()[-1]
        body = {"model": "sandbox/silence", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with httpx.stream("POST", f"{url}/chat/completions", json=body, headers=KEY) as response:
            assert response.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
