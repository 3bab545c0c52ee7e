"""Of the whole system as it runs: where secrets are (in the keys service alone), and what a disconnected key means for everything
that was made with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]

from deploy.local.stack import Stack
from tests.e2e.client import KEY_PATH, connected, good, problem
from tests.integration.test_keys_process import forms_of


def processes(stack: Stack) -> Iterator[psutil.Process]:
    """Every process of the stack, the back ends of Postgres among them."""
    for part in stack.parts.values():
        assert part.child.pid is not None
        process = psutil.Process(part.child.pid)
        yield process
        yield from process.children(recursive=True)


def shown_of(process: psutil.Process) -> bytes:
    """What any other process of the same user could read of it in /proc, were it not denied."""
    folder = Path(f"/proc/{process.pid}")
    try:
        return (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # a back end that ended meanwhile
        return b""


async def test_no_process_shows_the_master_key_in_its_arguments_or_environment(stack: Stack) -> None:
    ring = stack.credentials.master_keys
    shown = {f"{process.name()} {process.pid}": shown_of(process) for process in processes(stack)}
    assert len(shown) >= 9
    master_key = ring.partition(":")[2].encode()
    assert [name for name, text in shown.items() if master_key in text or b"MASTER_KEYS=" in text] == []
    keys = psutil.Process(stack.parts["keys"].child.pid)
    assert [process.pid for process in processes(stack) if b"MASTER_KEYS_FILE=" in shown_of(process)] == [keys.pid]


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
            problem(await buyer.execute(name), 409, "key_missing")
            seen += [event async for event in events]
        # The run that had begun is finished and paid for with the key that it had; nothing new begins.
        assert seen[-1].kind == "completed"
        assert len(seen) > 50
        shown = await creator.get(f"/api/resources/{resource['id']}")
        assert shown["status"] == "published"
        assert shown["availability"]["code"] == "key_missing"
        assert shown["availability"]["available"] is False
        page = await creator.get("/api/resources")
        assert [item["availability"]["code"] for item in page["items"]] == ["key_missing"]
        assert (await creator.get(KEY_PATH))["connected"] is False
        assert good(await buyer.http.get(f"/api/listings/{name}"))["owner"] == creator.name

        creator.key = f"{creator.key}-again"
        good(await creator.http.put(KEY_PATH, json={"api_key": creator.key}))
        assert (await creator.get(f"/api/resources/{resource['id']}"))["availability"]["available"] is True
        good(await buyer.execute(name))
