"""Where the master keys come from, and how a running service follows when they change.

A ring in a file is read again when the file changes, so that rotation needs no restart. A ring that lacks a master key
which stored keys need is refused, at the start and later: a service that took it would answer every lease with an error,
and look healthy meanwhile. Every instance says in the database which master keys it holds; rotation waits for all of them.
"""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Gauge
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.keys.envelope import EnvelopeError, unlock
from services.keys.store import Store
from services.runtime.hardening import forget_variable
from services.runtime.sealing import Keyring

log = structlog.get_logger()

FOLLOW_S = 2.0
_COUNT_S = 15.0


class RingError(Exception):
    """There is no ring to work with; the message tells the operator why and what to do, and repeats none of it."""


class DatabaseSettings(BaseSettings):
    """The role of the keys service, which every command of this folder works as."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", hide_input_in_errors=True)

    postgres_url: SecretStr


class CustodySettings(DatabaseSettings):
    """Master keys are `id:base64,id2:base64`, 32 bytes each, the first one active; given as a file or directly."""

    master_keys: SecretStr | None = None
    master_keys_file: Path | None = None

    def keyring(self) -> Keyring:
        """What is given, and not in the environment any more. Raises RingError when there is no ring or it is not readable."""
        forget_variable("MASTER_KEYS")
        if self.master_keys_file is not None:
            return read_ring(self.master_keys_file)
        if self.master_keys is None:
            raise RingError("set MASTER_KEYS or MASTER_KEYS_FILE: without a master key no key can be kept")
        return _parsed(self.master_keys.get_secret_value())


def read_ring(path: Path) -> Keyring:
    """Raises RingError when the file cannot be read or holds no ring."""
    try:
        text = path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise RingError("MASTER_KEYS_FILE is not a text of ids and base64") from None
    except OSError as error:
        raise RingError(f"MASTER_KEYS_FILE cannot be read: {error.strerror}") from None
    return _parsed(text)


def _parsed(text: str) -> Keyring:
    try:
        return Keyring.parse(text)
    except ValueError as error:
        raise RingError(f"the master keys are not usable: {error}") from None


async def check_master_keys(store: Store, keyring: Keyring) -> None:
    """Open one stored key per master key in use. Raises RingError that names the master key that is missing or wrong."""
    seen: list[str] = []
    while owners := await store.owners_outside(seen, "", 1):
        async with store.rows_of(owners[0]) as rows:
            stored = await rows.key()
        if stored is None:  # disconnected meanwhile
            continue
        master_key_id = stored.envelope.master_key_id
        if master_key_id not in keyring:
            raise RingError(f"stored keys need master key {master_key_id!r}, which is not in the ring: put it back")
        try:
            unlock(stored.envelope, owners[0], keyring)
        except EnvelopeError:
            raise RingError(
                f"master key {master_key_id!r} does not open what was stored under that id: restore the former one"
            ) from None
        seen.append(master_key_id)


class Ring:
    """Keeps the ring of one instance up to date and lets others know of it."""

    def __init__(
        self, *, store: Store, keyring: Keyring, file: Path | None, instance: str, registry: CollectorRegistry
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._file = file
        self._instance = instance
        self._read = self._state()
        self._refused: object = None
        # kind: data_key (one per owner), key_pair (the service's own), verifier (one per authorization under way)
        self._old = Gauge(
            "x402jobs_keys_under_old_master_key",
            "What lies under another master key than the active one, by kind.",
            ["kind"],
            registry=registry,
        )

    async def announce(self) -> None:
        """Say which master keys this instance holds."""
        await self._store.announce(self._instance, self._keyring.ids)

    async def withdraw(self) -> None:
        """Say that this instance needs no master keys any more."""
        await self._store.withdraw(self._instance)

    async def follow(self) -> None:
        """Take over what the file says whenever it changes, and go on saying what is held."""
        while True:
            await self._read_again()
            await self.announce()
            await asyncio.sleep(FOLLOW_S)

    async def count(self) -> None:
        """Keep the metric of what a rotation has still to do."""
        while True:
            old = {"data_key": 0, "key_pair": 0, "verifier": 0}
            for uses in await self._store.master_key_uses():
                if uses.master_key_id != self._keyring.active_id:
                    old[uses.kind] += uses.count
            for kind, count in old.items():
                self._old.labels(kind).set(count)
            await asyncio.sleep(_COUNT_S)

    async def _read_again(self) -> None:
        state = self._state()
        if self._file is None or state is None or state == self._read:
            return
        try:
            ring = read_ring(self._file)
            await check_master_keys(self._store, ring)
        except RingError as error:
            # Tried again every time, for what makes it unusable may be over soon; said once.
            if state != self._refused:
                log.warning("master_keys_refused", reason=str(error), held=self._keyring.ids)
            self._refused = state
            return
        self._read = state
        self._keyring.take_over(ring)
        log.info("master_keys_read_again", held=ring.ids)

    def _state(self) -> tuple[int, int, int] | None:
        """Something that differs when the file does; None for a pipe, which can be read once only."""
        if self._file is None:
            return None
        try:
            status = self._file.stat()
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else None
