"""The golden messages: one at least per message, each good for its schema, for pydantic, and for a careless reader."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import BaseModel, TypeAdapter, ValidationError

from contracts.base import Contract
from contracts.catalog import EstimateCost, FixedPrice
from contracts.document import FRAME_DATA, VERSION, channel_id, members, message_models, schemas
from contracts.errors import ErrorBody
from contracts.execution import Frame
from contracts.subjects import REGISTRY, Rpc

FOLDER = Path(__file__).resolve().parents[2] / "contracts" / "examples" / VERSION
EXAMPLES = sorted(FOLDER.glob("*/*.json"))
SCHEMAS = schemas()
ADVICE = f"write one by hand in contracts/examples/{VERSION}/<subject>/<request|reply|message>[-<case>].json"

PARTS: dict[tuple[str, str], Any] = {("errors", "message"): ErrorBody}
for _entry in REGISTRY:
    if isinstance(_entry, Rpc):
        PARTS[channel_id(_entry), "request"] = _entry.request
        PARTS[channel_id(_entry), "reply"] = _entry.reply
    else:
        PARTS[channel_id(_entry), "message"] = _entry.message


def part_of(path: Path) -> tuple[str, str]:
    return path.parent.name, path.stem.split("-")[0]


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def parse(path: Path) -> Contract:
    parsed: Contract = TypeAdapter(PARTS[part_of(path)]).validate_json(path.read_text(encoding="utf-8"))
    return parsed


def every(path: Path) -> list[tuple[type[Contract], Any]]:
    """The message of a file with the model that it became; a frame brings what it carries along."""
    message = parse(path)
    found: list[tuple[type[Contract], Any]] = [(type(message), load(path))]
    if isinstance(message, Frame):
        carried = TypeAdapter(union_of(FRAME_DATA[message.type])).validate_python(message.data)
        found.append((type(carried), message.data))
    return found


def union_of(models: tuple[type[Contract], ...]) -> Any:
    union: Any = models[0]
    for model in models[1:]:
        union = union | model
    return union


def as_text(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def money_fields(model: type[BaseModel], sent: Any) -> list[tuple[dict[str, Any], str]]:
    """Every object within a message together with the name of a field of it that is an amount."""
    if not isinstance(sent, dict):
        return []
    found: list[tuple[dict[str, Any], str]] = []
    for name, field in model.model_fields.items():
        if sent.get(name) is None:
            continue
        kinds = set(flat(field.annotation))
        if Decimal in kinds:
            found.append((sent, name))
        inner = sent[name] if isinstance(sent[name], list) else [sent[name]]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += [hit for item in inner for hit in money_fields(kind, item)]
    return found


def flat(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    if not arguments:
        return [annotation]
    return [kind for argument in arguments for kind in flat(argument)]


def lost(sent: Any, kept: Any, path: str = "") -> list[str]:
    """Where a message says less, or something else, after it was read and written again."""
    if isinstance(sent, dict):
        gone = [f"{path}.{name}" for name in sent if name not in kept]
        return gone + [hit for name in sent if name in kept for hit in lost(sent[name], kept[name], f"{path}.{name}")]
    if isinstance(sent, list):
        assert len(sent) == len(kept), path
        return [hit for index, item in enumerate(sent) for hit in lost(item, kept[index], f"{path}.{index}")]
    return [] if meaning(sent) == meaning(kept) else [path]


def meaning(value: Any) -> Any:
    """The value behind a spelling: `0.10` is `0.1`, and a moment is the same with more zeros."""
    if isinstance(value, str):
        for read in (Decimal, datetime.fromisoformat):
            with suppress(ValueError, InvalidOperation):
                return read(value)
    return value


def test_every_part_of_the_registry_has_an_example() -> None:
    missing = set(PARTS) - {part_of(path) for path in EXAMPLES}
    assert not missing, f"{sorted(missing)}: {ADVICE}"


def test_every_message_type_has_an_example() -> None:
    shown = {model for path in EXAMPLES for model, _ in every(path)}
    assert not set(message_models()) - shown, ADVICE


def test_every_example_belongs_to_the_registry() -> None:
    strangers = [as_text(path) for path in EXAMPLES if part_of(path) not in PARTS]
    assert not strangers, "nothing in contracts/subjects.py is called so"
    for path in FOLDER.iterdir():
        assert path.is_dir(), path.name


@pytest.mark.parametrize("path", EXAMPLES, ids=as_text)
def test_example_fits_its_schema(path: Path) -> None:
    for model, sent in every(path):
        validator = Draft202012Validator(SCHEMAS[model.__name__], format_checker=FormatChecker())
        assert [error.message for error in validator.iter_errors(sent)] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=as_text)
def test_example_round_trips(path: Path) -> None:
    message = parse(path)
    written = message.model_dump_json()
    assert type(message).model_validate_json(written) == message
    kept = json.loads(written)
    assert lost(load(path), kept) == []
    errors = Draft202012Validator(SCHEMAS[type(message).__name__]).iter_errors(kept)
    assert [error.message for error in errors] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=as_text)
def test_example_with_a_field_of_tomorrow_is_read(path: Path) -> None:
    adapter = TypeAdapter(PARTS[part_of(path)])
    later = {**load(path), "field_of_tomorrow": {"nested": [1, 2]}}
    assert adapter.validate_json(json.dumps(later)) == parse(path)


def test_a_price_as_a_json_number_is_never_read() -> None:
    tried, refused = 0, 0
    for path in EXAMPLES:
        adapter = TypeAdapter(PARTS[part_of(path)])
        message = load(path)
        amounts = [hit for model in members(PARTS[part_of(path)]) for hit in money_fields(model, message)]
        for holder, name in amounts:
            good, holder[name] = holder[name], 7654.25
            tried += 1
            try:
                read = adapter.validate_json(json.dumps(message))
                # A cost that is not one is read as the view of somebody who may not see costs.
                assert b"7654.25" not in adapter.dump_json(read), f"{as_text(path)}: {name}"
            except ValidationError:
                refused += 1
            holder[name] = good
    assert refused > 0.8 * tried > 50


def test_an_amount_stands_for_a_fixed_price() -> None:
    asked = {"model_id": "google/gemini-2.5-flash-lite", "prompt_tokens": 1200, "price": "0.02"}
    Draft202012Validator(SCHEMAS["EstimateCost"]).validate(asked)
    assert EstimateCost.model_validate(asked).price == FixedPrice(mode="fixed", price_usd=Decimal("0.02"))
    with pytest.raises(ValidationError):
        EstimateCost.model_validate({**asked, "price": 0.02})


def test_nothing_of_the_creator_reaches_a_publisher() -> None:
    for path in FOLDER.glob("as.publisher.*/*.json"):
        text = path.read_text()
        assert "model_usd" not in text
        assert "generation_id" not in text


def test_unions_of_the_registry_are_plain() -> None:
    for entry in REGISTRY:
        if isinstance(entry, Rpc):
            assert isinstance(entry.reply, type | UnionType), f"{entry.name}: a reply is a model or a union of models"
