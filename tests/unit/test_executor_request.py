"""What is sent upstream: the caller's input checked and rendered, the creator's parameters below ours, the price guard."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from contracts.catalog import (
    Availability,
    FixedPrice,
    InputField,
    Model,
    ModelPricing,
    OpenRouterConfig,
    ResolvedResource,
    Timeouts,
)
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller
from services.executor.attachments import Attachment
from services.executor.request import build_request, plain_text, pseudonym
from services.runtime.files import Files

TOPIC = InputField(name="topic", max_length=20)


def model(**pricing: Any) -> Model:
    return Model(
        id="a/b",
        name="A: B",
        provider="a",
        description="",
        context_length=8000,
        max_completion_tokens=None,
        input_modalities=["text"],
        output_modalities=["text"],
        pricing=ModelPricing(**{"prompt": "0.00000015", "completion": "0.0000006", "price_kind": "fixed", **pricing}),
        price_kind=pricing.get("price_kind", "fixed"),
        supported_parameters=[],
        badges=[],
        curated=False,
        popularity_rank=None,
        status="available",
        retires_on=None,
        executable=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def resource(inputs: list[InputField] | None = None, of: Model | None = None, **config: Any) -> ResolvedResource:
    return ResolvedResource(
        resource_id=None,
        owner="ada",
        slug="haiku-maker",
        version=3,
        status="draft",
        config=OpenRouterConfig(**{"model_id": "a/b", "prompt_template": "A haiku about {{topic}}", **config}),
        inputs=[TOPIC] if inputs is None else inputs,
        pricing=FixedPrice(mode="fixed", price_usd=Decimal("0.01")),
        timeouts=Timeouts(),
        model=of or model(),
        availability=Availability(available=True),
    )


def body_of(values: dict[str, Any] | None = None, **config: Any) -> Any:
    return build_request(resource(**config), {"topic": "frogs"} if values is None else values, user="u").body


def problems(values: dict[str, Any], *inputs: InputField) -> dict[str, str]:
    with pytest.raises(ServiceError) as failure:
        build_request(resource(list(inputs), prompt_template="x"), values, user="u")
    assert failure.value.code == ErrorCode.INVALID
    return {problem.path: problem.message for problem in failure.value.body.fields}


def prompt_of(template: str, inputs: list[InputField], values: dict[str, Any]) -> Any:
    request = build_request(resource(inputs, prompt_template=template), values, user="u")
    messages: Any = request.body["messages"]
    return messages[-1]["content"]


def test_a_request_is_the_rendered_template_streamed() -> None:
    request = build_request(resource(), {"topic": "frogs"}, user="u-1")
    assert request.model == "a/b"
    assert request.body == {
        "model": "a/b",
        "messages": [{"role": "user", "content": "A haiku about frogs"}],
        "stream": True,
        "user": "u-1",
        "provider": {"max_price": {"prompt": 0.15, "completion": 0.6}},
    }


def test_system_prompt_settings_and_fallbacks_are_sent() -> None:
    body = body_of(
        system_prompt="Only about {{topic}}.",
        temperature=0,
        max_tokens=200,
        modalities=["image", "text"],
        fallback_models=["c/d", "e/f"],
    )
    assert body["messages"][0] == {"role": "system", "content": "Only about frogs."}
    assert (body["temperature"], body["max_tokens"], body["modalities"]) == (0, 200, ["image", "text"])
    assert (body["model"], body["models"]) == ("a/b", ["a/b", "c/d", "e/f"])


@pytest.mark.parametrize(
    ("takes", "name"),
    [
        (["max_tokens"], "max_tokens"),
        (["max_completion_tokens"], "max_completion_tokens"),
        (["max_completion_tokens", "max_tokens"], "max_tokens"),
        ([], "max_tokens"),
    ],
)
def test_the_limit_of_an_answer_has_the_name_that_the_model_takes(takes: list[str], name: str) -> None:
    seen = model().model_copy(update={"supported_parameters": takes})
    body = build_request(resource(of=seen, max_tokens=200), {"topic": "frogs"}, user="u").body
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {name: 200}


@pytest.mark.parametrize(
    ("main", "spare", "names"),
    [
        (["max_tokens"], ["max_tokens"], {"max_tokens"}),
        (["max_tokens"], ["max_completion_tokens"], {"max_tokens", "max_completion_tokens"}),
        (["max_completion_tokens"], ["max_tokens"], {"max_tokens", "max_completion_tokens"}),
        (["max_completion_tokens"], ["max_completion_tokens"], {"max_completion_tokens"}),
        (["max_completion_tokens", "max_tokens"], ["max_completion_tokens"], {"max_tokens", "max_completion_tokens"}),
    ],
)
def test_a_fallback_that_takes_the_limit_under_another_name_keeps_it(
    main: list[str], spare: list[str], names: set[str]
) -> None:
    fallback = model().model_copy(update={"id": "c/d", "supported_parameters": spare})
    named = resource(
        of=model().model_copy(update={"supported_parameters": main}), max_tokens=200, fallback_models=["c/d"]
    )
    for seen in (fallback, fallback.model_copy(update={"status": "retiring"})):
        body = build_request(named.model_copy(update={"fallbacks": [seen]}), {"topic": "frogs"}, user="u").body
        assert {key: value for key, value in body.items() if key.startswith("max_")} == dict.fromkeys(names, 200)


def test_a_retired_fallback_is_left_out_because_upstream_would_refuse_the_whole_request() -> None:
    takes = {"supported_parameters": ["max_completion_tokens"]}
    gone, there = (
        model().model_copy(update={"id": "c/d", "status": "retired", **takes}),
        model().model_copy(update={"id": "e/f"}),
    )
    named = resource(max_tokens=200, fallback_models=["c/d", "e/f"]).model_copy(update={"fallbacks": [gone, there]})
    body = build_request(named, {"topic": "frogs"}, user="u").body
    assert body["models"] == ["a/b", "e/f"]
    assert "max_completion_tokens" not in body
    alone = resource(fallback_models=["c/d"]).model_copy(update={"fallbacks": [gone]})
    assert "models" not in build_request(alone, {"topic": "frogs"}, user="u").body


def test_further_parameters_lie_under_ours_and_change_nothing_of_ours() -> None:
    parameters = {
        "top_p": 0.5,
        "temperature": 1.9,
        "model": "evil/model",
        "models": ["evil/model"],
        "messages": [],
        "stream": False,
        "user": "somebody",
        "n": 5,
    }
    body = body_of(parameters=parameters, temperature=0.7)
    assert (body["top_p"], body["temperature"], body["model"], body["stream"]) == (0.5, 0.7, "a/b", True)
    assert body["user"] == "u"
    assert len(body["messages"]) == 1
    assert not {"n", "models"} & body.keys()


def test_sound_is_asked_for_in_the_form_that_streams_unless_the_creator_chose() -> None:
    assert body_of(modalities=["text", "audio"])["audio"] == {"voice": "alloy", "format": "pcm16"}
    chosen = {"voice": "verse", "format": "mp3"}
    assert body_of(modalities=["text", "audio"], parameters={"audio": chosen})["audio"] == chosen


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_value_is_never_expanded_again(value: str) -> None:
    inputs = [InputField(name="a"), InputField(name="b")]
    rendered = prompt_of("[{{a}}|{{ b }}]", inputs, {"a": "{{b}}{{ b }}" + value, "b": "B"})
    assert rendered == "[{{b}}{{ b }}" + value + "|B]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), (2.5, "2.5"), (True, "true"), (False, "false"), (-0.5, "-0.5"), ("é", "é")],
)
def test_values_stand_plainly_in_the_prompt(value: Any, text: str) -> None:
    assert plain_text(value) == text


def test_defaults_fill_in_and_a_missing_optional_input_is_empty() -> None:
    inputs = [
        InputField(name="n", type="number", default=5),
        InputField(name="loud", type="boolean", default=False),
        InputField(name="note", required=False),
    ]
    assert prompt_of("{{n}} {{loud}} [{{note}}]", inputs, {"n": None}) == "5 false []"


def test_every_problem_is_named_at_once_and_no_value_is_repeated() -> None:
    found = problems(
        {
            "long": "SECRET" * 5,
            "number": "SECRET",
            "few": 11,
            "flag": "SECRET",
            "kind": "SECRET",
            "text": ["SECRET"],
            "surplus": "SECRET",
            "SECRET one": 1,
        },
        InputField(name="missing"),
        InputField(name="long", max_length=10),
        InputField(name="number", type="number"),
        InputField(name="few", type="number", minimum=1, maximum=10),
        InputField(name="flag", type="boolean"),
        InputField(name="kind", type="choice", choices=["a", "b"]),
        InputField(name="text"),
    )
    paths = {f"input.{name}" for name in ("missing", "long", "number", "few", "flag", "kind", "text", "surplus")}
    assert found.keys() == {*paths, "input"}
    assert found["input.missing"] == "This input is required."
    assert found["input.few"] == "Send 10 or less."
    assert found["input.kind"] == "Send one of: a, b."
    assert not any("SECRET" in text for text in (*found, *found.values()))


def test_a_boolean_is_no_number_and_a_number_is_no_text() -> None:
    assert problems({"n": True}, InputField(name="n", type="number")) == {"input.n": "Send a number."}
    assert problems({"t": 1}, InputField(name="t")) == {"input.t": "Send text."}


def attached(mime_type: str, size: int = 3) -> Attachment:
    return Attachment(mime_type, size, "a-name", None, cast("Files", None))


@pytest.mark.parametrize("kind", ["image", "file", "audio"])
def test_a_refused_file_is_a_problem_of_its_input_and_one_may_be_left_out(kind: Any) -> None:
    optional = resource([TOPIC, InputField(name="attached", type=kind, required=False)])
    assert build_request(optional, {"topic": "frogs"}, user="u").body["messages"] == [
        {"role": "user", "content": "A haiku about frogs"}
    ]
    with pytest.raises(ServiceError) as refused:
        build_request(optional, {"attached": "x"}, user="u", given={"attached": "Not that one."})
    found = {field.path: field.message for field in refused.value.body.fields}
    assert found == {"input.topic": "This input is required.", "input.attached": "Not that one."}
    required = resource([TOPIC, InputField(name="attached", type=kind)])
    with pytest.raises(ServiceError) as missing:
        build_request(required, {"topic": "frogs"}, user="u")
    assert missing.value.body.fields[0].path == "input.attached"


def test_files_stand_behind_the_prompt_in_the_form_that_upstream_takes() -> None:
    kinds = {"photo": "image/png", "paper": "application/pdf", "song": "audio/mpeg"}
    fields = [InputField(name=name, type=kind) for name, kind in zip(kinds, ("image", "file", "audio"), strict=True)]
    given = {name: attached(mime_type) for name, mime_type in kinds.items()}
    request = build_request(
        resource([TOPIC, *fields]), {"topic": "frogs", **dict.fromkeys(kinds, "x")}, user="u", given=given
    )
    photo, paper, song = (given[name].marker for name in kinds)
    assert request.attachments == tuple(given.values())
    assert request.body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "A haiku about frogs"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{photo}"}},
                {
                    "type": "file",
                    "file": {"filename": "paper.pdf", "file_data": f"data:application/pdf;base64,{paper}"},
                },
                {"type": "input_audio", "input_audio": {"data": song, "format": "mp3"}},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("chosen", "native", "fallbacks", "engine"),
    [
        (None, False, [], "cloudflare-ai"),
        (None, True, [], "native"),
        (None, True, ["c/d"], "cloudflare-ai"),
        ("mistral-ocr", True, [], "mistral-ocr"),
    ],
)
def test_the_engine_that_reads_pdfs_is_always_said(
    chosen: str | None, native: bool, fallbacks: list[str], engine: str
) -> None:
    made = resource([InputField(name="paper", type="file")], prompt_template="Sum up.", fallback_models=fallbacks)
    web: JsonValue = {"id": "web"}
    if chosen is not None:
        made.config.parameters["plugins"] = [web, {"id": "file-parser", "pdf": {"engine": chosen}}]
    if native:
        made = made.model_copy(update={"model": made.model.model_copy(update={"input_modalities": ["text", "file"]})})
    request = build_request(made, {"paper": "x"}, user="u", given={"paper": attached("application/pdf")})
    parser = {"id": "file-parser", "pdf": {"engine": engine}}
    assert request.body["plugins"] == ([parser] if chosen is None else [web, parser])


def test_an_input_beyond_a_mebibyte_is_refused_as_a_whole() -> None:
    found = problems({"t": "é" * 600_000}, InputField(name="t"))
    assert found == {"input": "The input is larger than 1 MiB. Send less."}


# The price guard ------------------------------------------------------------------------------------------------------


def max_price(of: Model, **config: Any) -> Any:
    return (body_of(of=of, **config).get("provider") or {}).get("max_price")


def test_the_guard_is_the_highest_tier_in_usd_per_million() -> None:
    tiers = [{"min_prompt_tokens": 200_000, "prompt": "0.0000025"}, {"utc_start": "0000", "completion": "0.0000005"}]
    tiered = model(price_kind="tiered", prompt="0.00000125", completion="0.00001", overrides=tiers)
    assert max_price(tiered) == {"prompt": 2.5, "completion": 10}


@pytest.mark.parametrize(
    "pricing",
    [
        {"price_kind": "runtime", "prompt": "-1", "completion": "-1"},
        {"price_kind": "unknown", "prompt": "0", "completion": "0"},
        {"price_kind": "free", "prompt": "0", "completion": "0"},
        {"price_kind": "fixed", "prompt": "ask us", "completion": "0"},
    ],
)
def test_there_is_no_guard_where_the_price_is_not_known(pricing: dict[str, Any]) -> None:
    assert max_price(model(**pricing)) is None


def test_there_is_no_guard_with_fallbacks_whose_prices_are_not_known_here() -> None:
    assert max_price(model(), fallback_models=["c/d"]) is None


def test_a_lower_guard_of_the_creator_stays_and_other_provider_settings_too() -> None:
    mine = {"provider": {"sort": "price", "max_price": {"prompt": 0.1, "completion": 99, "image": 1}}}
    body = body_of(parameters=mine)
    assert body["provider"] == {"sort": "price", "max_price": {"prompt": 0.1, "completion": 0.6, "image": 1}}
    assert mine["provider"]["max_price"] == {"prompt": 0.1, "completion": 99, "image": 1}


def test_a_pseudonym_is_stable_and_tells_callers_apart_without_naming_them() -> None:
    ada = Caller(kind="user", id="ada")
    assert pseudonym(b"s", ada) == pseudonym(b"s", ada)
    others = {pseudonym(b"s", Caller(kind="service", id="ada")), pseudonym(b"t", ada), pseudonym(b"s", ada)}
    assert len(others) == 3
    assert "ada" not in pseudonym(b"s", ada)
