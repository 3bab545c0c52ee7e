"""The executors' identity: an Ed25519 key pair that says who may ask for a creator's key, beside what the bus permits.

Bus permissions alone are one mistake away from handing every key to anybody. So a lease request is signed over the owner,
the instance, the public key that the answer is sealed to, a nonce and the time; what was signed can be neither redirected
nor asked again. The seed is a secret of the deployment that executors have and nobody else; the keys service knows public
keys only, several while the pair is being replaced.
"""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from contracts.keys import LeaseKey

NONCE_BYTES = 16


class IdentityError(Exception):
    """The identity of this deployment is not usable; the message says why and repeats none of it."""


class ExecutorIdentity:
    """The private half. `public_key` is what the keys service is told."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key

    @classmethod
    def parse(cls, seed: str) -> ExecutorIdentity:
        """Raises IdentityError, without repeating any of it, when this is not a seed of 32 bytes in base64."""
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(base64.b64decode(seed.strip(), validate=True)))
        except ValueError:
            raise IdentityError("EXECUTOR_IDENTITY is not an Ed25519 seed of 32 bytes in base64") from None

    @property
    def public_key(self) -> str:
        return base64.b64encode(self._private_key.public_key().public_bytes_raw()).decode()

    def lease_request(self, owner: str, instance: str, recipient_public_key: str, now: datetime) -> LeaseKey:
        """A request that is good once, for as long as the keys service takes it to be of now."""
        request = LeaseKey(
            owner=owner,
            instance=instance,
            recipient_public_key=recipient_public_key,
            nonce=base64.b64encode(os.urandom(NONCE_BYTES)).decode(),
            signed_at=now,
        )
        signature = base64.b64encode(self._private_key.sign(_statement(request))).decode()
        return request.model_copy(update={"signature": signature})

    def __repr__(self) -> str:
        return f"ExecutorIdentity({self.public_key})"


class ExecutorIdentities:
    """The public halves that are trusted."""

    def __init__(self, public_keys: list[Ed25519PublicKey]) -> None:
        self._public_keys = public_keys

    @classmethod
    def parse(cls, text: str) -> ExecutorIdentities:
        """Raises IdentityError when there is none, or one that is not an Ed25519 public key of 32 bytes in base64."""
        keys = []
        for number, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            try:
                keys.append(Ed25519PublicKey.from_public_bytes(base64.b64decode(entry, validate=True)))
            except ValueError:
                raise IdentityError(
                    f"EXECUTOR_IDENTITIES: entry {number} is not an Ed25519 public key in base64"
                ) from None
        if not keys:
            raise IdentityError("set EXECUTOR_IDENTITIES: without one no executor can be told from others")
        return cls(keys)

    def signed(self, request: LeaseKey) -> bool:
        """Whether one of them signed exactly this request."""
        if request.signature is None or request.nonce is None or request.signed_at is None:
            return False
        try:
            signature = base64.b64decode(request.signature, validate=True)
        except ValueError:
            return False
        return any(_verifies(key, signature, _statement(request)) for key in self._public_keys)


def _verifies(key: Ed25519PublicKey, signature: bytes, statement: bytes) -> bool:
    try:
        key.verify(signature, statement)
    except InvalidSignature:
        return False
    return True


def _statement(request: LeaseKey) -> bytes:
    # A JSON list, because joined strings could be split in two ways.
    assert request.signed_at is not None
    signed_at = request.signed_at.astimezone(UTC).isoformat(timespec="microseconds")
    fields = [request.owner, request.instance, request.recipient_public_key, request.nonce, signed_at]
    return json.dumps(["x402jobs.v1 keys.lease", *fields]).encode()
