"""The parts of the local stack on their own: servers that lose nothing when killed, migrations that may run again, and no process
left behind however the stack ends."""

import asyncio
import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import asyncpg
import nats
import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from deploy.local import custody
from deploy.local.credentials import Credentials, load_credentials
from deploy.local.migrate import migrate, services_with_migrations
from deploy.local.nats import Nats
from deploy.local.ports import free_port
from deploy.local.postgres import Postgres
from deploy.local.process import Child, ProcessError, inherited_environment
from deploy.local.service import Sandbox
from deploy.local.settings import settings_from
from deploy.local.stack import Stack
from deploy.local.terminal import LogFollower
from deploy.local.tokens import sign_token
from tests.stack import ROOT, Database
from tests.waiting import lives, until


async def query(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def unprotected_nats(directory: Path) -> Nats:
    return Nats(directory, port=free_port(), store_key="a-test-key", authorization="")


@pytest.fixture
def own_postgres(tmp_path: Path) -> Postgres:
    return Postgres(tmp_path, port=free_port(), password="a-test-password")


# Postgres --------------------------------------------------------------------------------------------------------------


async def test_postgres_keeps_committed_rows_when_killed(own_postgres: Postgres) -> None:
    await own_postgres.start()
    try:
        dsn = own_postgres.dsn("postgres")
        assert str(await query(dsn, "SHOW server_version")).startswith("18.")
        assert await query(dsn, "SHOW fsync") == "on"
        await query(dsn, "CREATE TABLE kept AS SELECT 7 AS number")
        family = psutil.Process(own_postgres.child.pid).children()
        await own_postgres.kill()
        await until(lambda: not any(map(lives, family)))
        await own_postgres.start()
        assert await query(dsn, "SELECT number FROM kept") == 7
    finally:
        await own_postgres.stop()
    assert own_postgres.child.exit_code == 0


async def test_postgres_starts_when_its_stale_pid_file_names_another_program(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    await own_postgres.start()
    await own_postgres.stop()
    pid_file = tmp_path / "postgres" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{tmp_path / 'postgres'}\n1700000000\n5432\n\n127.0.0.1\n  1 1\nready\n")
    await own_postgres.start()
    await own_postgres.stop()
    assert not pid_file.exists()


async def test_postgres_starts_when_an_earlier_initdb_was_interrupted(own_postgres: Postgres, tmp_path: Path) -> None:
    draft = tmp_path / "postgres.new"
    draft.mkdir()
    (draft / "PG_VERSION").write_text("18\n")
    await own_postgres.start()
    await own_postgres.stop()
    assert not draft.exists()


async def test_postgres_starts_below_a_private_folder(tmp_path: Path) -> None:
    private = tmp_path / "home"
    (private / "project").mkdir(parents=True)
    private.chmod(0o700)
    server = Postgres(private / "project", port=free_port(), password="a-test-password")
    await server.start()
    await server.stop()
    assert server.child.exit_code == 0
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


async def test_postgres_refuses_a_wrong_password(postgres: Postgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn("postgres", role="postgres", password="wrong"))


async def test_postgres_error_quotes_the_log_when_it_cannot_start(own_postgres: Postgres) -> None:
    with (
        socket.create_server(("127.0.0.1", own_postgres.port)),
        pytest.raises(ProcessError, match="Address already in use"),
    ):
        await own_postgres.start()
    assert not own_postgres.child.running


# NATS ------------------------------------------------------------------------------------------------------------------


def stored_bytes(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.rglob("*.blk"))


async def test_nats_keeps_stored_messages_when_killed_and_clients_find_it_again(tmp_path: Path) -> None:
    server = unprotected_nats(tmp_path)
    await server.start()
    client: Client | None = None
    try:
        client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=ignore)
        stream = client.jetstream()
        await stream.add_stream(name="KEPT", subjects=["kept"])
        await stream.publish("kept", b"in-the-clear-marker")
        await server.kill()
        on_disk = stored_bytes(tmp_path)
        assert on_disk
        assert b"in-the-clear-marker" not in on_disk
        await server.start()
        await until(lambda: client is not None and client.is_connected)
        assert (await stream.get_msg("KEPT", 1)).data == b"in-the-clear-marker"
        assert client.max_payload == 8 * 1024 * 1024
    finally:
        if client is not None:
            await client.close()
        await server.stop()


async def ignore(error: Exception) -> None:
    """Being disconnected is what the test is about."""


async def test_nats_lets_nobody_in_without_a_user_and_only_the_executor_ask_for_a_lease(
    nats_server: Nats, credentials: Credentials
) -> None:
    stranger = Client()
    with pytest.raises(NatsError, match="Authorization"):
        await stranger.connect(nats_server.url, allow_reconnect=False, error_cb=ignore)
    await stranger.close()
    refused: list[str] = []
    for user in ("executor", "gateway"):

        async def note(error: Exception, user: str = user) -> None:
            refused.append(f"{user}: {error}".lower())

        client = await nats.connect(
            nats_server.url,
            user=user,
            password=credentials.nats_password(user),
            inbox_prefix=f"_INBOX.{user}".encode(),
            error_cb=note,
        )
        try:
            await client.publish("x402jobs.v1.keys.lease", b"{}")
            await client.flush()
            if user == "gateway":
                await until(lambda: bool(refused))
        finally:
            await client.close()
    assert len(refused) == 1
    assert refused[0].startswith("gateway: nats: permissions violation")


async def test_nats_configuration_and_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    unprotected_nats(tmp_path)
    assert load_credentials(tmp_path).nats_password("gateway")
    assert load_credentials(tmp_path).master_keys_file == tmp_path / "master-keys"
    for name in ("nats.conf", "secrets.json", "master-keys"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_master_keys_of_a_former_version_move_to_a_file_of_their_own(tmp_path: Path) -> None:
    values = {"master_keys": "k1:of-before", "jwt_secret": "stays"}
    (tmp_path / "secrets.json").write_text(json.dumps({"values": values, "nats": {}, "postgres": {}}))
    assert load_credentials(tmp_path).master_keys == "k1:of-before"
    assert (tmp_path / "master-keys").read_text() == "k1:of-before"
    assert json.loads((tmp_path / "secrets.json").read_text())["values"] == {"jwt_secret": "stays"}
    assert load_credentials(tmp_path).master_keys == "k1:of-before"


def test_custody_verbs_say_so_when_no_stack_runs(tmp_path: Path) -> None:
    for verb in (
        custody.rotate_master_key,
        custody.verify_access_log,
        lambda directory: custody.master_key_in_use(directory, "k1"),
    ):
        with pytest.raises(RuntimeError, match="no stack runs in"):
            verb(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Databases -------------------------------------------------------------------------------------------------------------


async def test_migrations_change_nothing_when_run_again(database: Database) -> None:
    services = services_with_migrations()

    async def versions() -> list[object]:
        return [
            await query(
                database.superuser, f"SELECT array_agg(version ORDER BY version) FROM {service}.schema_migrations"
            )
            for service in services
        ]

    before = await versions()
    await migrate(database.superuser)
    assert await versions() == before
    assert all(before)


async def test_database_of_a_test_does_not_see_another_one(database: Database, template_database: Database) -> None:
    await query(database.superuser, "CREATE TABLE only_here AS SELECT 1 AS number")
    assert await query(database.superuser, "SELECT current_database()") == database.name
    names = await query(template_database.server.dsn("postgres"), "SELECT array_agg(datname::text) FROM pg_database")
    assert isinstance(names, list)
    assert {database.name, template_database.name} <= set(names)


# Credentials, settings, tokens -----------------------------------------------------------------------------------------


def test_credentials_are_the_same_when_loaded_again(tmp_path: Path) -> None:
    first = load_credentials(tmp_path)
    drawn = [first.master_keys, first.jwt_secret, first.nats_password("keys"), first.postgres_password("x402_keys")]
    again = load_credentials(tmp_path)
    assert [
        again.master_keys,
        again.jwt_secret,
        again.nats_password("keys"),
        again.postgres_password("x402_keys"),
    ] == drawn
    assert len(set(drawn)) == len(drawn)


def test_credentials_are_refused_when_data_is_left_of_lost_ones(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(RuntimeError, match=r"secrets\.json is missing"):
        load_credentials(tmp_path)


def test_settings_go_to_their_service_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    caller = {"RUNNING_PER_KEY": "50", "LOG_LEVEL": "debug", "SANDBOX_CATALOG": "models.json", "MASTER_KEYS": "stray"}
    settings = settings_from({**caller, "CATALOG": "live"})
    assert settings["executor"] == {"RUNNING_PER_KEY": "50", "LOG_LEVEL": "debug"}
    assert settings["sandbox"] == {"LOG_LEVEL": "debug", "SANDBOX_CATALOG": str(tmp_path / "models.json")}
    assert settings["keys"] == {"LOG_LEVEL": "debug"}
    assert settings["catalog"]["CATALOG_UPSTREAM_URL"].startswith("https://openrouter.ai/")
    with pytest.raises(ValueError, match="CATALOG"):
        settings_from({"CATALOG": "somewhere"})


def test_log_follower_shows_only_new_warnings(tmp_path: Path) -> None:
    log = tmp_path / "keys.log"
    log.write_text("2026 [error    ] old\n")
    follower = LogFollower(tmp_path)
    with log.open("a") as file:
        file.write("2026 [\x1b[33mwarning  \x1b[0m] slow\n2026 [info     ] fine\n2026 [error    ] half a li")
    assert follower.serious_lines() == ["keys: 2026 [warning  ] slow"]
    with log.open("a") as file:
        file.write("ne\n")
    assert follower.serious_lines() == ["keys: 2026 [error    ] half a line"]


# Processes -------------------------------------------------------------------------------------------------------------


async def test_child_is_killed_with_what_it_started_when_it_ignores_the_signal(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo ready; while true; do sleep 600; done"
    child = Child("stubborn", ["sh", "-c", script], env=inherited_environment(), log=tmp_path / "s.log", cwd=tmp_path)
    child.start()
    await until(lambda: "ready" in child.tail())
    await until(lambda: len(psutil.Process(child.pid).children()) == 2)
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children()]
    await child.stop(grace_s=0.2)
    await until(lambda: not any(map(lives, family)))
    assert not child.died


async def test_child_that_ends_by_itself_is_noticed_with_its_last_words(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no such luck; exit 3"]
    child = Child("unlucky", command, env=inherited_environment(), log=tmp_path / "u.log", cwd=tmp_path)
    child.start()
    await until(lambda: child.died)
    with pytest.raises(ProcessError, match=r"(?s)unlucky ended with exit code 3.*no such luck"):
        child.check()


async def test_sandbox_has_the_same_address_when_it_was_killed_and_started_again(tmp_path: Path) -> None:
    env = {**inherited_environment(), "SANDBOX_PORT": str(free_port())}
    command = [sys.executable, "-m", "deploy.sandbox"]
    sandbox = Sandbox(Child("sandbox", command, env=env, log=tmp_path / "sandbox.log", cwd=ROOT))
    await sandbox.start()
    try:
        first = sandbox.url
        await sandbox.kill()
        await sandbox.start()
        assert sandbox.url == first == f"http://127.0.0.1:{env['SANDBOX_PORT']}/api/v1"
        async with aiohttp.ClientSession() as session, session.get(f"{first}/models") as answer:
            assert answer.status == 200
    finally:
        await sandbox.stop()


RUN_SERVERS = """
import asyncio, sys
from pathlib import Path
from deploy.local.nats import Nats
from deploy.local.ports import free_port
from deploy.local.postgres import Postgres
async def run():
    directory = Path(sys.argv[1])
    nats = Nats(directory, port=free_port(), store_key="a-test-key", authorization="")
    postgres = Postgres(directory, port=free_port(), password="a-test-password")
    await nats.start()
    await postgres.start()
    print(nats.child.pid, postgres.child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(run())
"""


def run_servers(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN_SERVERS, str(directory)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


async def test_nothing_survives_kill_9_of_the_stack_and_the_next_start_succeeds(tmp_path: Path) -> None:
    for _ in range(2):
        with run_servers(tmp_path) as runner:
            assert runner.stdout is not None
            line = await asyncio.to_thread(runner.stdout.readline)
            servers = [psutil.Process(int(pid)) for pid in line.split()]
            family = servers + [child for server in servers for child in server.children(recursive=True)]
            runner.send_signal(signal.SIGKILL)
        assert len(family) > len(servers) == 2
        # The second round starts at once, while the first one's Postgres may still be shutting down.
    await until(lambda: not any(map(lives, family)))


PICK_FROM = """
import itertools, random, sys
from deploy.local.ports import free_port, next_free_port
first = int(sys.argv[1])
candidates = itertools.count(first)
random.randrange = lambda *_: next(candidates)
print(next_free_port(first - 1), free_port())
"""


def test_port_is_given_to_one_process_alone_before_anybody_listens() -> None:
    port = free_port()
    said = subprocess.check_output([sys.executable, "-c", PICK_FROM, str(port)], cwd=ROOT, text=True)
    picked = [int(each) for each in said.split()]
    assert len({port, *picked}) == 3


async def test_two_stacks_run_their_servers_side_by_side(tmp_path: Path) -> None:
    servers: list[Nats | Postgres] = []
    for name in ("one", "two"):
        directory = tmp_path / name
        servers += [unprotected_nats(directory), Postgres(directory, port=free_port(), password=name)]
    try:
        for server in servers:
            await server.start()
        assert len({server.port for server in servers}) == 4
        assert all(server.child.running for server in servers)
    finally:
        for server in servers:
            await server.stop()
    assert not any(server.child.running for server in servers)


async def test_second_stack_in_one_folder_is_refused(tmp_path: Path) -> None:
    first = Stack(tmp_path)
    with pytest.raises(RuntimeError, match="LOCAL_DIR"):
        Stack(tmp_path)
    await first.stop()
    await Stack(tmp_path).stop()


@pytest.mark.parametrize("part", ["gateway", "console"])
async def test_stack_names_the_variable_when_its_port_is_taken(tmp_path: Path, part: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError, match=f"{part.upper()}_PORT"):
        Stack(tmp_path, **{f"{part}_port": taken.getsockname()[1]})


def test_token_command_prints_a_token_of_the_stack_in_local_dir(tmp_path: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.local", "token", "--user", "alice", "--admin"]
        env = {**inherited_environment(), "LOCAL_DIR": str(tmp_path)}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    refused = run()
    assert refused.returncode == 1
    assert "make run" in refused.stderr
    secret = load_credentials(tmp_path).jwt_secret
    header = sign_token(secret, "alice", admin=True).split(".")[0]
    printed = run().stdout.strip()
    assert printed.startswith(header)
    claims = json.loads(base64.urlsafe_b64decode(printed.split(".")[1] + "=="))
    assert claims["sub"] == "alice"
    assert claims["role"] == "admin"
    assert 29 * 86_400 < claims["exp"] - time.time() <= 30 * 86_400
