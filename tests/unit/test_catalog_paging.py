"""Paging while syncs run: whoever began on a list sees that list to its end, each model once, whichever replica answers."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from contracts.catalog import SearchModels
from contracts.errors import ServiceError
from services.catalog.cursors import encode_cursor
from services.catalog.index import LiveIndex
from services.catalog.models import CatalogModel
from services.catalog.search import ModelIndex
from services.catalog.store import Snapshot, Store
from tests.unit.catalog_parts import NOW, ROWS, row

SOME = list(ROWS.values())[::9]
SORTS = ["popular", "newest", "price", "-price", "context"]


class Written(Store):
    """A store whose catalog a test writes. Former lists are known from `known_from` on."""

    def __init__(self) -> None:
        super().__init__(SecretStr(""))
        self.lists: list[list[CatalogModel]] = [[]]
        self.known_from = 1
        self.former_read = 0

    @property
    def models(self) -> list[CatalogModel]:
        return self.lists[-1]

    @property
    def sync_id(self) -> int:
        return len(self.lists) - 1

    def write(self, models: list[CatalogModel]) -> None:
        self.lists.append(models)

    async def snapshot(self) -> Snapshot:
        return Snapshot(self.models, self.sync_id, NOW)

    async def former_snapshot(self, sync_id: int) -> Snapshot | None:
        self.former_read += 1
        known = self.known_from <= sync_id <= self.sync_id
        return Snapshot(self.lists[sync_id], sync_id, NOW) if known else None


@st.composite
def syncs(draw: st.DrawFn) -> list[CatalogModel]:
    """Another catalog: models go, come, are repriced and change places."""
    order = draw(st.permutations(range(len(SOME))))
    gone = draw(st.sets(st.sampled_from(range(len(SOME))), max_size=10))
    models = []
    for place, item in zip(order, SOME, strict=True):
        price = row(pricing={"prompt": f"0.0000{1 + place % 9}", "completion": "0.00001"}).pricing
        changed = replace(item, popularity_rank=place + 1, pricing=price, context_length=1_000 + 7 * place)
        models.append(replace(changed, status="retired") if place in gone else changed)
    models += [replace(row(id=f"new/{n}"), popularity_rank=1000 - n) for n in range(draw(st.integers(0, 5)))]
    return models


@given(
    st.sampled_from(SORTS),
    st.sampled_from([None, "model", "claude"]),
    st.integers(1, 20),
    st.lists(syncs(), min_size=1, max_size=4),
)
def test_pages_neither_skip_nor_repeat_while_syncs_run(
    sort: str, q: str | None, limit: int, coming: list[list[CatalogModel]]
) -> None:
    async def walk() -> None:
        store = Written()
        store.write([replace(item, popularity_rank=place + 1) for place, item in enumerate(SOME)])
        live = LiveIndex(store, CollectorRegistry())
        await live.reload()
        query: dict[str, Any] = {"sort": sort, "q": q, "limit": limit}
        whole = [item.id for item in (await live.search(SearchModels(**{**query, "limit": 200}))).items]
        page = await live.search(SearchModels(**query))
        seen = [item.id for item in page.items]
        while page.next_cursor is not None:
            if coming:
                store.write(coming.pop())
                await live.reload()
            page = await live.search(SearchModels(**query, cursor=page.next_cursor))
            seen += [item.id for item in page.items]
            assert page.total == len(whole)
        assert seen == whole

    asyncio.run(walk())


@given(
    st.sampled_from(SORTS),
    st.sampled_from([None, "model", "claude"]),
    st.integers(5, 20),
    st.lists(syncs(), max_size=3),
    st.data(),
)
def test_two_replicas_that_hear_of_syncs_at_different_times_serve_one_list(
    sort: str, q: str | None, limit: int, coming: list[list[CatalogModel]], data: st.DataObject
) -> None:
    """Each page is asked of either replica; each of them has reloaded after a sync, or not yet."""

    async def walk() -> None:
        store = Written()
        store.write([replace(item, popularity_rank=place + 1) for place, item in enumerate(SOME)])
        replicas = [LiveIndex(store, CollectorRegistry()) for _ in range(2)]
        for each in replicas:
            await each.reload()
        query: dict[str, Any] = {"sort": sort, "q": q, "limit": limit}

        async def happens() -> LiveIndex:
            if data.draw(st.booleans(), label="sync") and coming:
                store.write(coming.pop())
            for each in replicas:
                if data.draw(st.booleans(), label="reload"):
                    await each.reload()
            return replicas[data.draw(st.integers(0, 1), label="replica")]

        first = await happens()
        whole = [item.id for item in (await first.search(SearchModels(**{**query, "limit": 200}))).items]
        page = await first.search(SearchModels(**query))
        seen = [item.id for item in page.items]
        while page.next_cursor is not None:
            page = await (await happens()).search(SearchModels(**query, cursor=page.next_cursor))
            seen += [item.id for item in page.items]
            assert page.total == len(whole)
        assert seen == whole

    asyncio.run(walk())


async def test_a_list_that_another_replica_served_is_read_once() -> None:
    store = Written()
    store.write(SOME)
    serving, other = LiveIndex(store, CollectorRegistry()), LiveIndex(store, CollectorRegistry())
    await serving.reload()
    first = await serving.search(SearchModels(sort="newest", limit=5))
    store.write(SOME[::-1])
    await other.reload()
    query = SearchModels(sort="newest", limit=5, cursor=first.next_cursor)
    pages = await asyncio.gather(*(other.search(query) for _ in range(5)))
    assert store.former_read == 1
    assert all(page == pages[0] for page in pages)
    await other.search(SearchModels(sort="newest", limit=5, cursor=pages[0].next_cursor))
    assert store.former_read == 1


async def test_a_list_that_nobody_knows_any_more_goes_on_by_its_key() -> None:
    store = Written()
    store.write(SOME)
    live = LiveIndex(store, CollectorRegistry())
    await live.reload()
    first = await live.search(SearchModels(sort="newest", limit=5))
    restarted = LiveIndex(store, CollectorRegistry())
    store.write([item for item in SOME if item.id != SOME[-1].id])
    store.known_from = 2
    await restarted.reload()
    rest = await restarted.search(SearchModels(sort="newest", limit=200, cursor=first.next_cursor))
    whole = [item.id for item in ModelIndex(store.models, NOW).search(SearchModels(sort="newest", limit=200)).items]
    shown = {item.id for item in first.items}
    assert [item.id for item in rest.items] == [model_id for model_id in whole if model_id not in shown]


@pytest.mark.parametrize("numbers", [["-1"], ["1e30"], ["1", "0", "1e999999999"], ["1", "0", "0", "1e-999999999"]])
async def test_a_cursor_with_numbers_that_no_list_has_is_refused_at_once(numbers: list[str]) -> None:
    live = LiveIndex(Written(), CollectorRegistry())
    parts = [*numbers, *["0"] * (4 - len(numbers)), "maker/model"]
    with pytest.raises(ServiceError) as refused:
        await live.search(SearchModels(cursor=encode_cursor("models:popular:", parts)))
    assert refused.value.body.fields[0].path == "cursor"


async def test_only_so_many_former_lists_are_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr("services.catalog.index._MOST_KEPT_ENTRIES", 3 * len(SOME))
    store = Written()
    live = LiveIndex(store, CollectorRegistry())
    for _ in range(10):
        store.write(SOME)
        await live.reload()
    assert sum(len(index) for _, index in live._former) == 3 * len(SOME)
    monkeypatch.setattr("services.catalog.index._KEPT_FOR", timedelta(0))
    for _ in range(4):
        store.write(SOME)
        await live.reload()
    assert sum(len(index) for _, index in live._former) <= 3 * len(SOME)
