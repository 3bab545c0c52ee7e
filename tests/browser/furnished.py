"""An account in which something has happened, for looking at pages: resources in each state, runs that went well and badly,
of its own and of somebody else, workflows, and daily limits that are partly used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from deploy.local.stack import Stack
from tests.e2e.client import KEY_PATH, Person, good, signed_in
from tests.waiting import until

CLAUDE, SMALL, PAINTER = "anthropic/claude-sonnet-4.5", "openai/gpt-4o-mini", "google/gemini-2.5-flash-image"
COMMITS = "feat: search while typing\nfix: keep the page after signing in again\nfeat!: exports are CSV"
A_CLAUSE = "The supplier may change prices with two weeks' notice."


@dataclass(frozen=True)
class Account:
    """`paths` are pages of the creator, by the name of their picture; resources by a short name."""

    creator: Person
    buyer: Person
    resources: dict[str, dict[str, Any]]
    paths: dict[str, str]


def text(name: str, description: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "text", "description": description, "max_length": 2000, **more}


def resource(
    name: str, model: str, prompt: str, inputs: list[dict[str, Any]], price: Any, about: str
) -> dict[str, Any]:
    """The changes that `create` takes for a resource as a person would write it."""
    pricing = {"mode": "fixed", "price_usd": price} if isinstance(price, str) else {"mode": "cost_plus", **price}
    config = {"prompt_template": prompt, "max_tokens": 600}
    slug = name.lower().replace(" ", "-")
    return {
        "name": name,
        "model": model,
        "config": config,
        "slug": slug,
        "inputs": inputs,
        "pricing": pricing,
        "description": about,
    }


RELEASE = resource(
    "Release notes writer",
    CLAUDE,
    "Write release notes in a {{tone}} tone for these commits:\n\n{{commits}}\n\nGroup them by what users notice.",
    [
        text("commits", "The subjects of the commits, one in a line"),
        {
            "name": "tone",
            "type": "choice",
            "choices": ["friendly", "matter-of-fact"],
            "default": "friendly",
            "required": False,
        },
    ],
    "0.03",
    "Turns a list of commits into release notes that people read: grouped by what they will notice, without the noise.",
)
CLAUSE = resource(
    "Contract clause explainer",
    SMALL,
    "Explain this clause in plain words, and what to ask about:\n\n{{clause}}",
    [text("clause", "One clause of a contract")],
    {"markup_percent": "150", "min_usd": "0.002", "max_usd": "0.02"},
    "What one clause of a contract says, in plain words, and which questions to ask before you sign.",
)
POSTER = resource(
    "Event poster",
    PAINTER,
    "A poster for {{event}}",
    [text("event", "What happens, when and where")],
    "0.08",
    "A poster as a picture, from one sentence.",
)
FAILING = resource(
    "Summary of a thread",
    "sandbox/status-402",
    "Sum this up: {{thread}}",
    [text("thread", "The whole thread, oldest first")],
    "0.01",
    "The gist of a long thread.",
)
UNFINISHED = resource(
    "Translator that keeps the formatting of a document",
    SMALL,
    "Translate into {{language}} and keep all Markdown:\n\n{{document}}",
    [text("document", "Markdown"), text("language", "Such as French")],
    "0.01",
    "",
)


@asynccontextmanager
async def furnished(stack: Stack, *, live: bool = False) -> AsyncIterator[Account]:
    """The account, made over HTTP; users of their own, like everybody's.

    `live` gives plain names and a live key: for a stack of its own, whose OpenRouter is the sandbox.
    """
    async with signed_in(stack, "maya", exact=live) as maya, signed_in(stack, "tom", exact=live) as tom:
        maya.key = f"sk-or-{'v1' if live else 'test'}-{uuid4().int}"
        good(await maya.http.put(KEY_PATH, json={"api_key": maya.key}))
        release, clause, failing = [await maya.publish(**each) for each in (RELEASE, CLAUSE, FAILING)]
        poster = await maya.publish(**{**POSTER, "config": {**POSTER["config"], "modalities": ["image", "text"]}})
        draft = await maya.create(**UNFINISHED)
        prompt = release["openrouter_config"] | {"prompt_template": RELEASE["config"]["prompt_template"] + " Be brief."}
        good(await maya.http.patch(f"/api/resources/{release['id']}", json={"openrouter_config": prompt}))
        own = await maya.result(release["id"], input={"commits": COMMITS})
        sold = await tom.result(release["id"], input={"commits": COMMITS, "tone": "matter-of-fact"})
        await tom.result(clause["id"], input={"clause": A_CLAUSE})
        painted = await maya.result(poster["id"], input={"event": "jazz in the park, 3 June"})
        failed = (await maya.execute(failing["id"], input={"thread": "…"})).json()
        workflow = await _workflow(maya, clause["id"], failing["id"])
        limits = {"key_daily_usd": "0.60", "resources": [{"resource_id": release["id"], "daily_usd": "0.10"}]}
        good(await maya.http.put("/api/budgets", json=limits))
        page, listing = f"/resources/{release['id']}", f"/listings/{maya.name}/{release['slug']}"
        paths = {
            "resources": "/resources",
            "resource": page,
            "resource-draft": f"/resources/{draft['id']}",
            "resource-edit": f"{page}/edit",
            "try": f"{page}/try",
            "try-ended": f"{page}/try?run={own['execution_id']}",
            "listing": listing,
            "listing-try": f"{listing}/try",
            "executions": "/executions?role=owner",
            "execution": f"/executions/{own['execution_id']}",
            "execution-sold": f"/executions/{sold['execution_id']}",
            "execution-painted": f"/executions/{painted['execution_id']}",
            "execution-failed": f"/executions/{failed['execution_id']}",
            "workflows": "/workflows",
            "workflow-failed": f"/workflows/{workflow}",
            "openrouter-limits": "/settings/openrouter",
        }
        resources = {"release": release, "clause": clause, "poster": poster}
        yield Account(maya, tom, resources, paths)


async def _workflow(maya: Person, works: str, fails: str) -> str:
    """The id of one that has failed in its second of three steps."""
    steps = [
        {"name": "explain", "resource": works, "input": {"clause": A_CLAUSE}},
        {"name": "sum_up", "resource": fails, "input": {"thread": "{{steps.explain.text}}"}},
        {"name": "translate", "resource": works, "input": {"clause": "{{steps.sum_up.text}}"}},
    ]
    begun = await maya.http.post("/api/workflows", json={"steps": steps})
    assert begun.status_code == 202, begun.text
    path = f"/api/workflows/{begun.json()['workflow_id']}"

    async def ended() -> bool:
        return bool((await maya.get(path))["status"] == "failed")

    await until(ended)
    return str(begun.json()["workflow_id"])
