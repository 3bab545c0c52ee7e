"""Every case of the fault matrix, plain and streamed, through a real gateway and a real executor: the state, the code, the
sentence, the retries, what was delivered, and what the receipt says that it cost."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from contracts.execution import Receipt
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from tests.e2e.client import Event, check_problem, checked, read_events, text_of
from tests.integration.executor_parts import House, executor_in, house_without_executor
from tests.integration.gateway_parts import bearer, running_gateway
from tests.matrix.case import LOOKUP, NONE, UNKNOWN, Case
from tests.matrix.cases import CASES
from tests.matrix.endings import KEY_SPENT, UNREACHABLE, Ending
from tests.matrix.plays import LEAK, Play
from tests.matrix.upstream import MatrixUpstream, matrix_upstream
from tests.stack import Database, clone_of

AT_ONCE = 20
SETTLED_S = 120
PRICE = Decimal("0.01")


@dataclass
class Lab:
    """What a run needs."""

    house: House
    upstream: MatrixUpstream
    http: httpx.AsyncClient
    room: asyncio.Semaphore


@dataclass
class Outcome:
    """What a run came to. `body` is the result or the problem, `events` are those of a streamed run."""

    run: str
    owner: str
    status: int | None
    body: dict[str, Any]
    events: list[Event] | None


def models() -> dict[str, tuple[Play, ...]]:
    """What every model of the matrix plays: the stream of each case, and its document where there is one."""
    streams = {f"stream/{case.name}": case.plays for case in CASES}
    documents = {f"document/{case.name}": (case.plain,) for case in CASES if case.plain is not None}
    return streams | documents


@pytest_asyncio.fixture(scope="module")
async def lab(template_database: Database, nats_server: Nats, credentials: Credentials) -> AsyncIterator[Lab]:
    """One executor with room for everything, whose upstream is the matrix, and a gateway in front of it."""
    async with (
        clone_of(template_database) as database,
        house_without_executor(database, nats_server, credentials) as house,
        matrix_upstream(models()) as upstream,
        executor_in(house, sandbox_url=upstream.url),
        running_gateway(nats_server, credentials) as http,
    ):
        yield Lab(house, upstream, http, asyncio.Semaphore(AT_ONCE))


async def execute(lab: Lab, model: str, case: Case, *, streamed: bool, live: bool = False) -> Outcome:
    """One run: plain by the creator, streamed by a stranger. Every run has a key, a model and a caller of its own."""
    run = uuid4().hex
    owner = f"ada-{run}"
    lab.house.other.keys[owner] = f"sk-or-test-{uuid4().int}"
    if live:
        lab.house.other.live.add(owner)
    resource = lab.house.other.offer(model, owner=owner, timeouts=case.timeouts)
    request = {"resource": resource, "input": {"text": run}, "stream": streamed}
    async with lab.room:
        if not streamed:
            answer = await lab.http.post("/api/execute", json=request, headers=bearer(owner))
            return Outcome(run, owner, answer.status_code, answer.json(), None)
        caller = bearer(f"bob-{run}")
        async with lab.http.stream("POST", "/api/execute", json=request, headers=caller) as answer:
            assert answer.status_code == 200, await answer.aread()
            events = checked([event async for event in read_events(answer)])
            return Outcome(run, owner, None, events[-1].data, events)


async def check(lab: Lab, case: Case, outcome: Outcome) -> None:
    """One run of a case, compared with what the matrix says of it."""
    if case.succeeds:
        check_result(case, outcome)
    else:
        check_failure(case, case.ending, outcome)
    assert lab.upstream.attempts[outcome.run] == case.attempts
    check_receipts(case, outcome, await lab.house.receipts(UUID(outcome.body["execution_id"])))


def check_result(case: Case, outcome: Outcome) -> None:
    """What a caller gets of a success."""
    result = outcome.body
    assert outcome.status in (200, None), result
    assert (result["status"], result["finish_reason"], result["truncated"]) == (
        "succeeded",
        case.finish,
        case.truncated,
    )
    assert (result["text"], result["attempts"]) == (case.text, case.attempts)
    kinds = tuple(part["type"] for part in result["outputs"])
    assert kinds == (case.kinds if case.kinds is not None else ("text",) * bool(case.text))
    if outcome.events is not None:
        assert text_of(outcome.events) == case.text
        announced = [event.data for event in outcome.events if event.kind == "output"]
        assert announced == [part for part in result["outputs"] if part["type"] != "text"]


def check_failure(case: Case, ending: Ending, outcome: Outcome) -> None:
    """What a caller gets of a failure: all of its problem, and nothing of what upstream said."""
    problem, stranger = outcome.body, outcome.events is not None
    assert ending.code is not None
    assert outcome.status in (ending.status, None), problem
    check_problem(problem, ending.status, ending.code)
    assert problem["detail"] == (ending.stranger or ending.sentence if stranger else ending.sentence)
    assert ("action_url" in problem) == (ending.stranger is not None and not stranger)
    assert problem["retryable"] == ending.retryable
    assert problem.get("truncated", False) == case.truncated
    for leak in (LEAK, outcome.run, "sk-or-"):
        assert leak not in json.dumps({**problem, "instance": None}), leak
    if outcome.events is not None:
        assert text_of(outcome.events).startswith(case.text)
        assert any(event.kind in {"text", "reasoning", "output"} for event in outcome.events) == case.truncated


def check_receipts(case: Case, outcome: Outcome, receipts: list[Receipt]) -> None:
    """What its creator is told of a run: the end, the attempts, and the cost, first and last."""
    first, last = receipts[0], receipts[-1]
    for receipt in receipts:
        assert (receipt.status, receipt.code) == ("succeeded" if case.succeeds else "failed", case.ending.code)
        assert (receipt.truncated, len(receipt.attempts)) == (case.truncated, case.attempts)
        assert receipt.cost.price_usd == (PRICE if case.succeeds else 0)
    stated = None if case.cost == UNKNOWN else Decimal(0) if case.cost == NONE else Decimal(case.cost.split(": ")[1])
    assert (last.cost.model_usd, last.cost.status) == (stated, "unknown" if stated is None else "final")
    if case.cost == LOOKUP:
        assert (first.cost.model_usd, first.cost.status, len(receipts)) == (None, "pending", 2)
    else:
        assert len(receipts) == 1
    if case.succeeds and outcome.events is None:
        assert outcome.body["cost"]["status"] == first.cost.status


async def unsettled(lab: Lab) -> list[dict[str, Any]]:
    """The calls whose cost has to be looked up still."""
    rows = await lab.house.database.fetch(
        "SELECT e.model_id, a.status, a.cost_status, a.generation_id FROM executor.attempts a "
        "JOIN executor.executions e ON e.id = a.execution_id WHERE a.cost_status = 'pending' OR a.status = 'running'"
    )
    return [dict(row) for row in rows]


async def until_settled(lab: Lab) -> None:
    """Waits until all costs are looked up."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLED_S):
            while await unsettled(lab):  # noqa: ASYNC110 - what is waited for happens in the executor
                await asyncio.sleep(0.1)
    assert await unsettled(lab) == []


async def test_every_case_of_the_matrix_ends_as_it_says_plain_and_streamed(lab: Lab) -> None:
    by_name = {case.name: case for case in CASES}
    assert len(by_name) == len(CASES)
    runs = [(model, by_name[model.partition("/")[2]], streamed) for model in models() for streamed in (False, True)]
    outcomes = await asyncio.gather(
        *(execute(lab, model, case, streamed=streamed) for model, case, streamed in runs), return_exceptions=True
    )
    await until_settled(lab)
    wrong = []
    for (model, case, streamed), outcome in zip(runs, outcomes, strict=True):
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            await check(lab, case, outcome)
        except (AssertionError, KeyError, httpx.HTTPError) as error:
            # Every case is to be heard of, whatever the others do.
            wrong.append(f"{model} {'streamed' if streamed else 'plain'}: {error!r}"[:1500])
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(runs)} runs:\n" + "\n".join(wrong), pytrace=False)


async def test_upstream_that_takes_no_connections_is_asked_three_times(lab: Lab) -> None:
    case = Case("closed", "a closed port", (), UNREACHABLE, attempts=3, cost=NONE)
    for streamed in (False, True):
        outcome = await execute(lab, "stream/text", case, streamed=streamed, live=True)
        check_failure(case, UNREACHABLE, outcome)
        check_receipts(case, outcome, await lab.house.receipts(UUID(outcome.body["execution_id"])))


async def test_a_run_reads_differently_to_its_caller_and_to_its_creator(lab: Lab) -> None:
    case = next(case for case in CASES if case.ending is KEY_SPENT)
    outcome = await execute(lab, f"stream/{case.name}", case, streamed=True)
    path = f"/api/executions/{outcome.body['execution_id']}"
    told = {}
    for person in (f"bob-{outcome.run}", outcome.owner):
        error = (await lab.http.get(path, headers=bearer(person))).json()["error"]
        told[person] = (error["message"], error.get("action_url") is not None)
    assert list(told.values()) == [(KEY_SPENT.stranger, False), (KEY_SPENT.sentence, True)]
