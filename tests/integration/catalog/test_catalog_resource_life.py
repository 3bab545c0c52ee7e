"""The life of a resource over a real bus and a real database: who may what, which versions remain, what others hear."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import jsonschema
import pytest
import pytest_asyncio

from contracts.catalog import (
    EstimateCost,
    ListResources,
    ResourcePage,
)
from contracts.errors import ErrorCode, ServiceError
from contracts.listings import Listing, ListingPage, ListingRef, SearchListings
from contracts.subjects import (
    LISTINGS_GET,
    LISTINGS_SEARCH,
    MODELS_ESTIMATE,
    RESOURCES_LIST,
    RPCS,
)
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.runtime.service import Service
from tests.integration.catalog_parts import (
    Gate,
    Parties,
    Upstream,
    catalog_running,
    catalog_settings,
    draft,
    entry,
    is_ready,
    running_upstream,
)
from tests.stack import Database
from tests.waiting import until


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as running:
        running.entries = [entry("m/a"), entry("m/b"), entry("m/c"), entry("m/a:batch"), entry("m/d")]
        yield running


@pytest.fixture
def market(catalog: Service, parties: Parties) -> Parties:
    """The bus users, with a catalog that serves them."""
    return parties


async def refused(attempt: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await attempt
    return caught.value


async def listing(parties: Parties, owner: str, slug: str) -> Listing:
    return await parties.gateway.call(LISTINGS_GET, ListingRef(owner=owner, slug=slug))


async def listings(parties: Parties, **query: Any) -> ListingPage:
    return await parties.gateway.call(LISTINGS_SEARCH, SearchListings.model_validate(query))


async def resources(parties: Parties, owner: str = "ann", **query: Any) -> ResourcePage:
    return await parties.gateway.call(RESOURCES_LIST, ListResources.model_validate({"owner": owner, **query}))


async def versions(database: Database, resource_id: UUID) -> list[tuple[int, str]]:
    connection = await asyncpg.connect(database.superuser)
    try:
        rows = await connection.fetch(
            """SELECT version, draft ->> 'name' AS name FROM catalog.x402_resource_versions
               WHERE resource_id = $1 ORDER BY version""",
            resource_id,
        )
        return [(row["version"], row["name"]) for row in rows]
    finally:
        await connection.close()


async def test_a_resource_lives_from_draft_to_deletion(market: Parties) -> None:
    created = await market.create()
    assert (created.status, created.version, created.owner) == ("draft", 1, "ann")
    assert created.model.id == "m/a"
    assert created.availability.available
    jsonschema.Draft202012Validator.check_schema(created.input_schema)
    assert await market.get(created) == created
    published = await market.publish(created)
    assert (published.status, published.version) == ("published", 1)
    assert (await market.publish(created)).status == "published"
    assert (await market.pause(created)).status == "paused"
    await market.publish(created)
    await market.delete(created)
    await market.delete(created)  # a retry after a lost reply
    assert (await refused(market.get(created))).code is ErrorCode.NOT_FOUND
    assert (await refused(market.resolve(str(created.id)))).code is ErrorCode.NOT_FOUND
    assert await market.heard() == [
        ("haiku-maker", change) for change in ("created", "published", "paused", "published", "deleted")
    ]
    assert (await market.create()).version == 1, "the slug is free again"


async def test_what_is_stored_is_what_was_written(market: Parties) -> None:
    written: dict[str, Any] = {
        "openrouter_config": {
            "model_id": "m/a",
            "fallback_models": ["m/b"],
            "system_prompt": "Be brief. “ünïcode” 🙂",
            "prompt_template": "{{topic}} {{n}} {{ tone }} {{loud}}",
            "temperature": 0.7,
            "max_tokens": 100,
            "modalities": ["text"],
            "parameters": {"top_p": 0.25, "stop": ["a", None], "deep": {"x": [1, 2.5, True]}},
        },
        "inputs": [
            {"name": "topic", "max_length": 20},
            {"name": "n", "type": "number", "default": 2, "minimum": 1.5},
            {"name": "tone", "type": "choice", "choices": ["calm", "wild"], "default": "calm"},
            {"name": "loud", "type": "boolean", "required": False},
        ],
        "pricing": {"mode": "cost_plus", "markup_percent": "12.50", "min_usd": "0.000001", "max_usd": "0.10"},
        "timeouts": {"first_token_s": 5, "idle_s": 6.5, "total_s": 70},
    }
    created = await market.create(**written)
    read = (await market.get(created)).model_dump(mode="json", exclude_unset=True)
    for name, value in written.items():
        if name == "inputs":
            assert [{**sent, **got} for sent, got in zip(value, read[name], strict=True)] == read[name]
            assert all(got[key] == sent[key] for sent, got in zip(value, read[name], strict=True) for key in sent)
        elif name == "pricing":
            assert read[name] == {**value, "markup_percent": "12.5", "max_usd": "0.1"}
        else:
            assert read[name] == value
    resolved = await market.resolve("ann/haiku-maker")
    assert resolved.config == created.openrouter_config
    assert (resolved.inputs, resolved.pricing, resolved.timeouts) == (created.inputs, created.pricing, created.timeouts)


async def test_every_edit_is_a_version_and_no_change_is_none(market: Parties, database: Database) -> None:
    created = await market.create()
    same = await market.update(created, name="Haiku maker", expected_version=1)
    assert same.version == 1
    edited = await market.update(created, name="Second", expected_version=1)
    assert (edited.version, edited.name) == (2, "Second")
    stale = await refused(market.update(created, name="Third", expected_version=1))
    assert stale.code is ErrorCode.CONFLICT
    await market.update(created, name="Fourth")
    assert await versions(database, created.id) == [(1, "Haiku maker"), (2, "Second"), (3, "Fourth")]
    assert (await market.resolve(str(created.id))).version == 3
    assert [change for _, change in await market.heard()] == ["created", "updated", "updated"]


async def test_edits_at_the_same_moment_are_all_kept_as_versions(market: Parties, database: Database) -> None:
    created = await market.create()
    await asyncio.gather(*(market.update(created, name=f"Edit {number}") for number in range(8)))
    assert [version for version, _ in await versions(database, created.id)] == list(range(1, 10))
    clash = await asyncio.gather(
        *(market.update(created, name=f"Clash {number}", expected_version=9) for number in range(4)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, ServiceError) for result in clash) == 3


async def test_a_slug_is_unique_per_owner(market: Parties) -> None:
    first = await market.create()
    error = await refused(market.create())
    assert error.code is ErrorCode.CONFLICT
    assert error.body.fields[0].path == "slug"
    other = await market.create(slug="other")
    assert (await refused(market.update(other, slug="haiku-maker"))).code is ErrorCode.CONFLICT
    assert (await market.create("bob")).slug == first.slug
    assert (await resources(market)).total == 2, "the refused ones left nothing behind"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"model_id": "no/such"}, "openrouter_config.model_id"),
        ({"model_id": "no\0such"}, "openrouter_config.model_id"),
        ({"model_id": "m/a:batch"}, "openrouter_config.model_id"),
        ({"fallback_models": ["no/such"]}, "openrouter_config.fallback_models.0"),
        ({"prompt_template": "{{topic}} {{undeclared}}"}, "openrouter_config.prompt_template"),
        ({"prompt_template": "none"}, "inputs.0.name"),
        ({"prompt_template": "{{topic}}\0"}, "openrouter_config.prompt_template"),
        ({"max_tokens": 4097}, "openrouter_config.max_tokens"),
        ({"modalities": ["image"]}, "openrouter_config.modalities"),
        ({"parameters": {"stream": False}}, "openrouter_config.parameters.stream"),
        ({"parameters": {"seed": 2**80}}, "openrouter_config.parameters.seed"),
    ],
)
async def test_a_bad_draft_is_refused_everywhere_and_nothing_is_written(
    market: Parties, changes: dict[str, Any], path: str
) -> None:
    good = await market.create(slug="good")
    bad = {**draft()["openrouter_config"], **changes}
    for attempt in (
        market.create(openrouter_config=bad),
        market.check(openrouter_config=bad),
        market.update(good, openrouter_config=bad),
    ):
        error = await refused(attempt)
        assert error.code is ErrorCode.INVALID
        assert path in [problem.path for problem in error.body.fields]
    assert (await resources(market)).total == 1
    assert (await market.get(good)).version == 1


@pytest.mark.parametrize("status", ["draft", "published", "paused"])
async def test_strangers_learn_only_of_what_is_published(market: Parties, status: str) -> None:
    created = await market.create()
    if status != "draft":
        await market.publish(created)
    if status == "paused":
        await market.pause(created)
    before = await market.get(created)
    expected = ErrorCode.FORBIDDEN if status == "published" else ErrorCode.NOT_FOUND
    for attempt in (
        market.get(created, "bob"),
        market.update(created, "bob", name="Mine"),
        market.publish(created, "bob"),
        market.pause(created, "bob"),
        market.delete(created, "bob"),
    ):
        assert (await refused(attempt)).code is expected
    assert await market.get(created) == before
    await market.delete(created)
    assert (await refused(market.delete(created, "bob"))).code is ErrorCode.NOT_FOUND


async def test_what_does_not_exist_is_not_found(market: Parties) -> None:
    nobody = uuid4()
    for attempt in (
        market.get(nobody),
        market.update(nobody, name="x"),
        market.publish(nobody),
        market.pause(nobody),
        market.delete(nobody),
        market.resolve(str(nobody)),
        market.resolve("ann/none"),
        market.resolve("nonsense"),
        market.resolve("ann/haiku\0"),
        market.resolve("/"),
        listing(market, "ann", "none"),
        listing(market, "ann", "a\0"),
    ):
        assert (await refused(attempt)).code is ErrorCode.NOT_FOUND


async def test_a_draft_cannot_be_paused(market: Parties) -> None:
    assert (await refused(market.pause(await market.create()))).code is ErrorCode.CONFLICT


async def test_a_draft_is_checked_without_being_saved(market: Parties) -> None:
    checked = await market.check()
    assert (checked.resource_id, checked.owner, checked.status, checked.version) == (None, "ann", "draft", 0)
    assert checked.model.id == "m/a"
    assert (await resources(market)).total == 0
    assert market.resources == []


async def test_a_resource_is_resolved_by_id_and_by_name_whatever_its_status(market: Parties) -> None:
    created = await market.create("auth0|ann@example.com")
    by_id, by_name = await market.resolve(str(created.id)), await market.resolve("auth0|ann@example.com/haiku-maker")
    assert by_id == by_name
    assert (by_id.status, by_id.resource_id) == ("draft", created.id)
    await market.publish(created, "auth0|ann@example.com")
    assert (await market.resolve(str(created.id))).status == "published"


async def test_a_retired_model_makes_resources_unavailable_until_it_returns(
    market: Parties, upstream: Upstream
) -> None:
    created = await market.create()
    await market.publish(created)
    waiting = await market.create(slug="waiting")
    upstream.entries = [entry("m/b"), entry("m/c"), entry("m/d")]
    await market.sync()
    gone = await market.get(created)
    assert gone.status == "unavailable"
    assert not gone.availability.available
    assert gone.availability.replacement in {"m/b", "m/c", "m/d"}
    resolved = await market.resolve(str(created.id))
    assert (resolved.status, resolved.availability.available) == ("published", False)
    assert not (await listing(market, "ann", "haiku-maker")).available
    assert (await resources(market, status="unavailable")).total == 1
    assert (await resources(market, status="published")).total == 0
    for attempt in (market.publish(waiting), market.create(slug="third"), market.check()):
        assert (await refused(attempt)).code is ErrorCode.MODEL_UNAVAILABLE
    assert (await market.update(created, description="Soon back.")).version == 2
    upstream.entries = [entry("m/a"), *upstream.entries]
    await market.sync()
    assert (await market.get(created)).status == "published"
    heard = await market.heard()
    assert heard.count(("haiku-maker", "availability")) == heard.count(("waiting", "availability")) == 2


async def test_another_model_makes_a_resource_available_again(market: Parties, upstream: Upstream) -> None:
    created = await market.create()
    await market.publish(created)
    upstream.entries = [entry("m/b"), entry("m/c"), entry("m/d")]
    await market.sync()
    mended = await market.update(created, openrouter_config=draft("m/b")["openrouter_config"])
    assert (mended.status, mended.model.id, mended.availability.available) == ("published", "m/b", True)


async def test_resources_are_paged_newest_first(market: Parties) -> None:
    made = [(await market.create(slug=f"r-{number}")).slug for number in range(7)]
    await market.create("bob")
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page = await resources(market, limit=2, cursor=cursor)
        assert page.total == 7
        seen += [item.slug for item in page.items]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == made[::-1]
    first = await resources(market, limit=2)
    for owner, status in (("ann", "draft"), ("bob", None)):
        error = await refused(resources(market, owner, cursor=first.next_cursor, status=status))
        assert error.code is ErrorCode.INVALID
    assert (await refused(resources(market, cursor="nonsense"))).code is ErrorCode.INVALID


async def test_buyers_see_what_is_published_and_no_secret_of_it(market: Parties) -> None:
    await market.publish(await market.create(slug="first", name="Haiku maker", description="Poems about THE sea"))
    await market.publish(await market.create("bob", slug="second", name="Translator 100%"), "bob")
    await market.create(slug="hidden")
    page = await listings(market)
    assert [item.slug for item in page.items] == ["second", "first"]
    assert page.total == 2
    assert "A haiku about" not in page.model_dump_json()
    assert "m/a" not in page.model_dump_json()
    assert [item.slug for item in (await listings(market, q="SEA haiku")).items] == ["first"]
    assert [item.slug for item in (await listings(market, q="100%")).items] == ["second"]
    assert [item.slug for item in (await listings(market, q="bob")).items] == ["second"]
    assert (await listings(market, q="_")).total == 0
    assert (await listings(market, q="\0")).total == 2
    step = await listings(market, limit=1)
    assert [item.slug for item in (await listings(market, limit=1, cursor=step.next_cursor)).items] == ["first"]
    assert (await refused(listing(market, "ann", "hidden"))).code is ErrorCode.NOT_FOUND


async def test_a_listing_says_what_a_run_costs_at_most(market: Parties) -> None:
    await market.publish(await market.create(slug="fixed"))
    plus = {"mode": "cost_plus", "markup_percent": "40", "min_usd": "0.002", "max_usd": "0.10"}
    await market.publish(await market.create(slug="plus", pricing=plus))
    fixed, flexible = await listing(market, "ann", "fixed"), await listing(market, "ann", "plus")
    assert (fixed.pricing_mode, str(fixed.price_usd), str(fixed.max_price_usd)) == ("fixed", "0.01", "0.01")
    assert (flexible.pricing_mode, flexible.price_usd) == ("cost_plus", None)
    assert str(flexible.max_price_usd) == "0.1"


async def test_estimates_come_over_the_bus(market: Parties) -> None:
    request = EstimateCost(model_id="m/a", prompt_tokens=1000, max_tokens=100)
    estimate = await market.gateway.call(MODELS_ESTIMATE, request)
    assert str(estimate.ceiling_usd) == "0.0012"
    unknown = await refused(market.gateway.call(MODELS_ESTIMATE, EstimateCost(model_id="no/such", prompt="x")))
    assert (unknown.code, unknown.body.fields[0].path) == (ErrorCode.INVALID, "model_id")


WRONG_TYPES = b'{"owner": 7, "id": 7, "ref": 7, "limit": "x", "model_id": 7, "requested_by": 7, "slug": 7}'


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"null", WRONG_TYPES, b"\xff\xfe"])
async def test_a_malformed_message_gets_a_typed_error_and_kills_nothing(market: Parties, body: bytes) -> None:
    for rpc in RPCS:
        if rpc.owner != "catalog":
            continue
        bus = market.gateway if "gateway" in rpc.callers else market.executor
        error = await refused(bus.call_raw(rpc, body))
        assert error.code is ErrorCode.INVALID, rpc.name
    assert await market.ids() == ["m/a", "m/a:batch", "m/b", "m/c", "m/d"]


async def test_every_request_of_the_registry_is_served(catalog: Service) -> None:
    assert catalog.bus.served == {rpc.subject for rpc in RPCS if rpc.owner == "catalog"}


async def test_a_database_that_goes_away_is_unavailable_and_comes_back(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    gate = Gate(database.server.port)
    behind_gate = database.dsn("catalog").replace(f":{gate.behind}/", f":{gate.port}/")
    await gate.open()
    settings = catalog_settings(database, nats_server, credentials, upstream, postgres_url=behind_gate)
    async with catalog_running(settings) as service:
        created = await parties.create()
        await gate.shut()
        for attempt in (
            parties.get(created),
            parties.create(slug="two"),
            parties.update(created, name="x"),
            parties.resolve(str(created.id)),
            parties.sync(),
            resources(parties),
        ):
            assert (await refused(attempt)).code is ErrorCode.UNAVAILABLE
        assert not await is_ready(service)
        assert (await parties.search()).total == 5, "what is in memory is still answered"
        await gate.open()
        await until(lambda: is_ready(service))
        assert (await parties.get(created)).version == 1
        assert (await parties.sync()).outcome == "unchanged"
    await gate.shut()


async def test_a_service_waits_for_its_database(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    gate = Gate(database.server.port)
    behind_gate = database.dsn("catalog").replace(f":{gate.behind}/", f":{gate.port}/")

    async def open_later() -> None:
        await asyncio.sleep(0.3)
        await gate.open()

    opening = asyncio.create_task(open_later())
    settings = catalog_settings(database, nats_server, credentials, upstream, postgres_url=behind_gate)
    async with catalog_running(settings):
        assert (await parties.search()).total == 5
    await opening
    await gate.shut()
