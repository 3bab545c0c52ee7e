"""Decisions about drafts: every way to be wrong has its path and its sentence, and nothing that was sent is repeated."""

from typing import Any

import jsonschema
import pytest

from contracts.catalog import InputField, ResourceDraft, ResourcePatch
from contracts.errors import ErrorCode, ServiceError
from services.catalog.breakdown import losing_models, proposal
from services.catalog.inputs import input_schema
from services.catalog.resources import (
    apply_patch,
    availability_of,
    check_draft,
    named_models,
    refuse_retired,
    refuse_stranger,
    shown_status,
    warnings_of,
)
from tests.unit.catalog_parts import MODELS

CHAT = "openai/gpt-4o-mini"


def draft(config: dict[str, Any] | None = None, **changes: Any) -> ResourceDraft:
    return ResourceDraft.model_validate(
        {
            "resource_type": "openrouter_instant",
            "name": "Haiku maker",
            "slug": "haiku-maker",
            "openrouter_config": {"model_id": CHAT, "prompt_template": "A haiku about {{topic}}", **(config or {})},
            "inputs": [{"name": "topic", "type": "text", "max_length": 200}],
            "pricing": {"mode": "fixed", "price_usd": "0.01"},
            **changes,
        }
    )


def check(candidate: ResourceDraft) -> None:
    models = {
        model_id: MODELS[model_id] for model_id in named_models(candidate.openrouter_config) if model_id in MODELS
    }
    check_draft(candidate, models)


def refusal(candidate: ResourceDraft) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        check(candidate)
    assert refused.value.code is ErrorCode.INVALID
    return refused.value


def field(**changes: Any) -> dict[str, Any]:
    return {"name": "topic", **changes}


def test_a_good_draft_passes() -> None:
    check(draft())
    check(draft({"fallback_models": ["openai/gpt-5.4-mini"], "temperature": 0.7, "max_tokens": 16_384}))
    check(draft({"parameters": {"top_p": 0.5, "tools": [], "provider": {"zdr": True}}}))
    check(draft({"model_id": "google/gemini-2.5-flash-image", "modalities": ["text", "image"]}))
    check(draft({"model_id": "openrouter/auto"}))
    check(draft({"prompt_template": "Say hello", "system_prompt": "Be {{ topic }}"}))


@pytest.mark.parametrize(
    ("config", "path", "says"),
    [
        ({"model_id": "no/such"}, "openrouter_config.model_id", "GET /api/models"),
        ({"model_id": CHAT + ":nitro"}, "openrouter_config.model_id", "no such model"),
        ({"model_id": CHAT + ":batch"}, "openrouter_config.model_id", "batch"),
        ({"model_id": "openai/whisper-1"}, "openrouter_config.model_id", "transcription"),
        ({"model_id": "google/veo-3.1"}, "openrouter_config.model_id", "video"),
        ({"fallback_models": ["no/such"]}, "openrouter_config.fallback_models.0", "no such model"),
        ({"fallback_models": ["voyageai/rerank-3"]}, "openrouter_config.fallback_models.0", "rerank"),
        ({"fallback_models": [CHAT]}, "openrouter_config.fallback_models.0", "twice"),
        ({"max_tokens": 16_385}, "openrouter_config.max_tokens", "16384"),
        ({"modalities": ["image", "text"]}, "openrouter_config.modalities", "text, not image"),
        ({"modalities": ["text", "text"]}, "openrouter_config.modalities", "once"),
        (
            {"model_id": "openai/gpt-audio", "modalities": ["audio"], "fallback_models": [CHAT]},
            "openrouter_config.modalities",
            "fallback_models.0",
        ),
        ({"prompt_template": "{{topic}} {{mood}}"}, "openrouter_config.prompt_template", "{{mood}}"),
        ({"system_prompt": "{{mood}}"}, "openrouter_config.system_prompt", "{{mood}}"),
        ({"prompt_template": "nothing"}, "inputs.0.name", "{{topic}}"),
        ({"prompt_template": "{{topic}} \0"}, "openrouter_config.prompt_template", "NUL"),
        ({"parameters": {"seed": 2**70}}, "openrouter_config.parameters.seed", "too large"),
        ({"parameters": {"top_p": float("inf")}}, "openrouter_config.parameters.top_p", "finite"),
        ({"parameters": {"stop": ["a", "\0"]}}, "openrouter_config.parameters.stop.1", "NUL"),
        ({"parameters": {"a\0": 1}}, "openrouter_config.parameters", "NUL"),
        *(
            ({"parameters": {name: 1}}, f"openrouter_config.parameters.{name}", "instead")
            for name in (
                "model",
                "Model",
                "messages",
                "models",
                "temperature",
                "max_tokens",
                "max_completion_tokens",
                "modalities",
            )
        ),
        *(
            ({"parameters": {name: 1}}, f"openrouter_config.parameters.{name}", "platform")
            for name in ("stream", "user", "usage", "n", "stream_options", "extra_body", "metadata", "session_id")
        ),
        ({"parameters": {"provider": "x"}}, "openrouter_config.parameters.provider", "object"),
    ],
)
def test_a_bad_configuration_is_refused_by_path(config: dict[str, Any], path: str, says: str) -> None:
    problems = {problem.path: problem.message for problem in refusal(draft(config)).body.fields}
    assert path in problems
    assert says in problems[path]


@pytest.mark.parametrize(
    ("inputs", "path"),
    [
        ([field(), field()], "inputs.1.name"),
        ([field(type="choice")], "inputs.0.choices"),
        ([field(choices=["a"])], "inputs.0.choices"),
        ([field(type="choice", choices=["a", "a"])], "inputs.0.choices"),
        ([field(type="number", max_length=3)], "inputs.0.max_length"),
        ([field(minimum=1)], "inputs.0.minimum"),
        ([field(type="number", minimum=2, maximum=1)], "inputs.0.minimum"),
        ([field(type="number", maximum=float("nan"))], "inputs.0.maximum"),
        ([field(default=1)], "inputs.0.default"),
        ([field(default="abcd", max_length=3)], "inputs.0.default"),
        ([field(type="number", default="1")], "inputs.0.default"),
        ([field(type="number", default=True)], "inputs.0.default"),
        ([field(type="number", default=float("inf"))], "inputs.0.default"),
        ([field(type="number", default=1, minimum=2)], "inputs.0.default"),
        ([field(type="number", default=3, maximum=2)], "inputs.0.default"),
        ([field(type="boolean", default="true")], "inputs.0.default"),
        ([field(type="choice", choices=["a"], default="b")], "inputs.0.default"),
    ],
)
def test_a_bad_declaration_is_refused_by_path(inputs: list[dict[str, Any]], path: str) -> None:
    assert path in [problem.path for problem in refusal(draft(inputs=inputs)).body.fields]


@pytest.mark.parametrize(
    "declaration",
    [
        field(default="a", max_length=1),
        field(type="number", default=0, minimum=0, maximum=0),
        field(type="boolean", default=False),
        field(type="choice", choices=["a", "b"], default="b"),
        field(required=False),
    ],
)
def test_a_good_declaration_passes(declaration: dict[str, Any]) -> None:
    check(draft(inputs=[declaration]))


def test_all_problems_are_told_at_once_and_the_input_is_not_repeated() -> None:
    error = refusal(draft({"model_id": "secret/thing", "parameters": {"stream": "sk-or-v1-secret"}}, inputs=[]))
    assert len(error.body.fields) == 3
    assert "secret" not in error.body.model_dump_json()


def test_a_retired_model_is_unavailable_and_its_successor_proposed() -> None:
    gone = MODELS[CHAT].model_copy(update={"status": "retired"})
    with pytest.raises(ServiceError) as refused:
        refuse_retired(gone)
    assert refused.value.code is ErrorCode.MODEL_UNAVAILABLE
    other = proposal(draft(), gone, MODELS["openai/gpt-5.4-mini"], None)
    found = availability_of(gone, other)
    assert (found.available, found.replacement, found.proposal) == (False, "openai/gpt-5.4-mini", other)
    assert "openai/gpt-5.4-mini" in (found.reason or "")
    assert availability_of(MODELS[CHAT], None).available
    assert shown_status("published", gone) == "unavailable"
    assert shown_status("paused", gone) == "paused"
    assert shown_status("published", MODELS[CHAT]) == "published"


def test_a_retired_fallback_is_invalid() -> None:
    gone = MODELS["openai/gpt-4o"].model_copy(update={"status": "retired"})
    with pytest.raises(ServiceError) as refused:
        check_draft(draft({"fallback_models": [gone.id]}), {CHAT: MODELS[CHAT], gone.id: gone})
    assert refused.value.body.fields[0].path == "openrouter_config.fallback_models.0"


def warnings(candidate: ResourceDraft, *model_ids: str) -> list[str]:
    models = [MODELS[model_id] for model_id in model_ids]
    return warnings_of(candidate, models, losing_models(candidate, models, None))


def test_warnings_say_what_upstream_would_drop_and_what_may_cost_more() -> None:
    assert warnings(draft({"max_tokens": 10}), CHAT) == []
    (dropped,) = warnings(draft({"max_tokens": 10, "parameters": {"top_k": 3}}), CHAT)
    assert "top_k" in dropped
    (temperature,) = warnings(draft({"max_tokens": 9, "temperature": 0.1}), "openai/o3-mini")
    assert "temperature" in temperature
    assert any("max_tokens" in warning for warning in warnings(draft(), CHAT))
    assert any("when it runs" in warning for warning in warnings(draft(), "openrouter/auto"))
    assert any("2026-12-31" in warning for warning in warnings(draft(), "z-ai/glm-4.5"))
    cheap = {"mode": "fixed", "price_usd": "0.000001"}
    assert any("costs more" in warning for warning in warnings(draft({"max_tokens": 900}, pricing=cheap), CHAT))


def test_a_limit_that_a_model_does_not_take_is_warned_of() -> None:
    (dropped,) = warnings(draft({"max_tokens": 10}), "openrouter/fusion")[:1]
    assert "does not support max_tokens" in dropped
    newer_name = warnings(draft({"max_tokens": 10}), "openai/gpt-5.2-codex")
    assert not any("max_tokens" in warning for warning in newer_name)


def test_what_a_model_can_no_longer_do_is_warned_of_by_every_look() -> None:
    sees, blind = MODELS[CHAT], MODELS[CHAT].model_copy(update={"input_modalities": ["text"]})
    asked = draft({"max_tokens": 10}, inputs=[field(), photo()])
    check_draft(asked, {CHAT: sees})
    assert warnings_of(asked, [sees], []) == []
    (lost,) = warnings_of(asked, [blind], [])
    assert lost == f"OpenRouter has changed {CHAT} since this was saved. {CHAT} takes text, not image."
    (short,) = warnings_of(asked, [sees.model_copy(update={"max_completion_tokens": 5})], [])
    assert "at most 5 tokens" in short
    assert not any(
        "since this was saved" in each
        for each in warnings_of(asked, [blind.model_copy(update={"status": "retired"})], [])
    )
    spare = draft({"max_tokens": 10, "fallback_models": ["openai/gpt-4o"]}, inputs=[field(), photo()])
    (other,) = warnings_of(spare, [sees, blind.model_copy(update={"id": "openai/gpt-4o"})], [])
    assert "openai/gpt-4o takes text, not image" in other


def test_warnings_are_about_fallbacks_too() -> None:
    config = {"max_tokens": 16_384, "temperature": 0.1, "fallback_models": ["openai/o3-mini"]}
    (ignored,) = warnings(draft(config), CHAT, "openai/o3-mini")
    assert "temperature" in ignored
    short = MODELS["openai/gpt-4o"].model_copy(update={"max_completion_tokens": 100, "status": "retired"})
    spoken = " ".join(warnings_of(draft(config), [MODELS[CHAT], short], []))
    assert "no longer offers openai/gpt-4o" in spoken
    assert "at most 100 tokens" in spoken


def photo(**changes: Any) -> dict[str, Any]:
    return {"name": "photo", "type": "image", **changes}


def test_pictures_files_and_sound_go_beside_the_prompt() -> None:
    inputs = [
        field(),
        photo(max_bytes=5_000_000, accept=["image/png"]),
        {"name": "paper", "type": "file", "required": False},
    ]
    check(draft(inputs=inputs))
    schema = input_schema([InputField.model_validate(each) for each in inputs])
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["topic", "photo"]
    assert schema["properties"]["photo"] == {  # type: ignore[index, call-overload]
        "type": "string",
        "format": "uri-reference",
        "contentMediaType": "image/png",
        "x-kind": "image",
        "x-accept": ["image/png"],
        "x-max-bytes": 5_000_000,
        "x-upload": "POST /media",
    }


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"inputs": [field(), photo(default="x")]}, "inputs.1.default"),
        ({"inputs": [field(), photo(max_length=3)]}, "inputs.1.max_length"),
        ({"inputs": [field(), photo(choices=["a"])]}, "inputs.1.choices"),
        ({"inputs": [field(), photo(accept=["audio/wav"])]}, "inputs.1.accept"),
        ({"inputs": [field(), photo(max_bytes=10**9)]}, "inputs.1.max_bytes"),
        ({"inputs": [field(max_bytes=10)]}, "inputs.0.max_bytes"),
        ({"inputs": [field(accept=["image/png"])]}, "inputs.0.accept"),
        ({"inputs": [field(), {"name": "song", "type": "audio"}]}, "inputs.1.type"),
        (
            {"config": {"prompt_template": "{{topic}} {{photo}}"}, "inputs": [field(), photo()]},
            "openrouter_config.prompt_template",
        ),
        ({"config": {"fallback_models": ["openai/o3-mini"]}, "inputs": [field(), photo()]}, "inputs.1.type"),
    ],
)
def test_an_attachment_that_cannot_be_is_refused(changes: dict[str, Any], path: str) -> None:
    assert path in [problem.path for problem in refusal(draft(changes.pop("config", None), **changes)).body.fields]


def test_only_what_is_published_is_known_to_strangers() -> None:
    refuse_stranger("ann", "ann", "draft")
    for status, code in (
        ("published", ErrorCode.FORBIDDEN),
        ("draft", ErrorCode.NOT_FOUND),
        ("paused", ErrorCode.NOT_FOUND),
    ):
        with pytest.raises(ServiceError) as refused:
            refuse_stranger("ann", "bob", status)  # type: ignore[arg-type]
        assert refused.value.code is code


def test_a_patch_changes_what_it_names() -> None:
    before = draft()
    assert apply_patch(before, ResourcePatch(expected_version=3)) == before
    after = apply_patch(
        before, ResourcePatch.model_validate({"name": "New", "pricing": {"mode": "fixed", "price_usd": "1"}})
    )
    assert (after.name, after.slug) == ("New", before.slug)
    assert after.pricing != before.pricing


def test_the_schema_of_inputs_says_what_is_declared() -> None:
    inputs = [
        InputField(name="topic", max_length=5, description="What about"),
        InputField(name="count", type="number", minimum=1, maximum=3, default=2),
        InputField(name="loud", type="boolean", required=False),
        InputField(name="tone", type="choice", choices=["calm", "wild"]),
    ]
    schema = input_schema(inputs)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert schema["required"] == ["topic", "tone"]
    assert validator.is_valid({"topic": "sea", "tone": "calm"})
    assert validator.is_valid({"topic": "sea", "tone": "calm", "count": 3, "loud": True})
    for wrong in (
        {"topic": "sea"},
        {"topic": "oceans", "tone": "calm"},
        {"topic": "sea", "tone": "grim"},
        {"topic": "sea", "tone": "calm", "count": 4},
        {"topic": "sea", "tone": "calm", "loud": "yes"},
        {"topic": "sea", "tone": "calm", "more": 1},
    ):
        assert not validator.is_valid(wrong)
