"""The callers of the drill: fifty at once, each with one order after another, who do not give up.

Over HTTP they send the same Idempotency-Key again after everything that is not an answer, and follow a stream that broke from
behind the last event they saw; as a publisher they send the same execution id again. Some leave, and some cancel.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from random import Random
from typing import Any

import aiohttp
import nats.errors
from nats.aio.client import Client

from contracts.execution import TERMINAL_STATUSES
from contracts.subjects import AS_GET, AS_RUN, AS_SUBMIT, ERROR_CODE_HEADER, TIMEOUT_HEADER, as_publisher
from deploy.local.stack import PUBLISHER, Stack
from tests.drill.orders import Market, Order, make_order
from tests.e2e.client import Event

PATIENCE_S = 90
"""How long a caller goes on asking after the load has ended."""
_TRY_S = 40
_PUBLISHER_TRY_S = 6
_PAUSE_S = (0.2, 0.6)
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError)


class Load:
    """All callers. `run` returns when every one of them has had the answer to the last order, or has run out of patience."""

    def __init__(self, stack: Stack, market: Market, publisher: Client, *, seed: int, callers: int) -> None:
        self._stack = stack
        self._market = market
        self._publisher = publisher
        self._random = Random(seed)
        self._callers = callers
        self._tokens = {name: stack.token(name) for name in market.callers}
        self._until_s: float | None = None
        self.orders: list[Order] = []

    async def run(self) -> None:
        async with aiohttp.ClientSession(
            base_url=self._stack.gateway_url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_TRY_S),
        ) as http:
            await asyncio.gather(*(self._call_on(http) for _ in range(self._callers)))

    def stop(self) -> None:
        """No new orders; those under way are followed to their end, in bounds."""
        self._until_s = time.monotonic() + PATIENCE_S

    @property
    def _patient(self) -> bool:
        return self._until_s is None or time.monotonic() < self._until_s

    async def _call_on(self, http: aiohttp.ClientSession) -> None:
        while self._until_s is None:
            order = make_order(len(self.orders), self._random, self._market)
            self.orders.append(order)
            await self._place(http, order)

    async def _place(self, http: aiohttp.ClientSession, order: Order) -> None:
        placing = {
            "plain": self._plain,
            "stream": self._stream,
            "async": self._enqueue,
            "leave": self._leave,
            "cancel": self._cancel,
        }
        while self._patient and order.told is None and order.refused is None:
            order.tries += 1
            if order.kind == "run":
                await self._run(order)
            elif order.kind == "submit":
                if await self._submit(order):
                    return
            else:
                try:
                    if await placing[order.kind](http, order):
                        return
                except _BROKEN as error:
                    order.trouble[type(error).__name__] += 1
            if order.told is None and order.refused is None:
                await asyncio.sleep(self._random.uniform(*_PAUSE_S))

    # Over HTTP --------------------------------------------------------------------------------------------------------

    def _headers(self, order: Order, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._tokens[order.caller]}", "Idempotency-Key": order.key, **more}

    def _body(self, order: Order, **more: Any) -> dict[str, Any]:
        return {"resource": order.resource, "input": {"text": order.text}, **more}

    async def _plain(self, http: aiohttp.ClientSession, order: Order) -> bool:
        async with http.post("/api/execute", json=self._body(order), headers=self._headers(order)) as answer:
            await self._read(http, order, answer)
        return False

    async def _enqueue(self, http: aiohttp.ClientSession, order: Order) -> bool:
        """Half of them look how it ended; the others never come back."""
        headers = self._headers(order, Prefer="respond-async")
        async with http.post("/api/execute", json=self._body(order), headers=headers) as answer:
            if answer.status != 202:
                await self._read(http, order, answer)
                return False
            execution_id = (await answer.json())["execution_id"]
        order.accepted.add(execution_id)
        if self._random.random() < 0.5:
            return True
        while self._patient and order.told is None:
            await asyncio.sleep(self._random.uniform(*_PAUSE_S))
            await self._look(http, order, execution_id)
        return False

    async def _stream(self, http: aiohttp.ClientSession, order: Order) -> bool:
        """Read to its end, from behind the last event where it broke."""
        view = _View(order)
        body, headers = self._body(order, stream=True), self._headers(order)
        with suppress(*_BROKEN):
            async with http.post("/api/execute", json=body, headers=headers) as answer:
                if answer.status != 200:
                    await self._read(http, order, answer)
                    return False
                await view.read(answer)
        while self._patient and not view.ended and view.execution_id is not None:
            order.trouble["stream broke"] += 1
            await asyncio.sleep(self._random.uniform(*_PAUSE_S))
            follow = {**self._headers(order), "Last-Event-ID": str(view.last)}
            with suppress(*_BROKEN):
                async with http.get(f"/api/executions/{view.execution_id}/events", headers=follow) as answer:
                    if answer.status == 204:
                        order.faults.append("a stream ended before its last event was shown")
                        return False
                    if answer.status == 200:
                        await view.read(answer)
        return False

    async def _leave(self, http: aiohttp.ClientSession, order: Order) -> bool:
        """Go away in the middle; the run is to be stopped."""
        stream = self._random.random() < 0.5
        body = self._body(order, stream=stream, on_disconnect="cancel")
        async with asyncio.timeout(self._random.uniform(0.02, 1.5)):
            async with http.post("/api/execute", json=body, headers=self._headers(order)) as answer:
                if stream and answer.status == 200:
                    await _View(order).read(answer)
                else:
                    await self._read(http, order, answer)
        return False

    async def _cancel(self, http: aiohttp.ClientSession, order: Order) -> bool:
        """Begin a stream, ask for its end somewhere in the middle, and hear how it ended."""
        view = _View(order)
        stopping: asyncio.Task[None] | None = None

        def begun(execution_id: str) -> None:
            nonlocal stopping
            stopping = asyncio.create_task(self._stop(http, order, execution_id))

        try:
            body, headers = self._body(order, stream=True), self._headers(order)
            async with http.post("/api/execute", json=body, headers=headers) as answer:
                if answer.status != 200:
                    await self._read(http, order, answer)
                    return False
                await view.read(answer, begun)
        finally:
            if stopping is not None:
                await stopping
        return False

    async def _stop(self, http: aiohttp.ClientSession, order: Order, execution_id: str) -> None:
        await asyncio.sleep(self._random.uniform(0, 1))
        with suppress(*_BROKEN):
            async with http.post(f"/api/executions/{execution_id}/cancel", headers=self._headers(order)) as answer:
                await answer.read()

    async def _read(self, http: aiohttp.ClientSession, order: Order, answer: aiohttp.ClientResponse) -> None:
        """A result ends the order, and so does a problem of a run that has ended; after everything else it is sent again."""
        body = await answer.json(content_type=None)
        if answer.status == 200:
            order.end(body["status"], body["execution_id"], price=body["cost"]["price_usd"])
            return
        execution_id, code = body.get("execution_id"), body["code"]
        if code == "conflict" and execution_id is None:
            order.faults.append("its repetition was taken for another request")
            order.refused = code
        elif execution_id is not None:
            order.accepted.add(execution_id)
            await self._look(http, order, execution_id)
        elif not body["retryable"] and code != "internal":
            order.refused = code
        order.trouble[code] += 1

    async def _look(self, http: aiohttp.ClientSession, order: Order, execution_id: str) -> None:
        async with http.get(f"/api/executions/{execution_id}", headers=self._headers(order)) as answer:
            if answer.status == 404:
                order.faults.append("a run that it was told of is not there")
                order.refused = "not_found"
            elif answer.status == 200:
                view = await answer.json()
                if view["status"] in TERMINAL_STATUSES:
                    order.end(view["status"], execution_id, price=view["cost"]["price_usd"])

    # Over the bus -----------------------------------------------------------------------------------------------------

    async def _ask(self, subject: str, body: dict[str, Any], timeout_s: float) -> tuple[str | None, dict[str, Any]]:
        """Error code and answer."""
        message = await self._publisher.request(
            as_publisher(subject, PUBLISHER),
            json.dumps(body).encode(),
            timeout=timeout_s,
            headers={TIMEOUT_HEADER: str(int(timeout_s * 1000))},
        )
        return (message.headers or {}).get(ERROR_CODE_HEADER), json.loads(message.data)

    async def _run(self, order: Order) -> None:
        """Ask and wait; where no answer comes, see how it stands, and send the same again where nobody knows of it."""
        body = self._body(order, execution_id=str(order.id))
        with suppress(nats.errors.Error, TimeoutError):
            code, answer = await self._ask(AS_RUN.subject, body, _PUBLISHER_TRY_S)
            order.trouble[code or "ok"] += 1
            if code is None:
                order.accepted.add(str(order.id))
            if code is None and answer["status"] in TERMINAL_STATUSES:
                order.end(answer["status"], answer["execution_id"], price=answer["cost"]["price_usd"])
                return
            if code == "conflict":
                order.faults.append("its repetition was taken for another request")
                order.refused = code
                return
            if code is not None and answer.get("execution_id") is None:
                return
        with suppress(nats.errors.Error, TimeoutError):
            code, view = await self._ask(AS_GET.subject, {"execution_id": str(order.id)}, 3)
            if code is None and view["status"] in TERMINAL_STATUSES:
                order.end(view["status"], view["execution_id"], price=view["cost"]["price_usd"])

    async def _submit(self, order: Order) -> bool:
        """Hand it over and never come back: what was acknowledged must be done."""
        with suppress(nats.errors.Error, TimeoutError):
            _, answer = await self._ask(AS_SUBMIT.subject, self._body(order, execution_id=str(order.id)), 3)
            if "seq" in answer:
                order.accepted.add(str(order.id))
                return True
        return False


class _View:
    """What one caller has seen of a stream: numbers without gaps, text once, one end."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.execution_id: str | None = None
        self.last = 0
        self.ended = False
        self._text = ""

    async def read(self, answer: aiohttp.ClientResponse, begun: Callable[[str], None] | None = None) -> None:
        async for event in _events(answer):
            if self.ended:
                self._order.faults.append("events after the last one")
            # A snapshot stands for what is missing before it; where a run failed there is nothing to make one of.
            if event.kind not in ("snapshot", "failed") and event.seq != self.last + 1:
                self._order.faults.append(f"event {event.seq} after {self.last}")
            self.last = event.seq
            if event.kind == "started":
                self.execution_id = event.data["execution_id"]
                self._order.accepted.add(event.data["execution_id"])
                if begun is not None:
                    begun(event.data["execution_id"])
            elif event.kind == "text":
                self._text += event.data["text"]
            elif event.kind == "snapshot":
                self._text = event.data["text"]
            elif event.kind in ("completed", "failed"):
                self._end(event)

    def _end(self, event: Event) -> None:
        self.ended = True
        execution_id = event.data["execution_id"]
        if self.execution_id is None:
            self.execution_id = execution_id
        if event.kind == "failed":
            self._order.end("failed", execution_id, code=event.data["code"])
            return
        if self._text != event.data["text"]:
            self._order.faults.append(f"{len(self._text)} characters were shown of {len(event.data['text'])}")
        self._order.end(event.data["status"], execution_id, price=event.data["cost"]["price_usd"])


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for raw in answer.content:
        line = raw.decode().rstrip("\r\n")
        if not line and "data" in fields and "id" in fields:
            yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
        if not line:
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
