"""Where a key must not be when things go wrong: tracebacks of everything that can break under the service, messages captured from the
bus, the memory that is shown of its process."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from nats.aio.msg import Msg

from contracts.base import Empty
from contracts.errors import ErrorCode, ServiceError
from contracts.keys import ConnectKey
from contracts.subjects import KEYS_CONNECT, KEYS_LEASE, KEYS_RECIPIENT
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.keys.recipient import unlock_pair
from services.keys.store import Store
from services.runtime.postgres import create_pool
from services.runtime.sealing import Keyring, RecipientKey, connect_context, lease_context
from tests.integration.keys.test_keys_process import (
    CANARY,
    forms_of,
    keys_process,
    master_key,
    measured,
    started,
)
from tests.integration.keys_parts import INSTANCE, Parties, parties_around, running_upstream
from tests.stack import ROOT, Database
from tests.waiting import PATIENCE_S

OTHER_CANARY = CANARY.replace("5a7e", "07e4")

# What breaks, and what mends it.
SABOTAGE = [
    ("ALTER TABLE keys.access_log RENAME TO gone", "ALTER TABLE keys.gone RENAME TO access_log"),
    ("ALTER TABLE keys.recipients RENAME TO gone", "ALTER TABLE keys.gone RENAME TO recipients"),
    (
        "REVOKE ALL ON keys.user_openrouter_integrations FROM x402_keys",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON keys.user_openrouter_integrations TO x402_keys",
    ),
    (
        "ALTER TABLE keys.user_openrouter_integrations ADD CONSTRAINT broken CHECK (mode = 'nothing') NOT VALID",
        "ALTER TABLE keys.user_openrouter_integrations DROP CONSTRAINT broken",
    ),
    ("UPDATE keys.key_versions SET version = 9223372036854775807", "UPDATE keys.key_versions SET version = 50"),
    ("UPDATE keys.recipients SET wrapped_private_key = 'x'", "DELETE FROM keys.recipients"),
    # Mended by the key that is connected anew.
    ("UPDATE keys.user_openrouter_integrations SET encrypted_key = wrapped_data_key", "SELECT 1"),
    ("UPDATE keys.user_openrouter_integrations SET wrapped_data_key = 'x'", "SELECT 1"),
]


async def failures_of_everything(parties: Parties) -> list[ServiceError]:
    failures = []
    for asking in (
        parties.lease("alice"),
        parties.verify("alice"),
        parties.connect("alice", OTHER_CANARY),
        parties.disconnect("nobody"),
    ):
        try:
            await asking
        except ServiceError as error:
            failures.append(error)
    return failures


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_tracebacks_show_no_key(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path, log_format: str
) -> None:
    errors: list[ServiceError] = []
    connection = await asyncpg.connect(database.superuser)
    try:
        async with running_upstream() as upstream, parties_around(nats_server, credentials) as parties:
            process = keys_process(
                database,
                nats_server,
                credentials,
                tmp_path / "keys.log",
                OPENROUTER_URL=upstream.url,
                LOG_FORMAT=log_format,
            )
            async with started(process):
                await parties.connect("alice", CANARY)
                for broken, mended in SABOTAGE:
                    # Asking often is not what is tested here.
                    await connection.execute("DELETE FROM keys.attempts")
                    await connection.execute(broken)
                    failures = await failures_of_everything(parties)
                    assert ErrorCode.INTERNAL in {error.code for error in failures}, broken
                    errors += failures
                    await connection.execute(mended)
                await process.stop()
    finally:
        await connection.close()
    log = process.child.log.read_text()
    assert log.count("Traceback") > len(SABOTAGE)
    said = log + "\n".join(error.body.model_dump_json() for error in errors)
    ring = credentials.master_keys.partition(":")[2]
    secrets = [*forms_of(CANARY), *forms_of(OTHER_CANARY), ring, base64.b64decode(ring).hex()]
    assert [secret for secret in secrets if secret.lower() in said.lower()] == []


# Captured from the bus ------------------------------------------------------------------------------------------------


def sealed_in(messages: list[Msg]) -> Iterator[str]:
    for message in messages:
        try:
            body = json.loads(message.data)
        except ValueError:
            continue
        if isinstance(body, dict) and "sealed" in body:
            yield body["sealed"]


def opens(pair: RecipientKey, sealed: str, context: str) -> str | None:
    try:
        return pair.open(sealed, context).decode()
    except ServiceError:
        return None


async def test_what_is_captured_from_the_bus_opens_at_the_right_instance_alone(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path
) -> None:
    captured: list[Msg] = []

    async def capture(message: Msg) -> None:
        captured.append(message)

    async with running_upstream() as upstream, parties_around(nats_server, credentials) as parties:
        await parties.observer.nc.subscribe(">", cb=capture)
        await parties.observer.nc.flush()
        process = keys_process(database, nats_server, credentials, tmp_path / "keys.log", OPENROUTER_URL=upstream.url)
        async with started(process), create_pool(database.dsn("keys"), service="test", max_size=1) as pool:
            await parties.connect("alice", CANARY)
            await parties.lease("alice")
            await parties.observer.nc.flush()
            recipient = await parties.gateway.call(KEYS_RECIPIENT, Empty())
            stored = await Store(pool).recipient_named(recipient.key_id)
            # Handed over again by somebody who heard it: as another owner, and to another instance.
            first, second = sealed_in(captured)
            for owner, sealed in (("mallory", first), ("mallory", second), ("alice", second)):
                request = ConnectKey(owner=owner, recipient_key_id=recipient.key_id, sealed=sealed)
                with pytest.raises(ServiceError) as refused:
                    await parties.gateway.call(KEYS_CONNECT, request)
                assert refused.value.code is ErrorCode.INVALID
            with pytest.raises(ServiceError) as missing:
                await parties.lease("mallory")
            assert missing.value.code is ErrorCode.KEY_MISSING
    assert stored is not None
    keys_pair = unlock_pair(stored, Keyring.parse(credentials.master_keys))
    handed_in, leased = connect_context("alice"), lease_context("alice", INSTANCE)
    assert (opens(keys_pair, first, handed_in), opens(parties.pair, second, leased)) == (CANARY, CANARY)
    pairs = [keys_pair, parties.pair, RecipientKey.generate(INSTANCE), RecipientKey.generate("executor-2")]
    contexts = [
        handed_in,
        leased,
        connect_context("mallory"),
        lease_context("alice", "executor-2"),
        lease_context("mallory", INSTANCE),
    ]
    opened = [
        (pair.key_id, context)
        for pair in pairs
        for context in contexts
        for sealed in (first, second)
        if opens(pair, sealed, context) is not None
    ]
    assert opened == [(keys_pair.key_id, handed_in), (parties.pair.key_id, leased)]


async def test_a_million_random_bytes_as_a_sealed_key_are_a_typed_error(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path
) -> None:
    process = keys_process(database, nats_server, credentials, tmp_path / "keys.log")
    async with parties_around(nats_server, credentials) as parties, started(process):
        recipient = await parties.gateway.call(KEYS_RECIPIENT, Empty())
        whole = base64.b64encode(os.urandom(1_000_000)).decode()
        # Longer than the contract allows; as long as it allows; and a message that is nothing but those bytes.
        for sealed in (whole, whole[:65_536]):
            request = ConnectKey.model_construct(owner="alice", recipient_key_id=recipient.key_id, sealed=sealed)
            with pytest.raises(ServiceError) as refused:
                await parties.gateway.call(KEYS_CONNECT, request)
            assert refused.value.code is ErrorCode.INVALID
        for rpc, bus in ((KEYS_CONNECT, parties.gateway), (KEYS_LEASE, parties.executor)):
            reply = await bus.nc.request(rpc.subject, os.urandom(1_000_000), timeout=PATIENCE_S)
            assert json.loads(reply.data)["code"] == "invalid"
        assert (await parties.status("alice")).connected is False
    assert whole[:40] not in process.child.log.read_text()


# The process ----------------------------------------------------------------------------------------------------------


async def test_the_master_key_is_in_neither_environment_nor_arguments_of_the_running_process(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path
) -> None:
    ring = f"{master_key('k1')},{master_key('k2')}"
    process = keys_process(database, nats_server, credentials, tmp_path / "keys.log", MASTER_KEYS=ring)
    async with started(process):
        shown = Path(f"/proc/{process.child.pid}")
        try:
            environment = (shown / "environ").read_bytes()
            assert b"NATS_URL=" in environment, "the rest of it is still there"
        except PermissionError:  # what the kernel says to an ordinary user of the same id, as it is meant to
            environment = b""
        for key in ring.split(","):
            assert key.partition(":")[2].encode() not in environment + (shown / "cmdline").read_bytes()
        limit = next(
            line for line in (shown / "limits").read_text().splitlines() if line.startswith("Max core file size")
        )
        assert limit.split()[4:6] == ["0", "0"]


@pytest.mark.parametrize(
    ("module", "runs"),
    [
        ("services.keys.main", "run"),
        ("services.keys.rotate", "asyncio.run"),
        ("services.executor.main", "run"),
        ("services.gateway.main", "run"),
    ],
)
def test_what_holds_keys_denies_dumps_before_it_reads_anything(module: str, runs: str) -> None:
    program = f"""
import ctypes, resource
import {module} as program
def run(_):
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))
program.{runs} = run
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
program.main()
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["1", "0 (0, 0)"]


@pytest.mark.parametrize("name", ["MASTER_KEYS", "master_keys"])
def test_a_forgotten_variable_is_gone_from_what_the_kernel_shows(name: str) -> None:
    program = """
import os
from pathlib import Path
from services.runtime.hardening import forget_variable
shown = Path("/proc/self/environ").read_bytes
assert b"very-secret-text" in shown()
forget_variable("MASTER_KEYS")
forget_variable("MASTER_KEYS")
os.unsetenv("HALF_GONE")
forget_variable("HALF_GONE")
print(b"very-secret-text" in shown(), b"OTHER=stays" in shown(), os.environ.get("MASTER_KEYS"), os.environ["OTHER"])
print("HALF_GONE" in os.environ)
"""
    environment = {**measured(), name: "very-secret-text", "OTHER": "stays", "HALF_GONE": "x"}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "True", "None", "stays", "False"]


def test_a_kernel_that_does_not_deny_dumps_is_no_place_for_secrets() -> None:
    program = """
from services.runtime import hardening
hardening._PR_SET_DUMPABLE = -1  # which no kernel knows
try:
    hardening.deny_dumps()
except OSError as refused:
    print(refused.strerror)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "the kernel does not let this process turn core dumps off\n"
