"""What runs of a resource are billed at most, thing by thing, for whoever admits them under a daily limit.

Unlike an estimate's ceiling this is not of one size of prompt: the executor multiplies it by what a run really sends. So it
takes the dearest price of every tier and hour, and of every model that may answer, which is what calls carry as
`provider.max_price`: within that, a provider may bill the price of a higher tier for any prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from contracts.attachments import MAX_PDF_PAGES, PDF_PAGE_USD, pdf_engine
from contracts.catalog import CostBound, Model, ResourceDraft
from services.catalog.estimates import IMAGE_IN_MOST, IMAGE_OUT_MOST, SOUND_IN_MOST, searches_unasked
from services.catalog.prices import amount
from services.catalog.sizes import limits_answers, searches_the_web

_TEXT = ("prompt", "input_cache_read", "input_cache_write", "input_cache_write_1h")
_HARMLESS_PLUGINS = frozenset({"response-healing", "context-compression", "file-parser"})


def bound_of(draft: ResourceDraft, models: Sequence[Model]) -> tuple[CostBound | None, str | None]:
    """The bound, or why there is none and what to set. `models` are those that the resource names; of these the retired ones
    do not answer where another can."""
    if extra := _unlimited_extra(draft):
        return None, f"Nothing limits what {extra} costs: remove it from the parameters of this resource."
    bounds = []
    for model in [model for model in models if model.status != "retired"] or models:
        found = _bound_on(draft, model)
        if isinstance(found, str):
            return None, found
        bounds.append(found)
    engine = pdf_engine(draft.openrouter_config, models[0])
    return CostBound(
        token_in_usd=max(bound.token_in_usd for bound in bounds),
        picture_in_usd=max(bound.picture_in_usd for bound in bounds),
        sound_in_s_usd=max(bound.sound_in_s_usd for bound in bounds),
        document_in_usd=MAX_PDF_PAGES * PDF_PAGE_USD.get(engine, max(PDF_PAGE_USD.values())),
        rest_usd=max(bound.rest_usd for bound in bounds),
        context_tokens=max(bound.context_tokens for bound in bounds),
        full_context=any(bound.full_context for bound in bounds),
    ), None


def _bound_on(draft: ResourceDraft, model: Model) -> CostBound | str:
    config, prices = draft.openrouter_config, model.pricing.model_extra or {}
    if model.price_kind == "runtime":
        return f"The price of {model.id} is decided when it runs: choose a model with a price."
    if model.price_kind == "unknown":
        return f"The catalog does not say what {model.id} bills: choose a model with a price."
    if model.context_length is None:
        return f"The catalog does not say how long a prompt of {model.id} may be: choose another model."
    if "deep-research" in model.id:
        return f"Nothing limits how often {model.id} searches the web: choose another model."
    searches = searches_unasked(model)
    answer = [
        config.max_tokens if limits_answers(model) else None,
        model.max_completion_tokens,
        model.context_length,
    ]
    made = [("image", "image_output", "pictures"), ("audio", "audio_output", "speech")]
    for modality, key, what in made:
        if modality in config.modalities and key not in prices and model.price_kind != "free":
            return f"The catalog has no price for {what} made by {model.id}: choose another model."
    answer_keys = [
        "completion",
        "internal_reasoning",
        *(key for modality, key, _ in made if modality in config.modalities),
    ]
    token_in = _highest(model, _TEXT)
    # A picture that has been begun is finished, whatever the limit.
    picture_out = IMAGE_OUT_MOST * _highest(model, ["image_output"]) if "image" in config.modalities else Decimal(0)
    return CostBound(
        token_in_usd=token_in,
        picture_in_usd=IMAGE_IN_MOST * _highest(model, [*_TEXT, "image"]),
        sound_in_s_usd=SOUND_IN_MOST * _highest(model, [*_TEXT, "audio", "input_audio_cache"]),
        rest_usd=min(limit for limit in answer if limit is not None) * _highest(model, answer_keys)
        + picture_out
        + _highest(model, ["request"])
        + (_highest(model, ["web_search"]) if searches else Decimal(0)),
        context_tokens=model.context_length,
        full_context=searches,
    )


def _highest(model: Model, keys: Iterable[str]) -> Decimal:
    """USD for one token (or search, or call) at the dearest of these prices, in any tier."""
    names = set(keys)
    return max(
        (
            price
            for tier in (model.pricing, *model.pricing.overrides)
            for name, text in tier.model_dump(exclude={"overrides"}).items()
            if name in names and (price := amount(text)) is not None
        ),
        default=Decimal(0),
    )


def _unlimited_extra(draft: ResourceDraft) -> str | None:
    """Something in the parameters that upstream bills beside the tokens, as often as the model likes."""
    if searches_the_web(draft):
        return "searching the web"
    parameters = draft.openrouter_config.parameters
    for name in ("plugins", "tools"):
        listed = parameters.get(name)
        for each in listed if isinstance(listed, list) else []:
            if not isinstance(each, dict) or each.get("enabled") is False:
                continue
            plugin, tool = str(each.get("id", "")), str(each.get("type", ""))
            if name == "tools" and tool.startswith("openrouter:"):
                return f"the tool {tool}"
            if name == "plugins" and plugin not in _HARMLESS_PLUGINS:
                return f"the plugin {plugin}"
    return None
