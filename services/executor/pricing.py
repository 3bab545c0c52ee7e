"""What a run costs its caller, and what that leaves the creator.

The price is due when the run succeeded, and when the caller canceled after the first text; otherwise it is zero. A price
that depends on a cost nobody knows yet is unknown, never zero and never a guess.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from contracts.catalog import CostPlusPrice, Pricing
from contracts.execution import Cost, CostStatus
from contracts.money import round_price

Ending = Literal["succeeded", "failed", "canceled", "interrupted"]

_HUNDRED = Decimal(100)


def highest_price(pricing: Pricing) -> Decimal:
    """The most that a run at this pricing can cost its caller, in USD."""
    return pricing.max_usd if isinstance(pricing, CostPlusPrice) else pricing.price_usd


def is_due(ending: Ending, *, text_delivered: bool) -> bool:
    """Whether the caller owes the price of a run that ended like this."""
    return ending == "succeeded" or (ending == "canceled" and text_delivered)


def price_of(pricing: Pricing, model_usd: Decimal | None) -> Decimal | None:
    """The price of a run that is due, in USD; None while it depends on a cost that is not known."""
    if not isinstance(pricing, CostPlusPrice):
        return pricing.price_usd
    lowest = pricing.min_usd if pricing.min_usd is not None else Decimal(0)
    if model_usd is None:
        return pricing.max_usd if lowest == pricing.max_usd else None
    price = round_price(model_usd * (1 + pricing.markup_percent / _HUNDRED))
    return min(max(price, lowest), pricing.max_usd)


def cost_of(
    pricing: Pricing, ending: Ending, *, text_delivered: bool, model_usd: Decimal | None, cost_status: CostStatus
) -> Cost:
    """The money side of a receipt. `model_usd` is what all attempts cost together, None unless `cost_status` is final."""
    price = price_of(pricing, model_usd) if is_due(ending, text_delivered=text_delivered) else Decimal(0)
    markup = None if price is None or model_usd is None else price - model_usd
    return Cost(model_usd=model_usd, markup_usd=markup, price_usd=price, status=cost_status)
