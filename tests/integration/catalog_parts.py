"""What the integration tests of the catalog share: an upstream whose list a test writes, a catalog service on real parts,
and the bus users who talk to it."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from aiohttp import web
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from contracts.base import Empty
from contracts.catalog import (
    CreateResource,
    ModelChanged,
    ModelDetail,
    ModelPage,
    ModelRef,
    ResolvedResource,
    ResolveResource,
    Resource,
    ResourceChanged,
    ResourcePatch,
    ResourceRef,
    SearchModels,
    SyncCatalog,
    SyncReport,
    UpdateResource,
)
from contracts.drafts import CheckDraft
from contracts.providers import ModelProviders
from contracts.subjects import (
    CATALOG_SYNC,
    DRAFTS_CHECK,
    MODEL_CHANGED,
    MODELS_GET,
    MODELS_PROVIDERS,
    MODELS_SEARCH,
    RESOURCE_CHANGED,
    RESOURCES_CREATE,
    RESOURCES_DELETE,
    RESOURCES_GET,
    RESOURCES_PAUSE,
    RESOURCES_PUBLISH,
    RESOURCES_RESOLVE,
    RESOURCES_UPDATE,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from services.catalog.main import Settings, build
from services.runtime.bus import Bus
from services.runtime.process import running
from services.runtime.service import Service
from tests.stack import Database, serving
from tests.waiting import until


def entry(model_id: str, **changes: Any) -> dict[str, Any]:
    """A model as upstream lists it."""
    return {
        "id": model_id,
        "canonical_slug": model_id,
        "name": f"Maker: {model_id}",
        "created": 1_780_000_000,
        "description": "A model.",
        "context_length": 8192,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": {"prompt": "0.000001", "completion": "0.000002"},
        "top_provider": {"context_length": 8192, "max_completion_tokens": 4096},
        "supported_parameters": ["max_tokens", "temperature"],
        **changes,
    }


def draft(model_id: str = "m/a", **changes: Any) -> dict[str, Any]:
    return {
        "resource_type": "openrouter_instant",
        "name": "Haiku maker",
        "slug": "haiku-maker",
        "description": "Writes haiku.",
        "openrouter_config": {"model_id": model_id, "prompt_template": "A haiku about {{topic}}", "max_tokens": 100},
        "inputs": [{"name": "topic"}],
        "pricing": {"mode": "fixed", "price_usd": "0.01"},
        **changes,
    }


@dataclass
class Upstream:
    """`GET /models` with an ETag, pages when `page_size` is set, and whatever a test makes of it."""

    url: str
    entries: list[Any] = field(default_factory=lambda: [entry("m/a"), entry("m/b"), entry("m/c")])
    ranked: list[str] | None = None
    """Ids by popularity; None answers that call with 500."""
    page_size: int | None = None
    status: int = 200
    raw: bytes | None = None
    hold: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)
    """What was asked for: `list`, `ranks`, `page`, each with `304` behind it where nothing had changed."""

    async def answer(self, request: web.Request) -> web.Response:
        ranks = request.query.get("sort") == "most-popular"
        kind = "ranks" if ranks else "page" if "offset" in request.query else "list"
        self.asked.append(kind)
        if self.hold is not None:
            await self.hold.wait()
        if self.status != 200 or (ranks and self.ranked is None):
            return web.json_response({"error": {"message": "secret detail", "code": 500}}, status=max(self.status, 400))
        if self.raw is not None:
            return web.Response(body=self.raw, content_type="application/json")
        shown = self.entries
        links: dict[str, str | None] = {"next": None}
        if ranks:
            shown = [{"id": model_id} for model_id in self.ranked or []]
        elif self.page_size is not None:
            offset = int(request.query.get("offset", "0"))
            shown = self.entries[offset : offset + self.page_size]
            if offset + self.page_size < len(self.entries):
                links = {"next": f"/api/v1/models?output_modalities=all&offset={offset + self.page_size}"}
        body = json.dumps({"data": shown, "total_count": len(self.entries), "links": links}).encode()
        etag = f'W/"{hashlib.sha256(body).hexdigest()}"'
        if request.headers.get("If-None-Match") == etag:
            self.asked[-1] += " 304"
            return web.Response(status=304)
        return web.Response(body=body, content_type="application/json", headers={"ETag": etag})


@asynccontextmanager
async def running_upstream() -> AsyncIterator[Upstream]:
    port = free_port()
    upstream = Upstream(f"http://{HOST}:{port}/api/v1")
    app = web.Application()
    app.router.add_get("/api/v1/models", upstream.answer)
    async with serving(app, port):
        yield upstream


class Gate:
    """A way to a TCP port that can be shut, which is how a database goes away without a database having to stop."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.behind = port
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, HOST, self.port)

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self.behind)
        self._open |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            self._open -= {writer, back}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


def catalog_settings(
    database: Database, nats: Nats, credentials: Credentials, upstream: Upstream, **changes: Any
) -> Settings:
    values: dict[str, Any] = {
        "nats_url": nats.url,
        "nats_password": SecretStr(credentials.nats_password("catalog")),
        "postgres_url": SecretStr(database.dsn("catalog")),
        "catalog_upstream_url": upstream.url,
        **changes,
    }
    return Settings(**values)


def bus_of(user: str, nats: Nats, credentials: Credentials) -> Bus:
    return Bus(
        service=user,
        instance=f"{user}-test",
        url=nats.url,
        user=user,
        password=credentials.nats_password(user),
        registry=CollectorRegistry(),
    )


@dataclass
class Parties:
    """The gateway and an executor, each with its own bus user, and what the executor heard."""

    gateway: Bus
    executor: Bus
    models: list[ModelChanged] = field(default_factory=list)
    resources: list[ResourceChanged] = field(default_factory=list)

    async def sync(self) -> SyncReport:
        return await self.gateway.call(CATALOG_SYNC, SyncCatalog(requested_by="admin"))

    async def search(self, **query: Any) -> ModelPage:
        return await self.gateway.call(MODELS_SEARCH, SearchModels.model_validate(query))

    async def ids(self, **query: Any) -> list[str]:
        return sorted(model.id for model in (await self.search(**query)).items)

    async def model(self, model_id: str) -> ModelDetail:
        return await self.gateway.call(MODELS_GET, ModelRef(id=model_id))

    async def providers(self, model_id: str) -> ModelProviders:
        return await self.gateway.call(MODELS_PROVIDERS, ModelRef(id=model_id))

    async def create(self, owner: str = "ann", **changes: Any) -> Resource:
        return await self.gateway.call(
            RESOURCES_CREATE, CreateResource.model_validate({"owner": owner, "draft": draft(**changes)})
        )

    async def update(self, resource: Resource | UUID, owner: str = "ann", **patch: Any) -> Resource:
        request = UpdateResource(owner=owner, id=_id(resource), patch=ResourcePatch.model_validate(patch))
        return await self.gateway.call(RESOURCES_UPDATE, request)

    async def get(self, resource: Resource | UUID, owner: str = "ann") -> Resource:
        return await self.gateway.call(RESOURCES_GET, ResourceRef(owner=owner, id=_id(resource)))

    async def publish(self, resource: Resource | UUID, owner: str = "ann") -> Resource:
        return await self.gateway.call(RESOURCES_PUBLISH, ResourceRef(owner=owner, id=_id(resource)))

    async def pause(self, resource: Resource | UUID, owner: str = "ann") -> Resource:
        return await self.gateway.call(RESOURCES_PAUSE, ResourceRef(owner=owner, id=_id(resource)))

    async def delete(self, resource: Resource | UUID, owner: str = "ann") -> Empty:
        return await self.gateway.call(RESOURCES_DELETE, ResourceRef(owner=owner, id=_id(resource)))

    async def resolve(self, ref: str) -> ResolvedResource:
        return await self.executor.call(RESOURCES_RESOLVE, ResolveResource(ref=ref))

    async def check(self, **changes: Any) -> ResolvedResource:
        return await self.executor.call(
            DRAFTS_CHECK, CheckDraft.model_validate({"owner": "ann", "draft": draft(**changes)})
        )

    async def heard(self) -> list[tuple[str, str]]:
        """Every change of resources so far, as (slug, change): what was published before now has arrived."""
        await self.executor.nc.flush()
        await until(lambda: _settled(self.resources))
        return [(event.slug, event.change) for event in self.resources]


def _id(resource: Resource | UUID) -> UUID:
    return resource if isinstance(resource, UUID) else resource.id


async def _settled(heard: list[Any]) -> bool:
    before = len(heard)
    await asyncio.sleep(0.2)
    return len(heard) == before


@asynccontextmanager
async def parties_around(nats: Nats, credentials: Credentials) -> AsyncIterator[Parties]:
    gateway, executor = bus_of("gateway", nats, credentials), bus_of("executor", nats, credentials)
    parties = Parties(gateway, executor)

    async def hear_model(message: ModelChanged) -> None:
        parties.models.append(message)

    async def hear_resource(message: ResourceChanged) -> None:
        parties.resources.append(message)

    executor.listen(MODEL_CHANGED, hear_model)
    executor.listen(RESOURCE_CHANGED, hear_resource)
    async with AsyncExitStack() as cleanup:
        for bus in (gateway, executor):
            await bus.start()
            cleanup.push_async_callback(bus.close)
        yield parties


@asynccontextmanager
async def catalog_running(settings: Settings) -> AsyncIterator[Service]:
    """A catalog service that has ended its first reading."""
    async with running(build(settings)) as service:
        await until(lambda: is_ready(service))
        yield service


async def is_ready(service: Service) -> bool:
    ready, _ = await service.health.readiness()
    return ready


def metric(service: Service, name: str, **labels: str) -> float | None:
    return service.registry.get_sample_value(name, labels)
