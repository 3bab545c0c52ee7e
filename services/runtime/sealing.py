"""Two kinds of locked boxes: HPKE seals something to one recipient for the way over the bus, a keyring locks it at rest.

HPKE is RFC 9180 in base mode (X25519, HKDF-SHA256, AES-256-GCM); the context string is bound in, so that what was sealed
for one owner or one executor does not open as another's. The keyring is AES-256-GCM with several keys, each with an id:
the first one locks, all of them open, which is what makes rotation possible without downtime.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from contracts.errors import ErrorCode, ServiceError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_NONCE_BYTES = 12


def connect_context(owner: str) -> str:
    """Binds a key on its way in to the owner it is connected for."""
    return f"x402jobs.v1 keys.connect {owner}"


def lease_context(owner: str, instance: str) -> str:
    """Binds a leased key to its owner and to the one executor that asked."""
    return f"x402jobs.v1 keys.lease {owner} {instance}"


def seal(plaintext: bytes, public_key: str, context: str) -> str:
    """Seal to a raw X25519 public key (base64). Raises ServiceError INVALID when that is not one."""
    try:
        recipient = X25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        # Also here: a point of low order is a key of the right length that nothing can be sealed to.
        sealed = _SUITE.encrypt(plaintext, recipient, context.encode())
    except ValueError:
        raise ServiceError(ErrorCode.INVALID, "The recipient's public key is not a raw X25519 key in base64.") from None
    return base64.b64encode(sealed).decode()


class RecipientKey:
    """A key pair that things are sealed to. `key_id` names it on the bus; the private half never leaves the process."""

    def __init__(self, key_id: str, private_key: X25519PrivateKey) -> None:
        self.key_id = key_id
        self._private_key = private_key

    @classmethod
    def generate(cls, key_id: str) -> RecipientKey:
        return cls(key_id, X25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, key_id: str, private_bytes: bytes) -> RecipientKey:
        return cls(key_id, X25519PrivateKey.from_private_bytes(private_bytes))

    @property
    def public_key(self) -> str:
        return base64.b64encode(self._private_key.public_key().public_bytes_raw()).decode()

    @property
    def private_bytes(self) -> bytes:
        return self._private_key.private_bytes_raw()

    def open(self, sealed: str, context: str) -> bytes:
        """Raises ServiceError INVALID when it was not sealed to this key for this context, or was changed on the way."""
        try:
            return _SUITE.decrypt(base64.b64decode(sealed, validate=True), self._private_key, context.encode())
        except (InvalidTag, ValueError, binascii.Error):
            raise ServiceError(
                ErrorCode.INVALID, "The sealed message does not open here; fetch the recipient's public key again."
            ) from None

    def __repr__(self) -> str:
        return f"RecipientKey({self.key_id})"


@dataclass(frozen=True)
class Locked:
    """Ciphertext (nonce in front) and the id of the keyring's key that opens it."""

    key_id: str
    blob: bytes


class Keyring:
    """Keys with ids, in order; the first is active. Built from `id:base64,id2:base64`, 32 bytes each."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        if not keys:
            raise ValueError("the keyring is empty: give at least one key as id:base64")
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self.active_id = next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Raises ValueError, without repeating any of the text, when an entry is not `id:base64` of 32 bytes."""
        keys: dict[str, bytes] = {}
        for number, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            key_id, _, encoded = entry.partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except (ValueError, binascii.Error):
                key = b""
            if not key_id or len(key) != 32 or key_id in keys:
                raise ValueError(f"entry {number} of the keyring is not a unique id:base64 of 32 bytes")
            keys[key_id] = key
        return cls(keys)

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._ciphers

    @property
    def ids(self) -> list[str]:
        """The active one first."""
        return list(self._ciphers)

    def take_over(self, other: Keyring) -> None:
        """From now on be that ring, for everybody who was given this one."""
        self._ciphers, self.active_id = other._ciphers, other.active_id

    def encrypt(self, plaintext: bytes, aad: bytes) -> Locked:
        """Lock under the active key; `aad` must be given again to open."""
        nonce = os.urandom(_NONCE_BYTES)
        return Locked(self.active_id, nonce + self._ciphers[self.active_id].encrypt(nonce, plaintext, aad))

    def decrypt(self, key_id: str, blob: bytes, aad: bytes) -> bytes:
        """Raises KeyError when the ring has no such key, ValueError when it does not open (changed, swapped, other aad)."""
        try:
            return self._ciphers[key_id].decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], aad)
        except InvalidTag:
            raise ValueError("does not open under this key for this purpose") from None

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._ciphers)})"
