"""What workflows decide without I/O: on any graph, with any fate of its steps, everything ends as it must."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from contracts.base import new_execution_id
from contracts.catalog import InputField
from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import Caller, ExecutionResult
from contracts.workflows import ENDED_WORKFLOW, MAX_STEPS, RunWorkflow, WorkflowRequest, WorkflowStep
from services.executor.request import render_inputs
from services.executor.workflow_store import AttemptOfStep, Step, Workflow
from services.executor.workflow_views import shown_results, view_of
from services.executor.workflows import (
    MAX_STARTS,
    check,
    check_price,
    check_resume,
    decide,
    edges,
    failure_of,
    fill,
    known_input,
    request_hash,
    run_of,
)
from services.gateway import examples

BOB = Caller(kind="user", id="bob")
CENT = Decimal("0.01")


def step(name: str, value: JsonValue = "hello", *depends_on: str) -> WorkflowStep:
    return WorkflowStep(name=name, resource="ada/x", input={"text": value}, depends_on=list(depends_on))


def request(*steps: WorkflowStep, **more: Any) -> WorkflowRequest:
    return WorkflowRequest(steps=list(steps), **more)


def problems(asked: WorkflowRequest) -> list[tuple[str, str]]:
    """What is wrong with it; nothing when it is good."""
    error = refusal(lambda: check(asked))
    return [(field.path, field.message) for field in error.body.fields] if error is not None else []


def refusal(attempt: Callable[[], object]) -> ServiceError | None:
    """The error that this raises, if any; nothing else than `invalid` is expected."""
    try:
        attempt()
    except ServiceError as error:
        return error if error.code is ErrorCode.INVALID else pytest.fail(f"{error.code}: {error}")
    return None


def result(text: str = "said", *outputs: dict[str, Any]) -> ExecutionResult:
    parts = [{"type": "text", "text": text}, *outputs]
    return ExecutionResult.model_validate({**examples.RESULT, "text": text, "outputs": parts})


IMAGE = {"type": "image", "url": "http://x/media/a.png", "mime_type": "image/png", "bytes": 3}


# What a good workflow is ----------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said_all_at_once() -> None:
    asked = request(
        step("a", "{{steps.b.txt}}"),
        step("a", "{{steps.nowhere.text}}"),
        step("b", "{{input.topic}}"),
        step("c", "x", "d"),
    )
    assert [path for path, _ in problems(asked)] == [
        "steps.0.input",
        "steps.1.name",
        "steps.1",
        "steps.2.input",
        "steps.3",
    ]


@pytest.mark.parametrize(
    "text", ["{{step.a.text}}", "{{steps.a}}", "{{ steps.a.text | upper }}", "{{steps.a.outputs[x].url}}", "{{input}}"]
)
def test_what_was_meant_as_a_reference_is_not_taken_for_text(text: str) -> None:
    assert problems(request(step("a"), step("b", text)))


@pytest.mark.parametrize("text", ["{{name}}", "{% if steps %}", "{steps.a.text}", "{{ 7 * 7 }}", "{{stepson}}", "}}{{"])
def test_other_braces_are_text(text: str) -> None:
    asked = step("b", text)
    assert problems(request(step("a"), asked)) == []
    assert fill(asked, {}, {}) == {"text": text}


def test_references_are_found_however_deep() -> None:
    asked = step("c", [{"x": "{{steps.a.text}}"}, ["{{ steps.b.image }} {{steps.a.text}}"]], "b", "d")
    assert edges(asked) == ["b", "d", "a"]


def test_a_workflow_has_steps_but_not_too_many() -> None:
    assert problems(request(*(step(f"s{number}") for number in range(MAX_STEPS)))) == []
    for number in (0, MAX_STEPS + 1):
        with pytest.raises(ValidationError):
            request(*(step(f"s{each}") for each in range(number)))


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_a_graph_is_good_unless_steps_wait_for_each_other(size: int, chance: random.Random) -> None:
    names = [f"s{number}" for number in range(size)]
    wanted = {
        name: [names[other] for other in range(number) if chance.random() < 0.4] for number, name in enumerate(names)
    }
    steps = [step(name, "x", *wanted[name]) for name in names]
    chance.shuffle(steps)
    assert problems(request(*steps)) == []
    first, last = chance.choice(names), chance.choice(names)
    wanted[first].append(last)
    reaches, frontier = set[str](), [last]
    while frontier:
        for needed in wanted[frontier.pop()]:
            if needed not in reaches:
                reaches.add(needed)
                frontier.append(needed)
    circular = first == last or first in reaches
    found = problems(request(*(step(name, "x", *wanted[name]) for name in names)))
    assert bool(found) == circular


def test_inputs_are_checked_as_far_as_they_are_known() -> None:
    fields = [InputField(name="text"), InputField(name="n", type="number", required=False)]

    def refused(**values: JsonValue) -> list[str]:
        asked = WorkflowStep(name="x", resource="r", input=values)
        error = refusal(lambda: render_inputs(*known_input(asked, fields)))
        return [field.path for field in error.body.fields] if error is not None else []

    assert refused(text="a", n=1) == refused(text="{{steps.a.text}}", n="{{steps.a.text}}") == []
    assert refused(text="a", n="one") == ["input.n"]
    assert refused(n="{{input.n}}") == ["input.text"]
    assert refused(text="a", more="{{steps.a.text}}") == ["input.more"]


def test_a_price_limit_is_for_everything_together() -> None:
    check_price(None, [CENT] * 9)
    check_price(CENT * 3, [CENT] * 3)
    check_price(CENT * 3, [CENT] * 2, paid=CENT)
    for highest, paid in (([CENT] * 4, Decimal(0)), ([CENT], CENT * 3)):
        with pytest.raises(ServiceError, match=r"0\.04 USD") as refused:
            check_price(CENT * 3, highest, paid)
        assert refused.value.code is ErrorCode.CONFLICT


def test_the_same_request_has_the_same_hash() -> None:
    def asked(**changes: Any) -> RunWorkflow:
        values = {"workflow_id": new_execution_id(), "caller": BOB, "steps": [step("a")], "input": {"x": 1, "y": 2}}
        return RunWorkflow(**{**values, **changes})

    assert request_hash(asked()) == request_hash(asked(input={"y": 2, "x": 1}, idempotency_key="k"))
    different = [asked(), asked(input={"x": 1}), asked(steps=[step("b")]), asked(max_price_usd=CENT)]
    assert len({request_hash(each) for each in different}) == 4


# What a step is run with ----------------------------------------------------------------------------------------------


def test_a_single_reference_keeps_its_type_and_others_become_text() -> None:
    said = {"a": result("yes", IMAGE)}
    given_input: dict[str, JsonValue] = {"n": 3.0, "list": [1, True], "quote": "{{steps.a.text}}"}

    def filled(value: JsonValue) -> JsonValue:
        return fill(step("b", value), given_input, said)["text"]

    assert filled("{{input.n}}") == 3.0
    assert filled("{{ input.list }}") == [1, True]
    assert filled("{{input.n}} of {{input.list}}") == "3 of [1, true]"
    assert filled("{{input.quote}}, {{steps.a.text}}") == "{{steps.a.text}}, yes", "one pass"
    assert filled("{{steps.a.image}}") == filled("{{steps.a.outputs[1].url}}") == IMAGE["url"]
    assert filled([{"x": "{{steps.a.outputs[1].bytes}}"}, None, 7]) == [{"x": 3}, None, 7]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{steps.a.image}}", "no image"),
        ("{{steps.a.outputs[1].url}}", "1 outputs"),
        ("{{steps.a.outputs[0].url}}", "has no url"),
        ("{{steps.a.text}}" * 2, "larger than 1 MiB"),
    ],
)
def test_what_is_not_there_fails_the_step(text: str, words: str) -> None:
    with pytest.raises(ServiceError, match=words) as refused:
        fill(step("b", text), {}, {"a": result("x" * 600_000)})
    assert refused.value.code is ErrorCode.INVALID


# How it goes on -------------------------------------------------------------------------------------------------------


def attempt(run: Any = None, number: int = 1, **more: Any) -> AttemptOfStep:
    values: dict[str, Any] = {
        "number": number,
        "execution_id": new_execution_id(),
        "refusal": None,
        "run": run,
        "owner": "ada",
        "error": ErrorBody(code=ErrorCode.UPSTREAM, message="It failed.").model_dump() if run == "failed" else None,
        "price_usd": CENT if run == "succeeded" else Decimal(0),
        "cost_usd": CENT / 2,
        "cost_status": "final",
        "kept_bytes": 10 if run == "succeeded" else None,
    }
    return AttemptOfStep(**{**values, **more})


def row(name: str, status: Any = "waiting", *attempts: AttemptOfStep, needs: list[str] | None = None) -> Step:
    return Step(name, "ada/x", needs or [], CENT, status, len(attempts), list(attempts))


def workflow(*steps: Step, **more: Any) -> Workflow:
    values: dict[str, Any] = {
        "id": new_execution_id(), "caller_kind": "user", "caller_id": "bob", "status": "failed", "cancel_requested": False,
        "max_price_usd": None, "definition": b"", "definition_key_id": "k1", "last_seq": 4, "begun_seq": 0,
        "created_at": examples.EXECUTION["created_at"], "finished_at": None,
    }  # fmt: skip
    return Workflow(**{**values, **more}, steps=list(steps))


def advance(steps: list[Step], *, canceling: bool) -> tuple[list[Step], str]:
    """The steps after one look, with new runs on their way."""
    changes, status = decide(steps, canceling=canceling)
    by_name = {each.name: each for each in steps}
    for change in changes:
        old = by_name[change.name]
        attempts = old.attempts
        if change.begins is not None:
            assert change.status == "running"
            attempts = [*attempts, attempt(number=len(attempts) + 1, execution_id=change.begins)]
        starts = old.starts + (change.begins is not None)
        by_name[change.name] = replace(old, status=change.status, starts=starts, attempts=attempts)
    return [by_name[each.name] for each in steps], status


@given(
    st.integers(1, 10),
    st.randoms(use_true_random=False),
    st.sampled_from(
        [{"succeeded": 1.0}, {"succeeded": 0.6, "failed": 0.2, "canceled": 0.1, "interrupted": 0.3, "refused": 0.1}]
    ),
    st.one_of(st.none(), st.integers(0, 12)),
)
def test_every_workflow_ends_and_no_step_begins_before_its_time(
    size: int, chance: random.Random, fates: dict[str, float], cancel_after: int | None
) -> None:
    names = [f"s{number}" for number in range(size)]
    steps = [
        row(name, needs=[names[other] for other in range(number) if chance.random() < 0.35])
        for number, name in enumerate(names)
    ]
    chance.shuffle(steps)
    canceling = False
    for turn in range(200):
        canceling = canceling or turn == cancel_after
        steps, status = advance(steps, canceling=canceling)
        now = {each.name: each for each in steps}
        for each in steps:
            assert len(each.attempts) <= MAX_STARTS
            if each.attempts:
                assert all(now[name].status == "succeeded" for name in each.depends_on), "nothing begins too early"
            if each.status == "skipped":
                assert canceling or any(
                    now[name].status not in ("succeeded", "waiting", "running") for name in each.depends_on
                )
        if status in ENDED_WORKFLOW:
            break
        under_way = [each for each in steps if each.status == "running"]
        assert under_way, "something is always under way until the end"
        if not canceling or chance.random() < 0.5:
            chosen = chance.choice(under_way)
            (fate,) = chance.choices([*fates], [*fates.values()])
            latest = chosen.attempts[-1]
            ended = (
                replace(latest, refusal={"code": "invalid", "message": "No."}) if fate == "refused" else attempt(fate)
            )
            steps = [replace(each, attempts=[*each.attempts[:-1], ended]) if each is chosen else each for each in steps]
    else:
        raise AssertionError("it never ended")
    statuses = {each.status for each in steps}
    assert not statuses & {"waiting", "running"}
    assert (status == "succeeded") == (statuses == {"succeeded"})
    if len(fates) == 1 and cancel_after is None:
        assert status == "succeeded"
        assert all(len(each.attempts) == 1 for each in steps)
    assert decide(steps, canceling=canceling) == ([], status), "what has ended stays as it is"


def test_all_that_is_ready_begins_at_once() -> None:
    steps = [
        row("a"),
        row("b"),
        row("c", needs=["a"]),
        row("d", "running", attempt("succeeded")),
        row("e", needs=["d"]),
    ]
    changes, status = decide(steps, canceling=False)
    assert [(change.name, change.status) for change in changes] == [
        ("d", "succeeded"), ("a", "running"), ("b", "running"), ("e", "running"),
    ]  # fmt: skip
    assert status == "running"


@pytest.mark.parametrize(
    ("steps", "canceling", "status"),
    [
        ([row("a", "succeeded"), row("b", "failed"), row("c", "canceled")], False, "failed"),
        ([row("a", "succeeded"), row("b", "canceled"), row("c", "skipped")], False, "canceled"),
        ([row("a", "failed"), row("b", "skipped")], True, "canceled"),
        ([row("a", "succeeded")], True, "succeeded"),
    ],
)
def test_how_the_whole_ended(steps: list[Step], canceling: bool, status: str) -> None:
    assert decide(steps, canceling=canceling) == ([], status)


# Resuming, prices, views ----------------------------------------------------------------------------------------------


def test_a_resume_needs_what_it_refers_to() -> None:
    asked = request(step("a"), step("b", "{{steps.a.text}}"), step("c", "x", "a"))
    done, failed = row("a", "succeeded", attempt("succeeded")), row("b", "failed", attempt("failed"), needs=["a"])
    gone = row("a", "succeeded", attempt("succeeded", kept_bytes=None))
    after = row("c", "skipped", needs=["a"])
    check_resume(workflow(done, failed, after), asked)
    check_resume(workflow(gone, row("b", "succeeded", attempt("succeeded")), after), asked)  # an order needs no text
    for steps, definition, words in (
        ((gone, failed, after), asked, "`a` said is not kept"),
        ((done, failed, after), None, "what was sent is not kept"),
    ):
        with pytest.raises(ServiceError, match=words) as refused:
            check_resume(workflow(*steps), definition)
        assert refused.value.code is ErrorCode.CONFLICT
    with pytest.raises(ServiceError, match="nothing to resume"):
        check_resume(workflow(done, status="succeeded"), asked)


@pytest.mark.parametrize(
    ("owed", "fits"),
    [(Decimal(0), True), (CENT, True), (CENT * 2, False), (None, True)],
    ids=["0", "1", "2", "unknown"],
)
def test_a_resume_stays_within_the_limit(owed: Decimal | None, fits: bool) -> None:
    asked = request(step("a"), step("b"))
    ended = workflow(
        row("a", "succeeded", attempt("succeeded")), row("b", "canceled", attempt("canceled", price_usd=owed)),
        max_price_usd=CENT * 3,
    )  # fmt: skip
    if fits:
        check_resume(ended, asked)
    else:
        with pytest.raises(ServiceError, match=r"0\.04 USD"):
            check_resume(ended, asked)


def test_a_step_of_a_limited_workflow_costs_no_more_than_foreseen() -> None:
    chosen = attempt()

    def limit_of(own: Decimal | None, whole: Decimal | None) -> Decimal | None:
        asked = step("a").model_copy(update={"max_price_usd": own})
        execute = run_of(asked, row("a", "running", chosen), chosen, BOB, request(asked, max_price_usd=whole), {})
        assert (execute.execution_id, execute.caller, execute.idempotency_key) == (chosen.execution_id, BOB, None)
        return execute.max_price_usd

    assert limit_of(None, None) is None
    assert limit_of(CENT * 2, None) == CENT * 2
    assert limit_of(CENT * 2, CENT * 9) == limit_of(None, CENT * 9) == CENT


def test_what_it_cost_is_known_when_everything_is() -> None:
    runs = [
        row("a", "succeeded", attempt("interrupted"), attempt("succeeded")),
        row("b", "running", attempt("running")),
    ]
    known = view_of(workflow(*runs, status="running"), {})
    assert known.cost.model_dump(mode="json") == {"price_usd": "0.01"}
    unknown = row("c", "succeeded", attempt("succeeded", price_usd=None, cost_usd=None, cost_status="pending"))
    mine = view_of(workflow(*runs, unknown, caller_id="ada"), {})
    assert mine.cost.model_dump(mode="json") == {
        "model_usd": None, "markup_usd": None, "price_usd": None, "status": "pending",
    }  # fmt: skip
    theirs = view_of(workflow(*runs, row("d", "succeeded", attempt("succeeded", owner="gil")), caller_id="ada"), {})
    assert theirs.cost.model_dump(mode="json") == {"price_usd": "0.02"}, "not all of these runs were paid by one key"


def test_results_that_do_not_fit_into_one_message_are_left_out() -> None:
    big = attempt("succeeded", kept_bytes=4_000_000)
    small = attempt("succeeded", kept_bytes=1_000_000)
    between = attempt("succeeded")
    shown = workflow(
        row("a", "succeeded", between), row("b", "succeeded", big, needs=["a"]), row("c", "succeeded", small),
        row("d", "succeeded", attempt("succeeded", kept_bytes=4_000_000)),
    )  # fmt: skip
    assert shown_results(shown) == [big.execution_id, small.execution_id]


def test_what_is_the_creators_affair_is_not_told_to_others() -> None:
    body = ErrorBody(
        code=ErrorCode.CREDITS_EXHAUSTED,
        message="Your OpenRouter credits are used up.",
        action_url="https://openrouter.ai/x",
    )
    failed = row("a", "failed", attempt("failed", error=body.model_dump(mode="json")))
    mine, theirs = view_of(workflow(failed, caller_id="ada"), {}), view_of(workflow(failed), {})
    for view, shown in ((mine, True), (theirs, False)):
        errors = [view.error, view.steps[0].error, view.steps[0].attempts[0].error]
        assert all(error is not None and (error.action_url is not None) == shown for error in errors)
        assert all(error is not None and ("Your OpenRouter credits" in error.message) == shown for error in errors)


def test_a_failure_names_its_step_and_what_to_do() -> None:
    failed = workflow(row("a", "succeeded", attempt("succeeded")), row("b", "failed", attempt("failed")))
    error = failure_of(failed)
    assert error is not None
    assert error.message == "The step `b` failed: It failed. Resume the workflow then; what succeeded is kept."
    assert failure_of(replace(failed, status="canceled")) is None
    forgotten = failure_of(workflow(row("b", "failed", attempt("failed", error=None))))
    assert forgotten is not None
    assert forgotten.code is ErrorCode.INTERNAL
