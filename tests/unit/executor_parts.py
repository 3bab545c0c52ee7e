"""Rows and resources that tests of the executor's pure modules begin with."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from contracts.catalog import (
    Availability,
    FixedPrice,
    Model,
    ModelPricing,
    OpenRouterConfig,
    ResolvedResource,
    Timeouts,
)
from contracts.execution import Caller
from services.executor.store import AttemptRow, Execution

ADA = Caller(kind="user", id="ada")
BOB = Caller(kind="user", id="bob")
EVE = Caller(kind="user", id="eve")
PUBLISHER_ADA = Caller(kind="service", id="ada")

RUN_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
CENT = FixedPrice(mode="fixed", price_usd=Decimal("0.01"))


def row(**changes: Any) -> Execution:
    """A run of bob's on a resource of ada's."""
    values: dict[str, Any] = {
        "id": RUN_ID,
        "owner": "ada",
        "caller_kind": "user",
        "caller_id": "bob",
        "viewer": "gateway",
        "payment": None,
        "resource_id": None,
        "resource_version": 3,
        "model_id": "a/b",
        "mode": "live",
        "pricing": CENT.model_dump(mode="json"),
        "status": "running",
        "idempotency_key": None,
        "lease_token": None,
        "cancel_requested": False,
        "job": None,
        "job_key_id": None,
        "created_at": NOON,
        "started_at": NOON,
        "finished_at": None,
        "last_seq": None,
        "truncated": False,
        "error": None,
        "price_usd": None,
        "cost_usd": None,
        "cost_status": None,
        "result": None,
        "result_key_id": None,
        **changes,
    }
    return Execution(**values)


def attempt_row(**changes: Any) -> AttemptRow:
    """A call that is under way."""
    values: dict[str, Any] = {
        "number": 1,
        "started_at": NOON,
        "generation_id": None,
        "status": "running",
        "code": None,
        "http_status": None,
        "cost_usd": None,
        "cost_status": None,
        **changes,
    }
    return AttemptRow(**values)


def resource(**changes: Any) -> ResolvedResource:
    """A published resource of ada's that costs a cent, at version 3."""
    values: dict[str, Any] = {
        "resource_id": None,
        "owner": "ada",
        "slug": "made",
        "version": 3,
        "status": "published",
        "config": OpenRouterConfig(model_id="a/b", prompt_template="Hello"),
        "inputs": [],
        "pricing": CENT,
        "timeouts": Timeouts(),
        "model": Model(
            id="a/b",
            name="B",
            provider="a",
            description="",
            context_length=None,
            max_completion_tokens=None,
            input_modalities=["text"],
            output_modalities=["text"],
            pricing=ModelPricing(prompt="0", completion="0", price_kind="free"),
            price_kind="free",
            supported_parameters=[],
            badges=[],
            curated=False,
            popularity_rank=None,
            status="available",
            retires_on=None,
            executable=True,
            created_at=NOON,
        ),
        "availability": Availability(available=True),
        **changes,
    }
    return ResolvedResource(**values)
