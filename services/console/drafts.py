"""A resource as a form has it: fields named by the paths of the interface, so that its problems find them.

What a field holds is text, also where it makes no sense; `draft_of` reads all of it at once and names everything that
cannot be sent on. What only the interface can know is left to it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
from pydantic import JsonValue

from contracts.catalog import FixedPrice, InputField, Model, Resource, ResourceDraft
from contracts.errors import ErrorCode, FieldProblem
from contracts.money import plain
from contracts.templates import find_variables
from services.console.api import ApiError, Problem
from services.console.forms import Form
from services.console.text import editable

CONFIG = "openrouter_config"
PARAMETERS = f"{CONFIG}.parameters"
INPUT_TYPES = ("text", "number", "choice", "boolean", "image", "file", "audio")
ATTACHED = ("image", "file", "audio")
_MIB = 1024 * 1024
_ROW = re.compile(r"inputs\.(\d{1,3})\.name")
_FALLBACK = re.compile(r"openrouter_config\.fallback_models\.\d{1,2}")
_MAX_SLUG_CHARS = 80


class Parameter(NamedTuple):
    """A request parameter with a field of its own. With `choices` it is one of them, otherwise a number."""

    name: str
    label: str
    help: str
    choices: tuple[str, ...] = ()


PLAIN_PARAMETERS = (
    Parameter("top_p", "Top P", "0 to 1: only the likeliest words up to this share."),
    Parameter("top_k", "Top K", "Only so many of the likeliest words."),
    Parameter("min_p", "Min P", "0 to 1: no word less likely than this share of the likeliest."),
    Parameter("frequency_penalty", "Frequency penalty", "−2 to 2: against words that come often."),
    Parameter("presence_penalty", "Presence penalty", "−2 to 2: against words that came at all."),
    Parameter("repetition_penalty", "Repetition penalty", "0 to 2: against repeating the prompt."),
    Parameter("seed", "Seed", "The same number makes the same answer likelier."),
    Parameter("verbosity", "Verbosity", "How much it says.", ("low", "medium", "high")),
    Parameter(
        "reasoning",
        "Reasoning effort",
        "How long it thinks; thinking is paid as answer.",
        ("minimal", "low", "medium", "high"),
    ),
    Parameter("response_format", "Form of the answer", "JSON only, when the prompt asks for it too.", ("json_object",)),
)
# How a chosen word stands in the request where it does not stand there by itself.
_WRAPPED = {"reasoning": "effort", "response_format": "type"}


NEW_ROW = Form({"inputs.__n__.required": "on", "inputs.__n__.max_length": "2000"})
"""An input that is begun; the script puts its number in. Its limit keeps what a run can cost within reason."""
_NEW_MAX_TOKENS = 4000


# Into a form ----------------------------------------------------------------------------------------------------------


def new_values(model: Model | None) -> Form:
    """What stands in the form of a resource that is begun."""
    return Form({
        f"{CONFIG}.model_id": "" if model is None else model.id,
        f"{CONFIG}.modalities.text": "on",
        f"{CONFIG}.max_tokens": "" if model is None else _number_text(_longest(model)),
        "pricing.mode": "fixed",
        "margin_rule": "warn",
    })  # fmt: skip


def _longest(model: Model) -> int | None:
    """A length of answers that suits most, pages of text and some thinking; pictures and sound take what they take."""
    if model.output_modalities != ["text"] or not takes(model, "max_tokens"):
        return None
    return min(_NEW_MAX_TOKENS, model.max_completion_tokens or _NEW_MAX_TOKENS)


def copy_of(resource: Resource) -> Form:
    """What stands in the form of a resource that is begun as another one."""
    values = values_of(resource)
    return Form({**values, "name": f"{values['name']} (copy)", "slug": ""})


def values_of(draft: ResourceDraft) -> Form:
    """What stands in the form of a stored resource."""
    config, pricing = draft.openrouter_config, draft.pricing
    values: dict[str, str] = {
        "name": draft.name,
        "slug": draft.slug,
        "description": draft.description,
        "example_output": draft.example_output,
        "margin_rule": draft.margin_rule,
        f"{CONFIG}.model_id": config.model_id,
        f"{CONFIG}.system_prompt": config.system_prompt or "",
        f"{CONFIG}.prompt_template": config.prompt_template,
        f"{CONFIG}.temperature": _number_text(config.temperature),
        f"{CONFIG}.max_tokens": _number_text(config.max_tokens),
        "pricing.mode": pricing.mode,
    }
    values |= {f"{CONFIG}.modalities.{modality}": "on" for modality in config.modalities}
    values |= {f"{CONFIG}.fallback_models.{number}": name for number, name in enumerate(config.fallback_models)}
    values |= {f"timeouts.{name}": _number_text(seconds) for name, seconds in draft.timeouts}
    if isinstance(pricing, FixedPrice):
        values["pricing.fixed.price_usd"] = editable(pricing.price_usd)
    else:
        values["pricing.cost_plus.markup_percent"] = editable(pricing.markup_percent)
        values |= {
            "pricing.cost_plus.min_usd": editable(pricing.min_usd),
            "pricing.cost_plus.max_usd": editable(pricing.max_usd),
        }
    for number, field in enumerate(draft.inputs):
        values |= {f"inputs.{number}.{name}": text for name, text in _input_values(field).items()}
    return Form(values | _parameter_values(config.parameters))


def _input_values(field: InputField) -> dict[str, str]:
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return {
        "name": field.name,
        "type": field.type,
        "description": field.description or "",
        "required": "on" if field.required else "",
        "default": _number_text(default) if isinstance(default, int | float) else default or "",
        "max_length": _number_text(field.max_length),
        "minimum": _number_text(field.minimum),
        "maximum": _number_text(field.maximum),
        "choices": "\n".join(field.choices or []),
        "max_bytes": "" if field.max_bytes is None else plain(Decimal(field.max_bytes) / _MIB),
        "accept": ", ".join(field.accept or []),
    }


def _parameter_values(parameters: Mapping[str, JsonValue]) -> dict[str, str]:
    """Those that have a field of their own in it, the others as JSON."""
    values: dict[str, str] = {}
    for parameter in PLAIN_PARAMETERS:
        text = _field_text(parameter, parameters.get(parameter.name))
        if text:
            values[f"{PARAMETERS}.{parameter.name}"] = text
    further = {name: value for name, value in parameters.items() if f"{PARAMETERS}.{name}" not in values}
    if further:
        values[PARAMETERS] = orjson.dumps(further, option=orjson.OPT_INDENT_2).decode()
    return values


def _field_text(parameter: Parameter, value: JsonValue) -> str:
    """The value as its field has it; empty where the field cannot hold it."""
    if not parameter.choices:
        return _number_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""
    key = _WRAPPED.get(parameter.name)
    if key is not None:
        value = value[key] if isinstance(value, dict) and list(value) == [key] else None
    return value if isinstance(value, str) and value in parameter.choices else ""


def _number_text(number: float | None) -> str:
    if number is None:
        return ""
    return str(int(number)) if float(number).is_integer() and abs(number) < 2**53 else repr(number)


# What a form says -----------------------------------------------------------------------------------------------------


def row_numbers(values: Form) -> list[int]:
    """The inputs that the form has, by the numbers in the names of their fields."""
    return [int(found[1]) for name in values if (found := _ROW.fullmatch(name))]


def fallbacks_in(values: Form) -> list[str]:
    """The fallback models that the form names."""
    return [value for name, value in values.items() if _FALLBACK.fullmatch(name) and value]


def takes(model: Model | None, parameter: str) -> bool:
    """Whether the model takes the parameter, under either of its names."""
    names = {"max_tokens", "max_completion_tokens"} if parameter == "max_tokens" else {parameter}
    return model is not None and not names.isdisjoint(model.supported_parameters)


def shown_parameters(model: Model | None, values: Form) -> list[tuple[Parameter, bool]]:
    """The parameters to offer and whether the model takes them: one that does not is shown while it has a value."""
    each = ((parameter, takes(model, parameter.name)) for parameter in PLAIN_PARAMETERS)
    return [(parameter, taken) for parameter, taken in each if taken or values[f"{PARAMETERS}.{parameter.name}"]]


def draft_of(form: Form, *, complete: bool = True) -> dict[str, Any]:
    """The resource as the interface takes it. Raises `ApiError` with everything that cannot be sent on.

    With `complete` false it may lack what only buyers see and have no price yet: then it can be estimated and run, and not saved.
    """
    read = _Reader(form)
    draft = {
        "resource_type": "openrouter_instant",
        "name": read.text("name", "Give it a name." if complete else None) or "Draft",
        "slug": form["slug"] or slug_of(form["name"]),
        "description": _lines(form["description"]),
        "example_output": _lines(form["example_output"]),
        CONFIG: _config(read),
        "inputs": [_input(read, number) for number in row_numbers(form)],
        "pricing": _pricing(read, complete=complete),
        "timeouts": _given({name: read.number(f"timeouts.{name}") for name in ("first_token_s", "idle_s", "total_s")}),
        "margin_rule": form["margin_rule"] or "warn",
    }
    read.refuse()
    return draft


def slug_of(name: str) -> str:
    """A part of an address out of a name: `Haïku maker` becomes `haiku-maker`."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters)[:_MAX_SLUG_CHARS].strip("-") or "draft"


def declared_inputs(form: Form) -> list[InputField]:
    """The inputs that the form declares, as far as they are whole; for the fields of a test run."""
    read = _Reader(form)
    fields = []
    for number in row_numbers(form):
        try:
            fields.append(InputField.model_validate(_input(read, number)))
        except ValueError:
            continue
    return fields


def unset_variables(form: Form) -> list[str]:
    """The variables of both prompts that no input declares yet."""
    declared = {form[f"inputs.{number}.name"] for number in row_numbers(form)}
    prompts = form[f"{CONFIG}.system_prompt"], form[f"{CONFIG}.prompt_template"]
    return [name for name in dict.fromkeys(n for text in prompts for n in find_variables(text)) if name not in declared]


def _config(read: _Reader) -> dict[str, Any]:
    form = read.form
    modalities = [each for each in ("text", "image", "audio") if form[f"{CONFIG}.modalities.{each}"]]
    if not modalities:
        read.wrong(f"{CONFIG}.modalities", "Choose at least one thing that it answers with.")
    return {
        "model_id": read.text(f"{CONFIG}.model_id", "Choose a model."),
        "fallback_models": fallbacks_in(form),
        "prompt_template": read.text(f"{CONFIG}.prompt_template", "Write the prompt."),
        "modalities": modalities,
        "parameters": _parameters(read),
        **_given({
            "system_prompt": _lines(form[f"{CONFIG}.system_prompt"]) or None,
            "temperature": read.number(f"{CONFIG}.temperature"),
            "max_tokens": read.whole(f"{CONFIG}.max_tokens"),
        }),
    }  # fmt: skip


def _parameters(read: _Reader) -> dict[str, Any]:
    parameters: dict[str, Any] = read.json_object(PARAMETERS)
    for parameter in PLAIN_PARAMETERS:
        path = f"{PARAMETERS}.{parameter.name}"
        if not read.form[path]:
            continue
        if parameter.name in parameters:
            read.wrong(
                PARAMETERS, f"{parameter.name} has a field of its own above; take it out here or empty that one."
            )
        value = read.form[path] if parameter.choices else read.number(path)
        key = _WRAPPED.get(parameter.name)
        parameters[parameter.name] = value if key is None else {key: value}
    return parameters


def priced(form: Form) -> bool:
    """Whether somebody has named a price; without one a draft is estimated and tried as if it were free."""
    return form["pricing.mode"] == "cost_plus" or bool(form["pricing.fixed.price_usd"])


def _pricing(read: _Reader, *, complete: bool) -> dict[str, Any]:
    if read.form["pricing.mode"] != "cost_plus":
        missing = "Say what a run costs its caller." if complete else None
        return {"mode": "fixed", "price_usd": read.usd("pricing.fixed.price_usd", missing) or "0"}
    return {
        "mode": "cost_plus",
        "markup_percent": read.usd("pricing.cost_plus.markup_percent", "Say how much comes on top, in percent."),
        "max_usd": read.usd("pricing.cost_plus.max_usd", "Say what a run may cost its caller at most."),
        **_given({"min_usd": read.usd("pricing.cost_plus.min_usd", None)}),
    }


def _input(read: _Reader, number: int) -> dict[str, Any]:
    path = f"inputs.{number}"
    form, kind = read.form, read.form[f"{path}.type"] or "text"
    field: dict[str, Any] = {
        "name": read.text(f"{path}.name", "Give the input a name."),
        "type": kind,
        "required": bool(form[f"{path}.required"]),
        "description": _lines(form[f"{path}.description"]) or None,
    }
    # Limits of another type stay in the form, in case that type comes back; they are not sent.
    if kind == "text":
        field["max_length"] = read.whole(f"{path}.max_length")
    elif kind == "number":
        field |= {"minimum": read.number(f"{path}.minimum"), "maximum": read.number(f"{path}.maximum")}
    elif kind == "choice":
        field["choices"] = [line.strip() for line in form[f"{path}.choices"].splitlines() if line.strip()] or None
    elif kind in ATTACHED:
        size = read.amount(f"{path}.max_bytes", None)
        field["max_bytes"] = None if size is None else int(size * _MIB)
        field["accept"] = [each.strip() for each in form[f"{path}.accept"].split(",") if each.strip()] or None
    if kind not in ATTACHED and form[f"{path}.default"]:
        field["default"] = read.default(f"{path}.default", kind)
    return _given(field)


def _lines(text: str) -> str:
    """Forms end lines as teletypes do."""
    return text.replace("\r\n", "\n")


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class _Reader:
    """Reads fields, and remembers what is wrong with them. What cannot be read is None."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._problems: list[FieldProblem] = []

    def wrong(self, path: str, sentence: str) -> None:
        self._problems.append(FieldProblem(path=path, message=sentence))

    def refuse(self) -> None:
        """Raises `ApiError` with everything that was wrong."""
        if self._problems:
            raise _refusal(self._problems)

    def text(self, path: str, missing: str | None) -> str:
        if not self.form[path] and missing is not None:
            self.wrong(path, missing)
        return _lines(self.form[path])

    def number(self, path: str) -> int | float | None:
        text = self.form[path].replace("−", "-")
        if not text:
            return None
        try:
            number = int(text) if re.fullmatch(r"[+-]?\d{1,15}", text) else float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.wrong(path, "Write a number, such as 0.7.")
            return None
        return number

    def whole(self, path: str) -> int | None:
        number = self.number(path)
        if number is not None and number != int(number):
            self.wrong(path, "Write a whole number.")
            return None
        return None if number is None else int(number)

    def amount(self, path: str, missing: str | None) -> Decimal | None:
        try:
            amount = self.form.amount(path)
        except ApiError as error:
            self._problems += error.problem.errors
            return None
        if amount is None and missing is not None:
            self.wrong(path, missing)
        return amount

    def usd(self, path: str, missing: str | None) -> str | None:
        """The amount as the interface takes it."""
        amount = self.amount(path, missing)
        return None if amount is None else plain(amount)

    def default(self, path: str, kind: str) -> str | float | bool | None:
        if kind == "number":
            return self.number(path)
        return self.form[path] == "true" if kind == "boolean" else _lines(self.form[path])

    def json_object(self, path: str) -> dict[str, Any]:
        if not self.form[path]:
            return {}
        try:
            value = orjson.loads(self.form[path])
        except orjson.JSONDecodeError as error:
            self.wrong(path, f"This is not JSON: it breaks in line {error.lineno}, at character {error.colno}.")
            return {}
        if not isinstance(value, dict):
            self.wrong(path, 'Write one JSON object, such as {"stop": ["END"]}.')
            return {}
        return value


def _refusal(problems: Sequence[FieldProblem]) -> ApiError:
    more = f" ({len(problems) - 1} more to put right.)" if len(problems) > 1 else ""
    return ApiError(
        Problem(
            title="Something is missing or cannot be read",
            detail=problems[0].message + more,
            code=ErrorCode.INVALID,
            status=422,
            errors=list(problems),
        )
    )
