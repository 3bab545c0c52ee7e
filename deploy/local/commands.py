"""Running a command of a service on a stack that runs: with the database as that service's role sees it, and little else."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local.credentials import Credentials
from deploy.local.ports import HOST
from deploy.local.process import inherited_environment

ROOT = Path(__file__).resolve().parents[2]


def environment_of(directory: Path, credentials: Credentials, role: str) -> dict[str, str]:
    """The environment of a command that works as this database role. Raises `RuntimeError` when no stack runs here."""
    facts = directory / "stack.json"
    if not facts.exists():
        raise RuntimeError(
            f"no stack runs in {directory}: start it with `make run` and repeat this in another terminal"
        )
    address = urlsplit(json.loads(facts.read_text())["postgres_url"])
    password = credentials.postgres_password(role)
    return {
        **inherited_environment(),
        "PYTHONUNBUFFERED": "1",
        "POSTGRES_URL": f"postgresql://{role}:{password}@{HOST}:{address.port}{address.path}",
    }


def run_module(module: str, *arguments: str, environment: dict[str, str]) -> int:
    """Runs it to its end; returns its exit code."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", module, *arguments], env=environment, cwd=ROOT, check=False).returncode
