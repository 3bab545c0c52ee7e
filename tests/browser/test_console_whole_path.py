"""The whole path as a stranger goes it: from an empty account to a published resource and a run by somebody else who pays for
it, by mouse and by keyboard. Nothing is prepared, and the figures at its end are those of the interface.
"""

from __future__ import annotations

import re
from decimal import Decimal
from uuid import uuid4

from playwright.async_api import Browser, Locator, Page, expect

from deploy.local.stack import Stack
from tests.browser.browsing import NARROW, accessible, fits, picture, visiting
from tests.e2e.client import Person, signed_in
from tests.waiting import until

MODEL = "openai/gpt-4o-mini"
PROMPT = "Write a haiku about {{topic}} in a {{mood}} mood."
PRICE = Decimal("0.01")


def stranger(name: str) -> str:
    return f"{name}-{uuid4().hex[:8]}"


def field(page: Page, path: str) -> Locator:
    return page.locator(f'[name="{path}"]')


async def tab_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """Presses Tab until it stands there, as somebody without a mouse does."""
    await expect(target).to_be_visible()
    for _ in range(60):
        await page.keyboard.press(key)
        if await target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"the keyboard does not get to {target}")


async def led_to_the_key(page: Page) -> None:
    """An empty account is told what comes first, wherever it looks."""
    await expect(page.get_by_text("New here?")).to_be_visible()
    await picture(page, "path-01-models")
    await page.get_by_role("link", name="Resources", exact=True).click()
    await expect(page.get_by_role("heading", name="First, your OpenRouter key")).to_be_visible()
    await page.get_by_role("link", name="Connect a key").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Your OpenRouter key")


async def model_found(page: Page) -> None:
    """From the connected key to the form, around a model that was searched for."""
    await page.get_by_role("link", name="Pick a model").click()
    await expect(page.get_by_label("Search models")).to_be_focused()
    await page.keyboard.type("4o mini")
    await page.locator(f'a[href="/models/{MODEL}"]').click()
    await picture(page, "path-03-model")
    await page.get_by_role("link", name="Create resource with this model").click()


async def written(page: Page) -> None:
    """The form is filled: the cursor stands where one begins to write, and the price follows what is typed."""
    prompt = field(page, "openrouter_config.prompt_template")
    await expect(prompt).to_be_focused()
    await page.keyboard.type(PROMPT)
    await expect(field(page, "inputs.0.name")).to_have_value("topic")
    await expect(field(page, "inputs.1.name")).to_have_value("mood")
    await field(page, "inputs.1.type").select_option("Choice")
    await field(page, "inputs.1.choices").click()
    await page.keyboard.type("quiet\nmerry")
    estimate = page.locator("#estimate")
    await expect(estimate.locator(".margin")).to_contain_text("Name a price")
    await expect(estimate.locator("tr", has_text="Model")).to_contain_text("$0.00")
    await field(page, "name").click()
    await page.keyboard.type("Haiku maker")
    await field(page, "pricing.fixed.price_usd").click()
    await page.keyboard.type("0.0001")
    await expect(estimate.locator(".margin.bad")).to_contain_text("You lose")
    await field(page, "pricing.fixed.price_usd").press("Control+a")
    await page.keyboard.type("0.01")
    await expect(estimate.locator(".margin.good")).to_contain_text("You keep $0.00")
    await picture(page, "path-04-form")


async def tried_out(page: Page) -> None:
    """A test of what is not saved yet; its answer becomes the example."""
    await page.locator('#trial [name="input.topic"]').click()
    await page.keyboard.type("autumn")
    await page.locator('#trial [name="input.mood"]').select_option("quiet")
    await page.get_by_role("button", name="Test it").click()
    await expect(page.locator("[data-run-output]")).to_contain_text("Write a haiku about autumn in a quiet mood.")
    model, markup, total = await amounts(page.locator(".run-cost"))
    assert (model + markup, total) == (PRICE, PRICE)
    assert model > 0
    await page.get_by_role("button", name="Use this answer as the example").click()
    await expect(field(page, "example_output")).to_have_value(re.compile("haiku about autumn"))
    await picture(page, "path-05-tested")


async def amounts(place: Locator) -> list[Decimal]:
    await expect(place).to_contain_text(re.compile(r"\$0\.\d+.*\$0\.\d+.*\$0\.\d+", re.DOTALL))
    return [Decimal(figure) for figure in re.findall(r"\$(0\.\d+)", await place.inner_text())]


async def published(page: Page) -> str:
    """Looked at as a buyer, then put on the market; the address to give away."""
    await page.get_by_role("button", name="Save and see it as a buyer").click()
    await expect(page.get_by_text("Only you see it until you publish it.")).to_be_visible()
    await expect(page.get_by_role("complementary", name="Price")).to_contain_text("$0.01 a run")
    await expect(page.get_by_text("cannot run")).to_have_count(0)
    await picture(page, "path-06-preview")
    await page.go_back()
    await expect(field(page, "name")).to_have_value("Haiku maker")
    assert page.url.endswith("/edit"), "the way back leads to what was saved, not to another empty form"
    await page.go_forward()
    await page.get_by_role("button", name="Publish", exact=True).click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("every run spends your own OpenRouter credits")
    await expect(dialog).to_contain_text("With your test key answers are made up and nobody pays")
    await dialog.get_by_role("button", name="Publish").click()
    await expect(page.get_by_text("It is on the market and can run.")).to_be_visible()
    await picture(page, "path-07-published")
    return await page.get_by_label("Address for buyers").inner_text()


async def bought(browser: Browser, stack: Stack, address: str, buyer: str) -> None:
    """Somebody gets the address on a phone, looks without signing in, signs in, and runs it."""
    async with visiting(browser, stack, width=NARROW) as phone:
        await phone.goto(address)
        await expect(phone.get_by_role("heading", level=1)).to_have_text("Haiku maker")
        await expect(phone.get_by_text("$0.01 a run")).to_be_visible()
        await expect(phone.get_by_text("haiku about autumn")).to_be_visible()
        await fits(phone)
        await accessible(phone)
        await picture(phone, "path-08-listing")
        await phone.get_by_role("link", name="Try it").click()
        await phone.get_by_label("Token").fill(stack.token(buyer))
        await phone.get_by_role("button", name="Sign in").click()
        await expect(phone.get_by_role("heading", level=1)).to_have_text("Try Haiku maker")
        await phone.get_by_label("topic").fill("the sea")
        await phone.get_by_label("mood").select_option("merry")
        await phone.get_by_role("button", name="Run for $0.01").click()
        await expect(phone.locator("[data-run-output]")).to_contain_text("a haiku about the sea in a merry mood.")
        await expect(phone.locator("[data-run-ended]")).to_contain_text("$0.01")
        await expect(phone.locator("[data-run-ended]")).not_to_contain_text("markup")
        await fits(phone)
        await picture(phone, "path-09-run")


async def accounts_add_up(page: Page, creator: Person, buyer: str) -> None:
    """What the creator sees of the run is what the interface says, to the last digit."""
    (resource,) = (await creator.get("/api/resources"))["items"]

    async def counted() -> dict[str, Decimal] | None:
        total = (await creator.get(f"/api/resources/{resource['id']}/stats"))["total"]
        return total if total["test_runs"] == 1 else None

    total = await until(counted)
    (run,) = (await creator.get("/api/executions", role="owner", resource_id=resource["id"]))["items"]
    assert run["caller"]["id"] == buyer
    model, markup, price = (Decimal(run["cost"][name]) for name in ("model_usd", "markup_usd", "price_usd"))
    assert (price, model + markup) == (PRICE, PRICE)
    assert [Decimal(total[name]) for name in ("model_usd", "margin_usd", "price_usd")] == [model, markup, price]
    await page.reload()
    facts = page.get_by_role("region", name="How it does").locator(".facts div")
    for label, name in (("Models cost", "model_usd"), ("You keep", "margin_usd"), ("Callers paid", "price_usd")):
        whole = facts.filter(has_text=label).locator("[title]")
        await expect(whole).to_have_attribute("title", f"{total[name]} US dollars")
    await picture(page, "path-10-figures")
    row = page.get_by_role("region", name="Table of the latest runs").get_by_role("row").nth(1)
    await expect(row).to_contain_text(buyer)
    await row.get_by_role("link").click()
    receipt = page.get_by_role("region", name="Receipt")
    for place, name in enumerate(("model_usd", "markup_usd", "price_usd")):
        whole = receipt.locator(".facts [title]").nth(place)
        await expect(whole).to_have_attribute("title", f"{run['cost'][name]} US dollars")
    shown = await amounts(receipt.locator(".facts").first)
    assert shown[0] + shown[1] == shown[2] == price
    await expect(page.get_by_role("region", name="List of attempts").get_by_role("row")).to_have_count(2)
    await picture(page, "path-11-receipt")
    await page.get_by_role("link", name="Executions", exact=True).first.click()
    await page.get_by_text("Runs of my resources", exact=True).first.click()
    rows = page.locator(".rows li")
    await expect(rows.first).to_contain_text(re.compile(f"Haiku maker.*{buyer}.*\\$0.01", re.DOTALL))
    await expect(rows.nth(1)).to_contain_text(re.compile("A draft.*by you", re.DOTALL))


async def test_from_nothing_to_a_run_that_is_paid_for(browser: Browser, console_stack: Stack) -> None:
    me, buyer = stranger("ada"), stranger("bo")
    async with (
        signed_in(console_stack, me, exact=True) as creator,
        visiting(browser, console_stack, me) as page,
    ):
        await led_to_the_key(page)
        await page.get_by_label("API key").click()
        await page.keyboard.type(f"sk-or-test-{uuid4().int}")
        await page.get_by_role("button", name="Connect the key").click()
        await expect(page.get_by_text("Next: your first resource.")).to_be_visible()
        await picture(page, "path-02-connected")
        await model_found(page)
        await written(page)
        await tried_out(page)
        address = await published(page)
        await bought(browser, console_stack, address, buyer)
        await accounts_add_up(page, creator, buyer)


async def test_the_same_without_a_mouse(browser: Browser, console_stack: Stack) -> None:
    me = stranger("kay")
    async with (
        signed_in(console_stack, me, exact=True) as creator,
        visiting(browser, console_stack, me, expected=(console_stack.sandbox_url,)) as page,
    ):
        keys = page.keyboard
        await tab_to(page, page.get_by_role("link", name="Connect your OpenRouter key"), "Shift+Tab")
        await keys.press("Enter")
        await tab_to(page, page.get_by_role("button", name="Connect at OpenRouter"))
        await keys.press("Enter")
        await tab_to(page, page.get_by_role("link", name="Pick a model"))
        await keys.press("Enter")
        await expect(page.get_by_label("Search models")).to_be_focused()
        await keys.type("4o mini")
        await expect(page.locator("#results")).not_to_contain_text("Recommended models")
        await tab_to(page, page.locator(f'a[href="/models/{MODEL}"]'))
        await keys.press("Enter")
        await tab_to(page, page.get_by_role("link", name="Create resource with this model"))
        await keys.press("Enter")
        await expect(field(page, "openrouter_config.prompt_template")).to_be_focused()
        await keys.type("Translate {{words}} into {{language}}.")
        await expect(field(page, "inputs.1.name")).to_have_value("language")
        await tab_to(page, page.get_by_role("button", name="Up input language"))
        await keys.press("Enter")
        await expect(field(page, "inputs.0.name")).to_have_value("language")
        await expect(page.get_by_role("button", name="Up input language")).to_be_focused()
        await tab_to(page, field(page, "name"))
        await keys.type("Translator")
        await tab_to(page, field(page, "pricing.fixed.price_usd"))
        await keys.type("0.02")
        await tab_to(page, page.get_by_role("button", name="Publish", exact=True))
        await keys.press("Enter")
        await tab_to(page, page.get_by_role("dialog").get_by_role("button", name="Publish"))
        await keys.press("Enter")
        await expect(page.get_by_text("It is on the market and can run.")).to_be_visible()
        (resource,) = (await creator.get("/api/resources"))["items"]
        assert (resource["status"], [each["name"] for each in resource["inputs"]]) == (
            "published", ["language", "words"],
        )  # fmt: skip
