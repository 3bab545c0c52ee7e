"""The routes of the stand-in: catalog, key, credits, generations, OAuth, and the ledger that tests read."""

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
from aiohttp import web

from deploy.sandbox import errors
from deploy.sandbox.catalog import MODALITIES, Catalog, Model, made_up
from deploy.sandbox.chat import Chat, Key, Replay, read_key, refusal_response
from deploy.sandbox.endpoints import with_endpoints
from deploy.sandbox.errors import Refusal
from deploy.sandbox.ledger import Call, Ledger
from deploy.sandbox.modes import MODES, STATUSES
from deploy.sandbox.oauth import OAuth
from deploy.sandbox.recordings import Recording, load_recordings
from deploy.sandbox.wire import number

MAX_BODY_BYTES = 128 * 1024 * 1024
CLOSE_TIMEOUT_S = 0.2
DEFAULT_PAGE = 500
MAX_PAGE = 1000
KEPT_LISTINGS = 64
CACHE_CONTROL = "public, max-age=300, stale-while-revalidate=3600, stale-if-error=3600"
WORKSPACE = "00000000-0000-0000-0000-000000000000"
SORTS = frozenset(
    {
        "most-popular",
        "newest",
        "top-weekly",
        "pricing-low-to-high",
        "pricing-high-to-low",
        "context-high-to-low",
        "throughput-high-to-low",
        "latency-low-to-high",
        "intelligence-high-to-low",
        "coding-high-to-low",
        "agentic-high-to-low",
        "design-arena-elo-high-to-low",
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the models come from and how fast ordinary ones are; paths are None for the built-in models alone."""

    catalog: Path | None = None
    recordings: Path | None = None
    tokens_per_s: float = 0.0
    first_token_s: float = 0.0


def build(settings: Settings) -> web.Application:
    """The application, with nothing started."""
    recordings = load_recordings(settings.recordings) if settings.recordings else {}
    extra = [
        made_up(f"sandbox/{mode}", f"Sandbox: {mode}", text, age) for age, (mode, text) in enumerate(MODES.items())
    ]
    for age, (case, recording) in enumerate(recordings.items(), len(extra)):
        text = f"Replays the recorded answer {case}, status {recording.status}."
        extra.append(made_up(f"recorded/{case}", f"Recorded: {case}", text, age))
    catalog, ledger = Catalog(settings.catalog, extra), Ledger()
    chat = Chat(catalog, recordings, ledger, settings.first_token_s, settings.tokens_per_s)
    api = _Api(catalog, recordings, ledger)
    oauth = OAuth()
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/api/v1/chat/completions", chat.handle)
    app.router.add_get("/api/v1/models", api.models)
    app.router.add_get("/api/v1/model/{author}/{slug}", api.model)
    app.router.add_get("/api/v1/models/{author}/{slug}/endpoints", api.endpoints)
    app.router.add_get("/api/v1/key", api.key)
    app.router.add_get("/api/v1/credits", api.credits)
    app.router.add_get("/api/v1/generation", api.generation)
    app.router.add_get("/auth", oauth.page)
    app.router.add_post("/api/v1/auth/keys", oauth.exchange)
    app.router.add_get("/sandbox/calls", api.calls)
    app.router.add_post("/sandbox/reset", api.reset)
    app.on_response_prepare.append(_trim_headers)
    return app


@asynccontextmanager
async def running(settings: Settings, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The stand-in, listening at the URL that is given out (without `/api/v1`); calls that still run at the end are cut."""
    runner = web.AppRunner(
        build(settings), access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_TIMEOUT_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _trim_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop("Server", None)
    if isinstance(response, Replay) and not response.stated_type:
        # aiohttp fills in a type where there is none.
        response.headers.pop("Content-Type", None)


def _json(document: Any, cache_control: str = "no-store") -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": cache_control}
    return web.Response(body=orjson.dumps(document), headers=headers)


class _Api:
    """The handlers beside chat."""

    def __init__(self, catalog: Catalog, recordings: dict[str, Recording], ledger: Ledger) -> None:
        self.catalog = catalog
        self.ledger = ledger
        self.recorded = {
            generation_id: recording
            for recording in sorted(recordings.values(), key=lambda recording: recording.bill is not None)
            for generation_id in recording.generation_ids
        }
        self._listings: dict[str, tuple[int, bytes, str]] = {}

    async def models(self, request: web.Request) -> web.Response:
        """GET /models: filtered by output, sorted, paged, with an ETag."""
        self.catalog.refresh()
        version, body, etag = self._listings.get(request.query_string, (0, b"", ""))
        if version != self.catalog.version:
            page = self._page(request)
            if isinstance(page, Refusal):
                return refusal_response(page)
            body = orjson.dumps(page)
            etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
            if len(self._listings) >= KEPT_LISTINGS:
                self._listings.clear()
            self._listings[request.query_string] = (self.catalog.version, body, etag)
        headers = {"ETag": etag, "Cache-Control": CACHE_CONTROL, "Vary": "Host", "Age": "0"}
        if etag in [tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers={**headers, "Content-Type": "application/json"})

    def _page(self, request: web.Request) -> dict[str, Any] | Refusal:
        query = request.query
        wanted = query.get("output_modalities", "text").split(",")
        if not set(wanted) <= {*MODALITIES, "all"}:
            return errors.invalid_query("output_modalities", f"Invalid output modality: expected one of {MODALITIES}")
        sort = query.get("sort")
        if sort is not None and sort not in SORTS:
            return errors.invalid_query("sort", "Invalid sort")
        models = self.catalog.listing(None if "all" in wanted else frozenset(wanted), sort)
        shown, following = models, None
        if "offset" in query or "limit" in query:
            try:
                offset, limit = int(query.get("offset", "0")), int(query.get("limit", str(DEFAULT_PAGE)))
            except ValueError:
                return errors.invalid_query("limit", "Expected a number")
            if offset < 0 or not 1 <= limit <= MAX_PAGE:
                return errors.invalid_query("limit", f"Expected 1 to {MAX_PAGE}")
            shown = models[offset : offset + limit]
            if offset + limit < len(models):
                more = {**query, "offset": str(offset + limit), "limit": str(limit)}
                following = f"/api/v1/models?{urlencode(more)}"
        return {"data": shown, "total_count": len(models), "links": {"next": following}}

    def _find(self, request: web.Request) -> Model | Refusal:
        self.catalog.refresh()
        model_id = f"{request.match_info['author']}/{request.match_info['slug']}"
        model = self.catalog.find(model_id)
        return errors.refuse(404, f"Model {model_id} not found", user=False) if model is None else model

    async def model(self, request: web.Request) -> web.Response:
        """GET /model/{author}/{slug}."""
        model = self._find(request)
        return refusal_response(model) if isinstance(model, Refusal) else _json({"data": model})

    async def endpoints(self, request: web.Request) -> web.Response:
        """GET /models/{author}/{slug}/endpoints; without a key some figures are null, and a bad key is refused."""
        key = read_key(request.headers) if "Authorization" in request.headers else None
        if isinstance(key, Refusal):
            return refusal_response(key)
        model = self._find(request)
        if not isinstance(model, Refusal):
            mode = model["id"].removeprefix("sandbox/")
            refusal = errors.of_mode(mode, model["id"], "", None) if mode in STATUSES else None
            model = refusal or model
        if isinstance(model, Refusal):
            return refusal_response(model)
        return _json({"data": with_endpoints(model, authenticated=key is not None)})

    async def key(self, request: web.Request) -> web.Response:
        """GET /key."""
        key = read_key(request.headers)
        if isinstance(key, Refusal):
            return refusal_response(key)
        facts = _key_facts(key, self.ledger.spent.get(key.hash, Decimal(0)))
        return _json({"data": facts}, "private, no-store")

    async def credits(self, request: web.Request) -> web.Response:
        """GET /credits: bought and used, in USD."""
        key = read_key(request.headers)
        if isinstance(key, Refusal):
            return refusal_response(key)
        used = self.ledger.spent.get(key.hash, Decimal(0))
        total = used if key.is_out_of_credits else Decimal(100)
        return _json({"data": {"total_credits": number(total), "total_usage": number(used)}})

    async def generation(self, request: web.Request) -> web.Response:
        """GET /generation?id=…: 404 while it runs, shortly after, and for free models."""
        key = read_key(request.headers)
        if isinstance(key, Refusal):
            return refusal_response(key)
        generation_id = request.query.get("id", "")
        recording = self.recorded.get(generation_id)
        if recording is not None and recording.looked_up and recording.status == 200:
            return web.Response(body=recording.body, headers={"Content-Type": "application/json"})
        if recording is not None and recording.bill is not None:
            return _json({"data": _recorded_generation(generation_id, recording)})
        call = self.ledger.find(generation_id)
        known = call is not None and call.stated and call.cost is not None and call.ended_at is not None
        if call is None or not known or time.time() < (call.ended_at or 0) + call.told_after_s:
            return refusal_response(errors.refuse(404, f"Generation {generation_id} not found", user=False))
        return _json({"data": _generation(call)})

    async def calls(self, _: web.Request) -> web.Response:
        """GET /sandbox/calls: the ledger, oldest first."""
        ledger = self.ledger
        return _json(
            {
                "calls": [call.public() for call in ledger.calls],
                "refused": list(ledger.refused),
                "running": dict(ledger.running),
                "max_running": ledger.max_running,
            }
        )

    async def reset(self, _: web.Request) -> web.Response:
        """POST /sandbox/reset: an empty ledger."""
        self.ledger.reset()
        return web.Response(status=204)


def _key_facts(key: Key, used: Decimal) -> dict[str, Any]:
    spent = number(used)
    free_daily = 50 if key.is_free_tier else 1000
    return {
        "label": key.label,
        "is_management_key": key.is_management,
        "is_provisioning_key": key.is_management,
        "limit": 1 if key.is_at_limit else None,
        "limit_reset": None,
        "limit_remaining": 0 if key.is_at_limit else None,
        "include_byok_in_limit": False,
        "usage": spent,
        "usage_daily": spent,
        "usage_weekly": spent,
        "usage_monthly": spent,
        "byok_usage": 0,
        "byok_usage_daily": 0,
        "byok_usage_weekly": 0,
        "byok_usage_monthly": 0,
        "is_free_tier": key.is_free_tier,
        "expires_at": None,
        "creator_user_id": errors.USER_ID,
        "organization_id": None,
        "workspace_id": WORKSPACE,
        "allowed_data_regions": ["global"],
        "free_model_daily_requests": {"used": 0, "limit": free_daily, "remaining": free_daily},
        "rate_limit": {"requests": -1, "interval": "10s", "note": "This field is deprecated and safe to ignore."},
    }


def _generation(call: Call) -> dict[str, Any]:
    assert call.cost is not None
    assert call.ended_at is not None
    cost = number(call.cost)
    return {
        "id": call.generation_id,
        "upstream_id": None,
        "request_id": None,
        "session_id": None,
        "model": call.model,
        "provider_name": "Sandbox",
        "router": None,
        "api_type": "completions",
        "created_at": datetime.fromtimestamp(call.started_at, UTC).isoformat(timespec="milliseconds"),
        "streamed": call.streamed,
        "cancelled": call.state == "cancelled",
        "finish_reason": call.finish_reason,
        "native_finish_reason": call.native_finish_reason,
        "tokens_prompt": call.prompt_tokens,
        "tokens_completion": call.completion_tokens,
        "native_tokens_prompt": call.prompt_tokens,
        "native_tokens_completion": call.completion_tokens,
        "native_tokens_reasoning": call.reasoning_tokens,
        "native_tokens_cached": 0,
        "native_tokens_completion_images": None,
        "num_media_prompt": None,
        "num_media_completion": call.images or None,
        "num_search_results": None,
        "num_fetches": None,
        "total_cost": cost,
        "usage": cost,
        "upstream_inference_cost": number(call.upstream_cost or Decimal(0)),
        "cache_discount": None,
        "is_byok": call.is_byok,
        "latency": 0,
        "generation_time": int((call.ended_at - call.started_at) * 1000),
        "moderation_latency": None,
        "provider_responses": [{"provider_name": "Sandbox", "status": 200, "is_byok": call.is_byok}],
        "external_user": None,
        "http_referer": None,
        "app_id": None,
        "preset_id": None,
        "service_tier": None,
        "data_region": "global",
        "workspace_id": WORKSPACE,
    }


def _recorded_generation(generation_id: str, recording: Recording) -> dict[str, Any]:
    bill = recording.bill
    assert bill is not None
    cost = number(bill.cost)
    return {
        "id": generation_id,
        "model": bill.model,
        "api_type": "completions",
        "streamed": None,
        "cancelled": False,
        "tokens_prompt": bill.prompt_tokens,
        "tokens_completion": bill.completion_tokens,
        "native_tokens_prompt": bill.prompt_tokens,
        "native_tokens_completion": bill.completion_tokens,
        "total_cost": cost,
        "usage": cost,
        "upstream_inference_cost": None if bill.upstream_cost is None else number(bill.upstream_cost),
        "is_byok": bill.is_byok,
    }
