"""What is sealed opens for its recipient and its purpose alone; what is locked opens under its ring and its purpose alone."""

import base64
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorCode, ServiceError
from services.runtime.sealing import Keyring, RecipientKey, connect_context, lease_context, seal

SECRET = b"sk-or-test-something-secret"


def ring_text(*ids: str) -> str:
    return ",".join(f"{key_id}:{base64.b64encode(secrets.token_bytes(32)).decode()}" for key_id in ids)


# On the way -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=5000), st.text(max_size=50))
def test_sealed_opens_at_its_recipient_for_its_context(plaintext: bytes, context: str) -> None:
    recipient = RecipientKey.generate("r1")
    assert recipient.open(seal(plaintext, recipient.public_key, context), context) == plaintext


def test_sealed_twice_is_not_the_same_and_does_not_show_what_is_in_it() -> None:
    recipient = RecipientKey.generate("r1")
    one, two = (seal(SECRET, recipient.public_key, "c") for _ in range(2))
    assert one != two
    assert SECRET not in base64.b64decode(one)


def test_sealed_does_not_open_for_another_context_recipient_or_after_a_change() -> None:
    recipient, other = RecipientKey.generate("r1"), RecipientKey.generate("r1")
    context = lease_context("ada", "executor-1")
    sealed = seal(SECRET, recipient.public_key, context)
    changed = bytearray(base64.b64decode(sealed))
    changed[-1] ^= 1
    attempts = [
        (recipient, sealed, lease_context("bob", "executor-1")),
        (recipient, sealed, lease_context("ada", "executor-2")),
        (recipient, sealed, connect_context("ada")),
        (other, sealed, context),
        (recipient, base64.b64encode(changed).decode(), context),
        (recipient, sealed[:-8], context),
        (recipient, "", context),
        (recipient, "not base64!", context),
    ]
    for key, text, purpose in attempts:
        with pytest.raises(ServiceError) as caught:
            key.open(text, purpose)
        assert caught.value.code is ErrorCode.INVALID
        assert SECRET.decode() not in caught.value.body.message


def test_contexts_of_different_people_and_purposes_differ() -> None:
    contexts = [
        connect_context("ada"),
        connect_context("bob"),
        lease_context("ada", "e1"),
        lease_context("ada", "e2"),
        lease_context("bob", "e1"),
    ]
    assert len(set(contexts)) == len(contexts)


@pytest.mark.parametrize("public_key", ["", "AAAA", "not base64!", base64.b64encode(bytes(33)).decode()])
def test_nothing_is_sealed_to_what_is_no_public_key(public_key: str) -> None:
    with pytest.raises(ServiceError) as caught:
        seal(SECRET, public_key, "c")
    assert caught.value.code is ErrorCode.INVALID


def test_recipient_is_the_same_again_out_of_its_private_bytes_and_never_shows_them() -> None:
    recipient = RecipientKey.generate("r1")
    again = RecipientKey.from_private_bytes("r1", recipient.private_bytes)
    assert again.open(seal(SECRET, recipient.public_key, "c"), "c") == SECRET
    assert repr(recipient) == "RecipientKey(r1)"


# At rest --------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=5000), st.binary(max_size=50))
def test_locked_opens_with_its_purpose(plaintext: bytes, aad: bytes) -> None:
    ring = Keyring.parse(ring_text("k1"))
    locked = ring.encrypt(plaintext, aad)
    assert ring.decrypt(locked.key_id, locked.blob, aad) == plaintext


def test_first_key_locks_and_every_key_opens() -> None:
    old_text, new_text = ring_text("old"), ring_text("new")
    locked = Keyring.parse(old_text).encrypt(SECRET, b"a")
    both = Keyring.parse(f"{new_text}, {old_text}")
    assert both.active_id == both.encrypt(b"", b"").key_id == "new"
    assert both.decrypt(locked.key_id, locked.blob, b"a") == SECRET
    assert "old" in both
    assert "older" not in both


def test_locked_does_not_open_for_another_purpose_under_another_key_or_after_a_change() -> None:
    ring = Keyring.parse(ring_text("k1", "k2"))
    locked = ring.encrypt(SECRET, b"run 1")
    changed = locked.blob[:-1] + bytes([locked.blob[-1] ^ 1])
    for key_id, blob, aad in [("k1", locked.blob, b"run 2"), ("k2", locked.blob, b"run 1"), ("k1", changed, b"run 1")]:
        with pytest.raises(ValueError, match="does not open"):
            ring.decrypt(key_id, blob, aad)
    with pytest.raises(KeyError):
        ring.decrypt("k3", locked.blob, b"run 1")


def test_same_thing_locked_twice_is_not_the_same() -> None:
    ring = Keyring.parse(ring_text("k1"))
    assert ring.encrypt(SECRET, b"").blob != ring.encrypt(SECRET, b"").blob


@pytest.mark.parametrize("text", ["", " , ", ","])
def test_empty_ring_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        Keyring.parse(text)


@pytest.mark.parametrize(
    "entry",
    ["c2VjcmV0", "k1:", ":c2VjcmV0", "k1:c2VjcmV0", "k1:secret!", f"k1:{base64.b64encode(bytes(31)).decode()}"],
)
def test_entry_that_is_no_key_is_refused_by_its_number_and_not_repeated(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 2 ") as caught:
        Keyring.parse(f"{ring_text('k0')},{entry}")
    assert "ecret" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_same_id_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"entry 2 .* unique"):
        Keyring.parse(ring_text("k1", "k1"))


def test_ring_shows_its_ids_and_not_its_keys() -> None:
    assert repr(Keyring.parse(ring_text("k1", "k2"))) == "Keyring(k1, k2)"
