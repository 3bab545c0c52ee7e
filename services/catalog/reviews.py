"""What a creator is told when the models of a resource look different from when they were last looked at. Pure.

Also the margin guard's reasons: a price upstream that went up over what the resource brings, or runs that cost more than
they brought. A fallback model counts like the main one: callers pay the same price whichever of them answers. A cause names
the change that was acted upon (this version of the resource, at these prices of its models) and what was done about it: each
change warns at most once and pauses at most once, whether a sync or the receipts show it first, and warns no more after it
has paused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    """The latest runs of a version at the present prices of its models: how many, what they cost and brought in all."""

    runs: int
    model_usd: Decimal
    price_usd: Decimal


def margin_cause(kind: NoticeKind, resource_id: UUID, version: int, price_id: int) -> str:
    """`kind` is what is done about it: a warning given to a draft must not use up the pause of what is published since.

    `price_id` is the sync that last changed the price of any model that the resource names.
    """
    return f"margin:{kind}:{resource_id}:v{version}:p{price_id}"


def findings(
    draft: ResourceDraft,
    models: Iterable[Model],
    before: Mapping[str, Look],
    after: Mapping[str, Look],
    *,
    replacements: Mapping[str, Replacement],
    measured: MeasuredTokens | None,
) -> Iterator[Finding]:
    """What changed about the models of a resource. `models` are those that it names as they are now, its main one first.

    A model that was never looked at has changed nothing. `replacements` says what could take over from which of them,
    `measured` is what the resource's runs took.
    """
    for model in models:
        was, is_now = before.get(model.id), after.get(model.id)
        if was is None or is_now is None:
            continue
        role = _MAIN if model.id == draft.openrouter_config.model_id else _FALLBACK
        yield from _life(role, model, was, is_now, replacements.get(model.id))
        if was.pricing != is_now.pricing:
            yield _repriced(role, draft, model, was, is_now, measured)


def repriced_below_cost(draft: ResourceDraft, found: Iterable[Finding], *, published: bool) -> Finding | None:
    """The first loss that a higher price among the findings makes, without its cause.

    None where runs still pay, or did not become dearer. What upstream changed at one time is one change: one loss is
    enough to act upon, and the resource's warnings name every model that loses.
    """
    pausing = published and draft.margin_rule == "pause"
    for repriced in found:
        prices = repriced.difference
        if prices is None or prices.run_after_usd is None:
            continue
        if prices.run_before_usd is not None and prices.run_after_usd <= prices.run_before_usd:
            continue
        answered = "" if repriced.kind == _MAIN.repriced else f" that {repriced.model_id}, a fallback, answers"
        begins = f"An expected run{answered} costs"
        loss = _loss(repriced.model_id, run_cost(draft, prices.run_after_usd), begins, pausing=pausing)
        if loss is not None:
            return loss
    return None


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


@dataclass(frozen=True, slots=True)
class _Role:
    """What a model is to a resource: how it is called in a sentence, and the kinds of what is told about it."""

    called: str
    retired: NoticeKind
    returned: NoticeKind
    retiring: NoticeKind
    stays: NoticeKind
    repriced: NoticeKind


_MAIN = _Role("", "model_retired", "model_returned", "model_retiring", "model_stays", "model_repriced")
_FALLBACK = _Role(
    ", a fallback of this resource",
    "fallback_retired",
    "fallback_returned",
    "fallback_retiring",
    "fallback_stays",
    "fallback_repriced",
)


def _life(role: _Role, model: Model, was: Look, is_now: Look, replacement: Replacement | None) -> Iterator[Finding]:
    instead = f" {replacement.model_id} could take over." if replacement else " Choose another model."
    called = f"{model.id}{role.called}"
    if is_now.status == "retired" and was.status != "retired":
        yield Finding(
            role.retired, model.id, f"OpenRouter no longer offers {called}.{instead}", replacement=replacement
        )
    elif is_now.status != "retired":
        if was.status == "retired":
            yield Finding(role.returned, model.id, f"OpenRouter offers {called} again.")
        if is_now.retires_on is not None and is_now.retires_on != was.retires_on:
            yield Finding(
                role.retiring,
                model.id,
                f"OpenRouter has announced the end of {called}, for {is_now.retires_on.isoformat()}.{instead}",
                replacement=replacement,
            )
        elif is_now.retires_on is None and was.retires_on is not None and was.status != "retired":
            yield Finding(role.stays, model.id, f"OpenRouter no longer announces an end of {called}.")


def _repriced(
    role: _Role, draft: ResourceDraft, model: Model, was: Look, is_now: Look, measured: MeasuredTokens | None
) -> Finding:
    prices = difference(draft, _priced(model, was.pricing), _priced(model, is_now.pricing), measured)
    return Finding(
        role.repriced,
        model.id,
        f"OpenRouter changed the price of {model.id}{role.called}: an expected run costs "
        f"{_amount(prices.run_after_usd)} instead of {_amount(prices.run_before_usd)}.",
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
