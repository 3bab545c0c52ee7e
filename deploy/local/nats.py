"""A real nats-server out of its wheel: JetStream on disk, synced at every write, encrypted at rest, one user per
service. The port stays the same over restarts, so that clients find the server again."""

import asyncio
import json
import shutil
import signal
import sys
import time
from pathlib import Path

from deploy.local.credentials import write_private
from deploy.local.ports import HOST
from deploy.local.process import POLL_S, Child, inherited_environment

START_TIMEOUT_S = 30


def wheel_binary(name: str) -> str:
    """Path of a program that a wheel put beside this interpreter, or else of one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed in {Path(sys.executable).parent}: run `make install`")
    return found


class Nats:
    """One nats-server with its store in `directory`/nats and its configuration in `directory`/nats.conf.

    `authorization` is the section of the configuration that names users and what each may publish and subscribe.
    """

    def __init__(self, directory: Path, *, port: int, store_key: str, authorization: str) -> None:
        self.port = port
        self.url = f"nats://{HOST}:{port}"
        config = directory / "nats.conf"
        directory.mkdir(parents=True, exist_ok=True)
        write_private(config, _configuration(directory / "nats", port, store_key, authorization))
        self.child = Child(
            "nats",
            [wheel_binary("nats-server"), "--config", str(config)],
            env=inherited_environment(),
            log=directory / "logs" / "nats.log",
            cwd=directory,
            death_signal=signal.SIGTERM,
        )

    async def start(self) -> None:
        """Starts the server and returns when it accepts clients. Raises `ProcessError`."""
        self.child.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await self._greets():
            self.child.check()
            if time.monotonic() > deadline:
                failure = self.child.failure(f"is not ready after {START_TIMEOUT_S} s")
                await self.child.kill()
                raise failure
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Ends the server after it has written what it holds."""
        await self.child.stop()

    async def kill(self) -> None:
        """kill -9."""
        await self.child.kill()

    async def _greets(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        try:
            return (await asyncio.wait_for(reader.readline(), timeout=1)).startswith(b"INFO ")
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


def _configuration(store: Path, port: int, store_key: str, authorization: str) -> str:
    return f"""# Written at every start.
host: {HOST}
port: {port}
server_name: x402jobs_local
max_payload: 8MB
jetstream {{
  store_dir: {json.dumps(str(store))}
  sync_interval: always
  cipher: aes
  key: {json.dumps(store_key)}
}}
{authorization}
"""
