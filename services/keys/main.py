"""The keys service: custody of provider keys. It alone can open them; everybody else gets a hint, or a sealed lease."""

from __future__ import annotations

import sys

import structlog
from prometheus_client import CollectorRegistry
from pydantic import Field

from services.keys.checks import Checks
from services.keys.connections import Connections
from services.keys.envelope import EnvelopeError
from services.keys.guards.limits import Limits
from services.keys.guards.oauth import Authorizations, exchange_base
from services.keys.handlers import Handlers
from services.keys.recipient import Recipients
from services.keys.ring import CustodySettings, Ring, RingError, check_master_keys
from services.keys.store import Store
from services.keys.verify import Verifier
from services.runtime.hardening import deny_dumps
from services.runtime.identity import ExecutorIdentities, IdentityError
from services.runtime.postgres import connect, count_connections, create_pool, ping
from services.runtime.process import run
from services.runtime.sealing import Keyring
from services.runtime.service import Service
from services.runtime.settings import ServiceSettings

log = structlog.get_logger()


class Settings(CustodySettings, ServiceSettings):
    openrouter_url: str = "https://openrouter.ai/api/v1"
    openrouter_auth_url: str = Field(
        default="https://openrouter.ai/auth", description="The page where people agree to give us a key."
    )
    sandbox_url: str | None = None
    executor_identities: str = Field(
        default="", description="Ed25519 public keys in base64, with commas: who may ask for leases."
    )
    oauth_callback_origins: str = Field(
        default="",
        description="https origins, with commas, to which OpenRouter may send people back; localhost always.",
    )


def build(settings: Settings) -> Service:
    """Wire the service; nothing is opened before it starts. Raises RingError without a usable master key."""
    keyring = settings.keyring()
    registry = CollectorRegistry()
    service = Service("keys", settings, registry)
    pool = create_pool(settings.postgres_url.get_secret_value(), service="keys")
    count_connections(pool, registry)
    store = Store(pool)
    recipients = Recipients(store, keyring)
    verifier = Verifier(settings.openrouter_url, settings.sandbox_url)
    ring = Ring(
        store=store, keyring=keyring, file=settings.master_keys_file, instance=service.instance, registry=registry
    )

    async def open_custody() -> None:
        await connect(pool)
        await check_master_keys(store, keyring)
        try:
            await recipients.current()
        except EnvelopeError as error:
            raise RingError(str(error)) from None
        await ring.announce()

    limits = Limits(store)
    checks = Checks(service.bus, store, keyring, verifier, registry)
    authorizations = _authorizations(settings, store, keyring, limits)
    Handlers(
        bus=service.bus,
        store=store,
        keyring=keyring,
        recipients=recipients,
        identities=ExecutorIdentities.parse(settings.executor_identities),
        limits=limits,
        connections=Connections(service.bus, store, keyring, verifier, limits),
        authorizations=authorizations,
        checks=checks,
        registry=registry,
    ).register()
    service.health.add("postgres", lambda: ping(pool))
    service.before_bus(open_custody)
    service.background("recipients", recipients.keep_fresh)
    service.background("master_keys", ring.follow)
    service.background("master_key_uses", ring.count)
    service.background("checks", checks.keep_checking)
    service.background("sweep", checks.keep_clean)
    service.on_stop(pool.close)
    service.on_stop(ring.withdraw)
    service.on_stop(verifier.close)
    service.on_stop(authorizations.close)
    return service


def _authorizations(settings: Settings, store: Store, keyring: Keyring, limits: Limits) -> Authorizations:
    origins = (origin.strip().rstrip("/").lower() for origin in settings.oauth_callback_origins.split(","))
    return Authorizations(
        store,
        keyring,
        limits,
        auth_url=settings.openrouter_auth_url,
        base_url=exchange_base(settings.openrouter_auth_url, settings.openrouter_url, settings.sandbox_url),
        allowed_origins=frozenset(filter(None, origins)),
    )


def main() -> None:
    deny_dumps()
    try:
        run(lambda: build(Settings()))
    except (RingError, IdentityError) as refused:
        log.critical("start_refused", reason=str(refused))
        sys.exit(1)


if __name__ == "__main__":
    main()
