"""What is demanded of every page, in light and dark, wide and narrow: axe finds nothing serious, nothing has to be scrolled
sideways, nothing jumps, nothing comes from anywhere else. `SCREENSHOTS=<folder>` keeps pictures of all of them in all four forms.

axe sees each page twice, light and wide, dark and narrow: it takes seconds, and finds nothing more in the other two."""

from __future__ import annotations

from typing import Literal

import pytest
from playwright.async_api import Browser, Page

from deploy.local.stack import Stack
from tests.browser.browsing import NARROW, WIDE, accessible, fits, picture, pictured, still, visiting, watch_shifts
from tests.browser.furnished import Account
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
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
FORMS = (("light", WIDE), ("dark", NARROW))
NARROWEST = 320


async def looked_at(page: Page, paths: dict[str, str], theme: Theme, width: int) -> None:
    """axe, the width and the stillness of each page in one form, then its pictures in both colours."""
    await watch_shifts(page)
    for name, path in paths.items():
        await page.emulate_media(color_scheme=theme)
        await page.goto(path)
        await still(page)
        await accessible(page)
        await fits(page)
        if width == NARROW:
            await page.set_viewport_size({"width": NARROWEST, "height": 900})
            await fits(page)
            await page.set_viewport_size({"width": NARROW, "height": 900})
        if pictured():
            await page.wait_for_load_state("networkidle")
            for each in THEMES:
                await page.emulate_media(color_scheme=each)
                await picture(page, f"{name}-{each}-{width}")


@pytest.mark.parametrize(("theme", "width"), FORMS)
async def test_every_page_is_fit_for_everybody(
    browser: Browser, console_stack: Stack, theme: Theme, width: int
) -> None:
    async with (
        connected(console_stack, "viewer") as person,
        visiting(browser, console_stack, person.name, width=width) as page,
    ):
        await looked_at(page, PAGES, theme, width)


@pytest.mark.parametrize(("theme", "width"), FORMS)
async def test_pages_with_something_on_them_are_too(
    browser: Browser, console_stack: Stack, account: Account, theme: Theme, width: int
) -> None:
    async with visiting(browser, console_stack, account.creator.name, width=width) as page:
        await looked_at(page, account.paths, theme, width)


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
