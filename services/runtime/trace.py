"""Whose doing something is, across services."""

from contextvars import ContextVar

traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""W3C trace context of whatever is being done; set by the gateway from HTTP, by the bus from a message."""
