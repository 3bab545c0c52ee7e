"""The whole system on one machine: NATS, Postgres, the sandbox and every service, each process with only the variables it needs.
`make run` and the end-to-end tests start the same thing. Data and secrets stay in the stack's directory; `stack.json` there
exists while the stack is ready and tells scripts where everything is; `targets.json` tells a Prometheus the same."""

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from contracts.permissions import OBSERVER, nats_config
from contracts.subjects import SERVICES
from deploy.local.credentials import load_credentials, write_private
from deploy.local.migrate import migrate, services_with_migrations, set_passwords
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port, next_free_port, port_is_free
from deploy.local.postgres import Postgres
from deploy.local.process import Child, inherited_environment
from deploy.local.service import Part, Sandbox, Service, wait_until_ready
from deploy.local.tokens import ADMIN_ROLE, AUDIENCE, ISSUER, sign_token

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "x402jobs"
PUBLISHER = "demo"
GATEWAY_PORT = 8402
CONSOLE_PORT = 8403


class Stack:
    """One stack in one directory.

    `parts` holds everything it runs, by name: `nats`, `postgres`, `sandbox`, `keys`, `keys-2`, …, `catalog`, `executor`, …,
    `gateway`, `gateway-2`, …, `console`. Ports that are None are free ones. `settings` are variables for all processes of a
    service (or the sandbox), beyond those it needs. `observer` adds the bus user that hears everything, for tests.
    """

    def __init__(
        self,
        directory: Path,
        *,
        gateway_port: int | None = None,
        console_port: int | None = None,
        keys: int = 1,
        executors: int = 1,
        gateways: int = 1,
        settings: Mapping[str, Mapping[str, str]] | None = None,
        observer: bool = False,
    ) -> None:
        self.directory = directory.resolve()
        self.parts: dict[str, Part] = {}
        self.gateway_urls: list[str] = []
        self._settings = settings or {}
        self._replicas = {"keys": keys, "catalog": 1, "executor": executors, "gateway": gateways, "console": 1}
        self._gateway_port = gateway_port
        self._console_port = console_port or free_port()
        self._lock = _lock(self.directory)
        try:
            _require_free("CONSOLE_PORT", self._console_port)
            self.credentials = load_credentials(self.directory)
            self._gateway_ports = self._choose_gateway_ports()
            users = [*SERVICES, PUBLISHER, *([OBSERVER] if observer else [])]
            passwords = {user: self.credentials.nats_password(user) for user in users}
            self.nats = Nats(
                self.directory,
                port=free_port(),
                store_key=self.credentials.nats_store_key,
                authorization=nats_config(passwords, [PUBLISHER], observer=observer),
            )
            self.postgres = Postgres(
                self.directory, port=free_port(), password=self.credentials.postgres_password("postgres")
            )
        except BaseException:
            self._lock.close()
            raise

    @property
    def gateway_url(self) -> str:
        """Where the first gateway listens."""
        return self.gateway_urls[0]

    @property
    def console_url(self) -> str:
        """Where people reach the console. Not by number: OpenRouter sends people back to `localhost` alone."""
        return f"http://localhost:{self._console_port}"

    @property
    def sandbox_url(self) -> str:
        """Where the sandbox listens, without the path of its interface; known once it has started."""
        return self._sandbox.url.removesuffix("/api/v1")

    def token(self, user: str, *, admin: bool = False) -> str:
        """A bearer token for this user."""
        return sign_token(self.credentials.jwt_secret, user, admin=admin)

    def dsn(self, service: str) -> str:
        """The database as the role of this service sees it."""
        role = f"x402_{service}"
        return self.postgres.dsn(DATABASE, role=role, password=self.credentials.postgres_password(role))

    async def start(self) -> None:
        """Starts everything and returns when all of it is ready; after a failure nothing is left running.

        Raises `ProcessError` or `RuntimeError` with a sentence for the terminal.
        """
        self._withdraw()
        try:
            await self._start_parts()
        except BaseException:
            await self.stop()
            raise
        self.describe()

    async def stop(self) -> None:
        """Ends everything: services first and together, then the servers they need."""
        self._withdraw()
        servers: list[Part] = [self.nats, self.postgres]
        programs = [part for part in self.parts.values() if part not in servers]
        await asyncio.gather(*(part.stop() for part in programs))
        await asyncio.gather(*(server.stop() for server in servers))
        self._lock.close()

    def died(self) -> list[str]:
        """Names of the parts that ended without having been asked to."""
        return [name for name, part in self.parts.items() if part.child.died]

    def describe(self) -> None:
        """Writes `stack.json` and `targets.json`; process ids change with every restart of a part."""
        services = {name: part for name, part in self.parts.items() if isinstance(part, Service)}
        write_private(
            self.directory / "stack.json",
            json.dumps(
                {
                    "gateway_url": self.gateway_url,
                    "gateway_urls": self.gateway_urls,
                    "console_url": self.console_url,
                    "token": self.token("demo"),
                    "nats_url": self.nats.url,
                    "publisher": {
                        "name": PUBLISHER,
                        "user": PUBLISHER,
                        "password": self.credentials.nats_password(PUBLISHER),
                    },
                    "sandbox_url": self._sandbox.url,
                    "postgres_url": self.postgres.dsn(DATABASE),
                    "services": {
                        name: {"pid": service.child.pid, "metrics_url": service.metrics_url}
                        for name, service in services.items()
                    },
                    "servers": {
                        name: {"pid": part.child.pid} for name, part in self.parts.items() if name not in services
                    },
                },
                indent=2,
            )
            + "\n",
        )
        targets = [
            {
                "targets": [urlsplit(service.metrics_url).netloc],
                "labels": {"service": name.split("-")[0], "instance": name},
            }
            for name, service in services.items()
        ]
        # No secret is in it, and a Prometheus runs as another user than we do.
        (self.directory / "targets.json").write_text(json.dumps(targets, indent=2) + "\n", encoding="utf-8")

    def _withdraw(self) -> None:
        for name in ("stack.json", "targets.json"):
            (self.directory / name).unlink(missing_ok=True)

    async def _start_parts(self) -> None:
        self.parts["nats"] = self.nats
        await self.nats.start()
        self.parts["postgres"] = self.postgres
        await self.postgres.start()
        # A fixed port, so that services find the sandbox again after it was restarted.
        sandbox_env = {"SANDBOX_PORT": str(free_port()), **self._settings.get("sandbox", {})}
        self._sandbox = Sandbox(self._child("sandbox", "deploy.sandbox", sandbox_env))
        self.parts["sandbox"] = self._sandbox
        await self._sandbox.start()
        await self.postgres.create_database(DATABASE)
        superuser = self.postgres.dsn(DATABASE)
        await migrate(superuser)
        roles = [f"x402_{service}" for service in services_with_migrations()]
        await set_passwords(superuser, {role: self.credentials.postgres_password(role) for role in roles})
        services = [self._service(kind, number) for kind, count in self._replicas.items() for number in range(count)]
        for service in services:
            self.parts[service.child.name] = service
            service.child.start()
        self.gateway_urls = [f"http://{HOST}:{port}" for port in self._gateway_ports]
        await wait_until_ready(services)

    def _service(self, kind: str, number: int) -> Service:
        name = kind if number == 0 else f"{kind}-{number + 1}"
        metrics_port = free_port()
        env = {
            "INSTANCE": name,
            "METRICS_HOST": HOST,
            "METRICS_PORT": str(metrics_port),
            "LOG_FORMAT": "console",
            **(self._bus_environment(kind) if kind in SERVICES else {}),
            **self._own_environment(kind, number),
            **self._settings.get(kind, {}),
        }
        metrics = f"http://{HOST}:{metrics_port}"
        ports = {"gateway": self._gateway_ports[number : number + 1], "console": [self._console_port]}.get(kind)
        url = f"http://{HOST}:{ports[0]}" if ports else metrics
        return Service(self._child(name, f"services.{kind}.main", env), url=url, metrics_url=f"{metrics}/metrics")

    def _bus_environment(self, kind: str) -> dict[str, str]:
        return {
            "NATS_URL": self.nats.url,
            "NATS_USER": kind,
            "NATS_PASSWORD": self.credentials.nats_password(kind),
        }

    def _own_environment(self, kind: str, number: int) -> dict[str, str]:
        credentials, sandbox = self.credentials, self._sandbox.url
        public_url = f"http://{HOST}:{self._gateway_ports[0]}"
        match kind:
            case "keys":
                return {
                    "POSTGRES_URL": self.dsn(kind),
                    "MASTER_KEYS_FILE": str(credentials.master_keys_file),
                    "EXECUTOR_IDENTITIES": credentials.executor_identities,
                    "SANDBOX_URL": sandbox,
                    "OPENROUTER_AUTH_URL": self.sandbox_url + "/auth",
                }
            case "catalog":
                return {
                    "POSTGRES_URL": self.dsn(kind),
                    "CATALOG_UPSTREAM_URL": sandbox,
                    "CATALOG_UPSTREAM_KEY": "sk-or-test-catalog",
                }
            case "executor":
                return {
                    "POSTGRES_URL": self.dsn(kind),
                    "SANDBOX_URL": sandbox,
                    "EXECUTOR_IDENTITY": credentials.executor_identity,
                    "RESULT_KEYS": credentials.result_keys,
                    "MEDIA_NAME_SECRET": credentials.media_name_secret,
                    "PUBLIC_URL": public_url,
                }
            case "console":
                return {
                    "HOST": HOST,
                    "PORT": str(self._console_port),
                    "GATEWAY_URL": public_url,
                    "GATEWAY_PUBLIC_URL": public_url,
                    "PUBLIC_URL": self.console_url,
                }
            case _:
                return {
                    "HOST": HOST,
                    "PORT": str(self._gateway_ports[number]),
                    "PUBLIC_URL": public_url,
                    "JWT_SECRET": credentials.jwt_secret,
                    "JWT_ISSUER": ISSUER,
                    "JWT_AUDIENCE": AUDIENCE,
                    "ADMIN_ROLE": ADMIN_ROLE,
                }

    def _child(self, name: str, module: str, env: dict[str, str]) -> Child:
        return Child(
            name,
            [sys.executable, "-m", module],
            env={**inherited_environment(), "PYTHONUNBUFFERED": "1", **env},
            log=self.directory / "logs" / f"{name}.log",
            cwd=ROOT,
        )

    def _choose_gateway_ports(self) -> list[int]:
        if self._gateway_port is None:
            return [free_port() for _ in range(self._replicas["gateway"])]
        _require_free("GATEWAY_PORT", self._gateway_port)
        ports = [self._gateway_port]
        while len(ports) < self._replicas["gateway"]:
            ports.append(next_free_port(ports[-1], avoid=frozenset({CONSOLE_PORT, self._console_port})))
        return ports


def _require_free(variable: str, port: int) -> None:
    if not port_is_free(port):
        raise RuntimeError(f"port {port} is in use: set {variable} to another one, or stop what listens there")


def _lock(directory: Path) -> TextIO:
    """Takes the directory for this process; the kernel gives it back however the process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise RuntimeError(
            f"a stack (process {owner}) runs in {directory} already: stop it, or set LOCAL_DIR to another folder"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
