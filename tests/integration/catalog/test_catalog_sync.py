"""Syncs on a real bus and a real database, with an upstream that comes, goes, changes its mind and lies."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from pydantic import SecretStr

from contracts.catalog import ListSyncs
from contracts.errors import ErrorCode, ServiceError
from contracts.subjects import CATALOG_SYNCS
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.catalog.store import Store
from services.runtime.service import Service
from tests.integration.catalog_parts import Parties, Upstream, catalog_running, catalog_settings, entry, metric
from tests.stack import Database, shared_data
from tests.waiting import PATIENCE_S, until


async def test_the_catalog_is_read_at_the_start(catalog: Service, parties: Parties) -> None:
    assert await parties.ids() == ["m/a", "m/b", "m/c"]
    assert metric(catalog, "x402jobs_catalog_models", status="available") == 3
    age_s = metric(catalog, "x402jobs_catalog_age_seconds")
    assert age_s is not None
    assert age_s < 60
    assert metric(catalog, "x402jobs_catalog_syncs_total", outcome="applied") == 1


async def test_every_recorded_model_survives_the_way_through_the_database(
    catalog: Service, parties: Parties, upstream: Upstream
) -> None:
    upstream.raw = (shared_data() / "openrouter-models.json").read_bytes()
    report = await parties.sync()
    assert (report.outcome, report.models, len(report.added)) == ("applied", 400, 400)
    assert report.retired == ["m/a", "m/b", "m/c"]
    again = await parties.sync()
    assert again.outcome == "unchanged", "what was read equals what was stored"
    assert (await parties.search()).total == 400
    free = await parties.search(capability="free", limit=200)
    assert free.total == 15
    tiered = await parties.model("anthropic/claude-sonnet-4.5")
    assert tiered.price_kind == "tiered"
    assert tiered.pricing.overrides[0].min_prompt_tokens == 200_000


async def test_models_come_go_return_and_change_their_price(
    catalog: Service, parties: Parties, upstream: Upstream
) -> None:
    dearer = entry("m/b", pricing={"prompt": "0.5", "completion": "0.50"})
    upstream.entries = [entry("m/a"), dearer, entry("m/d")]
    report = await parties.sync()
    assert (report.added, report.retired, report.returned, report.repriced) == (["m/d"], ["m/c"], [], ["m/b"])
    assert await parties.ids() == ["m/a", "m/b", "m/d"]
    assert await parties.ids(status="retired") == ["m/c"]
    history = (await parties.model("m/b")).price_history
    assert [(price.pricing.prompt, price.pricing.completion) for price in history] == [
        ("0.5", "0.50"),
        ("0.000001", "0.000002"),
    ]
    upstream.entries = [entry("m/a"), dearer, entry("m/d"), entry("m/c")]
    report = await parties.sync()
    assert report.returned == ["m/c"]
    assert len((await parties.model("m/c")).price_history) == 1
    await until(lambda: _heard(parties, 8))
    assert {(event.model_id, event.change) for event in parties.models[3:]} == {
        ("m/d", "added"),
        ("m/c", "retired"),
        ("m/b", "repriced"),
        ("m/c", "returned"),
    }


async def _heard(parties: Parties, at_least: int) -> bool:
    return len(parties.models) >= at_least - 1


async def test_a_retired_model_proposes_its_replacement(catalog: Service, parties: Parties, upstream: Upstream) -> None:
    upstream.entries = [entry("m/a"), entry("m/b")]
    await parties.sync()
    gone = await parties.model("m/c")
    assert gone.status == "retired"
    assert gone.replacement in {"m/a", "m/b"}


async def test_an_unchanged_list_is_not_read_again(catalog: Service, parties: Parties, upstream: Upstream) -> None:
    report = await parties.sync()
    assert report.outcome == "unchanged"
    assert upstream.asked.count("list 304") == 1


async def test_ranks_move_although_the_list_did_not_and_stay_when_unknown(
    catalog: Service, parties: Parties, upstream: Upstream
) -> None:
    assert (await parties.model("m/a")).popularity_rank is None
    upstream.ranked = ["m/b", "m/a"]
    report = await parties.sync()
    assert report.outcome == "applied"
    assert [item.id for item in (await parties.search(sort="popular")).items] == ["m/b", "m/a", "m/c"]
    upstream.ranked = None
    assert (await parties.sync()).outcome == "unchanged"
    assert (await parties.model("m/b")).popularity_rank == 1


async def test_a_list_in_pages_is_read_to_its_end(catalog: Service, parties: Parties, upstream: Upstream) -> None:
    upstream.page_size = 2
    upstream.entries = [entry(f"m/{number}") for number in range(7)]
    report = await parties.sync()
    assert report.models == 7
    assert upstream.asked.count("page") == 3
    upstream.entries = [*upstream.entries[:6], entry("m/new")]
    assert (await parties.sync()).added == ["m/new"], "the tag of one page says nothing of the others"


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry("m/a")], "fewer than half"),
        ([], "no models"),
        ([None, {}, 7], "no models"),
        ([entry(f"m/{name}", pricing={}) for name in "abc"], "price"),
        ([entry(f"m/{name}", pricing={"prompt": "0", "completion": "0"}) for name in "abc"], "price"),
    ],
)
async def test_a_list_that_looks_wrong_is_refused_and_the_old_one_stays(
    catalog: Service, parties: Parties, upstream: Upstream, entries: list[object], says: str
) -> None:
    before = await parties.search()
    upstream.entries = entries
    report = await parties.sync()
    assert report.outcome == "refused"
    assert says in (report.reason or "")
    assert await parties.search() == before
    assert metric(catalog, "x402jobs_catalog_syncs_total", outcome="refused") == 1
    upstream.entries = [entry("m/a"), entry("m/b"), entry("m/c")]
    assert (await parties.sync()).outcome == "unchanged"


@pytest.mark.parametrize("raw", [b"", b"not json", b"[]", b'{"data": {}}', b'{"data": [' + b"[" * 100_000, b"\xff"])
async def test_an_answer_that_is_no_list_fails_and_changes_nothing(
    catalog: Service, parties: Parties, upstream: Upstream, raw: bytes
) -> None:
    upstream.raw = raw
    report = await parties.sync()
    assert report.outcome == "failed"
    assert await parties.ids() == ["m/a", "m/b", "m/c"]


async def test_garbage_among_the_models_is_skipped(catalog: Service, parties: Parties, upstream: Upstream) -> None:
    upstream.entries = [None, "x", {"id": 3}, entry("m/a"), entry("m/b", name="\0\ud800", pricing=7), entry("m/c")]
    report = await parties.sync()
    assert (report.outcome, report.models) == ("applied", 3)
    assert (await parties.model("m/b")).price_kind == "unknown"


async def test_a_status_of_upstream_fails_without_its_words(
    catalog: Service, parties: Parties, upstream: Upstream
) -> None:
    upstream.status = 404
    report = await parties.sync()
    assert report.outcome == "failed"
    assert "404" in (report.reason or "")
    assert "secret" not in report.model_dump_json()


async def test_who_asks_during_a_sync_gets_one_that_began_after_asking(
    catalog: Service, parties: Parties, upstream: Upstream
) -> None:
    upstream.asked.clear()
    upstream.hold = asyncio.Event()
    asking = [asyncio.create_task(parties.sync()) for _ in range(5)]
    await until(lambda: _asked(upstream))
    upstream.hold.set()
    reports = await asyncio.gather(*asking)
    # The first one's reading, and at most one more for those who asked while it was under way.
    assert len({report.id for report in reports}) <= 2
    assert upstream.asked.count("list 304") <= 2


async def _asked(upstream: Upstream) -> bool:
    return bool(upstream.asked)


async def test_replicas_sync_one_at_a_time_and_both_see_the_result(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    settings = catalog_settings(database, nats_server, credentials, upstream)
    async with catalog_running(settings) as one, catalog_running(settings) as two:
        upstream.entries = [*upstream.entries, entry("m/new")]
        await asyncio.gather(*(parties.sync() for _ in range(6)))
        syncs = (await parties.gateway.call(CATALOG_SYNCS, ListSyncs())).items
        assert sum("m/new" in report.added for report in syncs) == 1
        for replica in (one, two):
            await until(lambda replica=replica: _knows(replica, 4))  # type: ignore[misc]


async def test_the_right_to_sync_is_lost_with_the_connection_when_a_sync_fails_or_is_given_up(
    database: Database,
) -> None:
    store = Store(SecretStr(database.dsn("catalog")))
    await store.open()
    watcher = await asyncpg.connect(database.superuser)

    async def backends() -> int:
        count: int = await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'x402jobs-catalog'"
        )
        return count

    async def waiting() -> bool:
        return bool(await watcher.fetchval("SELECT true FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))

    async def wait_for_it() -> None:
        async with store.syncing():
            pytest.fail("somebody else has it")

    try:
        async with store.syncing():
            waiter = asyncio.create_task(wait_for_it())
            await until(waiting)
            assert await backends() == 2
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            await until(lambda: _equals(backends, 1))
        with pytest.raises(ZeroDivisionError):
            async with store.syncing():
                raise ZeroDivisionError
        await until(lambda: _equals(backends, 0))
        async with asyncio.timeout(PATIENCE_S), store.syncing():
            assert await backends() == 1
        assert await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        assert await backends() == 1, "a connection that went well is kept"
    finally:
        await watcher.close()
        await store.close()


async def _equals(count: Callable[[], Awaitable[int]], expected: int) -> bool:
    return await count() == expected


async def _knows(replica: Service, models: int) -> bool:
    return metric(replica, "x402jobs_catalog_models", status="available") == models


async def test_syncs_are_listed_newest_first(catalog: Service, parties: Parties, upstream: Upstream) -> None:
    upstream.status = 404
    await parties.sync()
    items = (await parties.gateway.call(CATALOG_SYNCS, ListSyncs(limit=2))).items
    assert [(item.outcome, item.requested_by) for item in items] == [("failed", "admin"), ("applied", "start")]
    assert items[1].added == ["m/a", "m/b", "m/c"]


async def test_a_service_whose_upstream_is_away_starts_empty_and_says_so(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    upstream.status = 404
    async with catalog_running(catalog_settings(database, nats_server, credentials, upstream)) as service:
        assert (await parties.search()).total == 0
        assert metric(service, "x402jobs_catalog_age_seconds") == float("inf")
        upstream.status = 200
        await until(lambda: _knows(service, 3))  # the schedule tries again by itself


async def test_models_survive_a_restart_without_upstream(
    database: Database, nats_server: Nats, credentials: Credentials, upstream: Upstream, parties: Parties
) -> None:
    settings = catalog_settings(database, nats_server, credentials, upstream)
    async with catalog_running(settings):
        pass
    upstream.status = 404
    async with catalog_running(settings):
        assert await parties.ids() == ["m/a", "m/b", "m/c"]


async def test_an_unknown_model_is_not_found(catalog: Service, parties: Parties) -> None:
    for model_id in ("no/such", "m/a\0"):
        with pytest.raises(ServiceError) as refused:
            await parties.model(model_id)
        assert refused.value.code is ErrorCode.NOT_FOUND


async def test_the_service_owns_nothing_and_cannot_delete(database: Database, catalog: Service) -> None:
    connection = await asyncpg.connect(database.dsn("catalog"))
    try:
        owned = await connection.fetchval("SELECT count(*) FROM pg_class WHERE relowner = 'x402_catalog'::regrole")
        assert owned == 0
        for statement in (
            "DELETE FROM catalog.ai_models",
            "DELETE FROM catalog.x402_resources",
            "UPDATE catalog.ai_model_prices SET pricing = '{}'",
            "TRUNCATE catalog.syncs",
            "CREATE TABLE catalog.own (id int)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
