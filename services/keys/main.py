"""The keys service: custody of provider keys. It alone can open them; everybody else gets a hint, or a sealed lease."""

from __future__ import annotations

import sys

import structlog
from prometheus_client import CollectorRegistry

from services.keys.envelope import EnvelopeError
from services.keys.handlers import Handlers
from services.keys.recipient import Recipients
from services.keys.ring import CustodySettings, Ring, RingError, check_master_keys
from services.keys.store import Store
from services.keys.verify import Verifier
from services.runtime.hardening import deny_dumps, forget_variable
from services.runtime.postgres import connect, create_pool, ping
from services.runtime.service import Service, run
from services.runtime.settings import ServiceSettings

log = structlog.get_logger()


class Settings(CustodySettings, ServiceSettings):
    openrouter_url: str = "https://openrouter.ai/api/v1"
    sandbox_url: str | None = None


def build(settings: Settings) -> Service:
    """Wire the service; nothing is opened before it starts. Raises RingError without a usable master key."""
    keyring = settings.keyring()
    registry = CollectorRegistry()
    service = Service("keys", settings, registry)
    pool = create_pool(settings.postgres_url.get_secret_value(), service="keys")
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

    Handlers(
        bus=service.bus, store=store, keyring=keyring, recipients=recipients, verifier=verifier, registry=registry
    ).register()
    service.health.add("postgres", lambda: ping(pool))
    service.before_bus(open_custody)
    service.background("recipients", recipients.keep_fresh)
    service.background("master_keys", ring.follow)
    service.background("master_key_uses", ring.count)
    service.on_stop(pool.close)
    service.on_stop(ring.withdraw)
    service.on_stop(verifier.close)
    return service


def settings_once() -> Settings:
    """What the environment says; the master keys are not in it any more afterwards."""
    settings = Settings()
    forget_variable("MASTER_KEYS")
    return settings


def main() -> None:
    deny_dumps()
    try:
        run(lambda: build(settings_once()))
    except RingError as refused:
        log.critical("start_refused", reason=str(refused))
        sys.exit(1)


if __name__ == "__main__":
    main()
