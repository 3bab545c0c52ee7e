"""What the tests of custody share: stored keys and log entries without a service, two master keys, a database to tamper with."""

import base64
import secrets

from pydantic import SecretStr

from services.keys.envelope import lock, unlock
from services.keys.facts import KeyFacts
from services.keys.store import Store
from services.runtime.sealing import Keyring


def master_key(key_id: str) -> str:
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(32)).decode()}"


OLD, NEW = master_key("k1"), master_key("k2")
OLD_RING, BOTH, NEW_RING = (Keyring.parse(text) for text in (OLD, f"{NEW},{OLD}", NEW))


async def keep(store: Store, owner: str, keyring: Keyring = OLD_RING) -> None:
    key = SecretStr(f"sk-or-v1-of-{owner}")
    async with store.rows_of(owner) as rows:
        version = await rows.next_version()
        await rows.put(lock(key, owner, version, keyring), "live", "sk-or-v1-…", KeyFacts())


async def log(store: Store, owner: str, entries: int) -> None:
    for number in range(entries):
        async with store.rows_of(owner) as rows:
            await rows.log_access("lease", "granted", instance=f"executor-{number}", version=1)


async def opened_key(store: Store, owner: str, keyring: Keyring) -> str:
    async with store.rows_of(owner) as rows:
        stored = await rows.key()
    assert stored is not None
    return unlock(stored.envelope, owner, keyring).get_secret_value()
