"""What an executor counts. Labels come from closed sets, named in the comment beside each; ids are never labels.

Values that an alert asks for are there from the start, at 0: the first of a kind could not be seen as an increase otherwise.
"""

from __future__ import annotations

from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from contracts.errors import ErrorCode

_LONG_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_SHORT_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 1)


class ExecutorMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._count_limits(registry)
        # status: succeeded, failed, canceled, interrupted; code: ok and ErrorCode
        self.executions = Counter("x402jobs_executions", "Runs that ended.", ["status", "code"], registry=registry)
        # status: as above
        self.seconds = Histogram(
            "x402jobs_execution_seconds", "From request to receipt.", ["status"], registry=registry, buckets=_LONG_S
        )
        self.first_token_seconds = Histogram(
            "x402jobs_first_token_seconds", "From request to the first output.", registry=registry, buckets=_LONG_S
        )
        self.overhead_seconds = Histogram(
            "x402jobs_overhead_seconds",
            "Our own part of a run: from request to upstream call and from its end to the receipt, waiting for a slot left out.",
            registry=registry,
            buckets=_SHORT_S,
        )
        # kind: prompt, completion, reasoning, cached
        self.tokens = Counter("x402jobs_tokens", "Tokens as upstream counted them.", ["kind"], registry=registry)
        self._add_money(registry)
        # code: ErrorCode
        self.upstream_errors = Counter(
            "x402jobs_upstream_errors", "Failed upstream calls.", ["code"], registry=registry
        )
        for code in ErrorCode:
            self.executions.labels("failed", code.value)
            self.upstream_errors.labels(code.value)
        self.executions.labels("succeeded", "ok")
        self.executions.labels("interrupted", ErrorCode.UNAVAILABLE.value)
        self._count_waiting(registry)
        self.slots_in_use = Gauge("x402jobs_slots_in_use", "Runs under way in this process.", registry=registry)
        self.slots = Gauge("x402jobs_slots", "Runs that this process takes at once.", registry=registry)
        self.jobs_accepted = Counter(
            "x402jobs_jobs_accepted", "Jobs taken from the inbox into rows.", registry=registry
        )
        self.frames_lost = Counter(
            "x402jobs_frames_lost", "Frames that the bus did not take; a snapshot covers them.", registry=registry
        )
        # status: succeeded, failed, canceled
        self.workflows = Counter("x402jobs_workflows", "Workflows that ended.", ["status"], registry=registry)
        for status in ("succeeded", "failed", "canceled"):
            self.workflows.labels(status)
        self.media_bytes = Counter("x402jobs_media_bytes", "Bytes of media stored.", registry=registry)
        self.media_deleted_bytes = Counter(
            "x402jobs_media_deleted_bytes", "Bytes of media deleted, past their time.", registry=registry
        )
        # kind: output, input
        self.media_stored_bytes = Gauge(
            "x402jobs_media_stored_bytes", "Bytes of media that are kept.", ["kind"], registry=registry
        )

    def _count_waiting(self, registry: CollectorRegistry) -> None:
        self.jobs_waiting = Gauge(
            "x402jobs_jobs_waiting", "Jobs that nobody runs yet, over all executors.", registry=registry
        )
        self.outbox_pending = Gauge(
            "x402jobs_outbox_pending", "Committed messages that are not yet sent.", registry=registry
        )
        self.dead_letters = Gauge(
            "x402jobs_dead_letters", "Jobs that wait for an operator, over all executors.", registry=registry
        )
        # kind: job, cost (that is being looked up), message (committed, to be sent)
        self.oldest_seconds = Gauge(
            "x402jobs_oldest_seconds",
            "How long the oldest has waited, over all executors.",
            ["kind"],
            registry=registry,
        )

    def _add_money(self, registry: CollectorRegistry) -> None:
        self.model_cost_usd = Counter(
            "x402jobs_model_cost_usd", "What runs cost their creators, once known.", registry=registry
        )
        self.price_usd = Counter("x402jobs_price_usd", "What callers were charged, once known.", registry=registry)
        self.cost_pending = Gauge(
            "x402jobs_cost_pending",
            "Upstream calls whose cost is being looked up, over all executors.",
            registry=registry,
        )
        self.cost_unknown = Counter(
            "x402jobs_cost_unknown", "Upstream calls whose cost could not be found out.", registry=registry
        )
        # outcome: same, differs, found (it was unknown), untold (upstream does not say)
        self.cost_checks = Counter(
            "x402jobs_cost_checks", "Upstream calls compared with upstream's accounts.", ["outcome"], registry=registry
        )
        for outcome in ("same", "differs", "found", "untold"):
            self.cost_checks.labels(outcome)
        # direction: more (was charged than receipts said), less
        self.cost_drift_usd = Counter(
            "x402jobs_cost_drift_usd", "By how much accounts and receipts differed.", ["direction"], registry=registry
        )
        for direction in ("more", "less"):
            self.cost_drift_usd.labels(direction)

    def count_money(self, cost_usd: Decimal | None, price_usd: Decimal | None) -> None:
        """Adds what became known of a run; None adds nothing. Counters are floats by their nature, receipts are what is exact."""
        self.model_cost_usd.inc(float(cost_usd or 0))
        self.price_usd.inc(float(price_usd or 0))

    def _count_limits(self, registry: CollectorRegistry) -> None:
        # reason: cooling, rate, budget
        self.refused = Counter(
            "x402jobs_refused", "Requests that a limit refused before they became a run.", ["reason"], registry=registry
        )
        for reason in ("cooling", "rate", "budget"):
            self.refused.labels(reason)
        # reason: platform, free_tier, provider
        self.cooldowns = Counter(
            "x402jobs_cooldowns",
            "Pauses that upstream asked for, of a key or of a model.",
            ["reason"],
            registry=registry,
        )
        for reason in ("platform", "free_tier", "provider"):
            self.cooldowns.labels(reason)
        self.ceilings_exceeded = Counter(
            "x402jobs_ceilings_exceeded", "Runs that cost more than was held for them.", registry=registry
        )
