"""What a call would cost: low, expected and ceiling, from the price of a model and what is known of the call.

The ceiling is a promise: no call within the stated limits costs more. So it takes the dearest price that can apply
(every tier that the prompt may reach, every hour of the day) and the most tokens that the text can be, and where nobody
can know it is None. Low and expected are honest guesses, and `assumptions` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from contracts.catalog import (
    CostPlusPrice,
    CostRange,
    Estimate,
    EstimateCost,
    Model,
    ModelPricing,
    PriceOverride,
    Pricing,
)
from contracts.errors import invalid
from contracts.money import round_price
from services.catalog.prices import amount

EXPECTED_COMPLETION_TOKENS = 500
CHARS_PER_TOKEN = 4
CHAT_FRAME_TOKENS = 100
"""Role markers and a model's own preamble, on top of the text, at most."""

# Tokens of one picture: as few as seen, as usual, and the largest that a documented model makes of one.
IMAGE_IN_LOW, IMAGE_IN_EXPECTED, IMAGE_IN_MOST = 85, 1_000, 16_384
IMAGE_OUT_LOW, IMAGE_OUT_EXPECTED, IMAGE_OUT_MOST = 1_000, 1_290, 8_192

_PRICES = frozenset(
    {"prompt", "completion", "request", "image", "image_output", "audio", "audio_output", "input_audio_cache"}
    | {"input_cache_read", "input_cache_write", "input_cache_write_1h", "internal_reasoning", "web_search"}
)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """How many tokens one case of the estimate takes."""

    text: int
    completion: int
    images_in: int
    images_out: int

    @property
    def prompt(self) -> int:
        """What tiers are decided by: everything that goes in."""
        return self.text + self.images_in


def estimate(request: EstimateCost, model: Model) -> Estimate:
    """Raises INVALID when neither the prompt nor its number of tokens is given."""
    assumptions: list[str] = []
    low_text, expected_text, most_text = _prompt_tokens(request, assumptions)
    most_completion = _completion_limit(request, model)
    likely = (
        min(math.ceil(most_completion / 2), EXPECTED_COMPLETION_TOKENS)
        if most_completion
        else EXPECTED_COMPLETION_TOKENS
    )
    assumptions.append(
        f"The expected answer has {likely} tokens, the longest {most_completion}; thinking counts as answer."
        if most_completion
        else f"The expected answer has {likely} tokens; nothing limits the longest, so set max_tokens for a ceiling."
    )
    _say_about_pictures(request, assumptions)
    low = _Tokens(low_text, 1, request.images_in * IMAGE_IN_LOW, request.images_out * IMAGE_OUT_LOW)
    expected = _Tokens(
        expected_text, likely, request.images_in * IMAGE_IN_EXPECTED, request.images_out * IMAGE_OUT_EXPECTED
    )
    costs = CostRange(low_usd=None, expected_usd=None, ceiling_usd=None)
    if (why := _unknowable(request, model)) is not None:
        assumptions.append(why)
    else:
        most = _most(request, model, most_text, most_completion, assumptions)
        usual = _cost(expected, request.web_searches, _expected_price(model.pricing, expected.prompt))
        costs = CostRange(
            low_usd=min(_low_cost(low, request.web_searches, model), usual),
            expected_usd=usual,
            ceiling_usd=_ceiling_cost(most, request.web_searches, model) if most else None,
        )
        _say_about_prices(model, assumptions)
    if request.price is not None:
        price_usd, margin = price_and_margin(request.price, costs)
    else:
        price_usd, margin = None, None
    return Estimate(
        **costs.model_dump(),
        model_id=model.id,
        price_kind=model.price_kind,
        prompt_tokens=expected_text,
        expected_completion_tokens=likely,
        max_completion_tokens=most_completion,
        assumptions=assumptions,
        price_usd=price_usd,
        margin=margin,
    )


def price_of(pricing: Pricing, cost: Decimal | None) -> Decimal | None:
    """What a caller pays for a run that cost this much; None where the price depends on a cost that nobody knows."""
    if not isinstance(pricing, CostPlusPrice):
        return pricing.price_usd
    if cost is None:
        return None
    marked_up = cost * (1 + pricing.markup_percent / 100)
    return round_price(min(max(marked_up, pricing.min_usd or Decimal(0)), pricing.max_usd))


def price_and_margin(pricing: Pricing, costs: CostRange) -> tuple[Decimal | None, CostRange]:
    """The price of the expected call, and price less cost in each of the three cases."""

    def margin(cost: Decimal | None) -> Decimal | None:
        price = price_of(pricing, cost)
        return None if cost is None or price is None else price - cost

    return price_of(pricing, costs.expected_usd), CostRange(
        low_usd=margin(costs.low_usd), expected_usd=margin(costs.expected_usd), ceiling_usd=margin(costs.ceiling_usd)
    )


# Tokens ---------------------------------------------------------------------------------------------------------------


def _prompt_tokens(request: EstimateCost, assumptions: list[str]) -> tuple[int, int, int]:
    if request.prompt_tokens is not None:
        assumptions.append("The prompt has the number of tokens that you gave.")
        return request.prompt_tokens, request.prompt_tokens, request.prompt_tokens
    if request.prompt is None:
        raise invalid("prompt", "Give the prompt, or prompt_tokens if you know how many tokens it has.")
    text = request.prompt
    # Latin text has about four characters to a token; other scripts have about one.
    plain_chars = sum(character.isascii() for character in text)
    expected = math.ceil(plain_chars / CHARS_PER_TOKEN) + len(text) - plain_chars
    # No tokenizer makes more tokens than the text has bytes.
    most = len(text.encode("utf-8", "replace")) + CHAT_FRAME_TOKENS
    assumptions.append(f"The prompt is about {expected} tokens by its length; the ceiling allows for {most}.")
    return math.ceil(expected / 2), expected, most


def _completion_limit(request: EstimateCost, model: Model) -> int | None:
    # Many models state a longest answer that is longer than their context.
    limits = (request.max_tokens, model.max_completion_tokens, model.context_length)
    return min((limit for limit in limits if limit is not None), default=None)


def _most(
    request: EstimateCost, model: Model, text: int, completion: int | None, assumptions: list[str]
) -> _Tokens | None:
    """The largest call within the limits; None where nothing limits it."""
    if completion is None:
        return None
    if request.web_searches:
        # What a search finds is read by the model as prompt, and only the context limits how much that is.
        assumptions.append("What a web search finds is billed as prompt; the ceiling allows for a full context of it.")
        if model.context_length is None:
            return None
        text = max(text, model.context_length)
    if request.images_out and "image_output" not in (model.pricing.model_extra or {}):
        assumptions.append("The catalog has no price for pictures made by this model, so there is no ceiling.")
        return None
    return _Tokens(text, completion, request.images_in * IMAGE_IN_MOST, request.images_out * IMAGE_OUT_MOST)


# Prices ---------------------------------------------------------------------------------------------------------------

PriceOf = Callable[[str], Decimal | None]


def _unknowable(request: EstimateCost, model: Model) -> str | None:
    """Why no figure can be given at all."""
    if model.price_kind == "runtime":
        return "This model's price is decided when it runs, so nobody can say beforehand."
    if model.price_kind == "unknown":
        return "The catalog does not say what this model bills, so the cost is unknown until a run."
    if request.web_searches and "web_search" not in (model.pricing.model_extra or {}):
        return "The catalog has no price for a web search with this model, so the cost is unknown until a run."
    return None


def _certain(override: PriceOverride) -> bool:
    """Whether the entry depends on nothing but the size of the prompt."""
    timed = override.utc_start is not None or override.utc_end is not None
    return not timed and set(override.model_extra or {}) <= _PRICES


def _base(pricing: ModelPricing, key: str) -> Decimal | None:
    text = {"prompt": pricing.prompt, "completion": pricing.completion}.get(key)
    return amount(text if text is not None else (pricing.model_extra or {}).get(key))


def _possible_prices(pricing: ModelPricing, key: str, prompt_tokens: int) -> list[Decimal]:
    """Every price that this key may have at this size of prompt: later entries win, uncertain ones may or may not hold."""
    base = _base(pricing, key)
    possible = [] if base is None else [base]
    for override in pricing.overrides:
        value = amount((override.model_extra or {}).get(key))
        reached = override.min_prompt_tokens is None or prompt_tokens > override.min_prompt_tokens
        if value is not None and reached:
            possible = [value] if _certain(override) else [*possible, value]
    return possible


def _dearest_price(pricing: ModelPricing, prompt_tokens: int) -> PriceOf:
    return lambda key: max(_possible_prices(pricing, key, prompt_tokens), default=None)


def _cheapest_price(pricing: ModelPricing, prompt_tokens: int) -> PriceOf:
    return lambda key: min(_possible_prices(pricing, key, prompt_tokens), default=None)


def _expected_price(pricing: ModelPricing, prompt_tokens: int) -> PriceOf:
    certain = pricing.model_copy(update={"overrides": [entry for entry in pricing.overrides if _certain(entry)]})
    return _dearest_price(certain, prompt_tokens)


# Costs ----------------------------------------------------------------------------------------------------------------


def _cost(tokens: _Tokens, web_searches: int, price: PriceOf, completion: Decimal | None = None) -> Decimal:
    """The bill of one case. `completion` is the price of an answer's token where it is not the usual one."""

    def usd(*keys: str) -> Decimal:
        """The price of the first key that has one; a key that is missing is not priced separately."""
        return next((value for key in keys if (value := price(key)) is not None), Decimal(0))

    return (
        usd("request")
        + tokens.text * usd("prompt")
        + tokens.images_in * usd("image", "prompt")
        + tokens.completion * (usd("completion") if completion is None else completion)
        + tokens.images_out * usd("image_output", "completion")
        + web_searches * usd("web_search")
    )


def _ceiling_cost(most: _Tokens, web_searches: int, model: Model) -> Decimal:
    """The dearest of all sizes up to the largest: where a tier is cheaper than the one below it, less text costs more.

    Within a tier more tokens never cost less, so its upper end is all there is to look at.
    """
    limits = [o.min_prompt_tokens for o in model.pricing.overrides if o.min_prompt_tokens is not None]
    costs = [_dear_cost(most, most.prompt, web_searches, model)]
    for limit in limits:
        if limit < most.prompt:
            part = _Tokens(min(limit, most.text), most.completion, min(limit, most.images_in), most.images_out)
            costs.append(_dear_cost(part, limit, web_searches, model))
    return max(costs)


def _dear_cost(tokens: _Tokens, prompt_size: int, web_searches: int, model: Model) -> Decimal:
    price = _dearest_price(model.pricing, prompt_size)
    kinds = ["completion", "internal_reasoning"]
    if "audio" in model.output_modalities:
        kinds.append("audio_output")
    dearest = max((value for kind in kinds if (value := price(kind)) is not None), default=Decimal(0))
    return _cost(tokens, web_searches, price, dearest)


def _low_cost(low: _Tokens, web_searches: int, model: Model) -> Decimal:
    cost = _cost(low, web_searches, _cheapest_price(model.pricing, low.prompt))
    discount = amount((model.pricing.model_extra or {}).get("discount"))
    return cost * (1 - discount) if discount is not None and 0 < discount < 1 else cost


def _say_about_pictures(request: EstimateCost, assumptions: list[str]) -> None:
    if request.images_in:
        assumptions.append(f"A picture is about {IMAGE_IN_EXPECTED} prompt tokens, at most {IMAGE_IN_MOST}.")
    if request.images_out:
        assumptions.append(f"A picture that is made is about {IMAGE_OUT_EXPECTED} tokens, at most {IMAGE_OUT_MOST}.")


def _say_about_prices(model: Model, assumptions: list[str]) -> None:
    tiers = sorted({o.min_prompt_tokens for o in model.pricing.overrides if o.min_prompt_tokens is not None})
    if tiers:
        limits = " and ".join(f"{limit:,}" for limit in tiers)
        assumptions.append(f"Prompts of more than {limits} tokens have other prices, taken into account here.")
    if any(not _certain(override) for override in model.pricing.overrides):
        assumptions.append("Some prices hold at certain times only; the ceiling takes the dearest.")
    if "discount" in (model.pricing.model_extra or {}):
        assumptions.append("A discount is announced; only the low figure counts on it.")
    if model.not_executable_reason:
        assumptions.append(f"This model cannot be executed here. {model.not_executable_reason}")
    if model.status == "retired":
        assumptions.append("This model is retired; the price is the last that was known.")
