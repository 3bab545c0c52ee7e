"""Who may run what, and under which conditions."""

from decimal import Decimal
from typing import Any

import pytest

from contracts.catalog import Availability, CostPlusPrice, FixedPrice
from contracts.errors import ErrorBody, ErrorCode, ServiceError
from contracts.execution import Caller, ExecuteRequest
from services.executor.access import check_run, error_for_caller, is_creator
from tests.unit.executor_parts import ADA, BOB, PUBLISHER_ADA, resource

COST_PLUS = CostPlusPrice(mode="cost_plus", markup_percent=Decimal(10), max_usd=Decimal("0.5"))


def refusal(changes: dict[str, Any], caller: Caller = BOB, **request: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        check_run(resource(**changes), caller, ExecuteRequest(**request))
    return caught.value


def test_creator_is_the_user_of_this_name_alone() -> None:
    assert is_creator("ada", ADA)
    assert not is_creator("ada", BOB)
    assert not is_creator("ada", PUBLISHER_ADA)


def test_published_resource_is_run_by_anybody() -> None:
    for caller in (ADA, BOB, PUBLISHER_ADA):
        check_run(resource(), caller, ExecuteRequest())


@pytest.mark.parametrize("status", ["draft", "paused", "unavailable"])
def test_unpublished_resource_is_run_by_its_creator_alone(status: str) -> None:
    check_run(resource(status=status), ADA, ExecuteRequest())
    for caller in (BOB, PUBLISHER_ADA):
        assert refusal({"status": status}, caller).code is ErrorCode.NOT_FOUND


def test_resource_whose_model_is_gone_is_run_by_nobody_and_says_why() -> None:
    error = refusal({"availability": Availability(available=False, reason="a/b was retired.")}, ADA)
    assert (error.code, error.body.message) == (ErrorCode.MODEL_UNAVAILABLE, "a/b was retired.")
    assert refusal({"availability": Availability(available=False)}, ADA).body.message


def test_stranger_does_not_learn_that_the_model_of_an_unpublished_resource_is_gone() -> None:
    changes = {"status": "draft", "availability": Availability(available=False, reason="a/b was retired.")}
    assert refusal(changes).code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(("expected", "fits"), [(None, True), (3, True), (2, False), (4, False), (0, False)])
def test_expected_version_must_be_the_present_one(expected: int | None, fits: bool) -> None:
    if fits:
        check_run(resource(), BOB, ExecuteRequest(expected_version=expected))
    else:
        error = refusal({}, expected_version=expected)
        assert error.code is ErrorCode.CONFLICT
        assert "version 3" in error.body.message


@pytest.mark.parametrize(
    ("pricing", "most", "fits"),
    [
        (FixedPrice(mode="fixed", price_usd=Decimal("0.01")), "0.01", True),
        (FixedPrice(mode="fixed", price_usd=Decimal("0.01")), "0.0099999", False),
        (FixedPrice(mode="fixed", price_usd=Decimal(0)), "0", True),
        (COST_PLUS, "0.5", True),
        (COST_PLUS, "0.49", False),
    ],
)
def test_price_limit_is_held_against_the_most_that_a_run_can_cost(pricing: Any, most: str, fits: bool) -> None:
    if fits:
        check_run(resource(pricing=pricing), BOB, ExecuteRequest(max_price_usd=Decimal(most)))
    else:
        assert refusal({"pricing": pricing}, max_price_usd=most).code is ErrorCode.CONFLICT


def test_refused_price_is_written_as_people_write_it() -> None:
    pricing = FixedPrice(mode="fixed", price_usd=Decimal("0.00000010"))
    assert "0.0000001 USD" in refusal({"pricing": pricing}, max_price_usd="0").body.message


ABOUT_THE_ACCOUNT = [
    ErrorBody(code=code, message="About the account.", action_url="https://openrouter.ai/settings", retry_after_s=7)
    for code in (ErrorCode.KEY_REJECTED, ErrorCode.CREDITS_EXHAUSTED, ErrorCode.SPEND_LIMIT, ErrorCode.RATE_LIMITED)
] + [ErrorBody(code=ErrorCode.KEY_MISSING, message="About the account.")]


@pytest.mark.parametrize("error", ABOUT_THE_ACCOUNT, ids=lambda error: str(error.code))
def test_only_the_creator_reads_what_is_about_the_account(error: ErrorBody) -> None:
    assert error_for_caller(error, "ada", ADA) == error
    for stranger in (BOB, PUBLISHER_ADA):
        shown = error_for_caller(error, "ada", stranger)
        assert (shown.code, shown.retry_after_s, shown.action_url) == (error.code, error.retry_after_s, None)
        assert "account" not in shown.message
        assert shown.message.endswith(".")


def test_everybody_reads_the_same_of_all_other_errors() -> None:
    error = ErrorBody(code=ErrorCode.UPSTREAM, message="It failed.", retryable=True)
    assert error_for_caller(error, "ada", BOB) == error
