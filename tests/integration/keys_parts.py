"""What the tests of the keys service share: an upstream whose answers a test chooses, a keys service on real parts, and
the bus users who talk to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from aiohttp import web
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from contracts.base import Empty
from contracts.keys import ConnectKey, KeyLease, KeysChanged, KeyStatus, OwnerRef, VerifyKey
from contracts.permissions import OBSERVER
from contracts.subjects import (
    KEYS_CHANGED,
    KEYS_CONNECT,
    KEYS_DISCONNECT,
    KEYS_LEASE,
    KEYS_RECIPIENT,
    KEYS_STATUS,
    KEYS_VERIFY,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from services.keys.main import Settings, build
from services.runtime.bus import Bus
from services.runtime.identity import ExecutorIdentity
from services.runtime.process import running
from services.runtime.sealing import RecipientKey, connect_context, lease_context, seal
from services.runtime.service import Service
from tests.stack import Database, serving
from tests.waiting import PATIENCE_S

LIVE_KEY = "sk-or-v1-" + "5ecret0f" * 8
OTHER_KEY = "sk-or-v1-" + "0ther5ec" * 8
INSTANCE = "executor-1"


@dataclass
class Upstream:
    """Answers `GET /key` as a test says: a status and facts, raw bytes, or nothing until it is let go; keys among `dead`
    with 401. What is under `meanwhile` for a key happens, once, while it is asked about that key. `GET /credits` is refused,
    as most keys are, unless there are `credits`."""

    url: str
    status: int = 200
    facts: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    hold: asyncio.Event | None = None
    dead: set[str] = field(default_factory=set)
    meanwhile: dict[str, Callable[[], Awaitable[object]]] = field(default_factory=dict)
    credits: dict[str, Any] | None = None
    authorizations: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.authorizations.append(request.headers["Authorization"])
        key = request.headers["Authorization"].removeprefix("Bearer ")
        if key in self.meanwhile:
            await self.meanwhile.pop(key)()
        if self.hold is not None:
            await self.hold.wait()
        if self.raw is not None:
            return web.Response(status=self.status, body=self.raw)
        if key in self.dead:
            return web.json_response({"error": {"message": "User not found.", "code": 401}}, status=401)
        if self.status != 200:
            error = {"message": "from upstream", "code": self.status}
            return web.json_response({"error": error, "user_id": "user_1"}, status=self.status)
        facts = {"label": "my label", "limit": None, "limit_remaining": None, "usage": 1.25, "is_free_tier": False}
        return web.json_response({"data": {**facts, **self.facts}})

    async def answer_credits(self, _: web.Request) -> web.Response:
        if self.credits is None:
            error = {"message": "Only management keys can perform this operation", "code": 403}
            return web.json_response({"error": error}, status=403)
        return web.json_response({"data": self.credits})


@asynccontextmanager
async def running_upstream() -> AsyncIterator[Upstream]:
    port = free_port()
    upstream = Upstream(f"http://{HOST}:{port}/api/v1")
    app = web.Application()
    app.router.add_get("/api/v1/key", upstream.answer)
    app.router.add_get("/api/v1/credits", upstream.answer_credits)
    async with serving(app, port):
        yield upstream


def keys_settings(database: Database, nats: Nats, credentials: Credentials, **changes: Any) -> Settings:
    """Settings of a keys service on the parts of the session."""
    values: dict[str, Any] = {
        "nats_url": nats.url,
        "nats_password": SecretStr(credentials.nats_password("keys")),
        "postgres_url": SecretStr(database.dsn("keys")),
        "master_keys": SecretStr(credentials.master_keys),
        "executor_identities": credentials.executor_identities,
        "instance": "keys-1",
        **changes,
    }
    return Settings(**values)


@dataclass
class Parties:
    """The gateway, an executor and the observer, each with its own bus user, around one or more keys services."""

    gateway: Bus
    executor: Bus
    observer: Bus
    identity: ExecutorIdentity
    changes: asyncio.Queue[KeysChanged] = field(default_factory=asyncio.Queue)
    pair: RecipientKey = field(default_factory=lambda: RecipientKey.generate("executor"))

    async def connect(self, owner: str, key: str, *, sealed_for: str | None = None) -> KeyStatus:
        """Hand a key over as the gateway does."""
        recipient = await self.gateway.call(KEYS_RECIPIENT, Empty())
        sealed = seal(key.encode(), recipient.public_key, connect_context(sealed_for or owner))
        request = ConnectKey(owner=owner, recipient_key_id=recipient.key_id, sealed=sealed)
        return await self.gateway.call(KEYS_CONNECT, request)

    async def status(self, owner: str) -> KeyStatus:
        return await self.gateway.call(KEYS_STATUS, OwnerRef(owner=owner))

    async def verify(self, owner: str) -> KeyStatus:
        return await self.gateway.call(KEYS_VERIFY, VerifyKey(owner=owner))

    async def disconnect(self, owner: str) -> KeyStatus:
        return await self.gateway.call(KEYS_DISCONNECT, OwnerRef(owner=owner))

    async def lease(self, owner: str, *, instance: str = INSTANCE) -> KeyLease:
        request = self.identity.lease_request(owner, instance, self.pair.public_key, datetime.now(UTC))
        return await self.executor.call(KEYS_LEASE, request)

    def opened(self, lease: KeyLease, owner: str, *, instance: str = INSTANCE) -> str:
        """The key in a lease."""
        return self.pair.open(lease.sealed, lease_context(owner, instance)).decode()

    async def change(self) -> tuple[str, int, str]:
        """The next `keys.changed` that the executor heard: owner, version, change."""
        heard = await asyncio.wait_for(self.changes.get(), PATIENCE_S)
        return heard.owner, heard.version, heard.change

    async def expect_silence(self) -> None:
        """Whatever was published before now has arrived: there must be no unread `keys.changed`."""
        await self.executor.nc.flush()
        assert self.changes.empty()


def bus_of(user: str, nats: Nats, credentials: Credentials) -> Bus:
    return Bus(
        service=user,
        instance=f"{user}-test",
        url=nats.url,
        user=user,
        password=credentials.nats_password(user),
        registry=CollectorRegistry(),
    )


@asynccontextmanager
async def parties_around(nats: Nats, credentials: Credentials) -> AsyncIterator[Parties]:
    users = [bus_of(user, nats, credentials) for user in ("gateway", "executor", OBSERVER)]
    identity = ExecutorIdentity.parse(credentials.executor_identity)
    parties = Parties(users[0], users[1], users[2], identity)

    async def hear(message: KeysChanged) -> None:
        parties.changes.put_nowait(message)

    parties.executor.listen(KEYS_CHANGED, hear)
    for bus in users:
        await bus.start()
    try:
        yield parties
    finally:
        for bus in users:
            await bus.close()


@asynccontextmanager
async def keys_running(settings: Settings) -> AsyncIterator[Service]:
    async with running(build(settings)) as service:
        yield service


async def let_time_pass(database: Database, owner: str, **ago: float) -> None:
    """As if that much time had passed since upstream was last asked about the owner's key, and refused it."""
    connection = await asyncpg.connect(database.superuser)
    try:
        await connection.execute(
            """UPDATE keys.user_openrouter_integrations
               SET refused_at = refused_at - $2::interval, first_refused_at = first_refused_at - $2::interval,
                   asked_at = asked_at - $2::interval
               WHERE owner = $1""",
            owner,
            timedelta(**ago),
        )
    finally:
        await connection.close()
