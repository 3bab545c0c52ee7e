"""All 400 models of a real catalog: synced, priced, searchable, and usable exactly where chat can use them.

What is right is read from the raw file, model by model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.stack import Stack
from services.catalog.curated import CURATED
from tests.e2e.client import Person, draft, problem, signed_in
from tests.stack import shared_data

RAW: dict[str, dict[str, Any]] = {
    model["id"]: model for model in json.loads((shared_data() / "openrouter-models.json").read_text())["data"]
}
SORTS = ["popular", "newest", "price", "-price", "context"]
MADE_UP = ("sandbox/", "recorded/")
CONDITIONS = {"min_prompt_tokens", "utc_start", "utc_end"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def carol(recorded_stack: Stack) -> AsyncIterator[Person]:
    """Somebody who looks around."""
    async with signed_in(recorded_stack, "carol") as person:
        yield person


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def items(carol: Person) -> dict[str, dict[str, Any]]:
    """Every item of the catalog that came from the file, by id."""
    found = await all_pages(carol, sort="newest", limit=200)
    return {item["id"]: item for item in found if not item["id"].startswith(MADE_UP)}


async def all_pages(person: Person, **query: Any) -> list[dict[str, Any]]:
    """The items of all pages; the total is the same on each of them and is the number of items."""
    found: list[dict[str, Any]] = []
    totals: set[int] = set()
    cursor: str | None = None
    while cursor is not None or not totals:
        page = await person.get("/api/models", **query, **({"cursor": cursor} if cursor else {}))
        found += page["items"]
        totals.add(page["total"])
        cursor = page["next_cursor"]
    assert totals == {len(found)}
    return found


def price_kind(raw: dict[str, Any]) -> str:
    """What the price of an entry means, from its numbers and its name."""
    pricing = raw["pricing"]
    if "-1" in (pricing["prompt"], pricing["completion"]):
        return "runtime"
    if (pricing["prompt"], pricing["completion"]) == ("0", "0"):
        return "free" if raw["id"].endswith(":free") or raw["id"] == "openrouter/free" else "unknown"
    return "tiered" if "overrides" in pricing else "fixed"


async def test_every_model_is_in_the_catalog_when_synced(items: dict[str, dict[str, Any]]) -> None:
    assert len(RAW) == 400
    assert items.keys() == RAW.keys()


async def test_every_item_says_what_the_file_says_when_synced(items: dict[str, dict[str, Any]]) -> None:
    for model_id, raw in RAW.items():
        item = items[model_id]
        architecture, top = raw["architecture"], raw["top_provider"]
        assert item["name"] == raw["name"]
        assert item["description"] == raw["description"]
        assert item["context_length"] == raw["context_length"]
        assert item["max_completion_tokens"] == top["max_completion_tokens"], model_id
        assert item["input_modalities"] == architecture["input_modalities"]
        assert item["output_modalities"] == architecture["output_modalities"]
        assert item["supported_parameters"] == raw["supported_parameters"]
        assert item["provider"] == model_id.split("/")[0].removeprefix("~")
        assert datetime.fromisoformat(item["created_at"]) == datetime.fromtimestamp(raw["created"], UTC)
        assert item["executable"] == (not model_id.endswith(":batch"))
        assert bool(item["not_executable_reason"]) != item["executable"]


async def test_every_price_is_the_string_of_the_file_when_synced(items: dict[str, dict[str, Any]]) -> None:
    for model_id, raw in RAW.items():
        pricing = dict(items[model_id]["pricing"])
        assert pricing.pop("price_kind") == items[model_id]["price_kind"] == price_kind(raw), model_id
        overrides = [
            {name: value for name, value in tier.items() if value is not None} for tier in pricing.pop("overrides")
        ]
        assert overrides == raw["pricing"].get("overrides", []), model_id
        assert pricing == {name: price for name, price in raw["pricing"].items() if name != "overrides"}, model_id


async def test_price_kinds_are_as_many_as_counted_when_synced(items: dict[str, dict[str, Any]]) -> None:
    kinds = [item["price_kind"] for item in items.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "runtime": 5,
        "free": 15,
        "unknown": 2,
        "tiered": 57,
        "fixed": 321,
    }


async def test_retirement_is_the_announced_day_when_it_is_near(items: dict[str, dict[str, Any]]) -> None:
    announced = {model_id: raw["expiration_date"] for model_id, raw in RAW.items() if raw["expiration_date"]}
    near = {model_id: day for model_id, day in announced.items() if not day.startswith("2098")}
    assert len(announced) - len(near) == 2
    assert {model_id: item["retires_on"] for model_id, item in items.items() if item["retires_on"]} == near
    assert {model_id for model_id, item in items.items() if item["status"] == "retiring"} == near.keys()


async def test_aliases_name_their_targets_when_looked_at(carol: Person) -> None:
    aliases = {model_id: raw["alias_target"]["slug"] for model_id, raw in RAW.items() if raw.get("alias_target")}
    assert len(aliases) == 11
    for model_id, target in aliases.items():
        detail = await carol.get(f"/api/models/{model_id}")
        assert (detail["id"], detail["alias_target"]) == (model_id, target)


async def test_every_model_is_found_when_its_id_or_name_is_searched(carol: Person) -> None:
    for model_id in RAW:
        first = (await carol.get("/api/models", q=model_id, limit=1))["items"][0]
        assert first["id"] == model_id
    for model_id, raw in [*RAW.items()][::8]:
        named = await carol.get("/api/models", q=raw["name"], limit=50)
        assert model_id in [item["id"] for item in named["items"]]


@pytest.mark.parametrize("sort", SORTS)
async def test_pages_hold_every_model_once_when_sorted(carol: Person, sort: str) -> None:
    found = await all_pages(carol, sort=sort, limit=37)
    ids = [item["id"] for item in found]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= RAW.keys()
    assert ids == [item["id"] for item in await all_pages(carol, sort=sort, limit=200)]
    known = [item for item in found if item["price_kind"] not in {"runtime", "unknown"}]
    match sort:
        case "newest":
            created = [item["created_at"] for item in found]
            assert created == sorted(created, reverse=True)
        case "context":
            lengths = [item["context_length"] for item in found]
            assert lengths == sorted(lengths, reverse=True)
        case "popular":
            ranks = [item["popularity_rank"] for item in found if item["popularity_rank"] is not None]
            assert len(ranks) >= len(RAW)
            assert ranks == sorted(set(ranks))
        case _:
            # A price that nobody knows is neither cheap nor dear.
            assert found[: len(known)] == known
            prices = [float(item["pricing"]["prompt"]) for item in known]
            assert prices == sorted(prices, reverse=sort == "-price")


async def test_curated_models_exist_when_the_curated_are_listed(carol: Person) -> None:
    page = await carol.get("/api/models", curated=True, limit=200)
    ids = {item["id"] for item in page["items"]}
    assert 20 <= len(ids) <= 30
    assert ids == {curated.id for curated in CURATED} & RAW.keys()
    assert all(item["executable"] and item["curated_reason"] for item in page["items"])


async def test_every_batch_model_is_refused_when_a_resource_is_created(carol: Person) -> None:
    batch = [model_id for model_id in RAW if model_id.endswith(":batch")]
    assert len(batch) == 60
    for model_id in batch:
        refused = problem(await carol.http.post("/api/resources", json=draft(model_id)), 422, "invalid")
        assert "batch" in refused["detail"]
        assert [error["path"] for error in refused["errors"]] == ["openrouter_config.model_id"]
        fallback = draft(config={"fallback_models": [model_id]})
        refused = problem(await carol.http.post("/api/resources", json=fallback), 422, "invalid")
        assert [error["path"] for error in refused["errors"]] == ["openrouter_config.fallback_models.0"]
    assert (await carol.get("/api/resources"))["total"] == 0


async def test_every_other_model_makes_a_resource_when_created(carol: Person) -> None:
    usable = [model_id for model_id in RAW if not model_id.endswith(":batch")]
    for model_id in usable[::10]:
        limit = RAW[model_id]["top_provider"]["max_completion_tokens"] or RAW[model_id]["context_length"]
        created = await carol.create(model=model_id, config={"max_tokens": min(limit, 2000)})
        assert created["model"]["id"] == model_id
        # Carol has connected no key; of the model there is nothing to say.
        assert created["availability"]["code"] == "key_missing"
    assert (await carol.get("/api/resources"))["total"] == len(usable[::10])


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({"provider": "anthropic"}, lambda raw: raw["id"].removeprefix("~").startswith("anthropic/")),
        ({"input_modality": "audio"}, lambda raw: "audio" in raw["architecture"]["input_modalities"]),
        ({"output_modality": "image"}, lambda raw: "image" in raw["architecture"]["output_modalities"]),
        ({"capability": "tools"}, lambda raw: "tools" in raw["supported_parameters"]),
        ({"capability": "logit_bias"}, lambda raw: "logit_bias" in raw["supported_parameters"]),
        ({"min_context": 1_000_000}, lambda raw: raw["context_length"] >= 1_000_000),
        ({"max_prompt_price": "0.000001"}, lambda raw: 0 <= float(raw["pricing"]["prompt"]) <= 1e-6),
        ({"max_completion_price": "0"}, lambda raw: raw["pricing"]["completion"] == "0"),
        ({"status": "retiring"}, lambda raw: (raw["expiration_date"] or "2098").startswith("2026")),
        ({"status": "retired"}, lambda _: False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_filter_lets_through_what_the_file_says_when_used(
    carol: Person, query: dict[str, Any], holds: Any
) -> None:
    found = {item["id"] for item in await all_pages(carol, **query, limit=200) if not item["id"].startswith(MADE_UP)}
    unknown = {model_id for model_id, raw in RAW.items() if price_kind(raw) in {"unknown", "runtime"}}
    wanted = {model_id for model_id, raw in RAW.items() if holds(raw)}
    # A price that nobody knows is within no limit.
    assert found == (wanted - unknown if any("price" in name for name in query) else wanted)


async def test_estimate_uses_the_tier_that_the_prompt_reaches_when_asked(carol: Person) -> None:
    tiered = {model_id: raw for model_id, raw in RAW.items() if "overrides" in raw["pricing"]}
    model_id, raw = next(
        (model_id, raw)
        for model_id, raw in tiered.items()
        if not model_id.endswith(":batch") and len(raw["pricing"]["overrides"]) == 1
    )
    tier = raw["pricing"]["overrides"][0]
    most = tier["min_prompt_tokens"]
    for tokens, prices in ((most, raw["pricing"]), (most + 1, {**raw["pricing"], **tier})):
        body = {"model_id": model_id, "prompt_tokens": tokens, "max_tokens": 1000}
        estimate = await carol.post("/api/models/estimate", body)
        exact = tokens * float(prices["prompt"]) + 1000 * float(prices["completion"])
        assert float(estimate["ceiling_usd"]) >= exact * (1 - 1e-9)
        assert float(estimate["low_usd"]) <= exact


async def test_estimate_says_that_nobody_knows_when_the_price_is_not_known(carol: Person) -> None:
    for model_id, raw in RAW.items():
        if price_kind(raw) in {"runtime", "unknown"}:
            body = {"model_id": model_id, "prompt_tokens": 10, "max_tokens": 10}
            estimate = await carol.post("/api/models/estimate", body)
            assert estimate["price_kind"] == price_kind(raw)
            assert estimate["ceiling_usd"] is None, model_id
