"""What the catalog says about resources, kept for ten seconds so that a busy resource costs no request per run."""

from __future__ import annotations

import time
from collections.abc import Callable

from contracts.catalog import ModelChanged, ResolvedResource, ResolveResource, ResourceChanged
from contracts.subjects import RESOURCES_RESOLVE
from services.runtime.bus import Bus

_KEEP_S = 10.0
_MOST = 10_000


class Resolutions:
    """Resolved resources by the reference they were asked with (an id, or `owner/slug`)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._kept: dict[str, tuple[float, ResolvedResource]] = {}

    async def get(self, ref: str) -> ResolvedResource:
        """Raises what the catalog raised, NOT_FOUND for one."""
        kept = self._kept.get(ref)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        resource = await self._bus.call(RESOURCES_RESOLVE, ResolveResource(ref=ref))
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[ref] = (time.monotonic() + _KEEP_S, resource)
        return resource

    async def resource_changed(self, event: ResourceChanged) -> None:
        self._drop(lambda resource: resource.resource_id == event.resource_id)

    async def model_changed(self, event: ModelChanged) -> None:
        self._drop(lambda resource: event.model_id in (resource.config.model_id, *resource.config.fallback_models))

    def _drop(self, concerns: Callable[[ResolvedResource], bool]) -> None:
        for ref in [ref for ref, (_, resource) in self._kept.items() if concerns(resource)]:
            del self._kept[ref]

    async def forget(self) -> None:
        self._kept.clear()
