"""What is the case after a drill, read where it stands: the tables, the sandbox's ledger, the streams, metrics and logs."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
import asyncpg
import nats
import orjson
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from prometheus_client.parser import text_string_to_metric_families

from contracts.permissions import inbox_prefix
from contracts.subjects import JOBS_STREAM, MESSAGE_ID_HEADER, RECEIPTS_STREAM
from deploy.local.service import Service
from deploy.local.stack import DATABASE, Stack
from tests.e2e.client import ledger

_TABLES = {
    "executions": """SELECT id::text, owner, caller_kind, caller_id, idempotency_key, status, executor, price_usd, cost_usd,
                            cost_status, hold_usd, created_at FROM executor.executions""",
    "attempts": """SELECT execution_id::text AS id, number, generation_id, status, cost_usd, cost_status
                   FROM executor.attempts ORDER BY execution_id, number""",
    "receipts": "SELECT execution_id::text AS id, revision, body FROM executor.receipts ORDER BY execution_id, revision",
    "outbox": "SELECT id, message_id FROM executor.outbox",
    "dead_letters": "SELECT id::text, reason FROM executor.dead_letters",
    "runs": "SELECT execution_id::text AS id, revision, status, model_usd, price_usd FROM catalog.runs",
    "budgets": "SELECT owner, held_usd, spent_usd FROM executor.budget_days WHERE scope = 'key'",
    "files": "SELECT DISTINCT name FROM executor.media_references",
    "spending": "SELECT owner, model_usd, cost_unknown_runs FROM catalog.spending WHERE scope = 'key'",
}
# What ended is counted into its creator's day by whoever is admitted next.
_COUNT_IN = "SELECT executor.settle_budgets(owner) FROM (SELECT DISTINCT owner FROM executor.executions) AS creators"
_UNSETTLED = """SELECT
    (SELECT count(*) FROM executor.executions WHERE status IN ('queued', 'waiting', 'running')) AS runs,
    (SELECT count(*) FROM executor.attempts WHERE cost_status = 'pending') AS costs,
    (SELECT count(*) FROM executor.outbox) AS messages,
    (SELECT count(*) FROM executor.receipts r WHERE NOT EXISTS (
        SELECT FROM catalog.runs c WHERE c.execution_id = r.execution_id AND c.revision >= r.revision)) AS receipts"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """Rows by table, and everything beside the database. Amounts are Decimal."""

    executions: list[Row]
    attempts: list[Row]
    receipts: list[Row]
    outbox: list[Row]
    dead_letters: list[Row]
    runs: list[Row]
    budgets: list[Row]
    files: list[Row]
    """Generated files that results name, each with the status of fetching it."""
    spending: list[Row]
    calls: list[Row]
    """The sandbox's ledger."""
    messages: list[tuple[str, str]]
    """Subject and message id of everything in the stream of receipts, in its order."""
    inbox: int
    """Messages left in the stream of jobs."""
    metrics: dict[str, dict[str, float]]
    """Of each service's processes: the sum of every metric over its labels."""
    alerts: list[Row]
    """What executors logged about costs that nobody will know, over all their lives."""


async def gather(stack: Stack) -> Facts:
    """All of it, once things have settled."""
    connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
    try:
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=orjson.loads)
        await connection.execute(_COUNT_IN)
        tables = {name: [dict(row) for row in await connection.fetch(sql)] for name, sql in _TABLES.items()}
    finally:
        await connection.close()
    messages, inbox = await _streams(stack)
    await _fetch(stack, tables["files"])
    return Facts(
        **tables,
        calls=(await ledger(stack))["calls"],
        messages=messages,
        inbox=inbox,
        metrics=await _metrics(stack),
        alerts=_alerts(stack),
    )


async def unsettled(stack: Stack) -> dict[str, int]:
    """What has still to happen by itself, by name; nothing when all is settled."""
    try:
        connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
    except (OSError, asyncpg.PostgresError) as error:
        return {type(error).__name__: 1}
    try:
        left = dict(await connection.fetchrow(_UNSETTLED))
    finally:
        await connection.close()
    client = await _executor_client(stack)
    try:
        left["jobs"] = (await client.jetstream().stream_info(JOBS_STREAM.name)).state.messages
    finally:
        await client.close()
    return {name: count for name, count in left.items() if count}


async def _executor_client(stack: Stack) -> Client:
    return await nats.connect(
        stack.nats.url,
        user="executor",
        password=stack.credentials.nats_password("executor"),
        inbox_prefix=inbox_prefix("executor").encode(),
    )


async def _streams(stack: Stack) -> tuple[list[tuple[str, str]], int]:
    client = await _executor_client(stack)
    try:
        js = client.jetstream()
        inbox = (await js.stream_info(JOBS_STREAM.name)).state.messages
        left = (await js.stream_info(RECEIPTS_STREAM.name)).state.messages
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, mem_storage=True)
        reader = await js.pull_subscribe("", stream=RECEIPTS_STREAM.name, config=config)
        messages: list[tuple[str, str]] = []
        while len(messages) < left:
            batch = await reader.fetch(min(500, left - len(messages)), timeout=10)
            messages += [(message.subject, (message.headers or {})[MESSAGE_ID_HEADER]) for message in batch]
        return messages, inbox
    finally:
        await client.close()


async def _fetch(stack: Stack, files: list[Row]) -> None:
    async with aiohttp.ClientSession() as http:
        for file in files:
            async with http.get(f"{stack.gateway_url}/media/{file['name']}") as answer:
                file["status"], file["bytes"] = answer.status, len(await answer.read())


async def _metrics(stack: Stack) -> dict[str, dict[str, float]]:
    async def read(http: aiohttp.ClientSession, service: Service) -> dict[str, float]:
        async with http.get(service.metrics_url) as answer:
            sums: dict[str, float] = {}
            for family in text_string_to_metric_families(await answer.text()):
                for sample in family.samples:
                    sums[sample.name] = sums.get(sample.name, 0) + sample.value
            return sums

    services = {name: part for name, part in stack.parts.items() if isinstance(part, Service)}
    async with aiohttp.ClientSession() as http:
        found = await asyncio.gather(*(read(http, service) for service in services.values()))
    return dict(zip(services, found, strict=True))


def _alerts(stack: Stack) -> list[Row]:
    logs = [part.child.log for name, part in stack.parts.items() if name.startswith("executor")]
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    return [json.loads(line) for line in lines if '"cost_unknown"' in line]
