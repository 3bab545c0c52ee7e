"""Who serves a model, asked of an upstream over real HTTP: what is kept and for how long, one question for all who ask, an
upstream that fails, is slow or odd, and what its figures become."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from contracts.errors import ErrorCode, ServiceError
from contracts.providers import ModelProvider, ModelProviders
from deploy.local.ports import HOST, free_port
from services.catalog import serving as module
from services.catalog.models import CatalogModel, parse_model
from services.catalog.serving import FRESH, Serving
from services.catalog.upstream import Upstream
from tests.integration.catalog_parts import entry
from tests.stack import serving, shared_data

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def row(model_id: str = "m/a", **changes: Any) -> CatalogModel:
    parsed = parse_model(entry(model_id, **changes), date(2026, 11, 23))
    assert parsed is not None
    return parsed


def endpoint(name: str = "One", prompt: str = "0.000001", **changes: Any) -> dict[str, Any]:
    pricing = {"prompt": prompt, "completion": "0.000002", "discount": 0}
    return {"provider_name": name, "tag": name.lower(), "pricing": pricing, "status": 0, **changes}


@dataclass
class Asked:
    """Questions to a `Serving` before a server that a test plays, and the time."""

    serving: Serving
    now: datetime = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
    entries: Any = field(default_factory=lambda: [endpoint()])
    answer: Answer | None = None
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.raw_path)
        self.keys.append(request.headers.get("Authorization"))
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response({"data": {"id": "m/a", "endpoints": self.entries}})

    async def of(self, model: CatalogModel | None = None) -> ModelProviders:
        return await self.serving.providers(model or row())

    async def one(self, **changes: Any) -> ModelProvider:
        """The only provider of a model that was not asked about before, when upstream describes it so."""
        self.entries = [endpoint(**changes)]
        return (await self.of(row(f"m/{len(self.paths)}"))).items[0]


@asynccontextmanager
async def asking(key: str | None = None) -> AsyncIterator[Asked]:
    port = free_port()
    upstream = Upstream(f"http://{HOST}:{port}/api/v1", SecretStr(key) if key else None)
    asked = Asked(Serving(upstream, lambda: asked.now))
    app = web.Application()
    app.router.add_get("/{path:.*}", asked.handle)
    async with serving(app, port):
        try:
            yield asked
        finally:
            await asked.serving.close()
            await upstream.close()


async def failing(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "secret detail"}}, status=500)


async def test_an_answer_is_kept_for_a_while_and_then_asked_for_again() -> None:
    async with asking() as asked:
        first = await asked.of()
        asked.entries = []
        asked.now += FRESH - timedelta(seconds=1)
        assert await asked.of() == first
        assert len(asked.paths) == 1
        asked.now += timedelta(seconds=1)
        again = await asked.of()
    assert (len(first.items), again.items, again.stale) == (1, [], False)
    assert again.read_at - first.read_at == FRESH


async def test_everybody_waits_for_the_one_question_and_nobody_takes_it_along() -> None:
    async with asking() as asked:
        going, arrived = asyncio.Event(), asyncio.Event()

        async def held(_: web.Request) -> web.Response:
            arrived.set()
            await going.wait()
            return web.json_response({"data": {"endpoints": [endpoint()]}})

        asked.answer = held
        waiting = [asyncio.create_task(asked.of()) for _ in range(20)]
        await arrived.wait()
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        going.set()
        answers = await asyncio.gather(*waiting[1:])
    assert len(asked.paths) == 1
    assert {len(answer.items) for answer in answers} == {1}


async def test_few_models_are_asked_about_at_once_and_few_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 8)
    async with asking() as asked:
        running: Counter[str] = Counter()

        async def counted(_: web.Request) -> web.Response:
            running["now"] += 1
            running["most"] = max(running["most"], running["now"])
            await asyncio.sleep(0.01)
            running["now"] -= 1
            return web.json_response({"data": {"endpoints": [endpoint()]}})

        asked.answer = counted
        await asyncio.gather(*(asked.of(row(f"m/{number}")) for number in range(12)))
        assert running["most"] == 4
        await asked.of(row("m/11"))
        assert len(asked.paths) == 12
        await asked.of(row("m/0"))
        assert len(asked.paths) == 13


async def test_an_old_answer_is_better_than_none_and_says_so() -> None:
    async with asking() as asked:
        first = await asked.of()
        asked.now += timedelta(hours=3)
        asked.answer = failing
        stale = await asked.of()
        assert (stale.stale, stale.items, stale.read_at) == (True, first.items, first.read_at)
        asked.answer = None
        assert not (await asked.of()).stale


async def test_who_has_an_old_answer_does_not_wait_for_a_slow_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_WITH_STALE_S", 0.05)
    async with asking() as asked:
        await asked.of()
        going = asyncio.Event()

        async def held(_: web.Request) -> web.Response:
            await going.wait()
            return web.json_response({"data": {"endpoints": []}})

        asked.answer = held
        asked.now += FRESH
        assert (await asked.of()).stale
        going.set()
        # The question went on: its answer is there for whoever asks next.
        monkeypatch.setattr(module, "_PATIENCE_WITH_STALE_S", 10)
        assert await asked.of() == ModelProviders(model_id="m/a", items=[], read_at=asked.now)
    assert len(asked.paths) == 2


async def test_an_upstream_that_is_down_or_slow_gives_a_clear_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    async with asking() as asked:

        async def never(_: web.Request) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        asked.answer = never
        with pytest.raises(ServiceError, match="does not say at the moment") as slow:
            await asked.of()
        monkeypatch.setattr(module, "_PATIENCE_S", 10)
        asked.answer = failing
        with pytest.raises(ServiceError) as down:
            await asked.of(row("m/b"))
        # Tried again, as what may pass is.
        assert len(asked.paths) == 4
        for failed in (slow.value.body, down.value.body):
            assert (failed.code, failed.retryable) == (ErrorCode.UPSTREAM, True)
            assert "secret" not in failed.message
        asked.answer = None
        assert (await asked.of(row("m/b"))).items


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b"null", b'{"data": []}', b'{"data": {"endpoints": {}}}', b'{"error": {"code": 500}}'],
)
async def test_an_answer_that_is_none_is_a_failure(body: bytes) -> None:
    async with asking() as asked:

        async def odd(_: web.Request) -> web.Response:
            return web.Response(body=body, content_type="application/json")

        asked.answer = odd
        with pytest.raises(ServiceError) as failed:
            await asked.of()
    assert failed.value.code is ErrorCode.UPSTREAM


async def test_a_model_that_upstream_does_not_know_is_served_by_nobody() -> None:
    async with asking() as asked:

        async def unknown(_: web.Request) -> web.Response:
            return web.json_response({"error": {"message": "Model not found", "code": 404}}, status=404)

        asked.answer = unknown
        assert (await asked.of()).items == []


async def test_ids_keep_their_odd_characters_and_aliases_lead_to_their_model() -> None:
    async with asking() as asked:
        await asked.of(row("a/b:free"))
        await asked.of(row("a/b?c#d%2F../e"))
        led = await asked.of(row("~a/latest", alias_target={"slug": "a/b-2"}))
    assert asked.paths == [
        "/api/v1/models/a/b%3Afree/endpoints",
        "/api/v1/models/a/b%3Fc%23d%252F../e/endpoints",
        "/api/v1/models/a/b-2/endpoints",
    ]
    assert led.model_id == "a/b-2"


async def test_a_key_is_sent_to_nobody_else_and_one_that_is_refused_costs_only_the_figures() -> None:
    async with asking("sk-or-test-catalog") as asked:
        await asked.of()

        async def refusing(request: web.Request) -> web.Response:
            known = "Authorization" not in request.headers
            return web.json_response({"data": {"endpoints": [endpoint()]}}, status=200 if known else 401)

        asked.answer = refusing
        assert (await asked.of(row("m/b"))).items
    assert asked.keys == ["Bearer sk-or-test-catalog", "Bearer sk-or-test-catalog", None]


async def test_those_who_are_well_and_cheap_come_first() -> None:
    async with asking() as asked:
        asked.entries = [
            endpoint("unpriced", pricing={}),
            endpoint("dear", "0.000003"),
            endpoint("troubled", "0.0000001", status=-3),
            endpoint("cheap", "0.000001"),
            endpoint("as cheap", "0.000001"),
            endpoint("runtime", "-1"),
        ]
        found = (await asked.of()).items
    assert [item.name for item in found] == ["cheap", "as cheap", "dear", "unpriced", "runtime", "troubled"]
    assert [item.typical_call_usd for item in found[:3]] == [Decimal("0.002"), Decimal("0.002"), Decimal("0.004")]
    assert [item.pricing.price_kind for item in found[3:5]] == ["unknown", "runtime"]
    assert found[-1].healthy is False


async def test_the_recorded_answer_is_read() -> None:
    recorded = json.loads((shared_data() / "openrouter-responses/model-endpoints.body.json").read_bytes())
    async with asking() as asked:
        asked.entries = recorded["data"]["endpoints"]
        (found,) = (await asked.of(row(recorded["data"]["id"]))).items
    assert (found.name, found.tag, found.quantization) == ("Google AI Studio", "google-ai-studio", None)
    assert (found.context_length, found.max_prompt_tokens, found.max_completion_tokens) == (1_048_576, None, 65_536)
    # 0 that is not said to be free is a price that nobody knows.
    assert (found.pricing.price_kind, found.typical_call_usd, found.discount_percent) == ("unknown", None, None)
    assert (found.healthy, found.implicit_caching) == (True, False)
    assert found.uptime_1d_percent == pytest.approx(99.9116, abs=0.0001)
    assert (found.uptime_30m_percent, found.first_token_ms, found.tokens_per_s) == (None, None, None)


async def test_what_upstream_says_oddly_is_not_known() -> None:
    async with asking() as asked:
        odd = await asked.one(
            quantization=7, context_length="many", status="default", uptime_last_1d=-1, uptime_last_5m=101,
            uptime_last_30m=True, latency_last_30m={"p50": 0}, throughput_last_30m=[1], supported_parameters="all",
            supports_implicit_caching="yes", tag=None, max_completion_tokens=0,
        )  # fmt: skip
        assert odd.model_dump(exclude={"name", "pricing", "typical_call_usd"}, exclude_defaults=True) == {}
        free = (await asked.of(row("m/x:free"))).items[0]
        assert free.name == "One"
        asked.entries = [None, 7, {}, {"provider_name": " "}, {"tag": "only/tag"}]
        assert [item.name for item in (await asked.of(row("m/y"))).items] == ["only/tag"]


async def test_figures_are_exact_and_a_discount_is_no_price() -> None:
    async with asking() as asked:
        pricing = {
            "prompt": "0.00000024",
            "completion": 0.00000084,
            "input_cache_read": "0.00000006",
            "discount": 0.125,
        }
        found = await asked.one(
            pricing=pricing,
            latency_last_30m={"p50": 512, "p75": 730.5, "p90": None},
            throughput_last_30m={"p50": 61.4, "p75": 48, "p90": 31, "p99": 12},
            status=0,
        )
        assert (found.pricing.prompt, found.pricing.completion) == ("0.00000024", "0.00000084")
        assert found.pricing.model_extra == {"input_cache_read": "0.00000006"}
        assert (found.discount_percent, found.typical_call_usd) == (Decimal("12.5"), Decimal("0.00066"))
        assert found.first_token_ms is not None
        assert found.tokens_per_s is not None
        assert (found.first_token_ms.p50, found.first_token_ms.p75, found.first_token_ms.p90) == (512, 730.5, None)
        assert found.tokens_per_s.p99 == 12
        for none in (0, "0", None, -1, 2, "x", True):
            assert (await asked.one(pricing={**pricing, "discount": none})).discount_percent is None
