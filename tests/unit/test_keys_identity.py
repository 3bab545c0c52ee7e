"""Signed lease requests: whatever is changed about one, it is not signed any more."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.keys import LeaseKey
from services.runtime.identity import ExecutorIdentities, ExecutorIdentity, IdentityError

IDENTITY = ExecutorIdentity.parse(base64.b64encode(bytes(range(32))).decode())
OTHER = ExecutorIdentity.parse(base64.b64encode(bytes(32)).decode())
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TRUSTED = ExecutorIdentities.parse(IDENTITY.public_key)


def request(owner: str = "alice", instance: str = "executor-1") -> LeaseKey:
    return IDENTITY.lease_request(owner, instance, "cHVibGlj", NOW)


def test_a_request_is_signed_for_its_signer_and_nobody_else() -> None:
    assert TRUSTED.signed(request())
    assert TRUSTED.signed(LeaseKey.model_validate_json(request().model_dump_json()))
    assert not ExecutorIdentities.parse(OTHER.public_key).signed(request())
    both = ExecutorIdentities.parse(f"{OTHER.public_key}, {IDENTITY.public_key}")
    assert both.signed(request())


def test_two_requests_share_no_nonce() -> None:
    assert request().nonce != request().nonce


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "bob"},
        {"instance": "executor-2"},
        {"recipient_public_key": "c29tZWJvZHkgZWxzZQ=="},
        {"nonce": "b3RoZXI="},
        {"signature": OTHER.lease_request("alice", "executor-1", "cHVibGlj", NOW).signature},
        {"signature": ""},
        {"signature": "AAAA"},
        {"signature": "not base64"},
        {"signature": None},
        {"nonce": None},
        {"signed_at": None},
    ],
)
def test_a_changed_request_is_not_signed(change: dict[str, Any]) -> None:
    assert not TRUSTED.signed(request().model_copy(update=change))


def test_a_request_of_another_moment_is_not_signed() -> None:
    signed = request()
    assert signed.signed_at is not None
    assert not TRUSTED.signed(signed.model_copy(update={"signed_at": signed.signed_at + timedelta(microseconds=1)}))


@given(bit=st.integers(0, 511))
def test_no_flipped_bit_of_the_signature_passes(bit: int) -> None:
    signed = request()
    assert signed.signature is not None
    signature = bytearray(base64.b64decode(signed.signature))
    signature[bit // 8] ^= 1 << bit % 8
    assert not TRUSTED.signed(signed.model_copy(update={"signature": base64.b64encode(signature).decode()}))


@pytest.mark.parametrize(("owner", "instance"), [("a", "b c"), ("a b", "c"), ('a","b', "c")])
def test_fields_cannot_be_shifted_into_each_other(owner: str, instance: str) -> None:
    signed = LeaseKey.model_construct(**{**request().model_dump(), "owner": owner, "instance": instance})
    assert not TRUSTED.signed(signed)


@pytest.mark.parametrize("text", ["", " , ", "AAAA", "not base64", f"{IDENTITY.public_key},AAAA"])
def test_identities_that_are_none_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(IdentityError) as refused:
        ExecutorIdentities.parse(text)
    assert "AAAA" not in str(refused.value)
    assert "not base64" not in str(refused.value)


def test_a_seed_that_is_none_is_refused_without_being_repeated() -> None:
    for seed in ("", "c2hvcnQtc2VjcmV0", "not base64"):
        with pytest.raises(IdentityError) as refused:
            ExecutorIdentity.parse(seed)
        assert "c2hvcnQ" not in str(refused.value)
    assert "AAECAw" not in repr(IDENTITY)
