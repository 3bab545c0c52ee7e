"""When a part is away: the gateway behind the console, or the console itself. What is on the screen stays, what was typed stays, what
goes on goes on, and everything comes back by itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from deploy.local.stack import DATABASE, Stack
from tests.browser.browsing import accessible, picture, visiting
from tests.conftest import StackFactory
from tests.e2e.client import LONG, Person, connected, signed_in, upstream_frozen
from tests.stack import shared_data
from tests.waiting import until

AWAY = ("Failed to load resource",)
"""What the browser itself says of requests that nobody answers."""
MODELS = "/models?q=gpt&sort=price"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_stack(stack_factory: StackFactory) -> AsyncIterator[Stack]:
    """A stack of these tests alone."""
    sandbox = {
        "SANDBOX_CATALOG": str(shared_data() / "openrouter-models.json"),
        "SANDBOX_FIRST_TOKEN_MS": "20",
        "SANDBOX_TOKENS_PER_S": "1000",
    }
    executor = {"RUNNING_PER_KEY": "2", "SLOT_WAIT_S": "0.2"}
    async with stack_factory(settings={"sandbox": sandbox, "executor": executor}) as running:
        yield running


@pytest_asyncio.fixture
async def mortal(own_stack: Stack) -> AsyncIterator[Stack]:
    """The stack with all parts running, also after a test that failed while one was away."""
    yield own_stack
    for part in own_stack.parts.values():
        if not part.child.running:
            await part.start()


async def running_long(page: Page, resource: dict[str, object]) -> None:
    """A run of `sandbox/long` that has begun to answer."""
    await page.goto(f"/resources/{resource['id']}/try")
    await page.get_by_role("textbox", name="text").fill("a long one")
    await page.get_by_role("button", name="Run").click()
    await expect(page.locator(".run-text")).to_contain_text("word001")


async def whole(page: Page) -> None:
    """The run has gone on to its end, and nothing of it was lost or came twice."""
    await expect(page.locator(".run-state")).to_have_text("Done.")
    assert (await page.locator(".run-text").inner_text()).split() == LONG.split()
    await expect(page.get_by_role("textbox", name="text")).to_have_value("a long one")


async def test_pages_say_that_the_service_is_away_and_come_back_by_themselves(browser: Browser, mortal: Stack) -> None:
    gateway = mortal.parts["gateway"]
    async with signed_in(mortal, "visitor") as person, visiting(browser, mortal, person.name, expected=AWAY) as page:
        await gateway.stop()
        await page.goto(MODELS)
        await expect(page.get_by_role("heading", level=1)).to_have_text("The service cannot be reached")
        await expect(page.get_by_role("link", name="Try again")).to_have_attribute("href", MODELS)
        status = page.get_by_role("status").filter(has_text="comes back by itself")
        await expect(status).to_contain_text(re.compile(r"Next try in \d+ s"))
        assert await status.locator("[aria-hidden]").inner_text() != "", "the seconds are not read out"
        await accessible(page)
        await picture(page, "away-light-1280")
        cookie = "; ".join(f"{each['name']}={each['value']}" for each in await page.context.cookies())
        async with httpx.AsyncClient(base_url=mortal.console_url, headers={"Cookie": cookie}) as client:
            plain = await client.get(MODELS)
        assert plain.status_code == 503
        assert "Try again</a>" in plain.text
        assert "by itself" not in plain.text, "without the script it does not"

        loads: list[str] = []
        page.on("load", lambda loaded: loads.append(loaded.url))
        await gateway.start()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Models")
        await expect(page.get_by_label("Search models")).to_have_value("gpt")
        assert page.url.endswith(MODELS)
        assert len(loads) == 1, "it is not shown again and again meanwhile"


async def test_what_was_typed_or_listed_stays_while_the_service_is_away(browser: Browser, mortal: Stack) -> None:
    gateway = mortal.parts["gateway"]
    async with (
        signed_in(mortal, "writer") as person,
        visiting(browser, mortal, person.name, expected=AWAY) as form,
        visiting(browser, mortal, expected=AWAY) as door,
    ):
        listed, searched = await form.context.new_page(), await form.context.new_page()
        await asyncio.gather(
            form.goto("/settings/openrouter"), door.goto("/sign-in"), listed.goto("/models"), searched.goto("/models")
        )
        cards = listed.locator(".grid > li")
        first = await cards.count()
        token = mortal.token("writer")
        await gateway.kill()

        await form.get_by_label("All runs together").fill("12.50")
        await form.get_by_role("button", name="Save the limits").click()
        await expect(form.get_by_role("alert")).to_contain_text("Nothing is lost: try again in a moment")
        await expect(form.get_by_label("All runs together")).to_have_value("12.50")
        await door.get_by_label("Token").fill(token)
        await door.get_by_role("button", name="Sign in").click()
        await expect(door.get_by_role("alert")).to_contain_text("The service cannot be reached")
        await expect(door.get_by_label("Token")).to_have_value(token)
        await listed.get_by_role("link", name="Show more").scroll_into_view_if_needed()
        await expect(listed.get_by_text("The rest of the list could not be loaded")).to_be_visible()
        await expect(cards).to_have_count(first)
        await searched.get_by_label("Search models").fill("claude")
        await expect(searched.get_by_role("alert")).to_have_count(1)
        await expect(searched.locator(".grid > li")).to_have_count(first)

        await gateway.start()
        await expect(searched.get_by_role("alert")).to_have_count(0)
        await expect(searched.locator(".grid > li").first).to_contain_text("Claude")
        await expect(listed.get_by_text("The rest of the list could not be loaded")).to_have_count(0)
        assert await cards.count() > first
        await form.get_by_role("button", name="Save the limits").click()
        await expect(form.get_by_role("alert")).to_have_count(0)
        await door.get_by_role("button", name="Sign in").click()
        await door.wait_for_url("**/models")


async def long_workflow(person: Person, resource: dict[str, object]) -> str:
    """The address of a workflow of one long step."""
    step = {"name": "draft", "resource": resource["id"], "input": {"text": "rain"}}
    begun = await person.http.post("/api/workflows", json={"steps": [step]})
    return f"/workflows/{begun.json()['workflow_id']}"


async def test_what_runs_goes_on_where_it_was_when_the_service_is_back(browser: Browser, mortal: Stack) -> None:
    gateway = mortal.parts["gateway"]
    async with connected(mortal, "runner") as person:
        resource = await person.publish(model="sandbox/long")
        async with visiting(browser, mortal, person.name, expected=AWAY) as page:
            other = await page.context.new_page()
            await running_long(page, resource)
            with upstream_frozen(mortal):
                await other.goto(await long_workflow(person, resource))
                await expect(other.get_by_role("listitem", name="draft")).to_contain_text("running")
                await gateway.kill()
                state = page.locator(".run-state")
                await expect(state).to_contain_text("The connection is lost, and the run goes on")
                await expect(other.get_by_text("The connection is lost, and the workflow goes on")).to_be_visible()
                await expect(page.locator(".run-text")).to_contain_text("word001")
                await picture(page, "run-away-light-1280")
                await page.get_by_role("button", name="Stop").click()
                await expect(page.get_by_text("It was not stopped")).to_be_visible()
            await gateway.start()
            await whole(page)
            await expect(other.get_by_role("listitem", name="draft")).to_contain_text("done")
            await expect(other.get_by_text("The connection is lost")).to_have_count(0)
        assert len(await person.upstream_calls()) == 2


async def test_an_open_page_outlives_its_console(browser: Browser, mortal: Stack) -> None:
    console = mortal.parts["console"]
    async with connected(mortal, "keeper") as person:
        resource = await person.publish(model="sandbox/long")
        async with visiting(browser, mortal, person.name, expected=AWAY) as page:
            form = await page.context.new_page()
            await form.goto("/settings/openrouter")
            await form.get_by_label("All runs together").fill("7.25")
            await running_long(page, resource)
            with upstream_frozen(mortal):
                await console.kill()
                await expect(page.locator(".run-state")).to_contain_text("The connection is lost, and the run goes on")
            await form.get_by_role("button", name="Save the limits").click()
            await expect(form.get_by_role("alert")).to_contain_text("The console cannot be reached")
            await expect(form.get_by_label("All runs together")).to_have_value("7.25")
            await console.start()
            await whole(page)
            await form.get_by_role("button", name="Save the limits").click()
            await expect(form.get_by_role("alert")).to_have_count(0)


async def test_a_run_whose_executor_died_is_said_to_be_interrupted(browser: Browser, mortal: Stack) -> None:
    executor = mortal.parts["executor"]
    async with connected(mortal, "unlucky") as person:
        resource = await person.publish(model="sandbox/long")
        async with visiting(browser, mortal, person.name, expected=AWAY) as page:
            await running_long(page, resource)
            with upstream_frozen(mortal):
                await executor.kill()
            database = await asyncpg.connect(mortal.postgres.dsn(DATABASE))
            # As if the fifteen seconds of its lease had passed.
            await database.execute("UPDATE executor.executions SET lease_until = now() WHERE status = 'running'")
            await database.close()
            await executor.start()
            await expect(page.locator(".run-state")).to_have_text("Interrupted on our side.")
            await expect(page.locator(".run-ended").get_by_role("alert")).to_contain_text("Try again")
            await expect(page.locator(".run-cost")).to_contain_text("Nobody is charged")
            await expect(page.locator(".run-text")).to_contain_text("word001")
            await accessible(page)
            await picture(page, "run-interrupted-light-1280")
            await page.get_by_role("button", name="Run again").click()
            await whole(page)


async def test_what_is_full_or_broken_behind_the_service_is_said(browser: Browser, mortal: Stack) -> None:
    async with connected(mortal, "crowded") as person:
        drip, resource = await person.publish(model="sandbox/drip"), await person.publish()

        async def all_slots_are_taken() -> bool:
            return len(await person.upstream_calls()) == 2

        async with visiting(browser, mortal, person.name, expected=AWAY) as page:
            await page.goto(f"/resources/{resource['id']}/try")
            await page.get_by_role("textbox", name="text").fill("hello")
            run, alert = page.get_by_role("button", name="Run"), page.get_by_role("alert")
            others = [asyncio.create_task(person.execute(drip["id"])) for _ in range(2)]
            await until(all_slots_are_taken)
            await run.click()
            await expect(alert).to_have_attribute("data-problem-code", "overloaded")
            await expect(alert).to_contain_text("Nothing ran, and nothing is charged.")
            await expect(alert).to_contain_text(re.compile(r"Try again in \d+ second"))
            await expect(alert).to_contain_text("You can try again now.")
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)

            database = await asyncpg.connect(mortal.postgres.dsn(DATABASE))
            await database.execute("ALTER TABLE catalog.x402_resources RENAME TO gone")
            await run.click()
            await expect(alert).to_have_attribute("data-problem-code", "internal")
            await expect(alert).to_contain_text(re.compile("try again, and if it lasts, report it as [0-9a-f]{12}"))
            await database.execute("ALTER TABLE catalog.gone RENAME TO x402_resources")
            await database.close()
            await run.click()
            await expect(page.locator(".run-state")).to_have_text("Done.")
            await expect(page.get_by_role("textbox", name="text")).to_have_value("hello")
