"""Of the whole system as it runs: where secrets are (in the keys service alone), and what a disconnected key means for everything
that was made with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped,unused-ignore]

from deploy.local.stack import DATABASE, Stack
from tests.e2e.client import KEY_PATH, LONG, Person, connected, good, problem, read_text
from tests.integration.keys.test_keys_process import forms_of
from tests.waiting import until


def processes(stack: Stack) -> Iterator[psutil.Process]:
    """Every process of the stack, the back ends of Postgres among them."""
    for part in stack.parts.values():
        assert part.child.pid is not None
        process = psutil.Process(part.child.pid)
        yield process
        yield from process.children(recursive=True)


def shown_of(process: psutil.Process) -> bytes:
    """What the kernel shows of it to whoever runs the tests. To an ordinary user it denies the environment of services that
    hold keys, as it is meant to."""
    folder = Path(f"/proc/{process.pid}")
    try:
        arguments = (folder / "cmdline").read_bytes()
        return arguments + (folder / "environ").read_bytes()
    except PermissionError:
        return arguments
    except (FileNotFoundError, ProcessLookupError):  # a back end that ended meanwhile
        return b""


async def test_no_process_shows_the_master_key_in_its_arguments_or_environment(stack: Stack) -> None:
    ring = stack.credentials.master_keys
    master_key = ring.partition(":")[2]
    shown = {f"{process.name()} {process.pid}": shown_of(process) for process in processes(stack)}
    assert len(shown) >= 9
    assert [name for name, text in shown.items() if master_key.encode() in text or b"MASTER_KEYS=" in text] == []
    children = {name: part.child for name, part in stack.parts.items()}
    given = {name: [*child.command, *child.env.values()] for name, child in children.items()}
    assert [name for name, texts in given.items() if any(master_key in text for text in texts)] == []
    assert [name for name, child in children.items() if "MASTER_KEYS_FILE" in child.env] == ["keys"]


def files_with(folder: Path, pieces: list[bytes]) -> list[str]:
    """Names of the files below the folder that hold one of these."""
    found = []
    for path in folder.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # recycled meanwhile
            continue
        if any(piece in content for piece in pieces):
            found.append(str(path.relative_to(folder)))
    return sorted(found)


async def test_no_file_of_the_stack_holds_a_connected_key_or_the_master_key(stack: Stack) -> None:
    async with connected(stack, "canary") as person:
        resource = await person.publish()
        await person.result(f"{person.name}/{resource['slug']}")
        await person.ended(await person.enqueue(f"{person.name}/{resource['slug']}"))
        await person.post(f"{KEY_PATH}/test")
        assert person.key is not None
        assert await asyncio.to_thread(files_with, stack.directory, [person.name.encode()]) != [], (
            "what is there is found"
        )
        key = [form.encode() for form in forms_of(person.key)]
        assert await asyncio.to_thread(files_with, stack.directory, key) == []
        master_key = stack.credentials.master_keys.partition(":")[2].encode()
        assert await asyncio.to_thread(files_with, stack.directory, [master_key]) == ["master-keys"]
        assert (stack.directory / "master-keys").stat().st_mode & 0o777 == 0o600


async def test_a_disconnected_key_ends_new_runs_alone_and_shows_at_the_resources(stack: Stack) -> None:
    async with connected(stack, "creator") as creator, connected(stack, "buyer") as buyer:
        resource = await creator.publish(model="sandbox/long")
        name = f"{creator.name}/{resource['slug']}"
        assert (await creator.get(f"/api/resources/{resource['id']}"))["availability"]["available"] is True
        async with buyer.streaming(name) as (_, events):
            seen = [await anext(events), await anext(events)]
            good(await creator.http.delete(KEY_PATH))

            async def refused() -> bool:
                # The lease that an executor holds goes when it hears of it.
                return (await buyer.execute(name)).status_code == 409

            await until(refused)
            problem(await buyer.execute(name), 409, "key_missing")
            seen += [event async for event in events]
        # The run that had begun is finished and paid for with the key that it had; nothing new begins.
        assert seen[-1].kind == "completed"
        assert read_text(seen) == LONG
        shown = await creator.get(f"/api/resources/{resource['id']}")
        assert shown["status"] == "published"
        assert shown["availability"]["code"] == "key_missing"
        assert shown["availability"]["available"] is False
        page = await creator.get("/api/resources")
        assert [item["availability"]["code"] for item in page["items"]] == ["key_missing"]
        assert (await creator.get(KEY_PATH))["connected"] is False
        for seen_by_buyers in (f"/api/listings/{name}", f"/api/resources/{resource['id']}?as=buyer"):
            listing = good(await buyer.http.get(seen_by_buyers))
            assert (listing["owner"], listing["available"]) == (creator.name, False)
            assert "key" not in listing["unavailable_reason"]

        creator.key = f"{creator.key}-again"
        good(await creator.http.put(KEY_PATH, json={"api_key": creator.key}))
        assert (await creator.get(f"/api/resources/{resource['id']}"))["availability"]["available"] is True
        assert good(await buyer.http.get(f"/api/listings/{name}"))["available"] is True
        good(await buyer.execute(name))


async def codes_shown(person: Person) -> set[str | None]:
    """What every answer about a resource says is wanting: the new one, the edited one, the one that is found, listed,
    published and paused."""
    resource = await person.create()
    path = f"/api/resources/{resource['id']}"
    shown = [
        resource,
        good(await person.http.patch(path, json={"description": "another one"})),
        await person.get(path),
        *(await person.get("/api/resources"))["items"],
        await person.post(f"{path}/publish"),
        await person.post(f"{path}/pause"),
    ]
    assert all(one["availability"]["available"] is (one["availability"]["code"] is None) for one in shown)
    return {one["availability"]["code"] for one in shown}


async def test_every_answer_about_a_resource_says_what_its_key_lacks(stack: Stack) -> None:
    async with connected(stack, "creator") as creator:
        assert await codes_shown(creator) == {None}
        connection = await asyncpg.connect(stack.postgres.dsn(DATABASE))
        try:
            await connection.execute(
                "UPDATE keys.user_openrouter_integrations SET health = 'rejected' WHERE owner = $1", creator.name
            )
        finally:
            await connection.close()
        assert await codes_shown(creator) == {"key_rejected"}
        good(await creator.http.delete(KEY_PATH))
        assert await codes_shown(creator) == {"key_missing"}
