"""Settings: connecting a key by hand and with OpenRouter's page, its health, daily limits, and the access log."""

from __future__ import annotations

import re
from uuid import uuid4

from playwright.async_api import Browser, Page, expect

from deploy.local.stack import Stack
from tests.browser.browsing import visiting
from tests.e2e.client import connected

PATH = "/settings/openrouter"


async def open_settings(page: Page) -> None:
    await page.goto(PATH)
    await expect(page.get_by_role("heading", level=1)).to_have_text("Your OpenRouter key")


def someone() -> str:
    return f"keeper-{uuid4().hex[:8]}"


async def test_a_key_is_connected_tested_replaced_and_disconnected(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, someone()) as page:
        await open_settings(page)
        await expect(page.get_by_text("Every run spends your own OpenRouter credits")).to_be_visible()
        await expect(page.get_by_role("complementary", name="Test mode")).to_have_count(0)
        await page.get_by_label("API key").fill("sk-or-test-dead-one")
        await page.get_by_role("button", name="Connect the key").click()
        await expect(page.get_by_role("alert")).to_contain_text("OpenRouter")
        await expect(page.get_by_label("API key")).to_have_value("sk-or-test-dead-one")
        await page.get_by_label("API key").fill(f"sk-or-test-{uuid4().int}")
        await page.get_by_role("button", name="Connect the key").click()
        await expect(page.get_by_role("status").filter(has_text="Connected sk-or-test")).to_be_visible()
        await expect(page.get_by_role("complementary", name="Test mode")).to_be_visible()
        await page.get_by_role("button", name="Test it now").click()
        await expect(page.get_by_role("status").filter(has_text="OpenRouter accepts")).to_be_visible()
        await page.get_by_label("API key").fill(f"sk-or-test-limit-{uuid4().int}")
        await page.get_by_role("button", name="Replace the key").click()
        await expect(page.get_by_role("img", name=re.compile("of the limit is left"))).to_be_visible()
        log = page.get_by_role("region", name="Access log")
        await expect(log.get_by_role("row").nth(1)).to_contain_text("replaced")

        await page.get_by_role("button", name="Disconnect").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("It is erased at once")
        await dialog.get_by_role("button", name="Cancel").click()
        await expect(page.get_by_role("heading", name="Connected")).to_be_visible()
        await page.get_by_role("button", name="Disconnect").click()
        await dialog.get_by_role("button", name="Disconnect").click()
        await expect(page.get_by_role("heading", name="Connect a key")).to_be_visible()
        await expect(page.get_by_role("complementary", name="Test mode")).to_have_count(0)


async def test_openrouters_page_connects_without_a_key_to_copy(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, someone(), expected=(console_stack.sandbox_url,)) as page:
        await open_settings(page)
        await page.get_by_role("button", name="Connect at OpenRouter").click()
        await expect(page.get_by_role("heading", name="Connected")).to_be_visible()
        assert page.url == console_stack.console_url + PATH, "neither code nor state stays in the address"
        await page.goto("/openrouter/callback?code=made-up&state=made-up")
        await expect(page.get_by_role("alert")).to_contain_text("no such authorization of yours")
        await expect(page.get_by_role("heading", name="Connected")).to_be_visible()


async def test_daily_limits_are_kept_and_a_wrong_one_is_pointed_at(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "limiter") as person, visiting(browser, console_stack, person.name) as page:
        resource = await person.create(name="Limited thing")
        await open_settings(page)
        await page.get_by_label("All runs together").fill("ten")
        await page.get_by_role("button", name="Save the limits").click()
        await expect(page.get_by_label("All runs together")).to_be_focused()
        await expect(page.get_by_label("All runs together")).to_have_attribute("aria-invalid", "true")
        await page.get_by_label("All runs together").fill("$1,250.5")
        await page.get_by_text("Per resource").click()
        await page.get_by_role("textbox", name="Limited thing").fill("0.000025")
        await page.get_by_text("Per caller").click()
        await page.get_by_label("Another caller").fill("bob")
        await page.get_by_label("Their limit a day").fill("3")
        await page.get_by_role("button", name="Save the limits").click()
        await expect(page.get_by_text("The daily limits are saved.")).to_be_visible()
        await expect(page.get_by_role("textbox", name="Limited thing")).to_have_value("0.000025")
        await expect(page.get_by_role("textbox", name="bob")).to_have_value("3")
        await expect(page.get_by_text("$1,250.50", exact=True)).to_be_visible()
        kept = await person.get("/api/budgets")
        assert kept["key_daily_usd"] == "1250.5"
        assert kept["resources"] == [{"resource_id": resource["id"], "daily_usd": "0.000025"}]
        await page.get_by_role("textbox", name="bob").fill("")
        await page.get_by_role("button", name="Save the limits").click()
        await expect(page.get_by_role("textbox", name="bob")).to_have_count(0)
