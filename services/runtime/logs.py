"""Structured logs on stdout: one canonical line per request and per message, JSON for machines, colours for people.

The standard library's logging (nats, uvicorn, openai, asyncio) goes through the same renderer, from WARNING up, so that
a log holds one format. Nothing here ever formats a payload: what is not passed as a field is not logged.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor

LIBRARIES = (
    "nats",
    "faststream",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "openai",
    "httpx",
    "httpcore",
    "asyncio",
)


def configure_logs(service: str, instance: str, log_format: str, level: str) -> None:
    """Set up structlog and the standard library for one process. `level` is a standard level name."""

    def add_service(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"], event["instance"] = service, instance
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]
    # Tracebacks are rendered without local variables: a local variable may be a key.
    if log_format == "json":
        renderer: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in LIBRARIES:
        # Libraries log payloads and headers at DEBUG; a key could be among them, so our level does not reach them.
        logging.getLogger(name).setLevel(logging.WARNING)
