"""The life of a service: it waits for what is not there yet, begins again what dies inside it, and stops without losing anything,
not ready from the first moment of that on."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import KeyStatus, OwnerRef
from contracts.subjects import KEYS_STATUS
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from deploy.local.process import Child, inherited_environment
from services.runtime import process as runtime_process
from services.runtime.postgres import connect, create_pool, ping
from services.runtime.process import running
from services.runtime.service import Service
from services.runtime.settings import ServiceSettings
from tests.integration.executor_parts import bus_of
from tests.stack import ROOT, Database
from tests.waiting import PATIENCE_S, until


def service_of(nats_url: str, credentials: Credentials, **changes: Any) -> Service:
    """A service that is nobody's in particular, under the bus user `keys`."""
    settings = ServiceSettings(
        nats_url=nats_url,
        nats_password=SecretStr(credentials.nats_password("keys")),
        **{"metrics_port": free_port(), **changes},
    )
    return Service("keys", settings, CollectorRegistry(), drain_timeout_s=5)


async def get(service: Service, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{HOST}:{service.settings.metrics_port}{path}", timeout=PATIENCE_S)


async def ready(service: Service) -> bool:
    return (await get(service, "/readyz")).status_code == 200


@asynccontextmanager
async def door_to(port: int, at: int) -> AsyncIterator[None]:
    """A port that leads to another one for as long as the block lasts: a server that is there, and then is not."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    async with await asyncio.start_server(enter, HOST, at):
        yield


# Starting -------------------------------------------------------------------------------------------------------------


async def test_service_waits_for_its_bus_and_its_database(
    own_nats: Nats, credentials: Credentials, database: Database
) -> None:
    await own_nats.stop()
    postgres_port = free_port()
    service = service_of(own_nats.url, credentials)
    url = database.dsn("keys").replace(f":{database.server.port}/", f":{postgres_port}/")
    pool = create_pool(url, service="keys")
    service.before_bus(lambda: connect(pool))
    service.on_stop(pool.close)
    service.health.add("postgres", lambda: ping(pool))

    async def alive() -> bool:
        try:
            return (await get(service, "/livez")).status_code == 200
        except httpx.TransportError:
            return False

    with capture_logs():
        starting = asyncio.create_task(service.start())
        await until(alive)
        answer = await get(service, "/readyz")
        assert (answer.status_code, set(answer.json())) == (503, {"bus", "postgres"})
        async with door_to(database.server.port, at=postgres_port):

            async def has_database() -> bool:
                state: str = (await get(service, "/readyz")).json()["postgres"]
                return state == "ok"

            await until(has_database)
            assert not await ready(service)
            assert not starting.done()
            await own_nats.start()
            await asyncio.wait_for(starting, PATIENCE_S)
            assert await ready(service)
            assert "x402jobs_started_timestamp_seconds 1" in (await get(service, "/metrics")).text
            await service.stop()


async def test_service_is_not_ready_while_its_bus_is_away(own_nats: Nats, credentials: Credentials) -> None:
    service = service_of(own_nats.url, credentials)
    with capture_logs():
        async with running(service):
            assert await ready(service)
            await own_nats.kill()

            async def away() -> bool:
                return not await ready(service)

            await until(away)
            assert (await get(service, "/livez")).status_code == 200
            await own_nats.start()
            await until(lambda: ready(service))


async def test_start_fails_by_name_when_the_port_is_taken(nats_server: Nats, credentials: Credentials) -> None:
    async with running(service_of(nats_server.url, credentials)) as first:
        port = first.settings.metrics_port
        with pytest.raises(OSError, match=f"cannot listen on {HOST}:{port}"):
            await service_of(nats_server.url, credentials, metrics_port=port).start()


async def test_only_three_paths_are_answered(nats_server: Nats, credentials: Credentials) -> None:
    async with running(service_of(nats_server.url, credentials)) as service:
        statuses = [
            (await get(service, path)).status_code for path in ("/livez", "/readyz", "/metrics", "/", "/livez/x")
        ]
        assert statuses == [200, 200, 200, 404, 404]


# Running --------------------------------------------------------------------------------------------------------------


async def test_background_work_that_dies_is_begun_again(
    nats_server: Nats, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_process, "_RESTART_DELAY_S", 0.01)
    begun: list[int] = []
    steady = asyncio.Event()

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise KeyError("died")
        steady.set()
        await asyncio.Event().wait()

    service = service_of(nats_server.url, credentials)
    service.background("work", work)
    with capture_logs() as logs:
        async with running(service):
            await asyncio.wait_for(steady.wait(), PATIENCE_S)
            assert await ready(service)
    failures = [(log["task"], log["error"]) for log in logs if log["event"] == "background_failed"]
    assert failures == [("work", "KeyError")]
    assert [log["event"] for log in logs if log.get("task") == "work"] == [
        "background_failed",
        "background_failed_again",
    ]


# Stopping -------------------------------------------------------------------------------------------------------------


async def test_service_is_not_ready_while_it_stops_and_finishes_what_it_has_begun(
    nats_server: Nats, credentials: Credentials
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: OwnerRef) -> KeyStatus:
        begun.set()
        await go_on.wait()
        return KeyStatus(connected=True)

    service = service_of(nats_server.url, credentials)
    service.bus.serve(KEYS_STATUS, slow)
    gateway = bus_of("gateway", nats_server, credentials)
    await gateway.start()
    await service.start()
    asking = asyncio.create_task(gateway.call(KEYS_STATUS, OwnerRef(owner="ada")))
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    stopping = asyncio.create_task(service.stop())

    async def refuses() -> dict[str, str]:
        answer = await get(service, "/readyz")
        report: dict[str, str] = answer.json() if answer.status_code == 503 else {}
        return report

    assert (await until(refuses))["service"] == "stopping"
    assert (await get(service, "/livez")).status_code == 200

    async def nobody_answers() -> bool:
        try:
            await gateway.call(KEYS_STATUS, OwnerRef(owner="bob"), timeout_s=0.5)
        except ServiceError as error:
            return error.code is ErrorCode.UNAVAILABLE
        return False

    await until(nobody_answers)
    assert not stopping.done()
    go_on.set()
    assert (await asking).connected
    await asyncio.wait_for(stopping, PATIENCE_S)
    with pytest.raises(httpx.ConnectError):
        await get(service, "/livez")
    await gateway.close()


async def test_stop_waits_drains_ends_and_closes_in_this_order_whatever_fails(
    nats_server: Nats, credentials: Credentials
) -> None:
    order: list[str] = []
    service = service_of(nats_server.url, credentials)

    def note(name: str, *, fail: bool = False) -> Callable[[], Awaitable[None]]:
        async def hook() -> None:
            order.append(name)
            if fail:
                raise RuntimeError(name)

        return hook

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("background")

    service.before_bus(note("before bus"))
    service.after_bus(note("after bus"))
    service.background("work", work)
    service.on_drain(note("drain"))
    service.on_stop(note("pool"))
    service.on_stop(note("client", fail=True))
    service.on_stop(note("flush"))
    with capture_logs() as logs:
        async with running(service):
            await asyncio.sleep(0)
    assert order == ["before bus", "after bus", "drain", "background", "flush", "client", "pool"]
    assert [log["error"] for log in logs if log["event"] == "stop_hook_failed"] == ["RuntimeError"]
    assert not service.bus.connected


# As a process ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "path", "there"),
    [(signal.SIGTERM, "/readyz", True), (signal.SIGINT, "/livez", False)],
    ids=["ready", "still waiting"],
)
async def test_process_ends_with_zero_when_it_is_told_to(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    tmp_path: Path,
    told: signal.Signals,
    path: str,
    there: bool,
) -> None:
    port = free_port()
    environment = {
        "NATS_URL": nats_server.url,
        "NATS_PASSWORD": credentials.nats_password("keys"),
        "POSTGRES_URL": database.dsn("keys") if there else f"postgresql://{HOST}:{free_port()}/x",
        "MASTER_KEYS": credentials.master_keys,
        "EXECUTOR_IDENTITIES": credentials.executor_identities,
        "METRICS_PORT": str(port),
    }
    child = Child(
        "keys",
        [sys.executable, "-m", "services.keys.main"],
        env={**inherited_environment(), **environment},
        log=tmp_path / "keys.log",
        cwd=ROOT,
    )

    async def answers() -> bool:
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://{HOST}:{port}{path}", timeout=PATIENCE_S)).status_code == 200
        except httpx.TransportError:
            return False

    child.start()
    try:
        await until(answers)
        await child.stop(told, grace_s=8)
        assert child.exit_code == 0
        assert "Traceback" not in child.log.read_text()
    finally:
        await child.kill()
