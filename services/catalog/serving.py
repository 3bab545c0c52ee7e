"""Who serves a model: asked of upstream when somebody wants to know, kept for a while, and then asked for again.

One question per model is under way, and few at once; whoever asks meanwhile waits for its answer. An answer that has grown
old is still better than none: it is given, marked as stale, where upstream fails or takes its time, and the question goes
on for whoever asks next.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from contracts.errors import ErrorCode, ServiceError
from contracts.providers import ModelProviders
from services.catalog.models import CatalogModel
from services.catalog.providers import parse_providers
from services.catalog.upstream import Upstream, UpstreamError

log = structlog.get_logger()

FRESH = timedelta(minutes=5)
"""As long as upstream lets its own list be kept."""
MAX_KEPT = 1_000
_AT_ONCE = 4
_READ_TIMEOUT_S = 25
_PATIENCE_S = 8.0
_PATIENCE_WITH_STALE_S = 1.5


class Serving:
    """`clock` tells how old an answer is."""

    def __init__(self, upstream: Upstream, clock: Callable[[], datetime]) -> None:
        self._upstream = upstream
        self._clock = clock
        self._kept: OrderedDict[str, ModelProviders] = OrderedDict()
        self._asking: dict[str, asyncio.Task[ModelProviders | None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def providers(self, model: CatalogModel) -> ModelProviders:
        """The providers of a model, or of the one that a moving alias points to. Raises UPSTREAM where nothing is known."""
        model_id = model.alias_target or model.id
        kept = self._kept.get(model_id)
        if kept is not None:
            self._kept.move_to_end(model_id)
            if self._clock() - kept.read_at < FRESH:
                return kept
        question = self._asking.get(model_id)
        if question is None:
            question = asyncio.create_task(self._ask(model_id, outputs_text="text" in model.output_modalities))
            self._asking[model_id] = question
            question.add_done_callback(lambda _: self._asking.pop(model_id))
        answered, _ = await asyncio.wait({question}, timeout=_PATIENCE_S if kept is None else _PATIENCE_WITH_STALE_S)
        answer = question.result() if answered else None
        if answer is not None:
            return answer
        if kept is not None:
            return kept.model_copy(update={"stale": True})
        raise ServiceError(
            ErrorCode.UPSTREAM, "OpenRouter does not say at the moment who serves this model; try again shortly."
        )

    async def close(self) -> None:
        """Asks nothing any more."""
        questions = list(self._asking.values())
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)

    async def _ask(self, model_id: str, *, outputs_text: bool) -> ModelProviders | None:
        """Upstream's answer, kept; None where there is none."""
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S), self._turns:
                entries = await self._upstream.read_endpoints(model_id)
        except (UpstreamError, TimeoutError) as error:
            log.warning("providers_unknown", model=model_id, reason=str(error) or "Upstream took too long.")
            return None
        items = parse_providers(model_id, entries, outputs_text=outputs_text)
        answer = ModelProviders(model_id=model_id, items=items, read_at=self._clock())
        self._kept[model_id] = answer
        self._kept.move_to_end(model_id)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return answer
