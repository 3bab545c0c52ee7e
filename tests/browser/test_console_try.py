"""Trying a resource in the browser: a buyer from the listing to the answer, a run that is stopped, left and come back to, watched
twice, pictures in and out, and inputs that are wrong."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

from playwright.async_api import Browser, Page, Route, expect

from deploy.local.stack import Stack
from deploy.sandbox.media import png
from tests.browser.browsing import NARROW, accessible, fits, picture, visiting
from tests.e2e.client import connected, upstream_frozen

LONG = "word199"
"""The last word of `sandbox/long`, which takes four seconds."""

COUNTING = """
globalThis.begun = 0;
globalThis.EventSource = class extends EventSource {
  constructor(url) { super(url); this.addEventListener("started", () => (begun += 1)); }
};
"""
"""Counts how often a run is said to begin: what Playwright shows of a request is not all that the browser sends with it."""


def someone() -> str:
    return f"buyer-{uuid4().hex[:8]}"


def address(resource: dict[str, object]) -> str:
    return f"/listings/{resource['owner']}/{resource['slug']}"


async def run_it(page: Page, text: str = "hello") -> None:
    await page.get_by_role("textbox", name="text").fill(text)
    await page.get_by_role("button", name=re.compile("^Run")).click()


async def test_a_buyer_finds_a_listing_signs_in_and_tries_it(browser: Browser, console_stack: Stack) -> None:
    name = f"Echo of {uuid4().hex[:10]}"
    async with connected(console_stack, "seller") as seller:
        resource = await seller.publish(name=name, example_output="Hello as well.")
    async with visiting(browser, console_stack, width=NARROW) as page:
        await page.goto("/listings")
        await page.get_by_label("Search listings").fill(name)
        await page.get_by_role("link", name=name).click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(name)
        await expect(page.get_by_text("Nobody but its creator has run it yet")).to_be_visible()
        await page.get_by_role("link", name="Try it").click()
        await page.wait_for_url(re.compile("/sign-in"))
        await page.get_by_label("Token").fill(console_stack.token(someone()))
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url(f"**{address(resource)}/try")
        await run_it(page, "Good morning")
        panel = page.get_by_role("region", name="Answer")
        await expect(panel).to_contain_text("Price $0.01")
        await expect(panel.locator(".run-text")).to_have_text("Good morning")
        await expect(panel).not_to_contain_text("Model")
        await expect(page.get_by_role("textbox", name="text")).to_have_value("Good morning")
        await accessible(page)
        await fits(page)
        await picture(page, "try-light-390")
        await page.goto(address(resource))
        await expect(page.get_by_text("Measured over one run")).to_be_visible()


async def test_the_creator_sees_what_it_cost(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "seller") as seller:
        resource = await seller.create(pricing={"mode": "fixed", "price_usd": "0.01"})
        async with visiting(browser, console_stack, seller.name, theme="dark") as page:
            await page.goto(f"/resources/{resource['id']}/try")
            await run_it(page)
            cost = page.locator(".run-cost")
            await expect(cost).to_contain_text("your markup")
            run = await seller.execution(page.url.partition("run=")[2])
            assert run["cost"]["price_usd"] == "0.01"
            model, markup, total = map(Decimal, re.findall(r"\$([\d.]+)", await cost.inner_text()))
            assert model == Decimal(run["cost"]["model_usd"])
            assert model + markup == total == Decimal("0.01")
            await accessible(page)
            await picture(page, "try-own-dark-1280")


async def test_a_run_is_stopped(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "seller") as seller:
        resource = await seller.publish(model="sandbox/long")
    async with visiting(browser, console_stack, someone()) as page:
        await page.goto(f"{address(resource)}/try")
        await run_it(page)
        await expect(page.locator(".run-text")).to_contain_text("word001")
        with upstream_frozen(console_stack):
            await page.get_by_role("button", name="Stop").click()
            await expect(page.locator(".run-state")).to_have_text("Stopped.")
        await expect(page.locator(".run-cost")).to_contain_text("Price $0.01")
        await expect(page.locator(".run-text")).to_contain_text("word001")
        await expect(page.locator(".run-text")).not_to_contain_text(LONG)
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()


async def test_a_run_goes_on_through_a_reload_and_in_a_second_tab(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "seller") as seller:
        resource = await seller.publish(model="sandbox/long")
    async with visiting(browser, console_stack, someone()) as page:
        await page.goto(f"{address(resource)}/try")
        await run_it(page, "a long one")
        await expect(page.locator(".run-text")).to_contain_text("word001")
        with upstream_frozen(console_stack):
            other = await page.context.new_page()
            await other.goto(page.url)
            await page.reload()
            for tab in (page, other):
                await expect(tab.locator(".run-text")).to_contain_text("word001")
        for tab in (page, other):
            await expect(tab.locator(".run-ended")).to_contain_text("Price $0.01")
        texts = [await tab.locator(".run-text").inner_text() for tab in (page, other)]
        assert texts[0] == texts[1]
        words = texts[0].split()
        assert (words[0], words[-1], len(words)) == ("word000", LONG, 200)
        await expect(page.get_by_role("textbox", name="text")).to_have_value("a long one")


async def test_what_is_stopped_in_one_tab_is_stopped_in_the_other(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "seller") as seller:
        resource = await seller.publish(model="sandbox/drip")
    async with visiting(browser, console_stack, someone()) as page:
        await page.goto(f"{address(resource)}/try")
        await run_it(page)
        await expect(page.locator(".run-text")).not_to_be_empty()
        with upstream_frozen(console_stack):
            other = await page.context.new_page()
            await other.goto(page.url)
            await expect(other.locator(".run-text")).not_to_be_empty()
            await other.get_by_role("button", name="Stop").click()
        for tab in (page, other):
            await expect(tab.locator(".run-state")).to_have_text("Stopped.")
            await expect(tab.get_by_role("button", name="Stop")).to_be_hidden()


async def test_a_run_outlives_its_tab_and_is_found_by_going_back(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "seller") as seller:
        long, fast = await asyncio.gather(seller.publish(model="sandbox/long"), seller.publish())
    async with visiting(browser, console_stack, someone()) as page:
        closed = await page.context.new_page()
        await closed.goto(f"{address(long)}/try")
        await run_it(closed)
        await expect(closed.locator(".run-text")).to_contain_text("word001")
        run = closed.url
        await closed.close()

        text, state = page.locator(".run-text"), page.locator(".run-state")
        await page.goto(f"{address(fast)}/try")
        for said in ("first", "second"):
            await run_it(page, said)
            await expect(text).to_have_text(said)
            await expect(state).to_have_text("Done.")
        await page.go_back()
        await expect(text).to_have_text("first")
        await page.go_back()
        await expect(text).to_have_count(0)
        await expect(state).to_have_text("The answer comes here, piece by piece.")
        await page.go_forward()
        await page.go_forward()
        await expect(text).to_have_text("second")

        await page.goto(run)
        await expect(state).to_have_text("Done.")
        assert len((await text.inner_text()).split()) == 200


async def test_a_stream_that_breaks_goes_on_behind_the_last_event(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "seller") as seller:
        resource = await seller.publish(model="sandbox/long")
    asked: list[str] = []

    async def first_breaks(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            await route.continue_()
            return
        begun = 'retry: 10\nid: 1\nevent: started\ndata: {"execution_id": "", "model": ""}\n\n'
        await route.fulfill(status=200, content_type="text/event-stream", body=begun)

    async with visiting(browser, console_stack, someone()) as page:
        await page.add_init_script(COUNTING)
        await page.route("**/events?*", first_breaks)
        await page.goto(f"{address(resource)}/try")
        await run_it(page)
        await expect(page.locator(".run-ended")).to_contain_text("Price $0.01")
        assert len(asked) == 2
        assert await page.evaluate("begun") == 1
        assert len((await page.locator(".run-text").inner_text()).split()) == 200


async def test_pictures_go_in_and_come_out(browser: Browser, console_stack: Stack, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png("photo"))
    async with connected(console_stack, "seller") as seller:
        fields = [{"name": "photo", "type": "image"}, {"name": "text"}]
        viewer, painter = await asyncio.gather(
            seller.publish(model="openai/gpt-4o-mini", inputs=fields),
            seller.publish(model="sandbox/image-two", config={"modalities": ["image", "text"]}),
        )
        async with visiting(browser, console_stack, someone()) as page:
            await page.goto(f"{address(viewer)}/try")
            chooser = page.get_by_label("photo", exact=True)
            await chooser.set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"not a picture"})
            await expect(page.locator("[data-field='input.photo'] .error")).not_to_be_empty()
            await chooser.set_input_files(photo)
            await expect(page.get_by_text("photo.png is ready: 256 × 256")).to_be_visible()
            await run_it(page, "What is this?")
            await expect(page.locator(".run-ended")).to_contain_text("Price $0.01")
            await page.goto(f"{address(painter)}/try")
            await run_it(page)
            await expect(page.locator(".run-ended")).to_contain_text("Price $0.01")
            pictures = page.get_by_role("region", name="Answer").get_by_role("img")
            await expect(pictures).to_have_count(2)
            for number in range(2):
                await expect(pictures.nth(number)).to_have_js_property("complete", True)
                assert await pictures.nth(number).evaluate("picture => picture.naturalWidth") > 0
            await picture(page, "try-pictures-light-1280")


async def test_wrong_inputs_are_marked_where_they_are(browser: Browser, console_stack: Stack) -> None:
    fields = [{"name": "text", "max_length": 500}, {"name": "count", "type": "number", "minimum": 2}]
    async with connected(console_stack, "seller") as seller:
        resource = await seller.publish(inputs=fields, config={"prompt_template": "{{text}} {{count}}"})
    async with visiting(browser, console_stack, someone()) as page:
        await page.goto(f"{address(resource)}/try")
        await page.get_by_label("count").evaluate("field => (field.removeAttribute('min'), field.value = '1')")
        await run_it(page)
        await expect(page.locator("[data-field='input.count'] .error")).not_to_be_empty()
        await expect(page.get_by_label("count")).to_be_focused()
        await expect(page.get_by_role("textbox", name="text")).to_have_value("hello")


async def test_somebody_elses_run_is_not_shown(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "seller") as seller:
        resource = await seller.publish()
        run = (await seller.result(str(resource["id"])))["execution_id"]
    async with visiting(browser, console_stack, someone()) as page:
        await page.goto(f"{address(resource)}/try?run={run}")
        await expect(page.get_by_role("alert")).to_contain_text("There is no run of yours")
