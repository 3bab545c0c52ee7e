"""Paging while syncs run: whoever began on a list sees that list to its end, each model once."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from contracts.catalog import SearchModels
from services.catalog.index import LiveIndex
from services.catalog.models import CatalogModel
from services.catalog.search import ModelIndex
from services.catalog.store import Snapshot, Store
from tests.unit.catalog_parts import NOW, ROWS, row

SOME = list(ROWS.values())[::9]
SORTS = ["popular", "newest", "price", "-price", "context"]


class Written(Store):
    """A store whose catalog a test writes."""

    def __init__(self) -> None:
        super().__init__(SecretStr(""))
        self.models: list[CatalogModel] = []
        self.sync_id = 0

    def write(self, models: list[CatalogModel]) -> None:
        self.models, self.sync_id = models, self.sync_id + 1

    async def snapshot(self) -> Snapshot:
        return Snapshot(self.models, self.sync_id, NOW)


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
        whole = [item.id for item in live.search(SearchModels(**{**query, "limit": 200})).items]
        page = live.search(SearchModels(**query))
        seen = [item.id for item in page.items]
        while page.next_cursor is not None:
            if coming:
                store.write(coming.pop())
                await live.reload()
            page = live.search(SearchModels(**query, cursor=page.next_cursor))
            seen += [item.id for item in page.items]
            assert page.total == len(whole)
        assert seen == whole

    asyncio.run(walk())


async def test_a_list_that_is_no_longer_kept_goes_on_by_its_key() -> None:
    store = Written()
    store.write(SOME)
    live = LiveIndex(store, CollectorRegistry())
    await live.reload()
    first = live.search(SearchModels(sort="newest", limit=5))
    restarted = LiveIndex(store, CollectorRegistry())
    store.write([item for item in SOME if item.id != SOME[-1].id])
    await restarted.reload()
    rest = restarted.search(SearchModels(sort="newest", limit=200, cursor=first.next_cursor))
    whole = [item.id for item in ModelIndex(store.models, NOW).search(SearchModels(sort="newest", limit=200)).items]
    shown = {item.id for item in first.items}
    assert [item.id for item in rest.items] == [model_id for model_id in whole if model_id not in shown]


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
