"""What is demanded of every page, in light and dark, wide and narrow: axe finds nothing serious, nothing has to be scrolled
sideways, nothing comes from anywhere else. `SCREENSHOTS=<folder>` keeps pictures of all of them.

axe sees each page twice, light and wide, dark and narrow: it takes seconds, and finds nothing more in the other two."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from deploy.local.stack import Stack
from tests.browser.browsing import NARROW, WIDE, accessible, fits, picture, visiting
from tests.e2e.client import connected

PAGES = {
    "models": "/models",
    "models-found": "/models?q=claude&capability=vision",
    "models-none": "/models?q=zzqx",
    "model": "/models/anthropic/claude-sonnet-4.5?providers=true",
    "listings": "/listings",
    "resources-none": "/resources",
    "resource-new": "/resources/new?model=anthropic/claude-sonnet-4.5",
    "openrouter": "/settings/openrouter",
    "executions-none": "/executions?status=queued",
    "workflows-none": "/workflows",
    "workflow-new": "/workflows/new",
    "not-found": "/nowhere",
}
"""Addresses that need no data of their own, by the name of their picture."""
AXE = (("light", WIDE), ("dark", NARROW))


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_every_page_is_fit_for_everybody(browser: Browser, console_stack: Stack, theme: str, width: int) -> None:
    async with (
        connected(console_stack, "viewer") as person,
        visiting(browser, console_stack, person.name, theme=theme, width=width) as page,
    ):
        for name, path in PAGES.items():
            await page.goto(path)
            if (theme, width) in AXE:
                await accessible(page)
            await fits(page)
            await picture(page, f"{name}-{theme}-{width}")


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_signing_in_is_fit_for_everybody(browser: Browser, console_stack: Stack, theme: str) -> None:
    for width in (WIDE, NARROW):
        async with visiting(browser, console_stack, theme=theme, width=width) as page:
            await page.goto("/sign-in")
            await accessible(page)
            await fits(page)
            await picture(page, f"sign-in-{theme}-{width}")


async def test_appearance_can_be_chosen_and_stays(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "viewer") as page:
        before = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.get_by_label("Appearance").select_option("dark")
        dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark != before
        await page.goto("/settings/openrouter")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
        await page.get_by_label("Appearance").select_option("")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == before


async def test_the_skip_link_leads_past_the_menu(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, "viewer") as page:
        await page.goto("/settings/openrouter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
