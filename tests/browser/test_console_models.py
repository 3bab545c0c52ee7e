"""The models: searching while typing, filters with counts, a list that goes on, and one model in full."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from playwright.async_api import Browser, Page, Route, expect

from deploy.local.stack import Stack
from tests.browser.browsing import NARROW, fits, visiting
from tests.e2e.client import signed_in
from tests.stack import shared_data


async def names(page: Page) -> list[str]:
    return await page.locator(".model h3 a").all_inner_texts()


async def total(page: Page) -> int:
    return int(await page.locator(".results-head strong").inner_text())


async def test_typing_searches_and_forgives(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher") as page:
        everything = await total(page)
        assert everything >= 400
        await page.get_by_label("Search models").press_sequentially("antropic claude")
        await expect(page).to_have_url(re.compile(r"\?q=antropic\+claude&sort=popular$"))
        await expect(page.locator(".model h3 a").first).to_contain_text("Claude")
        await expect(page.locator(".results-head strong")).not_to_have_text(str(everything))
        assert await total(page) < everything / 4
        await expect(page.get_by_label("Search models")).to_be_focused()
        await page.reload()
        await expect(page.get_by_label("Search models")).to_have_value("antropic claude")
        await expect(page.locator(".model h3 a").first).to_contain_text("Claude")
        await page.get_by_label("Search models").fill("no model is called this zzqx")
        await expect(page.get_by_text("No model fits")).to_be_visible()
        await page.get_by_role("link", name="Show all models").click()
        await expect(page.locator(".results-head strong")).to_have_text(str(everything))


async def test_what_is_recommended_comes_first_with_its_reason(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher") as page:
        await expect(page.get_by_role("heading", name="Recommended")).to_be_visible()
        first = page.locator(".model").first
        await expect(first.locator(".badge").first).to_have_text("recommended")
        await expect(first.locator(".about.reason")).not_to_be_empty()
        await page.get_by_label("Search models").fill("llama")
        await expect(page.get_by_role("heading", name="Recommended")).to_have_count(0)


async def test_a_filter_finds_as_many_as_it_says(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher") as page:
        chip = page.locator("label.chip", has=page.locator("#capability-vision"))
        promised = int(await chip.locator(".count").inner_text())
        await chip.click()
        await expect(page.locator(".results-head strong")).to_have_text(str(promised))
        await expect(page.locator("#capability-vision")).to_be_focused()
        reasoning = page.locator("label.chip", has=page.locator("#output_modality-image"))
        promised = int(await reasoning.locator(".count").inner_text())
        await reasoning.click()
        await expect(page.locator(".results-head strong")).to_have_text(str(promised))
        await page.keyboard.press("ArrowRight")
        await expect(page).to_have_url(re.compile("capability=vision"))
        await page.get_by_role("link", name="Clear the filters").click()
        await expect(page.locator("#capability-any")).to_be_checked()


async def test_the_list_goes_on_to_its_end_with_each_model_once(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher") as page:
        await page.get_by_label("Order").select_option("newest")
        await expect(page).to_have_url(re.compile("sort=newest"))
        expected = await total(page)
        while await page.locator("[data-more]").count():
            shown = await page.locator(".model").count()
            # The mark at the end is replaced whenever more has come.
            await page.evaluate("document.querySelector('[data-more]')?.scrollIntoView()")
            await page.wait_for_function("shown => document.querySelectorAll('.model').length > shown", arg=shown)
        addresses = await page.locator(".model h3 a").evaluate_all("links => links.map(link => link.href)")
        assert len(addresses) == len(set(addresses)) == expected


async def test_one_model_shows_prices_tiers_and_history(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher") as page, signed_in(console_stack, "asker") as asker:
        items = (await asker.get("/api/models", limit=200))["items"]
        tiered = next(
            item
            for item in items
            if item["price_kind"] == "tiered"
            and item["executable"]
            and item["pricing"]["overrides"][0].get("min_prompt_tokens")
        )
        await page.get_by_label("Search models").fill(tiered["id"])
        await page.locator(".model h3 a", has_text=tiered["name"]).first.click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(tiered["name"])
        rows = page.get_by_role("region", name="Prices by condition").get_by_role("row")
        await expect(rows).to_have_count(2 + len(tiered["pricing"]["overrides"]))
        await expect(rows.nth(2)).to_contain_text("the prompt has more than")
        await expect(page.get_by_role("img", name=re.compile("The price has not changed since"))).to_be_visible()
        link = page.get_by_role("link", name="Create resource with this model")
        assert (await link.get_attribute("href") or "").startswith("/resources/new?model=")
        await page.go_back()
        await expect(page.get_by_label("Search models")).to_have_value(tiered["id"])


async def test_a_price_that_changed_is_drawn_and_told(
    browser: Browser, console_stack: Stack, console_catalog: Path
) -> None:
    model_id = "nousresearch/hermes-4-405b"
    async with signed_in(console_stack, "root", admin=True) as admin:
        for changed in ({"prompt": "0.000009"}, {"prompt": "0", "completion": "0"}, {"input_cache_read": "0.0000001"}):
            reprice(console_catalog, model_id, changed)
            assert (await admin.post("/api/catalog/sync"))["repriced"] == [model_id]
    async with visiting(browser, console_stack, "searcher") as page:
        await page.goto(f"/models/{model_id}")
        chart = page.get_by_role(
            "img", name=re.compile(r"changed 3 times since .*: in from \$1.00 to \$1.00, out from \$3.00 to \$3.00")
        )
        await expect(chart).to_be_visible()
        # What nobody knows is a gap.
        assert await chart.locator("polyline.one").count() == await chart.locator("polyline.two").count() == 2
        await expect(chart.locator(".tick")).to_have_count(3)
        rows = page.get_by_role("region", name="Figures of the price history").locator("tbody tr")
        assert [re.split(r"\s*\t\s*", row)[1:] for row in await rows.all_inner_texts()] == [
            ["$1.00", "$3.00", "read from the cache"],
            ["not stated", "not stated", ""],
            ["$9.00", "$3.00", ""],
            ["$1.00", "$3.00", ""],
        ]


def reprice(catalog: Path, model_id: str, changed: dict[str, str]) -> None:
    """Gives one model another price in the list that the sandbox serves; what is not named is as it was recorded."""
    document = json.loads((shared_data() / "openrouter-models.json").read_bytes())
    model = next(model for model in document["data"] if model["id"] == model_id)
    model["pricing"] |= changed
    draft = catalog.with_suffix(".new")
    draft.write_text(json.dumps(document))
    draft.replace(catalog)


async def test_providers_come_when_the_page_is_there_and_move_nothing(browser: Browser, console_stack: Stack) -> None:
    path = "/models/qwen/qwen3.7-flash"
    async with (
        visiting(browser, console_stack, "searcher", width=NARROW) as page,
        signed_in(console_stack, "a") as asker,
    ):
        going = asyncio.Event()

        async def hold(route: Route) -> None:
            await going.wait()
            await route.continue_()

        await page.route("**/*providers=true", hold)
        await page.goto(path)
        await page.evaluate(
            "window.shifts = []; new PerformanceObserver(list => window.shifts.push(...list.getEntries()))"
            ".observe({type: 'layout-shift', buffered: true})"
        )
        place = page.locator("#providers")
        await expect(place).to_have_attribute("aria-busy", "true")
        await expect(page.get_by_role("heading", name="Price history")).to_be_visible()
        await place.scroll_into_view_if_needed()
        going.set()
        names = place.get_by_role("rowheader").locator("strong")
        said = await asker.get(f"/api{path}/providers")
        await expect(names).to_have_text([item["name"] for item in said["items"]])
        assert await page.evaluate("window.shifts.map(shift => shift.value)") == []
        cheapest = place.get_by_role("row").filter(has=page.get_by_text("cheapest", exact=True))
        await expect(cheapest).to_contain_text([said["items"][0]["name"]])
        unwell = place.get_by_role("row").filter(has=page.get_by_text("unwell", exact=True))
        await expect(unwell).to_contain_text([said["items"][-1]["name"]])
        await expect(place.get_by_text("25% off")).to_have_count(1)
        await fits(page)


async def test_providers_that_cannot_be_had_can_be_asked_for_again(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher", expected=("Failed to load resource: net::",)) as page:
        place = page.locator("#providers")
        again, problem = place.get_by_role("link", name="Try again"), place.get_by_role("alert")
        await page.goto("/models/sandbox/status-503")
        await expect(problem).to_contain_text("OpenRouter does not say at the moment who serves this model")
        await page.route("**/*providers=true", lambda route: route.abort())
        await again.click()
        await expect(problem).to_contain_text("The console cannot be reached")
        await expect(again).to_be_focused()
        await page.goto("/models/openrouter/auto")
        await expect(problem).to_be_visible()
        # A link to follow where there is no script.
        assert await again.get_attribute("href") == "?providers=true"
        await page.unroute("**/*providers=true")
        await again.press("Enter")
        await expect(place).to_contain_text("OpenRouter names none: it chooses a model for every call")
        await expect(place).to_be_focused()
        await page.route(
            "**/*providers=true", lambda r: r.continue_() if r.request.is_navigation_request() else r.abort()
        )
        await page.goto("/models/~google/gemini-flash-latest?providers=true")
        await expect(place).to_contain_text("which this name points to today")
        await expect(place.get_by_role("table")).to_be_visible()


async def test_a_model_that_is_not_there_says_so(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher") as page:
        await page.goto("/models/nobody/nothing")
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.get_by_role("link", name="To the start").click()
        await page.wait_for_url("**/models")


async def test_by_keyboard_and_on_a_narrow_screen(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "searcher", width=NARROW) as page:
        menu, models = page.get_by_role("button", name="Menu"), page.get_by_role("link", name="Settings")
        await expect(models).to_be_hidden()
        await menu.press("Enter")
        await expect(menu).to_have_attribute("aria-expanded", "true")
        await expect(models).to_be_visible()
        await page.get_by_text("Filters", exact=True).click()
        await page.locator("label.chip", has=page.locator("#capability-tools")).click()
        await expect(page).to_have_url(re.compile("capability=tools"))
        await expect(page.locator("#capability-tools")).to_be_visible()
