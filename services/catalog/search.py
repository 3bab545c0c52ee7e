"""The search index of models: all rows in memory, rebuilt as a whole after every sync that changed something.

Upstream lists hundreds of models, not millions, so a linear pass over prepared text answers in a few milliseconds and
needs no database extension. Order is total (the id breaks ties), and a cursor holds a sort key, not a position: a page
stays right when the catalog changes between two pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from contracts.catalog import Model, ModelPage, ModelSort, SearchModels
from contracts.money import plain
from services.catalog.cursors import cursor_number, decode_cursor, encode_cursor
from services.catalog.models import CatalogModel, describe
from services.catalog.prices import amount

_WORD = re.compile(r"[^\W_]+")
# Behind every real rank, age or price.
_LAST = Decimal(10) ** 30

Key = tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    row: CatalogModel
    model: Model
    id: str
    slug: str
    name: str
    named: str
    words: tuple[str, ...]
    everything: str
    prompt_price: Decimal | None
    completion_price: Decimal | None


class ModelIndex:
    """All models that were ever listed, retired ones too. Immutable: a change of the catalog makes a new index."""

    def __init__(self, rows: Iterable[CatalogModel], now: datetime) -> None:
        self._entries = {row.id: _entry(row, now) for row in rows}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, model_id: str) -> Model | None:
        entry = self._entries.get(model_id)
        return entry.model if entry else None

    def rows(self) -> list[CatalogModel]:
        """Every model as stored, in no particular order."""
        return [entry.row for entry in self._entries.values()]

    def search(self, query: SearchModels) -> ModelPage:
        """One page. Raises INVALID for a cursor that does not belong to this query."""
        sort_key = _SORTS[query.sort]
        words = (query.q or "").casefold().split()
        text = " ".join(words)
        found: list[tuple[Key, str, Model]] = sorted(
            (
                ((Decimal(relevance), *sort_key(entry)), entry.row.id, entry.model)
                for entry in self._entries.values()
                if _passes(entry, query) and (relevance := _relevance(entry, text, words)) is not None
            ),
            key=lambda item: item[:2],
        )
        question = f"models:{query.sort}:{text}"
        rest = found
        if query.cursor is not None:
            *numbers, model_id = decode_cursor(question, query.cursor, 4)
            after = (tuple(cursor_number(number) for number in numbers), model_id)
            rest = [item for item in found if item[:2] > after]
        page = rest[: query.limit]
        more = len(rest) > len(page)
        return ModelPage(
            items=[model for _, _, model in page],
            total=len(found),
            next_cursor=encode_cursor(question, [*map(plain, page[-1][0]), page[-1][1]]) if more else None,
        )


def _entry(row: CatalogModel, now: datetime) -> _Entry:
    model = describe(row, now)
    known = model.price_kind not in {"runtime", "unknown"}
    name, model_id = row.name.casefold(), row.id.casefold()
    named = f"{model_id} {name}"
    return _Entry(
        row=row,
        model=model,
        id=model_id,
        slug=model_id.split("/", 1)[-1],
        name=name,
        named=named,
        words=tuple(_WORD.findall(named)),
        everything=f"{named} {row.description.casefold()}",
        prompt_price=amount(row.pricing.prompt) if known else None,
        completion_price=amount(row.pricing.completion) if known else None,
    )


def _passes(entry: _Entry, query: SearchModels) -> bool:
    model = entry.model
    if query.status is None and model.status == "retired":
        return False
    capability = query.capability.casefold().replace("-", "_").replace(" ", "_") if query.capability else None
    return all(
        (
            query.status is None or model.status == query.status,
            query.provider is None or model.provider.casefold() == query.provider.casefold().removeprefix("~"),
            query.input_modality is None or query.input_modality.casefold() in model.input_modalities,
            query.output_modality is None or query.output_modality.casefold() in model.output_modalities,
            capability is None or capability in model.badges or capability in model.supported_parameters,
            query.min_context is None or (model.context_length or 0) >= query.min_context,
            query.curated is None or model.curated == query.curated,
            _at_most(entry.prompt_price, query.max_prompt_price),
            _at_most(entry.completion_price, query.max_completion_price),
        )
    )


def _at_most(price: Decimal | None, limit: Decimal | None) -> bool:
    """A price that nobody knows is never within a limit."""
    return limit is None or (price is not None and price <= limit)


def _relevance(entry: _Entry, text: str, words: list[str]) -> int | None:
    """0 is the best match; None is none."""
    if not words or text in (entry.id, entry.slug):
        return 0
    if entry.id.startswith(text) or entry.slug.startswith(text) or entry.name == text:
        return 1
    if all(any(own.startswith(word) for own in entry.words) for word in words):
        return 2
    if all(word in entry.named for word in words):
        return 3
    if all(word in entry.everything for word in words):
        return 4
    return None


def _by_popularity(entry: _Entry) -> Key:
    rank = entry.row.popularity_rank
    return (_LAST if rank is None else Decimal(rank), Decimal(0))


def _by_age(entry: _Entry) -> Key:
    return (-Decimal(int(entry.model.created_at.timestamp())), Decimal(0))


def _by_price(entry: _Entry) -> Key:
    if entry.prompt_price is None or entry.completion_price is None:
        return (_LAST, _LAST)
    return (entry.prompt_price, entry.completion_price)


def _by_price_falling(entry: _Entry) -> Key:
    if entry.prompt_price is None or entry.completion_price is None:
        return (_LAST, _LAST)
    return (-entry.prompt_price, -entry.completion_price)


def _by_context(entry: _Entry) -> Key:
    length = entry.model.context_length
    return (_LAST if length is None else -Decimal(length), Decimal(0))


_SORTS: dict[ModelSort, Callable[[_Entry], Key]] = {
    "popular": _by_popularity,
    "newest": _by_age,
    "price": _by_price,
    "-price": _by_price_falling,
    "context": _by_context,
}
