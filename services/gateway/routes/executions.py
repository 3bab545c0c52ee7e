"""Running resources and following runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Body, Header, Path, Query
from pydantic import ConfigDict, Field, JsonValue, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from contracts.base import Contract, new_execution_id
from contracts.catalog import MAX_INPUT_BYTES, ResourceDraft
from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.execution import (
    TERMINAL_STATUSES,
    Execute,
    ExecutionPage,
    ExecutionResult,
    ExecutionStatus,
    ExecutionView,
    GetExecution,
    ListExecutions,
)
from contracts.money import Price
from contracts.subjects import EXECUTION_CANCEL, EXECUTION_ENQUEUE, EXECUTION_GET, EXECUTION_LIST
from services.gateway import examples, sse
from services.gateway.documentation import answers, run_answers
from services.gateway.problems import documented, too_large
from services.gateway.routing import (
    MAX_BODY_BYTES,
    Gateway,
    Handler,
    JsonRequest,
    SignedIn,
    SignedInRoute,
    caller_of,
    forward,
    gateway_of,
    identity_of,
    invalid_request,
    read_body,
    refuse_unknown_fields,
)
from services.gateway.runs import ClientGoneError
from services.gateway.uploads import MAX_RUN_BODY_BYTES, cut_data_urls, within_time
from services.gateway.watch import Client
from services.runtime.bus import encode
from services.runtime.edge import note

_MAX_KEY_CHARS = 200


class RunRoute(SignedInRoute):
    """The hot path: its one body and two headers are read here, which saves a third of the time that FastAPI takes.

    The endpoint's signature documents them, and is called with the same arguments. Files are taken out of the body.
    """

    async def read(self, request: Request) -> Request:
        return request

    def inner_handler(self) -> Handler:
        """As FastAPI would, for `(request, user, body, idempotency_key, prefer)`."""
        assert self.body_field is not None
        model: type[RunOptions] = self.body_field.field_info.annotation  # type: ignore[assignment]
        endpoint = self.endpoint

        async def run(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            if key is not None and not 0 < len(key) <= _MAX_KEY_CHARS:
                raise invalid("Idempotency-Key", f"An Idempotency-Key has 1 to {_MAX_KEY_CHARS} characters.")
            request, body = await _read(request, model)
            response: Response = await endpoint(
                request, identity_of(request), body, idempotency_key=key, prefer=request.headers.get("prefer")
            )
            return response

        return run


async def _read(request: Request, model: type[RunOptions]) -> tuple[Request, RunOptions]:
    """The request with its JSON, and its body in which every file is a path of ours."""
    uploads = gateway_of(request).uploads
    caller = caller_of(identity_of(request))
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    if not MAX_BODY_BYTES < size <= MAX_RUN_BODY_BYTES:
        small = JsonRequest(request, await read_body(request))
        options = _options(model, await small.json())
        await uploads.take_out(caller, options.input, {})
        return small, options
    async with uploads.room(size):
        body = cut_data_urls(await within_time(_read_large(request, size)))
        if len(body.json) > MAX_BODY_BYTES:
            raise too_large("The body is too large; send at most 2 MiB of JSON beside the files in it.")
        large = JsonRequest(request, body.json)
        options = _options(model, await large.json())
        await uploads.take_out(caller, options.input, body.cut)
    return large, options


async def _read_large(request: Request, size: int) -> bytearray:
    body = bytearray(size)
    done = 0
    async for chunk in request.stream():
        body[done : done + len(chunk)] = chunk
        done += len(chunk)
    return body


def _options(model: type[RunOptions], values: Any) -> RunOptions:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


router = APIRouter(tags=["execution"], route_class=SignedInRoute)
hot = APIRouter(tags=["execution"], route_class=RunRoute)
preview = APIRouter(tags=["resources"], route_class=RunRoute)

OnDisconnect = Literal["cancel", "continue"]


class RunOptions(Contract):
    """How to run, whatever is run."""

    input: dict[str, JsonValue] = Field(
        default={},
        description="One value per declared input; 1 MiB of JSON at most. An image, file or audio is the `url` of an upload or "
        "of a generated file, or a base64 data URL.",
    )
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    on_disconnect: OnDisconnect | None = Field(
        default=None,
        description="What happens when you close the connection: `cancel` stops the run, `continue` lets it finish and "
        "keeps the result. `cancel` unless given; with an Idempotency-Key `continue`.",
    )
    max_price_usd: Price | None = Field(
        default=None, description="Refuse with `conflict` when the run could be charged more."
    )


class ExecuteBody(RunOptions):
    """A run of a resource."""

    model_config = ConfigDict(extra="forbid")

    resource: str = Field(min_length=1, max_length=300, description="Its id, or `owner/slug`.")
    expected_version: int | None = Field(
        default=None, description="Refuse with `conflict` when the resource has changed since this version."
    )


class PreviewBody(RunOptions, ResourceDraft):
    """A run of a resource that you have not saved."""


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=_MAX_KEY_CHARS,
        description="The same key and body give the same run for 24 hours, billed once; another body is a `conflict`.",
    ),
]
Prefer = Annotated[str | None, Header(description="`respond-async`: answer 202 at once; follow the run at `Location`.")]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=40, description="The number of the last event you have.")
]
LastEventQuery = Annotated[
    str | None, Query(max_length=40, description="The same, for clients that cannot set headers.")
]
RunId = Annotated[UUID, Path(alias="id", examples=[examples.EXECUTION_ID])]


class EventStream(Response):
    """Server-sent events as they come. Its headers leave together with the first of them."""

    def __init__(self, first: bytes, chunks: AsyncGenerator[bytes, None], client: Client) -> None:
        super().__init__(headers=sse.HEADERS, media_type=sse.MEDIA_TYPE)
        # It has no length: the end of the run is the end of the response.
        del self.headers["content-length"]
        self._first = first
        self._chunks = chunks
        self._client = client

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        with self._client:
            async with aclosing(self._chunks) as chunks:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": self._first, "more_body": True})
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def streamed(client: Client, chunks: AsyncGenerator[bytes, None]) -> Response:
    """The stream, once its first chunk is there: until then an error is still an HTTP status."""
    client.start()
    try:
        first = await anext(chunks)
    except StopAsyncIteration:
        client.stop()
        raise ClientGoneError from None
    except BaseException:
        client.stop()
        raise
    return EventStream(first, chunks, client)


def _prefers_async(prefer: str | None) -> bool:
    return prefer is not None and any(part.strip().lower() == "respond-async" for part in prefer.split(","))


def _check_size(options: RunOptions, request: Request) -> None:
    """413 for an input over the limit; a small body cannot hold one, so it is not measured."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) <= MAX_INPUT_BYTES:
        return
    if len(orjson.dumps(options.input)) > MAX_INPUT_BYTES:
        raise too_large("The input is too large; send at most 1 MiB of JSON.")


def refuse_without_bus(gateway: Gateway) -> None:
    """The client of the bus would keep a request until it is back: refuse, do not queue."""
    if not gateway.bus.connected:
        raise ServiceError(
            ErrorCode.UNAVAILABLE,
            "The message bus cannot be reached at the moment; try again shortly.",
            retry_after_s=1,
        )


async def _run(request: Request, execute: Execute, options: RunOptions, prefer: str | None) -> Response:
    gateway = gateway_of(request)
    note(request, execution_id=str(execute.execution_id))
    refuse_without_bus(gateway)
    if _prefers_async(prefer):
        accepted = await gateway.bus.call_raw(EXECUTION_ENQUEUE, encode(execute))
        execution_id = orjson.loads(accepted)["execution_id"]
        headers = {"Location": f"/api/executions/{execution_id}", "Preference-Applied": "respond-async"}
        return Response(accepted, status_code=202, headers=headers, media_type="application/json")
    default = "cancel" if execute.idempotency_key is None else "continue"
    cancels = (options.on_disconnect or default) == "cancel"
    client = Client(request.receive)
    if options.stream:
        return await streamed(client, gateway.runs.stream(execute, client, cancels=cancels))
    with client:
        result = await gateway.runs.plain(execute, client, cancels=cancels)
    return Response(result, media_type="application/json")


@hot.post("/api/execute", response_model=ExecutionResult, responses=run_answers(), summary="Execute a resource")
async def execute_resource(
    request: Request,
    user: SignedIn,
    body: Annotated[
        ExecuteBody,
        Body(
            openapi_examples={
                "plain": {"value": examples.EXECUTE},
                "streamed": {"value": examples.EXECUTE_STREAMED},
            }
        ),
    ],
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Runs a published resource, or one of yours, and answers with its result, its events, or at once.

    A run that fails answers with the problem and its status; a stream that has begun ends with a `failed` event.
    """
    _check_size(body, request)
    execute = Execute.model_construct(
        execution_id=new_execution_id(),
        resource=body.resource,
        input=body.input,
        idempotency_key=idempotency_key,
        max_price_usd=body.max_price_usd,
        expected_version=body.expected_version,
        caller=caller_of(user),
    )
    return await _run(request, execute, body, prefer)


@preview.post(
    "/api/resources/preview",
    response_model=ExecutionResult,
    responses=run_answers(),
    summary="Preview an unsaved resource",
)
async def preview_resource(
    request: Request,
    user: SignedIn,
    body: Annotated[PreviewBody, Body(openapi_examples={"haiku": {"value": examples.PREVIEW}})],
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """A real run with your key: the real answer, the real cost, and what the price would have earned. Saves no resource."""
    await refuse_unknown_fields(request, body)
    _check_size(body, request)
    execute = Execute.model_construct(
        execution_id=new_execution_id(),
        resource=None,
        draft=body,
        input=body.input,
        idempotency_key=idempotency_key,
        max_price_usd=body.max_price_usd,
        caller=caller_of(user),
    )
    return await _run(request, execute, body, prefer)


class ExecutionQuery(Contract):
    """Which runs to list."""

    role: Literal["caller", "owner"] = Field(default="caller", description="Runs you made, or runs of your resources.")
    resource_id: UUID | None = None
    status: ExecutionStatus | None = None
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


@router.get(
    "/api/executions",
    response_model=ExecutionPage,
    responses=answers(examples.EXECUTION_PAGE, "A page of runs, newest first.", 401, 422),
    summary="List runs",
)
async def list_executions(request: Request, user: SignedIn, query: Annotated[ExecutionQuery, Query()]) -> Response:
    """As `caller`, with outputs and price; as `owner`, with cost and receipt and without anybody else's outputs."""
    message = ListExecutions.model_construct(caller=caller_of(user), **dict(query))
    return await forward(request, EXECUTION_LIST, message)


@router.get(
    "/api/executions/{id}",
    response_model=ExecutionView,
    responses=answers(examples.EXECUTION, "The run as it is now.", 401, 404, 422),
    summary="See a run",
)
async def get_execution(request: Request, user: SignedIn, execution_id: RunId) -> Response:
    """For whoever made it, and for the creator of its resource; results are kept for a day, receipts for ever."""
    note(request, execution_id=str(execution_id))
    return await forward(request, EXECUTION_GET, _ref(user.user, execution_id))


@router.post(
    "/api/executions/{id}/cancel",
    response_model=ExecutionView,
    responses=answers(examples.EXECUTION, "The run; one that already ended stays as it ended.", 401, 404, 422),
    summary="Cancel a run",
)
async def cancel_execution(request: Request, user: SignedIn, execution_id: RunId) -> Response:
    """Closes the call to the model within a second. What it cost until then is looked up."""
    note(request, execution_id=str(execution_id))
    return await forward(request, EXECUTION_CANCEL, _ref(user.user, execution_id))


@router.get(
    "/api/executions/{id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "The events of the run from behind `Last-Event-ID` to its end.",
            "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}, "example": examples.EVENTS}},
        },
        204: {"description": "You have seen the last event; a browser stops asking."},
        **documented([401, 404, 422, 500, 503, 504]),
    },
    summary="Follow a run",
)
async def follow_execution(
    request: Request,
    user: SignedIn,
    execution_id: RunId,
    last_event_header: LastEventId = None,
    last_event_id: LastEventQuery = None,
) -> Response:
    """Goes on where a stream broke, on any gateway; leaving never cancels the run.

    Where events are no longer kept, one `snapshot` replaces all that you have, then comes the last event.
    """
    note(request, execution_id=str(execution_id))
    gateway, ref = gateway_of(request), _ref(user.user, execution_id)
    view = await gateway.bus.call(EXECUTION_GET, ref)
    if view.caller != ref.caller:
        # The creator may see what a run cost, and nothing of what it says.
        raise ServiceError(ErrorCode.NOT_FOUND, "There is no such run, or you did not make it.")
    ended = view.status in TERMINAL_STATUSES
    after = sse.parse_event_id(last_event_header or last_event_id)
    if ended and view.last_seq is not None and after >= view.last_seq:
        return Response(status_code=204)
    client = Client(request.receive)
    return await streamed(client, gateway.runs.view(ref, client, after=after, ended=ended))


def _ref(user: str, execution_id: UUID) -> GetExecution:
    return GetExecution.model_validate({"execution_id": execution_id, "caller": {"kind": "user", "id": user}})
