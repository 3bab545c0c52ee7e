"""What is said about models, their prices, and the resources that creators publish on them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from contracts.base import Contract, Slug, UserId, Utc
from contracts.market import Breakdown, PdfEngine, PdfReading, Replacement, ResourceBudgets, ResourceNotice
from contracts.money import Percent, Price, Usd

PriceKind = Literal["fixed", "free", "tiered", "runtime", "unknown"]
ModelStatus = Literal["available", "retiring", "retired"]
ModelSort = Literal["popular", "newest", "price", "-price", "context"]
ResourceStatus = Literal["draft", "published", "paused", "unavailable"]
ModelId = Annotated[str, StringConstraints(min_length=1, max_length=200)]

MimeType = Annotated[str, StringConstraints(pattern=r"^[a-z]+/[a-z0-9.+-]{1,80}$")]
MarginRule = Literal["warn", "pause"]

MAX_TEMPLATE_CHARS = 100_000
MAX_INPUT_BYTES = 1024 * 1024


# Models ---------------------------------------------------------------------------------------------------------------


class PriceOverride(Contract):
    """Prices that hold instead when all conditions of the entry do; keys it does not name keep the base price."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    min_prompt_tokens: int | None = Field(
        default=None, description="Applies when the prompt has more tokens than this."
    )
    utc_start: str | None = Field(default=None, description="HHMM, from this minute on; may wrap over midnight.")
    utc_end: str | None = Field(default=None, description="HHMM, up to but without this minute.")


class ModelPricing(Contract):
    """USD per token as strings, exactly as upstream gives them; further price keys (`image`, `web_search`, …) likewise.

    `fixed`: the two prices hold. `tiered`: `overrides` change them. `free`: really free. `runtime`: decided when it
    runs (upstream says -1). `unknown`: upstream says 0 although it bills something.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    prompt: str
    completion: str
    overrides: list[PriceOverride] = []
    price_kind: PriceKind


class Model(Contract):
    """A model of the catalog."""

    id: str
    name: str
    provider: str = Field(description="The author part of the id.")
    description: str
    context_length: int | None
    max_completion_tokens: int | None
    input_modalities: list[str]
    output_modalities: list[str]
    pricing: ModelPricing
    price_kind: PriceKind
    supported_parameters: list[str]
    badges: list[str]
    curated: bool
    curated_reason: str | None = None
    popularity_rank: int | None
    status: ModelStatus
    retires_on: date | None
    executable: bool = Field(description="False for what chat cannot run; `not_executable_reason` says why.")
    not_executable_reason: str | None = None
    created_at: Utc
    typical_call_usd: Usd | None = Field(
        default=None,
        description="What a call with 1,000 tokens in and 500 out costs, to compare models by; null where its price is only "
        "known once it has run.",
    )


class PriceChange(Contract):
    """From when on which price held."""

    since: Utc
    pricing: ModelPricing


class ModelDetail(Model):
    alias_target: str | None = Field(default=None, description="What a moving alias points to today.")
    replacement: str | None = Field(default=None, description="What to use instead, once its end is known.")
    price_history: list[PriceChange] = []


class SearchModels(Contract):
    q: str | None = Field(default=None, max_length=200)
    provider: str | None = None
    input_modality: str | None = None
    output_modality: str | None = None
    capability: str | None = Field(default=None, description="A badge or a supported parameter, such as `tools`.")
    max_prompt_price: Price | None = Field(default=None, description="USD per token.")
    max_completion_price: Price | None = Field(default=None, description="USD per token.")
    min_context: int | None = Field(default=None, ge=0)
    curated: bool | None = None
    status: ModelStatus | None = Field(default=None, description="Without it, retired models are left out.")
    sort: ModelSort = Field(default="popular", description="`popular` puts the best match of `q` first.")
    facets: bool = Field(default=False, description="Also count what each filter would find.")
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


class ModelFacets(Contract):
    """How many models each value of a filter finds while all other filters stay as they are; the most frequent first."""

    provider: dict[str, int]
    input_modality: dict[str, int]
    output_modality: dict[str, int]
    capability: dict[str, int] = Field(description="Badges; parameters can be searched for as well.")
    price_kind: dict[str, int] = Field(description="Of what was found: no filter goes by it.")
    curated: dict[Literal["true", "false"], int]
    status: dict[ModelStatus, int] = Field(
        description="Retired ones too, although a search without `status` hides them."
    )


class ModelPage(Contract):
    items: list[Model]
    total: int
    next_cursor: str | None
    facets: ModelFacets | None = Field(default=None, description="Only where they were asked for.")


class ModelRef(Contract):
    id: ModelId


# Prices of a resource -------------------------------------------------------------------------------------------------


class FixedPrice(Contract):
    mode: Literal["fixed"]
    price_usd: Price


class CostPlusPrice(Contract):
    """What the run cost plus a percentage, kept between `min_usd` and `max_usd`."""

    mode: Literal["cost_plus"]
    markup_percent: Percent
    min_usd: Price | None = None
    max_usd: Price = Field(description="Required: it is what a caller can at most be asked to pay.")

    @model_validator(mode="after")
    def _minimum_fits(self) -> CostPlusPrice:
        if self.min_usd is not None and self.min_usd > self.max_usd:
            raise ValueError("min_usd is above max_usd: lower it, or raise max_usd")
        return self


Pricing = Annotated[FixedPrice | CostPlusPrice, Field(discriminator="mode")]


def _price_as_fixed(value: Any) -> Any:
    return {"mode": "fixed", "price_usd": value} if isinstance(value, str | int | float) else value


class EstimateBody(Contract):
    """What a call would cost. Give the prompt, its number of tokens, or a resource that has been run."""

    model_id: ModelId
    resource_id: UUID | None = Field(
        default=None, description="Yours: once it has been run, what its runs took is what is expected of the next."
    )
    prompt: str | None = Field(default=None, max_length=1_000_000)
    prompt_tokens: int | None = Field(default=None, ge=0, le=100_000_000)
    max_tokens: int | None = Field(default=None, ge=1, le=100_000_000)
    cached_tokens: int = Field(
        default=0, ge=0, le=100_000_000, description="How much of the prompt will be read from the provider's cache."
    )
    cache_ttl: Literal["5m", "1h"] | None = Field(
        default=None, description="How long you ask the provider to cache the prompt, if you do."
    )
    images_in: int = Field(default=0, ge=0, le=100)
    images_out: int = Field(default=0, ge=0, le=10)
    audio_in_s: int = Field(default=0, ge=0, le=86_400, description="Seconds of sound that go in.")
    audio_out_s: int = Field(default=0, ge=0, le=86_400, description="Seconds of speech that are expected to come out.")
    pdf_pages: int = Field(default=0, ge=0, le=10_000, description="Pages of PDFs that go in.")
    pdf_engine: PdfEngine | None = Field(default=None, description="What reads them; one that is free unless given.")
    web_searches: int = Field(default=0, ge=0, le=100)
    price: Annotated[
        Pricing | None, BeforeValidator(_price_as_fixed, json_schema_input_type=Pricing | Price | None)
    ] = Field(default=None, description="A price of yours (an amount, or a whole pricing) to see the margin at.")


class EstimateCost(EstimateBody):
    owner: UserId | None = Field(default=None, description="Who asks; a resource's runs are its owner's affair.")


class CostRange(Contract):
    low_usd: Usd | None
    expected_usd: Usd | None
    ceiling_usd: Usd | None = Field(
        description="No call within these limits can cost more; null where nobody can know."
    )


class Estimate(CostRange):
    model_id: str
    price_kind: PriceKind
    prompt_tokens: int
    expected_completion_tokens: int
    max_completion_tokens: int | None
    measured_runs: int = Field(default=0, description="How many runs the expected figure comes from; 0 for a guess.")
    assumptions: list[str]
    price_usd: Usd | None = Field(default=None, description="What a caller would pay for the expected call.")
    margin: CostRange | None = Field(default=None, description="Your price less the cost, in each of the three cases.")
    pdf: PdfReading | None = Field(default=None, description="Part of the costs, where PDFs go in.")


# Resources ------------------------------------------------------------------------------------------------------------


class OpenRouterConfig(Contract):
    model_id: ModelId
    fallback_models: list[ModelId] = Field(default=[], max_length=5)
    system_prompt: str | None = Field(default=None, max_length=MAX_TEMPLATE_CHARS)
    prompt_template: str = Field(
        min_length=1, max_length=MAX_TEMPLATE_CHARS, description="`{{name}}` stands for an input."
    )
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    modalities: list[Literal["text", "image", "audio"]] = Field(default=["text"], min_length=1)
    parameters: dict[str, JsonValue] = Field(
        default={}, description="Further request parameters, such as `top_p` or `tools`."
    )


class InputField(Contract):
    """One thing that a caller fills in."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
    type: Literal["text", "number", "boolean", "choice", "image", "file", "audio"] = "text"
    description: str | None = Field(default=None, max_length=1000)
    required: bool = True
    default: str | int | float | bool | None = None
    max_length: int | None = Field(default=None, ge=1, le=MAX_INPUT_BYTES, description="Characters, for text.")
    minimum: float | None = Field(default=None, description="For numbers.")
    maximum: float | None = Field(default=None, description="For numbers.")
    choices: list[str] | None = Field(default=None, min_length=1, max_length=200)
    max_bytes: int | None = Field(default=None, ge=1, description="For images, files and audio.")
    accept: list[MimeType] | None = Field(
        default=None, min_length=1, max_length=20, description="Media types that an image, file or audio may have."
    )


class Timeouts(Contract):
    """How long a run may take, in seconds."""

    first_token_s: float = Field(default=60, gt=0, le=600)
    idle_s: float = Field(default=30, gt=0, le=600)
    total_s: float = Field(default=300, gt=0, le=600)


class ResourceDraft(Contract):
    """A resource as its creator writes it."""

    resource_type: Literal["openrouter_instant"]
    name: str = Field(min_length=1, max_length=120)
    slug: Slug
    description: str = Field(default="", max_length=5000)
    openrouter_config: OpenRouterConfig
    inputs: list[InputField] = Field(default=[], max_length=50)
    pricing: Pricing
    timeouts: Timeouts = Timeouts()
    example_output: str = Field(default="", max_length=10_000, description="What a buyer may expect, in your words.")
    margin_rule: MarginRule = Field(
        default="warn", description="What happens when runs turn out to cost more than they bring."
    )


class ResourcePatch(Contract):
    """What an edit changes; a field that is not given stays as it is."""

    name: str | None = Field(default=None, min_length=1, max_length=120)
    slug: Slug | None = None
    description: str | None = Field(default=None, max_length=5000)
    openrouter_config: OpenRouterConfig | None = None
    inputs: list[InputField] | None = Field(default=None, max_length=50)
    pricing: Pricing | None = None
    timeouts: Timeouts | None = None
    example_output: str | None = Field(default=None, max_length=10_000)
    margin_rule: MarginRule | None = None
    expected_version: int | None = Field(
        default=None, description="Refused with `conflict` when somebody edited meanwhile."
    )


class Availability(Contract):
    """Whether a run can succeed today, and if not, why and what to do."""

    available: bool
    reason: str | None = None
    code: Literal["key_missing", "key_rejected"] | None = Field(
        default=None, description="What a run would fail with where it is the owner's key that is wanting."
    )
    replacement: str | None = Field(default=None, description="A model that could take over.")
    proposal: Replacement | None = Field(default=None, description="The same with the difference in price.")
    ends_on: date | None = Field(default=None, description="The day that upstream has announced as the model's last.")


class Resource(ResourceDraft):
    """A stored resource, as its owner sees it."""

    id: UUID
    owner: UserId
    version: int
    status: ResourceStatus
    model: Model
    badges: list[str]
    availability: Availability
    warnings: list[str] = []
    input_schema: dict[str, JsonValue] = Field(description="JSON Schema of `input`.")
    breakdown: Breakdown | None = Field(default=None, description="What a run is estimated to cost and bring.")
    notices: list[ResourceNotice] = Field(default=[], description="The latest, newest first.")
    created_at: Utc
    updated_at: Utc


class CreateResource(Contract):
    owner: UserId
    draft: ResourceDraft


class UpdateResource(Contract):
    owner: UserId
    id: UUID
    patch: ResourcePatch


class ResourceRef(Contract):
    """One resource of an owner, to get, publish, pause or delete."""

    owner: UserId
    id: UUID


class ListResources(Contract):
    owner: UserId
    status: ResourceStatus | None = None
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


class ResourcePage(Contract):
    items: list[Resource]
    total: int
    next_cursor: str | None


class ResolveResource(Contract):
    ref: str = Field(min_length=1, max_length=300, description="An id, or `owner/slug`.")


class CostBound(Contract):
    """What a run is billed at most for each thing that goes in, and for all the rest, on whichever model answers.

    It holds for prices as they are frozen here, every tier and hour of them: calls carry them as `provider.max_price`.
    """

    token_in_usd: Usd = Field(description="A token of text.")
    picture_in_usd: Usd = Field(description="A picture.")
    sound_in_s_usd: Usd = Field(description="A second of sound.")
    document_in_usd: Usd = Field(default=Decimal(0), description="Reading a document, beside its text.")
    rest_usd: Usd = Field(description="The longest answer, what is made beside it, searches, and the call as such.")
    context_tokens: int = Field(description="No prompt is longer.")
    full_context: bool = Field(
        default=False, description="Something else fills the prompt up: what a search finds, say."
    )


class ResolvedResource(Contract):
    """Everything an executor needs to run a resource, at one version. Whether the caller may is decided there."""

    resource_id: UUID | None = Field(description="Null for a draft.")
    owner: UserId
    slug: str
    version: int
    status: ResourceStatus
    config: OpenRouterConfig
    inputs: list[InputField]
    pricing: Pricing
    timeouts: Timeouts
    model: Model
    fallbacks: list[Model] = Field(
        default=[], description="Those of the fallback models that are in the catalog, in the order they are tried."
    )
    availability: Availability
    budgets: ResourceBudgets = Field(
        default=ResourceBudgets(), description="The creator's daily limits that hold here."
    )
    most: CostBound | None = Field(default=None, description="Null where nobody can know; `unbounded` says why.")
    unbounded: str | None = Field(default=None, description="For its owner: why there is no bound, and what to set.")


# Syncs and events -----------------------------------------------------------------------------------------------------


class SyncCatalog(Contract):
    """Read the upstream list now."""

    requested_by: str = Field(max_length=200)
    force: bool = Field(
        default=False, description="Take the list although it looks wrong; an empty one is never taken."
    )


class FieldChange(Contract):
    """One fact about a model as it was and as it is; null where there was none or is none any more."""

    field: str
    before: str | None
    after: str | None


class CatalogChange(Contract):
    """What a sync changed about one model, of one kind. `updated` is whatever has no kind of its own."""

    model_id: str
    name: str
    change: Literal["added", "retired", "returned", "repriced", "renamed", "alias_moved", "expiry_changed", "updated"]
    fields: list[FieldChange] = []


class CuratedGap(Contract):
    """A recommended model that upstream does not offer today, and what is recommended in its place, if anything."""

    id: str
    replaced_by: str | None


class SyncReport(Contract):
    id: int
    outcome: Literal["applied", "unchanged", "refused", "failed"]
    started_at: Utc
    finished_at: Utc
    requested_by: str
    models: int = Field(description="How many models upstream listed.")
    added: list[str] = []
    retired: list[str] = []
    returned: list[str] = []
    repriced: list[str] = []
    skipped: int = Field(default=0, description="Entries of the list that could not be read.")
    forced: bool = Field(default=False, description="An administrator took it although it looked wrong.")
    changes: list[CatalogChange] = Field(
        default=[], description="What changed, model by model; the first 10,000 over all syncs of an answer."
    )
    changes_total: int = 0
    curated_missing: list[CuratedGap] = Field(default=[], description="Recommended models that are not offered.")
    reason: str | None = Field(default=None, description="Why it was refused or failed, or looked wrong when forced.")


class ListSyncs(Contract):
    limit: int = Field(default=20, ge=1, le=100)


class SyncList(Contract):
    items: list[SyncReport]


class CatalogSynced(Contract):
    sync_id: int
    models: int


class ModelChanged(Contract):
    """`expiring`: upstream has announced an end, or another day of it; `expiry_withdrawn`: it announces none any more."""

    model_id: str
    change: Literal["added", "retired", "returned", "repriced", "expiring", "expiry_withdrawn"]
    sync_id: int
    retires_on: date | None = Field(default=None, description="The announced last day, where that is what changed.")


class ResourceChanged(Contract):
    resource_id: UUID
    owner: UserId
    slug: str
    version: int
    change: Literal["created", "updated", "published", "paused", "deleted", "availability"]
