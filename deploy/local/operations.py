"""The verbs of the executor's data on a stack that runs: comparing receipts, deleting what need not be kept. The work itself is
in the commands of `services/executor`."""

from pathlib import Path

from deploy.local.commands import environment_of, run_module
from deploy.local.credentials import load_credentials

DATABASE_ROLE = "x402_executor"


def reconcile(directory: Path, days: str) -> int:
    """Compares receipts with the sandbox's or OpenRouter's accounts. Raises `RuntimeError` when no stack runs here."""
    return _run(directory, "services.executor.reconcile", "--days", days)


def purge(directory: Path, user: str | None, *, do: bool) -> int:
    """Deletes what is past its time, or what one person sent and got. Raises `RuntimeError` when no stack runs here."""
    arguments = [*(["--user", user] if user else []), *(["--yes"] if do else [])]
    return _run(directory, "services.executor.purge", *arguments)


def _run(directory: Path, module: str, *arguments: str) -> int:
    environment = environment_of(directory, load_credentials(directory.resolve()), DATABASE_ROLE)
    return run_module(module, *arguments, environment=environment)
