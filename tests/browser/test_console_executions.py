"""Executions and workflows: lists with filters, a run that goes on live and is stopped, receipts for creators and prices for buyers,
a workflow that is followed, fails and is resumed."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.async_api import Browser, Page, expect

from deploy.local.stack import Stack
from tests.browser.browsing import picture, visiting
from tests.e2e.client import connected, good, signed_in, upstream_frozen

STATE = re.compile("^(done|failed|stopped|running|waiting)$")


async def open_run(page: Page, execution_id: str) -> None:
    await page.goto(f"/executions/{execution_id}")
    await expect(page.get_by_role("heading", name="How it went")).to_be_visible()


def step(name: str, resource: str, text: str) -> dict[str, Any]:
    return {"name": name, "resource": resource, "input": {"text": text}}


async def test_runs_are_listed_for_who_made_them_and_for_whose_they_are(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "creator") as creator, signed_in(console_stack, "buyer") as buyer:
        echo = await creator.publish(name="Parrot")
        broken = await creator.publish(name="Broken thing", model="sandbox/status-400")
        await creator.result(echo["id"])
        paid = await buyer.result(echo["id"])
        await buyer.execute(broken["id"])
        rows = ".rows li"
        async with visiting(browser, console_stack, buyer.name) as page:
            await page.goto("/executions")
            await expect(page.locator(rows)).to_have_count(2)
            await expect(page.locator(rows).first).to_contain_text("Broken thing")
            await expect(page.locator(rows).last).to_contain_text("$0.01")
            await page.get_by_label("State").select_option("failed")
            await expect(page.locator(rows)).to_have_count(1)
            await expect(page).to_have_url(re.compile("status=failed"))
            await page.get_by_label("State").select_option("")
            await page.get_by_label("Resource", exact=True).select_option("Parrot")
            await expect(page.locator(rows)).to_have_text([re.compile("Parrot")])
            await page.get_by_role("link", name="Parrot").click()
            await expect(page.get_by_role("heading", level=1)).to_have_text("Run of Parrot")
            await expect(page.locator("[data-run-output]")).to_have_text("hello")
            await expect(page.locator("#facts")).to_contain_text("$0.01")
            await expect(page.get_by_role("heading", name="Receipt")).to_have_count(0)
            assert "markup" not in await page.locator("#main").inner_text()
            await page.go_back()
            await page.get_by_label("Runs of my resources").check()
            await expect(page.get_by_text("No such run")).to_be_visible()

        async with visiting(browser, console_stack, creator.name) as page:
            await page.goto("/executions?role=owner")
            await expect(page.locator(rows)).to_have_count(3)
            await picture(page, "executions-light-wide")
            await open_run(page, paid["execution_id"])
            await expect(page.get_by_text("theirs alone")).to_be_visible()
            await expect(page.locator("[data-run-panel]")).to_have_count(0)
            await expect(page.get_by_role("region", name="Receipt")).to_contain_text("Your markup")
            await expect(page.get_by_role("region", name="Receipt")).to_contain_text("revision 1")
            await expect(page.get_by_role("region", name="List of attempts").get_by_role("row")).to_have_count(2)
            await expect(page.get_by_role("img", name=re.compile("In the queue .*Writing"))).to_be_visible()
            assert "hello" not in await page.locator("#main").inner_text()


async def test_a_list_of_runs_goes_on(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "busy") as person, visiting(browser, console_stack, person.name) as page:
        fast = await person.create(name="Quick", model="sandbox/fast-1")
        for _ in range(32):
            await person.result(fast["id"])
        await page.goto("/executions?role=owner")
        await page.locator(".rows li").last.scroll_into_view_if_needed()
        await expect(page.locator(".rows li")).to_have_count(32)


async def test_a_run_goes_on_live_survives_a_reload_and_is_stopped(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "watcher") as person, visiting(browser, console_stack, person.name) as page:
        drip = await person.create(name="Dripping", model="sandbox/drip")
        run = await person.enqueue(drip["id"])
        await open_run(page, run)
        await expect(page.locator(".run-text")).not_to_be_empty()
        with upstream_frozen(console_stack):
            await page.reload()
            await expect(page.locator(".run-text")).not_to_be_empty()
            await expect(page.get_by_role("region", name="How it went")).to_contain_text(re.compile("waiting|running"))
            await page.get_by_role("button", name="Stop").click()
            dialog = page.get_by_role("dialog")
            await expect(dialog).to_contain_text("With a test key nothing is spent.")
            await dialog.get_by_role("button", name="Cancel").click()
            assert (await person.execution(run))["status"] == "running"
            await page.get_by_role("button", name="Stop").click()
            await dialog.get_by_role("button", name="Stop it").click()
        await expect(page.locator("[data-run-ended]")).to_contain_text("Stopped")
        await expect(page.get_by_role("region", name="How it went")).to_contain_text("stopped")
        await expect(page.get_by_role("region", name="Receipt")).to_contain_text("revision 2")
        changed = page.get_by_role("list", name="What changed on the receipt")
        await expect(changed).to_have_text(re.compile(r"Cost looked up just now: was not known yet, is \$0\.0\d+\."))
        assert (await person.execution(run))["status"] == "canceled"
        await picture(page, "execution-stopped-light-wide")


async def test_creators_stop_what_others_run(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "owner") as creator, signed_in(console_stack, "guest") as guest:
        drip = await creator.publish(name="Dripping", model="sandbox/drip")
        run = await guest.enqueue(drip["id"])
        async with visiting(browser, console_stack, creator.name) as page:
            with upstream_frozen(console_stack):
                await open_run(page, run)
                await page.get_by_role("button", name="Stop the run").click()
                await page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
            await expect(page.get_by_role("region", name="How it went")).to_contain_text("stopped")
        assert (await guest.ended(run))["status"] == "canceled"


async def test_a_failed_run_says_what_to_do(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "unlucky") as person, visiting(browser, console_stack, person.name) as page:
        poor = await person.create(name="Out of credits", model="sandbox/status-402")
        refused = (await person.execute(poor["id"])).json()
        await open_run(page, refused["execution_id"])
        alert = page.locator("[data-run-ended]").get_by_role("alert")
        await expect(alert).to_have_attribute("data-problem-code", "credits_exhausted")
        await expect(alert.get_by_role("link", name=re.compile("Add credits"))).to_be_visible()
        await expect(page.get_by_role("region", name="List of attempts")).to_contain_text("credits exhausted (402)")
        await expect(page.get_by_role("link", name="Run it again")).to_have_attribute(
            "href", f"/resources/{poor['id']}/try?run={refused['execution_id']}"
        )


async def test_a_workflow_is_started_followed_and_stopped(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "weaver") as person, visiting(browser, console_stack, person.name) as page:
        long = await person.publish(name="Talker", model="sandbox/long")
        drip = await person.publish(name="Dripping", model="sandbox/drip")
        await page.goto("/workflows")
        await page.get_by_role("link", name="Start a workflow").first.click()
        field = page.get_by_label("Steps, as JSON")
        await expect(field).to_have_value(re.compile(r"steps\.draft\.text"))
        await field.fill('{"steps": [')
        await page.get_by_role("button", name="Start it").click()
        await expect(page.locator("#definition-error")).to_contain_text("line 1")
        await expect(field).to_have_value('{"steps": [')
        steps = [step("draft", long["id"], "rain"), step("answer", "no/where", "{{steps.draft.text}}")]
        await field.fill(json.dumps({"steps": steps}))
        await page.get_by_role("button", name="Start it").click()
        await expect(page.get_by_role("alert")).to_contain_text("The step `answer`: There is no such resource")
        steps[1] = step("answer", f"{person.name}/{drip['slug']}", "{{steps.draft.text}}")
        await field.fill(json.dumps({"steps": steps}))
        draft, answer = page.get_by_role("listitem", name="draft"), page.get_by_role("listitem", name="answer")
        live = draft.locator("[data-run-live] .run-text")
        with upstream_frozen(console_stack):
            await page.get_by_role("button", name="Start it").click()
            await expect(draft.get_by_text(STATE).first).to_have_text("running")
        for _ in range(2):
            await expect(live).not_to_be_empty()
            before = await live.inner_text()
            await expect(live).not_to_have_text(before)
            with upstream_frozen(console_stack):
                await picture(page, "workflow-running-light-wide")
                await page.reload()
                await expect(live).not_to_be_empty()
        await expect(draft.get_by_text(STATE).first).to_have_text("done")
        # Who has read along reads on: nothing folds away at the end.
        await expect(draft.locator("details .run-text")).to_be_visible()
        await expect(answer.get_by_text(STATE).first).to_have_text("running")
        await expect(answer.locator("[data-run-live] .run-text")).not_to_be_empty()
        with upstream_frozen(console_stack):
            await page.get_by_role("button", name="Stop the workflow").click()
            await page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
        await expect(answer.get_by_text(STATE).first).to_have_text("stopped")
        await expect(page.get_by_role("button", name="Resume")).to_be_visible()
        await page.goto("/workflows?status=canceled")
        await expect(page.locator(".rows li")).to_have_text([re.compile("draft, answer.*1 of 2", re.DOTALL)])


async def test_a_workflow_fails_and_is_resumed(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "mender") as person, visiting(browser, console_stack, person.name) as page:
        echo = await person.publish(name="Parrot")
        bad = await person.publish(name="Second parrot", model="sandbox/status-400")
        steps = [
            step("draft", echo["id"], "autumn"),
            step("edit", bad["id"], "Edit: {{steps.draft.text}}"),
            step("print", echo["id"], "{{steps.edit.text}}!"),
        ]
        begun = await person.http.post("/api/workflows", json={"steps": steps})
        assert begun.status_code == 202, begun.text
        path = f"/workflows/{begun.json()['workflow_id']}"
        await page.goto(path)
        edit, last = page.get_by_role("listitem", name="edit"), page.get_by_role("listitem", name="print")
        await expect(edit.get_by_text(STATE).first).to_have_text("failed")
        await expect(edit.get_by_role("alert")).to_contain_text("too long")
        await expect(last).to_contain_text("skipped")

        config = {"model_id": "sandbox/echo", "prompt_template": "{{text}}", "max_tokens": 2000}
        good(await person.http.patch(f"/api/resources/{bad['id']}", json={"openrouter_config": config}))
        await page.get_by_role("button", name="Resume").click()
        await page.get_by_role("dialog").get_by_role("button", name="Resume").click()
        await expect(last.locator(".run-text")).to_have_text("Edit: autumn!")
        await expect(page.get_by_text("3 of 3 done")).to_be_visible()
        await expect(edit.get_by_role("link")).to_have_text(["Second parrot", "Run 1", "Run 2"])
        await expect(page.get_by_role("region", name="The whole")).to_contain_text("$0.03")
        await picture(page, "workflow-light-wide")
        await edit.get_by_role("link", name="Run 2").click()
        await expect(page.locator("[data-run-output]")).to_have_text("Edit: autumn")
