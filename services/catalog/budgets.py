"""Daily limits: where a day stands against them, and what its creator is told. Pure.

What counts is what runs cost the creator, as their receipts say. Runs with a test key are counted by themselves, against the
same limits, so that limits can be tried out without a test using up what live runs may spend; whoever admits runs keeps
the limits, and here it is only seen how far they are used up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal
from uuid import UUID

from contracts.errors import FieldProblem
from contracts.keys import Mode
from contracts.market import BudgetLimits, Budgets, BudgetScope, BudgetState, CallerBudget, ResourceBudgets
from contracts.money import plain

MARKS: tuple[Literal[80, 100], ...] = (80, 100)
_PERCENT = Decimal(100)


@dataclass(frozen=True, slots=True)
class Spent:
    """What the runs of one subject and mode cost in a day: all with the key, those of a resource, or those of a caller."""

    mode: Mode
    scope: BudgetScope
    subject: str
    """Empty for the key, the id of a resource, or `user:bob`."""
    model_usd: Decimal
    cost_unknown_runs: int


def caller_subject(kind: str, caller_id: str) -> str:
    return f"{kind}:{caller_id}"


def limit_problems(limits: BudgetLimits, own: Iterable[UUID]) -> list[FieldProblem]:
    """What is wrong with limits; `own` are those of the resources that the creator has."""
    known, seen, problems = set(own), set[str](), list[FieldProblem]()
    subjects = [(f"resources.{n}.resource_id", str(each.resource_id)) for n, each in enumerate(limits.resources)]
    subjects += [
        (f"callers.{n}.caller_id", caller_subject(each.caller_kind, each.caller_id))
        for n, each in enumerate(limits.callers)
    ]
    for path, subject in subjects:
        if subject in seen:
            problems.append(FieldProblem(path=path, message="There is a limit for this already; give one."))
        seen.add(subject)
    problems += [
        FieldProblem(path=f"resources.{number}.resource_id", message="You have no such resource.")
        for number, each in enumerate(limits.resources)
        if each.resource_id not in known
    ]
    return problems


def states(limits: BudgetLimits, spent: Iterable[Spent], owner: str, mode: Mode) -> list[BudgetState]:
    """Every limit with what runs of a mode used of it; of callers without a limit of their own, those who used any."""
    used = {(each.scope, each.subject): each for each in spent if each.mode == mode}
    return [
        _state(mode, scope, subject, limit, used.get((scope, subject)))
        for scope, subject, limit in _limits(limits, used, owner)
    ]


def budgets_view(limits: BudgetLimits, spent: Sequence[Spent], owner: str, day: date) -> Budgets:
    return Budgets(
        **dict(limits),
        day=day,
        today=states(limits, spent, owner, "live"),
        today_in_test=states(limits, spent, owner, "test"),
    )


def sentence(state: BudgetState) -> str:
    """What a creator is told of a limit that is (nearly) used up."""
    whose = {
        "key": "with your key",
        "resource": "of one resource",
        "caller": f"by {state.caller_kind} {state.caller_id}",
    }[state.scope]
    runs = "runs" if state.mode == "live" else "test runs"
    return (
        f"Today's {runs} {whose} have cost {plain(state.spent_usd)} of the {plain(state.daily_usd)} USD"
        " that you allow in a day."
    )


def marks_reached(state: BudgetState) -> list[Literal[80, 100]]:
    return [mark for mark in MARKS if state.reached_percent is not None and mark <= state.reached_percent]


def for_resource(limits: BudgetLimits, resource_id: UUID | None) -> ResourceBudgets:
    """What holds for runs of one resource, or of a draft."""
    own = [each.daily_usd for each in limits.resources if each.resource_id == resource_id]
    return ResourceBudgets(
        key_daily_usd=limits.key_daily_usd,
        resource_daily_usd=own[0] if own else None,
        caller_daily_usd=limits.caller_daily_usd,
        callers=limits.callers,
    )


def _limits(
    limits: BudgetLimits, used: Mapping[tuple[BudgetScope, str], Spent], owner: str
) -> Iterator[tuple[BudgetScope, str, Decimal]]:
    if limits.key_daily_usd is not None:
        yield "key", "", limits.key_daily_usd
    for resource in limits.resources:
        yield "resource", str(resource.resource_id), resource.daily_usd
    named = {_subject(each) for each in limits.callers}
    for caller in limits.callers:
        yield "caller", _subject(caller), caller.daily_usd
    if limits.caller_daily_usd is not None:
        spared = named | {caller_subject("user", owner)}
        for scope, subject in sorted(used):
            if scope == "caller" and subject not in spared:
                yield "caller", subject, limits.caller_daily_usd


def _subject(budget: CallerBudget) -> str:
    return caller_subject(budget.caller_kind, budget.caller_id)


def _state(mode: Mode, scope: BudgetScope, subject: str, daily_usd: Decimal, used: Spent | None) -> BudgetState:
    spent_usd = used.model_usd if used else Decimal(0)
    kind, _, caller_id = subject.partition(":")
    return BudgetState.model_validate(
        {
            "scope": scope,
            "mode": mode,
            "resource_id": subject if scope == "resource" else None,
            "caller_kind": kind if scope == "caller" else None,
            "caller_id": caller_id if scope == "caller" else None,
            "daily_usd": daily_usd,
            "spent_usd": spent_usd,
            "cost_unknown_runs": used.cost_unknown_runs if used else 0,
            # Nothing spent reaches nothing, not even a limit of nothing.
            "reached_percent": max(
                (mark for mark in MARKS if spent_usd > 0 and spent_usd * _PERCENT >= daily_usd * mark), default=None
            ),
        }
    )
