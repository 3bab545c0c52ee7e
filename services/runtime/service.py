"""A process that is on the bus: it connects before it works, and takes no new work before it stops.

Apart from `Process` because the console is none: it needs neither the bus nor what speaks to it.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.runtime.bus import Bus
from services.runtime.process import Hook, Process
from services.runtime.settings import ServiceSettings


class Service(Process):
    """One instance of one service: a process that is on the bus."""

    def __init__(
        self, name: str, settings: ServiceSettings, registry: CollectorRegistry, *, drain_timeout_s: float = 30
    ) -> None:
        super().__init__(name, settings, registry, drain_timeout_s=drain_timeout_s)
        self.bus = Bus(
            service=name,
            instance=self.instance,
            url=settings.nats_url,
            user=settings.nats_user or name,
            password=settings.nats_password.get_secret_value(),
            registry=registry,
        )
        self.health.add("bus", self.bus.ping)
        self._before_bus: list[Hook] = []
        self._after_bus: list[Hook] = []

    def before_bus(self, hook: Hook) -> None:
        """Run at start before the bus is connected: pools, caches that handlers need."""
        self._before_bus.append(hook)

    def after_bus(self, hook: Hook) -> None:
        """Run at start once the bus is connected: streams, first loads."""
        self._after_bus.append(hook)

    async def _connect(self) -> None:
        for hook in self._before_bus:
            await hook()
        await self.bus.start()
        for hook in self._after_bus:
            await hook()

    async def _drain(self) -> None:
        if self.bus.connected:
            await self.bus.drain(self._drain_timeout_s)

    async def _disconnect(self) -> None:
        await self.bus.close()
