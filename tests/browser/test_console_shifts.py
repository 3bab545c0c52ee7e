"""Nothing jumps on pages of resources and runs, while they load and while an answer comes. `test_console_looks` sees the others."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from deploy.local.stack import Stack
from tests.browser.browsing import NARROW, WIDE, still, visiting, watch_shifts
from tests.e2e.client import connected


async def ended(page: Page) -> None:
    await expect(page.locator(".run-cost")).to_contain_text("total")
    await still(page)


@pytest.mark.parametrize("width", [WIDE, NARROW])
async def test_nothing_jumps(browser: Browser, console_stack: Stack, width: int) -> None:
    async with (
        connected(console_stack, "still") as person,
        visiting(browser, console_stack, person.name, width=width) as page,
    ):
        resource = await person.publish(model="sandbox/reasoning")
        own = f"/resources/{resource['id']}"
        await watch_shifts(page)
        for path in (own, f"{own}/edit", f"/listings/{person.name}/{resource['slug']}", f"{own}/try"):
            await page.goto(path)
            await still(page)
        await page.get_by_role("textbox", name="text").fill("hello")
        await page.get_by_role("button", name="Run").click()
        await ended(page)
        run = page.url.partition("run=")[2]
        await page.reload()
        await ended(page)
        await page.goto(f"/executions/{run}")
        await ended(page)


async def test_what_jumps_is_seen(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack) as page:
        await watch_shifts(page)
        await page.goto("/listings")
        await still(page)
        await page.evaluate("document.getElementById('main').prepend(document.getElementById('main').cloneNode(true))")
        with pytest.raises(AssertionError, match="jumps"):
            await still(page)
