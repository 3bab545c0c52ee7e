"""What is said about provider keys. A key itself only ever appears sealed (HPKE) to one named recipient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from contracts.base import Base64, Contract, UserId, Utc
from contracts.money import Usd

Mode = Literal["live", "test"]
Health = Literal["ok", "suspect", "rejected", "exhausted"]


class Recipient(Contract):
    """The keys service's current public key: whoever hands a key over seals it to this."""

    key_id: str
    public_key: Base64 = Field(description="Raw X25519 public key.")


class OwnerRef(Contract):
    """Whose key."""

    owner: UserId


class ConnectKey(Contract):
    """Hand a key over; it is verified upstream before it is stored."""

    owner: UserId
    recipient_key_id: str
    sealed: Base64 = Field(description="The key, sealed to the recipient and bound to the owner.")


class KeyStatus(Contract):
    """What an owner may know about their key; never the key."""

    connected: bool
    mode: Mode | None = Field(default=None, description="`test` keys reach the sandbox and spend nothing.")
    hint: str | None = Field(default=None, description="Enough to recognise it: `sk-or-v1-…a1b2`.")
    health: Health | None = None
    version: int | None = Field(default=None, description="Grows with every change.")
    connected_at: Utc | None = None
    verified_at: Utc | None = None
    limit_usd: Usd | None = Field(
        default=None, description="The key's own spending cap; null means uncapped, not funded."
    )
    limit_remaining_usd: Usd | None = None
    limit_reset: str | None = None
    usage_usd: Usd | None = Field(default=None, description="All-time usage of the key.")
    is_free_tier: bool | None = None
    expires_at: Utc | None = None


class LeaseKey(Contract):
    """An executor asks for the key of one owner, for a minute."""

    owner: UserId
    instance: str = Field(
        min_length=1, max_length=100, description="The executor instance; the lease opens only there."
    )
    recipient_public_key: Base64


class KeyLease(Contract):
    sealed: Base64 = Field(description="The key, sealed to the asking instance and bound to owner and instance.")
    mode: Mode
    version: int
    expires_at: Utc


class KeysChanged(Contract):
    """Something about an owner's key changed: drop what you hold of it."""

    owner: UserId
    version: int
    change: Literal["connected", "replaced", "disconnected", "health"]
