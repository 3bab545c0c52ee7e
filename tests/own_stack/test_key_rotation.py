"""A new master key under a running stack: `make rotate-master-key` over ten thousand keys, killed three times, while people
execute and replace their keys."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from deploy.local.stack import DATABASE, Stack
from services.keys.envelope import Envelope, lock, unlock
from services.runtime.sealing import Keyring
from tests.conftest import StackFactory
from tests.e2e.client import KEY_PATH, Person, connected, good
from tests.stack import ROOT
from tests.waiting import until

OWNERS = 10_000
PEOPLE = 4
KILL_AT = (0.8, 0.55, 0.3)


def key_of(number: int) -> str:
    return f"sk-or-test-rotated-{number:06d}"


async def store_keys(stack: Stack, connection: asyncpg.Connection) -> None:
    """The keys of ten thousand owners, as the service would have stored them under the ring of this stack."""
    ring = Keyring.parse(stack.credentials.master_keys)
    rows = []
    for number in range(OWNERS):
        owner = f"owner-{number:06d}"
        envelope = lock(SecretStr(key_of(number)), owner, 1, ring)
        wrapped, encrypted = envelope.wrapped_data_key, envelope.encrypted_key
        rows.append((owner, 1, "test", "sk-or-test-…", envelope.master_key_id, wrapped, encrypted, "ok"))
    columns = ["owner", "version", "mode", "hint", "master_key_id", "wrapped_data_key", "encrypted_key", "health"]
    await connection.copy_records_to_table(
        "user_openrouter_integrations", schema_name="keys", columns=columns, records=rows
    )
    versions = [(owner, version) for owner, version, *_ in rows]
    await connection.copy_records_to_table(
        "key_versions", schema_name="keys", columns=["owner", "version"], records=versions
    )


@dataclass
class Traffic:
    """People who execute without a pause; now and then one of them has a new key first, so that leases are fresh."""

    people: list[tuple[Person, str]]
    done: int = 0
    replaced: int = 0
    failures: list[str] = field(default_factory=list)

    async def go_on(self, number: int) -> None:
        person, resource = self.people[number]
        while True:
            if self.done % 40 == 10 * number:
                await self.replace(person)
            try:
                answer = await person.execute(resource)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                continue
            if answer.status_code != 200:
                self.failures.append(f"{answer.status_code} {answer.text}")
            self.done += 1
            await asyncio.sleep(0.1)

    async def replace(self, person: Person) -> None:
        answer = await person.http.put(KEY_PATH, json={"api_key": f"sk-or-test-again-{self.replaced:08d}"})
        if answer.status_code == 429:  # changed often enough for now
            return
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code} {answer.text}")
        self.replaced += 1


@asynccontextmanager
async def traffic_on(stack: Stack) -> AsyncIterator[Traffic]:
    async with AsyncExitStack() as cleanup:
        people = []
        for number in range(PEOPLE):
            person = await cleanup.enter_async_context(connected(stack, f"creator-{number}"))
            resource = await person.publish()
            people.append((person, f"{person.name}/{resource['slug']}"))
        traffic = Traffic(people)
        loops = [asyncio.create_task(traffic.go_on(number)) for number in range(PEOPLE)]
        try:
            yield traffic
        finally:
            for loop in loops:
                loop.cancel()
            ended = await asyncio.gather(*loops, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


class Terminal:
    """The command of `make rotate-master-key` and its siblings, as in a second terminal."""

    def __init__(self, stack: Stack, output: Path) -> None:
        self._environment = {**os.environ, "LOCAL_DIR": str(stack.directory)}
        self._output = output

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "deploy.local", *arguments]
        with self._output.open("ab") as output:
            return subprocess.Popen(
                command,
                env=self._environment,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def run(self, *arguments: str) -> tuple[int, str]:
        """The exit code and what was printed."""
        begin = self._output.stat().st_size if self._output.exists() else 0
        code = await asyncio.to_thread(self.start(*arguments).wait, 60)
        return code, self._output.read_bytes()[begin:].decode()


async def share_under(connection: asyncpg.Connection, master_key_id: str) -> float:
    count = await connection.fetchval(
        "SELECT count(*) FROM keys.user_openrouter_integrations WHERE master_key_id = $1", master_key_id
    )
    return float(count / OWNERS)


async def kill_rotation_at(terminal: Terminal, connection: asyncpg.Connection, share: float) -> None:
    """Start the rotation and kill -9 all of it once only this share of the keys is under the old master key."""
    rotation = terminal.start("rotate-master-key")
    try:
        async with asyncio.timeout(60):
            while await share_under(connection, "k1") > share:
                assert rotation.poll() is None, "it ended before it could be killed"
                await asyncio.sleep(0.02)
    finally:
        os.killpg(rotation.pid, signal.SIGKILL)
        await asyncio.to_thread(rotation.wait, 10)
    assert 0 < await share_under(connection, "k1") <= share


async def assert_every_key_opens(connection: asyncpg.Connection, ring: Keyring) -> None:
    rows = await connection.fetch(
        """SELECT owner, version, master_key_id, wrapped_data_key, encrypted_key
           FROM keys.user_openrouter_integrations WHERE owner LIKE 'owner-%' ORDER BY owner"""
    )
    assert len(rows) == OWNERS
    for number, row in enumerate(rows):
        envelope = Envelope(row["version"], row["master_key_id"], row["wrapped_data_key"], row["encrypted_key"])
        assert unlock(envelope, row["owner"], ring).get_secret_value() == key_of(number)


async def keys_metric(stack: Stack, name: str) -> dict[str, float]:
    """All samples of a metric of the keys service."""
    port = stack.parts["keys"].metrics_url  # type: ignore[attr-defined]
    async with httpx.AsyncClient() as http:
        lines = (await http.get(port)).text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(name)}


async def test_rotation_ends_with_every_key_under_the_new_master_key_when_it_was_killed_three_times(
    stack_factory: StackFactory, tmp_path: Path
) -> None:
    sandbox = {"SANDBOX_FIRST_TOKEN_MS": "20", "SANDBOX_TOKENS_PER_S": "1000"}
    async with stack_factory(settings={"sandbox": sandbox}) as stack:
        terminal = Terminal(stack, tmp_path / "terminal.txt")
        connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
        try:
            await store_keys(stack, connection)
            old_ring = Keyring.parse(stack.credentials.master_keys)
            async with traffic_on(stack) as traffic:
                for share in KILL_AT:
                    await kill_rotation_at(terminal, connection, share)
                code, said = await terminal.run("rotate-master-key")
                assert code == 0, said
                done, replaced = traffic.done, traffic.replaced
            assert traffic.failures == []
            assert done > 20
            assert replaced >= 3
            await assert_rotated(stack, terminal, connection, said, old_ring)
        finally:
            await connection.close()


async def assert_rotated(
    stack: Stack, terminal: Terminal, connection: asyncpg.Connection, said: str, old_ring: Keyring
) -> None:
    """Nothing needs the former master key: everything opens with the new one alone, also for a service that restarts."""
    assert re.search(r"^(\d+) of \1 keys under the new master key", said, re.MULTILINE)
    assert "nothing needs another master key than k2" in said
    assert stack.credentials.master_keys.startswith("k2:")
    assert "," not in stack.credentials.master_keys
    assert await share_under(connection, "k1") == 0
    assert await connection.fetchval("SELECT array_agg(DISTINCT master_key_id) FROM keys.recipients") == ["k2"]
    await assert_every_key_opens(connection, Keyring.parse(stack.credentials.master_keys))
    with pytest.raises(Exception, match="k2"):
        await assert_every_key_opens(connection, old_ring)
    assert (await terminal.run("master-key-in-use", "k1"))[0] == 0
    assert (await terminal.run("master-key-in-use", "k2"))[0] == 1
    code, said = await terminal.run("verify-access-log")
    assert (code, "0 broken" in said) == (0, True), said
    await stack.parts["keys"].stop()
    await stack.parts["keys"].start()

    async def nothing_is_under_the_old_one() -> bool:
        # It is counted a moment after the start.
        return set((await keys_metric(stack, "x402jobs_keys_under_old_master_key")).values()) == {0.0}

    await until(nothing_is_under_the_old_one)
    async with connected(stack, "afterwards") as person:
        resource = await person.publish()
        good(await person.execute(f"{person.name}/{resource['slug']}"))
