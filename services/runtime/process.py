"""The life of a process of ours: start in order, run until told to stop, stop in the reverse order without losing anything.

Start: health endpoint, what the service needs (pools), bus. Stop on SIGTERM or SIGINT: not ready any more, HTTP finishes
its requests, the bus drains, background tasks end, the rest closes. Any service may be started before the things it
needs are there: it waits, alive and not ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from services.runtime.health import Health
from services.runtime.logs import configure_logs
from services.runtime.settings import ProcessSettings

log = structlog.get_logger()

Hook = Callable[[], Awaitable[None]]
_RESTART_DELAY_S = 1.0
_LAG_EVERY_S = 0.5


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the service decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        # It leaves with SystemExit when it cannot listen, after it has logged why: that would end the event loop on the spot.
        with contextlib.suppress(SystemExit):
            await super().serve(sockets)


class Process:
    """One process of ours, wired by its `build`. By itself it is not on the bus."""

    def __init__(
        self, name: str, settings: ProcessSettings, registry: CollectorRegistry, *, drain_timeout_s: float = 30
    ) -> None:
        self.name = name
        self.settings = settings
        self.registry = registry
        self.instance = settings.instance or f"{name}-{socket.gethostname()}-{time.time_ns() % 10**9:09d}"
        self.health = Health(registry)
        self._drain_timeout_s = drain_timeout_s
        self._stopping_hooks: list[Hook] = []
        self._drain_hooks: list[Hook] = []
        self._stop_hooks: list[Hook] = []
        self._background: list[tuple[str, Hook]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[tuple[_HttpServer, asyncio.Task[None]]] = []
        self._apps: list[tuple[Any, str, int]] = [(self.health, settings.metrics_host, settings.metrics_port)]
        self.started = Gauge("x402jobs_started_timestamp_seconds", "When this process became ready.", registry=registry)
        # task: what `background` was told of
        self._failures = Counter(
            "x402jobs_background_failures",
            "Deaths of background work, which is begun again.",
            ["task"],
            registry=registry,
        )
        self._lag = Histogram(
            "x402jobs_loop_lag_seconds", "How late the event loop comes to what is due.", registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
        )  # fmt: skip
        ProcessCollector(registry=registry)
        self.background("loop_lag", self._measure_lag)

    def on_stopping(self, hook: Hook) -> None:
        """Run at stop before anything else: end here what would go on for as long as it is let."""
        self._stopping_hooks.append(hook)

    def on_drain(self, hook: Hook) -> None:
        """Run at stop once no new work can arrive, while background work still goes on: wait here for what is running."""
        self._drain_hooks.append(hook)

    def on_stop(self, hook: Hook) -> None:
        """Run at stop, last registered first, after all work has ended and before the bus closes."""
        self._stop_hooks.append(hook)

    def background(self, name: str, work: Hook) -> None:
        """Keep `work` running from start to stop; when it dies it is logged and begun again."""
        self._background.append((name, work))
        self._failures.labels(name)

    def serve_http(self, app: Any, host: str, port: int) -> None:
        """Serve a further ASGI application; it listens once everything else is up."""
        self._apps.append((app, host, port))

    async def start(self) -> None:
        await self._listen(*self._apps[0])
        await self._connect()
        self._tasks = [asyncio.create_task(self._supervise(name, work)) for name, work in self._background]
        for app, host, port in self._apps[1:]:
            await self._listen(app, host, port)
        self.started.set_to_current_time()
        log.info("service_ready")

    async def _listen(self, app: Any, host: str, port: int) -> None:
        config = uvicorn.Config(
            app, host=host, port=port, loop="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=int(self._drain_timeout_s), timeout_keep_alive=75,
        )  # fmt: skip
        server = _HttpServer(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            if task.done():
                raise OSError(f"cannot listen on {host}:{port}; is the port in use?")
            await asyncio.sleep(0.01)
        bound = server.servers[0].sockets[0].getsockname()[1]
        self._servers.append((server, task))
        log.info("listening", host=host, port=bound)

    async def _supervise(self, name: str, work: Hook) -> None:
        failed_before = None
        while True:
            try:
                await work()
            except Exception as error:
                self._failures.labels(name).inc()
                if failed_before is type(error):
                    # A database that is down, say: the same failure again needs no second traceback.
                    log.warning("background_failed_again", task=name, error=type(error).__name__)
                else:
                    log.exception("background_failed", task=name, error=type(error).__name__)
                failed_before = type(error)
            await asyncio.sleep(_RESTART_DELAY_S)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due_s))

    async def stop(self) -> None:
        log.info("service_stopping")
        self.health.stopping = True
        await self._run_hooks(self._stopping_hooks)
        for server, task in reversed(self._servers[1:]):
            server.should_exit = True
            await task
        await self._drain()
        await self._run_hooks(self._drain_hooks)
        await _end(self._tasks)
        await self._run_hooks(self._stop_hooks)
        await self._disconnect()
        for server, task in self._servers[:1]:
            server.should_exit = True
            await task
        log.info("service_stopped")

    async def _connect(self) -> None:
        """What has to be there before work begins."""

    async def _drain(self) -> None:
        """Take no new work."""

    async def _disconnect(self) -> None:
        """Give back what `_connect` took."""

    async def _run_hooks(self, hooks: list[Hook]) -> None:
        for hook in reversed(hooks):
            try:
                await hook()
            except Exception as error:
                log.exception("stop_hook_failed", error=type(error).__name__)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel until all have ended. Once is not always enough: before Python 3.12 `asyncio.wait_for` loses a cancellation
    that comes in the moment its wait is over, and libraries use it too."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1)


Running = TypeVar("Running", bound=Process)


@asynccontextmanager
async def running(service: Running) -> AsyncIterator[Running]:
    """The service, started; stopped at the end of the block."""
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def _run(build: Callable[[], Process]) -> None:
    service = build()
    configure_logs(service.name, service.instance, service.settings.log_format, service.settings.log_level)
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop.set)
    starting = asyncio.create_task(service.start())
    stopping = asyncio.create_task(told_to_stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        return
    starting.result()
    await stopping
    await service.stop()


def run(build: Callable[[], Process]) -> None:
    """The whole of a service's `main`: build, start, wait for a signal, stop. Exits 0 after a clean stop."""
    uvloop.run(_run(build))
