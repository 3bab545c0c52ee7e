"""What must be true after a drill, claim by claim, decided from the facts alone.

Money is compared exactly. A call whose generation id was never written down cannot be put on a receipt by its id: its run has
an attempt of unknown cost instead, which is alerted, counted apart, and has to have a reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from contracts.execution import TERMINAL_STATUSES
from contracts.subjects import AS_FINISHED, EXECUTION_FINISHED, as_publisher
from deploy.local.stack import PUBLISHER
from deploy.sandbox.ledger import KEPT_CALLS
from tests.drill.chaos import Kill
from tests.drill.facts import Facts, Row
from tests.drill.orders import Order

ZERO = Decimal(0)
_NOTED_S = 1.0
"""A generation id is written a few milliseconds after the headers that bring it; a busy machine takes longer."""


@dataclass
class Claim:
    """A row of the table: what was counted, and what contradicts it."""

    text: str
    counted: str
    against: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.against


@dataclass(frozen=True)
class Unknown:
    """A call of which nobody here knows the cost, and why; `billed` is what the sandbox took for it, None where it never
    heard of it."""

    execution_id: str
    reason: str
    billed: Decimal | None
    explained: bool


class Audit:
    """`died` are parts that ended by themselves, `left` what had not settled in time."""

    def __init__(
        self,
        facts: Facts,
        orders: Sequence[Order],
        kills: Sequence[Kill],
        *,
        died: Sequence[str],
        left: dict[str, int],
    ) -> None:
        self.facts = facts
        self.orders = orders
        self.kills = kills
        self.died = died
        self.left = left

    def claims(self) -> list[Claim]:
        checks: tuple[Callable[[], Claim], ...] = (
            self._settled,
            self._ended,
            self._once,
            self._answers,
            self._billed,
            self._not_invented,
            self._sums,
            self._unknown_reasons,
            self._alerted,
            self._revisions,
            self._slots,
            self._budgets,
            self._jobs,
            self._events,
            self._projection,
            self._files,
            self._alive,
        )
        return [check() for check in checks]

    # What belongs together --------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> dict[str, Row]:
        return {row["id"]: row for row in self.facts.executions}

    @cached_property
    def runs_of(self) -> dict[str, list[str]]:
        """Executions by the prompt of their order."""
        by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
        for row in self.facts.executions:
            if row["idempotency_key"] is not None:
                by_key[row["caller_id"], row["idempotency_key"]].append(row["id"])
        return {
            order.prompt: [str(order.id)] * (str(order.id) in self.rows)
            if order.by_publisher
            else by_key[order.caller, order.key]
            for order in self.orders
        }

    @cached_property
    def latest(self) -> dict[str, Row]:
        """The last revision of each receipt."""
        return {row["id"]: row["body"] for row in self.facts.receipts}

    @cached_property
    def attempts(self) -> list[tuple[str, Row]]:
        """Every attempt that stands on a receipt."""
        return [(run, attempt) for run, body in self.latest.items() for attempt in body["attempts"]]

    @cached_property
    def unidentified(self) -> dict[str, list[Row]]:
        """Calls whose id is on no receipt, by prompt."""
        known = {attempt["generation_id"] for _, attempt in self.attempts}
        found: dict[str, list[Row]] = defaultdict(list)
        for call in self.facts.calls:
            if call["generation_id"] not in known:
                found[call["prompt"]].append(call)
        return found

    @cached_property
    def unknown(self) -> list[Unknown]:
        """Every attempt of unknown cost. Of a run with several, the calls that are left go to them one by one."""
        prompts = {run: prompt for prompt, runs in self.runs_of.items() for run in runs}
        calls = {prompt: list(found) for prompt, found in self.unidentified.items()}
        found = []
        for run, attempt in self.attempts:
            if attempt["cost_status"] == "unknown":
                waiting = calls.get(prompts.get(run, ""), [])
                call = waiting.pop(0) if waiting and attempt["generation_id"] is None else None
                reason, explained = self._reason(self.rows[run], attempt, call)
                billed = None if call is None else Decimal(call["cost"])
                found.append(Unknown(run, reason, billed, explained))
        return found

    def _reason(self, row: Row, attempt: Row, call: Row | None) -> tuple[str, bool]:
        if attempt["generation_id"] is not None:
            return "its id is known, and upstream did not tell what it cost", False
        if attempt["status"] == "canceled":
            return "canceled before upstream had named the call", True
        if attempt["status"] != "interrupted":
            return f"{attempt['status']} ({attempt['code']}) without an id", False
        if call is None:
            return "interrupted between the admission and the call: upstream never heard of it", True
        if call["ended_at"] - call["started_at"] < _NOTED_S:
            return "interrupted before the id of the call was written", True
        if any("postgres" in kill.what and kill.at - 1 < call["ended_at"] < kill.until + 2 for kill in self.kills):
            return "interrupted while the database was away, with the id in memory", True
        seconds = call["ended_at"] - call["started_at"]
        return f"interrupted {seconds:.1f} s after the call of {row['executor']} began, its id not written", False

    # Claims -----------------------------------------------------------------------------------------------------------

    def _settled(self) -> Claim:
        against = [f"{count} {name} had not settled in time" for name, count in self.left.items()]
        if len(self.facts.calls) >= KEPT_CALLS:
            against.append("the sandbox's ledger is full: the first calls are forgotten")
        return Claim("everything came to rest by itself", f"{len(self.facts.executions)} executions", against)

    def _ended(self) -> Claim:
        accepted = {execution_id for order in self.orders for execution_id in order.accepted}
        against = [f"{run} was accepted and has no row" for run in accepted - self.rows.keys()]
        against += [f"{row['id']} is {row['status']}" for row in self.facts.executions if not _over(row)]
        return Claim("every accepted execution is terminal, with a receipt", f"{len(accepted)} accepted", against + [
            f"{run} has no receipt" for run in self.rows.keys() - self.latest.keys()
        ])  # fmt: skip

    def _once(self) -> Claim:
        against = [f"{len(runs)} executions of one order: {runs}" for runs in self.runs_of.values() if len(runs) > 1]
        strangers = self.rows.keys() - {run for runs in self.runs_of.values() for run in runs}
        against += [f"{run} belongs to no order" for run in strangers]
        again = sum(order.tries > 1 for order in self.orders)
        return Claim("an order that is sent again is one execution", f"{again} orders sent again", against)

    def _answers(self) -> Claim:
        against = [f"{order.kind} {order.key}: {fault}" for order in self.orders for fault in order.faults]
        told = [order for order in self.orders if order.told is not None]
        for order in told:
            assert order.told is not None
            row = self.rows.get(order.told["execution_id"])
            status = row and ("failed" if row["status"] == "interrupted" else row["status"])
            said = "failed" if order.told["status"] == "interrupted" else order.told["status"]
            if status != said:
                against.append(f"{order.kind} {order.key} was told {said}, and it is {status}")
        against += [
            f"{order.kind} {order.key} never heard the end: {dict(order.trouble)}"
            for order in self.orders
            if order.told is None and order.refused is None and order.kind not in ("async", "submit", "leave")
        ]
        against += [f"{order.kind} was refused with {order.refused}" for order in self.orders if order.refused]
        return Claim("every caller heard the end, once, and the true one", f"{len(told)} answers", against)

    def _billed(self) -> Claim:
        """The heart of it: from upstream's bill to the receipts."""
        on_receipts: dict[str, list[tuple[str, Row]]] = defaultdict(list)
        for run, attempt in self.attempts:
            if attempt["generation_id"] is not None:
                on_receipts[attempt["generation_id"]].append((run, attempt))
        billed = [call for call in self.facts.calls if Decimal(call["cost"] or 0) > 0]
        against, exact = [], 0
        unknown = Counter(one.execution_id for one in self.unknown)
        for call in billed:
            name, cost = call["generation_id"], Decimal(call["cost"])
            found = on_receipts[name]
            runs = self.runs_of.get(call["prompt"], [])
            if len(found) == 1 and found[0][0] in runs and _known(found[0][1]) == cost:
                exact += 1
            elif found:
                places = [(run, attempt["cost_status"], attempt["cost_usd"]) for run, attempt in found]
                against.append(f"{name} was billed {cost}; on receipts: {places}")
            elif len(self.unidentified[call["prompt"]]) > sum(unknown[run] for run in runs):
                against.append(f"{name} was billed {cost} for {runs} and is on no receipt, not even as unknown")
        counted = f"{exact} of {len(billed)} by id; {len(billed) - exact - len(against)} unknown"
        return Claim("every billed call is on exactly one receipt at exactly its cost", counted, against)

    def _not_invented(self) -> Claim:
        calls = {call["generation_id"]: call for call in self.facts.calls}
        against, total = [], ZERO
        for run, attempt in self.attempts:
            cost = _known(attempt)
            total += cost or ZERO
            if cost and attempt["generation_id"] not in calls:
                against.append(f"{run} has a cost of {cost} that upstream never billed")
            if attempt["cost_status"] == "pending":
                against.append(f"{run} still waits for its cost")
        return Claim("no receipt has a cost that upstream did not bill", f"{total} USD", against)

    def _sums(self) -> Claim:
        against = []
        for run, body in self.latest.items():
            costs = [_known(attempt) for attempt in body["attempts"]]
            total = None if None in costs else sum((cost for cost in costs if cost is not None), ZERO)
            row, stated = self.rows[run], _decimal(body["cost"]["model_usd"])
            if stated != total or row["cost_usd"] != total or row["cost_status"] != body["cost"]["status"]:
                against.append(f"{run}: attempts {total}, receipt {stated}, row {row['cost_usd']}")
            if row["status"] != body["status"] or row["price_usd"] != _decimal(body["cost"]["price_usd"]):
                against.append(f"{run}: the row is {row['status']} {row['price_usd']}, the receipt says otherwise")
        stored = {(row["id"], row["number"]): (row["generation_id"], row["cost_usd"]) for row in self.facts.attempts}
        for run, attempt in self.attempts:
            if stored.get((run, attempt["number"])) != (attempt["generation_id"], _decimal(attempt["cost_usd"])):
                against.append(f"{run}: attempt {attempt['number']} is not what its receipt says")
        return Claim("receipts, runs and attempts agree to the last digit", f"{len(self.latest)} receipts", against)

    def _unknown_reasons(self) -> Claim:
        against = [f"{one.execution_id}: {one.reason}" for one in self.unknown if not one.explained]
        return Claim("a cost is unknown only where its id could not be known", f"{len(self.unknown)} unknown", against)

    def _alerted(self) -> Claim:
        alerted: Counter[str] = Counter()
        for line in self.facts.alerts:
            alerted[line["execution_id"]] += line["attempts"]
        unknown = Counter(one.execution_id for one in self.unknown)
        against = [
            f"{run}: {unknown[run]} unknown, {alerted[run]} alerted"
            for run in unknown.keys() | alerted.keys()
            if unknown[run] != alerted[run]
        ]
        return Claim("every unknown cost was alerted, once", f"{alerted.total()} alerts", against)

    def _revisions(self) -> Claim:
        revisions: dict[str, list[int]] = defaultdict(list)
        for row in self.facts.receipts:
            revisions[row["id"]].append(row["revision"])
        against = [
            f"{run} has revisions {found}"
            for run, found in revisions.items()
            if found != list(range(1, len(found) + 1)) or len(found) > 2
        ]
        corrected = sum(len(found) > 1 for found in revisions.values())
        return Claim("no receipt is doubled", f"{len(revisions)} receipts, {corrected} with a second revision", against)

    def _slots(self) -> Claim:
        against = [f"{row['id']} holds one" for row in self.facts.executions if row["status"] == "running"]
        for name, metrics in self.facts.metrics.items():
            if metrics.get("x402jobs_slots_in_use", 0):
                against.append(f"{name} counts {metrics['x402jobs_slots_in_use']:g}")
        return Claim("no slot is held", f"{len({row['owner'] for row in self.facts.executions})} keys", against)

    def _budgets(self) -> Claim:
        """What nobody knows the cost of counts as the most that it can have cost."""
        spent: dict[str, Decimal] = defaultdict(Decimal)
        for row in self.facts.executions:
            spent[row["owner"]] += row["cost_usd"] if row["cost_status"] == "final" else row["hold_usd"] or ZERO
        against = [f"{row['owner']} still holds {row['held_usd']}" for row in self.facts.budgets if row["held_usd"]]
        stated = {row["owner"]: row["spent_usd"] for row in self.facts.budgets}
        against += [
            f"{owner} spent {total}, by the budget {stated.get(owner)}"
            for owner, total in spent.items()
            if stated.get(owner) != total
        ]
        return Claim("no budget is held, and what is spent of it was billed", f"{len(stated)} budgets", against)

    def _jobs(self) -> Claim:
        jobs = [order for order in self.orders if order.kind in ("async", "submit") and order.accepted]
        against = [
            f"{order.kind} {run} is lost"
            for order in jobs
            for run in order.accepted
            if run not in self.rows or not _over(self.rows[run])
        ]
        against += [f"a dead letter: {letter['reason']}" for letter in self.facts.dead_letters]
        if self.facts.inbox:
            against.append(f"{self.facts.inbox} messages are left in the inbox")
        return Claim("no job is lost", f"{len(jobs)} acknowledged jobs", against)

    def _events(self) -> Claim:
        house, sent = EXECUTION_FINISHED.subject, Counter(self.facts.messages)
        publisher = as_publisher(AS_FINISHED.subject, PUBLISHER)
        due = {(house, f"{row['id']}:{row['revision']}") for row in self.facts.receipts}
        due |= {
            (publisher, f"{PUBLISHER}:{row['id']}:{row['revision']}")
            for row in self.facts.receipts
            if row["body"]["caller"]["kind"] == "service"
        }
        against = [f"{name} was never published on {subject}" for subject, name in due - sent.keys()]
        against += [f"{name} was published on {subject} for no receipt" for subject, name in sent.keys() - due]
        against += [f"{row['message_id']} is still in the outbox" for row in self.facts.outbox]
        twice = sum(count - 1 for count in sent.values())
        return Claim("no event is missing", f"{len(due)} events, {twice} of them twice", against)

    def _projection(self) -> Claim:
        revisions = {row["id"]: row["revision"] for row in self.facts.receipts}
        runs = {row["id"]: row for row in self.facts.runs}
        against = []
        spent: dict[str, Decimal] = defaultdict(Decimal)
        for run, body in self.latest.items():
            spent[body["owner"]] += _decimal(body["cost"]["model_usd"]) or ZERO
            row = runs.get(run)
            expected = (revisions[run], body["status"], _decimal(body["cost"]["model_usd"]))
            if row is None or (row["revision"], row["status"], row["model_usd"]) != expected:
                against.append(f"{run} in the catalog: {row}, expected {expected}")
        stated: dict[str, Decimal] = defaultdict(Decimal)
        for row in self.facts.spending:
            stated[row["owner"]] += row["model_usd"]
        against += [
            f"{owner} spent {spent[owner]}, by the catalog {stated[owner]}"
            for owner in spent
            if spent[owner] != stated[owner]
        ]
        return Claim("the catalog's figures are the sum of the receipts", f"{len(runs)} runs", against)

    def _files(self) -> Claim:
        lost = [
            f"{file['name']}: {file['status']}"
            for file in self.facts.files
            if file["status"] != 200 or not file["bytes"]
        ]
        return Claim("every file that a result names is there", f"{len(self.facts.files)} files", lost)

    def _alive(self) -> Claim:
        killed = sum(len(kill.what) for kill in self.kills)
        return Claim("nothing ended but what was killed", f"{killed} killed", [f"{name} ended" for name in self.died])


def _over(row: Row) -> bool:
    return row["status"] in TERMINAL_STATUSES


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(value)


def _known(attempt: Row) -> Decimal | None:
    return _decimal(attempt["cost_usd"]) if attempt["cost_status"] == "final" else None


def table(claims: Iterable[Claim], *, shown: int = 5) -> str:
    """The claims as text, each with the first things that contradict it."""
    lines = []
    for claim in claims:
        lines.append(f"  {'ok ' if claim.holds else 'NO '} {claim.text:<64} {claim.counted}")
        lines += [f"        {thing}" for thing in claim.against[:shown]]
        if len(claim.against) > shown:
            lines.append(f"        … and {len(claim.against) - shown} more")
    return "\n".join(lines)
