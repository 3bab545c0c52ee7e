"""The short list that a person sees first: what we would recommend, for what, and why, one line each.

Reviewed by hand. Moving aliases are preferred where they exist, because they follow their family by themselves. An id that
is not offered today is reported, and what is known to succeed it is recommended in its place until somebody reviews the
list; so the list survives upstream's churn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from contracts.catalog import CuratedGap
from services.catalog.models import CatalogModel
from services.catalog.replacements import successor_of

Purpose = Literal["text", "cheap", "vision", "reasoning", "code", "image", "audio", "long_context"]


@dataclass(frozen=True, slots=True)
class Curated:
    id: str
    purposes: tuple[Purpose, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Recommendations:
    """What is recommended today, by id with its reason, and what should be and is not offered."""

    reasons: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[CuratedGap, ...] = ()


CURATED = (
    Curated(
        "~anthropic/claude-sonnet-latest",
        ("text", "code", "vision", "reasoning"),
        "The all-rounder: writes, codes and follows long instructions; moves with its family.",
    ),
    Curated(
        "~anthropic/claude-opus-latest",
        ("text", "code", "reasoning"),
        "When the answer has to be right the first time and the price matters less.",
    ),
    Curated("~anthropic/claude-haiku-latest", ("text",), "Fast and even-tempered; good for chat and for sorting text."),
    Curated(
        "~openai/gpt-latest",
        ("text", "vision", "reasoning"),
        "OpenAI's strongest general model, whichever it is today.",
    ),
    Curated("~openai/gpt-mini-latest", ("text", "vision"), "Most of GPT's ability for a fraction of its price."),
    Curated(
        "~google/gemini-pro-latest",
        ("vision", "reasoning", "long_context"),
        "Reads very long documents, pictures, sound and video.",
    ),
    Curated(
        "~google/gemini-flash-latest",
        ("vision", "long_context"),
        "Multimodal and quick: a good first choice for pictures and files.",
    ),
    Curated("~x-ai/grok-latest", ("text", "reasoning"), "Direct answers and strong reasoning in one model."),
    Curated(
        "~moonshotai/kimi-latest", ("code", "long_context"), "Open weights with a long breath for agents and code."
    ),
    Curated(
        "~deepseek/deepseek-v4-flash-latest",
        ("text", "cheap", "reasoning"),
        "Hard to beat per dollar for everyday text.",
    ),
    Curated(
        "anthropic/claude-sonnet-5",
        ("text", "code", "vision"),
        "A fixed version of the all-rounder, for results that must not move.",
    ),
    Curated("anthropic/claude-haiku-4.5", ("text",), "A fixed, fast and inexpensive version for high volume."),
    Curated("openai/gpt-5.4-mini", ("text", "vision"), "Dependable structured output at a small price."),
    Curated("openai/gpt-5.4-nano", ("cheap", "vision"), "Classification and extraction in bulk."),
    Curated("openai/gpt-5.3-codex", ("code", "reasoning"), "Made for code: reads a repository, plans, and edits."),
    Curated("openai/gpt-oss-120b", ("text", "cheap"), "Open weights, served by many providers: cheap and rarely down."),
    Curated(
        "google/gemini-2.5-flash-lite",
        ("cheap", "vision", "long_context"),
        "The cheapest way to read pictures and long text.",
    ),
    Curated("google/gemini-2.5-flash-image", ("image",), "Makes and edits pictures in conversation."),
    Curated("google/gemini-3.1-flash-image", ("image",), "Sharper pictures and readable lettering in them."),
    Curated("openai/gpt-audio-mini", ("audio",), "Listens, and answers with a spoken voice, for little."),
    Curated("openai/gpt-audio", ("audio",), "The fuller voice of the two, for what people listen to for long."),
    Curated("deepseek/deepseek-v4-pro", ("reasoning", "long_context"), "Deep reasoning at an open-weights price."),
    Curated("qwen/qwen3.7-plus", ("text", "long_context"), "Strong in many languages, long context, moderate price."),
    Curated("qwen/qwen3-coder-next", ("code", "cheap"), "Code completion and small edits for almost nothing."),
    Curated("mistralai/mistral-nemo", ("cheap",), "Tiny price for short, simple texts."),
    Curated(
        "meta-llama/llama-3.3-70b-instruct", ("text", "cheap"), "A well-known open model with predictable behaviour."
    ),
    Curated("perplexity/sonar", ("text",), "Answers from the live web with its sources."),
    Curated(
        "openai/gpt-oss-20b:free", ("cheap",), "Costs nothing: for trying things out, within the free tier's limits."
    ),
)


def recommend(models: Mapping[str, CatalogModel]) -> Recommendations:
    """The short list as the catalog allows it today. `models` are all that were ever listed, retired ones too."""
    offered = {model_id for model_id, model in models.items() if model.status != "retired"}
    reasons = {curated.id: curated.reason for curated in CURATED if curated.id in offered}
    missing = []
    for curated in CURATED:
        if curated.id not in offered:
            gone = models.get(curated.id)
            successor = None if gone is None else successor_of(gone, models.values())
            missing.append(CuratedGap(id=curated.id, replaced_by=successor))
            if successor is not None:
                reasons.setdefault(successor, curated.reason)
    return Recommendations(reasons, tuple(missing))
