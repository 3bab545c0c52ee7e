"""The secrets of one local stack: drawn once, kept in `secrets.json` with mode 0600, and the same at every later
start, because the data beside them is readable only with them. What a later version needs and the file lacks is added
to it. The master keys have a file of their own, `master-keys`: the keys service reads it itself, so that no environment
holds them and rotation reaches the service while it runs."""

import base64
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def write_private(path: Path, text: str) -> None:
    """Replaces a file in one step, readable by its owner alone at every moment."""
    draft = path.with_suffix(path.suffix + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _password() -> str:
    # Begins with a letter: the configuration language of NATS reads a bare leading digit as a number.
    return "p" + secrets.token_hex(20)


def _key_ring() -> str:
    return f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}"


@dataclass(frozen=True)
class Credentials:
    """Everything secret about one stack.

    `nats_passwords` and `postgres_passwords` are keyed by user name; ask `nats_password(user)` and
    `postgres_password(role)`, which draw what is missing and keep it.
    """

    path: Path
    values: dict[str, str]
    nats_passwords: dict[str, str]
    postgres_passwords: dict[str, str]

    @property
    def master_keys_file(self) -> Path:
        """Where the keyring of the keys service is; a new stack gets one key."""
        file = self.path.with_name("master-keys")
        if not file.exists():
            write_private(file, self.values.get("master_keys") or _key_ring())
        if self.values.pop("master_keys", None) is not None:
            self._write()
        return file

    @property
    def master_keys(self) -> str:
        """The keyring of the keys service, as it is now."""
        return self.master_keys_file.read_text()

    @property
    def result_keys(self) -> str:
        """The keyring under which the executor keeps results."""
        return self._value("result_keys", _key_ring())

    @property
    def executor_identity(self) -> str:
        """The seed of the pair with which executors sign their requests for keys."""
        return self._value("executor_identity", base64.b64encode(secrets.token_bytes(32)).decode())

    @property
    def executor_identities(self) -> str:
        """Its public half, which the keys service trusts."""
        private_key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(self.executor_identity))
        return base64.b64encode(private_key.public_key().public_bytes_raw()).decode()

    @property
    def media_name_secret(self) -> str:
        """What media names are an HMAC with."""
        return self._value("media_name_secret", secrets.token_hex(32))

    @property
    def jwt_secret(self) -> str:
        """What the gateway checks tokens with."""
        return self._value("jwt_secret", secrets.token_hex(32))

    @property
    def nats_store_key(self) -> str:
        """What JetStream encrypts its files with."""
        return self._value("nats_store_key", _password())

    def nats_password(self, user: str) -> str:
        """The bus password of one user."""
        return self._keep(self.nats_passwords, user, _password())

    def postgres_password(self, role: str) -> str:
        """The database password of one role."""
        return self._keep(self.postgres_passwords, role, _password())

    def _value(self, name: str, drawn: str) -> str:
        return self._keep(self.values, name, drawn)

    def _keep(self, section: dict[str, str], name: str, drawn: str) -> str:
        if name not in section:
            section[name] = drawn
            self._write()
        return section[name]

    def _write(self) -> None:
        kept = {"values": self.values, "nats": self.nats_passwords, "postgres": self.postgres_passwords}
        write_private(self.path, json.dumps(kept, indent=2) + "\n")


def load_credentials(directory: Path) -> Credentials:
    """The credentials of the stack in this directory; a new stack gets new ones.

    Raises `RuntimeError` where data is left of a stack whose secrets are gone: new ones could not open it.
    """
    path = directory / "secrets.json"
    if path.exists():
        kept = json.loads(path.read_text())
        return Credentials(path, kept["values"], kept["nats"], kept["postgres"])
    if (directory / "postgres").exists() or (directory / "nats").exists():
        raise RuntimeError(
            f"{path} is missing, and the data beside it cannot be opened without it: "
            f"restore the file, or remove {directory}"
        )
    return Credentials(path, {}, {}, {})
