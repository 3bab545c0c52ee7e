"""What tests of the console share: the system's Chromium, pages of signed-in users, and what is demanded of every page.

A page that loads anything from anywhere else, or logs an error, fails its test. With `SCREENSHOTS=<folder>` in the
environment, `picture` writes what a test sees there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, FloatRect, Page, async_playwright, expect

from deploy.local.stack import Stack

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The first is Chromium without what a window needs: the same pages for two thirds of the time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LEFT_OUT = (
    "the browser tests are left out: there is no Chromium here (apt-get install chromium, or CHROMIUM=/path/to/it)"
)
WIDE, NARROW = 1280, 390
PICTURE_PX = 2600
STILL = 0.05
"""The share of the window that may move, times how far; browsers call a page good up to 0.1."""
SHIFTS = """
globalThis.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    if (!entry.hadRecentInput) shifts.push([entry.value, ...entry.sources.map((each) => each.node?.outerHTML?.slice(0, 120))]);
  }
}).observe({ type: "layout-shift", buffered: true });
"""
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
SERIOUS = ("serious", "critical")
# A busy machine: a test waits long before it fails, and not at all where what it waits for is there.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


def chromium() -> str | None:
    """The path of the system's Chromium."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """One headless Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visiting(
    browser: Browser,
    stack: Stack,
    user: str | None = None,
    *,
    width: int = WIDE,
    theme: str = "light",
    expected: tuple[str, ...] = (),
    console_url: str | None = None,
    also: tuple[str, ...] = (),
) -> AsyncIterator[Page]:
    """A browser of its own with one page, signed in by the link when `user` is given.

    `expected` are beginnings of error lines that the test provokes; a refused form is always one. `console_url` is another
    console than the stack's, `also` where pages may lead besides ours.
    """
    context = await browser.new_context(
        base_url=console_url or stack.console_url,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
    )
    context.set_default_timeout(PATIENCE_MS)
    trouble = watched(context, stack, *([console_url] if console_url else []), *also)
    try:
        page = await context.new_page()
        if user is not None:
            await sign_in(page, stack, user)
        yield page
        refused = ("Failed to load resource: the server responded with a status of 4", *expected)
        assert [line for line in trouble if not line.startswith(refused)] == []
    finally:
        await context.close()


def watched(context: BrowserContext, stack: Stack, *also: str) -> list[str]:
    """A list that fills with what goes wrong in any page of this browser: errors, and requests to anywhere else."""
    trouble: list[str] = []
    ours = (stack.console_url, *stack.gateway_urls, *also, "data:", "blob:", "chrome-error:")

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error":
            trouble.append(message.text)

    context.on("console", hear)
    context.on("weberror", lambda error: trouble.append(str(error.error)))
    context.on("request", lambda request: trouble.append(request.url) if not request.url.startswith(ours) else None)
    return trouble


async def sign_in(page: Page, stack: Stack, user: str) -> None:
    """By the link that `make run` prints."""
    await page.goto(f"/sign-in#token={stack.token(user)}")
    await page.wait_for_url("**/models")


async def accessible(page: Page) -> None:
    """axe finds nothing serious."""
    found = (await Axe().run(page)).response["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found if each["impact"] in SERIOUS
    ]
    assert serious == [], page.url


async def watch_shifts(page: Page) -> None:
    """From the next page on, what moves by itself is noted for `still`."""
    await page.add_init_script(SHIFTS)


async def still(page: Page) -> None:
    """Nothing has jumped on this page since it was opened."""
    await page.evaluate(PAINTED)
    shifts = await page.evaluate("shifts")
    assert sum(score for score, *_ in shifts) <= STILL, f"{page.url} jumps: {shifts}"


async def fits(page: Page) -> None:
    """Nothing is wider than the window."""
    too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not await page.evaluate(too_wide), f"{page.url} has to be scrolled sideways"


def pictured() -> bool:
    """Whether pictures are kept."""
    return bool(os.environ.get("SCREENSHOTS"))


async def picture(page: Page, name: str) -> None:
    """Writes the page, the first screens of a long one, as `<name>.png` into the folder `SCREENSHOTS`, where one is named."""
    if folder := os.environ.get("SCREENSHOTS"):
        size = await page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        clip: FloatRect = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], PICTURE_PX)}
        await page.screenshot(path=f"{folder}/{name}.png", full_page=True, clip=clip)
