"""Searching models: filters, ranking, sorts, and cursors that neither lose nor repeat."""

import base64
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import Model, ModelPage, SearchModels
from contracts.errors import ErrorCode, ServiceError
from services.catalog.models import CatalogModel
from services.catalog.search import ModelIndex
from tests.unit.catalog_parts import NOW, RAW, ROWS, row

RANKED = {
    model_id: CatalogModel(**{name: getattr(item, name) for name in item.__slots__} | {"popularity_rank": rank})
    for rank, (model_id, item) in enumerate(ROWS.items(), 1)
    if rank % 3
} | {model_id: item for rank, (model_id, item) in enumerate(ROWS.items(), 1) if not rank % 3}
INDEX = ModelIndex(RANKED.values(), NOW)
SOME = list(RANKED.values())[::8]
SOME_INDEX = ModelIndex(SOME, NOW)
SORTS = ["popular", "newest", "price", "-price", "context"]


def find(index: ModelIndex = INDEX, /, **query: Any) -> ModelPage:
    return index.search(SearchModels.model_validate(query))


def ids(index: ModelIndex = INDEX, /, **query: Any) -> list[str]:
    return [item.id for item in walk(index, **query)]


def walk(index: ModelIndex = INDEX, /, **query: Any) -> list[Model]:
    """Every page, one after the other."""
    page = find(index, **{"limit": 200, **query})
    items = page.items
    while page.next_cursor is not None:
        page = find(index, **{"limit": 200, **query, "cursor": page.next_cursor})
        items = items + page.items
    return items


@given(
    st.sampled_from(SORTS),
    st.integers(1, 60),
    st.sampled_from([None, "gpt", "claude", "a", "image model", "zzzz"]),
    st.sampled_from([None, "tools", "vision"]),
)
def test_pages_together_are_the_whole_answer_once_and_in_order(
    sort: str, limit: int, q: str | None, capability: str | None
) -> None:
    query = {"sort": sort, "q": q, "capability": capability}
    paged = ids(SOME_INDEX, limit=limit, **query)
    assert paged == ids(SOME_INDEX, limit=200, **query)
    assert len(set(paged)) == len(paged) == find(SOME_INDEX, **query).total


@given(st.sampled_from(SORTS), st.integers(1, 60), st.sets(st.sampled_from([item.id for item in SOME])))
def test_a_cursor_stays_right_when_models_go_between_two_pages(sort: str, limit: int, gone: set[str]) -> None:
    first = find(SOME_INDEX, sort=sort, limit=limit)
    smaller = ModelIndex([item for item in SOME if item.id not in gone], NOW)
    rest = [] if first.next_cursor is None else ids(smaller, sort=sort, cursor=first.next_cursor)
    shown = {item.id for item in first.items}
    assert rest == [model_id for model_id in ids(smaller, sort=sort) if model_id not in shown]


def test_everything_is_found_without_a_question() -> None:
    assert find().total == len(RAW)


def test_sorts() -> None:
    ranks = [item.popularity_rank for item in walk(sort="popular")]
    known = [rank for rank in ranks if rank is not None]
    assert known == sorted(known)
    assert ranks[len(known) :] == [None] * (len(ranks) - len(known))
    newest = [item.created_at for item in walk(sort="newest")]
    assert newest == sorted(newest, reverse=True)
    contexts = [item.context_length or 0 for item in walk(sort="context")]
    assert contexts == sorted(contexts, reverse=True)
    for sort, falling in (("price", False), ("-price", True)):
        items = walk(sort=sort)
        unknown = [item.price_kind in {"runtime", "unknown"} for item in items]
        assert unknown == sorted(unknown), "what nobody can price comes last"
        prices = [Decimal(item.pricing.prompt) for item in items if item.price_kind not in {"runtime", "unknown"}]
        assert prices == sorted(prices, reverse=falling)


def test_the_best_match_comes_first() -> None:
    assert ids(q="openai/gpt-4o-mini")[0] == "openai/gpt-4o-mini"
    assert ids(q="gpt-4o-mini")[0] == "openai/gpt-4o-mini"
    assert ids(q="GPT-4O-MINI")[0] == "openai/gpt-4o-mini"
    found = ids(q="claude")
    assert all("claude" in model_id for model_id in found[:10])
    assert "anthropic/claude-sonnet-5" in ids(q="sonnet claude")
    rare = row(id="a/x", name="A: X", description="Knows about zebras.")
    index = ModelIndex([rare, row(id="a/zebra-1"), row(id="b/new", name="B: Zebra new")], NOW)
    assert ids(index, q="zebra") == ["a/zebra-1", "b/new", "a/x"]
    assert ids(index, q="unheard of") == []
    assert ids(index, q="  ") == ids(index)


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({"provider": "anthropic"}, lambda m: m.id.startswith(("anthropic/", "~anthropic/"))),
        ({"provider": "Anthropic"}, lambda m: m.provider == "anthropic"),
        ({"input_modality": "audio"}, lambda m: "audio" in m.input_modalities),
        ({"output_modality": "image"}, lambda m: "image" in m.output_modalities),
        ({"capability": "tools"}, lambda m: "tools" in m.supported_parameters),
        ({"capability": "structured-output"}, lambda m: "structured_outputs" in m.supported_parameters),
        ({"capability": "min_p"}, lambda m: "min_p" in m.supported_parameters),
        ({"capability": "free"}, lambda m: m.price_kind == "free"),
        ({"min_context": 1_000_000}, lambda m: (m.context_length or 0) >= 1_000_000),
        ({"curated": True}, lambda m: m.curated_reason is not None),
        ({"curated": False}, lambda m: not m.curated),
        ({"status": "retiring"}, lambda m: m.retires_on is not None),
        ({"status": "retired"}, lambda m: m.status == "retired"),
        (
            {"max_prompt_price": "0.000001"},
            lambda m: m.price_kind not in {"runtime", "unknown"} and Decimal(m.pricing.prompt) <= Decimal("0.000001"),
        ),
        (
            {"max_completion_price": "0"},
            lambda m: m.price_kind not in {"runtime", "unknown"} and Decimal(m.pricing.completion) == 0,
        ),
    ],
)
def test_filters(query: dict[str, Any], holds: Any) -> None:
    expected = {item.id for item in walk() if holds(item)}
    assert set(ids(**query)) == expected
    assert find(**query).total == len(expected)


def test_retired_models_show_only_when_asked_for() -> None:
    gone = CatalogModel(**{name: getattr(row(), name) for name in row().__slots__} | {"status": "retired"})
    index = ModelIndex([gone, row(id="maker/other")], NOW)
    assert ids(index) == ["maker/other"]
    assert ids(index, status="retired") == ["maker/model"]


@pytest.mark.parametrize(
    "cursor",
    ["x", "%%%", "é", base64.urlsafe_b64encode(b'["a"]').decode(), base64.urlsafe_b64encode(b"{}").decode(), ""],
)
def test_a_cursor_that_is_none_of_ours_is_refused(cursor: str) -> None:
    with pytest.raises(ServiceError) as refused:
        find(cursor=cursor)
    assert refused.value.code is ErrorCode.INVALID
    assert refused.value.body.fields[0].path == "cursor"


def test_a_cursor_of_another_question_is_refused() -> None:
    cursor = find(sort="price", limit=1).next_cursor
    for other in ({"sort": "newest"}, {"sort": "price", "q": "gpt"}):
        with pytest.raises(ServiceError) as refused:
            find(cursor=cursor, **other)
        assert refused.value.code is ErrorCode.INVALID


def test_the_longest_cursor_fits_its_field() -> None:
    long = [row(id="m/" + "x" * 197 + digit, pricing={"prompt": "0." + "1" * 57, "completion": "1"}) for digit in "12"]
    index = ModelIndex(long, NOW)
    assert len(ids(index, sort="price", limit=1)) == 2
