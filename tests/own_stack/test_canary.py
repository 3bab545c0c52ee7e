"""Marked secrets go through a whole life on a stack that logs all it can, and then everything that was written or said is
searched for them: logs, metrics, every message on the bus, a dump of the database, all files of the stack, every answer.

Three things are marked. A provider key may be nowhere at all. A prompt is its creator's: no other caller may see it, and
no log. What a caller sends and gets is nobody's business at rest: neither the database nor a log holds it in the clear.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import nats
import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from contracts.permissions import OBSERVER
from contracts.subjects import EXECUTION_FINISHED, KEYS_CONNECT, KEYS_LEASE, SERVICES
from deploy.local.stack import DATABASE, Stack
from deploy.sandbox.errors import USER_ID
from tests.conftest import StackFactory
from tests.e2e.client import KEY_PATH, Person, draft, good, problem, signed_in
from tests.waiting import PATIENCE_S, until

FIRST_KEY, SECOND_KEY, WRONG_KEY, PROMPT, SYSTEM, INPUT = (f"canary{uuid4().hex}" for _ in range(6))
KEYS = (FIRST_KEY, SECOND_KEY, WRONG_KEY)
TAIL = "-end"
"""The last four characters of a key are its hint, which is no secret."""

# None of them repeats the prompt in its answer: what a model tells is its creator's affair.
MODELS = (
    "sandbox/fast",
    "sandbox/image",
    "sandbox/status-401",
    "sandbox/status-402",
    "sandbox/status-403-moderation",
    "sandbox/error-in-200",
    "sandbox/mid-stream-error",
    "sandbox/cut",
    "sandbox/garbage",
)


# What breaks, and what mends it.
EXECUTOR_SABOTAGE = [
    ("ALTER TABLE executor.attempts RENAME TO gone", "ALTER TABLE executor.gone RENAME TO attempts"),
    ("ALTER TABLE executor.receipts RENAME TO gone", "ALTER TABLE executor.gone RENAME TO receipts"),
    ("ALTER TABLE executor.executions RENAME TO gone", "ALTER TABLE executor.gone RENAME TO executions"),
]


@dataclass
class Evidence:
    """Everything that was written or said, by where it was found."""

    heard: dict[str, bytes] = field(default_factory=dict)
    subjects: set[str] = field(default_factory=set)
    answers: dict[str, bytes] = field(default_factory=dict)
    buyer: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    metrics: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    dump: bytes = b""

    @property
    def at_rest(self) -> dict[str, bytes]:
        return {**self.files, **self.logs, **self.metrics, "pg_dump": self.dump}

    @property
    def everything(self) -> dict[str, bytes]:
        return {**self.at_rest, **self.heard, **self.answers, **self.buyer}

    async def hear(self, message: Msg) -> None:
        """A message of the bus with its subject, its headers and where it is to be answered."""
        self.subjects.add(message.subject)
        said = f"{message.subject} {message.reply} {json.dumps(message.headers or {})} ".encode() + message.data
        self.heard[f"bus {len(self.heard)} {message.subject}"] = said


def forms(secret: str) -> list[bytes]:
    """How a secret may hide in bytes: as it is, as hexadecimal digits, and in base64 wherever in a longer text it stands."""
    found = [secret.encode(), secret.encode().hex().encode()]
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode() + b"\0" * 3)
        # The groups at both ends hold neighbours as well.
        found.append(encoded[4:-8])
    return found


def places(secret: str, where: dict[str, bytes]) -> list[str]:
    """Where it is found, in whatever form."""
    return [
        place
        for place, data in where.items()
        if any(form in data for form in forms(secret)) or secret.encode() in data.lower()
    ]


@dataclass
class Player:
    """Somebody all of whose answers are kept."""

    person: Person
    kept: dict[str, bytes]

    async def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        answer = await self.person.http.request(method, path, **arguments)
        said = [f"{name}: {value}" for name, value in answer.headers.multi_items()]
        title = f"{len(self.kept)} {method} {path.partition('?')[0]} {answer.status_code}"
        self.kept[f"{self.person.name} {title}"] = "\n".join(said).encode() + b"\n" + answer.content
        return answer

    async def execute(self, resource: str, **options: Any) -> httpx.Response:
        headers = options.pop("headers", {})
        body = {"resource": resource, "input": {"text": INPUT}, **options}
        return await self.send("POST", "/api/execute", json=body, headers=headers)

    async def look_around(self) -> None:
        """Everything that anybody can read."""
        for path in ("/api/executions", "/api/executions?role=owner", "/api/listings", "/openapi.json", KEY_PATH):
            good(await self.send("GET", path))
        for view in (await self.send("GET", "/api/executions?limit=200")).json()["items"]:
            await self.send("GET", f"/api/executions/{view['execution_id']}")
            await self.send("GET", f"/api/executions/{view['execution_id']}/events")


# The story ------------------------------------------------------------------------------------------------------------


async def connect_wrongly(owner: Player) -> None:
    """Every way to hand over a key that is not taken: the answers must not repeat it."""
    key = f"sk-or-test-{WRONG_KEY}{TAIL}"
    problem(await owner.send("PUT", KEY_PATH, json={"api_key": f"sk-or-test-dead-{WRONG_KEY}"}), 422, "key_rejected")
    problem(await owner.send("PUT", KEY_PATH, json={"api_key": f"sk-or-test-mgmt-{WRONG_KEY}"}), 422, "key_rejected")
    problem(await owner.send("PUT", KEY_PATH, json={"api_key": [key]}), 422, "invalid")
    problem(await owner.send("PUT", KEY_PATH, json={"apikey": key}), 422, "invalid")
    problem(await owner.send("PUT", KEY_PATH, json={"api_key": "k", key: key}), 422, "invalid")
    problem(await owner.send("PUT", KEY_PATH, json={"api_key": key * 40}), 422, "invalid")
    problem(await owner.send("PUT", KEY_PATH, content=f'{{"api_key": "{key}"'), 400, "invalid")
    problem(await owner.send("PUT", KEY_PATH, content=key), 400, "invalid")
    problem(await owner.send("GET", KEY_PATH, headers={"Authorization": f"Bearer {key}"}), 401, "unauthenticated")


async def publish(owner: Player, model: str) -> str:
    config = {"prompt_template": f"{PROMPT} {{{{text}}}}", "system_prompt": f"Obey {SYSTEM}."}
    created = await owner.send("POST", "/api/resources", json=draft(model, config=config))
    resource_id: str = good(created)["id"]
    good(await owner.send("POST", f"/api/resources/{resource_id}/publish"))
    return resource_id


async def run_everything(owner: Player, buyer: Player) -> None:
    for model in MODELS:
        resource_id = await publish(owner, model)
        for player in (owner, buyer):
            await player.execute(resource_id)
            # Read to its end: the events of the whole stream.
            await player.execute(resource_id, stream=True)
        if model == "sandbox/image":
            result = good(await buyer.execute(resource_id))
            assert (await buyer.send("GET", result["outputs"][0]["url"])).status_code == 200
        if model == "sandbox/fast":
            accepted = await buyer.execute(resource_id, headers={"Prefer": "respond-async"})
            await buyer.person.ended(accepted.json()["execution_id"])
            problem(await buyer.execute(resource_id, input={"text": INPUT, "more": INPUT}), 422, "invalid")


async def break_everything(stack: Stack, owner: Player, buyer: Player) -> None:
    """What an executor needs is taken away while it has the key in its hand: its tracebacks are written."""
    resource_id = await publish(owner, "sandbox/fast")
    connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
    try:
        for broken, mended in EXECUTOR_SABOTAGE:
            await connection.execute(broken)
            for player in (owner, buyer):
                await player.execute(resource_id)
                await player.execute(resource_id, stream=True)
            await connection.execute(mended)
    finally:
        await connection.close()


async def live(stack: Stack, evidence: Evidence) -> None:
    """A key is connected, used, fails, is replaced and disconnected."""
    async with signed_in(stack, "owner") as first, signed_in(stack, "buyer") as second:
        owner, buyer = Player(first, evidence.answers), Player(second, evidence.buyer)
        await connect_wrongly(owner)
        good(await owner.send("PUT", KEY_PATH, json={"api_key": f"sk-or-test-{FIRST_KEY}{TAIL}"}))
        preview = {**draft("sandbox/fast"), "input": {"text": INPUT}}
        good(await owner.send("POST", "/api/resources/preview", json=preview))
        await run_everything(owner, buyer)
        await break_everything(stack, owner, buyer)
        good(await owner.send("POST", f"{KEY_PATH}/test"))
        good(await owner.send("PUT", KEY_PATH, json={"api_key": f"sk-or-test-{SECOND_KEY}{TAIL}"}))
        resource_id = await publish(owner, "sandbox/fast")
        good(await buyer.execute(resource_id))
        for player in (owner, buyer):
            await player.look_around()
        good(await owner.send("DELETE", KEY_PATH))

        async def refused() -> bool:
            # The executor hears of it by an event.
            return (await buyer.execute(resource_id)).status_code == 409

        await until(refused)


async def everything_said(stack: Stack) -> bool:
    """Costs are looked up and receipts are out."""
    connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
    try:
        waiting = await connection.fetchval(
            "SELECT (SELECT count(*) FROM executor.outbox)"
            " + (SELECT count(*) FROM executor.executions WHERE finished_at IS NULL)"
        )
    finally:
        await connection.close()
    return bool(waiting == 0)


async def dump_of(stack: Stack) -> bytes:
    process = await asyncio.create_subprocess_exec(
        str(stack.postgres._binaries / "pg_dump"),
        stack.postgres.dsn(DATABASE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    return output


async def collect(stack: Stack, evidence: Evidence) -> None:
    """What is left behind, while everything still runs."""
    facts = json.loads((stack.directory / "stack.json").read_text())
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        for name, service in facts["services"].items():
            if service["metrics_url"] is not None:
                evidence.metrics[f"metrics of {name}"] = (await http.get(service["metrics_url"])).content
        evidence.metrics["metrics of the gateway's port"] = (await http.get(f"{stack.gateway_url}/metrics")).content
    evidence.dump = await dump_of(stack)
    for path in stack.directory.rglob("*"):
        if path.is_file():
            kind = evidence.logs if path.parent.name == "logs" else evidence.files
            kind[str(path.relative_to(stack.directory))] = path.read_bytes()


@pytest_asyncio.fixture(scope="module")
async def evidence(stack_factory: StackFactory) -> AsyncIterator[Evidence]:
    settings = {name: {"LOG_LEVEL": "DEBUG"} for name in (*SERVICES, "sandbox")}
    found = Evidence()
    async with stack_factory(settings=settings) as stack:
        observer = await nats.connect(
            stack.nats.url, user=OBSERVER, password=stack.credentials.nats_password(OBSERVER), allow_reconnect=False
        )
        try:
            await observer.subscribe(">", cb=found.hear)
            await observer.flush()
            await live(stack, found)
            await until(lambda: everything_said(stack))
            await observer.flush()
        finally:
            await observer.close()
        await collect(stack, found)
    yield found


# What is found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "a", "ab"])
def test_the_search_finds_a_secret_in_every_form(before: str) -> None:
    text = f"{before}{FIRST_KEY} and more".encode()
    for data in (text, text.upper(), text.hex().encode(), base64.b64encode(text), base64.urlsafe_b64encode(text)):
        assert places(FIRST_KEY, {"here": data}) == ["here"]
    assert places(FIRST_KEY, {"here": b"canary"}) == []


def test_there_was_something_to_search(evidence: Evidence) -> None:
    assert {KEYS_CONNECT.subject, KEYS_LEASE.subject, EXECUTION_FINISHED.subject} <= evidence.subjects
    assert any(subject.startswith("_INBOX.executor.") for subject in evidence.subjects), "replies were heard too"
    for name in (*SERVICES, "nats", "postgres"):
        assert evidence.logs[f"logs/{name}.log"], name
        assert name in ("nats", "postgres") or b"x402jobs_" in evidence.metrics[f"metrics of {name}"]
    assert evidence.logs["logs/executor.log"].count(b"Traceback") > len(EXECUTOR_SABOTAGE)
    assert b"user_openrouter_integrations" in evidence.dump
    assert any(name.endswith(".blk") for name in evidence.files), "the files of JetStream"
    assert places(PROMPT, {"dump": evidence.dump}), "what is stored in the clear is found"
    statuses = {int(title.rsplit(" ", 1)[1]) for title in evidence.buyer}
    assert {200, 202, 409, 422, 502} <= statuses


@pytest.mark.parametrize("key", KEYS, ids=["first", "second", "wrong"])
def test_a_key_is_nowhere(evidence: Evidence, key: str) -> None:
    assert places(key, evidence.everything) == []


@pytest.mark.parametrize("secret", [PROMPT, SYSTEM], ids=["template", "system-prompt"])
def test_a_prompt_is_neither_told_to_other_callers_nor_logged(evidence: Evidence, secret: str) -> None:
    assert places(secret, {**evidence.buyer, **evidence.logs, **evidence.metrics}) == []


def test_what_callers_send_and_get_is_locked_at_rest(evidence: Evidence) -> None:
    assert places(INPUT, evidence.at_rest) == []
    assert places(INPUT, evidence.heard), "it was there"


def test_nothing_of_the_creators_account_reaches_a_caller(evidence: Evidence) -> None:
    for place, data in {**evidence.buyer, **evidence.heard}.items():
        assert USER_ID.encode() not in data, place
    for place, data in evidence.buyer.items():
        for secret in (b'"generation_id":"gen-', b"model_usd", b"sk-or-test-"):
            assert secret not in data or "openapi" in place, (place, secret)
