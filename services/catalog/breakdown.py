"""What a run of a resource is estimated to cost and to bring: model cost, markup, price. Pure.

Low and expected figures are for a run as it may be; the ceiling holds for any that the declared inputs allow, on whichever
of the resource's models answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from contracts.catalog import Estimate, EstimateCost, Model, ModelPricing, ResourceDraft
from contracts.market import Breakdown, PriceDifference, Replacement, RunCost
from services.catalog.estimates import estimate, price_of
from services.catalog.prices import amount
from services.catalog.sizes import MeasuredTokens, fill_from_resource, searches_the_web, size_of_resource


def breakdown(draft: ResourceDraft, models: Sequence[Model], measured: MeasuredTokens | None) -> Breakdown:
    """`models` are those that the draft names, its main one first; `measured` is what its runs took."""
    usual = estimate_run(draft, models[0], measured)
    most = [estimate_run(draft, model, measured).ceiling_usd for model in models]
    known = [cost for cost in most if cost is not None]
    return Breakdown(
        low=run_cost(draft, usual.low_usd),
        expected=run_cost(draft, usual.expected_usd),
        ceiling=run_cost(draft, max(known) if len(known) == len(models) else None),
        measured_runs=usual.measured_runs,
        pdf=usual.pdf,
    )


def estimate_run(draft: ResourceDraft, model: Model, measured: MeasuredTokens | None) -> Estimate:
    """What a run of the resource costs on this model; `measured` is what its runs took."""
    request = fill_from_resource(EstimateCost(model_id=model.id), draft)
    return estimate(
        request, model, size=size_of_resource(draft, model), measured=measured, searching=searches_the_web(draft)
    )


def run_cost(draft: ResourceDraft, model_usd: Decimal | None) -> RunCost:
    """What a run that costs this much brings."""
    price = price_of(draft.pricing, model_usd)
    return RunCost(
        model_usd=model_usd,
        markup_usd=None if price is None or model_usd is None else price - model_usd,
        price_usd=price,
    )


def losing_models(draft: ResourceDraft, models: Sequence[Model], measured: MeasuredTokens | None) -> list[Model]:
    """Those on which an expected run costs more than it brings: callers pay the same whichever of them answers."""
    return [model for model in models if loses(run_cost(draft, estimate_run(draft, model, measured).expected_usd))]


def loses(cost: RunCost) -> bool:
    """Whether the run costs more than it brings, as far as anybody can say."""
    return cost.markup_usd is not None and cost.markup_usd < 0


def difference(draft: ResourceDraft, before: Model, after: Model, measured: MeasuredTokens | None) -> PriceDifference:
    """The prices of two models, or of one at two times, and what they make of a run of this resource."""
    return PriceDifference(
        prompt_before_usd=_token_price(before.pricing, before.pricing.prompt),
        prompt_after_usd=_token_price(after.pricing, after.pricing.prompt),
        completion_before_usd=_token_price(before.pricing, before.pricing.completion),
        completion_after_usd=_token_price(after.pricing, after.pricing.completion),
        run_before_usd=estimate_run(draft, before, measured).expected_usd,
        run_after_usd=estimate_run(draft, after, measured).expected_usd,
    )


def proposal(draft: ResourceDraft, gone: Model, other: Model, measured: MeasuredTokens | None) -> Replacement:
    return Replacement(model_id=other.id, name=other.name, difference=difference(draft, gone, other, measured))


def _token_price(pricing: ModelPricing, text: str) -> Decimal | None:
    # -1 and the 0 of an unknown price are no prices.
    return None if pricing.price_kind in {"runtime", "unknown"} else amount(text)
