"""Liveness, readiness and metrics over HTTP, the same for every service.

`/livez` says that the process answers at all, `/readyz` that everything it needs answers too, each by a ping that was
registered where the thing was made. Readiness is refused from the moment the service is told to stop. Metrics say what the
same pings say, so that whoever collects them needs no second question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Ping = Callable[[], Awaitable[Any]]
_PING_TIMEOUT_S = 3


class Health:
    """Pings by name, and the small ASGI application that reports them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._pings: dict[str, Ping] = {}
        self.stopping = False
        # needs: what `add` was told of: bus, postgres, catalog, gateway
        self._ready = Gauge(
            "x402jobs_ready", "1 while what the service needs answers, otherwise 0.", ["needs"], registry=registry
        )

    def add(self, name: str, ping: Ping) -> None:
        """`ping` returns when the thing answers and raises when it does not."""
        self._pings[name] = ping

    async def _state(self, ping: Ping) -> str:
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await ping()
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer is "not ready"
            return type(error).__name__
        return "ok"

    async def readiness(self) -> tuple[bool, dict[str, str]]:
        """Whether the service can work, and the state of each thing it needs."""
        states = await asyncio.gather(*(self._state(ping) for ping in self._pings.values()))
        report = dict(zip(self._pings, states, strict=True))
        for needs, state in report.items():
            self._ready.labels(needs).set(state == "ok")
        if self.stopping:
            report["service"] = "stopping"
        return all(state == "ok" for state in report.values()), report

    async def metrics(self) -> tuple[bytes, str]:
        """The text and its content type; what is needed is asked anew."""
        await self.readiness()
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    async def __call__(self, scope: dict[str, Any], _receive: Any, send: Any) -> None:
        """ASGI: answers three paths, everything else is 404."""
        if scope["type"] != "http":
            return
        status, body, content_type = 404, b"not found\n", "text/plain"
        if scope["path"] == "/livez":
            status, body = 200, b"ok\n"
        elif scope["path"] == "/readyz":
            ready, report = await self.readiness()
            status, body, content_type = (200 if ready else 503), orjson.dumps(report), "application/json"
        elif scope["path"] == "/metrics":
            status = 200
            body, content_type = await self.metrics()
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
