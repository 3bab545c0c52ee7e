"""What is said about provider keys. A key itself only ever appears sealed (HPKE) to one named recipient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from contracts.base import Base64, Contract, UserId, Utc
from contracts.errors import ErrorCode
from contracts.money import Usd

Mode = Literal["live", "test"]
Health = Literal["ok", "suspect", "rejected", "exhausted"]
KeyRefusal = Literal[ErrorCode.KEY_REJECTED, ErrorCode.CREDITS_EXHAUSTED, ErrorCode.SPEND_LIMIT]
AccessAction = Literal["connect", "replace", "verify", "disconnect", "lease"]
AccessResult = Literal["done", "granted", "refused", "ok", "suspect", "rejected", "exhausted"]


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
    verified_at: Utc | None = Field(default=None, description="When OpenRouter last accepted the key.")
    limit_usd: Usd | None = Field(
        default=None, description="The key's own spending cap; null means uncapped, not funded."
    )
    limit_remaining_usd: Usd | None = None
    limit_reset: str | None = None
    usage_usd: Usd | None = Field(default=None, description="All-time usage of the key.")
    credits_remaining_usd: Usd | None = Field(
        default=None, description="What the account has left; null where OpenRouter does not let the key read it."
    )
    is_free_tier: bool | None = None
    expires_at: Utc | None = None


class VerifyKey(Contract):
    """Ask upstream about the stored key: for its owner, or because a run was refused."""

    owner: UserId
    refused: KeyRefusal | None = Field(
        default=None, description="What upstream refused a run with. It is a reason to ask, never a verdict by itself."
    )
    version: int | None = Field(default=None, description="The version of the key that was refused.")


class BeginOAuth(Contract):
    """Connect a key without pasting it (OAuth with PKCE)."""

    owner: UserId
    callback_url: str | None = Field(
        default=None, max_length=1000,
        description="Where OpenRouter sends the browser back to; without one it shows the code to be copied.",
    )  # fmt: skip


class OAuthBegun(Contract):
    authorize_url: str = Field(description="Send the browser here.")
    state: str = Field(description="Also a parameter of the callback; give it back together with the code.")
    expires_at: Utc


class CompleteOAuth(Contract):
    """The code that OpenRouter gave the browser; it is worth nothing without what the keys service has kept."""

    owner: UserId
    state: str = Field(min_length=1, max_length=200)
    code: str = Field(min_length=1, max_length=2000)


class LeaseKey(Contract):
    """An executor asks for the key of one owner, for a minute. A request that no executor has signed is refused."""

    owner: UserId
    instance: str = Field(
        min_length=1, max_length=100, description="The executor instance; the lease opens only there."
    )
    recipient_public_key: Base64
    nonce: Base64 | None = Field(default=None, max_length=64, description="Random; never used twice.")
    signed_at: Utc | None = Field(default=None, description="At most 30 seconds from the clock of the keys service.")
    signature: Base64 | None = Field(
        default=None, max_length=200, description="Ed25519, by the executors' identity, over all the other fields."
    )


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


class ListAccess(Contract):
    """What was done with an owner's key, newest first."""

    owner: UserId
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


class Access(Contract):
    """One entry of the owner's access log. Entries are never changed or removed, not even when the key is."""

    seq: int = Field(ge=1, description="Counts the owner's entries without a gap, from 1.")
    at: Utc
    action: AccessAction
    result: AccessResult = Field(
        description="`done` for a change, `granted` or `refused` for a lease or a connect, a health for a verification; "
        "a lease of a key that is known to be dead is `rejected`."
    )
    instance: str = Field(description="Who did it: the executor that asked for a lease, the keys service otherwise.")
    version: int | None = Field(description="Of the key; null when it was refused before it got one.")
    hash: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 over this entry and the hash of the one before it."
    )


class AccessPage(Contract):
    items: list[Access]
    total: int
    next_cursor: str | None
