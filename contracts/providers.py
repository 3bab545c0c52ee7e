"""Who serves a model at OpenRouter, at which price and how well: asked for on demand, and kept for a while."""

from __future__ import annotations

from pydantic import Field

from contracts.base import Contract, Utc
from contracts.catalog import ModelPricing
from contracts.money import Percent, Usd


class Percentiles(Contract):
    """Half of the calls of the last 30 minutes had at most `p50`, 75 of 100 at most `p75`, and so on."""

    p50: float
    p75: float | None = None
    p90: float | None = None
    p99: float | None = None


class ModelProvider(Contract):
    """One provider of a model, as OpenRouter describes it; null is whatever it does not say."""

    name: str
    tag: str | None = Field(default=None, description="What names it in `provider.order` of a request.")
    quantization: str | None = Field(default=None, description="The numbers that it computes with, such as `fp8`.")
    context_length: int | None = None
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    pricing: ModelPricing = Field(
        description="What this provider charges; the model's own price is another's at times."
    )
    discount_percent: Percent | None = Field(
        default=None,
        description="OpenRouter takes this off, and does not say whether `pricing` is what is left: never count on it.",
    )
    typical_call_usd: Usd | None = Field(
        default=None, description="As for models: 1,000 tokens in and 500 out, by `pricing`; null where nobody knows."
    )
    supported_parameters: list[str] = []
    implicit_caching: bool | None = Field(default=None, description="Whether it caches prompts without being asked to.")
    healthy: bool | None = Field(
        default=None, description="False where OpenRouter marks it as troubled or switched off."
    )
    uptime_5m_percent: float | None = None
    uptime_30m_percent: float | None = None
    uptime_1d_percent: float | None = None
    first_token_ms: Percentiles | None = Field(
        default=None, description="Over 30 minutes; OpenRouter tells it only to an operator who has set a key for it."
    )
    tokens_per_s: Percentiles | None = Field(default=None, description="Likewise: how fast an answer is written.")


class ModelProviders(Contract):
    model_id: str = Field(
        description="Whose providers these are: of a moving alias, the model that it points to today."
    )
    items: list[ModelProvider] = Field(
        description="Cheapest typical call first, unknown prices after known ones, unhealthy providers last. Empty where "
        "OpenRouter names none."
    )
    read_at: Utc = Field(description="When OpenRouter said so.")
    stale: bool = Field(
        default=False,
        description="It does not answer at the moment, or not in time: this is what it said at `read_at`.",
    )
