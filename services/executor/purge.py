"""`python -m services.executor.purge` deletes what is past its time, now; with `--user` what one person sent and got.

It says what it would delete and does it only with `--yes`. Receipts stay, as they were written: they are the record of
what was charged and whose money was spent, hold no text, and every copy of them (the creator's, the catalog's figures, the
messages of thirty days) names the caller by the same id, so changing one of them would hide nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import timedelta
from uuid import UUID, uuid4

from contracts.errors import ServiceError
from services.executor.dead_letters import KEPT
from services.executor.endings import ended_row, ending_of
from services.executor.keeper import LEASE_S
from services.executor.purge_store import PAST, PERSONAL, PurgeStore
from services.executor.reconcile import DatabaseSettings
from services.executor.store import Store
from services.runtime.postgres import create_pool


async def purge(url: str, user: str | None, *, do: bool) -> int:
    """Returns the exit code: 2 when something of this person is still being run and has to be purged afterwards."""
    argument: str | timedelta = KEPT if user is None else user
    async with create_pool(url, service="executor-purge", max_size=2) as pool:
        data = PurgeStore(pool)
        if user is not None:
            jobs = await data.unbegun(user)
            _say(len(jobs), "jobs that have not begun, with what they say", do=do)
            if do:
                await _end(Store(pool, lease_s=LEASE_S), jobs)
        for kind in PAST if user is None else PERSONAL:
            _say(await (data.delete if do else data.count)(kind, argument), kind.what, do=do)
        running = 0 if user is None else await data.running(user)
    if running:
        sys.stdout.write(f"{running} runs and workflows of {user} are under way: do this again when they have ended\n")
    if not do:
        sys.stdout.write("nothing was deleted: add YES=1 to do it\n")
    return 2 if running else 0


async def _end(store: Store, jobs: list[UUID]) -> None:
    """Cancel them, with their receipts, which nobody has to pay for; somebody who began one just now has won."""
    for execution_id in jobs:
        row, token = await store.get(execution_id), uuid4()
        if row is not None and await store.take_queued(execution_id, executor="purge", lease_token=token):
            ended = ended_row(row, [], "canceled", None)
            await store.finish(execution_id, token, ending_of(ended, last_seq=1, result=None, keep=timedelta(0)))


def _say(count: int, what: str, *, do: bool) -> None:
    sys.stdout.write(f"{'deleted' if do else 'would delete'}: {count} {what}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.executor.purge", description=__doc__)
    parser.add_argument("--user", help="purge what this person sent and got, instead of what is past its time")
    parser.add_argument("--yes", action="store_true", help="do it; without, only say what would be done")
    arguments = parser.parse_args()
    try:
        url = DatabaseSettings().postgres_url.get_secret_value()
        return asyncio.run(purge(url, arguments.user, do=arguments.yes))
    except ServiceError as down:
        sys.stdout.write(f"{down}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
