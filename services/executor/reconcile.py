"""`python -m services.executor.reconcile` compares the receipts of the last days with upstream's accounts now, as every night
does. Executors have the keys and do the asking; this plans it, waits, and says what came of it. Killed, or started without
an executor that runs, it leaves the plan, and executors go on with it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import timedelta

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.errors import ServiceError
from services.executor.reconciliation import SAMPLE
from services.executor.reconciliation_store import ReconciliationStore
from services.runtime.postgres import create_pool

_LOOK_EVERY_S = 0.5
_PROGRESS_EVERY = 10


class DatabaseSettings(BaseSettings):
    """The environment of the commands: the database as the role `x402_executor`."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", hide_input_in_errors=True)

    postgres_url: SecretStr


async def reconcile(url: str, days: float) -> int:
    """Plan, wait, tell. Returns the exit code."""
    async with create_pool(url, service="executor-reconcile", max_size=1) as pool:
        store = ReconciliationStore(pool)
        planned = await store.plan_now(timedelta(days=days), SAMPLE)
        looked = 0
        while True:
            state, left = await store.progress(planned.id)
            if state.finished_at is not None:
                break
            if looked % _PROGRESS_EVERY == 0:
                sys.stdout.write(f"{state.checked} upstream calls compared, {left} to go\n")
                sys.stdout.flush()
            looked += 1
            await asyncio.sleep(_LOOK_EVERY_S)
    sys.stdout.write(
        f"{state.checked} upstream calls compared: {state.differing} cost something else than their receipts said, "
        f"{state.drift_usd:f} USD in all; {state.found} unknown costs found; {state.untold} were not told\n"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.executor.reconcile", description=__doc__)
    parser.add_argument("--days", type=float, default=1, help="how far back; 1 unless given")
    try:
        settings = DatabaseSettings()
        return asyncio.run(reconcile(settings.postgres_url.get_secret_value(), parser.parse_args().days))
    except ServiceError as down:
        sys.stdout.write(f"{down}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
