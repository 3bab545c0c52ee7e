"""The calls to OpenRouter, and to the sandbox that stands in for it in test mode: one HTTP client for all keys.

It speaks through the `openai` SDK, without its retries and without its objects: what one read from the socket brings is
handed on as it is. A foreign error becomes a fault here and nowhere else, and none of them repeats the key. Leaving the
`async with`, or cancelling the task in any phase, closes the connection at once: that is what stops the billing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import aiohttp
import httpx2
import orjson
from openai import APIConnectionError, AsyncOpenAI, AsyncStream, DefaultAioHttpClient

from contracts.catalog import Timeouts
from contracts.execution import Usage
from contracts.keys import Mode
from services.executor import faults
from services.executor.faults import Fault, Phase, UpstreamFailed
from services.executor.parts import cost_of_usage, count_of, decode_exactly, string_of
from services.runtime.cookies import no_cookies

_CONNECT_TIMEOUT_S = 10.0
_TAIL_S = 5.0
_SETTLE_S = 0.1
_SETTLE_BYTES = 4096
_PIECE_BYTES = 256 * 1024
_MAX_ERROR_BYTES = 256 * 1024
_MAX_CONNECTIONS = 10_000
_KEEPALIVE_S = 15.0
_NETWORK_ERRORS = (httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError)


class Deadlines:
    """How long to wait for the next bytes. Only content moves it on: keep-alive comments do not count as an answer.

    All moments are seconds of `loop.time()`. `end_at_s` is the end of the whole run, when it is not `total_s` from now.
    """

    def __init__(self, timeouts: Timeouts, now_s: float, end_at_s: float | None = None) -> None:
        self._idle_s = timeouts.idle_s
        self._end_at_s = now_s + timeouts.total_s if end_at_s is None else end_at_s
        self._next_at_s = now_s + timeouts.first_token_s
        self._tail_at_s: float | None = None
        self.content_seen = False

    def note_content(self, now_s: float) -> None:
        """Something of the answer arrived: from now on the idle timeout counts."""
        self.content_seen = True
        self._next_at_s = now_s + self._idle_s

    def note_end(self, now_s: float) -> None:
        """The answer is finished or failed and only its usage can follow; that is not waited for long."""
        if self._tail_at_s is None:
            self._tail_at_s = now_s + _TAIL_S

    @property
    def until_s(self) -> float:
        """When to give up waiting for the next bytes."""
        next_at_s = self._next_at_s if self._tail_at_s is None else self._tail_at_s
        return min(next_at_s, self._end_at_s)

    @property
    def in_tail(self) -> bool:
        """Whether giving up is no fault, because the answer itself is there."""
        return self._tail_at_s is not None

    def fault(self) -> Fault:
        """What giving up now means."""
        phase: Phase = "idle" if self.content_seen else "first_token"
        if self._end_at_s <= self._next_at_s:
            phase = "total"
        return faults.timed_out(phase, delivered=self.content_seen)


@dataclass(frozen=True, slots=True)
class Generation:
    """What OpenRouter's accounts say about a call. `cost_usd` None: they do not know either."""

    cost_usd: Decimal | None
    usage: Usage
    served: str | None
    provider: str | None
    finish_reason: str | None
    canceled: bool


class UpstreamCall:
    """An answer that has begun: its status was a success."""

    def __init__(self, response: httpx2.Response, deadlines: Deadlines) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.generation_id = _generation_id(response)
        self._bytes = response.aiter_bytes()
        self._deadlines = deadlines

    async def next(self) -> bytes | None:
        """What the next read brings; None at the end. Raises UpstreamFailed when a deadline passes or the line breaks."""
        until_s = self._deadlines.until_s
        # A read of what is buffered never suspends, so no timer could interrupt an endless flood of comments.
        if asyncio.get_running_loop().time() >= until_s:
            return self._nothing_more()
        try:
            async with asyncio.timeout_at(until_s):
                return await anext(self._bytes)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            return self._nothing_more()
        except _NETWORK_ERRORS:
            fault = faults.dropped(delivered=self._deadlines.content_seen)
            raise UpstreamFailed(fault, self.generation_id) from None

    async def settle(self) -> None:
        """Reads the last bytes after the end mark: only a connection that was read to its end is used again."""
        with suppress(TimeoutError, *_NETWORK_ERRORS):
            async with asyncio.timeout(_SETTLE_S):
                left = _SETTLE_BYTES
                async for piece in self._bytes:
                    left -= len(piece)
                    if left < 0:
                        return

    def _nothing_more(self) -> bytes | None:
        """The end of the answer, where it is known to be whole; a fault otherwise."""
        if self._deadlines.in_tail:
            return None
        raise UpstreamFailed(self._deadlines.fault(), self.generation_id) from None


class Upstream:
    """The client. `openrouter_url` and `sandbox_url` are base addresses including `/api/v1`."""

    def __init__(self, openrouter_url: str, sandbox_url: str | None) -> None:
        self._bases: dict[Mode, str | None] = {"live": openrouter_url.rstrip("/"), "test": sandbox_url}
        self._client = AsyncOpenAI(
            api_key="given-with-each-request",
            base_url=openrouter_url,
            max_retries=0,
            http_client=DefaultAioHttpClient(
                timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
                limits=httpx2.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEPALIVE_S),
                follow_redirects=False,
                cookies=no_cookies(),
                event_hooks={"response": [_refuse_failure]},
            ),
        )
        # The transport below keeps a jar of its own unless it is given a session.
        transport: Any = self._client._client._transport  # noqa: SLF001
        transport.client = lambda: aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_S, ssl=transport.ssl_context
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # The SDK reads these from its environment variables, and they are nobody's business upstream.
        self._client.organization = self._client.project = None

    @asynccontextmanager
    async def open(
        self, mode: Mode, key: str, body: Mapping[str, Any], deadlines: Deadlines, traceparent: str | None = None
    ) -> AsyncIterator[UpstreamCall]:
        """Sends a chat completion request; the call is closed with the block.

        Raises UpstreamFailed: refused by status, unreachable, broken, or nothing within the deadlines.
        """
        content = _encode(body)
        try:
            async with asyncio.timeout_at(deadlines.until_s):
                answer: object = await self._client.post(
                    self._url(mode, "/chat/completions"),
                    cast_to=httpx2.Response,
                    content=content if len(content) <= _PIECE_BYTES else _pieces(content),
                    options={"headers": {**_headers(key, traceparent), "Content-Length": str(len(content))}},
                    stream=True,
                    stream_cls=AsyncStream[Any],
                )
        except TimeoutError:
            raise UpstreamFailed(deadlines.fault()) from None
        except (APIConnectionError, *_NETWORK_ERRORS) as error:
            raise UpstreamFailed(_network_fault(error)) from None
        # The SDK hands the open response itself over, whatever its types say of a stream.
        response = cast("httpx2.Response", answer)
        call = UpstreamCall(response, deadlines)
        try:
            yield call
            await call.settle()
        finally:
            await response.aclose()

    async def lookup_generation(
        self, mode: Mode, key: str, generation_id: str, timeout_s: float = 10.0
    ) -> Generation | None:
        """What a call really cost. None while OpenRouter does not know it (it may never, for free models)."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._client.get(
                    self._url(mode, "/generation"),
                    cast_to=httpx2.Response,
                    options={"headers": _headers(key, None), "params": {"id": generation_id}},
                )
        except TimeoutError:
            raise UpstreamFailed(faults.timed_out("connect")) from None
        except (APIConnectionError, *_NETWORK_ERRORS):
            raise UpstreamFailed(faults.unreachable()) from None
        except UpstreamFailed as failure:
            if failure.fault.upstream_status == 404:
                return None
            raise
        return read_generation(response.content)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    def _url(self, mode: Mode, path: str) -> str:
        base = self._bases[mode]
        if base is None:
            raise UpstreamFailed(faults.no_sandbox())
        return base.rstrip("/") + path


def read_generation(body: bytes) -> Generation | None:
    """The facts of a `GET /generation` answer; None where it is something else."""
    try:
        parsed = decode_exactly(body)
    except ValueError:
        return None
    data = parsed.get("data") if isinstance(parsed, dict) else None
    if not isinstance(data, dict):
        return None
    charged = data.get("total_cost") if data.get("total_cost") is not None else data.get("usage")
    details = {"upstream_inference_cost": data.get("upstream_inference_cost")}
    finish = data.get("native_finish_reason") or data.get("finish_reason")
    return Generation(
        cost_usd=cost_of_usage({"cost": charged, "is_byok": data.get("is_byok"), "cost_details": details}),
        usage=Usage(
            prompt_tokens=_first_count(data, "native_tokens_prompt", "tokens_prompt"),
            completion_tokens=_first_count(data, "native_tokens_completion", "tokens_completion"),
            reasoning_tokens=count_of(data.get("native_tokens_reasoning")),
            cached_tokens=count_of(data.get("native_tokens_cached")),
        ),
        served=string_of(data.get("model")),
        provider=string_of(data.get("provider_name")),
        finish_reason=string_of(finish),
        canceled=data.get("cancelled") is True,
    )


def _first_count(data: Mapping[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := count_of(data.get(name))) is not None), None)


def _headers(key: str, traceparent: str | None) -> dict[str, str]:
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        # A compressed stream arrives in bursts, and costs more to unpack than it saves.
        "Accept-Encoding": "identity",
    }
    return headers if traceparent is None else {**headers, "traceparent": traceparent}


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # an integer beyond 64 bits in the creator's parameters; JSON itself has no such bound
        return json.dumps(body, ensure_ascii=False).encode(errors="replace")


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    """A large body bit by bit: written at once, it would hold up every other call of the process."""
    for start in range(0, len(content), _PIECE_BYTES):
        yield content[start : start + _PIECE_BYTES]


def _generation_id(response: httpx2.Response) -> str | None:
    value = response.headers.get("x-generation-id")
    return value[:200] if value else None


async def _refuse_failure(response: httpx2.Response) -> None:
    """Turns a failure status into a fault, before the SDK would read a body of any size.

    Raised in a hook, so that the HTTP client closes the connection whatever happens meanwhile.
    """
    if response.status_code < 300:
        return
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _MAX_ERROR_BYTES:
            break
    fault = faults.from_response(response.status_code, response.headers, bytes(body))
    raise UpstreamFailed(fault, _generation_id(response))


def _network_fault(error: BaseException) -> Fault:
    """Whether anything was sent. The SDK wraps the transport, which wraps aiohttp, where the difference is still visible."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ConnectionTimeoutError):
            return faults.timed_out("connect")
        if isinstance(cause, aiohttp.ClientConnectorError):
            return faults.unreachable()
        cause = cause.__cause__
    return faults.dropped()
