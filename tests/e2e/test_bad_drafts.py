"""Everything that a creator can get wrong in a resource: refused when it is saved and when it is previewed, all problems by path,
nothing written, nothing leaked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from deploy.local.stack import Stack
from tests.e2e.client import MARK, Person, connected, draft, leaks_nothing, nothing_written, problem


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alice(stack: Stack) -> AsyncIterator[Person]:
    """A creator."""
    async with connected(stack, "alice") as person:
        yield person


def text_input(**changes: Any) -> dict[str, Any]:
    """One declared input."""
    return {"name": "text", "type": "text", **changes}


BAD_DRAFTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": (draft(f"{MARK}/nothing"), "openrouter_config.model_id"),
    "batch model": (draft("openai/gpt-4o-mini:batch"), "openrouter_config.model_id"),
    "speech model": (draft("hexgrad/kokoro-82m"), "openrouter_config.model_id"),
    "video model": (draft("google/veo-3.1"), "openrouter_config.model_id"),
    "image-only model": (draft("black-forest-labs/flux.2-klein-4b"), "openrouter_config.model_id"),
    "embeddings model": (draft("liquid/lfm-2.5-embedding-350m:free"), "openrouter_config.model_id"),
    "unknown fallback": (draft(config={"fallback_models": [f"{MARK}/x"]}), "openrouter_config.fallback_models.0"),
    "picture from a text model": (
        draft("openai/gpt-4o-mini", config={"modalities": ["image"]}),
        "openrouter_config.modalities",
    ),
    "more tokens than it writes": (
        draft("openai/gpt-4o-mini", config={"max_tokens": 9_000_000}),
        "openrouter_config.max_tokens",
    ),
    "undeclared variable": (
        draft(config={"prompt_template": "{{text}} {{other}}"}),
        "openrouter_config.prompt_template",
    ),
    "undeclared in system": (draft(config={"system_prompt": "{{other}}"}), "openrouter_config.system_prompt"),
    "unused input": (draft(inputs=[text_input(), text_input(name="spare")]), "inputs.1.name"),
    "input twice": (draft(inputs=[text_input(), text_input()]), "inputs.1.name"),
    "input with a bad name": (draft(inputs=[text_input(name=f"{MARK}!")]), "inputs.0.name"),
    "choice without choices": (draft(inputs=[text_input(type="choice")]), "inputs.0.choices"),
    "wrong default": (draft(inputs=[text_input(type="number", default=MARK)]), "inputs.0.default"),
    "price as a number": (draft(pricing={"mode": "fixed", "price_usd": 0.01}), "pricing.fixed.price_usd"),
    "negative price": (draft(pricing={"mode": "fixed", "price_usd": "-1"}), "pricing.fixed.price_usd"),
    "price that is none": (draft(pricing={"mode": "fixed", "price_usd": MARK}), "pricing.fixed.price_usd"),
    "infinite price": (draft(pricing={"mode": "fixed", "price_usd": "Infinity"}), "pricing.fixed.price_usd"),
    "price of a billion": (draft(pricing={"mode": "fixed", "price_usd": "1e9"}), "pricing.fixed.price_usd"),
    "cost plus without a cap": (
        draft(pricing={"mode": "cost_plus", "markup_percent": "10"}),
        "pricing.cost_plus.max_usd",
    ),
    "cap below the minimum": (
        draft(pricing={"mode": "cost_plus", "markup_percent": "1", "min_usd": "2", "max_usd": "1"}),
        "pricing.cost_plus",
    ),
    "unknown pricing": (draft(pricing={"mode": MARK}), "pricing"),
    "other type": (draft(resource_type=MARK), "resource_type"),
    "bad slug": (draft(slug=f"{MARK} /../"), "slug"),
    "no name": (draft(name=""), "name"),
    "nul character": (draft(name=f"{MARK}\0"), "name"),
    "nul in the prompt": (
        draft(config={"prompt_template": f"{MARK}\0{{{{text}}}}"}),
        "openrouter_config.prompt_template",
    ),
    "nul in a parameter": (draft(config={"parameters": {"stop": f"{MARK}\0"}}), "openrouter_config.parameters.stop"),
    "parameter that is ours": (draft(config={"parameters": {"model": MARK}}), "openrouter_config.parameters.model"),
    "messages as parameter": (
        draft(config={"parameters": {"messages": [MARK]}}),
        "openrouter_config.parameters.messages",
    ),
    "temperature": (draft(config={"temperature": 3}), "openrouter_config.temperature"),
    "prompt of megabytes": (draft(config={"prompt_template": "x" * 200_000}), "openrouter_config.prompt_template"),
    "misspelt field": (draft(pricng=MARK), "pricng"),
    "misspelt inner field": (draft(config={"max_token": 5}), "openrouter_config.max_token"),
    "timeout of an hour": (draft(timeouts={"total_s": 3600}), "timeouts.total_s"),
}


@pytest.mark.parametrize("name", BAD_DRAFTS)
async def test_bad_draft_is_refused_when_created_checked_or_previewed(stack: Stack, alice: Person, name: str) -> None:
    body, path = BAD_DRAFTS[name]
    async with nothing_written(stack):
        created = await alice.http.post("/api/resources", json=body)
        checked = await alice.http.post("/api/resources/check", json=body)
        previewed = await alice.http.post("/api/resources/preview", json={**body, "input": {"text": MARK}})
        streamed = await alice.http.post(
            "/api/resources/preview", json={**body, "input": {"text": MARK}, "stream": True}
        )
    for answer in (created, checked, previewed, streamed):
        refused = problem(answer, 422, "invalid")
        assert path in [error["path"] for error in refused["errors"]], refused
        assert all(len(error["message"]) > 10 for error in refused["errors"])
        leaks_nothing(answer)


async def test_bad_edit_changes_nothing_when_sent(stack: Stack, alice: Person) -> None:
    resource = await alice.create()
    path = f"/api/resources/{resource['id']}"
    async with nothing_written(stack):
        edits: list[dict[str, Any]] = [
            {},
            {"expected_version": 1},
            {"slug": f"{MARK} !"},
            {"openrouter_config": {"model_id": "openai/gpt-4o-mini:batch", "prompt_template": "{{text}}"}},
            {"openrouter_config": {"model_id": "sandbox/echo", "prompt_template": "{{other}}"}},
            {"inputs": []},
            {"owner": MARK},
            {"id": str(uuid4())},
            {"status": "published"},
        ]
        for body in edits:
            answer = await alice.http.patch(path, json=body)
            problem(answer, 422, "invalid")
            leaks_nothing(answer)
    assert await alice.get(path) == resource


async def test_slug_is_refused_when_another_resource_of_mine_has_it(stack: Stack, alice: Person) -> None:
    resource = await alice.create()
    other = await alice.create()
    async with nothing_written(stack):
        problem(await alice.http.post("/api/resources", json=draft(slug=resource["slug"])), 409, "conflict")
        renamed = await alice.http.patch(f"/api/resources/{other['id']}", json={"slug": resource["slug"]})
        problem(renamed, 409, "conflict")
