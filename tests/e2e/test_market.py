"""What comes after publishing, over HTTP: figures that agree with the receipts, limits, losses, and the buyer's view."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from deploy.local.stack import Stack
from tests.e2e.client import Person, connected, draft, good, problem, signed_in
from tests.waiting import until

SECRET_PROMPT = "The creator's own words, worth money: {{text}}"


async def counted(alice: Person, resource: dict[str, Any], runs: int) -> dict[str, Any]:
    """The stats, once they hold so many runs and the cost of all of them."""

    async def look() -> dict[str, Any] | None:
        stats: dict[str, Any] = await alice.get(f"/api/resources/{resource['id']}/stats", days=2)
        total = stats["total"]
        return stats if (total["runs"], total["cost_unknown_runs"]) == (runs, 0) else None

    return await until(look)


async def test_figures_agree_with_the_receipts_when_runs_succeed_fail_and_are_priced_later(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, signed_in(stack, "bob") as bob:
        resource = await alice.publish()
        results = [await caller.result(resource["id"]) for caller in (alice, bob, bob)]
        views = [await alice.execution(result["execution_id"]) for result in results]
        receipts = [view["receipt"] for view in views]
        stats = await counted(alice, resource, 3)
        total = stats["total"]
        assert (total["succeeded"], total["own_runs"], total["test_runs"], total["failures"]) == (3, 1, 3, {})
        for name, figure in (("model_usd", "model_usd"), ("price_usd", "price_usd"), ("markup_usd", "margin_usd")):
            assert Decimal(total[figure]) == sum(Decimal(receipt["cost"][name]) for receipt in receipts)
        times = sorted(receipt["timing"]["total_ms"] for receipt in receipts)
        assert (total["median_ms"], total["p95_ms"]) == (times[1], times[2])
        assert total["prompt_tokens"] == sum(receipt["usage"]["prompt_tokens"] for receipt in receipts)
        assert sum(day["runs"] for day in stats["days"]) == 3
        measured = (await bob.get(f"/api/resources/{resource['id']}", **{"as": "buyer"}))["measured"]
        assert (measured["runs"], measured["success_rate"], measured["mode"]) == (2, 1.0, "test")
        mine = await alice.get(f"/api/resources/{resource['id']}")
        assert mine["breakdown"]["measured_runs"] == 3
        unsaved = draft(slug=mine["slug"])
        checked = await alice.post(f"/api/resources/check?resource_id={mine['id']}", unsaved)
        assert [checked[name] for name in ("breakdown", "warnings", "input_schema")] == [
            mine[name] for name in ("breakdown", "warnings", "input_schema")
        ]
        assert (await alice.post("/api/resources/check", unsaved))["breakdown"]["measured_runs"] == 0

        late = await alice.publish(model="sandbox/no-usage")
        await bob.result(late["id"])
        priced = (await counted(alice, late, 1))["total"]
        assert Decimal(priced["model_usd"]) > 0
        problem(await bob.http.get(f"/api/resources/{late['id']}/stats"), 403, "forbidden")


async def test_a_resource_that_loses_money_is_paused_when_its_creator_wants_that(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, signed_in(stack, "bob") as bob:
        resource = await alice.publish(pricing={"mode": "fixed", "price_usd": "0.000000001"}, margin_rule="pause")
        for _ in range(3):
            await bob.result(resource["id"])

        async def paused() -> dict[str, Any] | None:
            mine: dict[str, Any] = await alice.get(f"/api/resources/{resource['id']}")
            return mine if mine["status"] == "paused" else None

        mine = await until(paused)
        assert [notice["kind"] for notice in mine["notices"]] == ["paused_below_cost"]
        assert Decimal(mine["notices"][0]["cost"]["markup_usd"]) < 0

        async def refused() -> bool:
            return (await bob.execute(resource["id"])).status_code == 404

        await until(refused)
        good(await alice.http.post(f"/api/resources/{resource['id']}/publish"))
        await bob.result(resource["id"])
        await counted(alice, resource, 4)
        again = await alice.get(f"/api/resources/{resource['id']}")
        assert (again["status"], len(again["notices"])) == ("published", 1), "it was acted upon once"


async def test_limits_are_kept_and_used_up_when_runs_cost_something(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, signed_in(stack, "bob") as bob:
        resource = await alice.publish()
        cost = (await alice.execution((await bob.result(resource["id"]))["execution_id"]))["receipt"]["cost"]
        limits = {"key_daily_usd": "0.000000001", "resources": [{"resource_id": resource["id"], "daily_usd": "100"}]}
        set_to = good(await alice.http.put("/api/budgets", json=limits))
        assert [(each["scope"], each["spent_usd"]) for each in set_to["today"]] == [("key", "0"), ("resource", "0")]

        async def used_up() -> dict[str, Any] | None:
            budgets: dict[str, Any] = await alice.get("/api/budgets")
            return budgets if budgets["today_in_test"][0]["reached_percent"] else None

        budgets = await until(used_up)
        assert [(each["mode"], each["spent_usd"]) for each in budgets["today"]] == [("live", "0"), ("live", "0")]
        key, one = budgets["today_in_test"]
        assert (key["mode"], one["mode"]) == ("test", "test")
        assert (key["reached_percent"], one["reached_percent"]) == (100, None)
        assert Decimal(key["spent_usd"]) == Decimal(one["spent_usd"]) == Decimal(cost["model_usd"])
        assert (await bob.get("/api/budgets"))["key_daily_usd"] is None

        async def refused() -> bool:
            # No run fits into such a day. Executors hear of a limit within ten seconds.
            return (await bob.execute(resource["id"])).status_code == 409

        await until(refused)
        assert good(await alice.http.put("/api/budgets", json={}))["today"] == []


async def test_versions_and_the_buyers_view_when_a_resource_is_edited(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, signed_in(stack, "bob") as bob:
        resource = await alice.publish(config={"prompt_template": SECRET_PROMPT}, example_output="Hello back")
        path = f"/api/resources/{resource['id']}"
        good(await alice.http.patch(path, json={"pricing": {"mode": "fixed", "price_usd": "0.02"}}))
        page = await alice.get(f"{path}/versions")
        assert [item["version"] for item in page["items"]] == [2, 1]
        assert page["items"][0]["changes"] == [{"path": "pricing.price_usd", "before": "0.01", "after": "0.02"}]
        problem(await bob.http.get(f"{path}/versions"), 403, "forbidden")
        seen = await bob.get(path, **{"as": "buyer"})
        assert (seen["example_output"], seen["price_usd"], seen["available"]) == ("Hello back", "0.02", True)
        assert seen == await bob.get(f"/api/listings/{alice.name}/{resource['slug']}")
        for secret in (SECRET_PROMPT, "sandbox/echo", "breakdown", "margin", "model_usd", "notices"):
            assert secret not in json.dumps(seen)


async def test_an_attachment_is_declared_now_and_refused_when_sent(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        models = await alice.get("/api/models", input_modality="image", limit=200)
        model = next(
            item["id"] for item in models["items"] if item["executable"] and "text" in item["output_modalities"]
        )
        inputs = [{"name": "text", "max_length": 100}, {"name": "photo", "type": "image", "required": False}]
        resource = await alice.create(model=model, inputs=inputs, config={"max_tokens": 20})
        assert resource["input_schema"]["properties"]["photo"]["x-kind"] == "image"
        sent = {"text": "what is it?", "photo": "data:image/png;base64,AAAA"}
        answer = problem(await alice.execute(resource["id"], input=sent), 422, "invalid")
        assert [error["path"] for error in answer["errors"]] == ["input.photo"]


async def test_a_fallback_that_knows_the_limit_under_another_name_keeps_it(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        config = {"fallback_models": ["openai/gpt-5.1-codex-mini"], "max_tokens": 7}
        resource = await alice.publish(model="sandbox/status-503", config=config)
        result = await alice.result(resource["id"])
        assert result["model"]["served"].startswith("openai/gpt-5.1-codex-mini")
        assert (result["finish_reason"], result["usage"]["completion_tokens"]) == ("length", 7)
