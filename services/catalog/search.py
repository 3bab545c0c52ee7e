"""The search index of models: all rows in memory, rebuilt as a whole after every sync that changed something.

Upstream lists hundreds of models, not millions, so a linear pass over prepared text answers in a few milliseconds and
needs no database extension. Order is total (the id breaks ties). A cursor holds a sort key and the number of the catalog
that it was begun on: as long as that one is known the pages are of one catalog, on every replica, and where it is not, a
key stays right for every model that did not move.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from contracts.catalog import Model, ModelFacets, ModelPage, ModelSort, SearchModels
from contracts.money import plain
from services.catalog.badges import is_new
from services.catalog.curated import Recommendations, recommend
from services.catalog.cursors import bad_cursor, cursor_number, decode_cursor, encode_cursor
from services.catalog.models import CatalogModel, describe
from services.catalog.prices import amount
from services.catalog.spelling import Vocabulary

_WORD = re.compile(r"[^\W_]+")
_LETTERS_OR_DIGITS = re.compile(r"[^\W\d_]+|\d+")
# Behind every real rank, age or price.
_LAST = Decimal(10) ** 30
_CURSOR_PARTS = 5
_MOST_SYNCS = 2**63

Key = tuple[Decimal, Decimal]
Place = tuple[Decimal, Decimal, str]
"""Sort key and id: a total order."""
Hit = tuple[int, Place, Model]
"""Relevance, place, model."""


@dataclass(frozen=True, slots=True)
class _Entry:
    row: CatalogModel
    model: Model
    is_new: bool
    exact: tuple[str, ...]
    titles: tuple[str, ...]
    named: str
    squeezed: str
    words: tuple[str, ...]
    everything: str
    prompt_price: Decimal | None
    completion_price: Decimal | None


@dataclass(frozen=True, slots=True)
class _Term:
    """One thing that was typed: what it may stand for, and whether it may run over the gaps between words."""

    meanings: tuple[str, ...]
    squeezed: str | None = None


class ModelIndex:
    """All models that were ever listed, retired ones too. Immutable: a change of the catalog makes a new index."""

    def __init__(
        self, rows: Iterable[CatalogModel], now: datetime, generation: int = 0, former: ModelIndex | None = None
    ) -> None:
        """`generation` numbers the catalog that the rows are; entries that did not change are shared with `former`."""
        by_id = {row.id: row for row in rows}
        self.generation = generation
        self.recommendations: Recommendations = recommend(by_id)
        known: dict[str, _Entry] = {} if former is None else former.entries
        reasons = self.recommendations.reasons
        self.entries: dict[str, _Entry] = {
            key: _shared(known.get(key), row, now, reasons.get(key)) for key, row in by_id.items()
        }
        self._sorted: dict[ModelSort, list[tuple[Place, _Entry]]] = {}
        entries = self.entries.values()
        self._text = "\n".join(entry.everything for entry in entries)
        self._squeezed = "\n".join(entry.squeezed for entry in entries)
        self._names = Vocabulary(word for entry in entries for word in entry.words)
        self._descriptions = Vocabulary(_WORD.findall(self._text))

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self) -> list[CatalogModel]:
        """Every model as stored, in no particular order."""
        return [entry.row for entry in self.entries.values()]

    def search(self, query: SearchModels) -> ModelPage:
        """One page. Raises INVALID for a cursor that does not belong to this query."""
        after = None if query.cursor is None else _read_cursor(query)[1]
        hits, facets = self._find(query)
        rest = hits if after is None else [hit for hit in hits if hit[:2] > after]
        page = rest[: query.limit]
        return ModelPage(
            items=[model for _, _, model in page],
            total=len(hits),
            next_cursor=self._write_cursor(query, page[-1]) if len(rest) > len(page) else None,
            facets=facets,
        )

    def _find(self, query: SearchModels) -> tuple[list[Hit], ModelFacets | None]:
        text, terms = self._read(query.q)
        checks = _checks(query)
        count = _FacetCounts() if query.facets else None
        # Whoever asks for an order gets it; the best match comes first where the order is ours to choose.
        ranked = query.sort == "popular"
        hits: list[Hit] = []
        for place, entry in self._in_order(query.sort):
            failed = [name for name, holds in checks if not holds(entry)]
            if failed and (count is None or len(failed) > 1):
                continue
            relevance = _relevance(entry, text, terms)
            if relevance is None:
                continue
            if count is not None:
                count.add(entry, failed[0] if failed else None)
            if not failed:
                hits.append((relevance if ranked else 0, place, entry.model))
        if ranked and terms:
            hits.sort(key=lambda hit: hit[0])
        return hits, None if count is None else count.facets()

    def _in_order(self, sort: ModelSort) -> list[tuple[Place, _Entry]]:
        ordered = self._sorted.get(sort)
        if ordered is None:
            key = _SORTS[sort]
            places = [((*key(entry), entry.row.id), entry) for entry in self.entries.values()]
            ordered = self._sorted[sort] = sorted(places, key=lambda item: item[0])
        return ordered

    def _read(self, q: str | None) -> tuple[str, list[_Term]]:
        """What was typed as one text, and term by term, with misspelt words put right."""
        words = (q or "").casefold().split()
        terms: list[_Term] = []
        for position, word in enumerate(words):
            squeezed = "".join(_WORD.findall(word))
            if word in self._text:
                terms.append(_Term((word,)))
            elif squeezed and squeezed in self._squeezed:
                terms.append(_Term((word,), squeezed))
            else:
                parts = [self._meanings(part) for part in self._parts(word)]
                terms += [_Term(meanings) for _, meanings in parts]
                for part, meanings in parts:
                    words[position] = words[position].replace(part, meanings[0], 1)
        return " ".join(words), terms

    def _parts(self, word: str) -> list[str]:
        """The words in something like `gtp-4o`; letters and digits that were run together are apart."""
        parts: list[str] = []
        for part in _WORD.findall(word):
            parts += [part] if part in self._text else _LETTERS_OR_DIGITS.findall(part)
        return parts or [word]

    def _meanings(self, word: str) -> tuple[str, tuple[str, ...]]:
        """The word with what it may stand for."""
        if word in self._text:
            return word, (word,)
        return word, self._names.near(word) or self._descriptions.near(word) or (word,)

    def _write_cursor(self, query: SearchModels, last: Hit) -> str:
        relevance, (first, second, model_id), _ = last
        parts = [str(self.generation), str(relevance), plain(first), plain(second), model_id]
        return encode_cursor(_question(query), parts)


def generation_of(query: SearchModels) -> int | None:
    """The catalog that this search was begun on; None for a first page. Raises INVALID for a cursor of another query."""
    return None if query.cursor is None else _read_cursor(query)[0]


def _question(query: SearchModels) -> str:
    return f"models:{query.sort}:{' '.join((query.q or '').casefold().split())}"


def _read_cursor(query: SearchModels) -> tuple[int, tuple[int, Place]]:
    """The number of the catalog, and after what the page begins."""
    assert query.cursor is not None
    *texts, model_id = decode_cursor(_question(query), query.cursor, _CURSOR_PARTS)
    generation, relevance, first, second = map(cursor_number, texts)
    if not 0 <= generation < _MOST_SYNCS:
        raise bad_cursor()
    return int(generation), (int(relevance), (first, second, model_id))


def _shared(former: _Entry | None, row: CatalogModel, now: datetime, reason: str | None) -> _Entry:
    """The former entry where nothing that it shows is different."""
    assert row.created_at is not None
    fresh = is_new(row.created_at, now)
    if former is not None and former.row == row and former.is_new == fresh and former.model.curated_reason == reason:
        return former
    return _entry(row, describe(row, now, {} if reason is None else {row.id: reason}), fresh=fresh)


def _entry(row: CatalogModel, model: Model, *, fresh: bool) -> _Entry:
    known = model.price_kind not in {"runtime", "unknown"}
    name, model_id = row.name.casefold(), row.id.casefold()
    slug, short_name = model_id.split("/", 1)[-1], name.split(": ", 1)[-1]
    named = f"{model_id} {name}"
    words = tuple(dict.fromkeys(_WORD.findall(named) + _LETTERS_OR_DIGITS.findall(named)))
    return _Entry(
        row=row,
        model=model,
        is_new=fresh,
        exact=(model_id, slug, model_id.removeprefix("~")),
        titles=(name, short_name),
        named=named,
        squeezed="".join(_WORD.findall(slug)) + " " + "".join(_WORD.findall(name)),
        words=words,
        everything=f"{named} {row.description.casefold()}",
        prompt_price=amount(row.pricing.prompt) if known else None,
        completion_price=amount(row.pricing.completion) if known else None,
    )


# Filters and facets ---------------------------------------------------------------------------------------------------

Check = tuple[str, Callable[[_Entry], bool]]


def _checks(query: SearchModels) -> list[Check]:
    """The filters that are set, by name. Without `status`, what is retired stays hidden."""
    checks: list[Check] = []
    if (status := query.status) is None:
        checks.append(("status", lambda entry: entry.row.status != "retired"))
    else:
        checks.append(("status", lambda entry: entry.row.status == status))
    if query.provider is not None:
        provider = query.provider.casefold().removeprefix("~")
        checks.append(("provider", lambda entry: entry.row.provider.casefold() == provider))
    if query.input_modality is not None:
        taken = query.input_modality.casefold()
        checks.append(("input_modality", lambda entry: taken in entry.row.input_modalities))
    if query.output_modality is not None:
        given = query.output_modality.casefold()
        checks.append(("output_modality", lambda entry: given in entry.row.output_modalities))
    if query.capability is not None:
        wanted = query.capability.casefold().replace("-", "_").replace(" ", "_")
        checks.append(("capability", lambda entry: _is_able(entry, wanted)))
    if (curated := query.curated) is not None:
        checks.append(("curated", lambda entry: entry.model.curated == curated))
    if (least := query.min_context) is not None:
        checks.append(("min_context", lambda entry: (entry.row.context_length or 0) >= least))
    if (prompt_limit := query.max_prompt_price) is not None:
        checks.append(("max_prompt_price", lambda entry: _at_most(entry.prompt_price, prompt_limit)))
    if (completion_limit := query.max_completion_price) is not None:
        checks.append(("max_completion_price", lambda entry: _at_most(entry.completion_price, completion_limit)))
    return checks


def _is_able(entry: _Entry, capability: str) -> bool:
    return capability in entry.model.badges or capability in entry.row.supported_parameters


def _at_most(price: Decimal | None, limit: Decimal) -> bool:
    """A price that nobody knows is never within a limit."""
    return price is not None and price <= limit


class _FacetCounts:
    """Counts a model in a facet when it passes every filter but, at most, that facet's own."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {name: {} for name in ModelFacets.model_fields}

    def add(self, entry: _Entry, failed: str | None) -> None:
        for name in self._counts if failed is None else {failed} & self._counts.keys():
            counts = self._counts[name]
            for value in _facet_values(entry, name):
                counts[value] = counts.get(value, 0) + 1

    def facets(self) -> ModelFacets:
        return ModelFacets.model_validate({name: _frequent_first(counts) for name, counts in self._counts.items()})


def _facet_values(entry: _Entry, facet: str) -> Iterable[str]:
    model = entry.model
    match facet:
        case "provider":
            return (model.provider,)
        case "input_modality":
            return model.input_modalities
        case "output_modality":
            return model.output_modalities
        case "capability":
            return model.badges
        case "curated":
            return ("true" if model.curated else "false",)
        case "price_kind":
            return (model.price_kind,)
        case _:
            return (model.status,)


def _frequent_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# Relevance and order --------------------------------------------------------------------------------------------------


def _relevance(entry: _Entry, text: str, terms: list[_Term]) -> int | None:
    """0 is the best match; None is none."""
    if not all(_stands_in(term, entry.everything, entry.squeezed) for term in terms):
        return None
    if not terms or text in entry.exact:
        return 0
    if text in entry.titles:
        return 1
    if any(own.startswith(text) for own in (*entry.exact, *entry.titles)):
        return 2
    if all(any(own.startswith(term.meanings) for own in entry.words) for term in terms):
        return 3
    if all(_stands_in(term, entry.named, entry.squeezed) for term in terms):
        return 4
    return 5


def _stands_in(term: _Term, text: str, squeezed: str) -> bool:
    return any(meaning in text for meaning in term.meanings) or (
        term.squeezed is not None and term.squeezed in squeezed
    )


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
