"""What a model can do, in one word each, derived from its entry: the words people filter by."""

from __future__ import annotations

from datetime import datetime, timedelta

from contracts.catalog import ModelPricing, ModelStatus

LONG_CONTEXT_TOKENS = 1_000_000
NEW_FOR = timedelta(days=30)
BADGES = (
    "vision",
    "files",
    "audio_in",
    "video_in",
    "image_out",
    "audio_out",
    "tools",
    "structured_output",
    "reasoning",
    "web_search",
    "free",
    "long_context",
    "new",
    "retiring",
)


def is_new(created_at: datetime, now: datetime) -> bool:
    """Whether upstream listed it for the first time a short while ago."""
    return now - created_at < NEW_FOR


def derive_badges(
    *,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    parameters: tuple[str, ...],
    pricing: ModelPricing,
    context_length: int | None,
    created_at: datetime,
    status: ModelStatus,
    now: datetime,
) -> list[str]:
    """The badges of a model, in the order of `BADGES`."""
    holds = {
        "vision": "image" in inputs,
        "files": "file" in inputs,
        "audio_in": "audio" in inputs,
        "video_in": "video" in inputs,
        "image_out": "image" in outputs,
        "audio_out": "audio" in outputs or "speech" in outputs,
        "tools": "tools" in parameters,
        "structured_output": "structured_outputs" in parameters,
        "reasoning": "reasoning" in parameters or "include_reasoning" in parameters,
        "web_search": "web_search_options" in parameters or "web_search" in (pricing.model_extra or {}),
        "free": pricing.price_kind == "free",
        "long_context": (context_length or 0) >= LONG_CONTEXT_TOKENS,
        "new": is_new(created_at, now),
        "retiring": status == "retiring",
    }
    return [badge for badge in BADGES if holds[badge]]
