"""What a buyer sees of a resource: never the prompt, the model, the key, what a run costs its creator, or the margin."""

from __future__ import annotations

from datetime import date
from typing import Literal
from uuid import UUID

from pydantic import Field, JsonValue

from contracts.base import Contract, UserId, Utc
from contracts.catalog import InputField
from contracts.keys import Mode
from contracts.money import Usd


class Measured(Contract):
    """How the latest runs by others than the creator went."""

    runs: int
    success_rate: float = Field(ge=0, le=1, description="Of the runs that their callers did not cancel.")
    median_ms: int | None = Field(description="From request to end, of the runs that succeeded.")
    p95_ms: int | None
    mode: Mode = Field(description="Runs with a test key are shown only where there are no others.")


class Listing(Contract):
    """A resource as a buyer sees it."""

    id: UUID
    owner: UserId
    slug: str
    name: str
    description: str
    inputs: list[InputField]
    input_schema: dict[str, JsonValue]
    output_modalities: list[str]
    example_output: str = Field(default="", description="As the creator wrote it.")
    pricing_mode: Literal["fixed", "cost_plus"]
    price_usd: Usd | None = Field(description="The fixed price; null where it depends on the run.")
    min_price_usd: Usd | None = Field(default=None, description="No run that is charged is charged less.")
    max_price_usd: Usd = Field(description="No run is charged more.")
    badges: list[str]
    available: bool
    unavailable_reason: str | None = None
    available_until: date | None = Field(default=None, description="The day it is announced to end, if one is.")
    measured: Measured | None = Field(default=None, description="Null before anybody but the creator has run it.")
    version: int
    updated_at: Utc


class SearchListings(Contract):
    q: str | None = Field(default=None, max_length=200)
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


class ListingRef(Contract):
    owner: UserId
    slug: str = Field(max_length=80)


class ViewListing(Contract):
    """One resource by its id, as a buyer sees it. Its owner may look before it is published."""

    asking: UserId
    id: UUID


class ListingPage(Contract):
    items: list[Listing]
    total: int
    next_cursor: str | None
