"""A real gateway on a real bus, and a scripted executor on the other side that does what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import orjson
from prometheus_client import CollectorRegistry

from contracts.errors import ErrorCode, ServiceError
from contracts.execution import (
    Execute,
    ExecutionAccepted,
    ExecutionPage,
    ExecutionResult,
    ExecutionView,
    GetExecution,
    ListExecutions,
    RunReply,
)
from contracts.subjects import (
    EXECUTION_CANCEL,
    EXECUTION_ENQUEUE,
    EXECUTION_GET,
    EXECUTION_LIST,
    EXECUTION_RUN,
    FRAMES_STREAM,
    Service,
    frames_subject,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from deploy.local.tokens import AUDIENCE, ISSUER, sign_token
from services.gateway import examples
from services.gateway.main import Settings, build
from services.runtime.bus import Bus
from services.runtime.process import running

SECRET = "a secret that only this test knows, long enough"
Script = Callable[["ScriptedExecutor", Execute], Awaitable[RunReply]]


def bearer(user: str = "bob", *, admin: bool = False) -> dict[str, str]:
    """The header that signs a user in."""
    return {"Authorization": f"Bearer {sign_token(SECRET, user, admin=admin)}"}


@asynccontextmanager
async def running_gateway(nats: Nats, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway; the client is signed in as bob."""
    port = free_port()
    settings = Settings.model_validate(
        {
            "nats_url": nats.url,
            "nats_password": credentials.nats_password("gateway"),
            "host": HOST,
            "port": port,
            "jwt_secret": SECRET,
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
            "public_url": f"http://{HOST}:{port}",
        }
    )
    async with (
        running(build(settings)),
        httpx.AsyncClient(base_url=f"http://{HOST}:{port}", headers=bearer(), timeout=30) as client,
    ):
        yield client


@asynccontextmanager
async def peer(
    service: Service, nats: Nats, credentials: Credentials, register: Callable[[Bus], None]
) -> AsyncIterator[Bus]:
    """The real bus of another service, with the handlers of this test."""
    bus = Bus(
        service=service,
        instance=f"{service}-test",
        url=nats.url,
        user=service,
        password=credentials.nats_password(service),
        registry=CollectorRegistry(),
    )
    register(bus)
    await bus.start()
    try:
        yield bus
    finally:
        await bus.drain(1)
        await bus.close()


def result_for(execution_id: UUID, text: str = "Rain on the tin roof") -> ExecutionResult:
    """A good result."""
    return ExecutionResult.model_validate(
        {**examples.RESULT, "execution_id": execution_id, "text": text, "outputs": [{"type": "text", "text": text}]}
    )


def failure_for(execution_id: UUID, code: ErrorCode = ErrorCode.UPSTREAM) -> ServiceError:
    """How a run failed."""
    return ServiceError(code, "The model's provider failed; try again.", execution_id=execution_id)


class ScriptedExecutor:
    """Speaks the contracts of the executor. `script` says what a run does; `views` is what `execution.get` knows."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.runs: list[Execute] = []
        self.canceled: list[UUID] = []
        self.asked: list[UUID] = []
        self.views: dict[UUID, ExecutionView] = {}
        self.release = asyncio.Event()
        self.cancel_seen = asyncio.Event()
        self._bus: Bus | None = None

    @property
    def bus(self) -> Bus:
        assert self._bus is not None
        return self._bus

    def register(self, bus: Bus) -> None:
        self._bus = bus
        bus.serve_raw(EXECUTION_RUN, self._run)
        bus.serve(EXECUTION_GET, self._get)
        bus.serve(EXECUTION_CANCEL, self._cancel)
        bus.serve(EXECUTION_ENQUEUE, self._enqueue)
        bus.serve(EXECUTION_LIST, self._list)

    async def _run(self, request: Execute) -> RunReply:
        self.runs.append(request)
        return await self.script(self, request)

    async def _get(self, request: GetExecution) -> ExecutionView:
        self.asked.append(request.execution_id)
        view = self.views.get(request.execution_id)
        if view is None or request.caller.id not in {view.caller.id, view.owner}:
            raise ServiceError(ErrorCode.NOT_FOUND, "There is no such run, or it is not yours.")
        return view

    async def _cancel(self, request: GetExecution) -> ExecutionView:
        self.canceled.append(request.execution_id)
        self.cancel_seen.set()
        return await self._get(request)

    async def _enqueue(self, request: Execute) -> ExecutionAccepted:
        self.runs.append(request)
        assert request.execution_id is not None
        return ExecutionAccepted(execution_id=request.execution_id, status="queued")

    async def _list(self, request: ListExecutions) -> ExecutionPage:
        return ExecutionPage(items=list(self.views.values())[: request.limit], next_cursor=None)

    def know(self, execution_id: UUID, status: str = "running", **changes: Any) -> None:
        """From now on `execution.get` answers this for the run; bob made it, alice owns the resource."""
        view = {
            **examples.EXECUTION,
            "execution_id": execution_id,
            "status": status,
            "result": None,
            "last_seq": None,
            "created_at": datetime.now(UTC),
            **changes,
        }
        self.views[execution_id] = ExecutionView.model_validate(view)

    async def frame(self, execution_id: UUID | None, seq: int, kind: str, data: dict[str, Any]) -> None:
        """Says one frame."""
        payload = orjson.dumps({"seq": seq, "type": kind, "data": data})
        await self.bus.nc.publish(frames_subject("gateway", execution_id), payload)

    async def started(self, execution_id: UUID | None) -> None:
        await self.frame(execution_id, 1, "started", {"execution_id": str(execution_id), "model": "a/b"})

    async def text(self, execution_id: UUID | None, seq: int, text: str) -> None:
        await self.frame(execution_id, seq, "text", {"text": text})

    async def completed(self, execution_id: UUID, seq: int, text: str = "Rain on the tin roof") -> None:
        await self.frame(execution_id, seq, "completed", result_for(execution_id, text).model_dump(mode="json"))

    async def failed(self, execution_id: UUID, seq: int, code: ErrorCode = ErrorCode.UPSTREAM) -> None:
        await self.frame(execution_id, seq, "failed", failure_for(execution_id, code).body.model_dump(mode="json"))


@asynccontextmanager
async def scripted_executor(nats: Nats, credentials: Credentials, script: Script) -> AsyncIterator[ScriptedExecutor]:
    """The executor of one test, with an empty frames stream."""
    executor = ScriptedExecutor(script)
    async with peer("executor", nats, credentials, executor.register) as bus:
        await bus.declare(FRAMES_STREAM)
        yield executor


class Event:
    """One server-sent event."""

    def __init__(self, text: str) -> None:
        fields = dict(line.split(": ", 1) for line in text.split("\n"))
        self.seq = int(fields["id"])
        self.kind = fields["event"]
        self.data = orjson.loads(fields["data"])

    def __repr__(self) -> str:
        return f"{self.seq} {self.kind} {self.data}"


def events_of(text: str) -> list[Event]:
    """The events of a whole stream, without comments."""
    return [Event(block) for block in text.split("\n\n") if block and not block.startswith(":")]


def error_body(response: httpx.Response) -> dict[str, Any]:
    """A problem, checked to be one."""
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == response.status_code
    assert problem["detail"]
    return problem
