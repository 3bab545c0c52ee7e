"""Catalogs that nobody recorded: the two given ones, changed in every way that upstream changes them, and wrecked.

After each sync the table of changes holds exactly the rows that the changes amount to, the models are exactly those of the
list, and everybody who listens has heard exactly what happened.
"""

import copy
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import date
from typing import Any

import asyncpg
import pytest_asyncio

from contracts.catalog import CatalogChange, ListSyncs, ModelPage, SyncCatalog, SyncReport
from contracts.errors import ServiceError
from contracts.subjects import CATALOG_SYNC, CATALOG_SYNCS
from services.runtime.service import Service
from tests.integration.catalog_parts import Parties, Upstream, entry, metric, running_upstream
from tests.stack import shared_data
from tests.waiting import until

Changes = set[tuple[str, str]]
TOLD = {"added", "retired", "returned", "repriced"}
"""The changes that are told by events of the same name; a changed end is told as what it is."""


def given() -> dict[str, dict[str, Any]]:
    """The two recorded catalogs as one, by id."""
    names = ("openrouter-models.json", "openrouter-models-other-modalities.json")
    documents = [json.loads((shared_data() / name).read_bytes()) for name in names]
    return {item["id"]: item for document in documents for item in document["data"]}


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as one:
        one.entries = list(given().values())
        yield one


async def changes_of(superuser: asyncpg.Connection, report: SyncReport) -> Changes:
    """The table's rows, which are also what the report says."""
    rows = await superuser.fetch("SELECT model_id, change FROM catalog.sync_changes WHERE sync_id = $1", report.id)
    written = {(row["model_id"], row["change"]) for row in rows}
    assert {(change.model_id, change.change) for change in report.changes} == written
    assert report.changes_total == len(rows) == len(report.changes)
    for kind in ("added", "retired", "returned", "repriced"):
        assert getattr(report, kind) == sorted(model_id for model_id, change in written if change == kind)
    return written


async def force(parties: Parties) -> SyncReport:
    return await parties.gateway.call(CATALOG_SYNC, SyncCatalog(requested_by="admin", force=True))


async def offered(parties: Parties) -> set[str]:
    items, cursor = [], None
    while True:
        page = await parties.search(limit=200, cursor=cursor)
        items += [model.id for model in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return set(items)


def change_of(report: SyncReport, model_id: str, kind: str) -> CatalogChange:
    (found,) = [item for item in report.changes if (item.model_id, item.change) == (model_id, kind)]
    return found


async def heard(parties: Parties, report: SyncReport, told: Changes) -> None:
    """Exactly these events of this sync."""

    async def all_heard() -> bool:
        return len([event for event in parties.models if event.sync_id == report.id]) >= len(told)

    await until(all_heard)
    events = [(event.model_id, event.change) for event in parties.models if event.sync_id == report.id]
    assert len(events) == len(set(events))
    assert set(events) == told


async def test_every_kind_of_change_is_told_exactly(
    catalog: Service, parties: Parties, upstream: Upstream, superuser: asyncpg.Connection
) -> None:
    models = given()
    (first,) = (await parties.gateway.call(CATALOG_SYNCS, ListSyncs())).items
    assert await changes_of(superuser, first) == {(model_id, "added") for model_id in models}
    assert change_of(first, "openai/gpt-4o-mini", "added").name == models["openai/gpt-4o-mini"]["name"]

    async def sync(*ends: tuple[str, str]) -> tuple[SyncReport, Changes]:
        upstream.entries = copy.deepcopy(list(models.values()))
        report = await parties.sync()
        found = await changes_of(superuser, report)
        assert await offered(parties) == set(models)
        await heard(parties, report, {pair for pair in found if pair[1] in TOLD} | set(ends))
        return report, found

    # Removed and added.
    gone = {model_id: models.pop(model_id) for model_id in ("openai/gpt-4o", "x-ai/grok-4.3", "openai/whisper-1")}
    models["new/model"] = entry("new/model")
    models["new/model:free"] = entry("new/model:free", pricing={"prompt": "0", "completion": "0"})
    _, found = await sync()
    assert found == {*((model_id, "retired") for model_id in gone), ("new/model", "added"), ("new/model:free", "added")}

    # Repriced, renamed, an alias moved, a tier added, an end announced, abilities changed; two things at one model.
    models["mistralai/mistral-nemo"]["pricing"]["prompt"] = "0.00000002"
    models["openai/gpt-4o-mini"]["name"] = "OpenAI: GPT-4o little"
    models["~openai/gpt-mini-latest"]["alias_target"] = {"name": "New", "slug": "new/model"}
    models["new/model"]["pricing"]["overrides"] = [{"min_prompt_tokens": 1000, "prompt": "0.000009"}]
    models["perplexity/sonar"]["expiration_date"] = "2027-01-31"
    models["new/model:free"] |= {"name": "Free", "context_length": 9000}
    report, found = await sync(("perplexity/sonar", "expiring"))
    (expiring,) = [event for event in parties.models if event.change == "expiring"]
    assert expiring.retires_on == date(2027, 1, 31)
    assert found == {
        ("mistralai/mistral-nemo", "repriced"),
        ("openai/gpt-4o-mini", "renamed"),
        ("~openai/gpt-mini-latest", "alias_moved"),
        ("new/model", "repriced"),
        ("perplexity/sonar", "expiry_changed"),
        ("new/model:free", "renamed"),
        ("new/model:free", "updated"),
    }
    (price,) = change_of(report, "mistralai/mistral-nemo", "repriced").fields
    assert (price.field, price.before, price.after) == ("pricing.prompt", "0.000000019", "0.00000002")
    tiers = {item.field: item.after for item in change_of(report, "new/model", "repriced").fields}
    assert tiers == {
        "pricing.price_kind": "tiered",
        "pricing.overrides": '[{"min_prompt_tokens": 1000, "prompt": "0.000009"}]',
    }
    moved = change_of(report, "~openai/gpt-mini-latest", "alias_moved").fields
    assert [(item.before, item.after) for item in moved] == [("openai/gpt-5.4-mini", "new/model")]
    assert [change.pricing.price_kind for change in (await parties.model("new/model")).price_history] == [
        "tiered",
        "fixed",
    ]

    # Back again, one of them at another price and one about to end; another end is withdrawn.
    models |= gone
    models["openai/gpt-4o"]["pricing"]["completion"] = "0.5"
    models["openai/whisper-1"]["expiration_date"] = "2027-02-28"
    models["perplexity/sonar"]["expiration_date"] = None
    _, found = await sync(("openai/whisper-1", "expiring"), ("perplexity/sonar", "expiry_withdrawn"))
    assert found == {
        *((model_id, "returned") for model_id in gone),
        ("openai/gpt-4o", "repriced"),
        ("openai/whisper-1", "expiry_changed"),
        ("perplexity/sonar", "expiry_changed"),
    }
    assert [event.retires_on for event in parties.models if event.change == "expiry_withdrawn"] == [None]
    assert len((await parties.model("x-ai/grok-4.3")).price_history) == 1

    # Nothing.
    report, found = await sync()
    assert (report.outcome, found) == ("unchanged", set())


async def test_garbage_among_the_models_changes_nothing_else(
    catalog: Service, parties: Parties, upstream: Upstream, superuser: asyncpg.Connection
) -> None:
    before = await offered(parties)
    garbage: list[Any] = [None, 7, "x", [], {}, {"id": None}, {"id": "a b"}, {"id": "\ud800"}, {"name": "no id"}]
    twice = copy.deepcopy(upstream.entries[0]) | {"name": "A second time"}
    upstream.entries = [*garbage, *upstream.entries, twice, *garbage]
    report = await parties.sync()
    assert (report.outcome, report.skipped) == ("unchanged", 2 * len(garbage) + 1)
    assert await changes_of(superuser, report) == set()
    assert await offered(parties) == before
    strange = {"id": "odd/one", "name": ["?"], "pricing": "free!", "architecture": 3, "created": "yesterday"}
    upstream.entries.append(strange)
    assert await changes_of(superuser, await parties.sync()) == {("odd/one", "added")}
    assert (await parties.model("odd/one")).price_kind == "unknown"


async def test_a_wrecked_list_is_refused_until_an_admin_insists(
    catalog: Service, parties: Parties, upstream: Upstream, superuser: asyncpg.Connection
) -> None:
    whole = list(given().values())
    before = await offered(parties)
    a_third = whole[::3]
    upstream.entries = a_third
    refused = await parties.sync()
    assert (refused.outcome, refused.forced) == ("refused", False)
    assert "fewer than half" in (refused.reason or "")
    assert await changes_of(superuser, refused) == set()
    assert await offered(parties) == before

    forced = await force(parties)
    assert (forced.outcome, forced.forced, forced.reason) == ("applied", True, refused.reason)
    kept = {item["id"] for item in a_third}
    assert await changes_of(superuser, forced) == {(model_id, "retired") for model_id in before - kept}
    assert await offered(parties) == kept

    upstream.entries = []
    empty = await force(parties)
    assert (empty.outcome, empty.forced) == ("refused", False), "an empty list is a mistake whoever says so"
    assert await offered(parties) == kept

    upstream.entries = whole
    back = await force(parties)
    assert (back.outcome, back.forced, back.reason) == ("applied", False, None)
    assert await changes_of(superuser, back) == {(model_id, "returned") for model_id in before - kept}
    assert metric(catalog, "x402jobs_catalog_syncs_total", outcome="refused") == 2


async def test_half_of_the_models_is_still_believed(
    catalog: Service, parties: Parties, upstream: Upstream, superuser: asyncpg.Connection
) -> None:
    whole = list(given().values())
    upstream.entries = whole[: len(whole) // 2]
    report = await parties.sync()
    assert report.outcome == "applied"
    assert await changes_of(superuser, report) == {(item["id"], "retired") for item in whole[len(whole) // 2 :]}


async def test_prices_in_another_unit_are_refused(catalog: Service, parties: Parties, upstream: Upstream) -> None:
    upstream.entries = [
        item | {"pricing": {"prompt": "2.5", "completion": "10"}} if item["pricing"]["prompt"] != "0" else item
        for item in given().values()
    ]
    report = await parties.sync()
    assert report.outcome == "refused"
    assert "tenfold" in (report.reason or "")
    assert (await parties.model("openai/gpt-4o-mini")).pricing.prompt == "0.00000015"


async def test_a_recommended_model_that_vanishes_is_reported_and_replaced(
    catalog: Service, parties: Parties, upstream: Upstream
) -> None:
    assert metric(catalog, "x402jobs_catalog_curated_missing") == 0
    gone = "~openai/gpt-mini-latest"
    upstream.entries = [item for item in given().values() if item["id"] not in {gone, "mistralai/mistral-nemo"}]
    report = await parties.sync()
    assert {gap.id: gap.replaced_by for gap in report.curated_missing} == {
        gone: "openai/gpt-5.4-mini",
        "mistralai/mistral-nemo": None,
    }
    assert metric(catalog, "x402jobs_catalog_curated_missing") == 2
    recommended = [model.id for model in (await parties.search(curated=True, limit=200)).items]
    assert gone not in recommended
    assert "openai/gpt-5.4-mini" in recommended
    listed = (await parties.gateway.call(CATALOG_SYNCS, ListSyncs(limit=1))).items[0]
    assert listed.curated_missing == report.curated_missing


async def test_ten_thousand_models_are_synced_indexed_and_searched(
    catalog: Service, parties: Parties, upstream: Upstream, superuser: asyncpg.Connection
) -> None:
    whole = list(given().values())
    upstream.entries = [
        item | {"id": f"{item['id']}-copy{number}", "name": f"{item['name']} {number}"}
        for number in range(25)
        for item in whole
    ][:10_000]
    upstream.ranked = [item["id"] for item in reversed(upstream.entries)]
    report = await force(parties)
    assert (report.outcome, report.models, len(report.added)) == ("applied", 10_000, 10_000)
    assert report.changes_total == 10_000 + len(whole)
    assert len(report.changes) == 10_000
    assert await superuser.fetchval("SELECT count(*) FROM catalog.sync_changes WHERE sync_id = $1", report.id) == 10_414

    async def found() -> ModelPage | None:
        # The first searches may find a crowded machine at work on the indexes of ten thousand.
        with suppress(ServiceError):
            return await parties.search(q="antropic", facets=True, capability="tools")
        return None

    page = await until(found)
    assert page.facets is not None
    assert page.total == page.facets.capability["tools"] == page.facets.provider["anthropic"] > 100
    assert (await parties.search()).items[0].id == upstream.ranked[0]
    assert (await parties.sync()).outcome == "unchanged"
