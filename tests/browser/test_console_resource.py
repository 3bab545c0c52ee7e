"""A creator's page of one resource, and a buyer's of its listing: what stands there, and that the ways to call it run as shown."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from uuid import uuid4

from playwright._impl._driver import compute_driver_executable
from playwright.async_api import Browser, Page, expect

from deploy.local.stack import Stack
from deploy.sandbox.media import png
from tests.browser.browsing import NARROW, WIDE, accessible, fits, picture, visiting
from tests.e2e.client import Person, connected, signed_in
from tests.waiting import until

MODEL = "openai/gpt-4o-mini"
INPUTS = [
    {"name": "photo", "type": "image", "accept": ["image/png"]},
    {"name": "text", "max_length": 40, "description": "What to say; it's yours."},
    {"name": "tone", "type": "choice", "choices": ["friendly", "don't care"], "default": "don't care"},
    {"name": "count", "type": "number", "minimum": 3, "maximum": 9},
    {"name": "loud", "type": "boolean", "required": False},
]


async def figures_of(owner: Person, resource_id: str, runs: int) -> None:
    """Waits until the figures count that many runs."""

    async def look() -> bool:
        stats = await owner.get(f"/api/resources/{resource_id}/stats")
        return bool(stats["total"]["runs"] >= runs)

    await until(look)


NATS = """#!{python}
# The one form of the nats command that the page shows, with what the command reads from its environment.
import argparse, asyncio, os, sys
import nats

arguments = argparse.ArgumentParser()
for name in ("verb", "subject", "body", "--inbox-prefix", "--timeout"):
    arguments.add_argument(name)
said = arguments.parse_args()


async def main():
    who = {{"user": os.environ["NATS_USER"], "password": os.environ["NATS_PASSWORD"]}}
    client = await nats.connect(os.environ["NATS_URL"], inbox_prefix=said.inbox_prefix.encode(), **who)
    answer = await client.request(said.subject, said.body.encode(), timeout=int(said.timeout.removesuffix("s")))
    print(answer.data.decode(), answer.headers or "")
    await client.close()


assert said.verb == "request"
asyncio.run(main())
"""


async def copied(page: Page, title: str) -> str:
    """What the clipboard holds after Copy; the first way is open when the page is, and a click opens the others."""
    way = page.locator("details.way", has=page.get_by_text(title, exact=True))
    if await way.get_attribute("open") is None:
        await way.locator("summary").click()
    await way.get_by_role("button", name="Copy").click()
    await expect(way.get_by_role("button", name="Copied")).to_be_visible()
    clipboard: str = await page.evaluate("navigator.clipboard.readText()")
    return clipboard


async def ran(*command: str, folder: Path, **environment: str) -> str:
    """What a command prints that must succeed. It has what a stranger has: a path, and what the page tells to set."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def test_the_ways_over_http_run_as_copied(browser: Browser, console_stack: Stack, tmp_path: Path) -> None:
    template = "{{text}} {{tone}} {{count}} {{loud}}"
    said = "Write something here don't care 3"
    async with (
        connected(console_stack, "maker") as maker,
        signed_in(console_stack, "caller") as caller,
        visiting(browser, console_stack) as page,
    ):
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        resource = await maker.publish(model=MODEL, inputs=INPUTS, config={"prompt_template": template})
        await page.goto(f"/listings/{maker.name}/{resource['slug']}")
        (tmp_path / "photo.png").write_bytes(png("photo"))
        (tmp_path / "call.mjs").write_text(await copied(page, "JavaScript"))
        node, _ = compute_driver_executable()
        commands = (
            ("bash", "-c", await copied(page, "curl")),
            ("bash", "-c", await copied(page, "curl, as it is written")),
            (sys.executable, "-I", "-S", "-c", await copied(page, "Python")),
            (node, "call.mjs"),
        )
        token = console_stack.token(caller.name)
        printed = await asyncio.gather(*(ran(*each, folder=tmp_path, X402JOBS_TOKEN=token) for each in commands))
        plain, streamed, python, javascript = printed
        assert said in plain
        assert '"status":"succeeded"' in plain
        events = re.findall(r"^event: (\w+)$", streamed, re.MULTILINE)
        assert (events[0], events[-1]) == ("started", "completed")
        assert events.count("text") > 1
        for output in (python, javascript):
            assert said in output
            assert "0.01 US dollars" in output
        runs = (await maker.get("/api/executions", role="owner", resource_id=resource["id"]))["items"]
        assert [(run["status"], run["caller"]["id"]) for run in runs] == [("succeeded", caller.name)] * 4


async def test_the_way_over_the_bus_runs_as_copied(browser: Browser, console_stack: Stack, tmp_path: Path) -> None:
    inputs = [{"name": "text"}, {"name": "tone", "type": "choice", "choices": ["don't care"]}]
    async with connected(console_stack, "maker") as maker, visiting(browser, console_stack, maker.name) as page:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        resource = await maker.publish(inputs=inputs, config={"prompt_template": "{{text}} {{tone}}"})
        await page.goto(f"/resources/{resource['id']}")
        command = tmp_path / "nats"
        command.write_text(NATS.format(python=sys.executable))
        command.chmod(0o755)
        bus = json.loads((console_stack.directory / "stack.json").read_text())
        who = {"NATS_USER": bus["publisher"]["user"], "NATS_PASSWORD": bus["publisher"]["password"]}
        path = f"export PATH={tmp_path}:$PATH; "
        code = await copied(page, "NATS")
        printed = await ran("bash", "-c", path + code, folder=tmp_path, NATS_URL=bus["nats_url"], **who)
        assert "Write something here don't care" in printed
        (run,) = (await maker.get("/api/executions", role="owner", resource_id=resource["id"]))["items"]
        assert run["caller"] == {"kind": "service", "id": bus["publisher"]["name"]}


async def test_a_creator_sees_all_of_it(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "maker") as maker, signed_in(console_stack, "caller") as caller:
        resource = await maker.publish(description="Says what you say.", inputs=[{"name": "text"}])
        name, path = f"{maker.name}/{resource['slug']}", f"/resources/{resource['id']}"
        await asyncio.gather(caller.result(name), maker.result(name))
        edited = await maker.http.patch(f"/api{path}", json={"pricing": {"mode": "fixed", "price_usd": "0.02"}})
        assert edited.status_code == 200
        broken = await maker.http.patch(
            f"/api{path}",
            json={"openrouter_config": {**resource["openrouter_config"], "model_id": "sandbox/status-404"}},
        )
        assert broken.status_code == 200
        await caller.execute(name)
        await figures_of(maker, resource["id"], 3)
        async with visiting(browser, console_stack, maker.name) as page:
            await page.goto(path)
            await expect(page.get_by_role("heading", level=1)).to_have_text("Echo")
            facts = page.get_by_role("region", name="How it does").locator(".facts div")
            await expect(facts.filter(has_text="Runs")).to_contain_text("3")
            await expect(facts.filter(has_text="Failed")).to_contain_text("1")
            await expect(page.get_by_role("img", name=re.compile("Runs and failures a day"))).to_be_visible()
            await expect(page.get_by_role("img", name=re.compile("Cost, price and margin"))).to_be_visible()
            await page.get_by_text("The figures as a table").click()
            await expect(page.get_by_role("region", name="Figures by day").get_by_role("row")).to_have_count(2)
            await expect(page.get_by_text("model unavailable: 1")).to_be_visible()
            runs = page.get_by_role("region", name="Table of the latest runs").get_by_role("row")
            await expect(runs).to_have_count(4)
            await expect(page.get_by_role("region", name="Table of the latest runs")).to_contain_text(caller.name)
            changed = page.get_by_role("region", name="What version 2 changed")
            await expect(changed).to_contain_text("pricing.price_usd")
            await expect(changed.locator(".gone")).to_have_text("0.01")
            await expect(changed.locator(".added")).to_have_text("0.02")
            await expect(page.get_by_label("Prompt template")).to_have_text("{{text}}")
            await page.get_by_role("link", name="7 days").click()
            await expect(page).to_have_url(re.compile(r"days=7"))
            await accessible(page)


async def test_it_is_published_paused_and_deleted_after_asking(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "maker") as maker:
        resource = await maker.create()
        async with visiting(browser, console_stack, maker.name) as page:
            await page.goto(f"/resources/{resource['id']}")
            for action, status in (("Publish", "published"), ("Pause", "paused")):
                await page.get_by_role("button", name=action).click()
                await expect(page.get_by_role("dialog")).to_be_visible()
                await page.get_by_role("button", name="Cancel").click()
                await page.get_by_role("button", name=action).click()
                await page.get_by_role("dialog").get_by_role("button", name=action).click()
                await expect(page.locator(".page-head .badge")).to_have_text(status)
                assert (await maker.get(f"/api/resources/{resource['id']}"))["status"] == status
            await page.get_by_role("button", name="Delete").click()
            await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
            await page.wait_for_url("**/resources")
            assert (await maker.http.get(f"/api/resources/{resource['id']}")).status_code == 404


async def test_listing_and_resource_fit_everybody(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "maker") as maker, signed_in(console_stack, "caller") as caller:
        long = "A description that goes on for a while, as people write them. " * 6
        slug = f"echo-{uuid4().hex[:8]}"
        pricing = {"mode": "cost_plus", "markup_percent": "40", "min_usd": "0.0001", "max_usd": "0.01"}
        inputs = [{"name": "text"}, {"name": "tone", "type": "choice", "choices": ["a", "b"], "required": False}]
        resource = await maker.publish(
            description=long,
            slug=slug,
            inputs=inputs,
            pricing=pricing,
            example_output="Hello.\nAs well.",
            config={"prompt_template": "{{text}} {{tone}}"},
        )
        await caller.result(f"{maker.name}/{slug}")
        await figures_of(maker, resource["id"], 1)
        listing, own = f"/listings/{maker.name}/{slug}", f"/resources/{resource['id']}"
        for theme, width in (("light", WIDE), ("dark", NARROW)):
            for user, path, called in ((None, listing, "listing"), (maker.name, own, "resource")):
                async with visiting(browser, console_stack, user, theme=theme, width=width) as page:
                    await page.goto(path)
                    await accessible(page)
                    await fits(page)
                    await picture(page, f"{called}-{theme}-{width}")
                    if user is None:
                        await expect(page.get_by_text("$0.0001 to $0.01 a run")).to_be_visible()
                        assert await page.title() == f"Echo by {maker.name} · x402jobs"
                        described = await page.locator("meta[name=description]").get_attribute("content")
                        assert described is not None
                        assert described.startswith("A description that goes on")
                        assert len(described) <= 160


async def test_a_listing_that_is_not_there_says_so(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack) as page:
        await page.goto("/listings/nobody/nothing")
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.goto("/listings?q=zzqxv")
        await page.get_by_role("link", name="Show all listings").click()
        await page.wait_for_url("**/listings")
