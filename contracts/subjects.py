"""The registry: everything that is said on the bus, once, with who says it, who may hear it, and how long it may take.

Services, permissions (`permissions.py`), documents (`document.py`) and tests all read this file; no subject, header or
stream name is spelled anywhere else. A subject carries the major version; within it changes are additive. Subjects
never carry a secret; the only ids in a subject are those of frames and publishers, and metrics never use them as labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter

from contracts import (
    attachments,
    catalog,
    dead_letters,
    drafts,
    execution,
    keys,
    listings,
    market,
    providers,
    workflows,
)
from contracts.base import Contract, Empty

PREFIX = "x402jobs.v1."

# Headers. The first two are the standard ones of NATS services (ADR-32); the third carries how long the caller waits.
ERROR_HEADER = "Nats-Service-Error"
ERROR_CODE_HEADER = "Nats-Service-Error-Code"
TIMEOUT_HEADER = "X402jobs-Timeout-Ms"
TRACE_HEADER = "traceparent"
MESSAGE_ID_HEADER = "Nats-Msg-Id"

Service = Literal["keys", "catalog", "executor", "gateway"]
SERVICES: tuple[Service, ...] = ("keys", "catalog", "executor", "gateway")
PUBLISHER = "publisher"
"""Stands, among callers and listeners, for every outside service with a user of its own."""

Q = TypeVar("Q", bound=Contract)
R = TypeVar("R")
M = TypeVar("M", bound=Contract)


@dataclass(frozen=True)
class Rpc(Generic[Q, R]):
    """A request to a queue group named after its owner, answered by one reply or one typed error."""

    name: str
    request: type[Q]
    reply: Any
    owner: Service
    callers: tuple[str, ...]
    timeout_s: float
    idempotent: bool
    doc: str
    adapter: TypeAdapter[R] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", TypeAdapter(self.reply))

    @property
    def subject(self) -> str:
        return PREFIX + self.name


@dataclass(frozen=True)
class Event(Generic[M]):
    """A fact, published by its owner to whoever listens; nobody replies."""

    name: str
    message: type[M]
    owner: Service
    listeners: tuple[str, ...]
    doc: str

    @property
    def subject(self) -> str:
        return PREFIX + self.name


@dataclass(frozen=True)
class Job(Generic[M]):
    """Work handed over by publishing it into a stream; the acknowledgement of the stream is the receipt of handing over."""

    name: str
    message: type[M]
    owner: Service
    publishers: tuple[str, ...]
    doc: str

    @property
    def subject(self) -> str:
        return PREFIX + self.name


@dataclass(frozen=True)
class Stream:
    """A JetStream stream. Its owner declares it, again after every reconnect: a memory stream dies with its server."""

    name: str
    subjects: tuple[str, ...]
    owner: Service
    readers: tuple[Service, ...]
    storage: Literal["file", "memory"]
    retention: Literal["limits", "workqueue"]
    max_age_s: int
    max_bytes: int
    doc: str


# keys ------------------------------------------------------------------------------------------------------------------

KEYS_RECIPIENT = Rpc[Empty, keys.Recipient](
    "keys.recipient", Empty, keys.Recipient, "keys", ("gateway",), 2, True, "The public key to seal a provider key to."
)
KEYS_CONNECT = Rpc[keys.ConnectKey, keys.KeyStatus](
    "keys.connect", keys.ConnectKey, keys.KeyStatus, "keys", ("gateway",), 20, True,
    "Verify a key upstream and store it; replaces the owner's former key.",
)  # fmt: skip
KEYS_STATUS = Rpc[keys.OwnerRef, keys.KeyStatus](
    "keys.status", keys.OwnerRef, keys.KeyStatus, "keys", ("gateway",), 5, True, "What the owner may know of their key."
)
KEYS_VERIFY = Rpc[keys.VerifyKey, keys.KeyStatus](
    "keys.verify", keys.VerifyKey, keys.KeyStatus, "keys", ("gateway", "executor"), 20, True,
    "Ask upstream about the stored key now.",
)  # fmt: skip
KEYS_OAUTH_BEGIN = Rpc[keys.BeginOAuth, keys.OAuthBegun](
    "keys.oauth.begin", keys.BeginOAuth, keys.OAuthBegun, "keys", ("gateway",), 5, False,
    "Where to send the browser so that OpenRouter makes a key for us.",
)  # fmt: skip
KEYS_OAUTH_COMPLETE = Rpc[keys.CompleteOAuth, keys.KeyStatus](
    "keys.oauth.complete", keys.CompleteOAuth, keys.KeyStatus, "keys", ("gateway",), 25, False,
    "Fetch the key that OpenRouter made and connect it; only for whoever began.",
)  # fmt: skip
KEYS_DISCONNECT = Rpc[keys.OwnerRef, keys.KeyStatus](
    "keys.disconnect", keys.OwnerRef, keys.KeyStatus, "keys", ("gateway",), 5, True, "Erase the owner's key."
)
KEYS_LEASE = Rpc[keys.LeaseKey, keys.KeyLease](
    "keys.lease", keys.LeaseKey, keys.KeyLease, "keys", ("executor",), 5, True,
    "The key of one owner for a minute, sealed to the executor that asks.",
)  # fmt: skip
KEYS_ACCESS_LIST = Rpc[keys.ListAccess, keys.AccessPage](
    "keys.access.list", keys.ListAccess, keys.AccessPage, "keys", ("gateway",), 5, True,
    "What was done with the owner's key, newest first.",
)  # fmt: skip
KEYS_CHANGED = Event[keys.KeysChanged](
    "keys.changed",
    keys.KeysChanged,
    "keys",
    ("executor",),
    "Executors drop what they hold of this owner's key at once.",
)

# catalog ---------------------------------------------------------------------------------------------------------------

MODELS_SEARCH = Rpc[catalog.SearchModels, catalog.ModelPage](
    "catalog.models.search", catalog.SearchModels, catalog.ModelPage, "catalog", ("gateway",), 5, True, "Find models."
)
MODELS_GET = Rpc[catalog.ModelRef, catalog.ModelDetail](
    "catalog.models.get", catalog.ModelRef, catalog.ModelDetail, "catalog", ("gateway",), 5, True,
    "One model with prices, history, and its replacement if retired.",
)  # fmt: skip
MODELS_PROVIDERS = Rpc[catalog.ModelRef, providers.ModelProviders](
    "catalog.models.providers", catalog.ModelRef, providers.ModelProviders, "catalog", ("gateway",), 10, True,
    "Who serves a model, asked of OpenRouter when somebody wants to know; kept five minutes.",
)  # fmt: skip
MODELS_ESTIMATE = Rpc[catalog.EstimateCost, catalog.Estimate](
    "catalog.models.estimate", catalog.EstimateCost, catalog.Estimate, "catalog", ("gateway",), 5, True,
    "What a call would cost: low, expected, ceiling, and the margin at a price.",
)  # fmt: skip
CATALOG_SYNC = Rpc[catalog.SyncCatalog, catalog.SyncReport](
    "catalog.sync", catalog.SyncCatalog, catalog.SyncReport, "catalog", ("gateway",), 120, True,
    "Read the upstream list now; the daily schedule runs the same code.",
)  # fmt: skip
CATALOG_SYNCS = Rpc[catalog.ListSyncs, catalog.SyncList](
    "catalog.syncs", catalog.ListSyncs, catalog.SyncList, "catalog", ("gateway",), 5, True, "The latest syncs."
)
RESOURCES_CREATE = Rpc[catalog.CreateResource, catalog.Resource](
    "catalog.resources.create", catalog.CreateResource, catalog.Resource, "catalog", ("gateway",), 5, False,
    "Validate and store a resource as a draft.",
)  # fmt: skip
RESOURCES_UPDATE = Rpc[catalog.UpdateResource, catalog.Resource](
    "catalog.resources.update", catalog.UpdateResource, catalog.Resource, "catalog", ("gateway",), 5, False,
    "Edit a resource: a new version; runs record the version they ran.",
)  # fmt: skip
RESOURCES_GET = Rpc[catalog.ResourceRef, catalog.Resource](
    "catalog.resources.get", catalog.ResourceRef, catalog.Resource, "catalog", ("gateway",), 5, True, "One resource."
)
RESOURCES_LIST = Rpc[catalog.ListResources, catalog.ResourcePage](
    "catalog.resources.list", catalog.ListResources, catalog.ResourcePage, "catalog", ("gateway",), 5, True,
    "An owner's resources, newest first.",
)  # fmt: skip
RESOURCES_PUBLISH = Rpc[catalog.ResourceRef, catalog.Resource](
    "catalog.resources.publish", catalog.ResourceRef, catalog.Resource, "catalog", ("gateway",), 5, True,
    "Let everybody execute it.",
)  # fmt: skip
RESOURCES_PAUSE = Rpc[catalog.ResourceRef, catalog.Resource](
    "catalog.resources.pause", catalog.ResourceRef, catalog.Resource, "catalog", ("gateway",), 5, True,
    "Take it off the market; its owner can still run it.",
)  # fmt: skip
RESOURCES_DELETE = Rpc[catalog.ResourceRef, Empty](
    "catalog.resources.delete", catalog.ResourceRef, Empty, "catalog", ("gateway",), 5, True, "Delete a resource."
)
DRAFTS_CHECK = Rpc[drafts.CheckDraft, catalog.ResolvedResource](
    "catalog.drafts.check", drafts.CheckDraft, catalog.ResolvedResource, "catalog", ("executor",), 5, True,
    "Validate and resolve an unsaved resource, for a preview.",
)  # fmt: skip
DRAFTS_REVIEW = Rpc[drafts.ReviewDraft, drafts.DraftReview](
    "catalog.drafts.review", drafts.ReviewDraft, drafts.DraftReview, "catalog", ("gateway",), 5, True,
    "Validate an unsaved resource, and say what its runs would cost and bring.",
)  # fmt: skip
RESOURCES_RESOLVE = Rpc[catalog.ResolveResource, catalog.ResolvedResource](
    "catalog.resources.resolve", catalog.ResolveResource, catalog.ResolvedResource, "catalog", ("executor",), 5, True,
    "Everything needed to run a resource; cached 10 s, dropped on catalog.resource.changed and on reconnect.",
)  # fmt: skip
RESOURCES_VERSIONS = Rpc[market.ListVersions, market.ResourceVersionPage](
    "catalog.resources.versions", market.ListVersions, market.ResourceVersionPage, "catalog", ("gateway",), 5, True,
    "Every version of a resource, newest first, each with what it changed.",
)  # fmt: skip
RESOURCES_STATS = Rpc[market.GetStats, market.ResourceStats](
    "catalog.resources.stats", market.GetStats, market.ResourceStats, "catalog", ("gateway",), 10, True,
    "What a resource's runs cost and brought, by day, and how they ended.",
)  # fmt: skip
RESOURCES_LISTING = Rpc[listings.ViewListing, listings.Listing](
    "catalog.resources.listing", listings.ViewListing, listings.Listing, "catalog", ("gateway",), 5, True,
    "One resource by its id, as a buyer sees it.",
)  # fmt: skip
BUDGETS_GET = Rpc[keys.OwnerRef, market.Budgets](
    "catalog.budgets.get", keys.OwnerRef, market.Budgets, "catalog", ("gateway",), 5, True,
    "A creator's daily limits, and where today stands against them.",
)  # fmt: skip
BUDGETS_SET = Rpc[market.SetBudgets, market.Budgets](
    "catalog.budgets.set", market.SetBudgets, market.Budgets, "catalog", ("gateway",), 5, True,
    "Replace a creator's daily limits.",
)  # fmt: skip
LISTINGS_SEARCH = Rpc[listings.SearchListings, listings.ListingPage](
    "catalog.listings.search", listings.SearchListings, listings.ListingPage, "catalog", ("gateway",), 5, True,
    "Published resources, as a buyer sees them.",
)  # fmt: skip
LISTINGS_GET = Rpc[listings.ListingRef, listings.Listing](
    "catalog.listings.get", listings.ListingRef, listings.Listing, "catalog", ("gateway",), 5, True, "One listing."
)
CATALOG_SYNCED = Event[catalog.CatalogSynced](
    "catalog.synced",
    catalog.CatalogSynced,
    "catalog",
    ("catalog",),
    "A sync changed the catalog: rebuild the search index.",
)
MODEL_CHANGED = Event[catalog.ModelChanged](
    "catalog.model.changed",
    catalog.ModelChanged,
    "catalog",
    ("executor",),
    "A model came, went, came back, was repriced, or is announced to end.",
)
RESOURCE_CHANGED = Event[catalog.ResourceChanged](
    "catalog.resource.changed", catalog.ResourceChanged, "catalog", ("executor",),
    "Executors drop what they resolved of this resource.",
)  # fmt: skip
RESOURCE_NOTICED = Event[market.ResourceNotice](
    "catalog.resource.noticed", market.ResourceNotice, "catalog", ("gateway",),
    "Tell a creator what happened to a resource: its model retires, returns, is repriced, or it sells below cost.",
)  # fmt: skip
BUDGET_REACHED = Event[market.BudgetReached](
    "catalog.budget.reached", market.BudgetReached, "catalog", ("gateway",),
    "Tell a creator that a daily limit is used up to 80 or to 100 percent.",
)  # fmt: skip

# execution -------------------------------------------------------------------------------------------------------------

EXECUTION_RUN = Rpc[execution.Execute, execution.RunReply](
    "execution.run", execution.Execute, execution.RunReply, "executor", ("gateway",), 620, True,
    "Run and wait. Frames go out meanwhile; a second request for a running execution is answered `running` at once.",
)  # fmt: skip
EXECUTION_ENQUEUE = Rpc[execution.Execute, execution.ExecutionAccepted](
    "execution.enqueue", execution.Execute, execution.ExecutionAccepted, "executor", ("gateway",), 10, True,
    "Accept a run durably and answer after the commit.",
)  # fmt: skip
EXECUTION_GET = Rpc[execution.GetExecution, execution.ExecutionView](
    "execution.get", execution.GetExecution, execution.ExecutionView, "executor", ("gateway",), 5, True, "One run."
)
EXECUTION_LIST = Rpc[execution.ListExecutions, execution.ExecutionPage](
    "execution.list", execution.ListExecutions, execution.ExecutionPage, "executor", ("gateway",), 5, True,
    "Runs that somebody made, or runs of somebody's resources, newest first.",
)  # fmt: skip
EXECUTION_CANCEL = Rpc[execution.GetExecution, execution.ExecutionView](
    "execution.cancel", execution.GetExecution, execution.ExecutionView, "executor", ("gateway",), 5, True,
    "Stop a run; one that already ended stays as it ended.",
)  # fmt: skip
DEAD_LETTERS_LIST = Rpc[dead_letters.ListDeadLetters, dead_letters.DeadLetterPage](
    "execution.deadletters.list", dead_letters.ListDeadLetters, dead_letters.DeadLetterPage, "executor", ("gateway",), 5,
    True, "Jobs that could not be carried out for our reasons, latest first.",
)  # fmt: skip
DEAD_LETTERS_REQUEUE = Rpc[dead_letters.RequeueDeadLetter, dead_letters.DeadLetter](
    "execution.deadletters.requeue", dead_letters.RequeueDeadLetter, dead_letters.DeadLetter, "executor", ("gateway",), 10,
    True, "Try one of them again, under the same execution id.",
)  # fmt: skip
EXECUTION_CANCELING = Event[execution.ExecutionCanceling](
    "execution.canceling", execution.ExecutionCanceling, "executor", ("executor",), "The executor that runs it stops."
)
MEDIA_CLAIM = Rpc[attachments.ClaimMedia, attachments.MediaClaimed](
    "execution.media.claim", attachments.ClaimMedia, attachments.MediaClaimed, "executor", ("gateway",), 5, True,
    "Register a file that a caller has sent, before it is stored under the name in the reply.",
)  # fmt: skip
EXECUTION_FINISHED = Event[execution.Receipt](
    "execution.finished", execution.Receipt, "executor", ("catalog",),
    "The receipt of every run, at least once, with Nats-Msg-Id `<id>:<revision>`.",
)  # fmt: skip
WORKFLOWS_RUN = Rpc[workflows.RunWorkflow, workflows.WorkflowView](
    "execution.workflows.run", workflows.RunWorkflow, workflows.WorkflowView, "executor", ("gateway",), 10, True,
    "Accept a workflow durably and answer after the commit.",
)  # fmt: skip
WORKFLOWS_GET = Rpc[workflows.GetWorkflow, workflows.WorkflowView](
    "execution.workflows.get", workflows.GetWorkflow, workflows.WorkflowView, "executor", ("gateway",), 5, True,
    "One workflow of the caller's.",
)  # fmt: skip
WORKFLOWS_LIST = Rpc[workflows.ListWorkflows, workflows.WorkflowPage](
    "execution.workflows.list", workflows.ListWorkflows, workflows.WorkflowPage, "executor", ("gateway",), 5, True,
    "Workflows that somebody started, newest first.",
)  # fmt: skip
WORKFLOWS_CANCEL = Rpc[workflows.GetWorkflow, workflows.WorkflowView](
    "execution.workflows.cancel", workflows.GetWorkflow, workflows.WorkflowView, "executor", ("gateway",), 5, True,
    "Stop the steps that run and skip the others; a workflow that already ended stays as it ended.",
)  # fmt: skip
WORKFLOWS_RESUME = Rpc[workflows.GetWorkflow, workflows.WorkflowView](
    "execution.workflows.resume", workflows.GetWorkflow, workflows.WorkflowView, "executor", ("gateway",), 10, True,
    "Run again what did not succeed; what succeeded is kept and not paid again.",
)  # fmt: skip

# The same for other services: `*` is the publisher's name, and the name is the caller.
AS_RUN = Rpc[execution.ExecuteRequest, execution.RunReply](
    "as.*.execution.run", execution.ExecuteRequest, execution.RunReply, "executor", (PUBLISHER,), 620, True,
    "Run a published resource as this publisher and wait.",
)  # fmt: skip
AS_GET = Rpc[execution.GetOwnExecution, execution.ExecutionView](
    "as.*.execution.get", execution.GetOwnExecution, execution.ExecutionView, "executor", (PUBLISHER,), 5, True,
    "One run of this publisher.",
)  # fmt: skip
AS_CANCEL = Rpc[execution.GetOwnExecution, execution.ExecutionView](
    "as.*.execution.cancel", execution.GetOwnExecution, execution.ExecutionView, "executor", (PUBLISHER,), 5, True,
    "Stop a run of this publisher.",
)  # fmt: skip
AS_SUBMIT = Job[execution.ExecuteRequest](
    "as.*.execution.submit", execution.ExecuteRequest, "executor", (PUBLISHER,), "Fire and forget, as this publisher."
)
AS_FINISHED = Event[execution.CallerReceipt](
    "as.*.execution.finished", execution.CallerReceipt, "executor", (PUBLISHER,), "How a run of this publisher ended."
)
FRAMES = Event[execution.Frame](
    "execution.frames.*.*", execution.Frame, "executor", ("gateway", PUBLISHER),
    "Numbered frames of a run or a workflow, for one viewer: the gateway, or the publisher that asked.",
)  # fmt: skip


def frames_subject(viewer: str, execution_id: object) -> str:
    """x402jobs.v1.execution.frames.<viewer>.<execution_id>"""
    return f"{PREFIX}execution.frames.{viewer}.{execution_id}"


def as_publisher(subject: str, publisher: str) -> str:
    """x402jobs.v1.as.<publisher>.… for a registry subject with `*` in the place of the publisher."""
    return subject.replace(".as.*.", f".as.{publisher}.")


def publisher_of(subject: str) -> str:
    """The publisher's name in a concrete `as.…` subject."""
    return subject.removeprefix(PREFIX).split(".")[1]


JOBS_STREAM = Stream(
    "X402JOBS_JOBS", (AS_SUBMIT.subject,), "executor", (), "file", "workqueue", 7 * 86_400,
    1024 * 1024 * 1024, "The inbox of jobs; emptied into rows as fast as they can be committed.",
)  # fmt: skip
FRAMES_STREAM = Stream(
    "X402JOBS_FRAMES", (FRAMES.subject,), "executor", ("gateway",), "memory", "limits", 15 * 60, 256 * 1024 * 1024,
    "What a resumed view reads; frames older than a quarter of an hour are gone.",
)  # fmt: skip
RECEIPTS_STREAM = Stream(
    "X402JOBS_RECEIPTS", (EXECUTION_FINISHED.subject, AS_FINISHED.subject), "executor", ("catalog",), "file", "limits",
    30 * 86_400, 1024 * 1024 * 1024, "Receipts for consumers that were away.",
)  # fmt: skip
NOTICES_STREAM = Stream(
    "X402JOBS_NOTICES", (RESOURCE_NOTICED.subject, BUDGET_REACHED.subject), "catalog", ("gateway",), "file", "limits",
    30 * 86_400, 256 * 1024 * 1024, "What creators are told, for whoever tells them: at least once, with Nats-Msg-Id.",
)  # fmt: skip
MEDIA_BUCKET = "x402jobs_media"
"""The NATS object store of generated media: written by executors, read by gateways."""
INPUTS_BUCKET = "x402jobs_inputs"
"""The one of what callers send: written by gateways, read by both, deleted by executors."""

REGISTRY: tuple[Rpc[Any, Any] | Event[Any] | Job[Any], ...] = tuple(
    entry for entry in list(globals().values()) if isinstance(entry, Rpc | Event | Job)
)
RPCS = tuple(entry for entry in REGISTRY if isinstance(entry, Rpc))
EVENTS = tuple(entry for entry in REGISTRY if isinstance(entry, Event))
JOBS = tuple(entry for entry in REGISTRY if isinstance(entry, Job))
STREAMS = (JOBS_STREAM, FRAMES_STREAM, RECEIPTS_STREAM, NOTICES_STREAM)
