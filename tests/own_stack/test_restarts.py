"""Jobs, when everything is killed at once in the middle of them and started again; and then the verbs of whoever runs the system."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from decimal import Decimal
from typing import Any

import asyncpg
import nats

from contracts.base import new_execution_id
from contracts.subjects import AS_SUBMIT, as_publisher
from deploy.local.stack import DATABASE, PUBLISHER, Stack
from tests.conftest import StackFactory
from tests.e2e.client import Person, connected, ledger
from tests.stack import ROOT
from tests.waiting import PATIENCE_S, until

ENDED_S = 60


async def submit(stack: Stack, resource: str) -> str:
    """A job by the outside service; its id once the stream has it."""
    execution_id = str(new_execution_id())
    service = await nats.connect(
        stack.nats.url,
        user=PUBLISHER,
        password=stack.credentials.nats_password(PUBLISHER),
        inbox_prefix=f"_INBOX.{PUBLISHER}",
    )
    body = {"execution_id": execution_id, "resource": resource, "input": {"text": "handed over"}}
    reply = await service.request(
        as_publisher(AS_SUBMIT.subject, PUBLISHER), json.dumps(body).encode(), timeout=PATIENCE_S
    )
    assert json.loads(reply.data)["stream"]
    await service.close()
    return execution_id


async def kill_everything(stack: Stack) -> None:
    """All but the upstream, at once, without a word; then all of it again."""
    names = [name for name in stack.parts if name != "sandbox"]
    await asyncio.gather(*(stack.parts[name].kill() for name in names))
    servers = [name for name in ("nats", "postgres") if name in names]
    await asyncio.gather(*(stack.parts[name].start() for name in servers))
    await asyncio.gather(*(stack.parts[name].start() for name in names if name not in servers))
    stack.describe()


async def terminal(stack: Stack, *arguments: str) -> str:
    """What a verb prints, as in a second terminal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.local", *arguments,
        cwd=ROOT, env={**os.environ, "LOCAL_DIR": str(stack.directory)}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said
    return said.decode()


async def rows(connection: asyncpg.Connection, sql: str) -> list[dict[str, Any]]:
    return [dict(record) for record in await connection.fetch(sql)]


async def check_money(stack: Stack, connection: asyncpg.Connection, ids: set[str]) -> None:
    """Every call that upstream charged is on exactly one receipt, with exactly that cost."""

    async def settled() -> bool:
        left: bool = await connection.fetchval(
            """SELECT EXISTS (SELECT FROM executor.attempts WHERE cost_status = 'pending')
                   OR EXISTS (SELECT FROM executor.outbox)"""
        )
        return not left

    await until(settled, ENDED_S)
    latest = await rows(
        connection,
        "SELECT DISTINCT ON (execution_id) execution_id, body FROM executor.receipts ORDER BY execution_id, revision DESC",
    )
    assert {str(row["execution_id"]) for row in latest} == ids
    attempts = [attempt for row in latest for attempt in json.loads(row["body"])["attempts"]]
    told = {attempt["generation_id"]: Decimal(attempt["cost_usd"]) for attempt in attempts}
    charged = {call["generation_id"]: Decimal(call["cost"]) for call in (await ledger(stack))["calls"]}
    assert told == charged
    assert len(attempts) == len(ids), "no job was run twice"


async def test_jobs_survive_the_kill_of_everything_and_operators_can_check_and_delete(
    stack_factory: StackFactory,
) -> None:
    async with (
        # One slot of a key is kept for whoever waits for an answer: two are left to jobs.
        stack_factory(settings={"executor": {"RUNNING_PER_KEY": "3"}}) as stack,
        connected(stack, "bob") as person,
    ):
        resource = await person.publish(model="sandbox/long", config={"max_tokens": 150})
        ids = {await person.enqueue(resource["id"]) for _ in range(4)} | {
            await submit(stack, resource["id"]) for _ in range(2)
        }
        await until(lambda: _running(person))
        connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
        # By which what upstream charged for them is found afterwards.
        named = "SELECT count(*) = 2 FROM executor.attempts WHERE status = 'running' AND generation_id IS NOT NULL"
        await until(lambda: connection.fetchval(named))
        await connection.close()
        await kill_everything(stack)
        connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
        # The leases of the dead are over; what is left to wait for is the lease that a database which came back gives everybody.
        await connection.execute(
            "UPDATE executor.executions SET lease_until = now() WHERE executor <> 'x' AND status = 'running'"
        )

        async def all_ended() -> list[dict[str, Any]]:
            found = await rows(connection, "SELECT id, status FROM executor.executions WHERE finished_at IS NOT NULL")
            return found if len(found) == len(ids) else []

        ended = await until(all_ended, ENDED_S)
        assert {str(row["id"]) for row in ended} == ids, "what was accepted is there"
        statuses = sorted(row["status"] for row in ended)
        assert statuses == ["interrupted"] * (6 - statuses.count("succeeded")) + ["succeeded"] * statuses.count(
            "succeeded"
        )
        assert 4 <= statuses.count("succeeded") < 6, "what had begun is not run again, all the others are"
        await check_money(stack, connection, ids)

        said = (await terminal(stack, "reconcile")).splitlines()[-1]
        assert said.startswith(
            "6 upstream calls compared: 0 cost something else than their receipts said, 0 USD in all;"
        )
        done = [
            view["execution_id"]
            for view in (await person.get("/api/executions"))["items"]
            if view["status"] == "succeeded"
        ]
        assert (await person.execution(done[0]))["result"] is not None
        assert "nothing was deleted" in await terminal(stack, "purge", "--user", person.name)
        assert (await person.execution(done[0]))["result"] is not None
        assert f"deleted: {len(done)} results" in await terminal(stack, "purge", "--user", person.name, "--yes")
        view = await person.execution(done[0])
        assert (view["result"], view["output_expired"], view["receipt"] is not None) == (None, True, True)
        await connection.close()


async def _running(person: Person) -> bool:
    return len([call for call in await person.upstream_calls() if call["state"] == "running"]) == 2
