"""Two stacks that the tests of this folder share: one with the sandbox's own catalog, one with the real catalog and every recording,
real and hostile. Tests of whatever needs a stack of its own are in `tests/own_stack`."""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deploy.local.stack import Stack
from tests.conftest import StackFactory
from tests.e2e import hostile_recordings
from tests.stack import shared_data


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stack(stack_factory: StackFactory) -> AsyncIterator[Stack]:
    """The whole system with two executors and two gateways, started once for the tests of this folder.

    It serves the sandbox's own catalog, whose ordinary models answer faster here than they do for people.
    """
    sandbox = {"SANDBOX_FIRST_TOKEN_MS": "20", "SANDBOX_TOKENS_PER_S": "1000"}
    async with stack_factory(executors=2, gateways=2, settings={"sandbox": sandbox}) as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def recorded_stack(stack_factory: StackFactory, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One executor and one gateway; the sandbox replays `recorded/<case>` of the shared folder and of the hostile one."""
    folder = tmp_path_factory.mktemp("recordings")
    shutil.copytree(shared_data() / "openrouter-responses", folder, dirs_exist_ok=True)
    hostile_recordings.write(folder)
    sandbox = {
        "SANDBOX_CATALOG": str(shared_data() / "openrouter-models.json"),
        "SANDBOX_RECORDINGS": str(folder),
    }
    async with stack_factory(settings={"sandbox": sandbox}) as running:
        yield running
