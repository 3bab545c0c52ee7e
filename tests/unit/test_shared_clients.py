"""What upstream sets as a cookie in the answer to one key never goes out with another: clients are shared, jars are not kept."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import SecretStr

from contracts.catalog import Timeouts
from services.executor.upstream import Deadlines, Upstream
from services.keys.verify import Verifier

Call = Callable[[str, str], Awaitable[None]]


class Setter:
    """An upstream that gives everybody a cookie, and notes which ones come back."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.heard.append(request.headers.get("Cookie"))
        response = web.json_response({"data": {"label": "x", "limit": None}})
        response.set_cookie("__cf_bm", request.headers["Authorization"][-4:])
        return response


@pytest_asyncio.fixture
async def setter() -> AsyncIterator[tuple[Setter, str]]:
    """It and its address, by name: jars leave addresses of digits out of the game."""
    upstream = Setter()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield upstream, f"http://localhost:{runner.addresses[0][1]}/api/v1"
    await runner.cleanup()


async def run(url: str, key: str, upstream: Upstream) -> None:
    deadlines = Deadlines(Timeouts(first_token_s=5, idle_s=5, total_s=5), asyncio.get_running_loop().time())
    async with upstream.open("live", key, {"model": "a/b"}, deadlines) as call:
        while await call.next() is not None:
            pass
    await upstream.lookup_generation("live", key, "gen-1")


async def verify(url: str, key: str, verifier: Verifier) -> None:
    await verifier.ask(SecretStr(key))


@pytest.mark.parametrize("kind", ["runs", "keys"])
async def test_cookies_of_one_key_are_not_sent_with_another(setter: tuple[Setter, str], kind: str) -> None:
    upstream, url = setter
    client = Upstream(url, None) if kind == "runs" else Verifier(url, None)
    for key in ("sk-or-v1-aaaa", "sk-or-v1-bbbb"):
        if isinstance(client, Upstream):
            await run(url, key, client)
        else:
            await verify(url, key, client)
    await client.close()
    assert len(upstream.heard) >= 2
    assert set(upstream.heard) == {None}
