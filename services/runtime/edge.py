"""The outermost layer of whatever speaks HTTP to people, plain ASGI: trace context, one canonical log line and the metrics of
every request.

Routes add to the line through `note`. A route appears in metrics by its template, never by its path, so that ids make
no time series.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.runtime.trace import traceparent

log = structlog.get_logger()

CLIENT_GONE = 499
"""Stands in logs and metrics where the client left before the response; nobody receives it."""
_FIELDS = "x402jobs.log"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNKNOWN_ROUTE = "unknown"
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_UNLOGGED = frozenset({"/livez", "/readyz", "/metrics"})


def note(request: Request, **fields: object) -> None:
    """Adds fields to the log line of this request."""
    request.scope[_FIELDS].update(fields)


def pseudonym(user: str) -> str:
    """Tells users apart in logs without naming them."""
    return hashlib.blake2b(user.encode(), digest_size=6).hexdigest()


def trace_of(header: str | None) -> str:
    """The W3C trace context of a request: the client's own when it sends a good one, otherwise a new one."""
    if header is not None and _TRACEPARENT.fullmatch(header):
        return header[:55]
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        # method: seven names and `other`; route: templates of the application and `unknown`; status: HTTP statuses
        self._requests = Counter(
            "x402jobs_http_requests",
            "HTTP requests, by how they ended.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "x402jobs_http_request_seconds", "From the request to the last byte of the response.", ["method", "route"],
            registry=registry, buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = time.monotonic()
        trace = trace_of(_header(scope, b"traceparent"))
        traceparent.set(trace)
        fields: MutableMapping[str, Any] = {}
        scope[_FIELDS] = fields
        status = CLIENT_GONE

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            self._record(scope, status, time.monotonic() - started, trace, fields)

    def _record(self, scope: Scope, status: int, seconds: float, trace: str, fields: MutableMapping[str, Any]) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
        if route not in _UNLOGGED:
            log.info(
                "request",
                method=method,
                route=route,
                status=status,
                ms=round(seconds * 1000, 1),
                trace=trace[3:35],
                **fields,
            )
