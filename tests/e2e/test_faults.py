"""Every way in which an upstream can fail, by the modes of the sandbox: the right status and code, plain and streamed, and a
receipt that says what the failure cost."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal

import pytest

from deploy.local.stack import Stack
from deploy.sandbox.modes import MODES
from tests.e2e.client import (
    KEY_PATH,
    Person,
    check_problem,
    connected,
    forget_cooldowns,
    good,
    problem,
    signed_in,
    text_of,
)
from tests.matrix import endings as end
from tests.matrix.case import NONE, Case
from tests.matrix.cases import CASES

BY_MODE = {case.mode: case for case in CASES if case.mode is not None}
# Its first drop comes after 2 s, too late for a run that waits 1 s.
BY_MODE["drip"] = BY_MODE["slow"]
FAILURES = {mode: case for mode, case in BY_MODE.items() if not case.succeeds}


def timeouts_for(wanted: Case) -> dict[str, float]:
    """Short where the case waits for it to pass, long everywhere else: sixty runs at once are a crowd."""
    short = {end.NOT_BEGUN: "first_token_s", end.STALLED: "idle_s"}.get(wanted.ending)
    return {"first_token_s": 25.0, "idle_s": 25.0, "total_s": 60.0} | ({short: 1.0} if short else {})


async def check_failure(stack: Stack, mode: str, wanted: Case) -> None:
    """One mode, plain and streamed at once, by a caller who is not the creator."""
    async with connected(stack, "alice") as alice, connected(stack, "bob") as bob:
        resource = await alice.publish(model=f"sandbox/{mode}", timeouts=timeouts_for(wanted))
        ending = wanted.ending
        assert ending.code is not None
        if ending.status == 429:
            # After the first one the key or its model rests, and the second is not even sent.
            plain = await bob.execute(resource["id"])
            await forget_cooldowns(stack)
            events = await bob.stream(resource["id"])
        else:
            plain, events = await asyncio.gather(bob.execute(resource["id"]), bob.stream(resource["id"]))
        assert plain.status_code == ending.status, (mode, plain.text)
        body = plain.json()
        assert events[-1].kind == "failed", (mode, events[-1])
        for failed in (body, events[-1].data):
            check_problem(failed, ending.status, ending.code)
            assert failed["detail"] == (ending.stranger or ending.sentence), mode
            assert failed["retryable"] == ending.retryable, (mode, failed)
            assert failed.get("truncated", False) == wanted.truncated, mode
            assert "action_url" not in failed, mode
            await check_receipt(alice, failed["execution_id"], mode, wanted)
            theirs = await bob.execution(failed["execution_id"])
            assert (theirs["status"], theirs["cost"], theirs["receipt"]) == ("failed", {"price_usd": "0"}, None), mode
        assert bool(text_of(events)) == wanted.truncated, mode
        if ending.status in {429, 503}:
            assert int(plain.headers["retry-after"]) >= 1
        shown = json.dumps([body, events[-1].data])
        for leak in ("user_SANDBOX", "hello", "sk-or-", "Sandbox"):
            assert leak not in shown, (mode, leak)


async def check_receipt(creator: Person, execution_id: str, mode: str, wanted: Case) -> None:
    """What the failure cost, and how often it was tried."""
    receipt = (await creator.execution(execution_id))["receipt"]
    assert (receipt["status"], receipt["code"], receipt["truncated"]) == (
        "failed",
        wanted.ending.code,
        wanted.truncated,
    )
    assert receipt["cost"]["price_usd"] == "0", mode
    assert len(receipt["attempts"]) == wanted.attempts, (mode, receipt["attempts"])
    assert {attempt["status"] for attempt in receipt["attempts"]} == {"failed"}, mode
    if wanted.cost == NONE:
        assert (receipt["cost"]["model_usd"], receipt["cost"]["status"]) == ("0", "final"), (mode, receipt)


async def test_every_failure_gets_its_code_when_executed(stack: Stack) -> None:
    outcomes = await asyncio.gather(
        *(check_failure(stack, mode, wanted) for mode, wanted in FAILURES.items()), return_exceptions=True
    )
    assert [outcome for outcome in outcomes if outcome is not None] == []


async def check_success(stack: Stack, mode: str) -> None:
    """One mode, plain and streamed: the same result, and the cost that the sandbox charged."""
    async with connected(stack, "alice") as alice:
        resource = await alice.create(model=f"sandbox/{mode}")
        plain, events = await asyncio.gather(alice.result(resource["id"]), alice.stream(resource["id"]))
        streamed = events[-1].data
        # The sandbox counts prompt and answer alike for both, except that `flaky` refuses the first of two.
        own = {"execution_id", "timing", "attempts"}
        assert {k: v for k, v in plain.items() if k not in own} == {
            k: v for k, v in streamed.items() if k not in own
        }, mode
        assert text_of(events) == plain["text"], mode
        wanted = BY_MODE.get(mode)
        assert plain["finish_reason"] == (wanted.finish if wanted else "stop"), mode
        assert plain["truncated"] == (wanted is not None and wanted.truncated), mode
        charged = [Decimal(call["cost"]) for call in await alice.upstream_calls() if call["cost"] is not None]
        if mode not in {"byok", "adjusted"}:
            assert [Decimal(result["cost"]["model_usd"]) for result in (plain, streamed)] == charged, mode


async def test_every_other_answer_is_a_result_when_executed(stack: Stack) -> None:
    lookups = {"no-usage", "half-json", "late"}
    modes = [mode for mode in MODES if mode not in FAILURES and mode not in lookups]
    outcomes = await asyncio.gather(*(check_success(stack, mode) for mode in modes), return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome is not None] == []


@pytest.mark.parametrize("mode", ["no-usage", "half-json"])
async def test_cost_is_looked_up_when_the_end_of_the_answer_is_missing(stack: Stack, mode: str) -> None:
    async with connected(stack, "alice") as alice:
        resource = await alice.create(model=f"sandbox/{mode}")
        result = await alice.result(resource["id"])
        assert (result["status"], result["cost"]["status"]) == ("succeeded", "pending")
        assert (result["cost"]["model_usd"], result["cost"]["price_usd"]) == (None, "0.01")


async def test_affordable_answer_is_given_when_max_tokens_is_small_enough(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        resource = await alice.create(model="sandbox/status-402-max-tokens", config={"max_tokens": 100})
        assert (await alice.result(resource["id"]))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("word", "code"), [("poor", "credits_exhausted"), ("limit", "spend_limit")], ids=["no-credits", "key-limit"]
)
async def test_creator_learns_what_to_do_when_the_key_cannot_pay(stack: Stack, word: str, code: str) -> None:
    async with signed_in(stack, "alice") as alice:
        # `GET /key` knows nothing of the account's balance, so such keys connect.
        status = good(await alice.http.put(KEY_PATH, json={"api_key": f"sk-or-test-{word}-1234"}))
        assert status["connected"]
        refused = problem(await alice.execute((await alice.create())["id"]), 409, code)
        assert refused["action_url"].startswith("https://openrouter.ai/")
