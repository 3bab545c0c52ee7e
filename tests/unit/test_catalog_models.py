"""Upstream's list as it really is: every trap of prices, variants, dates and holes, on the recorded catalogs."""

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from contracts.catalog import CuratedGap, ResourceDraft
from contracts.errors import ErrorCode, ServiceError
from services.catalog.curated import CURATED, recommend
from services.catalog.models import CatalogModel, parse_model, parse_models
from services.catalog.replacements import propose_replacement
from services.catalog.resources import check_draft
from tests.unit.catalog_parts import MODELS, NOW, PARSED, RAW, ROWS, TODAY, entry, model, row


def test_every_recorded_entry_is_read() -> None:
    assert (len(ROWS), PARSED.skipped) == (len(RAW), 0)
    assert set(ROWS) == set(RAW)


def test_prices_are_kept_to_the_letter() -> None:
    for model_id, raw in RAW.items():
        pricing = MODELS[model_id].pricing.model_dump(mode="json", exclude_none=True)
        assert pricing.pop("price_kind") == MODELS[model_id].price_kind
        overrides = pricing.pop("overrides")
        assert overrides == raw["pricing"].get("overrides", []), model_id
        assert pricing == {key: value for key, value in raw["pricing"].items() if key != "overrides"}, model_id


def test_price_kinds_of_the_recorded_catalog() -> None:
    kinds: dict[str, set[str]] = {}
    for model_id, seen in MODELS.items():
        kinds.setdefault(seen.price_kind, set()).add(model_id)
    assert kinds["runtime"] == {
        "openrouter/auto",
        "openrouter/auto-beta",
        "openrouter/fusion",
        "openrouter/pareto-code",
        "openrouter/bodybuilder",
        "typesafe/jev-router",
    }
    assert kinds["free"] == {model_id for model_id in RAW if model_id.endswith(":free")} | {"openrouter/free"}
    assert {"google/lyria-3-pro-preview", "google/lyria-3-clip-preview", "google/veo-3.1"} <= kinds["unknown"]
    assert kinds["tiered"] == {model_id for model_id, raw in RAW.items() if raw["pricing"].get("overrides")}
    assert len(kinds["tiered"]) == 57


def test_a_typical_call_is_priced_where_its_price_is_known() -> None:
    def typical(**pricing: str) -> Decimal | None:
        return model(pricing=pricing).typical_call_usd

    assert typical(prompt="0.000001", completion="0.000004") == Decimal("0.003")
    assert typical(prompt="0.000001", completion="0.000004", request="0.01") == Decimal("0.013")
    assert typical(prompt="-1", completion="-1") is None
    assert typical(prompt="0", completion="0") is None, "billed in another way, nobody knows how much"


def test_prices_in_units_other_than_tokens_are_unknown() -> None:
    for model_id in (
        "openai/whisper-1",
        "microsoft/mai-transcribe-2",
        "bytedance-seed/seed-audio-1-0",
        "voyageai/rerank-3",
    ):
        assert MODELS[model_id].price_kind == "unknown"


def test_what_chat_cannot_run_is_not_executable() -> None:
    refused = {model_id for model_id, seen in MODELS.items() if not seen.executable}
    batch = {model_id for model_id in RAW if model_id.endswith(":batch")}
    without_text = {model_id for model_id, raw in RAW.items() if "text" not in raw["architecture"]["output_modalities"]}
    assert len(batch) == 60
    assert len(without_text) == 13
    assert refused == batch | without_text
    assert all(MODELS[model_id].not_executable_reason for model_id in refused)
    assert MODELS["google/gemini-2.5-flash-image"].executable
    assert MODELS["typesafe/jev-router"].executable


@pytest.mark.parametrize("model_id", sorted(model_id for model_id, seen in MODELS.items() if not seen.executable))
def test_what_chat_cannot_run_is_refused_with_the_reason(model_id: str) -> None:
    for config in ({"model_id": model_id}, {"model_id": "openai/gpt-4o-mini", "fallback_models": [model_id]}):
        draft = ResourceDraft.model_validate(
            {
                "resource_type": "openrouter_instant",
                "name": "R",
                "slug": "r",
                "openrouter_config": {"prompt_template": "Say something", **config},
                "pricing": {"mode": "fixed", "price_usd": "1"},
            }
        )
        with pytest.raises(ServiceError) as refused:
            check_draft(draft, MODELS)
        assert refused.value.code is ErrorCode.INVALID
        assert str(MODELS[model_id].not_executable_reason) in refused.value.body.fields[0].message


def test_image_only_output_is_not_executable() -> None:
    seen = model(architecture={"input_modalities": ["text"], "output_modalities": ["image"]})
    assert not seen.executable
    assert seen.price_kind == "unknown"


def test_far_future_expiration_is_none_and_a_real_date_retires() -> None:
    retiring = {model_id: seen.retires_on for model_id, seen in MODELS.items() if seen.status == "retiring"}
    assert retiring == {
        "openai/gpt-5.3-chat": date(2026, 8, 10),
        "openai/gpt-5.2-chat": date(2026, 8, 10),
        "z-ai/glm-4.5": date(2026, 12, 31),
    }
    assert MODELS["z-ai/glm-5-turbo"].retires_on is None
    assert "retiring" in MODELS["z-ai/glm-4.5"].badges


def test_limits_that_are_null_or_zero_are_not_known() -> None:
    assert MODELS["openai/whisper-1"].context_length is None
    assert MODELS["bytedance/seedance-2.5"].max_completion_tokens is None
    assert MODELS["typesafe/jev-router"].max_completion_tokens is None
    nulls = [model_id for model_id, raw in RAW.items() if raw["top_provider"]["max_completion_tokens"] is None]
    assert len(nulls) >= 47
    assert all(MODELS[model_id].max_completion_tokens is None for model_id in nulls)


def test_aliases_name_their_target_and_belong_to_its_provider() -> None:
    aliases = {model_id: found.alias_target for model_id, found in ROWS.items() if found.alias_target}
    assert len(aliases) == 11
    assert aliases["~anthropic/claude-sonnet-latest"] == "anthropic/claude-sonnet-5"
    assert MODELS["~anthropic/claude-sonnet-latest"].provider == "anthropic"


def test_curated_models_are_real_and_few() -> None:
    assert 20 <= len(CURATED) <= 30
    assert len({curated.id for curated in CURATED}) == len(CURATED)
    assert recommend(ROWS).missing == ()
    for curated in CURATED:
        seen = MODELS[curated.id]
        assert seen.executable
        assert seen.status == "available"
        assert seen.price_kind in {"fixed", "tiered", "free"}
        assert seen.curated_reason == curated.reason
        assert "\n" not in curated.reason


@pytest.mark.parametrize(
    ("purpose", "holds"),
    [
        ("text", lambda m: "text" in m.output_modalities),
        ("cheap", lambda m: Decimal(m.pricing.prompt) <= Decimal("0.0000002")),
        ("vision", lambda m: "vision" in m.badges),
        ("reasoning", lambda m: "reasoning" in m.badges),
        ("code", lambda m: "tools" in m.badges and "structured_output" in m.badges),
        ("image", lambda m: "image_out" in m.badges),
        ("audio", lambda m: {"audio_in", "audio_out"} <= set(m.badges)),
        ("long_context", lambda m: "long_context" in m.badges),
    ],
)
def test_what_is_recommended_for_a_purpose_can_do_it(purpose: str, holds: Any) -> None:
    chosen = [curated.id for curated in CURATED if purpose in curated.purposes]
    assert len(chosen) >= 2
    assert [model_id for model_id in chosen if not holds(MODELS[model_id])] == []


def retired(model_id: str) -> CatalogModel:
    return replace(ROWS[model_id], status="retired")


def test_a_recommended_model_that_vanishes_is_reported_and_its_successor_recommended() -> None:
    gone = "~openai/gpt-mini-latest"
    rows = {**ROWS, gone: retired(gone)}
    today = recommend(rows)
    assert today.missing == (CuratedGap(id=gone, replaced_by="openai/gpt-5.4-mini"),)
    assert gone not in today.reasons
    own_reason = next(curated.reason for curated in CURATED if curated.id == "openai/gpt-5.4-mini")
    assert today.reasons["openai/gpt-5.4-mini"] == own_reason, "it was on the list already, for its own reason"
    rows["openai/gpt-5.4-mini"] = retired("openai/gpt-5.4-mini")
    newer = row(
        id="openai/gpt-5.9-mini",
        created=1_789_000_000,
        architecture={"input_modalities": ["text", "image", "file"], "output_modalities": ["text"]},
    )
    today = recommend({**rows, newer.id: newer})
    assert {gap.id: gap.replaced_by for gap in today.missing} == {gone: newer.id, "openai/gpt-5.4-mini": newer.id}
    assert today.reasons[newer.id]


def test_nothing_takes_the_place_of_a_recommended_model_without_a_successor() -> None:
    gone = "mistralai/mistral-nemo"
    today = recommend({**ROWS, gone: retired(gone)})
    assert today.missing == (CuratedGap(id=gone, replaced_by=None),)
    assert len(today.reasons) == len(CURATED) - 1
    assert len(recommend({}).missing) == len(CURATED)


def test_badges_of_a_model_that_can_do_everything() -> None:
    seen = model(
        id="maker/model:free",
        created=int(NOW.timestamp()) - 86_400,
        context_length=1_000_000,
        architecture={
            "input_modalities": ["text", "image", "file", "audio", "video"],
            "output_modalities": ["text", "image", "audio"],
        },
        pricing={"prompt": "0", "completion": "0", "web_search": "0.01"},
        supported_parameters=["tools", "structured_outputs", "reasoning"],
        expiration_date="2026-09-01",
    )
    assert seen.badges == [
        *("vision", "files", "audio_in", "video_in", "image_out", "audio_out", "tools", "structured_output"),
        *("reasoning", "web_search", "free", "long_context", "new", "retiring"),
    ]
    assert model().badges == []


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        1,
        "text",
        [],
        {},
        {"id": None},
        {"id": ""},
        {"id": 7},
        {"id": "a b"},
        {"id": "a/b\n"},
        {"id": "a/" + "b" * 300},
    ],
)
def test_an_entry_without_a_usable_id_is_skipped_and_counted(garbage: Any) -> None:
    parsed = parse_models([garbage, entry(), entry()], TODAY)
    assert (list(parsed.models), parsed.skipped) == (["maker/model"], 2)


NONSENSE: list[Any] = [
    *(None, -1, 0, 10**30, "x", "\0\ud800", True, Decimal("NaN"), Decimal("1e9999")),
    *([], {}, [None, 1, {}], {"prompt": []}, ["\0"]),
]


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in entry() if field != "id" for value in NONSENSE],
)
def test_nonsense_in_any_other_field_never_fails_and_can_be_stored(field: str, value: Any) -> None:
    seen = parse_model(entry(**{field: value}), TODAY)
    assert seen is not None
    stored = json.dumps([seen.name, seen.description, seen.pricing.model_dump(mode="json")], ensure_ascii=False)
    assert "\0" not in stored
    stored.encode()


@pytest.mark.parametrize(
    ("pricing", "kind"),
    [
        ({"prompt": "-1", "completion": "-1"}, "runtime"),
        ({"prompt": "0.1", "completion": "0.1", "image": "-1"}, "runtime"),
        ({"prompt": "0.1", "completion": "0.1", "overrides": [{"min_prompt_tokens": 9, "prompt": "-1"}]}, "runtime"),
        ({"prompt": "0", "completion": "0"}, "unknown"),
        ({"prompt": "0.0", "completion": "0.000"}, "unknown"),
        ({"prompt": "0", "completion": "0", "web_search": "0.01"}, "unknown"),
        ({"prompt": "0", "completion": "0.01"}, "fixed"),
        ({"prompt": "1e-7", "completion": "0.01"}, "fixed"),
        ({"prompt": Decimal("0.1"), "completion": 1}, "fixed"),
        ({"prompt": "NaN", "completion": "0.01"}, "unknown"),
        ({"prompt": "1e999999", "completion": "0.01"}, "unknown"),
        ({"prompt": "0.1"}, "unknown"),
        ({"prompt": None, "completion": None}, "unknown"),
        ({}, "unknown"),
        (None, "unknown"),
        ({"prompt": "0.1", "completion": "0.1", "discount": Decimal("0.5"), "overrides": None}, "fixed"),
        ({"prompt": "0.1", "completion": "0.1", "overrides": ["x", {}, {"min_prompt_tokens": 9}]}, "fixed"),
        ({"prompt": "0.1", "completion": "0.1", "overrides": [{"utc_start": 900, "prompt": "0.2"}]}, "tiered"),
    ],
)
def test_price_kind(pricing: Any, kind: str) -> None:
    assert row(pricing=pricing).pricing.price_kind == kind


def test_conditions_of_overrides_are_read() -> None:
    overrides = row(
        pricing={
            "prompt": "0.1",
            "completion": "0.1",
            "overrides": [
                {"min_prompt_tokens": 100, "prompt": "0.2"},
                {"utc_start": 30, "utc_end": "0600", "prompt": "0.3"},
                {"utc_start": "late", "prompt": "0.4"},
            ],
        }
    ).pricing.overrides
    assert [item.min_prompt_tokens for item in overrides] == [100, None, None]
    assert (overrides[1].utc_start, overrides[1].utc_end) == ("0030", "0600")
    assert overrides[2].utc_start is None
    assert (overrides[2].model_extra or {})["prompt"] == "0.4"


def test_the_newest_of_the_family_replaces_a_retired_model() -> None:
    gone = row(id="anthropic/claude-3.5-sonnet")
    proposal = propose_replacement(gone, ROWS.values())
    assert proposal == "anthropic/claude-sonnet-5"


def test_an_alias_is_replaced_by_its_target_and_a_stranger_by_the_cheapest_of_its_provider() -> None:
    assert propose_replacement(ROWS["~openai/gpt-mini-latest"], ROWS.values()) == "openai/gpt-5.4-mini"
    cheapest = propose_replacement(row(id="mistralai/unheard-of"), ROWS.values())
    assert cheapest is not None
    assert cheapest.startswith("mistralai/")
    assert propose_replacement(row(id="nobody/else"), ROWS.values()) is None
