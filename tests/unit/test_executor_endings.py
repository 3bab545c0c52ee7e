"""How a run ends on paper: sums of costs, receipts and their revisions, messages, and what of them a caller may see."""

import base64
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import CostPlusPrice, FixedPrice
from contracts.errors import ErrorBody, ErrorCode
from contracts.execution import CallerReceipt, Cost, CostStatus, PriceOnly, Receipt
from services.executor.endings import (
    AttemptRecord,
    EndStatus,
    cost_corrected,
    cost_found,
    ended_row,
    ending_of,
    for_caller,
    interrupted,
    messages_of,
    receipt_of,
    result_of,
    total_cost,
)
from services.executor.pricing import cost_of
from services.runtime.sealing import Keyring
from tests.unit.executor_parts import ADA, BOB, CENT, NOON, PUBLISHER_ADA, RUN_ID, attempt_row, row

FREE = Decimal(0)
ERROR = ErrorBody(code=ErrorCode.UPSTREAM, message="It failed.")
COST_PLUS = CostPlusPrice(mode="cost_plus", markup_percent=Decimal(50), max_usd=Decimal(1))


def record(cost: str | None, status: CostStatus = "final", number: int = 1) -> AttemptRecord:
    return AttemptRecord(number, NOON, cost_usd=None if cost is None else Decimal(cost), cost_status=status)


# Costs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "billed", "generation_id", "expected"),
    [
        ("0.001", "no", None, (Decimal("0.001"), "final")),
        ("0.001", "maybe", "gen-1", (Decimal("0.001"), "final")),
        ("0", "maybe", "gen-1", (FREE, "final")),
        (None, "no", "gen-1", (FREE, "final")),
        (None, "maybe", "gen-1", (None, "pending")),
        (None, "maybe", None, (None, "unknown")),
    ],
)
def test_cost_of_a_call_is_stated_or_looked_up_or_unknown_and_zero_only_where_nothing_was_billed(
    stated: str | None, billed: Any, generation_id: str | None, expected: tuple[Decimal | None, str]
) -> None:
    attempt = AttemptRecord(1, NOON, generation_id=generation_id)
    attempt.settle(None if stated is None else Decimal(stated), billed=billed)
    assert (attempt.cost_usd, attempt.cost_status) == expected


@given(st.lists(st.decimals(0, 10, places=9), max_size=5))
def test_known_costs_are_summed_exactly(costs: list[Decimal]) -> None:
    records = [record(str(cost), number=number) for number, cost in enumerate(costs, 1)]
    assert total_cost(records) == (sum(costs, FREE), "final")


@pytest.mark.parametrize(
    ("statuses", "total"),
    [
        (["final", "pending"], "pending"),
        (["unknown", "final"], "unknown"),
        (["unknown", "pending"], "pending"),
        (["pending", "unknown", "final"], "pending"),
    ],
)
def test_sum_is_not_known_while_one_cost_is_not(statuses: list[CostStatus], total: CostStatus) -> None:
    records = [record("1" if status == "final" else None, status) for status in statuses]
    assert total_cost(records) == (None, total)


# The end of a run of which only its rows are known --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation_id", "cost_status"), [("gen-1", "pending"), (None, "unknown")], ids=["known id", "no id"]
)
def test_call_that_was_under_way_is_looked_up_or_unknown(generation_id: str | None, cost_status: str) -> None:
    ended = ended_row(row(), [attempt_row(generation_id=generation_id)], "interrupted", interrupted(RUN_ID))
    assert ended.cost == Cost(model_usd=None, markup_usd=None, price_usd=FREE, status=cost_status)
    [attempt] = ended.attempts
    assert (attempt.status, attempt.generation_id, attempt.cost_usd) == ("interrupted", generation_id, None)
    receipt = receipt_of(ended)
    assert (receipt.revision, receipt.status, receipt.code) == (1, "interrupted", ErrorCode.UNAVAILABLE)


def test_call_that_had_ended_keeps_what_was_written_of_it() -> None:
    first = attempt_row(status="failed", code="upstream", http_status=503, cost_usd=FREE, cost_status="final")
    second = attempt_row(number=2, generation_id="gen-2")
    ended = ended_row(row(), [first, second], "interrupted", interrupted(RUN_ID))
    assert [(a.status, a.code, a.http_status, a.cost_status) for a in ended.attempts] == [
        ("failed", ErrorCode.UPSTREAM, 503, "final"),
        ("interrupted", None, None, "pending"),
    ]


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_run_that_never_began_costs_nothing(status: EndStatus) -> None:
    ended = ended_row(row(started_at=None), [], status, ERROR if status == "failed" else None)
    assert ended.cost == Cost(model_usd=FREE, markup_usd=FREE, price_usd=FREE, status="final")
    assert ended.timing.queued_ms == pytest.approx(ended.timing.total_ms, abs=50)


def test_price_is_that_of_the_row_and_not_of_today() -> None:
    frozen = FixedPrice(mode="fixed", price_usd=Decimal("7.5"))
    ended = ended_row(row(pricing=frozen.model_dump(mode="json")), [], "succeeded", None)
    assert (ended.pricing, ended.cost.price_usd) == (frozen, Decimal("7.5"))


# Receipts and messages ------------------------------------------------------------------------------------------------


def test_finished_goes_to_the_house_with_an_id_that_makes_a_repetition_harmless() -> None:
    receipt = receipt_of(ended_row(row(), [], "succeeded", None))
    [message] = messages_of(receipt, None)
    assert (message.subject, message.message_id) == ("x402jobs.v1.execution.finished", f"{RUN_ID}:1")
    assert Receipt.model_validate_json(message.payload) == receipt


def test_publisher_gets_its_own_view_of_finished_without_the_cost() -> None:
    service = row(caller_kind="service", caller_id="demo")
    receipt = receipt_of(ended_row(service, [attempt_row(generation_id="gen-secret")], "failed", ERROR))
    house, own = messages_of(receipt, ERROR)
    assert own.subject == "x402jobs.v1.as.demo.execution.finished"
    assert own.message_id != house.message_id
    told = CallerReceipt.model_validate_json(own.payload)
    assert (told.execution_id, told.status, told.price_usd, told.error) == (RUN_ID, "failed", FREE, ERROR)
    for hidden in (b"gen-secret", b"model_usd", b"markup", b"attempts"):
        assert hidden not in own.payload


def test_everything_of_an_end_agrees_with_its_receipt() -> None:
    attempts = [attempt_row(status="succeeded", generation_id="gen-1", cost_usd=Decimal("0.002"), cost_status="final")]
    ended = ended_row(row(), attempts, "succeeded", None)
    result = result_of(ended, None, {})
    locked = Keyring.parse("k1:" + base64.b64encode(bytes(32)).decode()).encrypt(b"result", b"")
    ending = ending_of(ended, last_seq=5, result=locked, keep=timedelta(hours=1), media=["a.png"])
    receipt = Receipt.model_validate(ending.receipt)
    assert (ending.price_usd, ending.cost_usd, ending.cost_status) == (Decimal("0.01"), Decimal("0.002"), "final")
    assert (receipt.cost.price_usd, receipt.cost.model_usd) == (ending.price_usd, ending.cost_usd)
    assert (ending.result, ending.result_key_id, ending.last_seq, ending.media) == (locked.blob, "k1", 5, ["a.png"])
    assert result.cost == receipt.cost
    assert ending.receipt["cost"]["model_usd"] == "0.002"
    assert [(a["number"], a["generation_id"], a["cost_usd"]) for a in ending.attempts] == [(1, "gen-1", "0.002")]
    assert ending.error is None


def test_result_of_a_run_that_brought_nothing_is_empty_and_whole() -> None:
    result = result_of(ended_row(row(), [], "canceled", None), None, {})
    assert (result.status, result.text, result.outputs, result.attempts) == ("canceled", "", [], 0)


def test_cost_is_the_creator_s_affair() -> None:
    result = result_of(ended_row(row(), [], "succeeded", None), None, {})
    assert for_caller(result, "ada", ADA) == result
    for caller in (BOB, PUBLISHER_ADA):
        shown = for_caller(result, "ada", caller)
        assert shown.cost == PriceOnly(price_usd=CENT.price_usd)
        assert for_caller(shown, "ada", caller) == shown


# Revisions ------------------------------------------------------------------------------------------------------------


def revised(status: EndStatus, cost: str | None, *, truncated: bool = False, **changes: Any) -> Receipt:
    """The second revision, after the only call's cost was found out, or could not be."""
    of = row(pricing=COST_PLUS.model_dump(mode="json"), **changes)
    first = receipt_of(ended_row(of, [attempt_row(generation_id="gen-1")], status, None))
    cost_then = cost_of(COST_PLUS, status, text_delivered=truncated, model_usd=None, cost_status="pending")
    body = first.model_copy(update={"truncated": truncated, "cost": cost_then}).model_dump(mode="json")
    settled = attempt_row(
        cost_usd=None if cost is None else Decimal(cost), cost_status="unknown" if cost is None else "final"
    )
    revision = cost_found(of, [settled], body)
    receipt = Receipt.model_validate(revision.receipt)
    assert (revision.number, receipt.revision) == (2, 2)
    assert (revision.price_usd, revision.cost_usd, revision.cost_status) == (
        receipt.cost.price_usd,
        receipt.cost.model_usd,
        receipt.cost.status,
    )
    assert receipt.attempts[0].generation_id == "gen-1"
    return receipt


def test_price_that_depends_on_the_cost_is_known_with_it() -> None:
    cost = revised("succeeded", "0.002").cost
    assert cost == Cost(
        model_usd=Decimal("0.002"), markup_usd=Decimal("0.001"), price_usd=Decimal("0.003"), status="final"
    )


@pytest.mark.parametrize(
    ("status", "truncated", "price"),
    [("canceled", True, "0.003"), ("canceled", False, "0"), ("failed", True, "0"), ("interrupted", False, "0")],
)
def test_looked_up_cost_makes_no_price_due_that_was_not(status: EndStatus, truncated: bool, price: str) -> None:
    assert revised(status, "0.002", truncated=truncated).cost.price_usd == Decimal(price)


def test_cost_that_could_not_be_found_out_is_unknown_and_so_is_the_price_that_depends_on_it() -> None:
    assert revised("succeeded", None).cost == Cost(model_usd=None, markup_usd=None, price_usd=None, status="unknown")


def test_correction_of_a_cost_leaves_the_price_that_was_told_and_says_why_it_came() -> None:
    of = row(pricing=COST_PLUS.model_dump(mode="json"))
    settled = attempt_row(cost_usd=Decimal("0.002"), cost_status="final")
    second = cost_found(
        of, [settled], receipt_of(ended_row(of, [attempt_row()], "succeeded", None)).model_dump(mode="json")
    )
    charged = attempt_row(cost_usd=Decimal("0.005"), cost_status="final")
    third = Receipt.model_validate(cost_corrected(of, [charged], second.receipt).receipt)
    assert Receipt.model_validate(second.receipt).reason == "cost_found"
    assert (third.revision, third.reason) == (3, "cost_corrected")
    assert third.cost == Cost(
        model_usd=Decimal("0.005"), markup_usd=Decimal("-0.002"), price_usd=Decimal("0.003"), status="final"
    )


def test_revision_tells_a_publisher_the_error_again() -> None:
    of = row(caller_kind="service", caller_id="demo", error=ERROR.model_dump(mode="json"))
    first = receipt_of(ended_row(of, [attempt_row(generation_id="gen-1")], "failed", ERROR))
    settled = attempt_row(cost_usd=Decimal("0.002"), cost_status="final")
    house, own = cost_found(of, [settled], first.model_dump(mode="json")).messages
    assert (house.message_id, own.message_id) == (f"{RUN_ID}:2", f"demo:{RUN_ID}:2")
    told = CallerReceipt.model_validate_json(own.payload)
    assert (told.revision, told.status, told.error) == (2, "failed", ERROR)


def test_interrupted_run_is_told_to_be_worth_another_try() -> None:
    error = interrupted(UUID(int=7))
    assert (error.code, error.retryable, error.execution_id) == (ErrorCode.UNAVAILABLE, True, UUID(int=7))
