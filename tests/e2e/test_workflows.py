"""Workflows as their users meet them: over HTTP, on two gateways and two executors, through failure, resume and cancel."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

from deploy.local.stack import Stack
from deploy.sandbox.media import png
from tests.e2e.client import Event, Person, at_gateway, checked, connected, good, problem, read_events, signed_in
from tests.waiting import until

PATH = "/api/workflows"


def step(name: str, resource: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"name": name, "resource": resource, "input": {"text": text}, **more}


async def start(person: Person, *steps: dict[str, Any], key: str | None = None, **more: Any) -> str:
    """The id of a workflow that was accepted."""
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = await person.http.post(PATH, json={"steps": list(steps), **more}, headers=headers)
    assert answer.status_code == 202, answer.text
    workflow_id: str = answer.json()["workflow_id"]
    assert answer.headers["location"] == f"{PATH}/{workflow_id}"
    return workflow_id


async def ended(person: Person, workflow_id: str) -> dict[str, Any]:
    """The workflow once it has ended."""

    async def look() -> dict[str, Any] | None:
        view: dict[str, Any] = await person.get(f"{PATH}/{workflow_id}")
        return view if view["status"] != "running" else None

    return await until(look)


async def events(person: Person, workflow_id: str, after: int = 0, most: int | None = None) -> list[Event]:
    """The events from behind number `after` to the end, or the first `most` of them; none when the last one was seen."""
    headers = {"Last-Event-ID": str(after)} if after else {}
    read: list[Event] = []
    async with person.http.stream("GET", f"{PATH}/{workflow_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.status_code == 200, await answer.aread()
        async for event in read_events(answer):
            read.append(event)
            if len(read) == most:
                return read
    return checked(read, first=after + 1)


def statuses(view: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["status"] for each in view["steps"]}


def said(read: list[Event]) -> list[tuple[str, str]]:
    """Which step became what, and how the whole ended."""
    return [(event.data["step"], event.data["status"]) if event.kind == "step" else (event.kind, "") for event in read]


async def test_a_workflow_fails_is_mended_and_resumed_and_pays_for_nothing_twice(stack: Stack) -> None:
    async with connected(stack, "creator") as creator, signed_in(stack, "buyer") as buyer:
        echo, bad = await creator.publish(), await creator.publish(model="sandbox/status-400")
        steps = [
            step("draft", echo["id"], "{{input.topic}}"),
            step("edit", bad["id"], "Edit: {{steps.draft.text}}"),
            step("print", f"{creator.name}/{echo['slug']}", "{{steps.edit.text}}!"),
            step("aside", echo["id"], "aside"),
        ]
        request = {"input": {"topic": "autumn"}, "max_price_usd": "0.04"}
        workflow_id = await start(buyer, *steps, key="k", **request)
        failed = await ended(buyer, workflow_id)
        assert statuses(failed) == {"draft": "succeeded", "edit": "failed", "print": "skipped", "aside": "succeeded"}
        assert failed["cost"] == {"price_usd": "0.02"}
        first = await events(buyer, workflow_id)
        assert first[-1].kind == "failed"
        assert (first[-1].data["status"], first[-1].data["code"]) == (422, "invalid")
        assert "`edit`" in first[-1].data["detail"]
        assert first[-1].data["execution_id"] == failed["steps"][1]["execution_id"]
        calls = len(await creator.upstream_calls())

        good(
            await creator.http.patch(
                f"/api/resources/{bad['id']}",
                json={
                    "openrouter_config": {"model_id": "sandbox/echo", "prompt_template": "{{text}}", "max_tokens": 2000}
                },
            )
        )
        answer = await buyer.http.post(f"{PATH}/{workflow_id}/resume")
        assert answer.status_code == 202, answer.text
        view = await ended(buyer, workflow_id)
        assert statuses(view) == dict.fromkeys(("draft", "edit", "print", "aside"), "succeeded")
        assert view["steps"][2]["result"]["text"] == "Edit: autumn!"
        assert view["cost"] == {"price_usd": "0.04"}
        assert [each["status"] for each in view["steps"][1]["attempts"]] == ["failed", "succeeded"]
        assert len(await creator.upstream_calls()) == calls + 2
        assert await start(buyer, *steps, key="k", **request) == workflow_id, "the same request again"

        rest = await events(buyer, workflow_id, after=first[-1].seq)
        assert said(rest) == [
            ("edit", "running"), ("edit", "succeeded"), ("print", "running"), ("print", "succeeded"), ("completed", ""),
        ]  # fmt: skip
        assert rest[-1].data == view
        whole = await events(buyer, workflow_id)
        assert [event.kind for event in whole] == ["snapshot", "completed"], "what ended before the resume ends nothing"
        assert await events(buyer, workflow_id, after=rest[-1].seq) == []

        receipts = (await creator.get("/api/executions", role="owner"))["items"]
        assert len(receipts) == 5
        assert all(each["result"] is None for each in receipts), "creators see receipts, never what callers got"


async def test_pictures_go_from_step_to_step_and_in_from_outside(stack: Stack) -> None:
    async with connected(stack, "painter") as person:
        painter = await person.publish(model="sandbox/image", config={"modalities": ["image", "text"]})
        looking = [{"name": "photo", "type": "image"}, {"name": "text"}]
        viewer = await person.publish(
            model="openai/gpt-4o-mini", inputs=looking, config={"prompt_template": "{{text}}"}
        )
        photo = png("a photo")
        upload = good(await person.http.post("/media", content=photo))
        look = {"resource": viewer["id"], "depends_on": []}
        workflow_id = await start(
            person,
            step("paint", painter["id"], "a red circle"),
            {
                **look,
                "name": "painted",
                "input": {"photo": "{{steps.paint.image}}", "text": "{{steps.paint.outputs[0].bytes}} bytes"},
            },
            {**look, "name": "uploaded", "input": {"photo": "{{input.photo}}", "text": "an upload"}},
            {**look, "name": "sent", "input": {"photo": data_url(photo), "text": "a data URL"}},
            input={"photo": upload["url"]},
        )
        view = await ended(person, workflow_id)
        assert view["status"] == "succeeded", view["error"]
        run = await person.execution(view["steps"][0]["execution_id"])
        painted = (await person.http.get(run["result"]["outputs"][0]["url"])).content
        seen = sorted(file["sha256"] for call in await person.upstream_calls() for file in call["files"])
        assert seen == sorted(hashlib.sha256(data_url(each).encode()).hexdigest() for each in (painted, photo, photo))

        refused = {"steps": [{**look, "name": "x", "input": {"photo": "https://example.org/a.png", "text": "no"}}]}
        wrong = problem(await person.http.post(PATH, json=refused), 422, "invalid")
        assert wrong["errors"][0]["path"] == "steps.0.input.photo"


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


async def test_a_view_goes_on_at_another_gateway_and_leaving_cancels_nothing(stack: Stack) -> None:
    async with connected(stack, "reader") as person, at_gateway(person, 1) as elsewhere:
        long, echo = await person.publish(model="sandbox/long", config={"max_tokens": 60}), await person.publish()
        workflow_id = await start(
            person,
            step("a", echo["id"]),
            step("b", long["id"], "{{steps.a.text}}"),
            step("c", echo["id"], "{{steps.b.text}}"),
        )
        seen = await events(person, workflow_id, most=3)
        assert said(seen) == [("a", "running"), ("a", "succeeded"), ("b", "running")]
        rest = await events(elsewhere, workflow_id, after=3)
        assert said(rest) == [("b", "succeeded"), ("c", "running"), ("c", "succeeded"), ("completed", "")]
        assert [event.seq for event in [*seen, *rest]] == list(range(1, 8))
        assert rest[-1].data["cost"]["status"] == "final", "the creator's own: with the cost"
        assert await events(elsewhere, workflow_id, after=7) == []
        of_step = await elsewhere.events(rest[0].data["execution_id"])
        assert of_step[-1].kind == "completed", "each step is an ordinary run"


async def test_a_workflow_is_canceled_by_nobody_but_its_owner(stack: Stack) -> None:
    async with connected(stack, "owner") as person, signed_in(stack, "stranger") as stranger:
        long, echo = await person.publish(model="sandbox/long"), await person.publish()
        workflow_id = await start(person, step("a", long["id"]), step("b", echo["id"], "{{steps.a.text}}"))
        await until(person.upstream_calls)
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/resume")):
            problem(await stranger.http.request(method, f"{PATH}/{workflow_id}{path}"), 404, "not_found")
        assert (await stranger.get(PATH))["items"] == []
        following = asyncio.create_task(events(person, workflow_id))
        view = good(await person.http.post(f"{PATH}/{workflow_id}/cancel"))
        assert (view["status"], statuses(view)) == ("canceled", {"a": "canceled", "b": "skipped"})
        last = (await following)[-1]
        assert (last.kind, last.data["status"]) == ("completed", "canceled")
        (call,) = await person.upstream_calls()
        assert call["state"] == "cancelled"
        (item,) = (await person.get(PATH, status="canceled"))["items"]
        assert (item["workflow_id"], item["steps"]) == (workflow_id, {"a": "canceled", "b": "skipped"})


async def test_a_wrong_workflow_is_refused_with_every_problem(stack: Stack) -> None:
    async with connected(stack, "owner") as person:
        echo = await person.publish()
        body = {"steps": [step("a", echo["id"], "{{steps.b.text}}"), step("a", echo["id"], "{{steps.c}}")]}
        wrong = problem(await person.http.post(PATH, json=body), 422, "invalid")
        assert [error["path"] for error in wrong["errors"]] == ["steps.0", "steps.1.name", "steps.1.input"]
        unknown = {"steps": [{**step("a", echo["id"]), "recource": "x"}]}
        assert (
            problem(await person.http.post(PATH, json=unknown), 422, "invalid")["errors"][0]["path"]
            == "steps.0.recource"
        )
        no_input = {"steps": [{"name": "a", "resource": echo["id"]}]}
        wrong = problem(await person.http.post(PATH, json=no_input), 422, "invalid")
        assert wrong["errors"][0]["path"] == "steps.0.input.text"
        dear = {"steps": [step("a", echo["id"]), step("b", echo["id"])], "max_price_usd": "0.01"}
        assert "0.02 USD" in problem(await person.http.post(PATH, json=dear), 409, "conflict")["detail"]
        problem(await person.http.post(PATH, json={"steps": []}), 422, "invalid")
        problem(await person.http.get(PATH, params={"cursor": "x"}), 422, "invalid")
        assert (await person.get(PATH))["items"] == []
        assert await person.upstream_calls() == []
