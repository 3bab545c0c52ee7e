"""Readiness: everything a service needs answers, in time, and it is not on its way out."""

import asyncio
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry, Counter

from services.runtime import health as health_module
from services.runtime.health import Health


async def fine() -> None:
    return None


async def broken() -> None:
    raise ConnectionError("postgresql://user:password@host refused")


async def ask(health: Health, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await health({"type": "http", "path": path}, None, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


async def test_service_is_ready_when_everything_answers() -> None:
    health = Health(CollectorRegistry())
    health.add("bus", fine)
    health.add("postgres", fine)
    assert await health.readiness() == (True, {"bus": "ok", "postgres": "ok"})
    status, headers, body = await ask(health, "/readyz")
    assert (status, headers[b"content-type"], orjson.loads(body)) == (
        200,
        b"application/json",
        {"bus": "ok", "postgres": "ok"},
    )


async def test_service_is_not_ready_when_one_thing_does_not_answer_and_says_no_more_than_its_kind() -> None:
    health = Health(CollectorRegistry())
    health.add("bus", fine)
    health.add("postgres", broken)
    status, _, body = await ask(health, "/readyz")
    assert (status, orjson.loads(body)) == (503, {"bus": "ok", "postgres": "ConnectionError"})
    assert b"password" not in body


async def test_service_is_not_ready_from_the_moment_it_stops() -> None:
    health = Health(CollectorRegistry())
    health.add("bus", fine)
    health.stopping = True
    assert await health.readiness() == (False, {"bus": "ok", "service": "stopping"})
    assert (await ask(health, "/livez"))[0] == 200


async def test_thing_that_never_answers_is_not_waited_for_longer_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_PING_TIMEOUT_S", 0.05)

    asked: list[int] = []
    asked_at_the_end: list[int] = []

    async def hangs() -> None:
        asked.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            asked_at_the_end.append(len(asked))

    health = Health(CollectorRegistry())
    for number in range(5):
        health.add(f"thing {number}", hangs)
    ready, report = await health.readiness()
    assert (ready, set(report.values())) == (False, {"TimeoutError"})
    assert asked_at_the_end == [5] * 5, "they share the time"


async def test_metrics_are_those_of_the_registry_given() -> None:
    registry = CollectorRegistry()
    Counter("x402jobs_seen", "Seen.", registry=registry).inc(3)
    status, headers, body = await ask(Health(registry), "/metrics")
    assert status == 200
    assert b"x402jobs_seen_total 3.0" in body
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"content-type"].startswith(b"text/plain")


@pytest.mark.parametrize("path", ["/", "/livez/", "/readyz/x", "/metrics.json"])
async def test_other_paths_are_not_found(path: str) -> None:
    assert (await ask(Health(CollectorRegistry()), path))[0] == 404
