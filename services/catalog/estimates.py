"""What a call would cost: low, expected and ceiling, from the price of a model and what is known of the call.

The ceiling is a promise: no call within the stated limits costs more. So it takes the dearest price that can apply
(every tier that the prompt may reach, every hour of the day) and the most tokens that the text can be, and where nobody
can know it is None. Low and expected are honest guesses, and `assumptions` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext

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
from contracts.money import round_price
from services.catalog.documents import pdf_reading, said_of, with_pages, with_reading
from services.catalog.prices import amount
from services.catalog.sizes import MeasuredTokens, PromptSize, limits_answers, size_of_request

EXPECTED_COMPLETION_TOKENS = 500

# Tokens of one picture, and of a second of sound: as few as seen, as usual, and the most that a documented model makes of it.
IMAGE_IN_LOW, IMAGE_IN_EXPECTED, IMAGE_IN_MOST = 85, 1_000, 16_384
IMAGE_OUT_LOW, IMAGE_OUT_EXPECTED, IMAGE_OUT_MOST = 1_000, 1_290, 8_192
SOUND_IN_LOW, SOUND_IN_EXPECTED, SOUND_IN_MOST = 10, 32, 100
LIKELY_SOUND_S = 30
SPEECH_LOW, SPEECH_EXPECTED = 10, 20

_PRICES = frozenset(
    {"prompt", "completion", "request", "image", "image_output", "audio", "audio_output", "input_audio_cache"}
    | {"input_cache_read", "input_cache_write", "input_cache_write_1h", "internal_reasoning", "web_search"}
)
# What a token of text is billed at that goes in and is kept in the provider's cache so long.
_TEXT_IN = {
    None: ("prompt",),
    "5m": ("input_cache_write", "prompt"),
    "1h": ("input_cache_write_1h", "input_cache_write", "prompt"),
}
# A price has up to 24 characters and a call up to 10^14 tokens: more digits than the default of 28 keeps.
_EXACT = Context(prec=200)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """How many tokens one case of the estimate takes. `cached` are part of `text`, `reasoning` of `completion`."""

    text: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    images_in: int = 0
    images_out: int = 0
    sound_in: int = 0
    speech: int = 0

    @property
    def prompt(self) -> int:
        """What tiers are decided by: everything that goes in."""
        return self.text + self.images_in + self.sound_in


def estimate(
    request: EstimateCost,
    model: Model,
    *,
    size: PromptSize | None = None,
    measured: MeasuredTokens | None = None,
    searching: bool = False,
) -> Estimate:
    """`size` is that of a resource's prompt, for a request without one; `measured` is what the resource's runs took;
    `searching` is whether the resource lets its model search the web.

    Raises INVALID when neither the request nor `size` says how long the prompt is.
    """
    with localcontext(_EXACT):
        return _estimate(request, model, size or size_of_request(request), measured, searching=searching)


def _estimate(
    request: EstimateCost, model: Model, size: PromptSize, measured: MeasuredTokens | None, *, searching: bool
) -> Estimate:
    assumptions = [size.source]
    pdf = pdf_reading(request, size, model)
    size = with_pages(size, pdf, model)
    request, endless = _with_searches(request, model, assumptions, searching=searching)
    most_completion = _completion_limit(request, model)
    expected = (
        _expected_tokens(request, size, most_completion) if measured is None else _measured_tokens(request, measured)
    )
    answer = expected.completion if measured is None else measured.per_run(measured.completion_tokens)
    _say_about_the_answer(expected, answer, most_completion, measured, assumptions)
    _say_about_content(request, model, size, measured, assumptions)
    assumptions += said_of(pdf)
    costs = CostRange(low_usd=None, expected_usd=None, ceiling_usd=None)
    if (why := _unknowable(request, model)) is not None:
        assumptions.append(why)
    else:
        most = None if endless else _most(request, model, size, most_completion, assumptions)
        usual = _usual_cost(request, expected, model)
        costs = CostRange(
            low_usd=min(_low_cost(_low_tokens(request, size), request, model), usual),
            expected_usd=usual,
            # What has been measured was billed; a shorter prompt than the usual one must not promise less than that.
            ceiling_usd=None if most is None else max(_ceiling_cost(most, request, model), usual),
        )
        costs = with_reading(costs, pdf)
        _say_about_prices(request, model, assumptions)
    price_usd, margin = (None, None) if request.price is None else price_and_margin(request.price, costs)
    return Estimate(
        **dict(costs),
        model_id=model.id,
        price_kind=model.price_kind,
        prompt_tokens=expected.text,
        expected_completion_tokens=answer,
        max_completion_tokens=most_completion,
        measured_runs=0 if measured is None else measured.runs,
        assumptions=assumptions,
        price_usd=price_usd,
        margin=margin,
        pdf=pdf,
    )


def price_of(pricing: Pricing, cost: Decimal | None) -> Decimal | None:
    """What a caller pays for a run that cost this much; None where the price depends on a cost that nobody knows.

    The executor's rule to the digit: what was typed is never rounded, so a bound stays the bound that callers were told.
    """
    if not isinstance(pricing, CostPlusPrice):
        return pricing.price_usd
    lowest = pricing.min_usd if pricing.min_usd is not None else Decimal(0)
    if cost is None:
        return pricing.max_usd if lowest == pricing.max_usd else None
    marked_up = round_price(cost * (1 + pricing.markup_percent / 100))
    return min(max(marked_up, lowest), pricing.max_usd)


def price_and_margin(pricing: Pricing, costs: CostRange) -> tuple[Decimal | None, CostRange]:
    """The price of the expected call, and price less cost in each of the three cases."""

    def margin(cost: Decimal | None) -> Decimal | None:
        price = price_of(pricing, cost)
        return None if cost is None or price is None else price - cost

    return price_of(pricing, costs.expected_usd), CostRange(
        low_usd=margin(costs.low_usd), expected_usd=margin(costs.expected_usd), ceiling_usd=margin(costs.ceiling_usd)
    )


def searches_unasked(model: Model) -> bool:
    """Whether the model searches the web for every request, whatever it is asked."""
    searcher = "deep-research" in model.id or model.id.startswith("perplexity/")
    return searcher and "web_search" in (model.pricing.model_extra or {})


def _with_searches(
    request: EstimateCost, model: Model, assumptions: list[str], *, searching: bool
) -> tuple[EstimateCost, bool]:
    """The request with the search that happens although it names none, and whether nothing limits how many there are."""
    deep = "deep-research" in model.id
    if request.web_searches or not (searching or searches_unasked(model)):
        return request, False
    # Models that search by themselves do so once per request, unless they are made to dig.
    endless = searching or deep
    assumptions.append(
        "This call searches the web: one search is expected, and since nothing limits how many the model makes, there is no"
        " ceiling; give web_searches for one."
        if endless
        else "This model searches the web once for every request."
    )
    return request.model_copy(update={"web_searches": 1}), endless


# Tokens ---------------------------------------------------------------------------------------------------------------


def _completion_limit(request: EstimateCost, model: Model) -> int | None:
    # Many models state a longest answer that is longer than their context.
    asked = request.max_tokens if limits_answers(model) else None
    limits = (asked, model.max_completion_tokens, model.context_length)
    return min((limit for limit in limits if limit is not None), default=None)


def _expected_tokens(request: EstimateCost, size: PromptSize, most_completion: int | None) -> _Tokens:
    guess = EXPECTED_COMPLETION_TOKENS
    images_in = request.images_in + size.images
    return _Tokens(
        text=size.expected,
        completion=guess if most_completion is None else min(math.ceil(most_completion / 2), guess),
        cached=min(request.cached_tokens, size.expected),
        images_in=images_in * IMAGE_IN_EXPECTED,
        images_out=request.images_out * IMAGE_OUT_EXPECTED,
        sound_in=(request.audio_in_s + size.sounds * LIKELY_SOUND_S) * SOUND_IN_EXPECTED,
        speech=request.audio_out_s * SPEECH_EXPECTED,
    )


def _measured_tokens(request: EstimateCost, measured: MeasuredTokens) -> _Tokens:
    """Upstream counted everything that went in and came out, pictures and sound as well.

    What came out is told apart again by what the call makes, because pictures and speech have prices of their own.
    """
    prompt, completion = measured.per_run(measured.prompt_tokens), measured.per_run(measured.completion_tokens)
    pictures = min(request.images_out * IMAGE_OUT_EXPECTED, completion)
    reasoning = min(measured.per_run(measured.reasoning_tokens), completion - pictures)
    # A model that speaks says next to nothing beside it.
    speech = completion - pictures - reasoning if request.audio_out_s else 0
    return _Tokens(
        text=prompt,
        completion=completion - pictures - speech,
        cached=min(measured.cached_tokens // measured.runs, prompt),
        reasoning=reasoning,
        images_out=pictures,
        speech=speech,
    )


def _low_tokens(request: EstimateCost, size: PromptSize) -> _Tokens:
    return _Tokens(
        text=size.low,
        completion=1,
        cached=min(request.cached_tokens, size.low),
        images_in=(request.images_in + size.images) * IMAGE_IN_LOW,
        images_out=request.images_out * IMAGE_OUT_LOW,
        sound_in=(request.audio_in_s + size.sounds) * SOUND_IN_LOW,
        speech=request.audio_out_s * SPEECH_LOW,
    )


def _most(
    request: EstimateCost, model: Model, size: PromptSize, completion: int | None, assumptions: list[str]
) -> _Tokens | None:
    """The largest call within the limits; None where nothing limits it."""
    text, prices = size.most, model.pricing.model_extra or {}
    if completion is None or text is None:
        return None
    if request.web_searches:
        # What a search finds is read by the model as prompt, and only the context limits how much that is.
        assumptions.append("What a web search finds is billed as prompt; the ceiling allows for a full context of it.")
        if model.context_length is None:
            return None
        text = max(text, model.context_length)
    for wanted, key, what in (
        (request.images_out, "image_output", "pictures"),
        (request.audio_out_s, "audio_output", "speech"),
    ):
        if wanted and key not in prices:
            assumptions.append(f"The catalog has no price for {what} made by this model, so there is no ceiling.")
            return None
    return _Tokens(
        text,
        completion,
        images_in=(request.images_in + size.images) * IMAGE_IN_MOST,
        images_out=request.images_out * IMAGE_OUT_MOST,
        # How long a recording may be only the context limits.
        sound_in=request.audio_in_s * SOUND_IN_MOST + (model.context_length or 0 if size.sounds else 0),
    )


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


def _cost(tokens: _Tokens, request: EstimateCost, price: PriceOf) -> Decimal:
    """The bill of one case as upstream makes it out."""

    def usd(*keys: str) -> Decimal:
        """The price of the first key that has one; a key that is missing is not priced separately."""
        return next((value for key in keys if (value := price(key)) is not None), Decimal(0))

    return (
        usd("request")
        + (tokens.text - tokens.cached) * usd(*_TEXT_IN[request.cache_ttl])
        + tokens.cached * usd("input_cache_read", "prompt")
        + tokens.images_in * usd("image", "prompt")
        + tokens.sound_in * usd("audio", "prompt")
        + (tokens.completion - tokens.reasoning) * usd("completion")
        + tokens.reasoning * usd("internal_reasoning", "completion")
        + tokens.images_out * usd("image_output", "completion")
        + tokens.speech * usd("audio_output", "completion")
        + request.web_searches * usd("web_search")
    )


def _usual_cost(request: EstimateCost, expected: _Tokens, model: Model) -> Decimal:
    return _cost(expected, request, _expected_price(model.pricing, expected.prompt))


def _low_cost(low: _Tokens, request: EstimateCost, model: Model) -> Decimal:
    cost = _cost(low, request, _cheapest_price(model.pricing, low.prompt))
    discount = amount((model.pricing.model_extra or {}).get("discount"))
    return cost * (1 - discount) if discount is not None and 0 < discount < 1 else cost


def _ceiling_cost(most: _Tokens, request: EstimateCost, model: Model) -> Decimal:
    """The dearest of all sizes up to the largest: where a tier is cheaper than the one below it, less text costs more.

    Within a tier more tokens never cost less, so its upper end is all there is to look at.
    """
    limits = [o.min_prompt_tokens for o in model.pricing.overrides if o.min_prompt_tokens is not None]
    costs = [_dear_cost(most, most.prompt, request, model)]
    for limit in limits:
        if limit < most.prompt:
            part = replace(
                most,
                text=min(limit, most.text),
                images_in=min(limit, most.images_in),
                sound_in=min(limit, most.sound_in),
            )
            costs.append(_dear_cost(part, limit, request, model))
    return max(costs)


def _dear_cost(tokens: _Tokens, prompt_size: int, request: EstimateCost, model: Model) -> Decimal:
    """Every token at the dearest price that a token of its kind may be billed at."""
    price = _dearest_price(model.pricing, prompt_size)

    def dearest(*keys: str) -> Decimal:
        return max((value for key in keys if (value := price(key)) is not None), default=Decimal(0))

    # Some providers write to their cache unasked, and bill that; for an hour only when asked to.
    text = ["prompt", "input_cache_read", "input_cache_write"]
    if request.cache_ttl == "1h":
        text.append("input_cache_write_1h")
    answer = ["completion", "internal_reasoning"]
    if "audio" in model.output_modalities or request.audio_out_s:
        answer.append("audio_output")
    return (
        dearest("request")
        + tokens.text * dearest(*text)
        + tokens.images_in * dearest(*text, "image")
        + tokens.sound_in * dearest(*text, "audio", "input_audio_cache")
        + tokens.completion * dearest(*answer)
        + tokens.images_out * dearest("completion", "image_output")
        + request.web_searches * dearest("web_search")
    )


# Assumptions ----------------------------------------------------------------------------------------------------------


def _say_about_the_answer(
    expected: _Tokens, answer: int, most_completion: int | None, measured: MeasuredTokens | None, assumptions: list[str]
) -> None:
    longest = (
        "nothing limits the longest, so set max_tokens for a ceiling"
        if most_completion is None
        else f"the longest {most_completion}"
    )
    if measured is None:
        assumptions.append(f"The expected answer has {answer} tokens, {longest}; thinking counts as answer.")
        return
    runs = "1 run" if measured.runs == 1 else f"{measured.runs} runs"
    assumptions.append(
        f"Measured over {runs} of this resource: {expected.text} tokens in and {answer} out"
        f" on average, {expected.cached} of them read from a cache, {expected.reasoning} spent on thinking; {longest}."
    )
    for made, what in ((expected.images_out, "pictures"), (expected.speech, "speech")):
        if made:
            assumptions.append(f"Of what was measured, {made} tokens are taken for {what}.")


def _say_about_content(
    request: EstimateCost, model: Model, size: PromptSize, measured: MeasuredTokens | None, assumptions: list[str]
) -> None:
    if request.max_tokens is not None and not limits_answers(model):
        assumptions.append("This model takes no max_tokens: only its own longest answer limits it.")
    if request.images_in or size.images:
        assumptions.append(f"A picture is about {IMAGE_IN_EXPECTED} prompt tokens, at most {IMAGE_IN_MOST}.")
    if request.images_out:
        assumptions.append(f"A picture that is made is about {IMAGE_OUT_EXPECTED} tokens, at most {IMAGE_OUT_MOST}.")
    if size.sounds:
        assumptions.append(
            f"A recording is taken to last {LIKELY_SOUND_S} seconds; the context limits how long it may be."
        )
    if request.audio_in_s or size.sounds:
        assumptions.append(f"A second of sound is about {SOUND_IN_EXPECTED} prompt tokens, at most {SOUND_IN_MOST}.")
    if request.audio_out_s:
        assumptions.append(
            f"A second of speech is about {SPEECH_EXPECTED} tokens; the longest answer is all speech in the ceiling."
        )
    if request.cached_tokens and measured is None:
        assumptions.append("What is read from a cache may have gone from it: the ceiling does not count on it.")


def _say_about_prices(request: EstimateCost, model: Model, assumptions: list[str]) -> None:
    extra = model.pricing.model_extra or {}
    if model.price_kind == "free":
        assumptions.append("This model is free; OpenRouter limits how often an account may call it.")
    tiers = sorted({o.min_prompt_tokens for o in model.pricing.overrides if o.min_prompt_tokens is not None})
    if tiers:
        limits = " and ".join(f"{limit:,}" for limit in tiers)
        assumptions.append(f"Prompts of more than {limits} tokens have other prices, taken into account here.")
    if any(not _certain(override) for override in model.pricing.overrides):
        assumptions.append("Some prices hold at certain times only; the ceiling takes the dearest.")
    if "input_cache_write" in extra:
        hour = " for an hour" if request.cache_ttl == "1h" and "input_cache_write_1h" in extra else ""
        assumptions.append(f"The ceiling allows for the whole prompt being written to the provider's cache{hour}.")
    if "internal_reasoning" in extra and extra["internal_reasoning"] != model.pricing.completion:
        assumptions.append("Thinking has a price of its own; the ceiling takes the dearer one for the whole answer.")
    if "discount" in extra:
        assumptions.append("A discount is announced; only the low figure counts on it.")
    if model.not_executable_reason:
        assumptions.append(f"This model cannot be executed here. {model.not_executable_reason}")
    if model.status == "retired":
        assumptions.append("This model is retired; the price is the last that was known.")
