"""Every error as people meet it: buyers where they try a resource and on the page of the run, creators in the editor's test. What
happened, what to do by whoever can do it, whether it is charged, and a way to go on that keeps what was typed."""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple
from uuid import uuid4

from playwright.async_api import Browser, BrowserContext, Locator, Page, expect

from contracts.errors import ErrorCode
from deploy.local.stack import Stack
from tests.browser.browsing import accessible, picture, visiting
from tests.e2e.client import KEY_PATH, Person, connected, good

NOT_MINE = "only its owner can put that right"


class Met(NamedTuple):
    """What the upstream does, the code, and what is said: to both, or to the buyer and to the creator."""

    mode: str
    code: str
    buyer: str
    creator: str
    link: str | None = None
    again: bool = False
    counts: bool = False
    ended: str = "Failed."


MET = [
    Met("status-400", "invalid", "Send less, or ask for less.", "Send less, or ask for less."),
    Met("status-401", "key_rejected", NOT_MINE, "Connect a valid one", "Go to your OpenRouter key"),
    Met("status-402", "credits_exhausted", NOT_MINE, "out of credits. Add some", "Add credits at OpenRouter"),
    Met("status-402-in-flight", "credits_exhausted", "asked for too often", "Try again in a moment, or add credits",
        "Add credits at OpenRouter", again=True, counts=True),
    Met("status-403-limit", "spend_limit", NOT_MINE, "Raise it at OpenRouter", "Put it right at OpenRouter"),
    Met("status-403-moderation", "moderated", "Change it and try again.", "Change it and try again."),
    Met("status-404", "model_unavailable", "Its owner must change them.", "Its owner must change them."),
    Met("status-429-upstream", "rate_limited", "Try again shortly.", "Try again shortly.", again=True, counts=True),
    Met("status-504", "timeout", "did not answer in time. Try again.", "did not answer in time. Try again.", again=True),
    Met("status-500", "upstream", "failed. Try again.", "failed. Try again.", again=True),
    Met("mid-stream-error", "upstream", "failed. Try again.", "failed. Try again.", again=True,
        ended="Failed in the middle of the answer."),
    Met("status-503", "unavailable", "Try again.", "Try again.", again=True),
]  # fmt: skip
REFUSED = {"key_missing", "not_found", "conflict", "unauthenticated"}
"""Met before a run exists, by what happened since the page was opened."""
WITH_BROKEN_PARTS = {"overloaded", "internal"}
"""Met in `test_console_away`, on a stack where parts may be broken."""
NOT_TO_BE_MET = {"forbidden"}
"""What is somebody else's is not found by its id, and no page offers what only administrators may do."""


def someone() -> str:
    return f"buyer-{uuid4().hex[:8]}"


def address(resource: dict[str, object]) -> str:
    return f"/listings/{resource['owner']}/{resource['slug']}/try"


async def run_it(page: Page) -> None:
    await page.get_by_role("textbox", name="text").fill("hello")
    await page.get_by_role("button", name=re.compile("^(Run|Test it)")).first.click()


async def can_go_on(page: Page, met: Met) -> None:
    """A button that runs it again with the same inputs, where that may help, and not before it can help."""
    again = page.get_by_role("button", name="Run again")
    await expect(again).to_have_count(int(met.again))
    if met.counts:
        await expect(page.get_by_text(re.compile(r"Try again in \d+ second|You can try again now"))).to_be_visible()
        await expect(page.get_by_text("You can try again now")).to_be_visible()
    if met.again:
        await expect(again).to_be_enabled()


def test_every_code_that_a_person_can_meet_is_met_here() -> None:
    met = {each.code for each in MET}
    assert met | REFUSED | WITH_BROKEN_PARTS | NOT_TO_BE_MET == set(ErrorCode)


async def test_buyers_read_what_happened_and_what_they_can_do(browser: Browser, console_stack: Stack) -> None:
    async def meets(context: BrowserContext, met: Met) -> None:
        # A key each: what rests one must not rest the others.
        async with connected(console_stack, "seller") as seller:
            resource = await seller.publish(model=f"sandbox/{met.mode}")
        page = await context.new_page()
        await page.goto(address(resource))
        await run_it(page)
        await told(page, met, met.buyer, "You are not charged.")
        await expect(page.locator(".run-state")).to_have_text(met.ended)
        await expect(page.get_by_role("alert").get_by_role("link")).to_have_count(0)
        await expect(page.get_by_role("textbox", name="text")).to_have_value("hello")
        await can_go_on(page, met)
        run = page.url.partition("run=")[2]
        if met.mode == "status-503":
            await page.get_by_role("button", name="Run again").click()
            await page.wait_for_url(lambda url: "run=" in url and run not in url)
            run = page.url.partition("run=")[2]
            await expect(page.locator(".run-state")).to_have_text(met.ended)
        await page.goto(f"/executions/{run}")
        await told(page, met, met.buyer, "You are not charged.")
        if met.mode == "status-503":
            await page.get_by_role("link", name="Run it again").click()
            await page.wait_for_url(f"**/try?run={run}")
            await expect(page.get_by_role("textbox", name="text")).to_have_value("hello")
        await page.close()

    async with visiting(browser, console_stack, someone()) as page:
        await asyncio.gather(*(meets(page.context, met) for met in MET))


async def told(page: Page, met: Met, words: str, charge: str) -> None:
    alert: Locator = page.get_by_role("alert")
    await expect(alert).to_have_attribute("data-problem-code", met.code)
    await expect(alert).to_contain_text(words)
    await expect(page.locator(".run-cost")).to_contain_text(charge)


async def test_creators_are_told_what_they_can_mend(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "maker") as maker, visiting(browser, console_stack, maker.name) as page:
        resource = await maker.create()
        await page.goto(f"/resources/{resource['id']}/edit")
        await expect(page.get_by_role("region", name="Test", exact=True)).to_contain_text("test key: nothing is spent")
        for met in {each.code: each for each in reversed(MET)}.values():
            await new_key(maker)
            model = page.locator('[name="openrouter_config.model_id"]')
            await model.evaluate("(field, mode) => (field.value = `sandbox/${mode}`)", met.mode)
            before = page.url
            await run_it(page)
            await expect(page).not_to_have_url(before)
            await expect(page.locator(".run-state")).to_have_text(met.ended)
            await told(page, met, met.creator, "Nobody is charged")
            links = page.get_by_role("alert").get_by_role("link")
            await expect(links).to_have_text([re.compile(met.link)] if met.link else [])
            await expect(page.locator('#trial [name="input.text"]')).to_have_value("hello")
            await expect(page.get_by_role("button", name="Run again")).to_have_count(int(met.again))
            if met.mode == "status-429-upstream":
                await picture(page, "problem-editor-light-1280")
        await accessible(page)


async def new_key(person: Person) -> None:
    """Nothing that was said of the former key concerns this one."""
    good(await person.http.put(KEY_PATH, json={"api_key": f"sk-or-test-{uuid4().int}"}))


async def test_what_changed_since_the_page_was_opened_is_said(browser: Browser, console_stack: Stack) -> None:
    async def refused(page: Page, code: str, words: str) -> None:
        await run_it(page)
        alert = page.get_by_role("alert")
        await expect(alert).to_have_attribute("data-problem-code", code)
        await expect(alert).to_contain_text(words)
        await expect(page.get_by_role("textbox", name="text")).to_have_value("hello")
        assert "run=" not in page.url

    async with (
        connected(console_stack, "seller") as seller,
        visiting(browser, console_stack, someone()) as buyer,
        visiting(browser, console_stack, seller.name) as creator,
    ):
        resource = await seller.publish()
        path = f"/api/resources/{resource['id']}"
        await buyer.goto(address(resource))
        await creator.goto(f"/resources/{resource['id']}/try")
        good(await seller.http.patch(path, json={"pricing": {"mode": "fixed", "price_usd": "0.02"}}))
        await refused(buyer, "conflict", "more than the 0.01 USD that you agreed to")
        await expect(buyer.get_by_role("alert")).to_contain_text("Nothing ran, and nothing is charged.")
        await expect(buyer.get_by_role("link", name="Load the page again")).to_be_visible()
        good(await seller.http.delete(KEY_PATH))
        await buyer.reload()
        await refused(buyer, "key_missing", NOT_MINE)
        await expect(buyer.get_by_role("alert").get_by_role("link")).to_have_count(0)
        await refused(creator, "key_missing", "connect an OpenRouter key first")
        await expect(creator.get_by_role("link", name="Go to your OpenRouter key")).to_be_visible()
        good(await seller.http.post(f"{path}/pause"))
        await refused(buyer, "not_found", "There is no such listing")
        await buyer.context.clear_cookies()
        await refused(buyer, "unauthenticated", "what you typed stays here")
