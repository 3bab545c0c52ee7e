"""Reading the list over real HTTP: pages in every form, retries, and what must not be followed or believed."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from deploy.local.ports import HOST, free_port
from services.catalog.upstream import Upstream, UpstreamError
from tests.stack import serving

Answer = Callable[[web.Request], web.StreamResponse]


@asynccontextmanager
async def reading(answer: Answer) -> AsyncIterator[Upstream]:
    """An `Upstream` before a server that answers every request so."""
    port = free_port()
    app = web.Application()

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer(request)

    app.router.add_get("/{path:.*}", handle)
    upstream = Upstream(f"http://{HOST}:{port}/api/v1")
    async with serving(app, port):
        try:
            yield upstream
        finally:
            await upstream.close()


def page(ids: range, **envelope: Any) -> web.Response:
    return web.json_response({"data": [{"id": str(number)} for number in ids], **envelope}, headers={"ETag": "tag"})


def read_ids(entries: list[Any] | None) -> list[str]:
    assert entries is not None
    return [entry["id"] for entry in entries]


async def test_the_old_envelope_has_data_only() -> None:
    async with reading(lambda _: page(range(3))) as upstream:
        read = await upstream.read_models(None)
    assert (read_ids(read.entries), read.etag) == (["0", "1", "2"], "tag")


async def test_a_total_larger_than_the_page_is_read_by_offset() -> None:
    def answer(request: web.Request) -> web.Response:
        offset = int(request.query.get("offset", "0"))
        assert request.query["output_modalities"] == "all"
        return page(range(offset, min(offset + 2, 5)), total_count=5)

    async with reading(answer) as upstream:
        read = await upstream.read_models(None)
    assert (read_ids(read.entries), read.etag) == (["0", "1", "2", "3", "4"], None)


async def test_a_total_that_is_never_reached_ends_with_an_empty_page() -> None:
    def answer(request: web.Request) -> web.Response:
        return page(range(0) if "offset" in request.query else range(2), total_count=647)

    async with reading(answer) as upstream:
        assert len((await upstream.read_models(None)).entries or []) == 2


async def test_a_relative_next_page_is_followed_and_one_elsewhere_is_not() -> None:
    def answer(request: web.Request) -> web.Response:
        if "offset" in request.query:
            return page(range(1, 2), links={"next": None})
        return page(range(1), links={"next": "/api/v1/models?offset=1"})

    async with reading(answer) as upstream:
        assert read_ids((await upstream.read_models(None)).entries) == ["0", "1"]
    async with reading(lambda _: page(range(1), links={"next": "http://169.254.169.254/latest"})) as upstream:
        with pytest.raises(UpstreamError, match="another host"):
            await upstream.read_models(None)


async def test_pages_without_end_are_given_up() -> None:
    async with reading(lambda _: page(range(1), links={"next": "/api/v1/models"})) as upstream:
        with pytest.raises(UpstreamError, match="pages"):
            await upstream.read_models(None)


async def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_not() -> None:
    asked: list[str] = []

    def recovering(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=503) if len(asked) < 3 else page(range(1))

    async with reading(recovering) as upstream:
        assert read_ids((await upstream.read_models(None)).entries) == ["0"]
    assert len(asked) == 3
    asked.clear()

    def refusing(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=403, text="secret")

    async with reading(refusing) as upstream:
        with pytest.raises(UpstreamError, match="403"):
            await upstream.read_models(None)
    assert len(asked) == 1


async def test_a_redirect_is_not_followed() -> None:
    async with reading(lambda _: web.Response(status=302, headers={"Location": "http://169.254.169.254/"})) as upstream:
        with pytest.raises(UpstreamError, match="302"):
            await upstream.read_models(None)


async def test_not_modified_without_having_asked_is_a_failure() -> None:
    async with reading(lambda _: web.Response(status=304)) as upstream:
        assert (await upstream.read_models("tag")).entries is None
        with pytest.raises(UpstreamError, match="304"):
            await upstream.read_models(None)


async def test_nobody_there_is_a_failure_with_a_sentence() -> None:
    upstream = Upstream(f"http://{HOST}:{free_port()}/api/v1")
    with pytest.raises(UpstreamError, match="cannot be reached"):
        await upstream.read_models(None)
    await upstream.close()


async def test_ranks_are_places_from_one() -> None:
    async with reading(lambda _: web.json_response({"data": [{"id": "b"}, None, {"id": "a"}]})) as upstream:
        assert await upstream.read_ranks() == {"b": 1, "a": 2}
