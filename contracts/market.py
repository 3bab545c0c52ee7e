"""What is said about a resource on the market: what it costs and brings, what its creator is told, what a day may cost.

All of it is the creator's own affair. What a buyer may see of a resource stands in `listings.py`, and only there.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, JsonValue

from contracts.base import Contract, UserId, Utc
from contracts.errors import ErrorCode
from contracts.keys import Mode
from contracts.money import Price, Usd

# Prices ---------------------------------------------------------------------------------------------------------------


class RunCost(Contract):
    """What one run costs its creator and brings; null where it depends on what nobody knows."""

    model_usd: Usd | None
    markup_usd: Usd | None = Field(description="Price less cost; negative where the run loses money.")
    price_usd: Usd | None


PdfEngine = Literal["native", "cloudflare-ai", "mistral-ocr"]


class PdfReading(Contract):
    """What reads the PDFs of a run, and bills that by the page beside the model's tokens."""

    engine: str
    usd_per_page: Usd | None = Field(description="Null for an engine whose price nobody here knows.")
    low_pages: int
    expected_pages: int
    most_pages: int


class Breakdown(Contract):
    """What a run of a resource is estimated to cost and bring."""

    low: RunCost
    expected: RunCost
    ceiling: RunCost
    measured_runs: int = Field(description="How many runs the expected figures come from; 0 for a guess.")
    pdf: PdfReading | None = Field(default=None, description="Part of the costs, where PDFs go in.")


class PriceDifference(Contract):
    """One price against another: a model before and after a change, or a model and what could replace it.

    Token prices are USD per token; `run` is what an expected run of the resource costs. Null where nobody knows.
    """

    prompt_before_usd: Usd | None
    prompt_after_usd: Usd | None
    completion_before_usd: Usd | None
    completion_after_usd: Usd | None
    run_before_usd: Usd | None
    run_after_usd: Usd | None


class Replacement(Contract):
    """A model that could take over, for a person to decide: nothing is ever switched by itself."""

    model_id: str
    name: str
    difference: PriceDifference


# What a creator is told -----------------------------------------------------------------------------------------------

NoticeKind = Literal[
    "model_retired",
    "model_returned",
    "model_retiring",
    "model_stays",
    "model_repriced",
    "fallback_retired",
    "fallback_returned",
    "fallback_retiring",
    "fallback_stays",
    "fallback_repriced",
    "below_cost",
    "paused_below_cost",
]


class ResourceNotice(Contract):
    """Something happened to a resource that its creator did not do. Each is said once."""

    id: int
    resource_id: UUID
    owner: UserId
    slug: str
    version: int = Field(description="The version that it happened to.")
    kind: NoticeKind
    model_id: str
    message: str
    difference: PriceDifference | None = Field(default=None, description="How the price of the model changed.")
    replacement: Replacement | None = None
    cost: RunCost | None = Field(default=None, description="Of the mean run that loses money, where one does.")
    created_at: Utc


# Versions -------------------------------------------------------------------------------------------------------------


class ListVersions(Contract):
    owner: UserId
    id: UUID
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=20, ge=1, le=100)


class VersionChange(Contract):
    """One field that an edit changed; `inputs.topic.max_length` is a field of the input named `topic`."""

    path: str
    before: JsonValue = Field(description="Null where the field was not there.")
    after: JsonValue = Field(description="Null where the field is not there any more.")


class ResourceVersion(Contract):
    version: int
    created_at: Utc
    changes: list[VersionChange] = Field(description="Against the version before; none for the first one.")


class ResourceVersionPage(Contract):
    """Newest first."""

    items: list[ResourceVersion]
    total: int
    next_cursor: str | None


# Stats ----------------------------------------------------------------------------------------------------------------


class GetStats(Contract):
    owner: UserId
    id: UUID
    days: int = Field(default=30, ge=1, le=366, description="Up to today, in UTC.")


class Figures(Contract):
    """Sums over runs, as their receipts say; a later revision of a receipt replaces the former one."""

    runs: int
    own_runs: int = Field(description="Of these, runs by the creator.")
    test_runs: int = Field(description="Of these, runs with a test key, which moved no money.")
    succeeded: int
    failed: int
    canceled: int
    interrupted: int
    failures: dict[ErrorCode, int] = Field(description="How many runs ended with which code.")
    model_usd: Usd = Field(description="What the runs cost, as far as it is known.")
    price_usd: Usd = Field(description="What callers were charged, as far as it is known.")
    margin_usd: Usd = Field(description="Price less cost, over the runs whose cost is known.")
    test_model_usd: Usd = Field(default=Decimal(0), description="Of `model_usd`, what runs with a test key stated.")
    test_price_usd: Usd = Field(default=Decimal(0), description="Of `price_usd`, the same.")
    test_margin_usd: Usd = Field(default=Decimal(0), description="Of `margin_usd`, the same.")
    cost_unknown_runs: int = Field(
        description="Runs whose cost is still being looked up or could not be found: in no sum."
    )
    median_ms: int | None = Field(description="From request to end, of the runs that succeeded.")
    p95_ms: int | None
    prompt_tokens: int
    completion_tokens: int


class DayFigures(Figures):
    day: date = Field(description="The UTC day on which the runs ended.")


class ResourceStats(Contract):
    resource_id: UUID
    since: date
    until: date
    total: Figures
    days: list[DayFigures] = Field(description="Oldest first; days without runs are left out.")


# Budgets --------------------------------------------------------------------------------------------------------------

BudgetScope = Literal["key", "resource", "caller"]


class ResourceBudget(Contract):
    resource_id: UUID
    daily_usd: Price


class CallerBudget(Contract):
    caller_kind: Literal["user", "service"] = "user"
    caller_id: UserId
    daily_usd: Price


class BudgetLimits(Contract):
    """How much of the creator's own money runs should cost in a UTC day. What is not given has no limit.

    A run begins only while every limit that concerns it has room for the most that it can cost. Their creator is told when one
    is used up to 80 and to 100 percent.
    """

    key_daily_usd: Price | None = Field(default=None, description="All runs with the creator's key together.")
    caller_daily_usd: Price | None = Field(
        default=None, description="Each caller who has no limit of their own below; never the creator."
    )
    resources: list[ResourceBudget] = Field(default=[], max_length=500)
    callers: list[CallerBudget] = Field(default=[], max_length=500)


class SetBudgets(Contract):
    owner: UserId
    limits: BudgetLimits


class BudgetState(Contract):
    """How far a limit is used up today, by live runs or by runs with a test key: each mode has the whole limit."""

    scope: BudgetScope
    mode: Mode = "live"
    resource_id: UUID | None = None
    caller_kind: Literal["user", "service"] | None = None
    caller_id: str | None = None
    daily_usd: Usd
    spent_usd: Usd = Field(description="What today's finished runs of that mode cost, as far as it is known.")
    cost_unknown_runs: int = Field(description="Finished runs of today whose cost is not known (yet).")
    reached_percent: Literal[80, 100] | None = Field(description="The mark that was reached, if any.")


class Budgets(BudgetLimits):
    """The limits, and where today stands against them."""

    day: date
    today: list[BudgetState] = Field(description="Live runs, which spend the creator's money.")
    today_in_test: list[BudgetState] = Field(
        default=[], description="The same limits against runs with a test key, which move no money."
    )


class BudgetReached(Contract):
    """A creator's daily limit is used up to 80 or to 100 percent; said once a day for each limit, mode and mark."""

    id: int
    owner: UserId
    day: date
    percent: Literal[80, 100]
    scope: BudgetScope
    mode: Mode = Field(default="live", description="Whether live runs or runs with a test key have used it up.")
    resource_id: UUID | None = None
    caller_kind: Literal["user", "service"] | None = None
    caller_id: str | None = None
    daily_usd: Usd
    spent_usd: Usd
    message: str
    created_at: Utc


class ResourceBudgets(Contract):
    """The limits that hold for one resource, for whoever admits its runs."""

    key_daily_usd: Price | None = None
    resource_daily_usd: Price | None = None
    caller_daily_usd: Price | None = None
    callers: Annotated[list[CallerBudget], Field(max_length=500)] = []
