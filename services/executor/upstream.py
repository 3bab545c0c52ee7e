"""The calls to OpenRouter, and to the sandbox that stands in for it in test mode: one HTTP client for all keys.

Questions about an account go through the `openai` SDK, without its retries. Completions go through aiohttp alone, which
costs a quarter of what the same call costs below the SDK, and what one read from the socket brings is handed on as it is.
A foreign error becomes a fault here and nowhere else, and none of them repeats the key. Leaving the `async with`, or
cancelling the task in any phase, closes the connection at once: that is what stops the billing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import aiohttp
import httpx2
import orjson
from openai import APIConnectionError, AsyncOpenAI

from contracts.catalog import Timeouts
from contracts.errors import ServiceError
from contracts.execution import Usage
from contracts.keys import Mode
from services.executor import faults, refusals
from services.executor.attachments import Attachment, Payload, unreadable
from services.executor.faults import Fault, Phase, UpstreamFailed
from services.executor.parts import cost_of_usage, count_of, decode_exactly, short_name, string_of
from services.runtime.cookies import no_cookies

_CONNECT_TIMEOUT_S = 10.0
_TAIL_S = 5.0
_SETTLE_S = 0.1
_SETTLE_BYTES = 4096
_PIECE_BYTES = 256 * 1024
_MAX_ERROR_BYTES = 256 * 1024
_MAX_CONNECTIONS = 10_000
_KEEPALIVE_S = 15.0


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

    def __init__(self, response: aiohttp.ClientResponse, deadlines: Deadlines) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.generation_id = _generation_id(response.headers)
        self._content = response.content
        self._deadlines = deadlines

    async def next(self) -> bytes | None:
        """What the next read brings; None at the end. Raises UpstreamFailed when a deadline passes or the line breaks."""
        until_s = self._deadlines.until_s
        # A read of what is buffered never suspends, so no timer could interrupt an endless flood of comments.
        if asyncio.get_running_loop().time() >= until_s:
            return self._nothing_more()
        try:
            async with asyncio.timeout_at(until_s):
                return await self._content.readany() or None
        except TimeoutError:
            return self._nothing_more()
        except (aiohttp.ClientError, OSError):
            fault = faults.dropped(delivered=self._deadlines.content_seen)
            raise UpstreamFailed(fault, self.generation_id) from None

    async def settle(self) -> None:
        """Reads the last bytes after the end mark: only a connection that was read to its end is used again."""
        with suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(_SETTLE_S):
                left = _SETTLE_BYTES
                while left >= 0 and (piece := await self._content.readany()):
                    left -= len(piece)

    def _nothing_more(self) -> bytes | None:
        """The end of the answer, where it is known to be whole; a fault otherwise."""
        if self._deadlines.in_tail:
            return None
        raise UpstreamFailed(self._deadlines.fault(), self.generation_id) from None


class Upstream:
    """The client. `openrouter_url` and `sandbox_url` are base addresses including `/api/v1`."""

    def __init__(self, openrouter_url: str, sandbox_url: str | None) -> None:
        self._bases: dict[Mode, str | None] = {"live": openrouter_url.rstrip("/"), "test": sandbox_url}
        self._session: aiohttp.ClientSession | None = None
        self._client = AsyncOpenAI(
            api_key="given-with-each-request",
            base_url=openrouter_url,
            max_retries=0,
            http_client=httpx2.AsyncClient(
                timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
                cookies=no_cookies(),
                event_hooks={"response": [_refuse_failure]},
                trust_env=False,
            ),
        )
        # The SDK reads these from its environment variables, and they are nobody's business upstream.
        self._client.organization = self._client.project = None

    @asynccontextmanager
    async def open(
        self,
        mode: Mode,
        key: str,
        body: Mapping[str, Any],
        deadlines: Deadlines,
        traceparent: str | None = None,
        attachments: Sequence[Attachment] = (),
    ) -> AsyncIterator[UpstreamCall]:
        """Sends a chat completion request; the call is closed with the block. `attachments` are those that it mentions.

        Raises UpstreamFailed: refused by status, unreachable, broken, or nothing within the deadlines.
        """
        content = _encode(body)
        payload = Payload(content, attachments)
        large = len(content) > _PIECE_BYTES
        headers = {**_headers(key, traceparent), "Content-Length": str(len(payload))}
        try:
            async with asyncio.timeout_at(deadlines.until_s):
                response = await self._completions().post(
                    self._url(mode, "/chat/completions"),
                    data=aiter(payload) if attachments else _pieces(content) if large else content,
                    headers=headers,
                    allow_redirects=False,
                )
                if response.status >= 300:
                    try:
                        raise await _failure(response.status, response.headers, response.content.iter_any())
                    finally:
                        response.release()
        except aiohttp.ConnectionTimeoutError:
            raise UpstreamFailed(faults.timed_out("connect")) from None
        except aiohttp.ClientConnectorError:
            raise UpstreamFailed(faults.unreachable()) from None
        except (aiohttp.ClientError, ServiceError):
            raise UpstreamFailed(unreadable() if payload.failed else faults.dropped()) from None
        except TimeoutError:
            raise UpstreamFailed(deadlines.fault()) from None
        except OSError:
            raise UpstreamFailed(faults.dropped()) from None
        try:
            call = UpstreamCall(response, deadlines)
            yield call
            await call.settle()
        finally:
            # Back to the pool where it was read to its end; closed wherever it was not.
            response.release()

    def _completions(self) -> aiohttp.ClientSession:
        """Made at the first call: it belongs to the loop that it is made in."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_S, ssl=httpx2.create_ssl_context()
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "x402jobs", "Accept": "application/json"},
            )
        return self._session

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
        except (APIConnectionError, httpx2.HTTPError, OSError):
            raise UpstreamFailed(faults.unreachable()) from None
        except UpstreamFailed as failure:
            if failure.fault.upstream_status == 404:
                return None
            raise
        return read_generation(response.content)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()
        if self._session is not None:
            await self._session.close()

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


def _generation_id(headers: Mapping[str, str]) -> str | None:
    value = headers.get("x-generation-id")
    return short_name(value) if value else None


async def _failure(status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> UpstreamFailed:
    """What a failure status means. No more of its body is read than an error can take."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > _MAX_ERROR_BYTES:
            break
    return UpstreamFailed(refusals.from_response(status, headers, bytes(body)), _generation_id(headers))


async def _refuse_failure(response: httpx2.Response) -> None:
    """Raised in a hook, before the SDK would read a body of any size."""
    if response.status_code >= 300:
        raise await _failure(response.status_code, response.headers, response.aiter_bytes())
