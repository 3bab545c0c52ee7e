"""What models cost, as pages show it. Estimates for a prompt of one's own come from the interface, not from here."""

from __future__ import annotations

from decimal import Decimal

from contracts.catalog import ModelPricing

TYPICAL_PROMPT_TOKENS = 1000
TYPICAL_COMPLETION_TOKENS = 500


def typical_cost(pricing: ModelPricing) -> Decimal | None:
    """USD for a call of an ordinary size; None where the price is only known once it has run."""
    if pricing.price_kind in ("runtime", "unknown"):
        return None
    per_request = Decimal((pricing.model_extra or {}).get("request") or 0)
    prompt, completion = Decimal(pricing.prompt), Decimal(pricing.completion)
    return prompt * TYPICAL_PROMPT_TOKENS + completion * TYPICAL_COMPLETION_TOKENS + per_request
