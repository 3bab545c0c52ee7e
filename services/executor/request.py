"""What is sent upstream: a resource and the caller's input become one chat completion request.

The caller's values are checked against the declared inputs first, all problems at once, and no problem repeats a value.
The creator's further parameters lie under ours: nothing in them can change the model, the messages or the streaming.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from pydantic import JsonValue

from contracts.attachments import SENDABLE, pdf_engine
from contracts.catalog import MAX_INPUT_BYTES, InputField, Model, ResolvedResource
from contracts.errors import ErrorCode, FieldProblem, ServiceError
from contracts.execution import Caller
from contracts.money import exact_decimal
from contracts.templates import render
from services.executor.attachments import Attachment, content_part

_PER_MILLION = Decimal(1_000_000)
_STREAMED_AUDIO = {"voice": "alloy", "format": "pcm16"}
_PDF = "application/pdf"
_OURS_ALONE = frozenset({"model", "models", "messages", "stream", "stream_options", "user", "n", "usage"})


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """The body of a chat completion request, as JSON values. Files stand in it as the markers of `attachments`."""

    model: str
    body: dict[str, JsonValue]
    attachments: tuple[Attachment, ...] = ()


def build_request(
    resource: ResolvedResource,
    values: Mapping[str, JsonValue],
    *,
    user: str,
    given: Mapping[str, Attachment | str] = MappingProxyType({}),
) -> ModelRequest:
    """The request of one run. `user` is a pseudonym of the caller; `given` is what its file inputs were given.

    Raises ServiceError `invalid` with one field problem per wrong input.
    """
    config = resource.config
    rendered = render_inputs(resource.inputs, values, given)
    files = {name: file for name, file in given.items() if isinstance(file, Attachment)}
    messages: list[JsonValue] = []
    if config.system_prompt:
        messages.append({"role": "system", "content": render(config.system_prompt, rendered)})
    prompt = render(config.prompt_template, rendered)
    parts: list[JsonValue] = [content_part(name, file) for name, file in files.items()]
    messages.append({"role": "user", "content": [{"type": "text", "text": prompt}, *parts] if parts else prompt})
    body: dict[str, JsonValue] = {key: value for key, value in config.parameters.items() if key not in _OURS_ALONE}
    asked = models_asked(resource)
    body |= {"model": asked[0], "messages": messages, "stream": True, "user": user}
    if len(asked) > 1:
        body["models"] = [*asked]
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.max_tokens is not None:
        answering = [model for model in (resource.model, *resource.fallbacks) if model.id in asked]
        body |= dict.fromkeys(map(_name_of_limit, answering), config.max_tokens)
    if config.modalities != ["text"]:
        body["modalities"] = [*config.modalities]
    if "audio" in config.modalities:
        body.setdefault("audio", {**_STREAMED_AUDIO})
    if any(file.mime_type == _PDF for file in files.values()):
        _choose_pdf_engine(body, pdf_engine(config, resource.model))
    _guard_price(body, resource, asked)
    return ModelRequest(asked[0], body, tuple(files.values()))


def _choose_pdf_engine(body: dict[str, JsonValue], engine: str) -> None:
    """Says it always: upstream's own choice may be the one that is billed by the page."""
    plugins = body.get("plugins")
    others = [
        each
        for each in (plugins if isinstance(plugins, list) else [])
        if not (isinstance(each, dict) and each.get("id") == "file-parser")
    ]
    body["plugins"] = [*others, {"id": "file-parser", "pdf": {"engine": engine}}]


def models_asked(resource: ResolvedResource) -> list[str]:
    """The models that may answer, in the order upstream tries them. A retired one is left out where another can answer:
    upstream refuses a request that names a model which it does not know."""
    config = resource.config
    gone = {model.id for model in (resource.model, *resource.fallbacks) if model.status == "retired"}
    named = [config.model_id, *config.fallback_models]
    return [model_id for model_id in named if model_id not in gone] or [config.model_id]


def _name_of_limit(model: Model) -> str:
    """Some models take the limit of an answer under its newer name only, and upstream drops a name that a model lacks.

    Where the models of a request differ in it, the limit goes under both names, and each model keeps the one it takes.
    """
    takes = model.supported_parameters
    return "max_completion_tokens" if "max_completion_tokens" in takes and "max_tokens" not in takes else "max_tokens"


def pseudonym(secret: bytes, caller: Caller) -> str:
    """A stable name of a caller for upstream: a provider that blocks it blocks one person and not the whole account."""
    return hmac.new(secret, f"{caller.kind}:{caller.id}".encode(), hashlib.sha256).hexdigest()[:32]


# Inputs ---------------------------------------------------------------------------------------------------------------


def render_inputs(
    fields: list[InputField],
    values: Mapping[str, JsonValue],
    given: Mapping[str, Attachment | str] = MappingProxyType({}),
) -> dict[str, str]:
    """The text of every declared input; a file, and an optional one that is missing, is empty.

    Raises ServiceError `invalid`.
    """
    if len(json.dumps(dict(values), ensure_ascii=False).encode(errors="replace")) > MAX_INPUT_BYTES:
        problem = FieldProblem(path="input", message="The input is larger than 1 MiB. Send less.")
        raise ServiceError(ErrorCode.INVALID, problem.message, fields=[problem])
    declared = {field.name for field in fields}
    problems = [_unknown(name, declared) for name in values if name not in declared]
    rendered: dict[str, str] = {}
    for field in fields:
        value = values.get(field.name)
        if value is None:
            value = field.default
        if value is None and field.required:
            problems.append(_problem(field, "This input is required."))
        elif value is not None and field.type in SENDABLE:
            if isinstance(refusal := given[field.name], str):
                problems.append(_problem(field, refusal))
            value = None
        elif value is not None:
            problems += [_problem(field, message) for message in _faults_of(field, value)]
        rendered[field.name] = "" if value is None else plain_text(value)
    if problems:
        count = "One input is" if len(problems) == 1 else f"{len(problems)} inputs are"
        raise ServiceError(ErrorCode.INVALID, f"{count} not as this resource declares them.", fields=problems)
    return rendered


def plain_text(value: JsonValue) -> str:
    """A value as it stands in a prompt: `3` for 3.0, `true` for true, JSON for anything nested."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)


def _problem(field: InputField, message: str) -> FieldProblem:
    return FieldProblem(path=f"input.{field.name}", message=message)


def _unknown(name: str, declared: set[str]) -> FieldProblem:
    # The name is the caller's text as well: only one that could be an input's is repeated.
    path = f"input.{name}" if name.isidentifier() and name.isascii() and len(name) <= 64 else "input"
    takes = f"It takes: {', '.join(sorted(declared))}." if declared else "It takes no inputs."
    return FieldProblem(path=path, message=f"This resource has no such input. {takes}")


def _faults_of(field: InputField, value: JsonValue) -> Iterator[str]:
    """Sentences on what is wrong with a value, without the value."""
    if field.type in ("text", "choice") and not isinstance(value, str):
        yield "Send text."
    elif field.type == "boolean" and not isinstance(value, bool):
        yield "Send true or false."
    elif field.type == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
        yield "Send a number."
    elif isinstance(value, str):
        if field.max_length is not None and len(value) > field.max_length:
            yield f"Send at most {field.max_length} characters."
        if field.type == "choice" and value not in (field.choices or []):
            yield f"Send one of: {', '.join(field.choices or [])}."
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if field.minimum is not None and value < field.minimum:
            yield f"Send {plain_text(field.minimum)} or more."
        if field.maximum is not None and value > field.maximum:
            yield f"Send {plain_text(field.maximum)} or less."


# The price guard ------------------------------------------------------------------------------------------------------


def _guard_price(body: dict[str, JsonValue], resource: ResolvedResource, asked: Sequence[str]) -> None:
    """Adds `provider.max_price`, the one guard that refuses instead of paying, where the creator set no lower one.

    It holds for whichever model answers, so it is the price of the dearest; one without a fixed price leaves it out.
    """
    highest = highest_price_asked(resource, asked)
    if highest is None:
        return
    provider = body.get("provider")
    provider = dict(provider) if isinstance(provider, dict) else {}
    stated = provider.get("max_price")
    limits = dict(stated) if isinstance(stated, dict) else {}
    for name, per_token in zip(("prompt", "completion"), highest, strict=True):
        ours = _json_number(per_token * _PER_MILLION)
        theirs = limits.get(name)
        lower = isinstance(theirs, int | float) and not isinstance(theirs, bool) and theirs < ours
        limits[name] = theirs if lower else ours
    provider["max_price"] = limits
    body["provider"] = provider


def highest_price_asked(resource: ResolvedResource, asked: Sequence[str]) -> tuple[Decimal, Decimal] | None:
    """The highest prompt and completion price of the models that may answer, in USD per token; None where one of them has
    no fixed price, or none costs anything."""
    known = {model.id: model for model in (resource.model, *resource.fallbacks)}
    if any(model_id not in known for model_id in asked):
        return None
    prices = [highest_model_price(known[model_id]) for model_id in asked if known[model_id].price_kind != "free"]
    if not prices or None in prices:
        return None
    return max(price[0] for price in prices if price), max(price[1] for price in prices if price)


def highest_model_price(model: Model) -> tuple[Decimal, Decimal] | None:
    """The highest prompt and completion price of any tier in USD per token; None where no fixed price is known."""
    pricing = model.pricing
    if pricing.price_kind not in ("fixed", "tiered"):
        return None
    highest: list[Decimal] = []
    for name in ("prompt", "completion"):
        texts = [getattr(tier, name, None) for tier in (pricing, *pricing.overrides)]
        try:
            highest.append(max(exact_decimal(text) for text in texts if text is not None))
        except ValueError:
            return None
    return highest[0], highest[1]


def _json_number(amount: Decimal) -> int | float:
    """JSON has no other numbers; the shortest text of this float is the amount again."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)
