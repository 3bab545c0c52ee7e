"""The real parts that tests run on: one nats-server and one Postgres for the session, a database per test cloned from a migrated
template, and the whole stack, started once for the tests that ask for it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

from contracts.permissions import OBSERVER, nats_config
from contracts.subjects import SERVICES
from deploy.local.credentials import Credentials, load_credentials
from deploy.local.migrate import migrate, services_with_migrations, set_passwords
from deploy.local.nats import Nats
from deploy.local.ports import free_port
from deploy.local.postgres import Postgres
from deploy.local.stack import PUBLISHER, Stack
from tests.browser.browsing import LEFT_OUT, chromium
from tests.stack import AS_FAST_AS_CAN_BE, ROOT, Database, clone_of
from tests.watching import PROMTOOL_LEFT_OUT, promtool

# The machines that tests run on are busy: how long an example takes says nothing about the code.
hypothesis.settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared-machine")

StackFactory = Callable[..., AbstractAsyncContextManager[Stack]]
LONGEST_FIRST = ("browser", "e2e", "own_stack", "integration", "contract", "unit")
NATS_USERS = (*SERVICES, PUBLISHER, "other", OBSERVER)


@pytest.fixture(scope="session")
def servers_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers of this session keep their data."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def credentials(servers_directory: Path) -> Credentials:
    """Passwords of the servers of this session: `credentials.nats_password("gateway")`."""
    return load_credentials(servers_directory)


@asynccontextmanager
async def running_nats(directory: Path, credentials: Credentials) -> AsyncIterator[Nats]:
    """A nats-server with a user per service, two publishers (`demo`, `other`) and the observer."""
    passwords = {user: credentials.nats_password(user) for user in NATS_USERS}
    server = Nats(
        directory,
        port=free_port(),
        store_key=credentials.nats_store_key,
        authorization=nats_config(passwords, [PUBLISHER, "other"], observer=True),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest_asyncio.fixture(scope="session")
async def nats_server(servers_directory: Path, credentials: Credentials) -> AsyncIterator[Nats]:
    """The nats-server of the session; leave it running, and use `own_nats` to see one die."""
    async with running_nats(servers_directory, credentials) as server:
        yield server


@pytest_asyncio.fixture
async def own_nats(tmp_path: Path, credentials: Credentials) -> AsyncIterator[Nats]:
    """A nats-server of this test alone, empty, with the same users: it may be killed and started again."""
    async with running_nats(tmp_path, credentials) as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def postgres(servers_directory: Path, credentials: Credentials) -> AsyncIterator[Postgres]:
    """The Postgres of the session; most tests want `database`."""
    server = Postgres(
        servers_directory,
        port=free_port(),
        password=credentials.postgres_password("postgres"),
        # Hundreds of databases are made and dropped, none is needed after a power cut. Stacks keep what people have.
        settings={"fsync": "off", "full_page_writes": "off"},
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest_asyncio.fixture(scope="session")
async def template_database(postgres: Postgres, credentials: Credentials) -> Database:
    """The database with all migrations applied that the databases of tests are copies of; do not connect to it."""
    roles = [f"x402_{service}" for service in services_with_migrations()]
    passwords = {role: credentials.postgres_password(role) for role in roles}
    template = Database("x402jobs_template", postgres, passwords)
    await postgres.create_database(template.name)
    await migrate(template.superuser)
    await set_passwords(template.superuser, passwords)
    return template


@pytest_asyncio.fixture
async def database(template_database: Database) -> AsyncIterator[Database]:
    """A migrated, empty database of this test alone."""
    async with clone_of(template_database) as clone:
        yield clone


@pytest.fixture(scope="session")
def stack_factory(tmp_path_factory: pytest.TempPathFactory) -> StackFactory:
    """Starts special stacks: `async with stack_factory(executors=1, settings={"executor": {…}}) as stack`.

    Takes the arguments of `Stack`. A part that ends by itself while the block runs fails the test.
    """

    @asynccontextmanager
    async def running(**arguments: Any) -> AsyncIterator[Stack]:
        directory = arguments.pop("directory", None) or tmp_path_factory.mktemp("stack")
        settings = arguments.pop("settings", {})
        arguments["settings"] = {**settings, "executor": {**AS_FAST_AS_CAN_BE, **settings.get("executor", {})}}
        stack = Stack(directory, **{"observer": True, **arguments})
        async with AsyncExitStack() as cleanup:
            cleanup.push_async_callback(stack.stop)
            await stack.start()
            yield stack
            died = {name: stack.parts[name].child.tail() for name in stack.died()}
        assert not died, "\n".join(f"{name} ended by itself:\n{tail}" for name, tail in died.items())

    return running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.relative_to(ROOT / "tests").parts[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what no result can say: which tests did not run."""
    if chromium() is None:
        terminalreporter.write_sep("=", LEFT_OUT, yellow=True)
    if promtool() is None:
        terminalreporter.write_sep("=", PROMTOOL_LEFT_OUT, yellow=True)
