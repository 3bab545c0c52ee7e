"""The verbs of the keys service on a stack that runs: a new master key, whether one is in use, the walk over the access log. Each
does with this stack what an operator does with a deployment; the work itself is in the commands of `services/keys`."""

import base64
import re
import secrets
from pathlib import Path

from deploy.local.commands import environment_of, run_module
from deploy.local.credentials import Credentials, load_credentials, write_private

DATABASE_ROLE = "x402_keys"


def rotate_master_key(directory: Path) -> int:
    """Draws a new master key, puts everything under it and forgets the former ones; started again, it goes on where it was.

    Returns the exit code. Raises `RuntimeError` when no stack runs here.
    """
    credentials = load_credentials(directory.resolve())
    environment = _environment(directory, credentials)
    ring = _read(credentials.master_keys_file)
    if len(ring) == 1:
        ring = [*ring, f"k{_number(ring[0]) + 1}:{base64.b64encode(secrets.token_bytes(32)).decode()}"]
    newest = max(ring, key=_number)
    older = [key for key in ring if key != newest]
    if ring[0] != newest:
        # Last at first: only when every instance can open what lies under it may one of them put something there.
        write_private(credentials.master_keys_file, ",".join([*older, newest]))
        code = run_module("services.keys.rotate", "--awaited", _id(newest), environment=environment)
        if code != 0:
            return code
        write_private(credentials.master_keys_file, ",".join([newest, *older]))
    code = run_module("services.keys.rotate", environment=environment)
    if code == 0:
        write_private(credentials.master_keys_file, newest)
        print(f"the ring of this stack is {_id(newest)} alone now", flush=True)
    return code


def master_key_in_use(directory: Path, key_id: str) -> int:
    """Prints whether a master key is still needed; exit code 1 if so. Raises `RuntimeError` when no stack runs here."""
    environment = _environment(directory, load_credentials(directory.resolve()))
    return run_module("services.keys.rotate", "--in-use", key_id, environment=environment)


def verify_access_log(directory: Path) -> int:
    """Walks every owner's chain, also against the ends of the former walk. Raises `RuntimeError` when no stack runs here."""
    environment = _environment(directory, load_credentials(directory.resolve()))
    heads = directory.resolve() / "access-log-heads.json"
    return run_module("services.keys.audit", "--heads", str(heads), environment=environment)


def _environment(directory: Path, credentials: Credentials) -> dict[str, str]:
    ours = environment_of(directory, credentials, DATABASE_ROLE)
    return {**ours, "MASTER_KEYS_FILE": str(credentials.master_keys_file)}


def _read(file: Path) -> list[str]:
    return [entry.strip() for entry in file.read_text().split(",") if entry.strip()]


def _id(key: str) -> str:
    return key.partition(":")[0]


def _number(key: str) -> int:
    digits = re.search(r"\d+$", _id(key))
    return int(digits.group()) if digits else 0
