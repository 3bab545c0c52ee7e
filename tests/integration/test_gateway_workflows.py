"""Following workflows whose frames come late, not at all, or from before a resume: the view is whole all the same."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
import pytest_asyncio

from contracts.base import new_execution_id
from contracts.errors import ErrorCode, ServiceError
from contracts.subjects import FRAMES_STREAM, WORKFLOWS_GET, frames_subject
from contracts.workflows import GetWorkflow, WorkflowView
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.gateway import examples, watch, workflow_watch
from services.runtime.bus import Bus
from tests.integration.gateway_parts import Event, error_body, events_of, peer, running_gateway
from tests.waiting import until

FAILURE = {"code": "upstream", "message": "The step `draft` failed: The provider failed. Resume the workflow then."}


class KnownWorkflow:
    """The executor's side of one workflow: what `get` answers, and the frames that this test says."""

    def __init__(self) -> None:
        self.id = new_execution_id()
        self.asked = 0
        self.view: dict[str, Any] = {**examples.WORKFLOW, "workflow_id": str(self.id), "last_seq": 0}
        self._bus: Bus | None = None

    def register(self, bus: Bus) -> None:
        self._bus = bus
        bus.serve(WORKFLOWS_GET, self._get)

    async def _get(self, request: GetWorkflow) -> WorkflowView:
        self.asked += 1
        if request.workflow_id != self.id:
            raise ServiceError(ErrorCode.NOT_FOUND, "There is no workflow of yours with this id.")
        return WorkflowView.model_validate(self.view)

    async def say(self, seq: int, kind: str = "step", data: dict[str, Any] | None = None) -> None:
        """Commits frame `seq` and says it."""
        assert self._bus is not None
        self.view["last_seq"] = max(self.view["last_seq"], seq)
        step = {
            "workflow_id": str(self.id),
            "step": f"s{seq}",
            "status": "running",
            "execution_id": None,
            "error": None,
        }
        payload = orjson.dumps({"seq": seq, "type": kind, "data": step if data is None else data})
        await self._bus.nc.publish(frames_subject("gateway", self.id), payload)
        await self._bus.nc.flush()

    def end(self, status: str, last_seq: int) -> None:
        error = FAILURE if status == "failed" else None
        self.view |= {
            "status": status,
            "last_seq": last_seq,
            "finished_at": examples.WORKFLOW["created_at"],
            "error": error,
        }

    async def complete(self, seq: int) -> None:
        self.end("succeeded", seq)
        await self.say(seq, "completed", self.view)


@pytest_asyncio.fixture(scope="module")
async def client(nats_server: Nats, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    async with running_gateway(nats_server, credentials) as client:
        yield client


@pytest_asyncio.fixture
async def workflow(nats_server: Nats, credentials: Credentials) -> AsyncIterator[KnownWorkflow]:
    known = KnownWorkflow()
    async with peer("executor", nats_server, credentials, known.register) as bus:
        await bus.declare(FRAMES_STREAM)
        yield known


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of silence, and the second that frames get, pass in a moment."""
    monkeypatch.setattr(watch, "SILENCE_S", 0.2)
    monkeypatch.setattr(workflow_watch, "GRACE_S", 0.1)


class Following:
    """An open view; `events` is what it has shown so far."""

    def __init__(self, client: httpx.AsyncClient, workflow_id: UUID, after: int = 0) -> None:
        self.events: list[Event] = []
        self._task = asyncio.create_task(self._read(client, workflow_id, after))

    async def _read(self, client: httpx.AsyncClient, workflow_id: UUID, after: int) -> None:
        headers = {"Last-Event-ID": str(after)} if after else {}
        async with client.stream("GET", f"/api/workflows/{workflow_id}/events", headers=headers) as answer:
            text = ""
            async for chunk in answer.aiter_text():
                *blocks, text = (text + chunk).split("\n\n")
                self.events += events_of("\n\n".join(blocks))

    async def until(self, seq: int) -> None:
        """It has shown frame `seq`."""
        await until(lambda: any(event.seq == seq for event in self.events))

    async def whole(self) -> list[Event]:
        await self._task
        return self.events


async def follow(client: httpx.AsyncClient, workflow_id: UUID, after: int = 0) -> list[Event]:
    return await Following(client, workflow_id, after).whole()


def shape(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.seq, event.kind) for event in events]


async def test_frames_that_are_on_their_way_are_waited_for(client: httpx.AsyncClient, workflow: KnownWorkflow) -> None:
    workflow.view["last_seq"] = 2  # committed, and not yet said
    following = Following(client, workflow.id)
    await until(lambda: workflow.asked >= 2)
    for seq in (1, 2):
        await workflow.say(seq)
    await workflow.complete(3)
    events = await following.whole()
    assert shape(events) == [(1, "step"), (2, "step"), (3, "completed")]
    assert events[-1].data == WorkflowView.model_validate(workflow.view).model_dump(mode="json")


@pytest.mark.usefixtures("impatient")
async def test_a_lost_frame_is_made_up_for_by_one_snapshot(client: httpx.AsyncClient, workflow: KnownWorkflow) -> None:
    await workflow.say(1)
    following = Following(client, workflow.id)
    await following.until(1)
    await workflow.say(3)
    await following.until(3)
    await workflow.say(4)
    await workflow.complete(5)
    events = await following.whole()
    assert shape(events) == [(1, "step"), (3, "snapshot"), (4, "step"), (5, "completed")]
    assert events[1].data["steps"][0]["name"] == "draft"
    assert events[1].data["status"] == "running"


@pytest.mark.usefixtures("impatient")
async def test_frames_that_nobody_says_any_more_are_noticed_in_the_silence(
    client: httpx.AsyncClient, workflow: KnownWorkflow
) -> None:
    await workflow.say(1)
    following = Following(client, workflow.id)
    await following.until(1)
    workflow.view["last_seq"] = 3
    await following.until(3)
    workflow.end("canceled", 5)
    events = await following.whole()
    assert shape(events) == [(1, "step"), (3, "snapshot"), (4, "snapshot"), (5, "completed")]
    assert events[-1].data["status"] == "canceled"


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_a_workflow_whose_frames_are_gone_is_told_by_a_snapshot_and_its_end(
    client: httpx.AsyncClient, workflow: KnownWorkflow, status: str
) -> None:
    workflow.end(status, 9)
    workflow.view["steps"] = [{**step, "result": examples.RESULT} for step in workflow.view["steps"]]
    events = await follow(client, workflow.id)
    assert shape(events) == [(8, "snapshot"), (9, "completed" if status == "succeeded" else "failed")]
    assert [step["result"] for step in events[0].data["steps"]] == [None, None], "results come with the end"
    if status == "failed":
        problem = events[1].data
        assert (problem["status"], problem["code"], problem["detail"]) == (502, "upstream", FAILURE["message"])
        assert "execution_id" not in problem, "it is about no run"
    assert shape(await follow(client, workflow.id, after=8)) == shape(events[1:])
    assert await follow(client, workflow.id, after=9) == []


async def test_the_end_of_an_earlier_start_ends_nothing(client: httpx.AsyncClient, workflow: KnownWorkflow) -> None:
    await workflow.say(1)
    await workflow.say(2, "failed", FAILURE)
    workflow.view["begun_seq"] = 2
    new, old = [Following(client, workflow.id, after) for after in (0, 2)]
    await until(lambda: workflow.asked >= 2)
    await workflow.say(3)
    for each in (new, old):
        await each.until(3)
    await workflow.complete(4)
    assert shape(await old.whole()) == [(3, "step"), (4, "completed")]
    assert shape(await new.whole()) == [(3, "snapshot"), (4, "completed")]


async def test_somebody_elses_workflow_has_no_events(client: httpx.AsyncClient, workflow: KnownWorkflow) -> None:
    answer = await client.get(f"/api/workflows/{new_execution_id()}/events")
    assert answer.status_code == 404
    assert error_body(answer)["code"] == "not_found"
    assert workflow.asked == 1
