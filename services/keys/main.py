"""The keys service: custody of provider keys. It alone can open them; everybody else gets a hint, or a sealed lease."""

from __future__ import annotations

import sys
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from services.keys.envelope import EnvelopeError, unlock
from services.keys.handlers import Handlers
from services.keys.recipient import Recipients
from services.keys.store import Store
from services.keys.verify import Verifier
from services.runtime.postgres import connect, create_pool, ping
from services.runtime.sealing import Keyring
from services.runtime.service import Service, run
from services.runtime.settings import ServiceSettings

log = structlog.get_logger()


class StartError(Exception):
    """The service must not run like this; the message tells the operator why and what to do."""


class Settings(ServiceSettings):
    """Master keys are `id:base64,id2:base64`, 32 bytes each, the first one active; given as a file or directly."""

    postgres_url: SecretStr
    master_keys: SecretStr | None = None
    master_keys_file: Path | None = None
    openrouter_url: str = "https://openrouter.ai/api/v1"
    sandbox_url: str | None = None

    def keyring(self) -> Keyring:
        """Raises StartError, without repeating any of it, when there is no ring or it is not readable."""
        try:
            if self.master_keys_file is not None:
                return Keyring.parse(self.master_keys_file.read_text(encoding="utf-8"))
            if self.master_keys is not None:
                return Keyring.parse(self.master_keys.get_secret_value())
        except OSError as error:
            raise StartError(f"MASTER_KEYS_FILE cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise StartError(f"the master keys are not usable: {error}") from None
        raise StartError("set MASTER_KEYS or MASTER_KEYS_FILE: without a master key no key can be kept")


async def check_master_keys(store: Store, keyring: Keyring) -> None:
    """Open one stored key per master key in use. Raises StartError that names the master key that is missing or wrong.

    A service that starts without them would answer every lease with an error, and look healthy meanwhile.
    """
    seen: list[str] = []
    while owners := await store.owners_outside(seen, "", 1):
        async with store.rows_of(owners[0]) as rows:
            stored = await rows.key()
        if stored is None:  # disconnected meanwhile
            continue
        master_key_id = stored.envelope.master_key_id
        if master_key_id not in keyring:
            raise StartError(f"stored keys need master key {master_key_id!r}, which is not in the ring: put it back")
        try:
            unlock(stored.envelope, owners[0], keyring)
        except EnvelopeError:
            raise StartError(
                f"master key {master_key_id!r} does not open what was stored under that id: restore the former one"
            ) from None
        seen.append(master_key_id)


def build(settings: Settings) -> Service:
    """Wire the service; nothing is opened before it starts. Raises StartError without a usable master key."""
    keyring = settings.keyring()
    registry = CollectorRegistry()
    service = Service("keys", settings, registry)
    pool = create_pool(settings.postgres_url.get_secret_value(), service="keys")
    store = Store(pool)
    recipients = Recipients(store, keyring)
    verifier = Verifier(settings.openrouter_url, settings.sandbox_url)

    async def open_custody() -> None:
        await connect(pool)
        await check_master_keys(store, keyring)
        try:
            await recipients.current()
        except EnvelopeError as error:
            raise StartError(str(error)) from None

    Handlers(
        bus=service.bus, store=store, keyring=keyring, recipients=recipients, verifier=verifier, registry=registry
    ).register()
    service.health.add("postgres", lambda: ping(pool))
    service.before_bus(open_custody)
    service.background("recipients", recipients.keep_fresh)
    service.on_stop(pool.close)
    service.on_stop(verifier.close)
    return service


def main() -> None:
    try:
        run(lambda: build(Settings()))
    except StartError as refused:
        log.critical("start_refused", reason=str(refused))
        sys.exit(1)


if __name__ == "__main__":
    main()
