"""The console's only way to the system: the HTTP interface, with the token of whoever is signed in.

Answers come back as the models of `contracts`, errors as `ApiError` with the problem that the gateway sent. Nothing here
knows a page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.base import Contract
from contracts.errors import ErrorBody, ErrorCode, FieldProblem
from services.runtime.trace import traceparent

_TIMEOUT = httpx2.Timeout(30, connect=5)
_NO_READ_TIMEOUT = httpx2.Timeout(30, connect=5, read=60)
_UPLOAD_TIMEOUT = httpx2.Timeout(150, connect=5)
_PROBLEM = "application/problem+json"
_LAST_EVENTS = frozenset({"completed", "failed"})
_MAY_HAVE_BEGUN = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.INTERNAL})

Answer = TypeVar("Answer", bound=BaseModel)
Params = Mapping[str, Any]


class Problem(Contract):
    """What the gateway says about a request that failed (RFC 9457), as far as pages use it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    title: str
    detail: str
    code: ErrorCode
    status: int
    retryable: bool = False
    retry_after_s: float | None = None
    errors: list[FieldProblem] = []
    action_url: str | None = None
    execution_id: str | None = None
    truncated: bool = False
    own: bool = Field(default=True, description="Whether the key that it may be about is that of who reads it.")
    unanswered: bool = Field(default=False, description="Whether what was sent may have been done all the same.")
    note: str | None = Field(default=None, description="What it means for who sent this.")


def problem_of(error: ErrorBody) -> Problem:
    """A failure that stands in what the gateway says of a run, to be shown as any other problem."""
    return Problem(
        title="It did not work",
        detail=error.message,
        code=error.code,
        status=200,
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
        errors=error.fields,
        action_url=error.action_url,
        execution_id=str(error.execution_id) if error.execution_id else None,
        truncated=error.truncated,
    )


UNREACHABLE = Problem(
    title="The service cannot be reached",
    detail="The console is up, and the service behind it does not answer. Nothing is lost: try again in a moment.",
    code=ErrorCode.UNAVAILABLE,
    status=503,
    retryable=True,
)
_NO_ANSWER = "The connection broke before the service had answered."
UNANSWERED = Problem(
    title="No answer came",
    detail=f"{_NO_ANSWER} It may have been done all the same: look before you do it once more. What you typed stays here.",
    code=ErrorCode.UNAVAILABLE,
    status=503,
    unanswered=True,
)
_NOTHING_RAN = "Nothing ran, and nothing is charged."
_PERHAPS_BEGUN = (
    "Whether the run has begun is not known. Send it once more as it is: it is the same run then, paid for once."
)
UNREADABLE = Problem(
    title="Something went wrong on our side",
    detail="The service gave an answer that the console cannot read; try again, and tell us when it stays so.",
    code=ErrorCode.INTERNAL,
    status=502,
)


class ApiError(Exception):
    """A request that failed, with the problem to show."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


@dataclass(frozen=True)
class Event:
    """One event of a run: its number, its kind (`started`, `text`, …) and its data."""

    seq: int
    kind: str
    data: dict[str, Any]


class Gateway:
    """The connection to the gateways, one for the whole process. `as_user` gives what pages work with."""

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        self._http = httpx2.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits, follow_redirects=False)

    def as_user(self, token: str | None) -> Api:
        """The interface as the bearer of this token sees it; without one only what is public."""
        return Api(self._http, token)

    async def ping(self) -> None:
        """Returns when a gateway answers."""
        (await self._http.get("/livez")).raise_for_status()

    async def close(self) -> None:
        await self._http.aclose()


class Api:
    """Requests of one user. Every method raises `ApiError`."""

    def __init__(self, http: httpx2.AsyncClient, token: str | None) -> None:
        self._http = http
        self._token = token

    async def get(self, path: str, answer: type[Answer], params: Params | None = None) -> Answer:
        """The answer of a GET. Parameters that are None or empty are left out."""
        return await self.send("GET", path, answer, params=params)

    async def send(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        body: BaseModel | Mapping[str, Any] | None = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer of any request with a JSON body, or none."""
        response = await self._answered(
            method, path, content=_encoded(body), params=_given(params), headers=self._headers(headers)
        )
        return _read(response, answer)

    async def delete(self, path: str) -> None:
        """A DELETE that answers nothing."""
        await self._answered("DELETE", path, headers=self._headers(None))

    async def start_run(self, path: str, body: Mapping[str, Any], *, key: str | None = None) -> str:
        """Starts a run that goes on whoever watches; its execution id. `path` is `/api/execute` or `/api/resources/preview`.

        What is refused before the run exists is raised. The same `key` with the same body is the same run.
        """
        headers = self._headers({"Idempotency-Key": key or uuid4().hex})
        wanted = {**body, "stream": True, "on_disconnect": "continue"}
        try:
            async with self._stream("POST", path, headers=headers, content=orjson.dumps(wanted)) as response:
                async for event in _events(response):
                    return str(event.data["execution_id"])
        except ApiError as error:
            raise ApiError(_of_run(error.problem)) from None
        raise ApiError(UNREADABLE)

    async def events(self, execution_id: str, *, after: int | None = None) -> AsyncIterator[Event]:
        """The events of a run from behind number `after` to its last one; goes on by itself where the connection breaks."""
        seen, broken = after, 0
        while True:
            try:
                async with self.follow(f"/api/executions/{execution_id}/events", after=seen) as response:
                    async for event in _events(response):
                        seen, broken = event.seq, 0
                        yield event
                        if event.kind in _LAST_EVENTS:
                            return
                    if response.status_code == 204:
                        return
            except ApiError as error:
                broken += 1
                if not error.problem.retryable or broken > 3:
                    raise

    @asynccontextmanager
    async def follow(self, path: str, *, after: int | None = None) -> AsyncIterator[httpx2.Response]:
        """The open response of the events of a run or a workflow, to be passed on to a browser as it comes."""
        headers = self._headers({} if after is None else {"Last-Event-ID": str(after)})
        async with self._stream("GET", path, headers=headers) as response:
            yield response

    async def upload(self, content: AsyncIterator[bytes], answer: type[Answer], *, size: int) -> Answer:
        """Hands a file over as input of a run; its content says what it is. `size` in bytes."""
        headers = self._headers({"Content-Type": "application/octet-stream", "Content-Length": str(size)})
        response = await self._answered("POST", "/media", content=content, headers=headers, timeout=_UPLOAD_TIMEOUT)
        return _read(response, answer)

    async def _answered(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            response = await self._http.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise ApiError(_broken(method, error)) from None
        if response.is_error:
            raise ApiError(_problem(response))
        return response

    @asynccontextmanager
    async def _stream(self, method: str, path: str, **request: Any) -> AsyncIterator[httpx2.Response]:
        try:
            async with self._http.stream(method, path, timeout=_NO_READ_TIMEOUT, **request) as response:
                if response.is_error:
                    await response.aread()
                    raise ApiError(_problem(response))
                yield response
        except httpx2.HTTPError as error:
            raise ApiError(_broken(method, error)) from None

    def _headers(self, more: Mapping[str, str] | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json", **(more or {})}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        if (trace := traceparent.get()) is not None:
            headers["traceparent"] = trace
        return headers


def _encoded(body: BaseModel | Mapping[str, Any] | None) -> bytes | None:
    if isinstance(body, BaseModel):
        return body.model_dump_json(exclude_unset=True).encode()
    return None if body is None else orjson.dumps(body, default=str)


def _given(params: Params | None) -> dict[str, str]:
    named = params or {}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in named.items()
        if value is not None and value != ""
    }


def _read(response: httpx2.Response, answer: type[Answer]) -> Answer:
    try:
        return answer.model_validate_json(response.content)
    except ValidationError:
        raise ApiError(UNREADABLE) from None


def _broken(method: str, error: httpx2.HTTPError) -> Problem:
    """Whether what was sent can have been done: only where there was a connection."""
    unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    return UNREACHABLE if unsent or method == "GET" else UNANSWERED


def _of_run(problem: Problem) -> Problem:
    """A problem before anything of a run was heard. A service that is away may have begun it."""
    if problem is UNREACHABLE or problem.code not in _MAY_HAVE_BEGUN:
        return problem.model_copy(update={"note": _NOTHING_RAN})
    known = {"detail": _NO_ANSWER} if problem is UNANSWERED else {}
    return problem.model_copy(update={**known, "unanswered": True, "note": _PERHAPS_BEGUN})


def _problem(response: httpx2.Response) -> Problem:
    if response.headers.get("content-type", "").startswith(_PROBLEM):
        try:
            return Problem.model_validate_json(response.content)
        except ValidationError:
            return UNREADABLE
    return UNREACHABLE if response.is_server_error else UNREADABLE


async def _events(response: httpx2.Response) -> AsyncIterator[Event]:
    seq, kind, data = 0, "message", ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        match name:
            case "id":
                seq = int(value)
            case "event":
                kind = value.strip()
            case "data":
                data += value
            case "" if not line and data:
                yield Event(seq, kind, orjson.loads(data))
                kind, data = "message", ""
