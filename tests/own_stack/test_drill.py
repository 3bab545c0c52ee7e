"""The chaos drill in its short form: one kill of each kind under load, then the same audit as that of `make drill`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from contracts.subjects import EXECUTION_FINISHED
from tests.conftest import StackFactory
from tests.drill.audit import Audit
from tests.drill.drill import SETTINGS, Plan, drill
from tests.drill.facts import Facts

PLAN = Plan(rounds=1, seed=7, callers=16, creators=3, minutes=1, between_s=(0.4, 1.0), freezes=False, settle_s=120)


async def test_everything_is_killed_under_load_and_the_books_are_right(stack_factory: StackFactory) -> None:
    async with stack_factory(executors=2, settings=SETTINGS) as stack:
        outcome = await drill(stack, PLAN, print)
    audit = outcome.audit
    assert outcome.holds, outcome.report()
    assert len(audit.kills) == 5
    assert len(audit.facts.executions) > 20
    # An audit that could not fail would prove nothing.
    for spoil, claim in SPOILED:
        spoiled = Audit(spoil(audit.facts), audit.orders, audit.kills, died=audit.died, left=audit.left)
        found = [each.text for each in spoiled.claims() if not each.holds]
        assert any(claim in text for text in found), (claim, found)


def _with(facts: Facts, name: str, rows: Any) -> Facts:
    return replace(facts, **{name: rows})


def _more(name: str, *rows: Any) -> Callable[[Facts], Facts]:
    """There is something that should not be."""
    return lambda facts: _with(facts, name, [*getattr(facts, name), *rows])


def _changed(name: str, **values: Any) -> Callable[[Facts], Facts]:
    """The last row of a table says something else."""

    def change(facts: Facts) -> Facts:
        *others, last = getattr(facts, name)
        return _with(facts, name, [*others, {**last, **values}])

    return change


def _dear(facts: Facts) -> int:
    """The place of a call that was billed and stands on a receipt."""
    known = {attempt["generation_id"] for attempt in facts.attempts}
    return [call["generation_id"] in known and Decimal(call["cost"]) > 0 for call in facts.calls].index(True)


def _billed_again(facts: Facts) -> Facts:
    """A call was made twice: the second one is on no receipt."""
    again = {**facts.calls[_dear(facts)], "generation_id": "gen-of-nobody"}
    return replace(facts, calls=[*facts.calls, again])


def _billed_more(facts: Facts) -> Facts:
    """A bill differs from the receipt in the last digit."""
    calls, place = list(facts.calls), _dear(facts)
    calls[place] = {**calls[place], "cost": str(Decimal(calls[place]["cost"]) + Decimal("1E-12"))}
    return replace(facts, calls=calls)


def _not_billed(facts: Facts) -> Facts:
    """A receipt has a cost that upstream never took."""
    calls, place = list(facts.calls), _dear(facts)
    del calls[place]
    return replace(facts, calls=calls)


def _on_two(facts: Facts) -> Facts:
    """A call stands on the receipt of another run as well."""
    call = facts.calls[_dear(facts)]
    stated = {"number": 9, "generation_id": call["generation_id"], "cost_usd": call["cost"], "cost_status": "final"}
    *others, last = facts.receipts
    attempts = [*last["body"]["attempts"], {**stated, "status": "succeeded", "code": None}]
    return replace(facts, receipts=[*others, {**last, "body": {**last["body"], "attempts": attempts}}])


def _said_to_nobody(facts: Facts) -> Facts:
    """An event never reached its stream."""
    house = [subject == EXECUTION_FINISHED.subject for subject, _ in facts.messages].index(True)
    return replace(facts, messages=[*facts.messages[:house], *facts.messages[house + 1 :]])


def _all_queued(facts: Facts) -> Facts:
    """Callers were told of ends that never were."""
    return _with(facts, "executions", [{**row, "status": "queued"} for row in facts.executions])


def _done_twice(facts: Facts) -> Facts:
    """An order was executed a second time."""
    row = next(row for row in facts.executions if row["idempotency_key"] is not None)
    return _with(facts, "executions", [*facts.executions, {**row, "id": "again"}])


def _unwritten(facts: Facts) -> Facts:
    """A run has no receipt at all."""
    lost = facts.receipts[-1]["id"]
    return replace(facts, receipts=[row for row in facts.receipts if row["id"] != lost])


SPOILED: list[tuple[Callable[[Facts], Facts], str]] = [
    (_changed("executions", status="running"), "terminal"),
    (_changed("executions", status="running"), "no slot is held"),
    (_changed("executions", cost_usd=Decimal(1)), "agree to the last digit"),
    (_done_twice, "one execution"),
    (_all_queued, "the true one"),
    (_billed_again, "every billed call"),
    (_billed_more, "every billed call"),
    (_on_two, "every billed call"),
    (_not_billed, "upstream did not bill"),
    (_unwritten, "with a receipt"),
    (_changed("receipts", revision=7), "no receipt is doubled"),
    (_more("alerts", {"execution_id": "nobody", "attempts": 1}), "alerted"),
    (_more("dead_letters", {"reason": "nobody took it"}), "no job is lost"),
    (_said_to_nobody, "no event is missing"),
    (_more("messages", (EXECUTION_FINISHED.subject, "nobody:1")), "no event is missing"),
    (_changed("budgets", held_usd=Decimal(1)), "no budget is held"),
    (_changed("budgets", spent_usd=Decimal(1)), "what is spent of it"),
    (_more("files", {"name": "gone.png", "status": 404, "bytes": 0}), "every file"),
    (_changed("runs", revision=0), "the catalog's figures"),
    (_changed("spending", model_usd=Decimal(1)), "the catalog's figures"),
]
