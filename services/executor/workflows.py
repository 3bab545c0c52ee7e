"""Decisions about workflows, without I/O: what a good one is, what a reference becomes, and what follows from how steps stand.

References are filled in in one pass: what a step said is never searched for further ones, because it comes from a model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Literal

import orjson
from pydantic import JsonValue

from contracts.base import new_execution_id
from contracts.catalog import MAX_INPUT_BYTES, InputField
from contracts.errors import ErrorBody, ErrorCode, FieldProblem, ServiceError
from contracts.execution import Caller, Execute, ExecutionResult, MediaPart
from contracts.money import plain
from contracts.workflows import RunWorkflow, StepStatus, WorkflowRequest, WorkflowStatus, WorkflowStep
from services.executor.access import error_for_caller
from services.executor.request import plain_text
from services.executor.workflow_store import AttemptOfStep, Step, StepChange, Workflow

MAX_STARTS = 3
"""How often a step begins by itself: again after an interruption, which is ours and which the caller does not pay."""

_REFERENCE = re.compile(
    r"\{\{[ \t\r\n]*(?:"
    r"steps\.(?P<step>[A-Za-z_][A-Za-z0-9_-]{0,63})\."
    r"(?:(?P<what>text|image|audio|video|file)|outputs\[(?P<index>[0-9]{1,4})\]\.(?P<field>[a-z_]{1,40}))"
    r"|input\.(?P<input>[A-Za-z_][A-Za-z0-9_]{0,63})"
    r")[ \t\r\n]*\}\}"
)
# What somebody meant as a reference; any other pair of braces is text.
_MEANT = re.compile(r"\{\{[ \t\r\n]*(?:steps?|inputs?)\b")

Reference = re.Match[str]


# What a good workflow is ----------------------------------------------------------------------------------------------


def check(request: WorkflowRequest) -> None:
    """Raises INVALID with everything that is wrong with names, references and dependencies."""
    names = [step.name for step in request.steps]
    problems: list[FieldProblem] = []
    for number, step in enumerate(request.steps):
        path = f"steps.{number}"
        if step.name in names[:number]:
            problems.append(_problem(f"{path}.name", "Another step has this name; give each its own."))
        strangers = sorted({name for name in edges(step) if name not in names})
        problems += [_problem(path, f"There is no step `{name}`; check the name.") for name in strangers]
        problems += [_problem(f"{path}.input", message) for message in _wrong_references(step, request.input)]
        if len(orjson.dumps(step.input)) > MAX_INPUT_BYTES:
            problems.append(_problem(f"{path}.input", "The input is larger than 1 MiB. Send less."))
    if not problems and (waiting := _in_circles(request.steps)):
        problems.append(_problem("steps", f"These steps wait for each other: {', '.join(waiting)}."))
    if problems:
        raise ServiceError(ErrorCode.INVALID, f"The workflow cannot run: {problems[0].message}", fields=problems[:20])


def _problem(path: str, message: str) -> FieldProblem:
    return FieldProblem(path=path, message=message)


def _wrong_references(step: WorkflowStep, given: Mapping[str, JsonValue]) -> Iterator[str]:
    for text in _texts(step.input):
        good = {reference.start() for reference in _REFERENCE.finditer(text)}
        if any(meant.start() not in good for meant in _MEANT.finditer(text)):
            yield "Write a reference as {{steps.<name>.text}}, .image, .outputs[0].url or {{input.<name>}}."
        for reference in _REFERENCE.finditer(text):
            if reference["input"] is not None and reference["input"] not in given:
                yield f"The workflow's input has no `{reference['input']}`; send it, or take the reference out."


def references(step: WorkflowStep) -> list[str]:
    """The steps that the input of this one refers to, each once."""
    found = (reference["step"] for text in _texts(step.input) for reference in _REFERENCE.finditer(text))
    return list(dict.fromkeys(name for name in found if name is not None))


def edges(step: WorkflowStep) -> list[str]:
    """All steps that this one waits for, each once."""
    return list(dict.fromkeys([*step.depends_on, *references(step)]))


def _in_circles(steps: Sequence[WorkflowStep]) -> list[str]:
    """The steps that could never begin; every other one could, in some order."""
    waiting = {step.name: set(edges(step)) for step in steps}
    while ready := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in ready:
            del waiting[name]
    return list(waiting)


def known_input(step: WorkflowStep, fields: Sequence[InputField]) -> tuple[list[InputField], dict[str, JsonValue]]:
    """What can be checked of a step's input before anything runs: the declared inputs without those that wait for an earlier
    step, and their values. Values that are not declared are among them, whatever they refer to."""
    later = {name for name, value in step.input.items() if any(_REFERENCE.search(text) for text in _texts(value))}
    declared = {field.name for field in fields}
    values = {name: value for name, value in step.input.items() if name not in later or name not in declared}
    return [field for field in fields if field.name not in later], values


def of_step(error: ServiceError, name: str, path: str = "") -> ServiceError:
    """The error, saying which step it is about."""
    fields = [_problem(f"{path}{field.path}", field.message) for field in error.body.fields]
    message = f"The step `{name}`: {error.body.message}"
    return ServiceError.from_body(error.body.model_copy(update={"message": message, "fields": fields}))


def check_price(limit: Decimal | None, highest: Sequence[Decimal], paid: Decimal = Decimal(0)) -> None:
    """Raises CONFLICT when what was paid and the highest prices of all steps to come are more than the caller's limit."""
    most = sum(highest, paid)
    if limit is not None and most > limit:
        raise ServiceError(
            ErrorCode.CONFLICT,
            f"The workflow may cost up to {plain(most)} USD, more than its max_price_usd; start one with a higher limit.",
        )


def request_hash(request: RunWorkflow) -> bytes:
    """What must be the same for a repeated request to be the same request."""
    meaning = request.model_dump(mode="json", include={"steps", "input", "max_price_usd"})
    return hashlib.sha256(orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS)).digest()


# What a step is run with ----------------------------------------------------------------------------------------------


def run_of(
    step: WorkflowStep,
    row: Step,
    attempt: AttemptOfStep,
    caller: Caller,
    definition: WorkflowRequest,
    results: Mapping[str, ExecutionResult],
) -> Execute:
    """The run of one attempt, with what it refers to filled in. Raises INVALID where there is no such thing.

    The same attempt is the same request whoever makes it.
    """
    limits = [step.max_price_usd, row.highest_usd if definition.max_price_usd is not None else None]
    return Execute(
        execution_id=attempt.execution_id,
        resource=step.resource,
        input=fill(step, definition.input, results),
        max_price_usd=min((limit for limit in limits if limit is not None), default=None),
        expected_version=step.expected_version,
        caller=caller,
    )


def fill(
    step: WorkflowStep, given: Mapping[str, JsonValue], results: Mapping[str, ExecutionResult]
) -> dict[str, JsonValue]:
    """The input of a step with every reference replaced by what it refers to. Raises INVALID where that is not there."""

    def value_of(reference: Reference) -> JsonValue:
        if reference["input"] is not None:
            return given[reference["input"]]
        return _said(reference, results[reference["step"]])

    def filled(text: str) -> JsonValue:
        if (whole := _REFERENCE.fullmatch(text)) is not None:
            return value_of(whole)
        return _REFERENCE.sub(lambda reference: plain_text(value_of(reference)), text)

    values = {name: _mapped(value, filled) for name, value in step.input.items()}
    if len(orjson.dumps(values)) > MAX_INPUT_BYTES:
        raise ServiceError(
            ErrorCode.INVALID,
            "With what earlier steps said, the input is larger than 1 MiB. Let them say less, or refer to less of it.",
        )
    return values


def _said(reference: Reference, result: ExecutionResult) -> JsonValue:
    """What a reference to a step stands for."""
    name, what = reference["step"], reference["what"]
    if what == "text":
        return result.text
    if what is not None:
        for part in result.outputs:
            if isinstance(part, MediaPart) and part.type == what:
                return part.url
        raise ServiceError(ErrorCode.INVALID, f"The step `{name}` succeeded, but there is no {what} among its outputs.")
    index, field = int(reference["index"]), reference["field"]
    if index >= len(result.outputs):
        raise ServiceError(
            ErrorCode.INVALID,
            f"The step `{name}` has {len(result.outputs)} outputs; outputs[{index}] is not among them.",
        )
    value: JsonValue = result.outputs[index].model_dump(mode="json").get(field)
    if value is None:
        raise ServiceError(ErrorCode.INVALID, f"outputs[{index}] of the step `{name}` has no {field}.")
    return value


def _texts(value: JsonValue) -> Iterator[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _mapped(value: JsonValue, change: Callable[[str], JsonValue]) -> JsonValue:
    """The value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    if isinstance(value, dict):
        return {name: _mapped(inner, change) for name, inner in value.items()}
    return value


# What follows from how steps stand ------------------------------------------------------------------------------------


def decide(steps: Sequence[Step], *, canceling: bool) -> tuple[list[StepChange], WorkflowStatus]:
    """What changes with the steps, in the order to tell it, and how the whole stands then."""
    now = {step.name: step.status for step in steps}
    changes: list[StepChange] = []

    def change(step: Step, status: StepStatus | Literal["begins"]) -> None:
        begins = new_execution_id() if status == "begins" else None
        now[step.name] = "running" if status == "begins" else status
        changes.append(StepChange(step.name, now[step.name], begins))

    for step in steps:
        if step.status == "running" and (status := _after_run(step, canceling=canceling)) is not None:
            change(step, status)
    moved = True
    while moved:
        moved = False
        for step in steps:
            if now[step.name] == "waiting":
                needed = [now[name] for name in step.depends_on]
                if (status := _after_waiting(needed, canceling=canceling)) is not None:
                    change(step, status)
                    moved = True
    return changes, _whole(list(now.values()), canceling=canceling)


def _after_run(step: Step, *, canceling: bool) -> StepStatus | Literal["begins"] | None:
    """What becomes of a running step; None while its run goes on, or is still to be handed over."""
    latest = step.latest
    assert latest is not None
    if latest.refusal is not None:
        return "failed"
    match latest.run:
        case None:
            return "canceled" if canceling else None
        case "succeeded" | "failed" | "canceled":
            return latest.run
        case "interrupted":
            if canceling:
                return "canceled"
            return "begins" if step.starts < MAX_STARTS else "failed"
        case _:
            return None


def _after_waiting(needed: Sequence[StepStatus], *, canceling: bool) -> StepStatus | Literal["begins"] | None:
    """What becomes of a waiting step, by what it waits for."""
    if canceling or any(status in ("failed", "skipped", "canceled") for status in needed):
        return "skipped"
    return "begins" if all(status == "succeeded" for status in needed) else None


def _whole(statuses: Sequence[StepStatus], *, canceling: bool) -> WorkflowStatus:
    if any(status in ("waiting", "running") for status in statuses):
        return "running"
    if all(status == "succeeded" for status in statuses):
        return "succeeded"
    if canceling or "failed" not in statuses:
        return "canceled"
    return "failed"


# Resuming -------------------------------------------------------------------------------------------------------------


def check_resume(workflow: Workflow, definition: WorkflowRequest | None) -> None:
    """Raises CONFLICT when an ended workflow cannot go on: nothing is paid again in silence."""
    if workflow.status == "succeeded":
        raise ServiceError(ErrorCode.CONFLICT, "Every step of this workflow has succeeded; there is nothing to resume.")
    again = [step for step in workflow.steps if step.status != "succeeded"]
    sent = {step.name: step for step in definition.steps} if definition is not None else {}
    needed = {name for step in again if step.name in sent for name in references(sent[step.name])}
    gone = [name for name in sorted(needed) if _is_gone(workflow.step(name))]
    if definition is None or gone:
        what = f"what {', '.join(f'`{name}`' for name in gone)} said" if gone else "what was sent"
        raise ServiceError(
            ErrorCode.CONFLICT,
            f"This workflow cannot be resumed: {what} is not kept any more. Send it again as a new workflow, which runs "
            "and pays every step again.",
        )
    paid = sum((due(attempt, step) for step in workflow.steps for attempt in step.attempts), Decimal(0))
    check_price(workflow.max_price_usd, [step.highest_usd for step in again], paid)


def _is_gone(step: Step) -> bool:
    return step.status == "succeeded" and (step.latest is None or step.latest.kept_bytes is None)


def due(attempt: AttemptOfStep, step: Step) -> Decimal:
    """The price of a run in USD; the highest it can be while it is not known."""
    if attempt.run is None:
        return Decimal(0)
    return step.highest_usd if attempt.price_usd is None else attempt.price_usd


def error_of_run(attempt: AttemptOfStep, caller: Caller) -> ErrorBody | None:
    """How a run of a step failed, as its caller may read it."""
    if attempt.refusal is not None:
        return ErrorBody.model_validate(attempt.refusal)
    if attempt.error is None or attempt.owner is None:
        return None
    return error_for_caller(ErrorBody.model_validate(attempt.error), attempt.owner, caller)


def error_of(step: Step, caller: Caller) -> ErrorBody | None:
    """Why a step failed."""
    if step.status != "failed":
        return None
    told = error_of_run(step.latest, caller) if step.latest is not None else None
    if told is None:
        return ErrorBody(code=ErrorCode.INTERNAL, message="How this step failed is not kept any more; run it again.")
    return told


def failure_of(workflow: Workflow) -> ErrorBody | None:
    """Why a workflow failed: its first step that did, and what to do."""
    for step in workflow.steps:
        if workflow.status == "failed" and (error := error_of(step, workflow.caller)) is not None:
            message = (
                f"The step `{step.name}` failed: {error.message} Resume the workflow then; what succeeded is kept."
            )
            return error.model_copy(update={"message": message})
    return None
