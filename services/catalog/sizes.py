"""How many tokens a prompt may have: at least, probably, and at most.

A text's tokens are guessed from its length and bounded by its bytes, because no tokenizer makes more tokens than a text has
bytes. What a resource's prompt may become is bounded by the limits of its inputs, and by the model's context where those
say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from contracts.attachments import pdf_engine
from contracts.catalog import MAX_INPUT_BYTES, EstimateCost, InputField, Model, ResourceDraft
from contracts.errors import invalid
from contracts.templates import find_variables, render

CHARS_PER_TOKEN = 4
CHAT_FRAME_TOKENS = 100
"""Role markers and a model's own preamble, on top of the text, at most."""
_MAX_BYTES_PER_CHAR = 4
_LIKELY_TEXT_CHARS = 200
_LIKELY_SPEECH_S = 10
_LONGEST_NUMBER_CHARS = 330
"""What the largest double takes when it is written out."""


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Tokens of text that go in. `most` is None where nothing limits them. `source` says where the figures come from."""

    low: int
    expected: int
    most: int | None
    source: str
    images: int = 0
    sounds: int = 0
    pdfs: int = 0
    pdfs_required: int = 0
    pdf_engine: str | None = None


@dataclass(frozen=True, slots=True)
class MeasuredTokens:
    """What the runs of a resource took, summed. Prompt tokens include cached ones, completion tokens reasoning."""

    runs: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int

    def per_run(self, total: int) -> int:
        """The mean of one of the sums, rounded up."""
        return -(-total // self.runs)


def size_of_request(request: EstimateCost) -> PromptSize:
    """Raises INVALID when neither the prompt nor its number of tokens is given."""
    if request.prompt_tokens is not None:
        count = request.prompt_tokens
        return PromptSize(count, count, count, "The prompt has the number of tokens that you gave.")
    if request.prompt is None:
        raise invalid("prompt", "Give the prompt, or prompt_tokens if you know how many tokens it has.")
    expected = likely_tokens(request.prompt)
    most = _bytes_of(request.prompt) + CHAT_FRAME_TOKENS
    source = f"The prompt is about {expected} tokens by its length; the ceiling allows for {most}."
    return PromptSize(math.ceil(expected / 2), expected, most, source)


def size_of_resource(draft: ResourceDraft, model: Model) -> PromptSize:
    """What its templates become with ordinary inputs, and with the longest that the inputs allow."""
    inputs = {field.name: field for field in draft.inputs}
    samples = {name: _sample(field) for name, field in inputs.items()}
    most: int | None = CHAT_FRAME_TOKENS
    expected = 0
    for template in (draft.openrouter_config.system_prompt, draft.openrouter_config.prompt_template):
        if template is not None:
            expected += likely_tokens(render(template, samples))
            longest = _longest(template, inputs)
            most = None if most is None or longest is None else most + longest
    if any(field.type in {"file", "audio"} for field in draft.inputs):
        most = None
    # A call that is longer than the context is refused, which costs nothing.
    limits = [limit for limit in (most, model.context_length) if limit is not None]
    source = "The prompt is the resource's templates with ordinary inputs; the ceiling takes the longest they may be."
    kinds = [field.type for field in draft.inputs]
    return PromptSize(
        math.ceil(expected / 2),
        expected,
        min(limits, default=None),
        source,
        images=kinds.count("image"),
        sounds=kinds.count("audio"),
        pdfs=kinds.count("file"),
        pdfs_required=sum(field.type == "file" and field.required for field in draft.inputs),
        pdf_engine=pdf_engine(draft.openrouter_config, model),
    )


def fill_from_resource(request: EstimateCost, draft: ResourceDraft) -> EstimateCost:
    """The request with the resource's own limits, outputs, caching and price where it does not say."""
    config = draft.openrouter_config
    caching = config.parameters.get("cache_control")
    kept_an_hour = isinstance(caching, dict) and caching.get("ttl") == "1h"
    of_resource = {
        "max_tokens": config.max_tokens,
        "images_out": 1 if "image" in config.modalities else 0,
        "audio_out_s": _LIKELY_SPEECH_S if "audio" in config.modalities else 0,
        "cache_ttl": None if caching is None else "1h" if kept_an_hour else "5m",
        "price": draft.pricing,
    }
    # Over the bus a field that was not given arrives as its default.
    unsaid = {name: value for name, value in of_resource.items() if not getattr(request, name)}
    return request.model_copy(update=unsaid)


def limits_answers(model: Model) -> bool:
    """Whether upstream passes a limit on the answer on to this model, under either of its names."""
    return not {"max_tokens", "max_completion_tokens"}.isdisjoint(model.supported_parameters)


def searches_the_web(draft: ResourceDraft) -> bool:
    """Whether its parameters let the model search, by whichever of the ways that upstream knows."""
    parameters = draft.openrouter_config.parameters
    plugins, tools = (_objects(parameters.get(name)) for name in ("plugins", "tools"))
    return (
        parameters.get("web_search_options") is not None
        or any(plugin.get("id") == "web" and plugin.get("enabled") is not False for plugin in plugins)
        or any(str(tool.get("type")).removeprefix("openrouter:").startswith("web_search") for tool in tools)
    )


def likely_tokens(text: str) -> int:
    """Latin text has about four characters to a token; other scripts have about one."""
    plain_chars = sum(character.isascii() for character in text)
    return math.ceil(plain_chars / CHARS_PER_TOKEN) + len(text) - plain_chars


def _objects(value: JsonValue) -> list[dict[str, JsonValue]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _sample(field: InputField) -> str:
    if field.default is not None:
        return str(field.default)
    match field.type:
        case "text":
            return "x" * min(field.max_length or _LIKELY_TEXT_CHARS, _LIKELY_TEXT_CHARS)
        case "choice":
            return max(field.choices or [""], key=len)
        case "number" | "boolean":
            return "false"
        case _:
            return ""


def _longest(template: str, inputs: Mapping[str, InputField]) -> int | None:
    """Bytes of the template with the longest inputs that are allowed; None where nothing limits one."""
    # A variable may stand there more than once, so each is measured by what one more byte in it makes of the whole.
    empty = dict.fromkeys(inputs, "")
    total = _bytes_of(render(template, empty))
    for name in find_variables(template):
        longest = _longest_value(inputs[name])
        if longest is None:
            return None
        times = _bytes_of(render(template, {**empty, name: "x"})) - _bytes_of(render(template, empty))
        total += times * longest
    return total


def _longest_value(field: InputField) -> int | None:
    match field.type:
        case "text":
            limit = None if field.max_length is None else field.max_length * _MAX_BYTES_PER_CHAR
            return None if limit is None else min(limit, MAX_INPUT_BYTES)
        case "choice":
            return max(map(_bytes_of, field.choices or [""]))
        case "number" | "boolean":
            return _LONGEST_NUMBER_CHARS
        case _:
            return 0


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
