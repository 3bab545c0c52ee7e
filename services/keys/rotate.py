"""`python -m services.keys.rotate` puts everything that lies under an older master key under the active one, the first of the
ring, while the service runs. What is done stays done: killed at any moment, it goes on where it was when started again.

Only data keys, the service's own key pairs and the verifiers of authorizations under way are locked anew; no provider key
is opened. Nothing is put under a master key that some running instance lacks, so every instance has to hold the new ring
first: one whose ring is a file has it within seconds, others need a restart. With `--awaited ID` this only waits until
every instance holds that key; with `--in-use ID` it only says whether a master key is still needed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from contracts.errors import ServiceError
from services.keys.envelope import EnvelopeError, rewrap
from services.keys.guards.oauth import relock_verifiers
from services.keys.recipient import rewrap_pair
from services.keys.ring import FOLLOW_S, CustodySettings, DatabaseSettings, RingError
from services.keys.store import Store
from services.keys.terminal import say
from services.runtime.hardening import deny_dumps
from services.runtime.postgres import create_pool
from services.runtime.sealing import Keyring

_AT_ONCE = 8
_OWNERS_PER_PAGE = 400
_WAIT_S = 60.0
_WAIT_POLL_S = 0.2
_PROGRESS_EVERY_S = 1.0
# An instance that was killed says nothing; it counts as gone after a few times of not saying what it holds.
HEARD_WITHIN_S = 10 * FOLLOW_S

Say = Callable[[str], None]


@dataclass
class Rotation:
    """How far it is: keys to do at the beginning, done, and owners whose key does not open, with the reason."""

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    began_at: float = field(default_factory=time.monotonic)

    def progress(self) -> str:
        """A line for the terminal."""
        took_s = max(time.monotonic() - self.began_at, 0.001)
        per_s = self.done / took_s
        left = f", {(self.total - self.done) / per_s:.0f} s left" if 0 < self.done < self.total else ""
        share = 100 * self.done // max(self.total, 1)
        return f"{self.done} of {self.total} keys under the new master key ({share} %, {per_s:.0f} a second{left})"


async def rotate(store: Store, keyring: Keyring, say: Say) -> Rotation:
    """Put everything under the active key of the ring.

    Raises RingError when the ring lacks a key that is in use, or when a running instance does not have the ring.
    """
    uses = [use for use in await store.master_key_uses() if use.master_key_id != keyring.active_id]
    for use in uses:
        if use.master_key_id not in keyring:
            raise RingError(f"stored keys need master key {use.master_key_id!r}, which is not in the ring: put it back")
    rotation = Rotation(total=sum(use.count for use in uses))
    await _wait_for_instances(store, f"have {keyring.active_id!r} first in their ring", _leads(keyring.active_id), say)
    # Once more from the beginning until a whole round finds nothing: a key that was connected a moment before an
    # instance changed its ring may lie behind the first round.
    while await _rotate_owners(store, keyring, rotation, say):
        pass
    for pair in await store.recipients_outside(keyring.active_id):
        locked = rewrap_pair(pair, keyring)
        await store.rewrap_recipient(pair.key_id, locked.key_id, locked.blob)
        rotation.done += 1
    rotation.done += await relock_verifiers(store, keyring)
    say(rotation.progress())
    return rotation


async def _rotate_owners(store: Store, keyring: Keyring, rotation: Rotation, say: Say) -> int:
    """One round over all owners; how many keys it put under the active master key."""
    before, after, said_at = rotation.done, "", time.monotonic()
    while owners := await store.owners_outside([keyring.active_id], after, _OWNERS_PER_PAGE):
        laggards = _lacking(await store.announced(HEARD_WITHIN_S), _leads(keyring.active_id))
        if laggards:
            raise RingError(f"{', '.join(laggards)} started with another ring: give it this one and run this again")
        remaining = iter(owners)
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(_rotate_each(store, keyring, remaining, rotation))
        after = owners[-1]
        if time.monotonic() - said_at > _PROGRESS_EVERY_S:
            said_at = time.monotonic()
            say(rotation.progress())
    return rotation.done - before


async def _rotate_each(store: Store, keyring: Keyring, owners: Iterator[str], rotation: Rotation) -> None:
    for owner in owners:
        async with store.rows_of(owner) as rows:
            stored = await rows.key()
            # Disconnected meanwhile, or done by a rotation that runs beside this one.
            if stored is None or stored.envelope.master_key_id == keyring.active_id:
                continue
            try:
                envelope = rewrap(stored.envelope, owner, keyring)
            except EnvelopeError as error:
                rotation.failed[owner] = str(error)
                continue
            changed = await rows.rewrap(stored.envelope, envelope)
        rotation.done += changed


def _leads(key_id: str) -> Callable[[list[str]], bool]:
    return lambda ids: ids[:1] == [key_id]


def _lacking(announced: dict[str, list[str]], enough: Callable[[list[str]], bool]) -> list[str]:
    return [instance for instance, ids in announced.items() if not enough(ids)]


async def _wait_for_instances(store: Store, what: str, enough: Callable[[list[str]], bool], say: Say) -> None:
    deadline = time.monotonic() + _WAIT_S
    told: list[str] = []
    while laggards := _lacking(await store.announced(HEARD_WITHIN_S), enough):
        if time.monotonic() > deadline:
            raise RingError(f"after {_WAIT_S:.0f} s {', '.join(laggards)} still does not {what}: nothing was changed")
        if laggards != told:
            told = laggards
            say(f"waiting for {', '.join(laggards)} to {what}")
        await asyncio.sleep(_WAIT_POLL_S)


async def _rotate_command(store: Store, keyring: Keyring) -> int:
    rotation = await rotate(store, keyring, say)
    for owner, reason in sorted(rotation.failed.items()):
        say(f"FAILED  {owner}: {reason}")
    old = sorted({uses.master_key_id for uses in await store.master_key_uses()} - {keyring.active_id})
    say(
        f"still in use: {', '.join(old)}; leave it in the ring"
        if old
        else f"nothing needs another master key than {keyring.active_id} any more: the others may be taken from the ring"
    )
    return 1 if old else 0


async def _in_use_command(store: Store, key_id: str) -> int:
    counts = {uses.kind: uses.count for uses in await store.master_key_uses() if uses.master_key_id == key_id}
    leading = _lacking(await store.announced(HEARD_WITHIN_S), lambda ids: ids[:1] != [key_id])
    if counts or leading:
        by = [f"{count} × {kind}" for kind, count in counts.items()] + [f"active in {name}" for name in leading]
        say(f"{key_id} is in use: {', '.join(by)}")
        return 1
    say(f"nothing uses {key_id}: it may be taken from the ring")
    return 0


async def _run(arguments: argparse.Namespace) -> int:
    settings = DatabaseSettings()
    async with create_pool(settings.postgres_url.get_secret_value(), service="keys-rotate", max_size=_AT_ONCE) as pool:
        store = Store(pool)
        if arguments.in_use is not None:
            return await _in_use_command(store, arguments.in_use)
        if arguments.awaited is not None:
            held = arguments.awaited
            await _wait_for_instances(store, f"hold {held!r}", lambda ids: held in ids, say)
            return 0
        return await _rotate_command(store, CustodySettings().keyring())


def main() -> int:
    deny_dumps()
    parser = argparse.ArgumentParser(prog="python -m services.keys.rotate", description=__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--awaited", metavar="ID", help="wait until every running instance holds this master key")
    only.add_argument("--in-use", metavar="ID", help="say whether this master key is still needed (exit code 1 if so)")
    try:
        return asyncio.run(_run(parser.parse_args()))
    except (RingError, ServiceError) as refused:
        say(str(refused))
        return 1


if __name__ == "__main__":
    sys.exit(main())
