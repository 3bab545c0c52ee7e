"""What the tests of the executor share: a real executor on real parts, the sandbox as its upstream, the catalog and the keys
service as small servers on the bus that speak the contracts, and the users who talk to it."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import httpx
import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from contracts.base import new_execution_id
from contracts.catalog import (
    Availability,
    FixedPrice,
    InputField,
    Model,
    ModelPricing,
    OpenRouterConfig,
    ResolvedResource,
    ResolveResource,
    Timeouts,
)
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller, Execute, ExecutionResult, ExecutionView, GetExecution, Receipt, RunReply
from contracts.keys import KeyLease, KeysChanged, KeyStatus, LeaseKey, VerifyKey
from contracts.permissions import OBSERVER, inbox_prefix
from contracts.subjects import (
    AS_FINISHED,
    EXECUTION_CANCEL,
    EXECUTION_FINISHED,
    EXECUTION_GET,
    EXECUTION_RUN,
    KEYS_CHANGED,
    KEYS_LEASE,
    KEYS_VERIFY,
    MESSAGE_ID_HEADER,
    RESOURCES_RESOLVE,
    frames_subject,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.sandbox import app as sandbox
from services.executor.main import Settings, build
from services.runtime.bus import Bus
from services.runtime.process import running
from services.runtime.sealing import lease_context, seal
from services.runtime.service import Service
from tests.stack import Database
from tests.waiting import until

T = TypeVar("T")

ADA = Caller(kind="user", id="ada")
BOB = Caller(kind="user", id="bob")
EVE = Caller(kind="user", id="eve")
CENT = FixedPrice(mode="fixed", price_usd=Decimal("0.01"))
# Long for a busy machine, and short enough that a run which a broken test leaves behind ends before that test is given up.
PATIENT = Timeouts(first_token_s=25, idle_s=25, total_s=60)


def model_named(model_id: str) -> Model:
    return Model(
        id=model_id,
        name=model_id,
        provider=model_id.partition("/")[0],
        description="",
        context_length=8000,
        max_completion_tokens=None,
        input_modalities=["text"],
        output_modalities=["text"],
        pricing=ModelPricing(prompt="-1", completion="-1", price_kind="runtime"),
        price_kind="runtime",
        supported_parameters=[],
        badges=[],
        curated=False,
        popularity_rank=None,
        status="available",
        retires_on=None,
        executable=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


class OtherSide:
    """The catalog and the keys service, as far as an executor asks them. The owners `ada` and `fay` have keys."""

    def __init__(self) -> None:
        self.resources: dict[str, ResolvedResource] = {}
        self.keys = {owner: f"sk-or-test-{uuid4().hex}" for owner in ("ada", "fay")}
        self.live: set[str] = set()
        self.away = False
        self.leased: list[str] = []
        self.verified: list[str] = []

    def offer(self, model_id: str, **changes: Any) -> str:
        """A published resource of ada's that repeats its input `text` to this model; answers its reference."""
        resource_id = uuid4()
        values: dict[str, Any] = {
            "resource_id": resource_id,
            "owner": "ada",
            "slug": "made",
            "version": 3,
            "status": "published",
            "config": OpenRouterConfig(model_id=model_id, prompt_template="{{text}}"),
            "inputs": [InputField(name="text")],
            "pricing": CENT,
            "timeouts": PATIENT,
            "model": model_named(model_id),
            "availability": Availability(available=True),
            **changes,
        }
        self.resources[str(resource_id)] = ResolvedResource(**values)
        return str(resource_id)

    async def resolve(self, request: ResolveResource) -> ResolvedResource:
        if request.ref not in self.resources:
            raise ServiceError(ErrorCode.NOT_FOUND, "There is no such resource.")
        return self.resources[request.ref]

    async def lease(self, request: LeaseKey) -> KeyLease:
        self.leased.append(request.owner)
        if self.away:
            raise ServiceError(ErrorCode.UNAVAILABLE, "The database cannot be reached at the moment.")
        if request.owner not in self.keys:
            raise ServiceError(ErrorCode.KEY_MISSING, "The creator has not connected a key.")
        context = lease_context(request.owner, request.instance)
        return KeyLease(
            sealed=seal(self.keys[request.owner].encode(), request.recipient_public_key, context),
            mode="live" if request.owner in self.live else "test",
            version=1,
            expires_at=datetime.now(UTC) + timedelta(seconds=60),
        )

    async def verify(self, request: VerifyKey) -> KeyStatus:
        self.verified.append(request.owner)
        return KeyStatus(connected=True, health="suspect")


@dataclass
class House:
    """Everything around one or more executors, and what was heard of them."""

    gateway: Bus
    catalog: Bus
    keys: Bus
    observer: Bus
    publisher: Client
    other: OtherSide
    database: asyncpg.Connection
    sandbox: httpx.AsyncClient
    settings: Callable[..., Settings]
    frames: dict[UUID, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    finished: list[Msg] = field(default_factory=list)

    async def clean(self) -> None:
        """Forget the runs of the test before."""
        # Not truncated: executors look into these tables all the time, and that would deadlock.
        for table in (
            *("workflow_attempts", "workflow_steps", "workflows"),
            *("dead_letters", "cost_checks", "reconciliations"),
            *("cooldowns", "request_rates", "budget_days"),
        ):
            await self.database.execute(f"DELETE FROM executor.{table}")
        await until(self._truncate)
        await self.sandbox.post("/sandbox/reset")
        self.other.leased.clear()
        self.frames.clear()
        self.finished.clear()

    async def _truncate(self) -> bool:
        """False where it stood in the way of an executor that stood in its way."""
        try:
            await self.database.execute("TRUNCATE executor.executions CASCADE; TRUNCATE executor.outbox")
        except asyncpg.DeadlockDetectedError:
            return False
        return True

    # Asking -----------------------------------------------------------------------------------------------------------

    def execute(self, resource: str, text: str = "hello", caller: Caller = BOB, **more: Any) -> Execute:
        return Execute(
            resource=resource,
            input={"text": text},
            caller=caller,
            **{"execution_id": new_execution_id(), **more},
        )

    async def ask(self, execute: Execute, timeout_s: float | None = None) -> RunReply:
        return await self.gateway.call(EXECUTION_RUN, execute, timeout_s=timeout_s)

    async def run(self, resource: str, text: str = "hello", caller: Caller = BOB, **more: Any) -> ExecutionResult:
        """Run and expect a result."""
        reply = await self.ask(self.execute(resource, text, caller, **more))
        assert isinstance(reply, ExecutionResult)
        return reply

    async def refused(self, asking: Awaitable[Any]) -> ServiceError:
        """The error that somebody gets."""
        try:
            reply = await asking
        except ServiceError as error:
            return error
        raise AssertionError(f"was answered: {reply!r}")

    async def view(self, execution_id: UUID, caller: Caller = BOB) -> ExecutionView:
        return await self.gateway.call(EXECUTION_GET, GetExecution(execution_id=execution_id, caller=caller))

    async def cancel(self, execution_id: UUID, caller: Caller = BOB) -> ExecutionView:
        return await self.gateway.call(EXECUTION_CANCEL, GetExecution(execution_id=execution_id, caller=caller))

    async def take_key_away(self, owner: str) -> None:
        del self.other.keys[owner]
        await self.keys.publish(KEYS_CHANGED, KeysChanged(owner=owner, version=2, change="disconnected"))
        await self.keys.nc.flush()

    # Looking ----------------------------------------------------------------------------------------------------------

    async def row(self, execution_id: UUID) -> asyncpg.Record | None:
        return await self.database.fetchrow("SELECT * FROM executor.executions WHERE id = $1", execution_id)

    async def attempts(self, execution_id: UUID) -> list[asyncpg.Record]:
        query = "SELECT * FROM executor.attempts WHERE execution_id = $1 ORDER BY number"
        return list(await self.database.fetch(query, execution_id))

    async def receipts(self, execution_id: UUID) -> list[Receipt]:
        """All revisions, oldest first."""
        query = "SELECT body FROM executor.receipts WHERE execution_id = $1 ORDER BY revision"
        return [Receipt.model_validate_json(r["body"]) for r in await self.database.fetch(query, execution_id)]

    async def receipt(self, execution_id: UUID) -> Receipt:
        """The first revision; once it is written there must not be a second first one."""
        return (await until(lambda: self.receipts(execution_id)))[0]

    async def revised(self, execution_id: UUID) -> Receipt:
        """The second revision, once it is there."""

        async def second() -> list[Receipt]:
            return (await self.receipts(execution_id))[1:]

        [receipt] = await until(second)
        return receipt

    async def status_of(self, execution_id: UUID) -> str | None:
        status: str | None = await self.database.fetchval(
            "SELECT status FROM executor.executions WHERE id = $1", execution_id
        )
        return status

    async def until_status(self, execution_id: UUID, status: str) -> None:
        async def has_it() -> bool:
            return await self.status_of(execution_id) == status

        await until(has_it)

    async def until_frame(self, execution_id: UUID, kind: str) -> dict[str, Any]:
        """The first frame of this type."""

        async def there() -> list[dict[str, Any]]:
            return [frame for frame in self.frames[execution_id] if frame["type"] == kind]

        return (await until(there))[0]

    async def calls(self, state: str | None = None) -> list[dict[str, Any]]:
        """Calls that reached the upstream, oldest first."""
        calls: list[dict[str, Any]] = (await self.sandbox.get("/sandbox/calls")).json()["calls"]
        return [call for call in calls if state is None or call["state"] == state]

    async def until_called(self) -> None:
        """A call is under way."""
        await until(lambda: self.calls("running"))

    async def everything_stored(self) -> str:
        """Every row of the executor's tables as text; bytes are in hexadecimal."""
        tables = await self.database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'executor'")
        rows = [
            row["text"]
            for table in tables
            for row in await self.database.fetch(f"SELECT t::text AS text FROM executor.{table['tablename']} AS t")
        ]
        return "\n".join(rows)

    async def until_finished(self, message_id: str) -> Msg:
        """The `finished` with this message id."""

        async def there() -> list[Msg]:
            return [message for message in self.finished if (message.headers or {})[MESSAGE_ID_HEADER] == message_id]

        return (await until(there))[0]

    async def _hear_frame(self, message: Msg) -> None:
        self.frames[UUID(message.subject.rpartition(".")[2])].append(orjson.loads(message.data))

    async def _hear_finished(self, message: Msg) -> None:
        self.finished.append(message)

    async def listen(self) -> None:
        await self.observer.nc.subscribe(frames_subject("*", "*"), cb=self._hear_frame)
        for event in (EXECUTION_FINISHED, AS_FINISHED):
            await self.observer.nc.subscribe(event.subject, cb=self._hear_finished)
        await self.observer.nc.flush()


def bus_of(user: str, server: Nats, credentials: Credentials) -> Bus:
    return Bus(
        service=user,
        instance=f"{user}-test",
        url=server.url,
        user=user,
        password=credentials.nats_password(user),
        registry=CollectorRegistry(),
    )


def executor_settings(
    database: Database, server: Nats, credentials: Credentials, sandbox_url: str, **changes: Any
) -> Settings:
    values: dict[str, Any] = {
        "nats_url": server.url,
        "nats_password": SecretStr(credentials.nats_password("executor")),
        "postgres_url": SecretStr(database.dsn("executor")),
        "openrouter_url": "http://127.0.0.1:1/api/v1",
        "sandbox_url": f"{sandbox_url}/api/v1",
        "result_keys": SecretStr(credentials.result_keys),
        "media_name_secret": SecretStr(credentials.media_name_secret),
        "executor_identity": SecretStr(credentials.executor_identity),
        "instance": f"executor-{uuid4().hex[:6]}",
        # Tests ask faster than people do.
        "requests_per_minute_per_caller": 0,
        "requests_per_minute_per_key": 0,
        **changes,
    }
    return Settings(**values)


@asynccontextmanager
async def house_without_executor(
    database: Database, server: Nats, credentials: Credentials, first_token_s: float = 0.0
) -> AsyncIterator[House]:
    """All but the executor; start one with `executor_in`."""
    other = OtherSide()
    gateway, observer = bus_of("gateway", server, credentials), bus_of(OBSERVER, server, credentials)
    catalog, keys = bus_of("catalog", server, credentials), bus_of("keys", server, credentials)
    catalog.serve(RESOURCES_RESOLVE, other.resolve)
    keys.serve(KEYS_LEASE, other.lease)
    keys.serve(KEYS_VERIFY, other.verify)
    async with AsyncExitStack() as cleanup:
        for bus in (gateway, observer, catalog, keys):
            await bus.start()
            cleanup.push_async_callback(bus.close)
        publisher = await nats.connect(
            server.url, user="demo", password=credentials.nats_password("demo"), inbox_prefix=inbox_prefix("demo")
        )
        cleanup.push_async_callback(publisher.close)
        url = await cleanup.enter_async_context(sandbox.running(sandbox.Settings(first_token_s=first_token_s)))
        client = await cleanup.enter_async_context(httpx.AsyncClient(base_url=url))
        connection = await asyncpg.connect(database.superuser)
        cleanup.push_async_callback(connection.close)

        def settings(**changes: Any) -> Settings:
            return executor_settings(database, server, credentials, changes.pop("sandbox_url", url), **changes)

        house = House(gateway, catalog, keys, observer, publisher, other, connection, client, settings)
        await house.listen()
        yield house


@asynccontextmanager
async def executor_in(house: House, **changes: Any) -> AsyncIterator[Service]:
    """An executor of this house, with these settings changed."""
    async with running(build(house.settings(**changes))) as service:
        yield service


def begin(house: House, resource: str, **more: Any) -> tuple[UUID, asyncio.Task[ExecutionResult]]:
    """A plain run under way."""
    execution_id = new_execution_id()
    return execution_id, asyncio.create_task(house.run(resource, execution_id=execution_id, **more))
