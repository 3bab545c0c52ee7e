"""What is sealed opens at its recipient, for its context, unchanged, and nowhere else; whatever else arrives is a typed error."""

import base64
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorCode, ServiceError
from services.runtime.sealing import Keyring, RecipientKey, connect_context, lease_context, seal

PAIR = RecipientKey.generate("executor-1")
OTHER = RecipientKey.generate("executor-2")
SECRET = b"sk-or-v1-0123456789abcdef"
# Points of order 1, 2, 4 and 8: raw keys of the right length with which every secret is the same.
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def refused(pair: RecipientKey, sealed: str, context: str = "context") -> None:
    with pytest.raises(ServiceError) as error:
        pair.open(sealed, context)
    assert error.value.code is ErrorCode.INVALID
    assert error.value.__cause__ is None


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@given(st.binary(max_size=500), st.text(max_size=100))
def test_what_is_sealed_opens_at_its_recipient_for_its_context(plaintext: bytes, context: str) -> None:
    assert PAIR.open(seal(plaintext, PAIR.public_key, context), context) == plaintext


@given(st.data())
def test_open_refuses_when_any_bit_is_flipped(data: st.DataObject) -> None:
    sealed = bytearray(base64.b64decode(seal(SECRET, PAIR.public_key, "context")))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    # X25519 ignores the highest bit of the encapsulated key, HPKE binds it all the same.
    sealed[bit // 8] ^= 1 << bit % 8
    refused(PAIR, b64(bytes(sealed)))


@given(st.data())
def test_open_refuses_when_a_message_is_cut_or_longer(data: st.DataObject) -> None:
    sealed = base64.b64decode(seal(SECRET, PAIR.public_key, "context"))
    refused(PAIR, b64(sealed[: data.draw(st.integers(0, len(sealed) - 1))]))
    refused(PAIR, b64(sealed + data.draw(st.binary(min_size=1, max_size=20))))


@given(st.tuples(st.text(min_size=1), st.text(min_size=1)), st.tuples(st.text(min_size=1), st.text(min_size=1)))
def test_a_lease_opens_at_its_recipient_alone(mine: tuple[str, str], other: tuple[str, str]) -> None:
    sealed = seal(SECRET, PAIR.public_key, lease_context(*mine))
    refused(OTHER, sealed, lease_context(*mine))
    refused(PAIR, sealed, connect_context(mine[0]))
    if lease_context(*mine) != lease_context(*other):
        refused(PAIR, sealed, lease_context(*other))


def test_contexts_of_two_leases_differ_because_no_owner_has_white_space() -> None:
    assert lease_context("alice", "executor 1") != lease_context("alic", "e executor 1")


@given(st.binary(max_size=300))
def test_open_refuses_random_bytes(raw: bytes) -> None:
    refused(PAIR, b64(raw))


@pytest.mark.parametrize("sealed", ["", "=", "ü", "not base64!", "AAAA\n", "A" * 5, *map(b64, LOW_ORDER)])
def test_open_refuses_what_is_no_sealed_message(sealed: str) -> None:
    refused(PAIR, sealed)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_open_refuses_a_message_encapsulated_to_a_point_of_low_order(point: bytes) -> None:
    refused(PAIR, b64(point + os.urandom(60)))


def test_open_refuses_a_million_random_bytes() -> None:
    refused(PAIR, b64(os.urandom(1_000_000)))


@pytest.mark.parametrize("public_key", ["", "AAAA", "not base64!", "ü", b64(bytes(33)), *map(b64, LOW_ORDER)])
def test_seal_refuses_what_is_no_public_key(public_key: str) -> None:
    with pytest.raises(ServiceError) as error:
        seal(SECRET, public_key, "context")
    assert error.value.code is ErrorCode.INVALID
    assert error.value.__cause__ is None


# The keyring ----------------------------------------------------------------------------------------------------------


def ring_text(*ids: str) -> str:
    return ",".join(f"{key_id}:{b64(AESGCM.generate_key(256))}" for key_id in ids)


@given(st.binary(max_size=100), st.binary(max_size=50), st.binary(max_size=50))
def test_keyring_opens_only_for_the_same_purpose(plaintext: bytes, aad: bytes, other: bytes) -> None:
    ring = Keyring.parse(ring_text("k1"))
    locked = ring.encrypt(plaintext, aad)
    assert ring.decrypt(locked.key_id, locked.blob, aad) == plaintext
    if aad != other:
        with pytest.raises(ValueError):
            ring.decrypt(locked.key_id, locked.blob, other)


@given(st.binary(max_size=200))
def test_keyring_refuses_random_bytes(blob: bytes) -> None:
    with pytest.raises(ValueError):
        Keyring.parse(ring_text("k1")).decrypt("k1", blob, b"")


def test_keyring_takes_over_another_ring_for_everybody_who_has_it() -> None:
    old = ring_text("k1")
    held = Keyring.parse(old)
    locked = held.encrypt(SECRET, b"")
    held.take_over(Keyring.parse(f"{ring_text('k2')},{old}"))
    assert (held.active_id, held.ids) == ("k2", ["k2", "k1"])
    assert held.decrypt("k1", locked.blob, b"") == SECRET
    held.take_over(Keyring.parse(ring_text("k3")))
    assert "k1" not in held
    with pytest.raises(KeyError):
        held.decrypt("k1", locked.blob, b"")


@pytest.mark.parametrize("text", ["", " , ", "k1", "k1:", ":AAAA", "k1:c2VjcmV0", "k1:ü", "k1:" + "A" * 44])
def test_parse_refuses_without_repeating_it_what_is_no_ring(text: str) -> None:
    with pytest.raises(ValueError) as error:
        Keyring.parse(text)
    assert "c2VjcmV0" not in str(error.value)
    assert error.value.__cause__ is None


def test_parse_refuses_an_id_that_comes_twice() -> None:
    with pytest.raises(ValueError, match="entry 2"):
        Keyring.parse(ring_text("k1", "k1"))
