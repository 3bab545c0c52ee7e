"""What to use instead of a model that is gone: a proposal for a person, never a switch that happens by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from services.catalog.models import CatalogModel, not_executable_reason
from services.catalog.prices import amount

_TOKEN = re.compile(r"[-_.:]")


def propose_replacement(gone: CatalogModel, models: Iterable[CatalogModel]) -> str | None:
    """An id: the successor where one is known, else the cheapest of the same provider.

    Only models that can be executed, are not retired, and take and give at least the same kinds of content qualify.
    """
    candidates = [model for model in models if _can_stand_in(model, gone)]
    if (successor := successor_of(gone, candidates)) is not None:
        return successor
    priced = [(price, model.id) for model in candidates if (price := _price(model)) is not None]
    return min(priced)[1] if priced else None


def successor_of(gone: CatalogModel, models: Iterable[CatalogModel]) -> str | None:
    """What its alias points to, else the newest of its family; None where neither is known."""
    candidates = [model for model in models if _can_stand_in(model, gone)]
    if any(model.id == gone.alias_target for model in candidates):
        return gone.alias_target
    family = [model for model in candidates if _family(model.id) == _family(gone.id) and not model.id.startswith("~")]
    newest = max(
        family,
        key=lambda model: (model.created_at is not None and model.created_at.timestamp(), model.id),
        default=None,
    )
    return None if newest is None else newest.id


def _can_stand_in(model: CatalogModel, gone: CatalogModel) -> bool:
    return (
        model.id != gone.id
        and model.status != "retired"
        and model.provider == gone.provider
        and set(gone.input_modalities) <= set(model.input_modalities)
        and set(gone.output_modalities) <= set(model.output_modalities)
        and not_executable_reason(model.id, model.output_modalities) is None
    )


def _family(model_id: str) -> frozenset[str]:
    """The words of the id without versions and sizes: `claude-3.5-sonnet` and `~…claude-sonnet-latest` are one family."""
    tokens = frozenset(_TOKEN.split(model_id.lower().removeprefix("~"))) - {"", "latest"}
    return frozenset(token for token in tokens if not any(character.isdigit() for character in token))


def _price(model: CatalogModel) -> Decimal | None:
    if model.pricing.price_kind in {"runtime", "unknown"}:
        return None
    prompt, completion = amount(model.pricing.prompt), amount(model.pricing.completion)
    return None if prompt is None or completion is None else prompt + completion
