"""Master keys over time, on a real database and bus: a ring that changes while the service runs, a rotation that stops for
nobody, the commands of an operator."""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from contracts.errors import ServiceError
from contracts.keys import BeginOAuth, CompleteOAuth
from deploy.local.credentials import Credentials, write_private
from deploy.local.nats import Nats
from services.keys import audit as audit_module
from services.keys import ring as ring_module
from services.keys import rotate as rotation_module
from services.keys.envelope import EnvelopeError
from services.keys.guards import oauth
from services.keys.guards.limits import Limits
from services.keys.main import Settings, build
from services.keys.recipient import Recipients, unlock_pair
from services.keys.ring import CustodySettings, RingError, check_master_keys
from services.keys.rotate import rotate
from services.keys.store import Store
from services.runtime.sealing import Keyring
from tests.integration.custody_parts import BOTH, NEW, NEW_RING, OLD, OLD_RING, keep, log, master_key, opened_key
from tests.integration.keys_parts import (
    LIVE_KEY,
    OTHER_KEY,
    Upstream,
    keys_running,
    keys_settings,
    parties_around,
)
from tests.stack import Database
from tests.waiting import until

# A ring that changes --------------------------------------------------------------------------------------------------


async def master_key_of(superuser: asyncpg.Connection, owner: str) -> str:
    found: str = await superuser.fetchval(
        "SELECT master_key_id FROM keys.user_openrouter_integrations WHERE owner = $1", owner
    )
    return found


async def instances_hold(superuser: asyncpg.Connection, ids: list[str]) -> None:
    """Returns once the one instance says that it holds these master keys, the first active."""
    await until(lambda: superuser.fetchval("SELECT master_key_ids = $1 FROM keys.instances", ids))


async def rounds_of_following(rounds: int) -> None:
    """Returns after the service has looked at its ring a few times more."""
    await asyncio.sleep(rounds * ring_module.FOLLOW_S)


async def test_a_running_service_follows_its_ring(
    database: Database,
    nats_server: Nats,
    credentials: Credentials,
    upstream: Upstream,
    superuser: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ring_module, "FOLLOW_S", 0.1)
    ring = tmp_path / "master-keys"
    write_private(ring, OLD)
    settings = keys_settings(
        database, nats_server, credentials, openrouter_url=upstream.url, master_keys=None, master_keys_file=ring
    )
    with capture_logs() as logs:
        async with keys_running(settings), parties_around(nats_server, credentials) as parties:
            await parties.connect("alice", LIVE_KEY)
            write_private(ring, f"{NEW},{OLD}")
            await instances_hold(superuser, ["k2", "k1"])
            await parties.connect("bob", OTHER_KEY)
            assert [await master_key_of(superuser, owner) for owner in ("alice", "bob")] == ["k1", "k2"]
            assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY

            for unusable in (NEW, f"{NEW},{master_key('k1')}", "nonsense", "k1:ü"):
                logs.clear()
                write_private(ring, unusable)
                await until(lambda: any(entry["event"] == "master_keys_refused" for entry in logs))
                assert parties.opened(await parties.lease("alice"), "alice") == LIVE_KEY
                await rounds_of_following(3)
                (refusal,) = [entry for entry in logs if entry["event"] == "master_keys_refused"]
                assert refusal["held"] == ["k2", "k1"]
                assert OLD.partition(":")[2] not in str(refusal)

            ring.unlink()
            await rounds_of_following(3)
            write_private(ring, NEW)
            # Refused while alice's key needs the other one, and taken as soon as nothing does.
            await parties.disconnect("alice")
            await instances_hold(superuser, ["k2"])
            assert parties.opened(await parties.lease("bob"), "bob") == OTHER_KEY
        assert await superuser.fetchval("SELECT count(*) FROM keys.instances") == 0


async def test_a_service_says_how_much_a_rotation_has_still_to_do(
    database: Database, nats_server: Nats, credentials: Credentials, store: Store
) -> None:
    for owner in ("alice", "bob", "carol"):
        await keep(store, owner)
    await Recipients(store, OLD_RING).current()
    settings = keys_settings(database, nats_server, credentials, master_keys=SecretStr(f"{NEW},{OLD}"))
    async with keys_running(settings) as service:
        told = service.registry.get_sample_value
        await until(lambda: told("x402jobs_keys_under_old_master_key", {"kind": "data_key"}) == 3)
        assert service.registry.get_sample_value("x402jobs_keys_under_old_master_key", {"kind": "key_pair"}) == 1


# Rotation -------------------------------------------------------------------------------------------------------------


async def test_rotation_puts_data_keys_and_key_pairs_under_the_active_master_key(store: Store) -> None:
    for owner in ("alice", "bob"):
        await keep(store, owner)
    await keep(store, "carol", BOTH)
    pair = await Recipients(store, OLD_RING).current()
    said: list[str] = []
    rotation = await rotate(store, BOTH, said.append)
    assert (rotation.total, rotation.done, rotation.failed) == (3, 3, {})
    assert said[-1].startswith("3 of 3 keys under the new master key (100 %")
    for owner in ("alice", "bob", "carol"):
        assert await opened_key(store, owner, NEW_RING) == f"sk-or-v1-of-{owner}"
    stored = await store.recipient_named(pair.key_id)
    assert stored is not None
    assert unlock_pair(stored, NEW_RING).private_bytes == pair.private_bytes
    assert (await Recipients(store, Keyring.parse(f"{OLD},{NEW}")).current()).key_id == pair.key_id
    assert {uses.master_key_id for uses in await store.master_key_uses()} == {"k2"}
    assert (await rotate(store, BOTH, said.append)).total == 0


async def test_two_rotations_at_once_share_the_work(store: Store) -> None:
    owners = [f"owner-{number:03d}" for number in range(60)]
    for owner in owners:
        await keep(store, owner)
    rotations = await asyncio.gather(*(rotate(store, BOTH, lambda _: None) for _ in range(2)))
    assert sum(rotation.done for rotation in rotations) == 60
    for owner in owners:
        assert await opened_key(store, owner, NEW_RING) == f"sk-or-v1-of-{owner}"


async def test_rotation_leaves_a_key_alone_that_was_replaced_meanwhile(store: Store) -> None:
    await keep(store, "alice")
    async with store.rows_of("alice") as rows:
        before = await rows.key()
    assert before is not None
    await keep(store, "alice")
    async with store.rows_of("alice") as rows:
        assert not await rows.rewrap(
            before.envelope, replace(before.envelope, master_key_id="k2", wrapped_data_key=b"")
        )
    assert await opened_key(store, "alice", OLD_RING) == "sk-or-v1-of-alice"


async def test_rotation_names_a_key_that_does_not_open_and_does_the_others(
    store: Store, superuser: asyncpg.Connection
) -> None:
    for owner in ("alice", "bob", "carol"):
        await keep(store, owner)
    await superuser.execute(
        "UPDATE keys.user_openrouter_integrations SET wrapped_data_key = '\\x00' || wrapped_data_key WHERE owner = 'bob'"
    )
    rotation = await rotate(store, BOTH, lambda _: None)
    assert rotation.done == 2
    assert list(rotation.failed) == ["bob"]
    assert [await opened_key(store, owner, NEW_RING) for owner in ("alice", "carol")] == [
        "sk-or-v1-of-alice",
        "sk-or-v1-of-carol",
    ]


async def test_rotation_is_refused_when_the_ring_lacks_a_key_in_use(store: Store) -> None:
    await keep(store, "alice")
    with pytest.raises(RingError, match="need master key 'k1', which is not in the ring"):
        await rotate(store, NEW_RING, lambda _: None)


@pytest.mark.parametrize("held", [["k1"], ["k1", "k2"]])
async def test_rotation_changes_nothing_while_an_instance_has_another_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch, held: list[str]
) -> None:
    monkeypatch.setattr(rotation_module, "_WAIT_S", 0.3)
    await keep(store, "alice")
    await store.announce("keys-1", ["k2", "k1"])
    await store.announce("keys-2", held)
    said: list[str] = []
    with pytest.raises(RingError, match="keys-2 still does not have 'k2' first in their ring: nothing was changed"):
        await rotate(store, BOTH, said.append)
    assert said == ["waiting for keys-2 to have 'k2' first in their ring"]
    assert await opened_key(store, "alice", OLD_RING) == "sk-or-v1-of-alice"
    await store.withdraw("keys-2")
    assert (await rotate(store, BOTH, said.append)).done == 1


async def test_rotation_stops_when_an_instance_starts_with_another_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation_module, "_OWNERS_PER_PAGE", 2)
    for number in range(6):
        await keep(store, f"owner-{number}")
    seen = 0
    look = store.announced

    async def starts_later(within_s: float) -> dict[str, list[str]]:
        nonlocal seen
        seen += 1
        if seen == 3:
            await store.announce("keys-9", ["k1"])
        return await look(within_s)

    monkeypatch.setattr(store, "announced", starts_later)
    with pytest.raises(RingError, match="keys-9 started with another ring"):
        await rotate(store, BOTH, lambda _: None)
    uses = {uses.master_key_id: uses.count for uses in await store.master_key_uses()}
    assert uses == {"k1": 4, "k2": 2}


# The commands ---------------------------------------------------------------------------------------------------------


@dataclass
class Terminal:
    """Runs a command of the keys service as an operator does: its address and its ring come from the environment."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]
    environment: dict[str, str]

    async def run(self, command: Callable[[], int], *arguments: str, **environment: str) -> tuple[int, str]:
        """The exit code and what was printed."""
        for name, value in {**self.environment, **environment}.items():
            self.patch.setenv(name, value)
        self.patch.setattr("sys.argv", ["command", *arguments])
        self.capture.readouterr()
        code = await asyncio.to_thread(command)
        return code, self.capture.readouterr().out


@pytest.fixture
def terminal(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys, {"POSTGRES_URL": database.dsn("keys"), "MASTER_KEYS": f"{NEW},{OLD}"})


async def test_rotation_takes_authorizations_under_way_along(
    store: Store, superuser: asyncpg.Connection, terminal: Terminal
) -> None:
    def authorizations(keyring: Keyring) -> oauth.Authorizations:
        return oauth.Authorizations(
            store, keyring, Limits(store), auth_url="https://nowhere", base_url="http://127.0.0.1:1/api/v1",
            allowed_origins=(),
        )  # fmt: skip

    former, new = authorizations(OLD_RING), authorizations(NEW_RING)
    begun = await former.begin(BeginOAuth(owner="alice"))
    for owner in ("bob", "carol"):
        await former.begin(BeginOAuth(owner=owner))
    await superuser.execute("UPDATE keys.oauth_attempts SET expires_at = now() WHERE owner = 'bob'")
    await superuser.execute("UPDATE keys.oauth_attempts SET locked_verifier = 'x' WHERE owner = 'carol'")
    assert await terminal.run(rotation_module.main, "--in-use", "k1") == (1, "k1 is in use: 2 × verifier\n")
    with pytest.raises(RingError, match="need master key 'k1'"):
        await rotate(store, NEW_RING, lambda _: None)
    assert (await rotate(store, BOTH, lambda _: None)).done == 1
    # The verifier opens: the exchange is tried.
    with pytest.raises(ServiceError, match="OpenRouter cannot be reached"):
        await new.complete(CompleteOAuth(owner="alice", state=begun.state, code="the-code"))
    assert await terminal.run(rotation_module.main, "--in-use", "k1") == (1, "k1 is in use: 1 × verifier\n")
    # What does not open is over within ten minutes.
    await superuser.execute("UPDATE keys.oauth_attempts SET expires_at = now()")
    assert (await terminal.run(rotation_module.main, "--in-use", "k1"))[0] == 0
    for authorization in (former, new):
        await authorization.close()


async def test_rotate_command_says_how_far_it_is_and_what_may_be_dropped(
    store: Store, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation_module, "_PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(rotation_module, "_OWNERS_PER_PAGE", 2)
    for owner in ("alice", "bob", "carol"):
        await keep(store, owner)
    assert (await terminal.run(rotation_module.main, "--in-use", "k1")) == (1, "k1 is in use: 3 × data_key\n")
    code, said = await terminal.run(rotation_module.main)
    assert code == 0
    assert re.match(r"2 of 3 keys under the new master key \(66 %, \d+ a second, \d+ s left\)\n", said)
    assert "\n3 of 3 keys under the new master key (100 %, " in said
    assert said.endswith("nothing needs another master key than k2 any more: the others may be taken from the ring\n")
    assert (await terminal.run(rotation_module.main, "--in-use", "k1")) == (
        0,
        "nothing uses k1: it may be taken from the ring\n",
    )
    await store.announce("keys-1", ["k1", "k2"])
    assert (await terminal.run(rotation_module.main, "--in-use", "k1")) == (1, "k1 is in use: active in keys-1\n")


async def test_rotate_command_fails_when_a_key_does_not_open(
    store: Store, terminal: Terminal, superuser: asyncpg.Connection
) -> None:
    await keep(store, "alice")
    await superuser.execute("UPDATE keys.user_openrouter_integrations SET wrapped_data_key = 'x'")
    code, said = await terminal.run(rotation_module.main)
    assert code == 1
    assert "FAILED  alice: the data key does not open: it was changed, moved or locked under another key" in said
    assert said.endswith("still in use: k1; leave it in the ring\n")


async def test_rotate_command_waits_until_every_instance_holds_a_key(
    store: Store, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.announce("keys-1", ["k1", "k2"])
    assert await terminal.run(rotation_module.main, "--awaited", "k2") == (0, "")
    await store.announce("keys-2", ["k1"])
    waiting = asyncio.create_task(terminal.run(rotation_module.main, "--awaited", "k2"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await store.announce("keys-2", ["k1", "k2"])
    assert await waiting == (0, "waiting for keys-2 to hold 'k2'\n")
    monkeypatch.setattr(rotation_module, "_WAIT_S", 0.1)
    assert (await terminal.run(rotation_module.main, "--awaited", "k3"))[0] == 1


async def test_commands_say_what_is_wrong_when_they_cannot_work(terminal: Terminal) -> None:
    away = "postgresql://x402_keys:wrong@127.0.0.1:1/nowhere"
    for command in (rotation_module.main, audit_module.main):
        code, said = await terminal.run(command, POSTGRES_URL=away)
        assert code == 1
        assert "The database cannot be reached" in said
        assert "wrong" not in said


async def test_audit_command_names_broken_chains_and_keeps_the_ends_of_whole_walks(
    store: Store, terminal: Terminal, superuser: asyncpg.Connection, tmp_path: Path
) -> None:
    await log(store, "alice", 3)
    await log(store, "bob", 2)
    heads = tmp_path / "heads.json"
    whole = (0, "2 chains with 5 entries verified, 0 broken\n")
    assert await terminal.run(audit_module.main) == whole
    assert not heads.exists()
    assert await terminal.run(audit_module.main, "--heads", str(heads)) == whole
    kept = heads.read_text()
    await superuser.execute("DELETE FROM keys.access_log WHERE owner = 'alice' AND seq = 1")
    code, said = await terminal.run(audit_module.main, "--heads", str(heads))
    assert code == 1
    assert said.startswith("BROKEN  alice: entry 1 is missing: entry 2 follows 0\n")
    assert heads.read_text() == kept


# Where the ring comes from --------------------------------------------------------------------------------------------


def ring_settings(**values: object) -> CustodySettings:
    return CustodySettings.model_validate({"postgres_url": "postgresql://nowhere", **values})


def test_ring_is_read_from_a_file_before_a_variable(tmp_path: Path) -> None:
    (tmp_path / "ring").write_text(f"{NEW},\n{OLD}\n")
    settings = ring_settings(master_keys=OLD, master_keys_file=tmp_path / "ring")
    assert settings.keyring().ids == ["k2", "k1"]
    assert ring_settings(master_keys=OLD).keyring().ids == ["k1"]


def test_ring_is_read_from_an_inherited_descriptor() -> None:
    reading, writing = os.pipe()
    os.write(writing, OLD.encode())
    os.close(writing)
    settings = ring_settings(master_keys_file=Path(f"/dev/fd/{reading}"))
    try:
        assert settings.keyring().ids == ["k1"]
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "MASTER_KEYS_FILE cannot be read: No such file or directory"),
        ("k1:ü", "MASTER_KEYS_FILE is not a text of ids and base64"),
        ("k1:c2VjcmV0", "the master keys are not usable: entry 1 of the keyring is not a unique id:base64 of 32 bytes"),
        ("", "the master keys are not usable: the keyring is empty: give at least one key as id:base64"),
    ],
)
def test_ring_that_is_not_usable_is_refused_without_repeating_it(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    if text is not None:
        (tmp_path / "ring").write_text(text)
    with pytest.raises(RingError) as refused:
        ring_settings(master_keys_file=tmp_path / "ring").keyring()
    assert str(refused.value) == sentence
    assert refused.value.__cause__ is None


def test_no_ring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_KEYS", raising=False)
    with pytest.raises(RingError, match="without a master key no key can be kept"):
        ring_settings().keyring()


def test_the_ring_is_read_once_and_the_variable_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MASTER_KEYS": OLD, "POSTGRES_URL": "postgresql://nowhere", "NATS_PASSWORD": "x", "EXECUTOR_IDENTITIES": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert Settings().keyring().ids == ["k1"]
    assert "MASTER_KEYS" not in os.environ


async def test_start_is_refused_when_the_active_master_key_is_another_one_under_the_same_id(
    database: Database, nats_server: Nats, credentials: Credentials, store: Store
) -> None:
    await Recipients(store, OLD_RING).current()
    settings = keys_settings(database, nats_server, credentials, master_keys=SecretStr(master_key("k1")))
    service = build(settings)
    try:
        with pytest.raises(RingError, match="master key 'k1' does not open what was locked under that id"):
            await service.start()
    finally:
        await service.stop()


async def test_start_check_skips_a_key_that_is_disconnected_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(store, "alice")
    look = store.owners_outside

    async def disconnects(master_key_ids: Sequence[str], after: str, limit: int) -> list[str]:
        owners = await look(master_key_ids, after, limit)
        if owners:
            async with store.rows_of("alice") as rows:
                await rows.erase()
        return owners

    monkeypatch.setattr(store, "owners_outside", disconnects)
    await check_master_keys(store, NEW_RING)


async def test_rotation_skips_a_key_that_is_disconnected_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(store, "alice")
    await keep(store, "bob")
    look = store.owners_outside

    async def disconnects(master_key_ids: Sequence[str], after: str, limit: int) -> list[str]:
        owners = await look(master_key_ids, after, limit)
        if "alice" in owners:
            async with store.rows_of("alice") as rows:
                await rows.erase()
        return owners

    monkeypatch.setattr(store, "owners_outside", disconnects)
    assert (await rotate(store, BOTH, lambda _: None)).done == 1


async def test_key_pair_under_a_master_key_that_the_ring_lacks_is_named(store: Store) -> None:
    """As for an instance that still has the former ring alone after a rotation."""
    await Recipients(store, OLD_RING).current()
    await rotate(store, BOTH, lambda _: None)
    with pytest.raises(EnvelopeError, match="'k2' is not in the ring"):
        await Recipients(store, OLD_RING).current()
