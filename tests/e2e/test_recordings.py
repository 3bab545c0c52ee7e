"""Every recorded answer of OpenRouter, and many that nobody recorded, executed plain and streamed through the whole system.

What is right is read from the recording by the few lines of this file, which share nothing with the code that they judge.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.stack import Stack
from tests.e2e.client import Event, Person, check_problem, connected, forget_cooldowns, text_of
from tests.e2e.hostile_recordings import CASES
from tests.stack import shared_data

FOLDER = shared_data() / "openrouter-responses"
RECORDED = sorted(file.name.removesuffix(".meta.json") for file in FOLDER.glob("*.meta.json"))
STATUSES = {
    "invalid": 422,
    "key_rejected": 409,
    "credits_exhausted": 409,
    "spend_limit": 409,
    "moderated": 422,
    "model_unavailable": 409,
    "rate_limited": 429,
    "timeout": 504,
    "upstream": 502,
    "unavailable": 503,
}
CODES_OF_STATUSES = {
    400: "invalid",
    401: "key_rejected",
    402: "credits_exhausted",
    404: "model_unavailable",
    429: "rate_limited",
}
PATIENCE_S = 25


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alice(recorded_stack: Stack) -> AsyncIterator[Person]:
    """The creator of every resource here."""
    async with connected(recorded_stack, "alice") as person:
        yield person


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bob(recorded_stack: Stack) -> AsyncIterator[Person]:
    """Somebody else, who executes them."""
    async with connected(recorded_stack, "bob") as person:
        yield person


# What a recording says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A recorded answer and the JSON objects in it."""

    status: int
    documents: list[dict[str, Any]]

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The choices of all documents, in order."""
        return [choice for document in self.documents for choice in document.get("choices") or []]

    @property
    def error(self) -> dict[str, Any] | None:
        """The first error object."""
        return next((document["error"] for document in self.documents if document.get("error")), None)

    def last(self, name: str) -> Any:
        """The last value of a member that any document has."""
        return next((document[name] for document in reversed(self.documents) if document.get(name)), None)


def recording(case: str) -> Recording:
    """A case of the shared folder."""
    meta = json.loads((FOLDER / f"{case}.meta.json").read_text())
    text = (FOLDER / meta["body_file"]).read_text()
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    documents = [json.loads(part, parse_float=Decimal) for part in lines or [text]]
    return Recording(meta["status"], documents)


def code_of(said: Recording) -> str | None:
    """The error code that the answer must get, or None where it is a success."""
    if said.error is None:
        return None if said.choices else "upstream"
    message = said.error["message"]
    if "not a valid model" in message:
        return "model_unavailable"
    if "reasons" in said.error.get("metadata", {}) or "moderation" in message:
        return "moderated"
    return CODES_OF_STATUSES[said.error["code"]]


def cost_of(said: Recording) -> Decimal | None:
    """What the account was charged, or None where the answer does not say."""
    usage = said.last("usage") or {}
    if usage.get("cost") is None:
        return None
    own = Decimal(usage["cost_details"]["upstream_inference_cost"]) if usage.get("is_byok") else Decimal(0)
    return Decimal(usage["cost"]) + own


def tools_of(said: Recording) -> list[tuple[str, str, Any]]:
    """Id, name and arguments of every tool call."""
    calls: dict[int, list[str]] = {}
    for choice in said.choices:
        for piece in (choice.get("message") or choice.get("delta") or {}).get("tool_calls") or []:
            call = calls.setdefault(piece.get("index") or 0, ["", "", ""])
            function = piece.get("function", {})
            for place, value in enumerate((piece.get("id"), function.get("name"), function.get("arguments"))):
                call[place] += value or ""
    return [(identity, name, json.loads(arguments or "{}")) for identity, name, arguments in calls.values()]


def joined(said: Recording, name: str) -> str:
    """The pieces of a text member of the message, put together."""
    return "".join((choice.get("message") or choice.get("delta") or {}).get(name) or "" for choice in said.choices)


def strings_of(value: Any) -> list[str]:
    """Every string inside a JSON value."""
    if isinstance(value, dict):
        return [found for inner in value.values() for found in strings_of(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in strings_of(inner)]
    return [value] if isinstance(value, str) else []


# Running it -----------------------------------------------------------------------------------------------------------


async def run_both(alice: Person, bob: Person, case: str) -> tuple[dict[str, Any], list[Event]]:
    """The JSON of alice's plain run, and the events of bob's streamed run, both within the time a person waits."""
    resource = await alice.publish(model=f"recorded/{case}")
    begun_s = time.monotonic()
    await forget_cooldowns(alice.stack)
    plain = await alice.execute(resource["id"])
    assert time.monotonic() - begun_s < PATIENCE_S
    # Whether the key or the model rests after this answer is judged elsewhere.
    await forget_cooldowns(alice.stack)
    events = await bob.stream(resource["id"])
    assert time.monotonic() - begun_s < 2 * PATIENCE_S
    body: dict[str, Any] = plain.json()
    assert plain.status_code == (200 if events[-1].kind == "completed" else body["status"]), plain.text
    return body, events


def same_for_the_caller(result: dict[str, Any], events: list[Event]) -> None:
    """The streamed result is the plain one, apart from what only the creator may see, and the frames add up to it."""
    streamed = events[-1].data
    own = {"execution_id", "timing", "cost"}
    assert {k: v for k, v in streamed.items() if k not in own} == {k: v for k, v in result.items() if k not in own}
    assert streamed["cost"] == {"price_usd": result["cost"]["price_usd"]}
    assert text_of(events) == result["text"]
    assert "".join(e.data["text"] for e in events if e.kind == "reasoning") == (result["reasoning"] or "")
    announced = [event.data for event in events if event.kind == "output"]
    assert announced == [part for part in result["outputs"] if part["type"] != "text"]


def same_failure(problem: dict[str, Any], events: list[Event], code: str) -> None:
    """Both are proper problems of this code, the same but for the run that they name."""
    failed = events[-1].data
    check_problem(problem, STATUSES[code], code)
    check_problem(failed, STATUSES[code], code)
    own = {"execution_id", "retry_after_s"}
    if "action_url" in problem:
        # About the creator's account: nobody else is told.
        own |= {"action_url", "detail"}
    assert {k: v for k, v in failed.items() if k not in own} == {k: v for k, v in problem.items() if k not in own}
    assert problem.get("truncated", False) == any(event.kind in {"text", "output"} for event in events)


# Recordings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in RECORDED if code_of(recording(case)) is None])
async def test_recorded_answer_becomes_the_normal_form_when_executed(alice: Person, bob: Person, case: str) -> None:
    said = recording(case)
    result, events = await run_both(alice, bob, case)
    same_for_the_caller(result, events)
    assert result["status"] == "succeeded"
    assert result["text"] == joined(said, "content")
    assert (result["reasoning"] or "") == joined(said, "reasoning")
    assert result["model"] == {
        "requested": f"recorded/{case}",
        "served": said.last("model"),
        "provider": said.last("provider"),
    }
    assert result["finish_reason"] == next(c["finish_reason"] for c in said.choices if c.get("finish_reason"))
    calls = [(p["id"], p["name"], p["arguments"]) for p in result["outputs"] if p["type"] == "tool_call"]
    assert calls == tools_of(said)
    usage = said.last("usage")
    assert result["usage"]["prompt_tokens"] == usage["prompt_tokens"]
    assert result["usage"]["completion_tokens"] == usage["completion_tokens"]
    # The account of the creator is nobody else's business.
    seen = json.dumps([event.data for event in events])
    assert said.documents[0]["id"] not in seen
    assert "model_usd" not in seen


@pytest.mark.parametrize("case", [case for case in RECORDED if code_of(recording(case)) is None])
async def test_recorded_cost_is_the_cost_of_the_run_when_executed(alice: Person, case: str) -> None:
    cost = cost_of(recording(case))
    resource = await alice.create(
        model=f"recorded/{case}", pricing={"mode": "cost_plus", "markup_percent": "25", "max_usd": "1"}
    )
    result = await alice.result(resource["id"])
    view = await alice.execution(result["execution_id"])
    assert view["receipt"]["cost"] == result["cost"]
    if cost is None:
        assert result["cost"] == {"model_usd": None, "markup_usd": None, "price_usd": None, "status": "pending"}
        return
    price = (cost * Decimal("1.25")).quantize(Decimal("0.000001"), rounding="ROUND_HALF_UP")
    assert {name: Decimal(result["cost"][name]) for name in ("model_usd", "price_usd", "markup_usd")} == {
        "model_usd": cost,
        "price_usd": price,
        "markup_usd": price - cost,
    }
    assert result["cost"]["status"] == "final"
    assert [Decimal(attempt["cost_usd"]) for attempt in view["receipt"]["attempts"]] == [cost]


@pytest.mark.parametrize("case", [case for case in RECORDED if code_of(recording(case)) is not None])
async def test_recorded_failure_gets_its_code_when_executed(alice: Person, bob: Person, case: str) -> None:
    said = recording(case)
    code = code_of(said)
    assert code is not None
    problem, events = await run_both(alice, bob, case)
    same_failure(problem, events, code)
    assert text_of(events) == joined(said, "content")
    spoken = [text for text in strings_of(said.documents) if len(text) > 12 and text not in text_of(events)]
    shown = json.dumps([problem, events[-1].data])
    assert [text for text in spoken if text in shown] == []
    view = await alice.execution(problem["execution_id"])
    assert (view["status"], view["error"]["code"]) == ("failed", code)
    assert view["cost"]["price_usd"] == "0"
    if said.status >= 400:
        # Refused before anything was generated: nothing was charged, and that is known.
        assert (view["cost"]["model_usd"], view["cost"]["status"]) == ("0", "final")


async def test_recorded_files_are_served_when_executed(alice: Person) -> None:
    kinds = {"chat-image-output": ("image", "image/png"), "stream-audio-output": ("audio", "audio/mpeg")}
    for case, (kind, mime_type) in kinds.items():
        resource = await alice.create(model=f"recorded/{case}")
        [part] = [p for p in (await alice.result(resource["id"]))["outputs"] if p["type"] != "text"]
        assert (part["type"], part["mime_type"]) == (kind, mime_type)
        served = await alice.http.get(part["url"])
        assert (served.status_code, len(served.content)) == (200, part["bytes"])
        assert served.headers["content-type"] == mime_type


async def test_recorded_citations_are_parts_when_executed(alice: Person) -> None:
    said = recording("chat-annotations")
    [wanted] = [c["message"]["annotations"] for c in said.choices if c["message"].get("annotations")]
    resource = await alice.create(model="recorded/chat-annotations")
    parts = (await alice.result(resource["id"]))["outputs"]
    cited = [part["url"] for part in parts if part["type"] == "citation"]
    assert cited == [entry["url_citation"]["url"] for entry in wanted]


# What nobody recorded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
async def test_hostile_answer_ends_well_when_executed(alice: Person, bob: Person, name: str) -> None:
    case = CASES[name]
    body, events = await run_both(alice, bob, name)
    if case.code is not None:
        same_failure(body, events, case.code)
        assert case.truncated is None or body.get("truncated", False) == case.truncated
        view = await alice.execution(body["execution_id"])
        assert (view["status"], view["cost"]["price_usd"]) == ("failed", "0")
        return
    same_for_the_caller(body, events)
    assert case.text is None or body["text"] == case.text
    assert case.finish is None or body["finish_reason"] == case.finish
    assert case.truncated is None or body["truncated"] == case.truncated
    assert case.kinds is None or [part["type"] for part in body["outputs"]] == case.kinds
    assert [(p["name"], p["arguments"]) for p in body["outputs"] if p["type"] == "tool_call"] == case.tools
    if case.cost in {"pending", "unknown"}:
        assert (body["cost"]["model_usd"], body["cost"]["status"]) == (None, case.cost)
    elif case.cost is not None:
        assert (body["cost"]["model_usd"], body["cost"]["status"]) == (case.cost, "final")


async def test_sandbox_serves_the_other_cases_when_one_cannot_be_read(recorded_stack: Stack, alice: Person) -> None:
    log = (recorded_stack.directory / "logs" / "sandbox.log").read_text()
    assert "broken.meta.json is not a recording" in log
    page = await alice.get("/api/models", q="recorded/", provider="recorded", limit=200)
    served = {model["id"].removeprefix("recorded/") for model in page["items"]}
    assert served == {*RECORDED, *CASES}
