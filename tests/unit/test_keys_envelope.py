"""Envelopes of provider keys: they open only whole, for their owner, at their version, under their master key."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from contracts.errors import ErrorCode, ServiceError
from services.keys.envelope import Envelope, EnvelopeError, hint_of, lock, mode_of, read_key, rewrap, unlock
from services.runtime.sealing import Keyring

KEY = SecretStr("sk-or-v1-" + "0123456789abcdef" * 4)
RING = Keyring({"m1": AESGCM.generate_key(256)})


def test_unlock_gives_the_key_back_when_nothing_changed() -> None:
    envelope = lock(KEY, "alice", 3, RING)
    assert unlock(envelope, "alice", RING) == KEY
    assert (envelope.version, envelope.master_key_id) == (3, "m1")


def test_lock_draws_a_new_data_key_every_time() -> None:
    first, second = (lock(KEY, "alice", 1, RING) for _ in range(2))
    assert first.encrypted_key[:12] != second.encrypted_key[:12]
    mixed = replace(first, wrapped_data_key=second.wrapped_data_key)
    with pytest.raises(EnvelopeError):
        unlock(mixed, "alice", RING)


@given(data=st.data(), field=st.sampled_from(["wrapped_data_key", "encrypted_key"]))
def test_unlock_refuses_when_any_bit_is_flipped(data: st.DataObject, field: str) -> None:
    envelope = lock(KEY, "alice", 1, RING)
    blob = getattr(envelope, field)
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    with pytest.raises(EnvelopeError):
        unlock(_with(envelope, field, flipped(blob, bit)), "alice", RING)


@given(a=st.tuples(st.text(min_size=1), st.integers(1, 99)), b=st.tuples(st.text(min_size=1), st.integers(1, 99)))
def test_unlock_refuses_any_mixture_of_two_rows(a: tuple[str, int], b: tuple[str, int]) -> None:
    one, two = lock(KEY, *a, RING), lock(KEY, *b, RING)
    for mixed in (
        replace(one, wrapped_data_key=two.wrapped_data_key),
        replace(one, encrypted_key=two.encrypted_key),
        replace(one, wrapped_data_key=two.encrypted_key, encrypted_key=two.wrapped_data_key),
    ):
        with pytest.raises(EnvelopeError):
            unlock(mixed, a[0], RING)


@given(wrapped=st.binary(max_size=100), encrypted=st.binary(max_size=200))
def test_unlock_refuses_made_up_bytes(wrapped: bytes, encrypted: bytes) -> None:
    with pytest.raises(EnvelopeError):
        unlock(Envelope(1, "m1", wrapped, encrypted), "alice", RING)


@given(data=st.data(), field=st.sampled_from(["wrapped_data_key", "encrypted_key"]))
def test_unlock_refuses_when_a_blob_is_cut(data: st.DataObject, field: str) -> None:
    envelope = lock(KEY, "alice", 1, RING)
    blob = getattr(envelope, field)
    cut = blob[: data.draw(st.integers(0, len(blob) - 1))]
    with pytest.raises(EnvelopeError):
        unlock(_with(envelope, field, cut), "alice", RING)


@given(owner=st.text(min_size=1), other=st.text(min_size=1), version=st.integers(1, 10**9), later=st.integers(1, 10**9))
def test_unlock_opens_for_its_own_owner_and_version_alone(owner: str, other: str, version: int, later: int) -> None:
    envelope = lock(KEY, owner, version, RING)
    moved = replace(envelope, version=later)
    if (owner, version) == (other, later):
        assert unlock(moved, other, RING) == KEY
    else:
        with pytest.raises(EnvelopeError):
            unlock(moved, other, RING)


def test_unlock_refuses_when_the_version_alone_differs() -> None:
    with pytest.raises(EnvelopeError):
        unlock(replace(lock(KEY, "alice", 1, RING), version=2), "alice", RING)


def test_unlock_refuses_when_the_master_key_has_other_bytes() -> None:
    with pytest.raises(EnvelopeError):
        unlock(lock(KEY, "alice", 1, RING), "alice", Keyring({"m1": AESGCM.generate_key(256)}))


def test_unlock_names_the_master_key_when_the_ring_lacks_it() -> None:
    with pytest.raises(EnvelopeError, match="m1"):
        unlock(lock(KEY, "alice", 1, RING), "alice", Keyring({"m2": AESGCM.generate_key(256)}))


def test_unlock_opens_what_a_retired_master_key_of_the_ring_locked() -> None:
    old, new = AESGCM.generate_key(256), AESGCM.generate_key(256)
    envelope = lock(KEY, "alice", 1, Keyring({"old": old}))
    assert unlock(envelope, "alice", Keyring({"new": new, "old": old})) == KEY


# Rotation -------------------------------------------------------------------------------------------------------------

NEW = AESGCM.generate_key(256)
OLD = AESGCM.generate_key(256)
BOTH = Keyring({"new": NEW, "old": OLD})


def test_rewrap_moves_the_data_key_alone() -> None:
    envelope = lock(KEY, "alice", 7, Keyring({"old": OLD}))
    moved = rewrap(envelope, "alice", BOTH)
    assert moved.encrypted_key == envelope.encrypted_key
    assert (moved.version, moved.master_key_id) == (7, "new")
    assert unlock(moved, "alice", Keyring({"new": NEW})) == KEY
    with pytest.raises(EnvelopeError, match="new"):
        unlock(moved, "alice", Keyring({"old": OLD}))
    with pytest.raises(EnvelopeError):
        unlock(replace(moved, master_key_id="old"), "alice", BOTH)


@given(data=st.data())
def test_rewrap_refuses_when_any_bit_of_the_data_key_is_flipped(data: st.DataObject) -> None:
    envelope = lock(KEY, "alice", 1, Keyring({"old": OLD}))
    bit = data.draw(st.integers(0, 8 * len(envelope.wrapped_data_key) - 1))
    with pytest.raises(EnvelopeError):
        rewrap(replace(envelope, wrapped_data_key=flipped(envelope.wrapped_data_key, bit)), "alice", BOTH)


@given(owner=st.text(min_size=1), version=st.integers(1, 10**9), wrapped=st.binary(max_size=80))
def test_rewrap_refuses_what_was_moved_or_made_up(owner: str, version: int, wrapped: bytes) -> None:
    envelope = lock(KEY, "alice", 1, Keyring({"old": OLD}))
    if (owner, version) != ("alice", 1):
        with pytest.raises(EnvelopeError):
            rewrap(replace(envelope, version=version), owner, BOTH)
    with pytest.raises(EnvelopeError):
        rewrap(replace(envelope, wrapped_data_key=wrapped), "alice", BOTH)


def test_rewrap_names_the_master_key_when_the_ring_lacks_it() -> None:
    with pytest.raises(EnvelopeError, match="'old' is not in the ring"):
        rewrap(lock(KEY, "alice", 1, Keyring({"old": OLD})), "alice", Keyring({"new": NEW}))


def test_repr_of_key_and_envelope_shows_no_secret() -> None:
    envelope = lock(KEY, "alice", 1, RING)
    assert repr(envelope) == "Envelope(version=1, master_key_id='m1')"
    assert "0123" not in f"{KEY!r}{KEY}{RING!r}"


@pytest.mark.parametrize("pasted", [KEY.get_secret_value(), "sk-or-test-demo", "sk-or-abcdefgh"])
def test_read_key_accepts_keys_with_white_space_around_them(pasted: str) -> None:
    assert read_key(f" {pasted}\n".encode()).get_secret_value() == pasted


@pytest.mark.parametrize(
    "pasted",
    [b"", b"sk-proj-0123456789", b"sk-or-", b"sk-or-v1-ab\r\ncd1234", "sk-or-v1-schlüssel".encode(), b"\xff" * 40],
)
def test_read_key_refuses_without_repeating_it_when_it_is_no_openrouter_key(pasted: bytes) -> None:
    with pytest.raises(ServiceError) as refused:
        read_key(pasted)
    assert refused.value.code is ErrorCode.INVALID
    assert refused.value.body.fields[0].path == "api_key"
    assert refused.value.__cause__ is None
    secret = pasted.removeprefix(b"sk-or-")
    assert not secret or secret not in refused.value.body.model_dump_json().encode()


def test_hint_shows_prefix_and_four_characters() -> None:
    assert hint_of(KEY) == "sk-or-v1-…cdef"
    assert hint_of(SecretStr("sk-or-test-CANARY1234")) == "sk-or-test-…1234"


def test_hint_shows_no_end_when_the_key_is_short() -> None:
    assert hint_of(SecretStr("sk-or-test-demo")) == "sk-or-test-…"


def test_mode_follows_the_prefix() -> None:
    assert mode_of(KEY) == "live"
    assert mode_of(SecretStr("sk-or-test-demo")) == "test"


def flipped(blob: bytes, bit: int) -> bytes:
    changed = bytearray(blob)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _with(envelope: Envelope, field: str, blob: bytes) -> Envelope:
    return replace(envelope, **{field: blob})  # type: ignore[arg-type]
