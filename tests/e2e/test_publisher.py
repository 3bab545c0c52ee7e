"""Another service, signed in as a publisher, with nats-py and JSON and none of our code: what it gets, and what it cannot do.

The client spells its subjects and headers by hand on purpose: this is the language as somebody else speaks it, in any
programming language, and a change of a constant of ours must not go unnoticed here. The examples of contracts/README.md
are executed as they stand.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts.subjects import REGISTRY
from deploy.local.demo import set_up_demo
from deploy.local.process import inherited_environment
from deploy.local.stack import Stack
from tests.e2e.client import Person, connected
from tests.stack import ROOT
from tests.waiting import PATIENCE_S, until

ME = "demo"
README = (ROOT / "contracts" / "README.md").read_text(encoding="utf-8")
Body = dict[str, Any]


@dataclass
class Publisher:
    """A plain NATS client of the publisher, and what the server has refused it."""

    nc: Client
    refused: list[str] = field(default_factory=list)

    async def ask(self, verb: str, body: Any, headers: dict[str, str] | None = None) -> Msg:
        """A request in the name of the publisher. `body` is JSON unless it is bytes."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        subject = f"x402jobs.v1.as.{ME}.execution.{verb}"
        return await self.nc.request(subject, payload, timeout=PATIENCE_S, headers=headers)

    async def good(self, verb: str, body: Body) -> Body:
        """The reply to a request that must succeed."""
        reply = await self.ask(verb, body)
        assert not reply.headers, reply.data
        found: Body = json.loads(reply.data)
        return found

    async def error(self, verb: str, body: Any) -> Body:
        """The error that a request must be answered with: standard headers and a body that say the same."""
        reply = await self.ask(verb, body)
        assert reply.headers is not None, reply.data
        found: Body = json.loads(reply.data)
        assert reply.headers["Nats-Service-Error-Code"] == found["code"]
        sentence = reply.headers["Nats-Service-Error"]
        assert sentence == found["message"].encode("ascii", "replace").decode()
        assert sentence.endswith((".", "!")) or found["fields"], found
        return found

    async def submit(self, body: Any, headers: dict[str, str] | None = None) -> Body:
        """Hands a job over; the acknowledgement of the stream."""
        acknowledged: Body = json.loads((await self.ask("submit", body, headers)).data)
        assert acknowledged["stream"], acknowledged
        assert "error" not in acknowledged
        return acknowledged

    async def frames(self, execution_id: str) -> Subscription:
        return await self.listen(f"x402jobs.v1.execution.frames.{ME}.{execution_id}")

    async def finished(self) -> Subscription:
        return await self.listen(f"x402jobs.v1.as.{ME}.execution.finished")

    async def listen(self, subject: str) -> Subscription:
        subscription = await self.nc.subscribe(subject)
        await self.nc.flush()
        return subscription

    async def refusals(self) -> list[str]:
        """What the server refused since the last look: it answers in order, so all is here after the second round trip."""
        for _ in range(2):
            await self.nc.flush()
        refused, self.refused[:] = list(self.refused), []
        return refused

    async def may_publish(self, subject: str) -> bool:
        await self.nc.publish(subject, b"{}")
        return not await self.refusals()

    async def may_subscribe(self, subject: str) -> bool:
        subscription = await self.nc.subscribe(subject)
        refused = await self.refusals()
        if not refused:
            await subscription.unsubscribe()
        return not refused


@pytest_asyncio.fixture
async def publisher(stack: Stack) -> AsyncIterator[Publisher]:
    facts = json.loads((stack.directory / "stack.json").read_text())
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    nc = await nats.connect(
        facts["nats_url"],
        user=facts["publisher"]["user"],
        password=facts["publisher"]["password"],
        inbox_prefix=f"_INBOX.{facts['publisher']['name']}".encode(),
        error_cb=note,
        allow_reconnect=False,
    )
    try:
        yield Publisher(nc, refused)
    finally:
        await nc.close()


@pytest_asyncio.fixture
async def creator(stack: Stack) -> AsyncIterator[Person]:
    async with connected(stack, "creator") as person:
        yield person


async def name_of(creator: Person, model: str = "sandbox/echo") -> str:
    """A published resource of the creator, as publishers name it."""
    resource = await creator.publish(model=model)
    return f"{creator.name}/{resource['slug']}"


def new_id() -> str:
    return str(uuid.uuid4())


async def numbered(frames: Subscription) -> list[Body]:
    """All frames of a run: numbered from 1 without gaps, and one that ends it."""
    found: list[Body] = []
    while not found or found[-1]["type"] not in {"completed", "failed"}:
        found.append(json.loads((await frames.next_msg(timeout=PATIENCE_S)).data))
    assert [frame["seq"] for frame in found] == list(range(1, len(found) + 1))
    assert found[0]["type"] == "started"
    return found


def text_of(frames: list[Body]) -> str:
    return "".join(frame["data"]["text"] for frame in frames if frame["type"] == "text")


async def receipt_of(finished: Subscription, execution_id: str, revision: int = 1) -> Body:
    """The `finished` of one run, with the header that makes a second delivery recognisable."""
    while True:
        message = await finished.next_msg(timeout=PATIENCE_S)
        receipt: Body = json.loads(message.data)
        if (receipt["execution_id"], receipt["revision"]) == (execution_id, revision):
            assert message.headers is not None
            assert message.headers["Nats-Msg-Id"]
            return receipt


async def nothing_more(publisher: Publisher, subscription: Subscription) -> None:
    """A further run has come and gone, and nothing more of the earlier one was said."""
    await publisher.nc.flush()
    assert subscription.pending_msgs == 0


# Runs -----------------------------------------------------------------------------------------------------------------


async def test_a_run_gives_its_result_its_frames_and_finished(publisher: Publisher, creator: Person) -> None:
    resource, execution_id = await name_of(creator), new_id()
    frames, finished = await publisher.frames(execution_id), await publisher.finished()
    result = await publisher.good(
        "run", {"execution_id": execution_id, "resource": resource, "input": {"text": "Grüße, one two three"}}
    )
    assert (result["execution_id"], result["status"], result["mode"]) == (execution_id, "succeeded", "test")
    assert result["text"] == "Grüße, one two three"
    assert result["outputs"] == [{"type": "text", "text": "Grüße, one two three"}]
    assert result["cost"] == {"price_usd": "0.01"}, "what it cost is the creator's affair"

    shown = await numbered(frames)
    assert text_of(shown) == result["text"]
    assert shown[-1] == {"seq": len(shown), "type": "completed", "data": result}

    receipt = await receipt_of(finished, execution_id)
    assert (receipt["status"], receipt["price_usd"], receipt["error"]) == ("succeeded", "0.01", None)
    assert "model_usd" not in json.dumps([result, shown, receipt])
    await nothing_more(publisher, frames)
    assert await publisher.refusals() == []


async def test_a_job_is_acknowledged_at_once_and_its_result_fetched_later(
    publisher: Publisher, creator: Person
) -> None:
    resource, execution_id = await name_of(creator, "sandbox/slow"), new_id()
    frames, finished = await publisher.frames(execution_id), await publisher.finished()
    await publisher.submit({"execution_id": execution_id, "resource": resource, "input": {"text": "later"}})
    view = await until(lambda: queued_or_running(publisher, execution_id))
    assert (view["result"], view["finished_at"]) == (None, None)

    shown = await numbered(frames)
    receipt = await receipt_of(finished, execution_id)
    assert (receipt["status"], receipt["price_usd"]) == ("succeeded", "0.01")
    view = await publisher.good("get", {"execution_id": execution_id})
    assert (view["status"], view["caller"]) == ("succeeded", {"kind": "service", "id": ME})
    assert view["result"] == shown[-1]["data"]
    assert view["result"]["text"].endswith("You wrote: later")
    assert (view["cost"], view["receipt"]) == ({"price_usd": "0.01"}, None)


async def queued_or_running(publisher: Publisher, execution_id: str) -> Body | None:
    reply = await publisher.ask("get", {"execution_id": execution_id})
    view: Body = json.loads(reply.data)
    return None if reply.headers else view


async def test_a_job_published_twice_runs_once(publisher: Publisher, creator: Person) -> None:
    resource, execution_id, key = await name_of(creator), new_id(), new_id()
    finished = await publisher.finished()
    job = {"execution_id": execution_id, "resource": resource, "input": {"text": "once"}, "idempotency_key": key}
    first, second = await publisher.submit(job), await publisher.submit(job)
    assert second["seq"] == first["seq"] + 1, "both were handed over"
    named = {"Nats-Msg-Id": execution_id}
    third, copy = await publisher.submit(job, named), await publisher.submit(job, named)
    assert (copy["seq"], copy["duplicate"]) == (third["seq"], True), "the stream itself drops a copy"
    await receipt_of(finished, execution_id)
    # The same key under another id is still the same run, which a plain request is answered with.
    result = await publisher.good("run", {**job, "execution_id": new_id()})
    assert (result["execution_id"], result["text"]) == (execution_id, "once")
    assert len(await creator.upstream_calls()) == 1

    other = await publisher.error("run", {**job, "execution_id": new_id(), "input": {"text": "twice"}})
    assert other["code"] == "conflict"


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (b"{nonsense", "invalid"),
        (b"\xff\xfe\x00", "invalid"),
        (b"", "invalid"),
        (b"[1, 2]", "invalid"),
        ({"input": {"text": "no resource"}}, "invalid"),
        ({"resource": "nobody/nothing", "input": {}}, "not_found"),
        ({"resource": "{mine}", "input": {"text": 7}}, "invalid"),
        ({"resource": "{mine}", "input": {}}, "invalid"),
        ({"resource": "{mine}", "input": {"text": "x", "other": "y"}}, "invalid"),
        ({"resource": "{mine}", "input": {"text": "x"}, "max_price_usd": "0.001"}, "conflict"),
    ],
    ids=["garbage", "not-utf8", "empty", "a-list", "no-resource", "unknown", "wrong-type", "missing", "extra", "dear"],
)
async def test_a_job_that_cannot_run_ends_in_finished(
    publisher: Publisher, creator: Person, job: bytes | Body, code: str
) -> None:
    execution_id = None
    if isinstance(job, dict):
        execution_id = new_id()
        named = await name_of(creator) if job.get("resource") == "{mine}" else job.get("resource")
        job = {**job, "execution_id": execution_id, "resource": named}
    finished = await publisher.finished()
    await publisher.submit(job)
    receipt = json.loads((await finished.next_msg(timeout=PATIENCE_S)).data)
    assert (receipt["status"], receipt["error"]["code"]) == ("failed", code), receipt
    assert receipt["error"]["message"]
    assert execution_id in {None, receipt["execution_id"]}
    assert receipt["price_usd"] in {None, "0"}
    asked = await publisher.error("run", job)
    assert asked["code"] == code, "a request hears the same"
    assert await creator.upstream_calls() == []


async def test_a_long_run_is_canceled(publisher: Publisher, creator: Person) -> None:
    resource, execution_id = await name_of(creator, "sandbox/long"), new_id()
    frames, finished = await publisher.frames(execution_id), await publisher.finished()
    await publisher.submit({"execution_id": execution_id, "resource": resource, "input": {"text": "go on"}})
    while json.loads((await frames.next_msg(timeout=PATIENCE_S)).data)["type"] != "text":
        pass
    view = await publisher.good("cancel", {"execution_id": execution_id})
    assert (view["status"], view["result"]["truncated"]) == ("canceled", True)
    assert 0 < len(view["result"]["text"]) < 200 * len("word000 ")
    receipt = await receipt_of(finished, execution_id)
    assert (receipt["status"], receipt["price_usd"]) == ("canceled", "0.01"), "it had delivered text"
    (call,) = await creator.upstream_calls()
    assert call["state"] == "cancelled"
    again = await publisher.good("cancel", {"execution_id": execution_id})
    assert (again["status"], again["finished_at"]) == ("canceled", view["finished_at"]), "it stays as it ended"


# Who one is, and what one may -----------------------------------------------------------------------------------------


async def test_nothing_in_the_body_makes_a_publisher_somebody_else(publisher: Publisher, creator: Person) -> None:
    draft = await creator.create()
    name = f"{creator.name}/{draft['slug']}"
    as_creator = {
        "resource": name,
        "input": {"text": "let me in"},
        "caller": {"kind": "user", "id": creator.name},
        "viewer": "gateway",
    }
    assert (await publisher.error("run", as_creator))["code"] == "not_found", "a draft is its creator's alone"
    await creator.post(f"/api/resources/{draft['id']}/publish")

    async def run() -> Body | None:
        # Executors keep what they resolved until they hear of the change.
        reply = await publisher.ask("run", as_creator)
        return None if reply.headers else json.loads(reply.data)

    result = await until(run)
    assert result["cost"] == {"price_usd": "0.01"}
    receipts = (await creator.get("/api/executions", role="owner"))["items"]
    assert [receipt["caller"] for receipt in receipts] == [{"kind": "service", "id": ME}]
    assert (await creator.get("/api/executions"))["items"] == []


async def test_runs_of_others_do_not_exist_for_a_publisher(publisher: Publisher, creator: Person) -> None:
    resource = await creator.publish(model="sandbox/long")
    mine = await creator.enqueue(resource["id"])
    for execution_id in (mine, new_id()):
        for verb in ("get", "cancel"):
            error = await publisher.error(verb, {"execution_id": execution_id})
            assert error["code"] == "not_found", verb
    assert (await publisher.error("get", {"execution_id": mine, "caller": {"kind": "user", "id": creator.name}}))[
        "code"
    ] == "not_found"
    # Its id is no way in either: the run goes on, and its id cannot be taken.
    taken = await publisher.error("run", {"execution_id": mine, "resource": resource["id"], "input": {"text": "hello"}})
    assert taken["code"] == "conflict"
    assert (await creator.ended(mine))["status"] == "succeeded"


@pytest.mark.parametrize(
    "subject",
    [
        "x402jobs.v1.execution.run",
        "x402jobs.v1.execution.enqueue",
        "x402jobs.v1.execution.get",
        "x402jobs.v1.execution.finished",
        "x402jobs.v1.execution.canceling",
        "x402jobs.v1.keys.lease",
        "x402jobs.v1.keys.connect",
        "x402jobs.v1.keys.changed",
        "x402jobs.v1.catalog.resources.resolve",
        "x402jobs.v1.as.other.execution.run",
        "x402jobs.v1.as.other.execution.submit",
        "x402jobs.v1.as.gateway.execution.run",
        f"x402jobs.v1.as.{ME}.execution.finished",
        f"x402jobs.v1.execution.frames.{ME}.{uuid.UUID(int=1)}",
        "$JS.API.STREAM.INFO.X402JOBS_JOBS",
        "$JS.API.CONSUMER.CREATE.X402JOBS_FRAMES",
    ],
)
async def test_a_publisher_may_not_say(publisher: Publisher, subject: str) -> None:
    assert not await publisher.may_publish(subject)
    assert await publisher.may_publish(f"x402jobs.v1.as.{ME}.execution.get"), "the connection is still good"


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "x402jobs.>",
        "x402jobs.v1.execution.frames.>",
        "x402jobs.v1.execution.frames.*.*",
        "x402jobs.v1.execution.frames.gateway.*",
        "x402jobs.v1.execution.frames.other.*",
        "x402jobs.v1.execution.finished",
        "x402jobs.v1.execution.run",
        "x402jobs.v1.as.other.execution.finished",
        "x402jobs.v1.as.*.execution.finished",
        f"x402jobs.v1.as.{ME}.execution.run",
        "x402jobs.v1.keys.>",
        "_INBOX.>",
        "_INBOX.executor.>",
        "$JS.>",
        "$O.x402jobs_media.>",
    ],
)
async def test_a_publisher_may_not_hear(publisher: Publisher, subject: str) -> None:
    assert not await publisher.may_subscribe(subject)
    assert await publisher.may_subscribe(f"x402jobs.v1.execution.frames.{ME}.*"), "the connection is still good"


# The documentation ----------------------------------------------------------------------------------------------------


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(fenced("python"))))
async def test_an_example_of_the_readme_works_as_it_stands(stack: Stack, number: int) -> None:
    await set_up_demo(stack.gateway_url, stack.token("demo"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        fenced("python")[number],
        # Away from our code: the examples need nats-py alone.
        cwd=stack.directory,
        env={**inherited_environment(), "LOCAL_DIR": str(stack.directory)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    text, price = output.decode().strip().rsplit("\n", 1)
    assert text.strip()
    assert re.search(r"price: 0\.01 USD$", price), price


def test_the_examples_of_the_readme_are_there_and_hold_none_of_our_code() -> None:
    assert len(fenced("python")) == 3
    for example in fenced("python"):
        imported = set(re.findall(r"^(?:import|from) (\w+)", example, re.MULTILINE))
        assert imported <= {*sys.stdlib_module_names, "nats"}


async def test_the_shell_commands_of_the_readme_sign_in_and_name_real_subjects(stack: Stack) -> None:
    (script,) = fenced("sh")
    # The shell itself splits the commands; only the program that they call is replaced by one that shows its arguments.
    shown = script.replace(
        "command nats", 'printf \'%s\\n\' "$(printf \'%q \' nats "$NATS_URL" "$NATS_USER" $NATS_PASSWORD'
    )
    shown = shown.replace('"$@"; }', '"$@")"; }')
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-euc",
        shown,
        cwd=stack.directory,
        env={"PATH": os.environ["PATH"], "LOCAL_DIR": str(stack.directory)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    facts = json.loads((stack.directory / "stack.json").read_text())
    known = {entry.subject.replace("as.*.", f"as.{ME}.").replace("frames.*.", f"frames.{ME}.") for entry in REGISTRY}
    commands = [shlex.split(line) for line in output.decode().splitlines()]
    assert [command[6] for command in commands] == ["request", "subscribe", "subscribe", "request"]
    for _, url, user, password, option, prefix, _, subject, *arguments in commands:
        assert (url, user, password) == (facts["nats_url"], ME, facts["publisher"]["password"])
        assert (option, prefix) == ("--inbox-prefix", f"_INBOX.{ME}")
        assert subject in known, subject
        if arguments:
            assert json.loads(arguments[0])["resource"] == "demo/haiku-maker"
