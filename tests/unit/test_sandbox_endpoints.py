"""Who serves a model, as the stand-in tells it over real HTTP: the recorded shape, exact prices, and every case that occurs."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deploy.sandbox.app import Settings, running
from tests.stack import shared_data

KEY = {"Authorization": "Bearer sk-or-test-unit"}


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """The sandbox with all recorded models."""
    settings = Settings(catalog=shared_data() / "openrouter-models.json")
    async with running(settings) as url, httpx.AsyncClient(base_url=f"{url}/api/v1") as client:
        yield client


async def endpoints(client: httpx.AsyncClient, model_id: str, **headers: str) -> list[dict[str, Any]]:
    response = await client.get(f"/models/{model_id}/endpoints", headers=headers)
    assert response.status_code == 200
    found: list[dict[str, Any]] = response.json()["data"]["endpoints"]
    return found


async def test_endpoints_have_the_recorded_fields(client: httpx.AsyncClient) -> None:
    recorded = json.loads((shared_data() / "openrouter-responses/model-endpoints.body.json").read_bytes())["data"]
    served = (await client.get("/models/qwen/qwen3.7-flash/endpoints")).json()["data"]
    assert served.keys() == recorded.keys()
    assert {frozenset(endpoint) for endpoint in served["endpoints"]} == {frozenset(recorded["endpoints"][0])}


async def test_all_cases_occur_among_the_models_and_stay(client: httpx.AsyncClient) -> None:
    models = (await client.get("/models")).json()["data"]
    found = {model["id"]: await endpoints(client, model["id"], **KEY) for model in models[:120]}
    every = [endpoint for each in found.values() for endpoint in each]
    assert {len(each) for each in found.values()} == {0, 1, 2, 3, 4, 5}
    assert {endpoint["status"] for endpoint in every} == {0, -2}
    assert {endpoint["pricing"]["discount"] for endpoint in every} == {0, 0.25}
    assert {endpoint["latency_last_30m"] is None for endpoint in every} == {True, False}
    assert found == {model_id: await endpoints(client, model_id, **KEY) for model_id in found}


async def test_the_first_has_the_catalogs_prices_and_all_are_exact(client: httpx.AsyncClient) -> None:
    model = (await client.get("/model/qwen/qwen3.7-flash")).json()["data"]
    served = await endpoints(client, model["id"])
    assert {**served[0]["pricing"], "discount": 0} == {**model["pricing"], "discount": 0}
    prompts = [Decimal(endpoint["pricing"]["prompt"]) / Decimal(model["pricing"]["prompt"]) for endpoint in served]
    tiers = [endpoint["pricing"]["overrides"][0] for endpoint in served]
    assert prompts == [Decimal(tier["prompt"]) / Decimal(tiers[0]["prompt"]) for tier in tiers]
    assert len(set(prompts)) == len(prompts) > 1
    assert {tier["min_prompt_tokens"] for tier in tiers} == {32_000}


async def test_only_who_sends_a_good_key_is_told_how_fast_they_are(client: httpx.AsyncClient) -> None:
    model_id = "openai/gpt-4o-mini"
    assert (await endpoints(client, model_id, **KEY))[0]["latency_last_30m"].keys() == {"p50", "p75", "p90", "p99"}
    unknown = (await endpoints(client, model_id))[0]
    assert (unknown["latency_last_30m"], unknown["throughput_last_30m"]) == (None, None)
    refused = await client.get(f"/models/{model_id}/endpoints", headers={"Authorization": "Bearer sk-or-test-dead"})
    assert refused.status_code == 401


@pytest.mark.parametrize(
    ("model_id", "status", "number"),
    [
        ("openrouter/auto", 200, 0),
        ("openai/gpt-4.1:batch", 200, 0),
        ("openai/gpt-oss-20b:free", 200, 1),
        ("sandbox/echo", 200, 1),
        ("sandbox/status-503", 503, 0),
        ("no/such", 404, 0),
    ],
)
async def test_special_models_have_one_or_none(
    client: httpx.AsyncClient, model_id: str, status: int, number: int
) -> None:
    response = await client.get(f"/models/{model_id}/endpoints")
    assert response.status_code == status
    assert len(response.json().get("data", {}).get("endpoints", [])) == number
