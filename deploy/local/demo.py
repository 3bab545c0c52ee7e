"""Gives a new stack something to call: user `demo` connects a test key and publishes one resource, through the public HTTP
interface like anybody else. A demo user who has resources already, or a key, is left as it is."""

from typing import Any

import aiohttp

USER = "demo"
TEST_KEY = "sk-or-test-demo"
SLUG = "haiku-maker"
TOPIC = "autumn"


class DemoError(Exception):
    """The demo could not be set up; the message says which request was refused and why."""


async def set_up_demo(gateway_url: str, token: str) -> str | None:
    """Makes sure that the demo user has a key and a published resource.

    Returns the name to execute (`demo/haiku-maker`), or None when the demo user has only other resources. Raises `DemoError`.
    """
    headers = {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(gateway_url, headers=headers, timeout=timeout) as session:
        if not (await _ask(session, "GET", "/api/integrations/openrouter"))["connected"]:
            await _ask(session, "PUT", "/api/integrations/openrouter", {"api_key": TEST_KEY})
        resources = (await _ask(session, "GET", "/api/resources"))["items"]
        if not resources:
            created = await _ask(session, "POST", "/api/resources", _resource(await _popular_model(session)))
            resources = [await _ask(session, "POST", f"/api/resources/{created['id']}/publish")]
    published = {resource["slug"] for resource in resources if resource["status"] == "published"}
    return f"{USER}/{SLUG}" if SLUG in published else None


async def _popular_model(session: aiohttp.ClientSession) -> str:
    page = await _ask(session, "GET", "/api/models?sort=popular&output_modality=text&status=available&limit=50")
    for model in page["items"]:
        if model["executable"]:
            return str(model["id"])
    raise DemoError("the catalog has no model that can be executed")


def _resource(model_id: str) -> dict[str, Any]:
    return {
        "resource_type": "openrouter_instant",
        "name": "Haiku maker",
        "slug": SLUG,
        "description": "Writes a haiku about any topic.",
        "openrouter_config": {"model_id": model_id, "prompt_template": "A haiku about {{topic}}", "max_tokens": 200},
        "inputs": [{"name": "topic", "type": "text", "required": True, "max_length": 200}],
        "pricing": {"mode": "fixed", "price_usd": "0.01"},
    }


async def _ask(session: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    try:
        async with session.request(method, path, json=body) as answer:
            if answer.status >= 400:
                raise DemoError(f"{method} {path} was answered with {answer.status}: {(await answer.text())[:500]}")
            return await answer.json()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoError(f"{method} {path} failed: {type(error).__name__}: {error}") from error
