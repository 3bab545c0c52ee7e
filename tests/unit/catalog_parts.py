"""Builders that the unit tests of the catalog share: the recorded catalogs, and an ordinary entry to vary."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from contracts.catalog import Model
from services.catalog.curated import recommend
from services.catalog.models import CatalogModel, describe, parse_model, parse_models
from tests.stack import shared_data

TODAY = date(2026, 8, 8)
NOW = datetime(2026, 8, 8, 16, tzinfo=UTC)


def raw_entries(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((shared_data() / name).read_bytes(), parse_float=Decimal)["data"]
    return entries


RAW = {
    entry["id"]: entry
    for name in ("openrouter-models.json", "openrouter-models-other-modalities.json")
    for entry in raw_entries(name)
}
PARSED = parse_models(RAW.values(), TODAY)
ROWS = PARSED.models
RECOMMENDED = recommend(ROWS)
MODELS = {model_id: describe(row, NOW, RECOMMENDED.reasons) for model_id, row in ROWS.items()}


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "id": "maker/model",
        "canonical_slug": "maker/model-1",
        "name": "Maker: Model",
        "created": 1_780_000_000,
        "description": "A model.",
        "context_length": 8192,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": {"prompt": "0.000001", "completion": "0.000002"},
        "top_provider": {"context_length": 8192, "max_completion_tokens": 4096},
        "supported_parameters": ["max_tokens", "temperature"],
        **changes,
    }


def row(**changes: Any) -> CatalogModel:
    parsed = parse_model(entry(**changes), TODAY)
    assert parsed is not None
    return parsed


def model(**changes: Any) -> Model:
    return describe(row(**changes), NOW, {})
