"""The whole main job over HTTP: connect a key, find a model, estimate, create, preview, publish, execute, and get the receipt."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import pytest

from deploy.local.stack import Stack
from tests.e2e.client import (
    KEY_PATH,
    SANDBOX_PRICES,
    at_gateway,
    connected,
    draft,
    good,
    problem,
    signed_in,
    text_of,
    upstream_frozen,
)
from tests.waiting import until

SECRET_PROMPT = "The creator's own words, worth money: {{text}}"


def amounts(cost: dict[str, Any]) -> dict[str, Decimal]:
    """The amounts of a final cost, checked to add up."""
    assert cost["status"] == "final"
    found = {name: Decimal(cost[name]) for name in ("model_usd", "markup_usd", "price_usd")}
    assert found["model_usd"] + found["markup_usd"] == found["price_usd"]
    return found


# Keys -----------------------------------------------------------------------------------------------------------------


async def test_key_goes_through_its_life_when_connected_tested_and_disconnected(stack: Stack) -> None:
    async with signed_in(stack, "alice") as alice:
        nothing = await alice.get(KEY_PATH)
        assert [nothing.pop("connected"), *set(nothing.values())] == [False, None]
        key = f"sk-or-test-{uuid4().int}"
        status = good(await alice.http.put(KEY_PATH, json={"api_key": key}))
        assert (status["connected"], status["mode"], status["health"], status["version"]) == (True, "test", "ok", 1)
        assert status["hint"].startswith("sk-or-test-")
        assert status["hint"].endswith(key[-4:])
        assert len(status["hint"]) < 24
        assert await alice.get(KEY_PATH) == status
        tested = await alice.post(f"{KEY_PATH}/test")
        assert tested["health"] == "ok"
        assert tested["verified_at"] >= status["verified_at"]
        replaced = good(await alice.http.put(KEY_PATH, json={"api_key": f"sk-or-test-free-{uuid4().int}"}))
        assert (replaced["version"], replaced["is_free_tier"]) == (2, True)
        gone = await alice.http.delete(KEY_PATH)
        assert gone.status_code in {200, 204}
        assert (await alice.get(KEY_PATH))["connected"] is False
        problem(await alice.http.post(f"{KEY_PATH}/test"), 409, "key_missing")
        assert (await alice.http.delete(KEY_PATH)).status_code == gone.status_code


async def test_disconnect_stops_runs_at_every_executor_when_the_key_is_gone(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        resource = await alice.publish()
        for _ in range(4):
            await alice.result(resource["id"])
        await alice.http.delete(KEY_PATH)

        async def refused_twice() -> bool | None:
            answers = [await alice.execute(resource["id"]) for _ in range(4)]
            return all(answer.status_code == 409 for answer in answers) or None

        await until(refused_twice)
        refused = problem(await alice.execute(resource["id"]), 409, "key_missing")
        assert "connect" in refused["detail"].lower()


# Models ---------------------------------------------------------------------------------------------------------------


async def test_models_are_found_when_filtered_sorted_and_paged(stack: Stack) -> None:
    async with signed_in(stack, "carol") as carol:

        async def ids(**query: Any) -> list[str]:
            return [item["id"] for item in (await carol.get("/api/models", limit=200, **query))["items"]]

        assert (await ids(q="claude haiku"))[0] == "anthropic/claude-haiku-4.5"
        assert {found.split("/")[0].removeprefix("~") for found in await ids(provider="anthropic")} == {"anthropic"}
        assert "openai/gpt-audio" in await ids(output_modality="audio")
        assert "openai/gpt-audio" not in await ids(output_modality="image")
        assert "sandbox/echo" in await ids(input_modality="file", q="echo")
        assert "anthropic/claude-haiku-4.5" in await ids(capability="tools")
        assert set(await ids(max_prompt_price="0")) >= {"openai/gpt-oss-20b:free", "openrouter/free"}
        assert "openrouter/auto" not in await ids(max_prompt_price="1")
        assert "openai/gpt-4o" not in await ids(max_completion_price="0.000001")
        assert "microsoft/phi-4" not in await ids(min_context=20_000)
        assert await ids(curated=True)
        assert await ids(status="retired") == []
        assert await ids(status="retiring") == ["z-ai/glm-4.5"]
        popular = await ids(sort="popular")
        assert popular[0] == "xiaomi/mimo-v2.5"
        for sort in ("popular", "newest", "price", "-price", "context"):
            found: list[str] = []
            page = await carol.get("/api/models", sort=sort, limit=23)
            while True:
                found += [item["id"] for item in page["items"]]
                if page["next_cursor"] is None:
                    break
                page = await carol.get("/api/models", sort=sort, limit=23, cursor=page["next_cursor"])
            assert sorted(found) == sorted(popular)
            assert len(found) == page["total"]
        wrong = await carol.http.get("/api/models", params={"sort": "price", "cursor": "bm9uc2Vuc2U"})
        assert "cursor" in problem(wrong, 422, "invalid")["detail"]


async def test_model_and_estimate_agree_when_looked_at(stack: Stack) -> None:
    async with signed_in(stack, "carol") as carol:
        model = await carol.get("/api/models/anthropic/claude-haiku-4.5")
        assert model["price_kind"] == "fixed"
        assert model["executable"]
        assert model["price_history"][0]["pricing"]["prompt"] == model["pricing"]["prompt"]
        body = {"model_id": model["id"], "prompt_tokens": 1000, "max_tokens": 500, "price": "0.01"}
        estimate = await carol.post("/api/models/estimate", body)
        prices = {name: Decimal(model["pricing"][name]) for name in ("prompt", "completion", "input_cache_write")}
        # A model may write its cache unasked, which costs more than reading the prompt.
        dearest_prompt = max(prices["prompt"], prices["input_cache_write"])
        assert Decimal(estimate["ceiling_usd"]) == 1000 * dearest_prompt + 500 * prices["completion"]
        steps = [Decimal(estimate[f"{name}_usd"]) for name in ("low", "expected", "ceiling")]
        assert steps == sorted(steps)
        assert Decimal(estimate["margin"]["ceiling_usd"]) == Decimal("0.01") - steps[-1]
        assert estimate["assumptions"]
        unknown = await carol.http.post("/api/models/estimate", json={**body, "model_id": "nobody/nothing"})
        assert problem(unknown, 422, "invalid")["errors"][0]["path"] == "model_id"
        problem(await carol.http.get("/api/models/nobody/nothing"), 404, "not_found")


async def test_sync_is_for_administrators_when_asked_for(stack: Stack) -> None:
    async with signed_in(stack, "mallory") as mallory, signed_in(stack, "root", admin=True) as root:
        problem(await mallory.http.post("/api/catalog/sync"), 403, "forbidden")
        problem(await mallory.http.get("/api/catalog/syncs"), 403, "forbidden")
        report = await root.post("/api/catalog/sync")
        assert report["outcome"] in {"applied", "unchanged"}
        assert report["models"] > 90
        syncs = (await root.get("/api/catalog/syncs"))["items"]
        assert syncs[0]["id"] == report["id"]
        assert syncs[0]["requested_by"] == root.name


# Resources ------------------------------------------------------------------------------------------------------------


async def test_resource_goes_through_its_life_when_edited_published_paused_and_deleted(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, connected(stack, "bob") as bob:
        created = await alice.create()
        path = f"/api/resources/{created['id']}"
        assert (created["status"], created["version"], created["owner"]) == ("draft", 1, alice.name)
        assert created["input_schema"]["required"] == ["text"]
        assert await alice.get(path) == created
        name = f"{alice.name}/{created['slug']}"
        problem(await bob.execute(name), 404, "not_found")
        edited = good(await alice.http.patch(path, json={"name": "Better", "expected_version": 1}))
        assert (edited["name"], edited["version"], edited["slug"]) == ("Better", 2, created["slug"])
        stale = await alice.http.patch(path, json={"name": "Late", "expected_version": 1})
        problem(stale, 409, "conflict")
        assert (await alice.get(path))["name"] == "Better"
        published = await alice.post(f"{path}/publish")
        assert published["status"] == "published"
        assert (await bob.result(name))["text"] == "hello"
        assert [item["id"] for item in (await alice.get("/api/resources", status="published"))["items"]] == [
            created["id"]
        ]
        assert (await alice.get("/api/resources", status="paused"))["items"] == []
        await alice.post(f"{path}/pause")

        async def refused() -> bool | None:
            return (await bob.execute(name)).status_code == 404 or None

        await until(refused)
        assert (await alice.result(name))["text"] == "hello"
        assert (await alice.http.delete(path)).status_code == 204
        problem(await alice.http.get(path), 404, "not_found")
        assert (await alice.get("/api/resources"))["total"] == 0

        async def gone() -> bool | None:
            return (await alice.execute(name)).status_code == 404 or None

        await until(gone)


async def test_resources_are_paged_newest_first_when_listed(stack: Stack) -> None:
    async with signed_in(stack, "alice") as alice:
        made = [(await alice.create())["id"] for _ in range(7)]
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = await alice.get("/api/resources", limit=3, **cursor)
            assert page["total"] == 7
            found += [item["id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert found == made[::-1]


async def test_listing_shows_what_a_buyer_needs_when_nobody_is_signed_in(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, httpx.AsyncClient(base_url=stack.gateway_url) as anybody:
        config = {"prompt_template": SECRET_PROMPT, "system_prompt": "Secret system words"}
        resource = await alice.publish(config=config, name=f"Findable {alice.name}")
        hidden = await alice.create(config=config, name=f"Findable {alice.name}")
        page = good(await anybody.get("/api/listings", params={"q": alice.name}))
        assert [item["id"] for item in page["items"]] == [resource["id"]]
        listing = good(await anybody.get(f"/api/listings/{alice.name}/{resource['slug']}"))
        assert listing == page["items"][0]
        assert (listing["price_usd"], listing["max_price_usd"], listing["available"]) == ("0.01", "0.01", True)
        assert listing["input_schema"]["properties"].keys() == {"text"}
        everything = json.dumps([page, listing])
        assert alice.key is not None
        for secret in (
            SECRET_PROMPT,
            "Secret system words",
            "openrouter_config",
            "model_usd",
            "sandbox/echo",
            alice.key,
        ):
            assert secret not in everything
        problem(await anybody.get(f"/api/listings/{alice.name}/{hidden['slug']}"), 404, "not_found")


# Running --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gateway", [0, 1])
async def test_preview_runs_an_unsaved_resource_when_plain_and_streamed(stack: Stack, gateway: int) -> None:
    async with connected(stack, "alice", gateway=gateway) as alice:
        body = {**draft(config={"prompt_template": "Say {{text}}"}), "input": {"text": "{{text}} twice"}}
        result = await alice.post("/api/resources/preview", body)
        # One pass: what looks like a variable in a value stays as it is.
        assert result["text"] == "Say {{text}} twice"
        assert (result["resource_id"], result["mode"], result["status"]) == (None, "test", "succeeded")
        assert amounts(result["cost"])["price_usd"] == Decimal("0.01")
        async with alice.http.stream("POST", "/api/resources/preview", json={**body, "stream": True}) as answer:
            text = (await answer.aread()).decode()
        assert json.loads(text.split("event: completed\ndata: ")[1].split("\n")[0])["text"] == result["text"]
        assert (await alice.get("/api/resources"))["total"] == 0


async def test_execution_says_the_same_when_plain_streamed_and_asynchronous(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, connected(stack, "bob", gateway=1) as bob:
        resource = await alice.publish(model="anthropic/claude-haiku-4.5")
        plain = await bob.result(resource["id"])
        events = await bob.stream(f"{alice.name}/{resource['slug']}")
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[0].kind == "started"
        assert events[0].data == {
            "execution_id": events[-1].data["execution_id"],
            "model": "anthropic/claude-haiku-4.5",
        }
        assert len(events) > 3
        assert text_of(events) == events[-1].data["text"] == plain["text"]
        execution_id = await bob.enqueue(resource["id"])
        view = await bob.ended(execution_id)
        assert view["status"] == "succeeded"
        assert view["result"]["text"] == plain["text"]
        followed = await bob.events(execution_id)
        assert text_of(followed) == plain["text"]
        assert followed[-1].data == view["result"]
        assert followed[-1].seq == view["last_seq"]
        assert await bob.events(execution_id, after=view["last_seq"]) == []
        async with at_gateway(bob, 0) as elsewhere:
            assert (await elsewhere.events(execution_id, after=1))[-1] == followed[-1]
        problem(await alice.http.get(f"/api/executions/{execution_id}/events"), 404, "not_found")


async def test_creator_sees_the_cost_and_the_caller_the_price_when_both_look(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, connected(stack, "bob") as bob, signed_in(stack, "eve") as eve:
        resource = await alice.publish(config={"prompt_template": SECRET_PROMPT})
        result = await bob.result(resource["id"], input={"text": "bob's own words"})
        events = await bob.stream(resource["id"])
        execution_id = result["execution_id"]
        theirs = await bob.execution(execution_id)
        listed = (await bob.get("/api/executions"))["items"]
        assert {item["execution_id"] for item in listed} == {execution_id, events[-1].data["execution_id"]}
        assert result["cost"] == theirs["cost"] == {"price_usd": "0.01"}
        seen_by_caller = json.dumps([result, [event.data for event in events], theirs, listed])
        for secret in ("model_usd", "markup_usd", "generation_id", "user_SANDBOX", "gen-"):
            assert secret not in seen_by_caller
        view = await alice.execution(execution_id)
        assert (view["result"], view["owner"], view["caller"]) == (None, alice.name, {"kind": "user", "id": bob.name})
        assert "bob's own words" not in json.dumps(view)
        receipt = view["receipt"]
        assert amounts(receipt["cost"])["price_usd"] == Decimal("0.01")
        assert receipt["cost"] == view["cost"]
        assert [attempt["status"] for attempt in receipt["attempts"]] == ["succeeded"]
        mine = (await alice.get("/api/executions", role="owner", resource_id=resource["id"]))["items"]
        assert {item["execution_id"] for item in mine} == {execution_id, events[-1].data["execution_id"]}
        assert (await alice.get("/api/executions"))["items"] == []
        assert (await bob.get("/api/executions", role="owner"))["items"] == []
        problem(await eve.http.get(f"/api/executions/{execution_id}"), 404, "not_found")
        problem(await eve.http.post(f"/api/executions/{execution_id}/cancel"), 404, "not_found")


@pytest.mark.parametrize(
    ("pricing", "price_of"),
    [
        (
            {"markup_percent": "40", "max_usd": "1"},
            lambda cost: (cost * Decimal("1.4")).quantize(Decimal("0.000001"), "ROUND_HALF_UP"),
        ),
        ({"markup_percent": "40", "min_usd": "0.002", "max_usd": "0.10"}, lambda _: Decimal("0.002")),
        ({"markup_percent": "100000", "max_usd": "0.0005"}, lambda _: Decimal("0.0005")),
        ({"markup_percent": "0", "max_usd": "1"}, lambda cost: cost.quantize(Decimal("0.000001"), "ROUND_HALF_UP")),
    ],
    ids=["markup", "minimum", "maximum", "nothing"],
)
async def test_cost_plus_price_follows_the_cost_when_run(stack: Stack, pricing: dict[str, str], price_of: Any) -> None:
    async with connected(stack, "alice") as alice, connected(stack, "bob") as bob:
        resource = await alice.publish(pricing={"mode": "cost_plus", **pricing})
        said = "seventeen letters and more, several times over" * 3
        result = await alice.result(resource["id"], input={"text": said})
        usage = result["usage"]
        cost = usage["prompt_tokens"] * Decimal(SANDBOX_PRICES["prompt"])
        cost += usage["completion_tokens"] * Decimal(SANDBOX_PRICES["completion"])
        assert amounts(result["cost"])["model_usd"] == cost
        assert Decimal(result["cost"]["price_usd"]) == price_of(cost)
        theirs = await bob.result(resource["id"], input={"text": said})
        assert theirs["cost"] == {"price_usd": result["cost"]["price_usd"]}


async def test_cost_becomes_known_when_the_answer_did_not_say_it(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        pricing = {"mode": "cost_plus", "markup_percent": "10", "max_usd": "1"}
        resource = await alice.create(model="sandbox/no-usage", pricing=pricing)
        result = await alice.result(resource["id"])
        assert result["cost"] == {"model_usd": None, "markup_usd": None, "price_usd": None, "status": "pending"}

        async def known() -> dict[str, Any] | None:
            view = await alice.execution(result["execution_id"])
            return view if view["cost"]["status"] == "final" else None

        view = await until(known)
        assert view["receipt"]["revision"] == 2
        found = amounts(view["receipt"]["cost"])
        [call] = await alice.upstream_calls()
        assert found["model_usd"] == Decimal(call["cost"]) > 0


async def test_run_stops_upstream_when_canceled(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        resource = await alice.create(model="sandbox/long")
        execution_id = await alice.enqueue(resource["id"])

        async def running() -> bool | None:
            return any(call["state"] == "running" for call in await alice.upstream_calls()) or None

        await until(running)
        with upstream_frozen(stack):
            view = await alice.post(f"/api/executions/{execution_id}/cancel")
        assert view["status"] in {"running", "canceled"}
        ended = await alice.ended(execution_id)
        assert ended["status"] == "canceled"
        assert [call["state"] for call in await alice.upstream_calls()] == ["cancelled"]
        assert (await alice.post(f"/api/executions/{execution_id}/cancel"))["status"] == "canceled"


# Conditions and repetition --------------------------------------------------------------------------------------------


async def test_run_is_refused_when_its_conditions_do_not_hold(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, connected(stack, "bob") as bob:
        resource = await alice.publish()
        problem(await bob.execute(resource["id"], max_price_usd="0.009"), 409, "conflict")
        problem(await bob.execute(resource["id"], expected_version=7), 409, "conflict")
        assert await alice.upstream_calls() == []
        assert (await bob.get("/api/executions"))["items"] == []
        assert (await bob.result(resource["id"], max_price_usd="0.01", expected_version=1))["text"] == "hello"


async def test_same_idempotency_key_is_the_same_run_when_sent_again(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, connected(stack, "bob") as bob:
        resource = await alice.publish()
        headers = {"Idempotency-Key": str(uuid4())}
        first = await bob.result(resource["id"], headers=headers)
        assert await bob.result(resource["id"], headers=headers) == first
        async with at_gateway(bob, 1) as elsewhere:
            events = await elsewhere.stream(resource["id"], headers=headers)
            assert events[-1].data == first
            accepted = await elsewhere.execute(resource["id"], headers={**headers, "Prefer": "respond-async"})
            assert (accepted.status_code, accepted.json()["execution_id"]) == (202, first["execution_id"])
        assert len(await alice.upstream_calls()) == 1
        assert len((await bob.get("/api/executions"))["items"]) == 1
        other = await bob.execute(resource["id"], headers=headers, input={"text": "other words"})
        refused = problem(other, 409, "conflict")
        assert "Idempotency-Key" in refused["detail"]
        # The key belongs to whoever sent it: alice's is another one.
        assert (await alice.result(resource["id"], headers=headers))["execution_id"] != first["execution_id"]


async def test_same_idempotency_key_replays_the_failure_when_the_run_failed(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        resource = await alice.create(model="sandbox/status-404")
        headers = {"Idempotency-Key": str(uuid4())}
        first = problem(await alice.execute(resource["id"], headers=headers), 409, "model_unavailable")
        assert problem(await alice.execute(resource["id"], headers=headers), 409, "model_unavailable") == first
        events = await alice.stream(resource["id"], headers=headers)
        assert (events[-1].kind, events[-1].data) == ("failed", first)
        assert len((await alice.get("/api/executions"))["items"]) == 1


async def test_same_idempotency_key_replays_the_result_when_the_resource_is_gone(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, connected(stack, "bob") as bob:
        resource = await alice.publish()
        headers = {"Idempotency-Key": str(uuid4())}
        first = await bob.result(resource["id"], headers=headers)
        await alice.http.delete(KEY_PATH)
        good(await alice.http.post(f"/api/resources/{resource['id']}/pause"))

        async def refused() -> bool | None:
            return (await bob.execute(resource["id"])).status_code == 404 or None

        await until(refused)
        assert await bob.result(resource["id"], headers=headers) == first
