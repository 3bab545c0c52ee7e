"""What a resource's runs took, as the estimate of its next run, for its owner alone."""

from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from contracts.catalog import Estimate, EstimateCost, Resource
from contracts.errors import ErrorCode, ServiceError
from contracts.subjects import MODELS_ESTIMATE
from services.runtime.service import Service
from tests.integration.catalog_parts import (
    Parties,
)
from tests.stack import Database


async def ask(parties: Parties, resource: Resource, owner: str | None = "ann", **request: Any) -> Estimate:
    body = {"model_id": "m/a", "resource_id": resource.id, "owner": owner, **request}
    return await parties.gateway.call(MODELS_ESTIMATE, EstimateCost.model_validate(body))


async def test_the_runs_of_a_resource_are_what_is_expected_of_the_next(
    database: Database, catalog: Service, parties: Parties
) -> None:
    resource = await parties.create(inputs=[{"name": "topic", "max_length": 50}])
    before = await ask(parties, resource)
    assert before.measured_runs == 0
    assert (before.expected_completion_tokens, before.max_completion_tokens) == (50, 100)
    # "A haiku about " and fifty characters of four bytes, and what a model adds.
    assert before.ceiling_usd == Decimal("0.000001") * (100 + 14 + 200) + Decimal("0.000002") * 100
    assert (before.price_usd, before.margin is None) == (Decimal("0.01"), False), "its own price, where none is given"

    connection = await asyncpg.connect(database.superuser)
    try:
        await connection.execute(
            "INSERT INTO catalog.resource_token_stats VALUES ($1, 1, 10, 300, 400, 100, 0)", resource.id
        )
    finally:
        await connection.close()
    after = await ask(parties, resource)
    assert (after.measured_runs, after.prompt_tokens, after.expected_completion_tokens) == (10, 30, 40)
    assert after.expected_usd == 30 * Decimal("0.000001") + 40 * Decimal("0.000002")
    assert after.ceiling_usd == before.ceiling_usd
    # What the same runs would cost with another model.
    assert (await ask(parties, resource, model_id="m/b")).expected_usd == after.expected_usd


async def test_the_runs_of_a_resource_are_its_owner_s_affair(catalog: Service, parties: Parties) -> None:
    resource = await parties.create()
    for owner in ("bob", None):
        with pytest.raises(ServiceError) as refused:
            await ask(parties, resource, owner=owner)
        assert refused.value.code is ErrorCode.NOT_FOUND
    await parties.publish(resource)
    with pytest.raises(ServiceError) as refused:
        await ask(parties, resource, owner="bob")
    assert refused.value.code is ErrorCode.FORBIDDEN
