"""Reads the receipts of all runs from their stream into figures: at least once each, in whatever order they come.

A receipt is acknowledged after its figures are committed. One that cannot be read is dropped with an error in the log;
one that cannot be written is put off, so that it holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from uuid import UUID

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from contracts.errors import ServiceError
from contracts.execution import Receipt
from contracts.subjects import EXECUTION_FINISHED, RECEIPTS_STREAM
from services.catalog.guard import Guard
from services.catalog.runs_store import RunsStore
from services.runtime.bus import Bus, parse
from services.runtime.health import Health

log = structlog.get_logger()

_CONSUMER = "catalog"
_FETCH = 200
_LOOK_AGAIN_S = 1.0
_GATHER_S = 0.2  # a batch costs the same whatever it holds, and figures may be a moment late
_AGAIN_AFTER_S = 2.0
_PUT_OFF_S = 60.0


class Receipts:
    def __init__(self, *, bus: Bus, runs: RunsStore, guard: Guard, health: Health) -> None:
        self._bus = bus
        self._runs = runs
        self._guard = guard
        self._health = health

    async def run(self) -> None:
        """Background work, on every replica: the stream shares the receipts out among them."""
        try:
            subscription = await self._bus.js.pull_subscribe(
                EXECUTION_FINISHED.subject,
                durable=_CONSUMER,
                stream=RECEIPTS_STREAM.name,
                config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_deliver=-1, max_ack_pending=2000),
            )
        except NotFoundError:
            return  # no executor has declared the stream yet; the service begins this again in a moment
        try:
            while not self._health.stopping:
                try:
                    messages = await subscription.fetch(_FETCH, timeout=_LOOK_AGAIN_S)
                except TimeoutError:  # the client's own kind of it, and sometimes the plain one
                    continue
                await self.take(messages)
                if len(messages) < _FETCH:
                    await asyncio.sleep(_GATHER_S)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def take(self, messages: Sequence[Msg]) -> None:
        """Write a batch, then acknowledge it."""
        readable: list[tuple[Msg, Receipt]] = []
        for message in messages:
            try:
                readable.append((message, parse(Receipt, message.data)))
            except ServiceError as error:
                paths = [problem.path for problem in error.body.fields]
                log.critical("receipt_not_readable", sequence=message.metadata.sequence.stream, fields=paths)
                await message.term()
        if readable:
            await self._write(readable)

    async def _write(self, batch: Sequence[tuple[Msg, Receipt]]) -> None:
        receipts = [receipt for _, receipt in batch]
        try:
            await self._runs.record(receipts)
            await self._guard.act_on_losses(_losing(receipts))
        except ServiceError as error:
            log.warning("receipts_wait", code=error.code.value, receipts=len(batch))
            await asyncio.gather(*(message.nak(delay=_AGAIN_AFTER_S) for message, _ in batch))
        except Exception as error:
            if len(batch) > 1:
                for each in batch:
                    await self._write([each])
                return
            log.exception("receipt_put_off", execution_id=str(receipts[0].execution_id), error=type(error).__name__)
            await batch[0][0].nak(delay=_PUT_OFF_S)
        else:
            await asyncio.gather(*(message.ack() for message, _ in batch))
            self._guard.tell()


def _losing(receipts: Sequence[Receipt]) -> list[tuple[UUID, int]]:
    """The versions of which a run cost more than it brought: nothing else can turn their sum."""
    return sorted(
        {
            (receipt.resource_id, receipt.resource_version)
            for receipt in receipts
            if receipt.resource_id is not None and receipt.cost.markup_usd is not None and receipt.cost.markup_usd < 0
        }
    )
