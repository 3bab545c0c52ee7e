"""Searching models: filters, ranking, sorts, and cursors that neither lose nor repeat."""

import base64
from dataclasses import replace
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


def test_exact_ids_come_first_then_names_then_the_popular() -> None:
    rows = [
        replace(row(id="m/spark", name="M: Other"), popularity_rank=9),
        replace(row(id="n/x", name="N: m/spark"), popularity_rank=8),
        replace(row(id="m/spark-mini", name="M: Spark Mini"), popularity_rank=7),
        replace(row(id="o/good-spark", name="O: Good Spark"), popularity_rank=6),
        replace(row(id="p/talks", name="P: Talks", description="Like m/spark."), popularity_rank=1),
        replace(row(id="o/fine-spark", name="O: Fine Spark"), popularity_rank=5),
    ]
    assert ids(ModelIndex(rows, NOW), q="m/spark")[:3] == ["m/spark", "n/x", "m/spark-mini"]
    assert ids(ModelIndex(rows, NOW), q="Spark") == [
        *("m/spark", "m/spark-mini", "o/fine-spark", "o/good-spark", "n/x", "p/talks"),
    ]


def test_another_order_holds_whatever_matches_best() -> None:
    prices = [Decimal(item.pricing.prompt) for item in walk(q="gpt", sort="price") if item.price_kind != "unknown"]
    assert len(prices) > 50
    assert prices == sorted(prices)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("antropic", "anthropic/"),
        ("anthrpi", "anthropic/"),
        ("clade", "anthropic/claude"),
        ("opnai", "openai/"),
        ("deepsek", "deepseek/"),
        ("deepseke", "deepseek/"),
        ("gemni", "google/gemini"),
        ("perplexty", "perplexity/"),
        ("qwn", "qwen/"),
        ("gtp", "openai/gpt"),
        ("grk", "x-ai/grok"),
        ("lama 3.3 instruct", "meta-llama/llama-3.3"),
        ("gpt4o", "openai/gpt-4o"),
        ("claude sonnet4.5", "anthropic/claude-sonnet-4.5"),
        ("claude-sonet-4.5", "anthropic/claude-sonnet-4.5"),
        ("gtp-4o-mini", "openai/gpt-4o-mini"),
        ("openai/gtp-4o-mini", "openai/gpt-4o-mini"),
        ("ANTROPIC sonet", "anthropic/claude-sonnet"),
    ],
)
def test_a_typing_mistake_is_forgiven(typed: str, meant: str) -> None:
    assert ids(q=typed)[0].removeprefix("~").startswith(meant)


@pytest.mark.parametrize("typed", ["zzzz", "gpt-9.7", "claude 99", "xy", "🦙", "%%%", "kubernetes"])
def test_what_is_like_nothing_finds_nothing(typed: str) -> None:
    assert ids(q=typed) == []


def test_a_word_that_is_there_is_never_taken_for_another() -> None:
    rows = [row(id="a/opal", name="A: Opal"), row(id="a/opel", name="A: Opel")]
    assert ids(ModelIndex(rows, NOW), q="opal") == ["a/opal"]
    assert set(ids(ModelIndex(rows, NOW), q="opul")) == {"a/opal", "a/opel"}


QUERIES = st.fixed_dictionaries(
    {"sort": st.sampled_from(SORTS)},
    optional={
        "q": st.sampled_from(["gpt", "claud", "antropic", "image model", ""]),
        "provider": st.sampled_from(["openai", "Anthropic", "google", "nobody"]),
        "input_modality": st.sampled_from(["image", "audio"]),
        "output_modality": st.sampled_from(["image", "text"]),
        "capability": st.sampled_from(["tools", "vision", "temperature", "free"]),
        "max_prompt_price": st.sampled_from(["0", "0.000001", "0.00001"]),
        "max_completion_price": st.sampled_from(["0.000002", "0.0001"]),
        "min_context": st.sampled_from([0, 128_000, 1_000_000]),
        "curated": st.booleans(),
        "status": st.sampled_from(["available", "retiring", "retired"]),
    },
)
FACETS = ("provider", "input_modality", "output_modality", "capability", "curated", "status")
MIXED = ModelIndex([replace(item, status="retired") if n % 7 == 0 else item for n, item in enumerate(SOME)], NOW)


@given(QUERIES)
def test_every_filter_and_sort_goes_with_every_other(query: dict[str, Any]) -> None:
    sort, filters = query.pop("sort"), query
    one_by_one = [set(ids(MIXED, **{name: value})) for name, value in filters.items() if name not in {"q", "status"}]
    hidden = {"status": filters["status"]} if "status" in filters else {}
    # A search without a status hides what is retired, and so does each filter alone.
    everything = {item_id for status in ("available", "retiring", "retired") for item_id in ids(MIXED, status=status)}
    if hidden:
        one_by_one = [
            {i for s in ("available", "retiring", "retired") for i in ids(MIXED, status=s, **{name: value})}
            for name, value in filters.items()
            if name not in {"q", "status"}
        ]
    text = set(ids(MIXED, q=filters["q"], **hidden)) if "q" in filters else set(ids(MIXED, **hidden))
    assert set(ids(MIXED, sort=sort, **filters)) == text.intersection(everything, *one_by_one)


@given(QUERIES)
def test_a_facet_says_what_its_filter_would_find(query: dict[str, Any]) -> None:
    page = find(MIXED, facets=True, limit=1, **query)
    assert page.facets is not None
    assert page.total == find(MIXED, **query).total == sum(page.facets.price_kind.values())
    for facet in FACETS:
        counts: dict[str, int] = getattr(page.facets, facet)
        assert list(counts.values()) == sorted(counts.values(), reverse=True)
        for value, count in list(counts.items())[:4]:
            assert find(MIXED, **{**query, facet: value}).total == count > 0
    assert find(MIXED, **query).facets is None


def test_ten_thousand_models_are_indexed_and_searched() -> None:
    many = [
        replace(item, id=f"{item.id}-{copy}", name=f"{item.name} {copy}")
        for copy in range(25)
        for item in ROWS.values()
    ]
    index = ModelIndex(many[:10_000], NOW)
    assert find(index, q="antropic", facets=True, capability="tools").total > 100
    assert len(index) == 10_000
    again = ModelIndex(many[:10_000], NOW, former=index)
    assert all(again.entries[item.id] is index.entries[item.id] for item in many[:100]), "what did not change is shared"
