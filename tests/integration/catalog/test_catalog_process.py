"""The catalog as a process of its own, started as an operator starts it, reading the sandbox's list."""

import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from contracts.errors import ErrorCode, ServiceError
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from deploy.local.process import Child, inherited_environment
from deploy.sandbox.app import Settings as SandboxSettings
from deploy.sandbox.app import running as running_sandbox
from tests.integration.catalog_parts import parties_around
from tests.stack import ROOT, Database, shared_data
from tests.waiting import until


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[str]:
    """The real catalog, as the sandbox serves it."""
    async with running_sandbox(SandboxSettings(catalog=shared_data() / "openrouter-models.json")) as url:
        yield url


async def test_the_process_starts_syncs_serves_and_stops_cleanly(
    database: Database, nats_server: Nats, credentials: Credentials, sandbox: str, tmp_path: Path
) -> None:
    port = free_port()
    child = Child(
        "catalog",
        [sys.executable, "-m", "services.catalog.main"],
        env={
            **inherited_environment(),
            "NATS_URL": nats_server.url,
            "NATS_PASSWORD": credentials.nats_password("catalog"),
            "POSTGRES_URL": database.dsn("catalog"),
            "CATALOG_UPSTREAM_URL": f"{sandbox}/api/v1",
            "CATALOG_UPSTREAM_KEY": "sk-or-test-catalog",
            "METRICS_PORT": str(port),
            "LOG_FORMAT": "json",
        },
        log=tmp_path / "catalog.log",
        cwd=ROOT,
    )
    child.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as http:
            await until(lambda: _ready(http, child))
            metrics = (await http.get("/metrics")).text
        assert 'x402jobs_catalog_syncs_total{outcome="applied"} 1.0' in metrics
        async with parties_around(nats_server, credentials) as parties:
            batch = await parties.model("openai/gpt-4o-mini:batch")
            popular = await parties.search(sort="popular", limit=3)
            alias = await parties.providers("~anthropic/claude-sonnet-latest")
            router = await parties.providers("openrouter/auto")
            for refused, code in (("sandbox/status-503", ErrorCode.UPSTREAM), ("no/such", ErrorCode.NOT_FOUND)):
                with pytest.raises(ServiceError) as failed:
                    await parties.providers(refused)
                assert failed.value.code is code
        assert not batch.executable
        assert [model.popularity_rank for model in popular.items] == [1, 2, 3]
        assert alias.model_id == "anthropic/claude-sonnet-5"
        assert any(provider.first_token_ms for provider in alias.items)
        assert router.items == []
        await child.stop(signal.SIGTERM, grace_s=10)
        assert child.exit_code == 0
        log = (tmp_path / "catalog.log").read_text()
        assert "service_stopped" in log
        assert not re.search(r"postgresql://|password|sk-or-", log)
    finally:
        await child.kill()


async def _ready(http: httpx.AsyncClient, child: Child) -> bool:
    child.check()
    try:
        return (await http.get("/readyz")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
