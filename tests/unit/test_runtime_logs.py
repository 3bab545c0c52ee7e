"""Logs of a process: one JSON object per line with who wrote it, our level for us and never for libraries, and no local variables
in a traceback. Each runs in a process of its own, since logging belongs to the process."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.stack import ROOT


def logged(code: str, *, log_format: str = "json", level: str = "INFO") -> str:
    """What a process writes that sets logs up and then runs this."""
    setup = f"""
import logging, structlog
from services.runtime.logs import configure_logs
configure_logs("executor", "executor-1", {log_format!r}, {level!r})
log = structlog.get_logger()
"""
    done = subprocess.run(
        [sys.executable, "-c", setup + code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_line_is_an_object_with_its_event_its_fields_and_its_author() -> None:
    [line] = lines(logged("log.info('executed', status='succeeded', attempts=2)"))
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "executed",
        "status": "succeeded",
        "attempts": 2,
        "level": "info",
        "service": "executor",
        "instance": "executor-1",
    }


def test_context_of_a_run_is_on_its_lines() -> None:
    code = "structlog.contextvars.bind_contextvars(execution_id='x1'); log.warning('frame_lost')"
    [line] = lines(logged(code))
    assert (line["execution_id"], line["level"]) == ("x1", "warning")


@pytest.mark.parametrize(("level", "events"), [("DEBUG", ["a", "b", "c"]), ("INFO", ["b", "c"]), ("ERROR", ["c"])])
def test_level_holds_for_our_lines(level: str, events: list[str]) -> None:
    written = lines(logged("log.debug('a'); log.info('b'); log.error('c')", level=level))
    assert [line["event"] for line in written] == events


def test_libraries_are_heard_from_warning_up_whatever_our_level_is() -> None:
    code = """
for name in ("nats", "openai", "httpx", "faststream", "uvicorn.error", "some.other"):
    logging.getLogger(name).debug("a key could be here")
    logging.getLogger(name).info("and here")
    logging.getLogger(name).warning("%s warns", name)
"""
    written = lines(logged(code, level="DEBUG"))
    assert [line["event"].split()[1] for line in written] == ["warns"] * 6
    assert {line["service"] for line in written} == {"executor"}


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("writer", ["log.exception('failed')", "logging.getLogger('asyncio').exception('failed')"])
def test_traceback_shows_where_and_no_local_variable(log_format: str, writer: str) -> None:
    code = f"""
def use(api_key):
    raise ValueError("refused")
try:
    use("sk-or-" + "test-canary")
except ValueError:
    {writer}
"""
    text = logged(code, log_format=log_format)
    assert "ValueError: refused" in text
    assert "in use" in text
    assert "canary" not in text
    if log_format == "json":
        [line] = lines(text)
        assert line["level"] == "error"
