"""How a provider key looks, and how it is kept: AES-256-GCM under a data key of its own, which is itself locked under a
master key of the ring. Pure: no database, no network.

Every owner's key has a fresh random data key per version, so rotating the master key touches 60 bytes a row and never a
provider key. Both layers bind owner, provider and version as additional data: a row that is copied to another owner, or
an old one that is put back beside a newer version number, does not open. The plain key only ever travels as a
`SecretStr`, which no log line, message of an exception or repr spells out.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from contracts.errors import invalid
from contracts.keys import Mode
from services.runtime.sealing import Keyring

PROVIDER = "openrouter"
TEST_PREFIX = "sk-or-test-"
_KEY = re.compile(r"(?P<prefix>sk-or-(?:[a-z0-9]+-)?)(?P<secret>[A-Za-z0-9_-]{4,250})", re.ASCII)
_NONCE_BYTES = 12
_DATA_KEY_BYTES = 32
_HINT_CHARS = 4


@dataclass(frozen=True)
class Envelope:
    """A locked provider key, as it is stored. `version` is bound into both ciphertexts."""

    version: int
    master_key_id: str
    wrapped_data_key: bytes = field(repr=False)
    encrypted_key: bytes = field(repr=False)


class EnvelopeError(Exception):
    """An envelope does not open: it was changed, moved, or locked under another key than the ring has."""


def read_key(plaintext: bytes) -> SecretStr:
    """The provider key in what somebody pasted, without the white space around it.

    Raises ServiceError INVALID, without repeating any of it, when it cannot be an OpenRouter key.
    """
    try:
        text = plaintext.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if _KEY.fullmatch(text) is None:
        raise invalid("api_key", "This is not an OpenRouter key: paste the whole key, it begins with sk-or-.")
    return SecretStr(text)


def mode_of(key: SecretStr) -> Mode:
    """`test` for keys of the sandbox, which spend nothing."""
    return "test" if key.get_secret_value().startswith(TEST_PREFIX) else "live"


def hint_of(key: SecretStr) -> str:
    """Enough for its owner to recognise the key: `sk-or-v1-…a1b2`; a key so short that this says too much shows no end."""
    match = _KEY.fullmatch(key.get_secret_value())
    assert match is not None, "only keys that read_key has let through get here"
    secret = match["secret"]
    return f"{match['prefix']}…{secret[-_HINT_CHARS:] if len(secret) > 2 * _HINT_CHARS else ''}"


def lock(key: SecretStr, owner: str, version: int, keyring: Keyring) -> Envelope:
    """Lock a provider key for one owner and version under a new data key and the ring's active master key."""
    data_key = AESGCM.generate_key(bit_length=8 * _DATA_KEY_BYTES)
    nonce = os.urandom(_NONCE_BYTES)
    plaintext = key.get_secret_value().encode()
    encrypted = nonce + AESGCM(data_key).encrypt(nonce, plaintext, _bound("provider-key", owner, version))
    wrapped = keyring.encrypt(data_key, _bound("data-key", owner, version))
    return Envelope(version, wrapped.key_id, wrapped.blob, encrypted)


def unlock(envelope: Envelope, owner: str, keyring: Keyring) -> SecretStr:
    """The provider key again. Raises EnvelopeError when anything about the envelope, its owner or the ring is not as it was."""
    version = envelope.version
    try:
        data_key = keyring.decrypt(
            envelope.master_key_id, envelope.wrapped_data_key, _bound("data-key", owner, version)
        )
        nonce, blob = envelope.encrypted_key[:_NONCE_BYTES], envelope.encrypted_key[_NONCE_BYTES:]
        plaintext = AESGCM(data_key).decrypt(nonce, blob, _bound("provider-key", owner, version))
    except KeyError:
        raise EnvelopeError(f"master key {envelope.master_key_id!r} is not in the ring") from None
    except (ValueError, InvalidTag):
        raise EnvelopeError("the stored key does not open: it was changed, moved or locked under another key") from None
    return SecretStr(plaintext.decode())


def rewrap(envelope: Envelope, owner: str, keyring: Keyring) -> Envelope:
    """The same envelope with its data key under the ring's active master key; the provider key is not opened.

    Raises EnvelopeError when the data key does not open.
    """
    bound = _bound("data-key", owner, envelope.version)
    try:
        wrapped = keyring.encrypt(keyring.decrypt(envelope.master_key_id, envelope.wrapped_data_key, bound), bound)
    except KeyError:
        raise EnvelopeError(f"master key {envelope.master_key_id!r} is not in the ring") from None
    except ValueError:
        raise EnvelopeError("the data key does not open: it was changed, moved or locked under another key") from None
    return replace(envelope, master_key_id=wrapped.key_id, wrapped_data_key=wrapped.blob)


def _bound(purpose: str, owner: str, version: int) -> bytes:
    # A JSON list, because joined strings could be split in two ways.
    return json.dumps(["x402jobs", purpose, PROVIDER, owner, version]).encode()
