"""Decisions about resources: whether a draft may be stored or run, what to warn about, who may touch it, what edits change.

Pure: the models that a draft names are given. What a reader would get wrong: a parameter that a model does not support is
a warning, because upstream drops it silently; a parameter that would replace what we set ourselves is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from contracts.catalog import (
    Availability,
    CostPlusPrice,
    Model,
    OpenRouterConfig,
    ResourceDraft,
    ResourcePatch,
    ResourceStatus,
)
from contracts.errors import ErrorCode, FieldProblem, ServiceError
from contracts.market import Replacement
from services.catalog.inputs import input_problems
from services.catalog.sizes import limits_answers
from services.catalog.templates import template_problems

if TYPE_CHECKING:
    from services.catalog.store import StoredResource

FIND_A_MODEL = "Find one with GET /api/models, for example ?q=gpt or ?curated=true."

# Parameters that would replace what the executor sets, open a way around the price, or tie the call to an account.
_SET_BY_FIELDS = {
    "model": "openrouter_config.model_id",
    "models": "openrouter_config.fallback_models",
    "messages": "openrouter_config.prompt_template",
    "prompt": "openrouter_config.prompt_template",
    "temperature": "openrouter_config.temperature",
    "max_tokens": "openrouter_config.max_tokens",
    "max_completion_tokens": "openrouter_config.max_tokens",
    "modalities": "openrouter_config.modalities",
}
_NOT_ALLOWED = frozenset(
    {"stream", "stream_options", "usage", "user", "route", "n", "session_id", "metadata", "trace", "debug"}
    | {"transforms", "preset", "service_tier", "extra_headers", "extra_query", "extra_body", "timeout", "background"}
    | {"fallbacks", "store", "api_key"}
)
# Upstream accepts these whatever the model's own list says.
_ALWAYS_SUPPORTED = frozenset(
    {"provider", "plugins", "audio", "image_config", "prompt_cache_key", "cache_control", "stop_server_tools_when"}
)

_SET_BY_PLATFORM = "This parameter is set by the platform; remove it."
_MAX_SAFE_INTEGER = 2**53


def check_draft(draft: ResourceDraft, models: Mapping[str, Model]) -> None:
    """Raises INVALID with every problem of the draft. A retired model is not one of them: see `refuse_retired`.

    `models` holds those of the models it names that are in the catalog.
    """
    problems = [
        *_unstorable(draft.model_dump(mode="json"), ""),
        *input_problems(draft.inputs),
        *template_problems(draft),
        *_parameter_problems(draft.openrouter_config),
        *_model_problems(draft, models),
    ]
    if problems:
        more = f" ({len(problems) - 1} more to put right: see fields.)" if len(problems) > 1 else ""
        raise ServiceError(ErrorCode.INVALID, problems[0].message + more, fields=problems)


def refuse_retired(model: Model) -> None:
    """Raises MODEL_UNAVAILABLE for a model that upstream no longer lists."""
    if model.status == "retired":
        raise ServiceError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"OpenRouter no longer offers this model. Choose another one: {FIND_A_MODEL}",
            fields=[FieldProblem(path="openrouter_config.model_id", message="This model is retired.")],
        )


def named_models(config: OpenRouterConfig) -> list[str]:
    """Every model id that the configuration names."""
    return [config.model_id, *config.fallback_models]


def warnings_of(draft: ResourceDraft, models: Sequence[Model], losing: Sequence[Model]) -> list[str]:
    """What the creator should know although it stops nothing.

    `models` are those that the draft names and that are in the catalog, its main one first; `losing` those of them on which
    a usual run costs more than it brings.
    """
    config, model = draft.openrouter_config, models[0]
    warnings = [warning for each in models for warning in _dropped(config, each)]
    warnings += _unfit_by_now(draft, models)
    for fallback in models[1:]:
        warnings += _fallback_warnings(config, fallback, loses=fallback in losing)
    if model in losing:
        warnings.append("An expected run costs more than callers pay: see breakdown.")
    if model.price_kind == "runtime":
        warnings.append("This model's price is decided when it runs, so a run may cost more than you charge.")
    if model.price_kind == "unknown":
        warnings.append("The catalog does not say what this model bills, so a run may cost more than you charge.")
    if model.status == "retiring" and model.retires_on is not None:
        warnings.append(f"OpenRouter has announced this model's end for {model.retires_on.isoformat()}.")
    if config.max_tokens is None and not (isinstance(draft.pricing, CostPlusPrice)) and model.price_kind != "free":
        warnings.append("Without a limit (max_tokens) a long answer may cost more than your fixed price.")
    return warnings


def stand_in(model: Model, fallbacks: Sequence[Model]) -> Model | None:
    """The fallback that answers in place of a model that is gone, if there is one."""
    if model.status != "retired":
        return None
    return next((fallback for fallback in fallbacks if fallback.status != "retired"), None)


def availability_of(model: Model, proposal: Replacement | None, fallbacks: Sequence[Model] = ()) -> Availability:
    """Whether a run can succeed today. `proposal` is what could take over from a model that is gone, or going."""
    if model.status == "available":
        return Availability(available=True)
    instead = " Choose another model." if proposal is None else f" {proposal.model_id} could take over."
    gone, answering = model.status == "retired", stand_in(model, fallbacks)
    if answering is not None:
        instead = f" {answering.id}, a fallback, answers in its place.{instead if proposal is not None else ''}"
    announced = f"OpenRouter has announced the end of {model.id} for {model.retires_on}."
    return Availability(
        available=not gone or answering is not None,
        reason=(f"OpenRouter no longer offers {model.id}." if gone else announced) + instead,
        replacement=proposal.model_id if proposal else None,
        proposal=proposal,
        ends_on=None if gone else model.retires_on,
    )


def shown_status(stored: ResourceStatus, model: Model, fallbacks: Sequence[Model] = ()) -> ResourceStatus:
    """A published resource shows as unavailable while its model is retired and no fallback answers for it, and by itself as
    published when that returns."""
    gone = model.status == "retired" and stand_in(model, fallbacks) is None
    return "unavailable" if stored == "published" and gone else stored


def own_resource(stored: StoredResource | None, asking: str) -> StoredResource:
    """The resource, for its owner. Raises NOT_FOUND or FORBIDDEN."""
    if stored is None or stored.deleted:
        raise no_such_resource()
    refuse_stranger(stored.owner, asking, stored.status)
    return stored


def refuse_stranger(owner: str, asking: str, stored: ResourceStatus) -> None:
    """Raises unless `asking` owns the resource. Only what is published may be known to exist."""
    if owner == asking:
        return
    if stored == "published":
        raise ServiceError(ErrorCode.FORBIDDEN, "This resource belongs to somebody else; only its owner may do that.")
    raise no_such_resource()


def no_such_resource() -> ServiceError:
    return ServiceError(ErrorCode.NOT_FOUND, "There is no such resource; GET /api/resources lists yours.")


def apply_patch(draft: ResourceDraft, patch: ResourcePatch) -> ResourceDraft:
    """The draft with the edit in it; a field that is not given stays."""
    given = {name: value for name, value in patch if name != "expected_version" and value is not None}
    return draft.model_copy(update=given)


# Problems -------------------------------------------------------------------------------------------------------------


def _dropped(config: OpenRouterConfig, model: Model) -> Iterable[str]:
    named = [name for name in config.parameters if name not in _ALWAYS_SUPPORTED]
    if config.temperature is not None:
        named.append("temperature")
    if config.max_tokens is not None and not limits_answers(model):
        named.append("max_tokens")
    ignored = [name for name in named if name == "max_tokens" or name not in model.supported_parameters]
    if ignored:
        yield f"{model.name} does not support {', '.join(sorted(ignored))}: OpenRouter leaves that out silently."


def _unfit_by_now(draft: ResourceDraft, models: Sequence[Model]) -> Iterable[str]:
    """Why it would be refused today: what a model takes and gives may change after a resource was saved."""
    for position, model in enumerate(models):
        if model.status != "retired":
            path = _path_of(position)
            for problem in (
                *_unfit(model, draft.openrouter_config, path, fallback=position > 0),
                *_unreadable_inputs(draft, model),
            ):
                yield f"OpenRouter has changed {model.id} since this was saved. {problem.message}"


def _fallback_warnings(config: OpenRouterConfig, fallback: Model, *, loses: bool) -> Iterable[str]:
    limit = fallback.max_completion_tokens or fallback.context_length
    if fallback.status == "retired":
        yield f"OpenRouter no longer offers {fallback.id}, a fallback of this resource: it is left out."
    elif loses:
        yield f"An expected run that {fallback.id}, a fallback, answers costs more than callers pay."
    if fallback.status == "retiring":
        yield f"OpenRouter has announced the end of {fallback.id}, a fallback, for {fallback.retires_on}."
    if config.max_tokens is not None and limit is not None and config.max_tokens > limit:
        yield f"{fallback.name}, a fallback, writes at most {limit} tokens, less than your max_tokens."


def _model_problems(draft: ResourceDraft, models: Mapping[str, Model]) -> Iterable[FieldProblem]:
    config = draft.openrouter_config
    seen: set[str] = set()
    for position, model_id in enumerate(named_models(config)):
        path = _path_of(position)
        model = models.get(model_id)
        if model_id in seen:
            yield FieldProblem(path=path, message="This model is named twice; name each model once.")
        elif model is None:
            yield FieldProblem(path=path, message=f"There is no such model in the catalog. {FIND_A_MODEL}")
        else:
            yield from _unfit(model, config, path, fallback=position > 0)
            yield from _unreadable_inputs(draft, model)
        seen.add(model_id)


def _path_of(position: int) -> str:
    """Where a draft names its main model, and behind it its fallbacks."""
    return "openrouter_config.model_id" if position == 0 else f"openrouter_config.fallback_models.{position - 1}"


def _unfit(model: Model, config: OpenRouterConfig, path: str, *, fallback: bool) -> Iterable[FieldProblem]:
    if not model.executable:
        yield FieldProblem(path=path, message=f"This model cannot be executed. {model.not_executable_reason}")
        return
    if fallback and model.status == "retired":
        yield FieldProblem(path=path, message=f"OpenRouter no longer offers this model. {FIND_A_MODEL}")
    missing = [modality for modality in config.modalities if modality not in model.output_modalities]
    if missing:
        where = "" if not fallback else f" ({path})"
        yield FieldProblem(
            path="openrouter_config.modalities",
            message=f"The model{where} puts out {', '.join(model.output_modalities)}, not {', '.join(missing)}.",
        )
    limit = model.max_completion_tokens or model.context_length
    if not fallback and config.max_tokens is not None and limit is not None and config.max_tokens > limit:
        yield FieldProblem(
            path="openrouter_config.max_tokens", message=f"This model writes at most {limit} tokens; ask for no more."
        )


def _unreadable_inputs(draft: ResourceDraft, model: Model) -> Iterable[FieldProblem]:
    """Every model that may answer has to take what callers may send. PDFs are read for those that cannot."""
    for position, declaration in enumerate(draft.inputs):
        if declaration.type in ("image", "audio") and declaration.type not in model.input_modalities:
            yield FieldProblem(
                path=f"inputs.{position}.type",
                message=f"{model.id} takes {', '.join(model.input_modalities)}, not {declaration.type}.",
            )


def _parameter_problems(config: OpenRouterConfig) -> Iterable[FieldProblem]:
    if len(set(config.modalities)) < len(config.modalities):
        yield FieldProblem(path="openrouter_config.modalities", message="Name each modality once.")
    for name in config.parameters:
        path = f"openrouter_config.parameters.{name}"[:200]
        lowered = name.casefold()
        if lowered in _SET_BY_FIELDS:
            yield FieldProblem(path=path, message=f"Set {_SET_BY_FIELDS[lowered]} instead of this parameter.")
        elif lowered in _NOT_ALLOWED:
            yield FieldProblem(path=path, message=_SET_BY_PLATFORM)
    # The executor adds to it, and keeps what the creator prefers.
    if not isinstance(config.parameters.get("provider", {}), dict):
        yield FieldProblem(path="openrouter_config.parameters.provider", message="Routing preferences are an object.")


def _unstorable(value: Any, path: str) -> Iterable[FieldProblem]:
    """What JSON can say and a database, or another JSON reader, cannot hold: NUL, infinities, integers beyond a double."""
    if isinstance(value, str) and "\0" in value:
        yield FieldProblem(path=path, message="The text holds a NUL character; remove it.")
    elif isinstance(value, float) and not math.isfinite(value):
        yield FieldProblem(path=path, message="The number is not finite.")
    elif isinstance(value, int) and abs(value) > _MAX_SAFE_INTEGER:
        yield FieldProblem(path=path, message="The number is too large to be kept exactly.")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if "\0" in key:
                yield FieldProblem(path=path, message="A name holds a NUL character; remove it.")
            yield from _unstorable(inner, f"{path}.{key}".lstrip(".") if "\0" not in key else path)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _unstorable(inner, f"{path}.{position}")
