"""Every other route over real HTTP and a real bus: tokens, bodies, errors, documents, metrics, generated media."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
import orjson
import pytest
import pytest_asyncio
from nats.js.api import ObjectMeta, ObjectMetaOptions
from pydantic import TypeAdapter

from contracts import catalog, execution, keys, listings, market, providers
from contracts.base import Empty
from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.media import PART_BYTES, StoredMedia, media_headers, part_count, part_name
from contracts.subjects import (
    BUDGETS_GET,
    BUDGETS_SET,
    CATALOG_SYNC,
    CATALOG_SYNCS,
    DEAD_LETTERS_LIST,
    DEAD_LETTERS_REQUEUE,
    KEYS_ACCESS_LIST,
    KEYS_CONNECT,
    KEYS_DISCONNECT,
    KEYS_OAUTH_BEGIN,
    KEYS_OAUTH_COMPLETE,
    KEYS_RECIPIENT,
    KEYS_STATUS,
    KEYS_VERIFY,
    LISTINGS_GET,
    LISTINGS_SEARCH,
    MEDIA_BUCKET,
    MODELS_ESTIMATE,
    MODELS_GET,
    MODELS_PROVIDERS,
    MODELS_SEARCH,
    RESOURCES_CREATE,
    RESOURCES_DELETE,
    RESOURCES_GET,
    RESOURCES_LIST,
    RESOURCES_LISTING,
    RESOURCES_PAUSE,
    RESOURCES_PUBLISH,
    RESOURCES_STATS,
    RESOURCES_UPDATE,
    RESOURCES_VERSIONS,
    Rpc,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.tokens import AUDIENCE, ISSUER
from services.gateway import examples
from services.gateway.problems import Problem
from services.runtime.bus import Bus, current_call
from services.runtime.sealing import RecipientKey, connect_context
from tests.integration.gateway_parts import SECRET, bearer, error_body, peer, running_gateway

MARKED_KEY = "sk-or-v1-CANARY-0123456789"


class Others:
    """Keys and catalog: remember what they were asked, and answer with the examples of the documentation."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.errors: dict[str, ServiceError] = {}
        self.recipient = RecipientKey.generate("r1")
        self.opened: list[str] = []
        self.traces: list[str | None] = []

    def answer(self, bus: Bus, rpc: Rpc[Any, Any], example: dict[str, Any]) -> None:
        async def handle(request: Any) -> Any:
            self.asked[rpc.name] = request
            self.traces.append(current_call().traceparent)
            if (error := self.errors.pop(rpc.name, None)) is not None:
                raise error
            return rpc.adapter.validate_python(example)

        bus.serve(rpc, handle)

    def keys(self, bus: Bus) -> None:
        async def recipient(_request: Empty) -> keys.Recipient:
            return keys.Recipient(key_id=self.recipient.key_id, public_key=self.recipient.public_key)

        async def connect(request: keys.ConnectKey) -> keys.KeyStatus:
            if request.recipient_key_id != self.recipient.key_id:
                raise invalid("recipient_key_id", "This recipient is not known; fetch it again.")
            self.opened.append(self.recipient.open(request.sealed, connect_context(request.owner)).decode())
            if (error := self.errors.pop(KEYS_CONNECT.name, None)) is not None:
                raise error
            return keys.KeyStatus.model_validate(examples.KEY_STATUS)

        bus.serve(KEYS_RECIPIENT, recipient)
        bus.serve(KEYS_CONNECT, connect)
        for rpc in (KEYS_STATUS, KEYS_VERIFY):
            self.answer(bus, rpc, examples.KEY_STATUS)
        self.answer(bus, KEYS_DISCONNECT, examples.DISCONNECTED)
        self.answer(bus, KEYS_OAUTH_BEGIN, examples.OAUTH_BEGUN)
        self.answer(bus, KEYS_OAUTH_COMPLETE, examples.KEY_STATUS)
        self.answer(bus, KEYS_ACCESS_LIST, examples.ACCESS_PAGE)

    def catalog(self, bus: Bus) -> None:
        for rpc, example in (
            (MODELS_SEARCH, examples.MODEL_PAGE),
            (MODELS_GET, examples.MODEL_DETAIL),
            (MODELS_PROVIDERS, examples.MODEL_PROVIDERS),
            (MODELS_ESTIMATE, examples.ESTIMATE),
            (CATALOG_SYNC, examples.SYNC_REPORT),
            (CATALOG_SYNCS, examples.SYNC_LIST),
            (RESOURCES_CREATE, examples.RESOURCE),
            (RESOURCES_UPDATE, examples.RESOURCE),
            (RESOURCES_GET, examples.RESOURCE),
            (RESOURCES_LIST, examples.RESOURCE_PAGE),
            (RESOURCES_PUBLISH, examples.RESOURCE),
            (RESOURCES_PAUSE, examples.RESOURCE),
            (RESOURCES_DELETE, {}),
            (RESOURCES_VERSIONS, examples.VERSION_PAGE),
            (RESOURCES_STATS, examples.STATS),
            (RESOURCES_LISTING, examples.LISTING),
            (BUDGETS_GET, examples.BUDGETS),
            (BUDGETS_SET, examples.BUDGETS),
            (LISTINGS_SEARCH, examples.LISTING_PAGE),
            (LISTINGS_GET, examples.LISTING),
        ):
            self.answer(bus, rpc, example)

    def executor(self, bus: Bus) -> None:
        self.answer(bus, DEAD_LETTERS_LIST, examples.DEAD_LETTER_PAGE)
        self.answer(bus, DEAD_LETTERS_REQUEUE, examples.DEAD_LETTER)


@pytest_asyncio.fixture(scope="module")
async def client(nats_server: Nats, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway on the bus of the session."""
    async with running_gateway(nats_server, credentials) as client:
        yield client


@pytest_asyncio.fixture(scope="module")
async def others(nats_server: Nats, credentials: Credentials) -> AsyncIterator[Others]:
    """The other services."""
    others = Others()
    async with (
        peer("keys", nats_server, credentials, others.keys),
        peer("catalog", nats_server, credentials, others.catalog),
        peer("executor", nats_server, credentials, others.executor),
    ):
        yield others


ROUTES = [
    ("PUT", "/api/integrations/openrouter"),
    ("GET", "/api/integrations/openrouter"),
    ("DELETE", "/api/integrations/openrouter"),
    ("POST", "/api/integrations/openrouter/test"),
    ("POST", "/api/integrations/openrouter/oauth/begin"),
    ("POST", "/api/integrations/openrouter/oauth/complete"),
    ("GET", "/api/integrations/openrouter/access"),
    ("GET", "/api/models"),
    ("GET", "/api/models/openai/gpt-4o-mini"),
    ("GET", "/api/models/openai/gpt-4o-mini/providers"),
    ("POST", "/api/models/estimate"),
    ("POST", "/api/catalog/sync"),
    ("GET", "/api/catalog/syncs"),
    ("GET", "/api/dead-letters"),
    ("POST", f"/api/dead-letters/{examples.EXECUTION_ID}/requeue"),
    ("POST", "/api/resources"),
    ("GET", "/api/resources"),
    ("GET", f"/api/resources/{examples.RESOURCE_ID}"),
    ("PATCH", f"/api/resources/{examples.RESOURCE_ID}"),
    ("DELETE", f"/api/resources/{examples.RESOURCE_ID}"),
    ("GET", f"/api/resources/{examples.RESOURCE_ID}/versions"),
    ("GET", f"/api/resources/{examples.RESOURCE_ID}/stats"),
    ("GET", "/api/budgets"),
    ("PUT", "/api/budgets"),
    ("POST", f"/api/resources/{examples.RESOURCE_ID}/publish"),
    ("POST", f"/api/resources/{examples.RESOURCE_ID}/pause"),
    ("POST", "/api/resources/check"),
    ("POST", "/api/resources/preview"),
    ("POST", "/api/execute"),
    ("GET", "/api/executions"),
    ("GET", f"/api/executions/{examples.EXECUTION_ID}"),
    ("GET", f"/api/executions/{examples.EXECUTION_ID}/events"),
    ("POST", f"/api/executions/{examples.EXECUTION_ID}/cancel"),
]


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_needs_a_token_before_anything_else(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await client.request(method, path, headers={"Authorization": ""}, content=b"{broken")
    assert (response.status_code, error_body(response)["code"]) == (401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"iss": "somebody"},
        {"aud": "another"},
        {"sub": "a b"},
    ],
)
async def test_bad_tokens_are_refused_with_a_sentence(client: httpx.AsyncClient, claims: dict[str, Any]) -> None:
    good = {"sub": "bob", "iss": ISSUER, "aud": AUDIENCE, "exp": 4_000_000_000}
    token = jwt.encode({**good, **claims}, SECRET)
    response = await client.get("/api/models", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 401
    assert len(error_body(response)["detail"]) > 20


@pytest.mark.usefixtures("others")
async def test_listings_need_no_token(client: httpx.AsyncClient) -> None:
    for path in ("/api/listings", "/api/listings/alice/haiku-maker"):
        assert (await client.get(path, headers={"Authorization": ""})).status_code == 200


async def test_administration_is_for_administrators(client: httpx.AsyncClient, others: Others) -> None:
    for method, path in (
        ("POST", "/api/catalog/sync"),
        ("GET", "/api/catalog/syncs"),
        ("GET", "/api/dead-letters"),
        ("POST", f"/api/dead-letters/{examples.EXECUTION_ID}/requeue"),
    ):
        assert error_body(await client.request(method, path))["code"] == "forbidden"
        assert (await client.request(method, path, headers=bearer("root", admin=True))).status_code == 200
    assert others.asked["catalog.sync"].requested_by == "root"
    assert others.asked["execution.deadletters.requeue"].requested_by == "root"


# Keys -----------------------------------------------------------------------------------------------------------------


async def test_key_is_sealed_for_its_owner_and_found_nowhere_else(
    client: httpx.AsyncClient, others: Others, capsys: pytest.CaptureFixture[str]
) -> None:
    others.opened.clear()
    response = await client.put("/api/integrations/openrouter", json={"api_key": f" {MARKED_KEY}\n"})
    assert (response.status_code, response.json()["hint"]) == (200, "sk-or-test-…a1b2")
    assert others.opened == [MARKED_KEY]
    assert "CANARY" not in capsys.readouterr().out


async def test_rejected_key_is_422_at_connect(client: httpx.AsyncClient, others: Others) -> None:
    others.errors["keys.connect"] = ServiceError(ErrorCode.KEY_REJECTED, "OpenRouter does not know this key.")
    response = await client.put("/api/integrations/openrouter", json={"api_key": MARKED_KEY})
    assert (response.status_code, error_body(response)["code"]) == (422, "key_rejected")


async def test_changed_recipient_is_fetched_once_again(client: httpx.AsyncClient, others: Others) -> None:
    await client.put("/api/integrations/openrouter", json={"api_key": "sk-or-test-a"})
    others.recipient = RecipientKey.generate("r2")
    response = await client.put("/api/integrations/openrouter", json={"api_key": "sk-or-test-b"})
    assert response.status_code == 200
    assert others.opened[-1] == "sk-or-test-b"


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    "body",
    [
        {"api_key": [MARKED_KEY]},
        {"api_key": MARKED_KEY * 30},
        {"apikey": MARKED_KEY},
        {"api_key": "sk", MARKED_KEY: 1},
        MARKED_KEY,
        [MARKED_KEY],
    ],
)
async def test_wrong_key_bodies_do_not_come_back(
    client: httpx.AsyncClient, body: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    response = await client.put("/api/integrations/openrouter", json=body)
    assert response.status_code == 422
    assert error_body(response)["errors"]
    if not (isinstance(body, dict) and MARKED_KEY in body):
        assert "CANARY" not in response.text
    assert "CANARY" not in capsys.readouterr().out


async def test_key_status_test_and_disconnect_pass_through(client: httpx.AsyncClient, others: Others) -> None:
    assert (await client.get("/api/integrations/openrouter")).json()["limit_remaining_usd"] == "24.5"
    assert (await client.post("/api/integrations/openrouter/test")).json()["health"] == "ok"
    assert (await client.delete("/api/integrations/openrouter")).json()["connected"] is False
    assert others.asked["keys.disconnect"].owner == "bob"


async def test_oauth_begins_and_completes_as_whoever_is_signed_in(client: httpx.AsyncClient, others: Others) -> None:
    path = "/api/integrations/openrouter/oauth"
    begun = await client.post(f"{path}/begin", json=examples.OAUTH_BEGIN)
    assert begun.status_code == 200
    assert set(begun.json()) == {"authorize_url", "state", "expires_at"}
    asked = others.asked["keys.oauth.begin"]
    assert (asked.owner, asked.callback_url) == ("bob", examples.OAUTH_BEGIN["callback_url"])
    assert (await client.post(f"{path}/begin", json={})).status_code == 200
    assert others.asked["keys.oauth.begin"].callback_url is None
    completed = await client.post(f"{path}/complete", json=examples.OAUTH_COMPLETE)
    assert (completed.status_code, completed.json()["connected"]) == (200, True)
    asked = others.asked["keys.oauth.complete"]
    assert {"owner": asked.owner, "code": asked.code, "state": asked.state} == {
        "owner": "bob", **examples.OAUTH_COMPLETE
    }  # fmt: skip
    for body in ({"owner": "alice", **examples.OAUTH_COMPLETE}, {"code": ["CANARY"], "state": "x"}, {}):
        refused = await client.post(f"{path}/complete", json=body)
        assert refused.status_code == 422
        assert "CANARY" not in refused.text


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.KEY_REJECTED, 422),
        (ErrorCode.INVALID, 422),
        (ErrorCode.NOT_FOUND, 404),
        (ErrorCode.RATE_LIMITED, 429),
        (ErrorCode.UPSTREAM, 502),
        (ErrorCode.UNAVAILABLE, 503),
    ],
)
async def test_oauth_refusals_become_problems(
    client: httpx.AsyncClient, others: Others, code: ErrorCode, status: int
) -> None:
    others.errors["keys.oauth.complete"] = ServiceError(code, "Begin to connect again.")
    response = await client.post("/api/integrations/openrouter/oauth/complete", json=examples.OAUTH_COMPLETE)
    assert (response.status_code, error_body(response)["code"]) == (status, code.value)


async def test_access_log_is_paged_for_its_owner(client: httpx.AsyncClient, others: Others) -> None:
    path = "/api/integrations/openrouter/access"
    page = (await client.get(path, params={"cursor": "51", "limit": 2})).json()
    assert page == examples.ACCESS_PAGE
    asked = others.asked["keys.access.list"]
    assert (asked.owner, asked.cursor, asked.limit) == ("bob", "51", 2)
    assert (await client.get(path, params={"limit": 0})).status_code == 422


# Models ---------------------------------------------------------------------------------------------------------------


async def test_model_filters_reach_the_catalog(client: httpx.AsyncClient, others: Others) -> None:
    query = {"q": "haiku", "sort": "-price", "max_prompt_price": "0.000001", "curated": "true", "limit": "10"}
    assert (await client.get("/api/models", params=query)).json()["total"] == 1
    asked = others.asked["catalog.models.search"]
    assert (asked.q, asked.sort, str(asked.max_prompt_price), asked.curated, asked.limit) == (
        "haiku", "-price", "0.000001", True, 10,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("query", "path"),
    [({"limit": "0"}, "limit"), ({"sort": "best"}, "sort"), ({"max_prompt_price": "cheap"}, "max_prompt_price")],
)
async def test_wrong_filter_is_named(client: httpx.AsyncClient, query: dict[str, str], path: str) -> None:
    response = await client.get("/api/models", params=query)
    assert response.status_code == 422
    assert [error["path"].split(".")[-1] for error in error_body(response)["errors"]] == [path]


@pytest.mark.parametrize("model", ["deepseek/deepseek-r1:free", "~anthropic/claude-latest", "openai/gpt-4.1-mini"])
async def test_model_ids_keep_their_odd_characters(client: httpx.AsyncClient, others: Others, model: str) -> None:
    assert (await client.get(f"/api/models/{model}")).status_code == 200
    assert others.asked["catalog.models.get"].id == model
    assert (await client.get(f"/api/models/{model}/providers")).status_code == 200
    assert others.asked["catalog.models.providers"].id == model
    assert (await client.get("/api/models/" + model.replace("/", "%2F").replace(":", "%3A"))).status_code == 200
    assert others.asked["catalog.models.get"].id == model


async def test_an_administrator_may_insist_on_a_list_that_looks_wrong(
    client: httpx.AsyncClient, others: Others
) -> None:
    root = bearer("root", admin=True)
    await client.post("/api/catalog/sync", headers=root)
    assert (others.asked["catalog.sync"].requested_by, others.asked["catalog.sync"].force) == ("root", False)
    await client.post("/api/catalog/sync", params={"force": "true"}, headers=root)
    assert others.asked["catalog.sync"].force is True


async def test_facets_are_asked_for(client: httpx.AsyncClient, others: Others) -> None:
    await client.get("/api/models", params={"facets": "true", "q": "x"})
    assert others.asked["catalog.models.search"].facets is True
    await client.get("/api/models")
    assert others.asked["catalog.models.search"].facets is False


async def test_estimate_says_who_asks_and_nobody_can_say_it_otherwise(
    client: httpx.AsyncClient, others: Others
) -> None:
    body = {"model_id": "m/a", "resource_id": examples.RESOURCE_ID, "cached_tokens": 5, "cache_ttl": "1h"}
    assert (await client.post("/api/models/estimate", json=body)).status_code == 200
    asked = others.asked["catalog.models.estimate"]
    assert (asked.owner, str(asked.resource_id), asked.cache_ttl) == ("bob", examples.RESOURCE_ID, "1h")
    refused = await client.post("/api/models/estimate", json={**body, "owner": "carol"})
    assert refused.status_code == 422


async def test_estimate_passes_the_price_on(client: httpx.AsyncClient, others: Others) -> None:
    response = await client.post("/api/models/estimate", json=examples.ESTIMATE_REQUEST)
    assert response.json()["margin"]["expected_usd"] == "0.0099391"
    assert others.asked["catalog.models.estimate"].price.price_usd == catalog.FixedPrice(
        mode="fixed", price_usd="0.01"
    ).price_usd  # fmt: skip


# Resources ------------------------------------------------------------------------------------------------------------


async def test_resource_is_created_for_its_owner(client: httpx.AsyncClient, others: Others) -> None:
    response = await client.post("/api/resources", json=examples.COST_PLUS_DRAFT)
    assert response.status_code == 201
    assert response.headers["location"] == f"/api/resources/{examples.RESOURCE_ID}"
    asked = others.asked["catalog.resources.create"]
    assert asked.owner == "bob"
    assert asked.draft == catalog.ResourceDraft.model_validate(examples.COST_PLUS_DRAFT)


async def test_what_is_said_of_a_resource_does_not_wait_for_the_keys_service(
    client: httpx.AsyncClient, others: Others
) -> None:
    path = f"/api/resources/{examples.RESOURCE_ID}"
    for method, url, body in (
        ("POST", "/api/resources", examples.DRAFT),
        ("PATCH", path, examples.PATCH),
        ("POST", f"{path}/publish", None),
        ("POST", f"{path}/pause", None),
    ):
        others.errors["keys.status"] = ServiceError(ErrorCode.UNAVAILABLE, "The database is away.")
        response = await client.request(method, url, json=body)
        assert response.status_code in {200, 201}
        assert "keys.status" not in others.errors, "it was asked"
        assert response.json()["availability"] == examples.RESOURCE["availability"]


async def test_resource_is_edited_by_what_is_sent(client: httpx.AsyncClient, others: Others) -> None:
    response = await client.patch(f"/api/resources/{examples.RESOURCE_ID}", json=examples.PATCH)
    assert response.status_code == 200
    asked = others.asked["catalog.resources.update"]
    assert (asked.owner, str(asked.id)) == ("bob", examples.RESOURCE_ID)
    assert asked.patch.model_dump(exclude_none=True, mode="json") == examples.PATCH


async def test_a_resource_has_two_sides(client: httpx.AsyncClient, others: Others) -> None:
    path = f"/api/resources/{examples.RESOURCE_ID}"
    others.asked.clear()
    seen = (await client.get(path, params={"as": "buyer"})).json()
    assert listings.Listing.model_validate(seen) == listings.Listing.model_validate(examples.LISTING)
    asked = others.asked["catalog.resources.listing"]
    assert (asked.asking, str(asked.id)) == ("bob", examples.RESOURCE_ID)
    assert "catalog.resources.get" not in others.asked, "what a buyer may not see is not even fetched"
    assert "openrouter_config" in (await client.get(path, params={"as": "owner"})).json()
    assert (await client.get(path, params={"as": "admin"})).status_code == 422


async def test_versions_and_stats_are_asked_for_as_their_owner(client: httpx.AsyncClient, others: Others) -> None:
    path = f"/api/resources/{examples.RESOURCE_ID}"
    page = await client.get(f"{path}/versions", params={"limit": 5, "cursor": "abc"})
    assert page.json() == examples.VERSION_PAGE
    asked = others.asked["catalog.resources.versions"]
    assert (asked.owner, str(asked.id), asked.limit, asked.cursor) == ("bob", examples.RESOURCE_ID, 5, "abc")
    assert (await client.get(f"{path}/stats", params={"days": 7})).json() == examples.STATS
    assert (others.asked["catalog.resources.stats"].owner, others.asked["catalog.resources.stats"].days) == ("bob", 7)
    for days in ("0", "367", "x"):
        assert (await client.get(f"{path}/stats", params={"days": days})).status_code == 422


async def test_budgets_are_the_users_own(client: httpx.AsyncClient, others: Others) -> None:
    assert (await client.get("/api/budgets")).json() == examples.BUDGETS
    assert others.asked["catalog.budgets.get"].owner == "bob"
    assert (await client.put("/api/budgets", json=examples.BUDGET_LIMITS)).json() == examples.BUDGETS
    asked = others.asked["catalog.budgets.set"]
    assert asked == market.SetBudgets(owner="bob", limits=market.BudgetLimits.model_validate(examples.BUDGET_LIMITS))
    for wrong in ({"key_daily_usd": 0.5}, {"key_daily_usd": "-1"}, {"key_dayly_usd": "1"}, {"owner": "ann"}):
        assert (await client.put("/api/budgets", json=wrong)).status_code == 422


@pytest.mark.parametrize("body", [{}, {"name": None}, {"expected_version": 3}])
async def test_edit_that_changes_nothing_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await client.patch(f"/api/resources/{examples.RESOURCE_ID}", json=body)
    assert (response.status_code, error_body(response)["code"]) == (422, "invalid")


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("PATCH", f"/api/resources/{examples.RESOURCE_ID}", {"nam": "x"}, "nam"),
        (
            "PATCH",
            f"/api/resources/{examples.RESOURCE_ID}",
            {"pricing": {**examples.PATCH["pricing"], "prise": 1}},
            "pricing.prise",
        ),
        (
            "POST",
            "/api/resources",
            {**examples.DRAFT, "openrouter_config": {**examples.DRAFT["openrouter_config"], "max_token": 5}},
            "openrouter_config.max_token",
        ),
        ("POST", "/api/resources/preview", {**examples.PREVIEW, "inptu": {}}, "inptu"),
        ("POST", "/api/execute", {"resource": "a/b", "inputs": {}}, "inputs"),
        ("POST", "/api/models/estimate", {**examples.ESTIMATE_REQUEST, "max_token": 1}, "max_token"),
    ],
)
async def test_typo_in_a_field_is_named(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any], named: str
) -> None:
    response = await client.request(method, path, json=body)
    assert response.status_code == 422
    assert [error["path"] for error in error_body(response)["errors"]] == [named]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pricing": {"mode": "fixed", "price_usd": 0.01}}, "pricing.fixed.price_usd"),
        ({"pricing": {"mode": "fixed", "price_usd": "-1"}}, "pricing.fixed.price_usd"),
        ({"slug": "Not A Slug"}, "slug"),
        ({"inputs": [{"name": "9"}]}, "inputs.0.name"),
        ({"resource_type": "other"}, "resource_type"),
    ],
)
async def test_wrong_field_is_named_and_not_repeated(
    client: httpx.AsyncClient, changes: dict[str, Any], named: str
) -> None:
    response = await client.post("/api/resources", json={**examples.DRAFT, **changes})
    problem = error_body(response)
    assert response.status_code == 422
    assert [error["path"] for error in problem["errors"]] == [named]
    assert set(problem["errors"][0]) == {"path", "message"}
    assert "Not A Slug" not in response.text


@pytest.mark.usefixtures("others")
async def test_rest_of_a_resource_passes_through(client: httpx.AsyncClient) -> None:
    path = f"/api/resources/{examples.RESOURCE_ID}"
    assert (await client.get("/api/resources", params={"status": "draft"})).json()["total"] == 1
    assert (await client.get(path)).json()["slug"] == "haiku-maker"
    assert (await client.post(f"{path}/publish")).status_code == 200
    assert (await client.post(f"{path}/pause")).status_code == 200
    gone = await client.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.get("/api/resources/not-an-id")).status_code == 422


async def test_error_of_the_other_side_is_passed_on(client: httpx.AsyncClient, others: Others) -> None:
    others.errors["catalog.resources.get"] = ServiceError(ErrorCode.NOT_FOUND, "There is no such resource of yours.")
    response = await client.get(f"/api/resources/{examples.RESOURCE_ID}")
    assert response.status_code == 404
    assert error_body(response)["detail"] == "There is no such resource of yours."


# Bodies and paths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"{broken", b"", b"\xff\xfe", b'{"a": NaN}', b"[" * 5000, b'{"a":1}{"b":2}', b"resource=a"]
)
async def test_body_that_is_not_json_is_400(client: httpx.AsyncClient, content: bytes) -> None:
    for path in ("/api/execute", "/api/resources"):
        response = await client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert (response.status_code, error_body(response)["code"]) == (400, "invalid")


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", "application/json"])
async def test_json_is_json_whatever_it_is_called(client: httpx.AsyncClient, media_type: str) -> None:
    response = await client.post(
        "/api/resources", content=orjson.dumps(examples.DRAFT), headers={"Content-Type": media_type}
    )
    assert response.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/resources/", 404),
        ("POST", "/api/models", 405),
        ("DELETE", "/api/execute", 405),
        ("GET", "/api/workflow", 404),
    ],
)
async def test_what_no_route_takes_is_a_problem(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    error_body(response)
    assert ("allow" in response.headers) == (status == 405)


async def test_idempotency_key_has_limits(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "x" * 201}
    response = await client.post("/api/execute", json={"resource": "a/b"}, headers=headers)
    assert response.status_code == 422
    assert "Idempotency-Key" in error_body(response)["errors"][0]["path"]


# Operation ------------------------------------------------------------------------------------------------------------


async def test_health_metrics_and_documents_need_no_token(client: httpx.AsyncClient) -> None:
    await client.get("/api/resources/also-not-an-id")
    for path in ("/livez", "/readyz", "/docs", "/asyncapi.json"):
        assert (await client.get(path, headers={"Authorization": ""})).status_code == 200
    metrics = (await client.get("/metrics", headers={"Authorization": ""})).text
    assert 'x402jobs_http_requests_total{method="GET",route="/api/resources/{id}",status="422"}' in metrics
    assert "also-not-an-id" not in metrics
    await client.request("BREW", "/nowhere/at/all")
    metrics = (await client.get("/metrics")).text
    assert "BREW" not in metrics
    assert "/nowhere/at/all" not in metrics


async def test_trace_context_is_carried_to_the_bus(client: httpx.AsyncClient, others: Others) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await client.get("/api/models", headers={"traceparent": trace})
    await client.get("/api/models")
    assert others.traces[-2] == trace
    assert others.traces[-1] not in {None, trace}


async def test_request_is_one_log_line_without_the_user(
    client: httpx.AsyncClient, others: Others, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.get(f"/api/resources/{examples.RESOURCE_ID}", headers=bearer("somebody-known"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "/api/resources/{id}" in line]
    assert "status=200" in line
    assert "somebody-known" not in line


async def test_openapi_has_examples_that_keep_the_contracts(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json", headers={"Authorization": ""})).json()
    routes = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    templates = {
        (method, path.replace("openai/gpt-4o-mini", "{author}/{slug}"))
        for method, path in (
            (method, path.replace(examples.RESOURCE_ID, "{id}").replace(examples.EXECUTION_ID, "{id}"))
            for method, path in ROUTES
        )
    }
    assert templates <= routes
    for method, path in templates:
        operation = document["paths"][path][method.lower()]
        assert operation["security"]
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]
        assert "401" in operation["responses"]
        for media_type in operation.get("requestBody", {}).get("content", {}).values():
            assert media_type["examples"]
        for status, response in operation["responses"].items():
            problem = response.get("content", {}).get("application/problem+json")
            if int(status) >= 400:
                assert Problem.model_validate(problem["example"]).status == int(status)
    for path in ("/api/listings", "/media/{name}", "/livez"):
        assert "security" not in document["paths"][path]["get"]
    text = orjson.dumps(document).decode()
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (keys.KeyStatus, examples.KEY_STATUS),
        (keys.KeyStatus, examples.DISCONNECTED),
        (keys.OAuthBegun, examples.OAUTH_BEGUN),
        (keys.AccessPage, examples.ACCESS_PAGE),
        (catalog.ModelPage, examples.MODEL_PAGE),
        (catalog.ModelDetail, examples.MODEL_DETAIL),
        (providers.ModelProviders, examples.MODEL_PROVIDERS),
        (catalog.EstimateCost, examples.ESTIMATE_REQUEST),
        (catalog.Estimate, examples.ESTIMATE),
        (catalog.SyncList, examples.SYNC_LIST),
        (catalog.ResourceDraft, examples.DRAFT),
        (catalog.ResourceDraft, examples.COST_PLUS_DRAFT),
        (catalog.ResourcePatch, examples.PATCH),
        (catalog.ResourcePage, examples.RESOURCE_PAGE),
        (listings.ListingPage, examples.LISTING_PAGE),
        (market.ResourceVersionPage, examples.VERSION_PAGE),
        (market.ResourceStats, examples.STATS),
        (market.BudgetLimits, examples.BUDGET_LIMITS),
        (market.Budgets, examples.BUDGETS),
        (execution.ExecutionResult, examples.RESULT),
        (execution.ExecutionAccepted, examples.ACCEPTED),
        (execution.ExecutionPage, examples.EXECUTION_PAGE),
    ],
)
def test_examples_keep_the_contracts(model: Any, example: dict[str, Any]) -> None:
    read = TypeAdapter(model).validate_python(example)
    assert set(example) <= set(read.model_dump())


# Media ----------------------------------------------------------------------------------------------------------------


class Bucket:
    """Writes files as an executor does."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def put(self, content: bytes, mime_type: str, extension: str) -> str:
        name = f"{hashlib.sha256(content).hexdigest()}.{extension}"
        store = await self._bus.js.create_object_store(MEDIA_BUCKET)
        parts = part_count(len(content))
        for number in reversed(range(parts)):
            headers = media_headers(StoredMedia(mime_type, len(content), parts)) if number == 0 else None
            await store.put(
                part_name(name, number),
                content[number * PART_BYTES : (number + 1) * PART_BYTES],
                ObjectMeta(headers=headers, options=ObjectMetaOptions(max_chunk_size=300_000)),
            )
        return name


@pytest_asyncio.fixture(scope="module")
async def bucket(nats_server: Nats, credentials: Credentials) -> AsyncIterator[Bucket]:
    """The object store, as the executor's user."""
    async with peer("executor", nats_server, credentials, lambda _bus: None) as bus:
        yield Bucket(bus)


SONG = b"".join(number.to_bytes(4, "big") for number in range(650_000))  # two parts and a half


async def test_file_is_served_whole_immutable_and_inert(client: httpx.AsyncClient, bucket: Bucket) -> None:
    name = await bucket.put(SONG, "audio/wav", "wav")
    response = await client.get(f"/media/{name}", headers={"Authorization": ""})
    assert (response.status_code, response.content == SONG) == (200, True)
    assert response.headers["content-type"] == "audio/wav"
    assert response.headers["content-length"] == str(len(SONG))
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == "inline"
    etag = response.headers["etag"]
    same = await client.get(f"/media/{name}", headers={"If-None-Match": f'"other", {etag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    head = await client.head(f"/media/{name}")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(SONG)))


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0, 0),
        (0, 99),
        (PART_BYTES - 1, PART_BYTES),
        (PART_BYTES, 2 * PART_BYTES),
        (5, len(SONG) - 1),
        (2_400_000, 10**9),
    ],
)
async def test_range_is_cut_across_parts(client: httpx.AsyncClient, bucket: Bucket, first: int, last: int) -> None:
    name = await bucket.put(SONG, "audio/wav", "wav")
    response = await client.get(f"/media/{name}", headers={"Range": f"bytes={first}-{last}"})
    last = min(last, len(SONG) - 1)
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {first}-{last}/{len(SONG)}"
    assert response.content == SONG[first : last + 1]


async def test_range_behind_the_end_is_416(client: httpx.AsyncClient, bucket: Bucket) -> None:
    name = await bucket.put(b"short", "image/png", "png")
    response = await client.get(f"/media/{name}", headers={"Range": "bytes=99-"})
    assert (response.status_code, response.headers["content-range"]) == (416, "bytes */5")
    error_body(response)
    whole = await client.get(f"/media/{name}", headers={"Range": "bytes=1-2", "If-Range": '"old"'})
    assert (whole.status_code, whole.content) == (200, b"short")


@pytest.mark.parametrize(("mime_type", "extension"), [("image/svg+xml", "svg"), ("application/pdf", "pdf")])
async def test_what_could_hold_scripts_is_downloaded(
    client: httpx.AsyncClient, bucket: Bucket, mime_type: str, extension: str
) -> None:
    name = await bucket.put(f"<{extension}>".encode(), mime_type, extension)
    response = await client.get(f"/media/{name}")
    assert response.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert "sandbox" in response.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["x.png", "0" * 64 + ".png", "..%2F..%2Fetc", "0" * 64 + ".png%2F1", ">", "*"])
async def test_name_that_is_not_stored_is_404(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/media/{name}")
    assert (response.status_code, error_body(response)["code"]) == (404, "not_found")
