"""The short list that a person sees first: what we would recommend, and why, one line each.

Reviewed by hand. An id that is not in the catalog today simply does not show, so the list survives upstream's churn;
moving aliases are preferred where they exist, because they follow their family by themselves.
"""

from __future__ import annotations

CURATED: dict[str, str] = {
    "~anthropic/claude-sonnet-latest": "The all-rounder: writes, codes and follows long instructions; moves with its family.",
    "~anthropic/claude-opus-latest": "When the answer has to be right the first time and the price matters less.",
    "~anthropic/claude-haiku-latest": "Fast and even-tempered; good for chat and for sorting text.",
    "~openai/gpt-latest": "OpenAI's strongest general model, whichever it is today.",
    "~openai/gpt-mini-latest": "Most of GPT's ability for a fraction of its price.",
    "~google/gemini-pro-latest": "Reads very long documents, pictures, sound and video.",
    "~google/gemini-flash-latest": "Multimodal, quick and cheap: a good first choice for pictures and files.",
    "~x-ai/grok-latest": "Direct answers and strong reasoning in one model.",
    "~moonshotai/kimi-latest": "Open weights with a long breath for agents and code.",
    "~deepseek/deepseek-v4-flash-latest": "Hard to beat per dollar for everyday text.",
    "anthropic/claude-sonnet-5": "A fixed version of the all-rounder, for results that must not move.",
    "anthropic/claude-haiku-4.5": "A fixed, fast and inexpensive version for high volume.",
    "openai/gpt-5.4-mini": "Dependable structured output at a small price.",
    "openai/gpt-5.4-nano": "Classification and extraction in bulk.",
    "openai/gpt-oss-120b": "Open weights, served by many providers: cheap and rarely down.",
    "google/gemini-2.5-flash-lite": "The cheapest way to read pictures and long text.",
    "google/gemini-2.5-flash-image": "Makes and edits pictures in conversation.",
    "google/gemini-3.1-flash-image": "Sharper pictures and readable lettering in them.",
    "openai/gpt-audio-mini": "Answers with a spoken voice.",
    "deepseek/deepseek-v4-pro": "Deep reasoning at an open-weights price.",
    "qwen/qwen3.7-plus": "Strong in many languages, long context, moderate price.",
    "mistralai/mistral-nemo": "Tiny price for short, simple texts.",
    "meta-llama/llama-3.3-70b-instruct": "A well-known open model with predictable behaviour.",
    "perplexity/sonar": "Answers from the live web with its sources.",
    "openai/gpt-oss-20b:free": "Costs nothing: for trying things out, within the free tier's limits.",
}
