"""Keys as a whole system handles them: two keys services, two executors, people over HTTP, and the sandbox as OpenRouter."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest_asyncio

from deploy.local.stack import Stack
from tests.conftest import StackFactory
from tests.e2e.client import KEY_PATH, Person, at_gateway, connected, good, problem, signed_in
from tests.waiting import until


@pytest_asyncio.fixture(scope="module")
async def custody(stack_factory: StackFactory) -> AsyncIterator[Stack]:
    sandbox = {"SANDBOX_FIRST_TOKEN_MS": "20", "SANDBOX_TOKENS_PER_S": "1000"}
    settings = {"sandbox": sandbox, "executor": {"RUNNING_PER_KEY": "50"}}
    async with stack_factory(keys=2, executors=2, gateways=2, settings=settings) as stack:
        yield stack


async def agree(authorize_url: str) -> dict[str, str]:
    """The browser's part: the code and the state that it comes back with."""
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(authorize_url)
    assert answer.status_code == 302
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    return {"code": query["code"][0], "state": query["state"][0]}


async def test_no_run_fails_while_the_key_is_replaced_again_and_again(custody: Stack) -> None:
    async with connected(custody, "creator") as creator, at_gateway(creator, 1) as elsewhere:
        resource = await creator.publish()
        failures: list[str] = []
        runs, stop = 0, asyncio.Event()

        async def keep_running(person: Person) -> None:
            nonlocal runs
            while not stop.is_set():
                answer = await person.execute(resource["id"])
                runs += 1
                if answer.status_code != 200:
                    failures.append(answer.text)

        running = [asyncio.create_task(keep_running(person)) for person in (creator, elsewhere) for _ in range(4)]
        keys = [f"sk-or-test-{uuid4().int}" for _ in range(12)]
        for number, key in enumerate(keys, start=2):
            status = good(await creator.http.put(KEY_PATH, json={"api_key": key}))
            assert (status["version"], status["hint"][-4:]) == (number, key[-4:])
            await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*running)
        assert failures == []
        assert runs > 100
        # What runs now runs with the last one.
        creator.key = keys[-1]
        before = len(await creator.upstream_calls())
        await creator.result(resource["id"])
        assert len(await creator.upstream_calls()) == before + 1


async def test_no_run_fails_while_the_keys_services_restart_one_after_the_other(custody: Stack) -> None:
    async with connected(custody, "creator") as creator:
        resource = await creator.publish()
        stop = asyncio.Event()

        async def keep_running() -> int:
            runs = 0
            while not stop.is_set():
                await creator.result(resource["id"])
                # A replaced key makes executors ask for a lease again, whichever keys service is up.
                good(await creator.http.put(KEY_PATH, json={"api_key": f"sk-or-test-{uuid4().int}"}))
                runs += 1
                await asyncio.sleep(0.2)
            return runs

        running = asyncio.create_task(keep_running())
        for name in ("keys", "keys-2"):
            await custody.parts[name].stop()
            await asyncio.sleep(0.5)
            await custody.parts[name].start()
        stop.set()
        assert await running > 3


async def test_oauth_connects_a_key_over_http_across_restarts(custody: Stack) -> None:
    async with signed_in(custody, "newcomer") as newcomer, at_gateway(newcomer, 1) as elsewhere:
        body = {"callback_url": "http://localhost:8403/openrouter/callback"}
        begun = await newcomer.post(f"{KEY_PATH}/oauth/begin", body)
        back = await agree(begun["authorize_url"])
        for name in ("keys", "keys-2", "gateway"):
            await custody.parts[name].stop()
            await custody.parts[name].start()
        status = await elsewhere.post(f"{KEY_PATH}/oauth/complete", back)
        assert (status["connected"], status["mode"], status["health"]) == (True, "test", "ok")
        assert status["credits_remaining_usd"] == "100"
        resource = await elsewhere.publish()
        assert (await elsewhere.result(resource["id"]))["status"] == "succeeded"
        problem(await elsewhere.http.post(f"{KEY_PATH}/oauth/complete", json=back), 404, "not_found")


async def test_oauth_of_somebody_else_binds_nothing(custody: Stack) -> None:
    async with signed_in(custody, "mallory") as mallory, signed_in(custody, "victim") as victim:
        body = {"callback_url": "http://localhost:8403/openrouter/callback"}
        back = await agree((await mallory.post(f"{KEY_PATH}/oauth/begin", body))["authorize_url"])
        problem(await victim.http.post(f"{KEY_PATH}/oauth/complete", json=back), 404, "not_found")
        assert (await victim.get(KEY_PATH))["connected"] is False
        foreign = {"callback_url": "https://evil.example.com/"}
        problem(await mallory.http.post(f"{KEY_PATH}/oauth/begin", json=foreign), 422, "invalid")


async def test_a_refused_run_is_looked_into_and_shows_in_the_health(custody: Stack) -> None:
    async with connected(custody, "creator") as creator:
        resource = await creator.create(model="sandbox/status-403-limit")
        problem(await creator.execute(resource["id"]), 409, "spend_limit")

        async def exhausted() -> bool:
            return bool((await creator.get(KEY_PATH))["health"] == "exhausted")

        async def refused_again() -> bool | None:
            # The first refusals may come within seconds of the connect, which asked upstream itself.
            await creator.execute(resource["id"])
            return await exhausted() or None

        await until(refused_again, 40)
        # An exhausted key still runs what costs nothing, and a test that finds it well says so.
        echo = await creator.publish()
        assert (await creator.result(echo["id"]))["status"] == "succeeded"
        assert (await creator.post(f"{KEY_PATH}/test"))["health"] == "ok"


async def test_the_access_log_tells_the_whole_life_of_a_key(custody: Stack) -> None:
    async with connected(custody, "creator") as creator:
        resource = await creator.publish()
        await creator.result(resource["id"])
        good(await creator.http.put(KEY_PATH, json={"api_key": f"sk-or-test-{uuid4().int}"}))
        problem(await creator.http.put(KEY_PATH, json={"api_key": "sk-or-test-dead-one"}), 422, "key_rejected")
        await creator.post(f"{KEY_PATH}/test")
        good(await creator.http.delete(KEY_PATH))
        page = await creator.get(f"{KEY_PATH}/access")
        told = [(entry["action"], entry["result"]) for entry in reversed(page["items"])]
        assert [entry for entry in told if entry != ("lease", "granted")] == [
            ("connect", "done"), ("replace", "done"), ("replace", "refused"), ("verify", "ok"), ("disconnect", "done")
        ]  # fmt: skip
        leases = [entry for entry in page["items"] if entry["action"] == "lease"]
        assert leases
        assert all(entry["instance"].startswith("executor") for entry in leases)
        first = await creator.get(f"{KEY_PATH}/access", limit=2)
        rest = await creator.get(f"{KEY_PATH}/access", limit=200, cursor=first["next_cursor"])
        assert first["items"] + rest["items"] == page["items"]
        assert first["total"] == len(page["items"])
