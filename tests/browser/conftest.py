"""A Chromium and a stack with the real list of models, both started once for the tests of the console."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from deploy.local.stack import Stack
from tests.browser.browsing import chromium, running_browser
from tests.browser.furnished import Account, furnished
from tests.conftest import StackFactory
from tests.stack import shared_data

# Nothing is collected without a browser; tests/conftest.py says so at the end.
collect_ignore_glob = [] if chromium() else ["test_*.py"]


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The system's Chromium; a test opens pages with `visiting`."""
    async with running_browser() as running:
        yield running


@pytest.fixture(scope="package")
def console_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded catalog as the sandbox of `console_stack` serves it: a test may change a model that no other test names."""
    copy = tmp_path_factory.mktemp("catalog") / "models.json"
    shutil.copyfile(shared_data() / "openrouter-models.json", copy)
    return copy


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def console_stack(stack_factory: StackFactory, console_catalog: Path) -> AsyncIterator[Stack]:
    """The whole system with all models of the recorded catalog; ordinary models answer fast."""
    sandbox = {
        "SANDBOX_CATALOG": str(console_catalog),
        "SANDBOX_FIRST_TOKEN_MS": "20",
        "SANDBOX_TOKENS_PER_S": "1000",
    }
    async with stack_factory(settings={"sandbox": sandbox}) as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def account(console_stack: Stack) -> AsyncIterator[Account]:
    """An account in which something has happened; tests look at it and change nothing."""
    async with furnished(console_stack) as made:
        yield made
