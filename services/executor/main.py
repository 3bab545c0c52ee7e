"""The executor: runs resources with their creators' keys. Wiring only; what it does is in the modules it names."""

from __future__ import annotations

import asyncio
import hmac
from datetime import timedelta

import asyncpg
from prometheus_client import CollectorRegistry
from pydantic import Field, SecretStr

from contracts.keys import KeysChanged
from contracts.subjects import (
    AS_CANCEL,
    AS_GET,
    AS_RUN,
    DEAD_LETTERS_LIST,
    DEAD_LETTERS_REQUEUE,
    EXECUTION_CANCEL,
    EXECUTION_CANCELING,
    EXECUTION_ENQUEUE,
    EXECUTION_GET,
    EXECUTION_LIST,
    EXECUTION_RUN,
    FRAMES_STREAM,
    JOBS_STREAM,
    KEYS_CHANGED,
    MEDIA_CLAIM,
    MODEL_CHANGED,
    RECEIPTS_STREAM,
    RESOURCE_CHANGED,
    WORKFLOWS_CANCEL,
    WORKFLOWS_GET,
    WORKFLOWS_LIST,
    WORKFLOWS_RESUME,
    WORKFLOWS_RUN,
)
from services.executor.attachments import Attachments
from services.executor.backlog import BacklogWatch
from services.executor.backlog_store import BacklogStore
from services.executor.calls import Calls
from services.executor.cooldowns import Cooldowns
from services.executor.costs import PendingCosts
from services.executor.dead_letter_store import DeadLetterStore
from services.executor.dead_letters import DeadLetters
from services.executor.generations import GenerationNotes
from services.executor.handlers import Handlers
from services.executor.janitor import Janitor
from services.executor.jobs import Jobs
from services.executor.keeper import LEASE_S, Keeper
from services.executor.leases import KeyLeases
from services.executor.limits import KeyLimits, Rates
from services.executor.limits_store import LimitsStore
from services.executor.media import MediaStore
from services.executor.media_store import MediaIndex
from services.executor.metrics import ExecutorMetrics
from services.executor.outbox import Outbox
from services.executor.preparation import Preparation
from services.executor.reconciliation import Reconciler
from services.executor.reconciliation_store import ReconciliationStore
from services.executor.requeue import Requeue
from services.executor.resolutions import Resolutions
from services.executor.results import Results
from services.executor.runs import Runner
from services.executor.slots import Slots
from services.executor.store import Store
from services.executor.uploads import Uploads
from services.executor.upstream import Upstream
from services.executor.workflow_handlers import WorkflowHandlers
from services.executor.workflow_runs import Workflows
from services.executor.workflow_store import WorkflowStore
from services.runtime.bus import Bus
from services.runtime.files import Files
from services.runtime.hardening import deny_dumps
from services.runtime.identity import ExecutorIdentity
from services.runtime.memory import give_large_blocks_back
from services.runtime.postgres import connect, count_connections, create_pool, ping
from services.runtime.process import run
from services.runtime.sealing import Keyring
from services.runtime.service import Service
from services.runtime.settings import ServiceSettings

# Longer than any run may take, so that a stop never cuts one short.
_DRAIN_TIMEOUT_S = 620


class Settings(ServiceSettings):
    postgres_url: SecretStr
    openrouter_url: str = "https://openrouter.ai/api/v1"
    sandbox_url: str | None = Field(default=None, description="Where test keys go; without it there is no test mode.")
    result_keys: SecretStr = Field(description="Keyring that results and queued jobs are locked under: id:base64,…")
    executor_identity: SecretStr = Field(description="Ed25519 seed in base64: what requests for keys are signed with.")
    media_name_secret: SecretStr = Field(description="Makes the names of media unguessable.")
    public_url: str = Field(default="http://127.0.0.1:8402", description="Where the gateway is reached from outside.")
    running_per_key: int = Field(default=5, ge=1, description="Runs at once per creator's key, over all executors.")
    requests_per_minute_per_caller: int = Field(default=60, ge=0, description="On one key; 0 is no limit.")
    requests_per_minute_per_key: int = Field(default=300, ge=0, description="Of all callers; 0 is no limit.")
    slot_wait_s: float = Field(default=2.0, ge=0, le=60)
    max_running: int = Field(default=500, ge=1, description="Runs at once in this process.")
    keep_results_hours: float = Field(default=24.0, ge=0)
    keep_inputs_hours: float = Field(default=24.0, ge=1, description="How long uploads stay that no run needs.")
    postgres_pool: int = Field(default=10, ge=2, le=100)

    def key_limits(self) -> KeyLimits:
        """What every creator's key takes."""
        rates = Rates(self.requests_per_minute_per_key, self.requests_per_minute_per_caller)
        return KeyLimits(self.running_per_key, rates)


def build(settings: Settings) -> Service:
    registry = CollectorRegistry()
    service = Service("executor", settings, registry, drain_timeout_s=_DRAIN_TIMEOUT_S)
    bus = service.bus
    pool = _pool(service, settings)
    metrics = ExecutorMetrics(registry)
    store = Store(pool, lease_s=LEASE_S)
    leases = KeyLeases(bus, ExecutorIdentity.parse(settings.executor_identity.get_secret_value()))
    resolutions = Resolutions(bus)
    attachments, media = _media(service, pool, settings, metrics)
    pseudonym_secret = hmac.digest(_name_secret(settings), b"pseudonyms of callers", "sha256")
    preparation = Preparation(bus, resolutions, leases, attachments, pseudonym_secret=pseudonym_secret)
    upstream = Upstream(settings.openrouter_url, settings.sandbox_url)
    generations = GenerationNotes(store)
    cooldowns = Cooldowns(LimitsStore(pool), metrics)
    results = _results(settings)
    runner = Runner(
        bus=bus,
        store=store,
        calls=Calls(store, leases, upstream, generations, cooldowns, metrics, media),
        results=results,
        slots=Slots(wait_s=settings.slot_wait_s),
        metrics=metrics,
        limits=settings.key_limits(),
        max_running=settings.max_running,
    )
    outgoing = asyncio.Event()
    jobs = Jobs(
        bus=bus,
        store=store,
        preparation=preparation,
        runner=runner,
        results=results,
        letters=DeadLetters(DeadLetterStore(pool), results),
        metrics=metrics,
        health=service.health,
        limits=settings.key_limits(),
        outgoing=outgoing,
    )
    handlers = Handlers(bus=bus, store=store, preparation=preparation, runner=runner, jobs=jobs, results=results)
    workflows = _workflows(service, pool, store, jobs, results, metrics, preparation, handlers)
    runner.at_end += [outgoing.set, jobs.slot_freed, workflows.run_ended]
    keeper = Keeper(bus, store, cooldowns, runner, metrics, outgoing)
    outbox = Outbox(bus, store, metrics, outgoing)
    _serve(bus, handlers)
    _look_after_dead_letters(service, Requeue(DeadLetterStore(pool), store, results, jobs, metrics))
    reconciler = Reconciler(ReconciliationStore(pool), store, upstream, leases, metrics, outgoing)
    _keep_in_touch(service, runner, leases, cooldowns, resolutions)
    costs = PendingCosts(store, upstream, leases, metrics, outgoing)
    backlog = BacklogWatch(BacklogStore(pool), metrics)
    endless = (backlog.watch, keeper.renew, keeper.reap, keeper.clean, costs.look_up, outbox.relay, generations.write)
    for work in (*endless, jobs.take_in, jobs.work, reconciler.work):
        service.background(work.__qualname__, work)
    service.on_drain(runner.wait_until_idle)
    service.on_stop(upstream.close)
    service.on_stop(outbox.flush)
    return service


def _results(settings: Settings) -> Results:
    keyring = Keyring.parse(settings.result_keys.get_secret_value())
    return Results(keyring, timedelta(hours=settings.keep_results_hours))


def _pool(service: Service, settings: Settings) -> asyncpg.Pool:
    pool = create_pool(settings.postgres_url.get_secret_value(), service="executor", max_size=settings.postgres_pool)
    count_connections(pool, service.registry)
    service.health.add("postgres", lambda: ping(pool))
    service.before_bus(lambda: connect(pool))
    service.on_stop(pool.close)
    return pool


def _look_after_dead_letters(service: Service, requeue: Requeue) -> None:
    service.bus.serve(DEAD_LETTERS_LIST, requeue.list)
    service.bus.serve(DEAD_LETTERS_REQUEUE, requeue.requeue)
    service.background("dead_letters", requeue.watch)


def _media(
    service: Service, pool: asyncpg.Pool, settings: Settings, metrics: ExecutorMetrics
) -> tuple[Attachments, MediaStore]:
    """Files: those that callers send, those that models make, and the janitor of both."""
    bus, name_secret = service.bus, _name_secret(settings)
    files, index = Files(bus), MediaIndex(pool)
    service.after_bus(files.declare)
    bus.on_reconnect(files.declare)
    uploads = Uploads(index, metrics, name_secret, timedelta(hours=settings.keep_inputs_hours))
    bus.serve(MEDIA_CLAIM, uploads.claim)
    service.background("media", Janitor(files, index, metrics).work)
    media = MediaStore(files, index, metrics, settings.public_url, name_secret)
    return Attachments(files, index, settings.public_url), media


def _keep_in_touch(
    service: Service, runner: Runner, leases: KeyLeases, cooldowns: Cooldowns, resolutions: Resolutions
) -> None:
    """What has to be said again after every reconnect, and what is dropped because an event may have been missed."""
    bus = service.bus

    async def key_changed(event: KeysChanged) -> None:
        await leases.changed(event)
        await cooldowns.changed(event)

    bus.listen(KEYS_CHANGED, key_changed)
    bus.listen(RESOURCE_CHANGED, resolutions.resource_changed)
    bus.listen(MODEL_CHANGED, resolutions.model_changed)

    async def declare() -> None:
        for stream in (FRAMES_STREAM, JOBS_STREAM, RECEIPTS_STREAM):
            await bus.declare(stream)

    async def reconnected() -> None:
        await leases.forget()
        await resolutions.forget()
        await declare()
        await runner.send_snapshots()

    service.after_bus(declare)
    bus.on_reconnect(reconnected)


def _workflows(
    service: Service,
    pool: asyncpg.Pool,
    runs: Store,
    jobs: Jobs,
    results: Results,
    metrics: ExecutorMetrics,
    preparation: Preparation,
    handlers: Handlers,
) -> Workflows:
    """Everything about workflows, which stands on runs and is not known to them."""
    bus, store = service.bus, WorkflowStore(pool)
    workflows = Workflows(
        bus=bus, store=store, runs=runs, jobs=jobs, results=results, metrics=metrics, stop_run=handlers.stop
    )
    answers = WorkflowHandlers(store, preparation, results, workflows)
    bus.serve(WORKFLOWS_RUN, answers.run)
    bus.serve(WORKFLOWS_GET, answers.get)
    bus.serve(WORKFLOWS_LIST, answers.list)
    bus.serve(WORKFLOWS_CANCEL, answers.cancel)
    bus.serve(WORKFLOWS_RESUME, answers.resume)
    service.background("workflows", workflows.work)
    service.background("clean_workflows", workflows.clean)
    return workflows


def _name_secret(settings: Settings) -> bytes:
    return settings.media_name_secret.get_secret_value().encode()


def _serve(bus: Bus, handlers: Handlers) -> None:
    # The two that wait for a model are the hot path.
    bus.serve_raw(EXECUTION_RUN, handlers.run)
    bus.serve_raw(AS_RUN, handlers.run_as)
    bus.serve(EXECUTION_ENQUEUE, handlers.enqueue)
    bus.serve(EXECUTION_GET, handlers.get)
    bus.serve(EXECUTION_LIST, handlers.list)
    bus.serve(EXECUTION_CANCEL, handlers.cancel)
    bus.serve(AS_GET, handlers.get_as)
    bus.serve(AS_CANCEL, handlers.cancel_as)
    bus.listen(EXECUTION_CANCELING, handlers.canceling)


def main() -> None:
    deny_dumps()
    give_large_blocks_back()
    run(lambda: build(Settings()))


if __name__ == "__main__":
    main()
