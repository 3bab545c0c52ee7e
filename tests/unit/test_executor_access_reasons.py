"""Who may run what: a caller learns that something cannot be run, its creator also why."""

from typing import Any

import pytest

from contracts.catalog import ResolvedResource
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller, ExecuteRequest
from services.executor.access import check_run
from tests.unit.catalog_parts import model

REASON = "OpenRouter no longer offers m/a. m/b could take over."


def resolved(**changes: Any) -> ResolvedResource:
    return ResolvedResource.model_validate(
        {
            "resource_id": "4f8a2b6e-3c1d-4e5f-8a9b-0c1d2e3f4a5b",
            "owner": "ann",
            "slug": "haiku",
            "version": 1,
            "status": "published",
            "config": {"model_id": "m/a", "prompt_template": "Hi"},
            "inputs": [],
            "pricing": {"mode": "fixed", "price_usd": "0.01"},
            "timeouts": {},
            "model": model().model_dump(),
            "availability": {"available": False, "reason": REASON, "replacement": "m/b"},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("kind", "name", "told"), [("user", "ann", True), ("user", "bob", False), ("service", "ann", False)]
)
def test_only_the_creator_is_told_what_could_take_over(kind: Any, name: str, told: bool) -> None:
    with pytest.raises(ServiceError) as refused:
        check_run(resolved(), Caller(kind=kind, id=name), ExecuteRequest())
    assert refused.value.code is ErrorCode.MODEL_UNAVAILABLE
    assert ("m/b" in str(refused.value)) == told
