"""One entry of upstream's list turned into a row of `ai_models`, and a row into the `Model` that everybody sees.

Upstream adds fields, values and nonsense without notice, so parsing never fails: an entry without a usable id is skipped
and counted, everything else falls back to "not known". What depends on today's date or on our own lists (badges, curated,
executable) is derived when a row is read, so that it is never stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from contracts.catalog import Model, ModelPricing, ModelStatus
from services.catalog.badges import derive_badges
from services.catalog.prices import parse_pricing, typical_call

# Upstream writes 2098-12-31 for "no date"; real announcements are weeks or months ahead.
SENTINEL_AFTER = timedelta(days=2 * 366)
_ID = re.compile(r"[!-~]{1,200}")
_MAX_TOKENS = 10**12
_EPOCH_2100 = 4_102_444_800
_MAX_NAME_CHARS = 300
_MAX_DESCRIPTION_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A row of `ai_models`. `created_at` is None only where upstream does not say; the store fills in when we first saw it."""

    id: str
    canonical_slug: str
    name: str
    description: str
    created_at: datetime | None
    context_length: int | None
    max_completion_tokens: int | None
    input_modalities: tuple[str, ...]
    output_modalities: tuple[str, ...]
    pricing: ModelPricing
    supported_parameters: tuple[str, ...]
    alias_target: str | None
    retires_on: date | None
    status: ModelStatus
    popularity_rank: int | None = None

    @property
    def provider(self) -> str:
        """The author part of the id; that of a moving alias has a `~` in front, which is not part of the name."""
        return self.id.split("/", 1)[0].removeprefix("~")


@dataclass(frozen=True, slots=True)
class ParsedList:
    models: dict[str, CatalogModel]
    skipped: int


def parse_models(entries: Iterable[Any], today: date) -> ParsedList:
    """Upstream's entries as rows, by id. Entries without a usable id, and repeated ids, are skipped and counted."""
    models: dict[str, CatalogModel] = {}
    skipped = 0
    for entry in entries:
        model = parse_model(entry, today)
        if model is None or model.id in models:
            skipped += 1
        else:
            models[model.id] = model
    return ParsedList(models, skipped)


def parse_model(entry: Any, today: date) -> CatalogModel | None:
    """One entry as a row; None when it has no usable id."""
    if not isinstance(entry, Mapping):
        return None
    model_id = entry.get("id")
    if not isinstance(model_id, str) or not _ID.fullmatch(model_id):
        return None
    inputs, outputs = _modalities(entry.get("architecture"))
    top = mapping_of(entry.get("top_provider"))
    alias = mapping_of(entry.get("alias_target")).get("slug")
    retires_on = _retires_on(entry.get("expiration_date"), today)
    return CatalogModel(
        id=model_id,
        canonical_slug=text_of(entry.get("canonical_slug"), 200) or model_id,
        name=text_of(entry.get("name"), _MAX_NAME_CHARS) or model_id,
        description=text_of(entry.get("description"), _MAX_DESCRIPTION_CHARS),
        created_at=_moment(entry.get("created")),
        context_length=token_count(entry.get("context_length")) or token_count(top.get("context_length")),
        max_completion_tokens=token_count(top.get("max_completion_tokens")),
        input_modalities=inputs,
        output_modalities=outputs,
        pricing=parse_pricing(model_id, entry.get("pricing"), outputs_text="text" in outputs),
        supported_parameters=words(entry.get("supported_parameters")),
        alias_target=alias if isinstance(alias, str) and _ID.fullmatch(alias) else None,
        retires_on=retires_on,
        status="retiring" if retires_on else "available",
    )


def not_executable_reason(model_id: str, outputs: tuple[str, ...]) -> str | None:
    """Why a chat completion cannot run this model, as a sentence; None when it can."""
    if model_id.endswith(":batch"):
        return "It runs only through the provider's batch interface; use the same id without “:batch”."
    if "text" in outputs:
        return None
    if not outputs:
        return "The catalog does not say what it puts out."
    return f"It puts out {', '.join(outputs)} and no text, which a chat request cannot ask for."


def describe(model: CatalogModel, now: datetime, recommended: Mapping[str, str]) -> Model:
    """The row as everybody sees it at the moment `now`; `recommended` is today's short list, reasons by id.

    The row has its `created_at`, as every stored one does.
    """
    assert model.created_at is not None
    reason = not_executable_reason(model.id, model.output_modalities)
    return Model(
        id=model.id,
        name=model.name,
        provider=model.provider,
        description=model.description,
        context_length=model.context_length,
        max_completion_tokens=model.max_completion_tokens,
        input_modalities=list(model.input_modalities),
        output_modalities=list(model.output_modalities),
        pricing=model.pricing,
        price_kind=model.pricing.price_kind,
        supported_parameters=list(model.supported_parameters),
        badges=derive_badges(
            inputs=model.input_modalities,
            outputs=model.output_modalities,
            parameters=model.supported_parameters,
            pricing=model.pricing,
            context_length=model.context_length,
            created_at=model.created_at,
            status=model.status,
            now=now,
        ),
        curated=model.id in recommended,
        curated_reason=recommended.get(model.id),
        popularity_rank=model.popularity_rank,
        status=model.status,
        retires_on=model.retires_on,
        executable=reason is None,
        not_executable_reason=reason,
        created_at=model.created_at,
        typical_call_usd=typical_call(model.pricing),
    )


def _modalities(architecture: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    described = mapping_of(architecture)
    inputs, outputs = words(described.get("input_modalities")), words(described.get("output_modalities"))
    # Older answers have only the short form, "text+image->text".
    short = described.get("modality")
    if isinstance(short, str) and "->" in short:
        left, right = short.split("->", 1)
        inputs = inputs or words(left.split("+"))
        outputs = outputs or words(right.split("+"))
    return inputs, outputs


def _retires_on(value: Any, today: date) -> date | None:
    if not isinstance(value, str):
        return None
    try:
        day = date.fromisoformat(value[:10])
    except ValueError:
        return None
    return day if day - today < SENTINEL_AFTER else None


def _moment(value: Any) -> datetime | None:
    if isinstance(value, Decimal) and not value.is_finite():
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 < value < _EPOCH_2100:
        return None
    return datetime.fromtimestamp(int(value), UTC)


def token_count(value: Any) -> int | None:
    """A number of tokens that upstream states."""
    # 0 stands for "does not apply" on models that do not count in tokens.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_TOKENS else None


def words(value: Any) -> tuple[str, ...]:
    """A list of names, each once."""
    entries = value if isinstance(value, list) else []
    return tuple(dict.fromkeys(word for entry in entries if (word := text_of(entry, 60).strip())))


def text_of(value: Any, max_chars: int) -> str:
    """The text without what Postgres cannot store: NUL characters and halves of surrogate pairs."""
    if not isinstance(value, str):
        return ""
    return value[:max_chars].replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def mapping_of(value: Any) -> Mapping[str, Any]:
    """The object, or an empty one."""
    return value if isinstance(value, Mapping) else {}
