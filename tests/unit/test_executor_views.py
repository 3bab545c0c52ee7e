"""A run as its caller, its creator and strangers see it."""

import base64
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import Caller, Cost, ExecutionStatus, ExecutionView, PriceOnly
from services.executor.endings import ended_row, receipt_of, result_of
from services.executor.results import Results
from services.executor.store import Execution
from services.executor.views import view_of
from services.runtime.sealing import Keyring
from tests.unit.executor_parts import ADA, BOB, EVE, NOON, PUBLISHER_ADA, attempt_row, row

RESULTS = Results(Keyring.parse("k1:" + base64.b64encode(bytes(32)).decode()), timedelta(hours=24))
COST, PRICE = Decimal("0.002"), Decimal("0.01")


def ended(status: ExecutionStatus = "succeeded", **changes: Any) -> Execution:
    """A run with a stored result, whose cost became known after its end."""
    run = ended_row(row(**changes), [], "succeeded", None)
    locked = RESULTS.lock(result_of(run, None, {}).model_copy(update={"text": "words"}), RESULTS.keep)
    assert locked is not None
    money = {"price_usd": PRICE, "cost_usd": COST, "cost_status": "final"}
    kept = {"result": locked.blob, "result_key_id": locked.key_id}
    return row(**{"status": status, "finished_at": NOON, "last_seq": 4, **money, **kept, **changes})


def view(of: Execution, caller: Caller, *, whole: bool = True) -> ExecutionView:
    receipt = receipt_of(ended_row(of, [attempt_row()], "succeeded", None)).model_dump(mode="json")
    return view_of(of, caller, RESULTS, [{**receipt, "written_at": NOON}], whole=whole)


def test_caller_sees_output_and_price() -> None:
    seen = view(ended(), BOB)
    assert seen.result is not None
    assert seen.result.text == "words"
    assert seen.cost == seen.result.cost == PriceOnly(price_usd=PRICE)
    assert (seen.receipt, seen.revisions) == (None, [])


def test_creator_sees_cost_and_receipt_and_no_output() -> None:
    seen = view(ended(), ADA)
    assert (seen.result, seen.output_expired) == (None, False)
    assert seen.cost == Cost(model_usd=COST, markup_usd=PRICE - COST, price_usd=PRICE, status="final")
    assert seen.receipt is not None
    assert [(each.revision, each.cost) for each in seen.revisions] == [(1, seen.receipt.cost)]
    assert "words" not in seen.model_dump_json()


def test_creator_who_calls_sees_everything_with_the_cost_as_known_today() -> None:
    seen = view(ended(caller_id="ada"), ADA)
    assert seen.result is not None
    assert isinstance(seen.result.cost, Cost)
    assert seen.result.cost == seen.cost
    assert seen.receipt is not None


@pytest.mark.parametrize("stranger", [EVE, PUBLISHER_ADA, Caller(kind="service", id="bob")])
@pytest.mark.parametrize("whole", [True, False])
def test_stranger_sees_nothing_not_even_that_it_exists(stranger: Caller, whole: bool) -> None:
    with pytest.raises(ServiceError) as caught:
        view(ended(), stranger, whole=whole)
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_item_of_a_list_has_no_output() -> None:
    seen = view(ended(), BOB, whole=False)
    assert (seen.result, seen.output_expired) == (None, False)
    assert seen.cost == PriceOnly(price_usd=PRICE)


@pytest.mark.parametrize("status", ["queued", "running"])
def test_run_that_goes_on_has_neither_cost_nor_output(status: ExecutionStatus) -> None:
    seen = view(row(status=status), BOB)
    assert (seen.status, seen.result, seen.cost, seen.error, seen.output_expired) == (status, None, None, None, False)


@pytest.mark.parametrize("status", ["succeeded", "canceled"])
def test_output_that_is_not_kept_any_more_is_said_to_be_expired(status: ExecutionStatus) -> None:
    seen = view(ended(status, result=None, result_key_id=None), BOB)
    assert (seen.result, seen.output_expired) == (None, True)
    assert seen.cost == PriceOnly(price_usd=PRICE)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_failed_run_shows_its_error_to_caller_and_creator(status: ExecutionStatus) -> None:
    error = ErrorBody(code=ErrorCode.TIMEOUT, message="Too slow.")
    failed = ended(status, result=None, result_key_id=None, error=error.model_dump(mode="json"), price_usd=Decimal(0))
    for caller in (ADA, BOB):
        seen = view(failed, caller)
        assert (seen.error, seen.result, seen.output_expired) == (error, None, False)


def test_unknown_cost_is_not_shown_as_zero() -> None:
    seen = view(ended(cost_usd=None, cost_status="unknown"), ADA)
    assert seen.cost == Cost(model_usd=None, markup_usd=None, price_usd=PRICE, status="unknown")
    assert '"model_usd":null' in seen.model_dump_json()


def test_result_copied_to_another_run_does_not_open() -> None:
    locked = ended()
    other = row(id=UUID(int=7), status="succeeded", result=locked.result, result_key_id=locked.result_key_id)
    with pytest.raises(ValueError, match="does not open"):
        RESULTS.open(other)
