"""Makes the pictures of the README anew: `make pictures`. A stack of its own, whose OpenRouter is the sandbox, and an account in
which something has happened for a month."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import asyncpg
from playwright.async_api import Browser, Page

from deploy.local.ports import HOST, free_port
from deploy.local.stack import DATABASE, Stack
from tests.browser.browsing import running_browser, sign_in
from tests.browser.furnished import COMMITS, Account, furnished
from tests.e2e.client import good
from tests.stack import shared_data
from tests.waiting import until

FOLDER = Path(__file__).resolve().parents[2] / "services" / "console" / "pictures"
RUNS = 120
AT_ONCE = 12
A_MONTH = """UPDATE catalog.runs AS r SET finished_at = r.finished_at - moved.by, day = (r.finished_at - moved.by)::date
    FROM (SELECT execution_id, make_interval(days => (power(random(), 1.3) * 29)::int) AS by FROM catalog.runs) AS moved
    WHERE moved.execution_id = r.execution_id"""
"""Moves the runs into the past, more of them into the days that are not long ago."""


async def main() -> None:
    """Writes every picture, or fails with what could not be reached."""
    port = free_port()
    sandbox = {"SANDBOX_PORT": str(port), "SANDBOX_CATALOG": str(shared_data() / "openrouter-models.json")}
    upstream = {"OPENROUTER_URL": f"http://{HOST}:{port}/api/v1"}
    executor = {**upstream, "RUNNING_PER_KEY": "20", "REQUESTS_PER_MINUTE_PER_CALLER": "0"}
    with tempfile.TemporaryDirectory() as directory:
        stack = Stack(Path(directory), settings={"sandbox": sandbox, "keys": upstream, "executor": executor})
        await stack.start()
        try:
            async with furnished(stack, live=True) as account, running_browser() as browser:
                await a_month(stack, account)
                await taken(browser, stack, account)
        finally:
            await stack.stop()


async def a_month(stack: Stack, account: Account) -> None:
    """Many runs by the buyer, and then all runs over the last weeks."""
    good(await account.creator.http.put("/api/budgets", json={"key_daily_usd": "5"}))
    slots = asyncio.Semaphore(AT_ONCE)

    async def run(number: int) -> None:
        async with slots:
            await account.buyer.result(
                account.resources["release"]["id"], input={"commits": f"{COMMITS}\nfix: #{number}"}
            )

    await asyncio.gather(*(run(number) for number in range(RUNS)))
    connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
    try:
        await until(lambda: connection.fetchval("SELECT count(*) > $1 FROM catalog.runs", RUNS), 60)
        await connection.execute(A_MONTH)
    finally:
        await connection.close()


async def taken(browser: Browser, stack: Stack, account: Account) -> None:
    """Each page as a visitor sees it first."""
    paths = account.paths
    light = {"models": "/models", "editor": paths["resource-edit"], "receipt": paths["execution"]}
    await wide(browser, stack, account, "light", 720, light)
    await wide(browser, stack, account, "dark", 860, {"resource": paths["resource"]})
    context = await browser.new_context(
        base_url=stack.console_url, viewport={"width": 390, "height": 720}, is_mobile=True
    )
    page = await context.new_page()
    await page.goto(paths["listing"])
    await written(page, "listing")
    await context.close()


async def wide(
    browser: Browser, stack: Stack, account: Account, theme: str, height: int, paths: dict[str, str]
) -> None:
    """The pages of the creator on a large screen."""
    context = await browser.new_context(
        base_url=stack.console_url,
        viewport={"width": 1280, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        bypass_csp=True,
    )
    page = await context.new_page()
    await sign_in(page, stack, account.creator.name)
    for name, path in paths.items():
        await page.goto(path)
        await page.evaluate("document.activeElement.blur()")
        await page.evaluate("document.documentElement.style.scrollbarGutter = 'auto'")
        await written(page, name)
    await context.close()


async def written(page: Page, name: str) -> None:
    """The first screen, as a file."""
    await page.wait_for_load_state("networkidle")
    await page.screenshot(path=FOLDER / f"{name}.png")


if __name__ == "__main__":
    asyncio.run(main())
