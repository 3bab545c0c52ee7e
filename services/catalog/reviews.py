"""What a creator is told when the models of a resource look different from when they were last looked at. Pure.

Also the margin guard's reasons: a price upstream that went up over what the resource brings, or runs that cost more than
they brought. A cause names the change that was acted upon (this version of the resource, at this price of the model) and
what was done about it: each change warns at most once and pauses at most once, whether a sync or the receipts show it
first, and warns no more after it has paused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from uuid import UUID

from contracts.catalog import Model, ModelPricing, ModelStatus, ResourceDraft
from contracts.market import NoticeKind, PriceDifference, Replacement, RunCost
from contracts.money import plain
from services.catalog.breakdown import difference, loses, run_cost
from services.catalog.sizes import MeasuredTokens

LOSSES_LOOKED_AT = 20
FEWEST_RUNS = 3
"""One long answer is no trend; and a false alarm would use up the one time that a change is acted upon."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a model. `price_id` is the sync that brought its price."""

    status: ModelStatus
    retires_on: date | None
    price_id: int
    pricing: ModelPricing


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell a creator. With a `cause` it is said, and acted upon, once."""

    kind: NoticeKind
    model_id: str
    message: str
    cause: str | None = None
    difference: PriceDifference | None = None
    replacement: Replacement | None = None
    cost: RunCost | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """The latest runs of a version at the model's present price: how many, what they cost and brought in all."""

    runs: int
    model_usd: Decimal
    price_usd: Decimal


def margin_cause(kind: NoticeKind, resource_id: UUID, version: int, price_id: int) -> str:
    """`kind` is what is done about it: a warning given to a draft must not use up the pause of what is published since."""
    return f"margin:{kind}:{resource_id}:v{version}:p{price_id}"


def findings(
    draft: ResourceDraft,
    model: Model,
    before: Mapping[str, Look],
    after: Mapping[str, Look],
    *,
    replacement: Replacement | None,
    measured: MeasuredTokens | None,
) -> Iterator[Finding]:
    """What changed about the models of a resource. `model` is its main one as it is now.

    A model that was never looked at has changed nothing. `measured` is what the resource's runs took.
    """
    main = draft.openrouter_config.model_id
    was, is_now = before.get(main), after[main]
    if was is not None:
        yield from _life(model, was, is_now, replacement)
        if was.pricing != is_now.pricing:
            yield _repriced(draft, model, was, is_now, measured)
    for model_id in draft.openrouter_config.fallback_models:
        gone = after.get(model_id)
        if (
            gone is not None
            and gone.status == "retired"
            and model_id in before
            and before[model_id].status != "retired"
        ):
            yield Finding(
                "fallback_retired",
                model_id,
                f"OpenRouter no longer offers {model_id}, a fallback of this resource. Choose another one.",
            )


def repriced_below_cost(draft: ResourceDraft, repriced: Finding, *, published: bool) -> Finding | None:
    """The loss that a higher price makes, without its cause; None where the run still pays, or did not become dearer."""
    prices = repriced.difference
    if prices is None or prices.run_after_usd is None:
        return None
    if prices.run_before_usd is not None and prices.run_after_usd <= prices.run_before_usd:
        return None
    pausing = published and draft.margin_rule == "pause"
    return _loss(repriced.model_id, run_cost(draft, prices.run_after_usd), "An expected run costs", pausing=pausing)


def measured_below_cost(draft: ResourceDraft, losses: Losses, *, published: bool) -> Finding | None:
    """The loss that the latest runs show, without its cause; None where there is none, or too few runs to tell."""
    if losses.runs < FEWEST_RUNS or losses.model_usd <= losses.price_usd:
        return None
    mean = RunCost(
        model_usd=losses.model_usd / losses.runs,
        markup_usd=(losses.price_usd - losses.model_usd) / losses.runs,
        price_usd=losses.price_usd / losses.runs,
    )
    pausing = published and draft.margin_rule == "pause"
    begins = f"The latest {losses.runs} runs cost, on average,"
    return _loss(draft.openrouter_config.model_id, mean, begins, pausing=pausing)


def _life(model: Model, was: Look, is_now: Look, replacement: Replacement | None) -> Iterator[Finding]:
    instead = f" {replacement.model_id} could take over." if replacement else " Choose another model."
    if is_now.status == "retired" and was.status != "retired":
        yield Finding(
            "model_retired", model.id, f"OpenRouter no longer offers {model.id}.{instead}", replacement=replacement
        )
    elif is_now.status != "retired":
        if was.status == "retired":
            yield Finding("model_returned", model.id, f"OpenRouter offers {model.id} again.")
        if is_now.retires_on is not None and is_now.retires_on != was.retires_on:
            yield Finding(
                "model_retiring",
                model.id,
                f"OpenRouter has announced the end of {model.id} for {is_now.retires_on.isoformat()}.{instead}",
                replacement=replacement,
            )
        elif is_now.retires_on is None and was.retires_on is not None and was.status != "retired":
            yield Finding("model_stays", model.id, f"OpenRouter no longer announces an end of {model.id}.")


def _repriced(draft: ResourceDraft, model: Model, was: Look, is_now: Look, measured: MeasuredTokens | None) -> Finding:
    prices = difference(draft, _priced(model, was.pricing), _priced(model, is_now.pricing), measured)
    return Finding(
        "model_repriced",
        model.id,
        f"OpenRouter changed the price of {model.id}: an expected run costs {_amount(prices.run_after_usd)} "
        f"instead of {_amount(prices.run_before_usd)}.",
        difference=prices,
    )


def _loss(model_id: str, cost: RunCost, begins: str, *, pausing: bool) -> Finding | None:
    if not loses(cost):
        return None
    consequence = "The resource was paused, as you asked." if pausing else "Raise the price, or choose another model."
    message = f"{begins} {_amount(cost.model_usd)} against {_amount(cost.price_usd)} that callers pay. {consequence}"
    return Finding("paused_below_cost" if pausing else "below_cost", model_id, message, cost=cost)


def _priced(model: Model, pricing: ModelPricing) -> Model:
    return model.model_copy(update={"pricing": pricing, "price_kind": pricing.price_kind})


def _amount(usd: Decimal | None) -> str:
    return "an unknown amount" if usd is None else f"{plain(round(usd, 9))} USD"
