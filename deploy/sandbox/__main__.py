"""`python -m deploy.sandbox`: reads the environment, listens, says where in one line, and stops at SIGTERM or SIGINT.

SANDBOX_HOST            127.0.0.1
SANDBOX_PORT            0: a free port
SANDBOX_CATALOG         a file in the raw form of GET /models, instead of the typed models
SANDBOX_RECORDINGS      a folder of recorded answers, each served as model recorded/<case>
SANDBOX_TOKENS_PER_S    60: the speed of ordinary models; 0 is as fast as possible
SANDBOX_FIRST_TOKEN_MS  300: their wait before the first token
"""

import asyncio
import os
import signal
from pathlib import Path

import uvloop

from deploy.sandbox.app import Settings, running


def _path(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


async def serve() -> None:
    """Run until told to stop; calls that run then are cut."""
    settings = Settings(
        catalog=_path("SANDBOX_CATALOG"),
        recordings=_path("SANDBOX_RECORDINGS"),
        tokens_per_s=float(os.environ.get("SANDBOX_TOKENS_PER_S", "60")),
        first_token_s=float(os.environ.get("SANDBOX_FIRST_TOKEN_MS", "300")) / 1000,
    )
    host = os.environ.get("SANDBOX_HOST", "127.0.0.1")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings, host, int(os.environ.get("SANDBOX_PORT", "0"))) as url:
        print(f"sandbox ready {url}/api/v1", flush=True)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve())
