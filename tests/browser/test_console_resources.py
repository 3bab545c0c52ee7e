"""Resources: from a connected test key to a published resource, by mouse and by keyboard; what is typed is never lost."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

from playwright.async_api import Browser, Dialog, Locator, Page, expect

from deploy.local.stack import Stack
from tests.browser.browsing import NARROW, accessible, fits, picture, visiting
from tests.e2e.client import connected, signed_in

MODEL = "openai/gpt-4o-mini"
PROMPT = "openrouter_config.prompt_template"


def field(page: Page, path: str) -> Locator:
    """The field that holds what the interface calls `path`."""
    return page.locator(f'[name="{path}"]')


def error(page: Page, path: str) -> Locator:
    """What stands below it."""
    return page.locator(f'[data-field="{path}"] > .error')


async def write(page: Page, path: str, text: str) -> None:
    await field(page, path).fill(text)


async def opened(page: Page) -> None:
    await page.goto(f"/resources/new?model={MODEL}")
    await expect(page.get_by_role("heading", level=1)).to_have_text("New resource")


async def filled(page: Page, name: str = "Haiku maker") -> None:
    await opened(page)
    await write(page, PROMPT, "Write a haiku about {{topic}} in {{language}}.")
    await expect(page.locator("[data-input-row]")).to_have_count(2)
    await write(page, "openrouter_config.max_tokens", "200")
    await write(page, "name", name)
    await write(page, "pricing.fixed.price_usd", "0.01")


async def saved_by(page: Page, button: str) -> None:
    await page.get_by_role("button", name=button, exact=True).click()
    await page.wait_for_url(re.compile(r"/resources/[0-9a-f-]{36}/edit$"))


async def test_a_model_becomes_a_published_resource(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "maker") as person, visiting(browser, console_stack, person.name) as page:
        await page.goto(f"/models/{MODEL}")
        await page.get_by_role("link", name="Create resource with this model").click()
        await filled(page)
        await expect(field(page, "inputs.0.name")).to_have_value("topic")
        await field(page, "inputs.1.type").select_option("choice")
        await write(page, "inputs.1.choices", "English\nFrench")
        await expect(page.locator("#estimate .margin")).to_contain_text("You keep $0.00")
        total = page.locator("#estimate tr", has_text="Total").locator("td")
        assert [text for text in await total.all_inner_texts() if not text.startswith("$0.0100")] == []

        await page.locator('#trial [name="input.topic"]').fill("autumn")
        await page.locator('#trial [name="input.language"]').select_option("French")
        await picture(page, "resource-new")
        await page.get_by_role("button", name="Test it").click()
        spent = page.locator(".run-cost")
        await expect(spent).to_contain_text(
            re.compile(r"Model \$0\.0\d+, your markup \$0\.0\d+, total \$0\.0100", re.DOTALL)
        )
        figures = re.findall(r"\$(0\.\d+)", await spent.inner_text())
        assert len({len(figure) for figure in figures}) == 1
        assert int(figures[0][2:]) + int(figures[1][2:]) == int(figures[2][2:])
        await picture(page, "resource-tested")

        await page.get_by_role("button", name="Save and see it as a buyer").click()
        await page.wait_for_url("**/as-buyer")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Haiku maker")
        await expect(page.get_by_text("Only you see it until you publish it.")).to_be_visible()
        await page.go_back()
        await page.goto("/resources")
        await page.get_by_role("link", name="Haiku maker", exact=True).click()
        await page.get_by_role("link", name="Edit", exact=True).click()
        await page.get_by_role("button", name="Save and publish", exact=True).click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("every run spends your own OpenRouter credits")
        await dialog.get_by_role("button", name="Publish").click()
        await expect(page.get_by_role("status").filter(has_text="is published")).to_be_visible()
        (resource,) = (await person.get("/api/resources"))["items"]
        assert (resource["status"], resource["slug"], resource["openrouter_config"]["max_tokens"]) == (
            "published", "haiku-maker", 200,
        )  # fmt: skip
        assert [(each["name"], each["type"], each["choices"]) for each in resource["inputs"]] == [
            ("topic", "text", None),
            ("language", "choice", ["English", "French"]),
        ]


async def test_by_keyboard_alone(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "typist") as person, visiting(browser, console_stack, person.name) as page:
        await page.goto("/resources/new")
        keys = page.keyboard
        await page.get_by_role("button", name="Choose a model").focus()
        await keys.press("Enter")
        await expect(page.get_by_label("Search models")).to_be_focused()
        await expect(page.locator(".pick").first).to_be_visible()
        await keys.type("gpt-4o-mini")
        await expect(page.locator(".pick").first).to_contain_text(MODEL)
        await keys.press("Enter")
        await expect(field(page, PROMPT)).to_be_focused()
        await expect(field(page, "openrouter_config.model_id")).to_have_value(MODEL)
        await expect(field(page, "openrouter_config.max_tokens")).to_have_value("4000")
        await keys.type("Translate {{words}}.")
        await expect(field(page, "inputs.0.name")).to_have_value("words")
        await field(page, "name").focus()
        await keys.type("Translator")
        await field(page, "pricing.fixed.price_usd").focus()
        await keys.type("0.02")
        await keys.press("Enter")
        await page.wait_for_url(re.compile(r"/resources/[0-9a-f-]{36}/edit$"))
        await page.get_by_role("button", name="Save and publish").focus()
        await keys.press("Enter")
        await keys.press("Tab")
        await keys.press("Enter")
        await expect(page.get_by_role("status").filter(has_text="is published")).to_be_visible()


async def test_each_problem_stands_at_its_field(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "erring") as person, visiting(browser, console_stack, person.name) as page:
        await person.create(slug="taken")
        await page.goto("/resources/new")
        await page.get_by_role("button", name="Save as a draft").click()
        for path, sentence in (
            ("openrouter_config.model_id", "Choose a model."),
            (PROMPT, "Write the prompt."),
            ("name", "Give it a name."),
            ("pricing.fixed.price_usd", "Say what a run costs"),
        ):
            await expect(error(page, path)).to_contain_text(sentence)
        await filled(page)
        await page.get_by_text("More parameters of this model").click()
        await page.get_by_text("How long a run may take").click()
        wrong = {
            "openrouter_config.max_tokens": ("9999999", "16384 tokens"),
            "openrouter_config.temperature": ("3", "This must be at most 2."),
            "openrouter_config.parameters.top_p": ("much", "Write a number"),
            "openrouter_config.parameters": ("{", "not JSON"),
            "slug": ("Not A Slug", "Write small letters and digits"),
            "timeouts.total_s": ("9999", "600"),
            "inputs.0.name": ("two words", "Write a letter first"),
        }
        for path, (text, sentence) in wrong.items():
            before = await field(page, path).input_value()
            await write(page, path, text)
            await page.get_by_role("button", name="Save as a draft").click()
            await expect(error(page, path)).to_contain_text(sentence)
            await expect(field(page, path)).to_be_focused()
            await expect(field(page, path)).to_have_value(text)
            await write(page, path, before)
        await write(page, "slug", "taken")
        await page.get_by_role("button", name="Save as a draft").click()
        await expect(page.locator("#draft").get_by_role("alert")).to_contain_text("another")
        await expect(field(page, "name")).to_have_value("Haiku maker")
        await expect(field(page, PROMPT)).to_have_value("Write a haiku about {{topic}} in {{language}}.")


async def test_a_service_that_is_away_loses_nothing(browser: Browser, console_stack: Stack) -> None:
    async with (
        connected(console_stack, "unlucky") as person,
        visiting(browser, console_stack, person.name, expected=("Failed to load resource: net::",)) as page,
    ):
        await filled(page)
        await page.route("**/resources/new", lambda route: route.abort())
        await page.get_by_role("button", name="Save as a draft").click()
        await expect(page.locator("#draft").get_by_role("alert")).to_contain_text("The console cannot be reached")
        await expect(field(page, "name")).to_have_value("Haiku maker")

        asked: list[str] = []

        async def stay(dialog: Dialog) -> None:
            asked.append(dialog.type)
            await dialog.dismiss()

        page.on("dialog", stay)
        await page.get_by_role("link", name="Models", exact=True).click()
        await expect(field(page, "name")).to_have_value("Haiku maker")
        assert asked == ["beforeunload"]
        await page.unroute("**/resources/new")
        await saved_by(page, "Save as a draft")
        assert asked == ["beforeunload"]
        await page.get_by_role("link", name="Models", exact=True).click()
        await page.wait_for_url("**/models")


EVERYTHING: dict[str, Any] = {
    "description": "Line one.\nLine two.",
    "example_output": "An answer.",
    "config": {
        "model_id": MODEL,
        "fallback_models": ["openai/gpt-4o"],
        "system_prompt": "Be brief, {{tone}}.",
        "prompt_template": "{{text}} {{count}} {{loud}}",
        "temperature": 0.7,
        "parameters": {"top_p": 0.9, "seed": 7, "stop": ["END"], "response_format": {"type": "json_object"}},
    },
    "inputs": [
        {"name": "text", "description": "Any.", "max_length": 50, "default": "x"},
        {"name": "count", "type": "number", "minimum": 1, "maximum": 9.5, "required": False, "default": 2},
        {"name": "loud", "type": "boolean", "required": False, "default": True},
        {"name": "tone", "type": "choice", "choices": ["kind", "dry"], "default": "dry"},
        {"name": "photo", "type": "image", "max_bytes": 1_000_000, "accept": ["image/png"], "required": False},
    ],
    "pricing": {"mode": "cost_plus", "markup_percent": "40", "min_usd": "0.002", "max_usd": "0.1"},
    "timeouts": {"first_token_s": 20.5, "idle_s": 30, "total_s": 120},
    "margin_rule": "pause",
}


async def test_what_was_stored_comes_back_as_it_was(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "editor") as person, visiting(browser, console_stack, person.name) as page:
        resource = await person.create(**{**EVERYTHING, "config": dict(EVERYTHING["config"])})
        path = f"/api/resources/{resource['id']}"
        await page.goto(f"/resources/{resource['id']}/edit")
        await page.get_by_role("button", name="Save", exact=True).click()
        await expect(page.get_by_role("status").filter(has_text="Saved.")).to_be_visible()
        assert (await person.get(path))["version"] == 1, "a form that nobody touched changes nothing"
        await write(page, "name", "Renamed")
        await page.get_by_role("button", name="Remove openai/gpt-4o").click()
        await expect(page.locator(".fallbacks")).to_have_count(0)
        await person.http.patch(path, json={"description": "Somebody else was here."})
        await page.get_by_role("button", name="Save", exact=True).click()
        await expect(page.locator("#draft").get_by_role("alert")).to_contain_text("somebody edited it")
        await expect(field(page, "name")).to_have_value("Renamed")
        page.on("dialog", lambda dialog: dialog.accept())
        await page.reload()
        await expect(field(page, "description")).to_have_value("Somebody else was here.")


async def test_variables_come_and_go_with_the_prompt(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "prompter") as person, visiting(browser, console_stack, person.name) as page:
        await opened(page)
        names = page.locator('[data-input-row] [name$=".name"]')
        await write(page, PROMPT, "About {{topic}} and {{tone}}")
        await expect(names).to_have_count(2)
        await page.locator("[data-input-row] summary").nth(1).click()
        await write(page, "inputs.1.description", "How it sounds.")
        await write(page, PROMPT, "About nothing")
        await expect(names).to_have_count(1)
        await expect(field(page, "inputs.0.name")).to_have_value("tone")
        await page.get_by_role("button", name="Put it into the prompt").click()
        await expect(field(page, PROMPT)).to_have_value(re.compile(r"\{\{tone\}\}"))
        await expect(page.get_by_text("No prompt uses it yet")).to_be_hidden()
        await page.get_by_role("button", name="Remove input tone").click()
        await expect(page.get_by_text("None yet: every run is the same.")).to_be_visible()
        await expect(page.locator('#trial [name="input.tone"]')).to_have_count(0)


async def test_parameters_are_offered_where_the_model_takes_them(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "tuner") as person, visiting(browser, console_stack, person.name) as page:
        models = (await person.get("/api/models", limit=200, q="gpt"))["items"]
        thinking = next(each for each in models if "reasoning" in each["supported_parameters"] and each["executable"])
        effort = field(page, "openrouter_config.parameters.reasoning")
        await opened(page)
        await write(page, PROMPT, "Say hello.")
        await expect(effort).to_have_count(0)
        await page.get_by_role("button", name="Change the model").click()
        await page.get_by_label("Search models").fill(thinking["id"])
        await page.locator(f'[data-pick="{thinking["id"]}"]').click()
        await expect(effort).to_have_count(1)
        await expect(page.get_by_role("button", name="Change the model")).to_be_focused()
        await expect(field(page, PROMPT)).to_have_value("Say hello.")
        await page.get_by_role("button", name="Add a fallback").click()
        await page.get_by_label("Search models").fill(MODEL)
        await page.locator(f'[data-pick="{MODEL}"]').click()
        await expect(page.locator(".fallbacks")).to_contain_text(MODEL)


async def test_the_list_publishes_and_pauses(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "lister") as person, visiting(browser, console_stack, person.name) as page:
        await page.goto("/resources")
        await expect(page.get_by_text("Your first resource")).to_be_visible()
        await person.create(name="One")
        await page.reload()
        row = page.locator(".rows li", has_text="One")
        await expect(row).to_contain_text("$0.01 a run")
        await expect(row).to_contain_text("you keep")
        await row.get_by_role("button", name="Publish").click()
        await page.get_by_role("dialog").get_by_role("button", name="Publish").click()
        await expect(page.get_by_role("status").filter(has_text="One is published.")).to_be_visible()
        await row.get_by_role("button", name="Pause").click()
        await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("status").filter(has_text="One is paused.")).to_be_visible()
        await page.get_by_role("link", name="Drafts").click()
        await expect(page.get_by_text("None of them")).to_be_visible()
        await page.goto("/resources")
        await row.get_by_role("button", name="Delete One").click()
        await expect(page.get_by_role("dialog")).to_contain_text("receipts of all its runs stay")
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await row.get_by_role("button", name="Delete One").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.get_by_text("Your first resource")).to_be_visible()
        assert (await person.get("/api/resources"))["items"] == []


async def test_a_copy_is_a_resource_of_its_own(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "copier") as person, visiting(browser, console_stack, person.name) as page:
        original = await person.create(**{**EVERYTHING, "config": dict(EVERYTHING["config"])})
        await page.goto(f"/resources/{original['id']}")
        await page.get_by_role("link", name="Duplicate").click()
        await expect(field(page, "name")).to_have_value("Echo (copy)")
        names = page.locator('[data-input-row] [name$=".name"]')
        up = page.get_by_role("button", name="Up input tone")
        await up.click()
        await expect(up).to_be_focused()
        await up.click()
        await page.get_by_role("button", name="Down input text").click()
        order = ["tone", "text", "count", "loud", "photo"]
        assert [await each.input_value() for each in await names.all()] == order
        await saved_by(page, "Save as a draft")
        (copy,) = [one for one in (await person.get("/api/resources"))["items"] if one["id"] != original["id"]]
        assert (copy["slug"], copy["pricing"], copy["openrouter_config"]) == (
            "echo-copy", original["pricing"], original["openrouter_config"],
        )  # fmt: skip
        assert [each["name"] for each in copy["inputs"]] == order


async def test_a_key_that_is_connected_beside_it_is_noticed(browser: Browser, console_stack: Stack) -> None:
    async with (
        signed_in(console_stack, "newcomer") as person,
        visiting(browser, console_stack, person.name) as page,
    ):
        await opened(page)
        await write(page, PROMPT, "Write about {{topic}}.")
        await page.locator('#trial [name="input.topic"]').fill("rain")
        await page.get_by_role("button", name="Test it").click()
        await expect(page.locator("#test, [data-run-ended]").get_by_role("alert")).to_contain_text("key")
        async with page.context.expect_page() as coming:
            await page.get_by_role("link", name=re.compile("connect a key")).click()
        settings = await coming.value
        await settings.get_by_label("API key").fill(f"sk-or-test-{uuid4().int}")
        await settings.get_by_role("button", name="Connect the key").click()
        await expect(settings.get_by_role("heading", name="Connected")).to_be_visible()
        await settings.close()
        # A browser without a window never says that a tab has come to the front.
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await expect(page.get_by_text("No OpenRouter key is connected")).to_have_count(0)
        await expect(field(page, PROMPT)).to_have_value("Write about {{topic}}.")
        await page.get_by_role("button", name="Test it").click()
        await expect(page.locator("[data-run-output]")).to_contain_text("Write about rain.")


async def test_the_form_is_fit_for_everybody(browser: Browser, console_stack: Stack) -> None:
    async with connected(console_stack, "looker") as person:
        resource = await person.create(**{**EVERYTHING, "config": dict(EVERYTHING["config"])})
        for theme, width in (("light", 1280), ("dark", NARROW)):
            async with visiting(browser, console_stack, person.name, theme=theme, width=width) as page:
                await page.goto(f"/resources/{resource['id']}/edit")
                await expect(page.locator("#estimate table")).to_be_visible()
                await accessible(page)
                await fits(page)
                await picture(page, f"resource-edit-{theme}-{width}")
                await page.get_by_role("button", name="Change the model").click()
                await expect(page.locator(".pick").first).to_be_visible()
                await accessible(page)
                await fits(page)
                await picture(page, f"resource-pick-{theme}-{width}")
                await page.goto(f"/resources/{resource['id']}/as-buyer")
                await accessible(page)
                await fits(page)
                await page.goto("/resources")
                await accessible(page)
                await fits(page)
                await picture(page, f"resources-{theme}-{width}")
