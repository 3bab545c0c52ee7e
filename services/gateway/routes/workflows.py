"""Workflows: steps that feed each other, started, followed, canceled and resumed."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Body, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract, new_execution_id
from contracts.subjects import WORKFLOWS_CANCEL, WORKFLOWS_GET, WORKFLOWS_LIST, WORKFLOWS_RESUME, WORKFLOWS_RUN
from contracts.workflows import (
    ENDED_WORKFLOW,
    GetWorkflow,
    ListWorkflows,
    RunWorkflow,
    WorkflowPage,
    WorkflowRequest,
    WorkflowStatus,
    WorkflowView,
)
from services.gateway import examples, sse
from services.gateway.auth import Identity
from services.gateway.documentation import answers
from services.gateway.problems import documented
from services.gateway.routes.executions import (
    IdempotencyKey,
    LastEventId,
    LastEventQuery,
    refuse_without_bus,
    streamed,
)
from services.gateway.routing import (
    SignedIn,
    SignedInRoute,
    caller_of,
    forward,
    gateway_of,
    refuse_unknown_fields,
)
from services.gateway.watch import Client
from services.runtime.bus import encode
from services.runtime.edge import note

router = APIRouter(prefix="/api/workflows", tags=["workflows"], route_class=SignedInRoute)

WorkflowId = Annotated[UUID, Path(alias="id", examples=[examples.WORKFLOW_ID])]

_ACCEPTED = "Accepted durably; `Location` is where to look at it."


@router.post(
    "",
    status_code=202,
    response_model=WorkflowView,
    responses=answers(examples.WORKFLOW, _ACCEPTED, 400, 401, 404, 409, 413, 422, 429, status=202),
    summary="Start a workflow",
)
async def start_workflow(
    request: Request,
    user: SignedIn,
    body: Annotated[WorkflowRequest, Body(openapi_examples={"two steps": {"value": examples.WORKFLOW_REQUEST}})],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Each step is an ordinary run with a price and a receipt; steps that do not wait for each other run side by side.

    Files are best uploaded first (`POST /media`) and given by their `url`; small ones may be data URLs.

    What can be known to be wrong is refused before the first step is paid: names, references, inputs, access, prices. It
    goes on without you; follow its events, or ask for it.
    """
    await refuse_unknown_fields(request, body)
    gateway = gateway_of(request)
    refuse_without_bus(gateway)
    caller = caller_of(user)
    for values in (body.input, *(step.input for step in body.steps)):
        await gateway.uploads.take_out(caller, values, {})
    message = RunWorkflow.model_construct(
        **dict(body), workflow_id=new_execution_id(), caller=caller, idempotency_key=idempotency_key
    )
    return _accepted(request, await gateway.bus.call_raw(WORKFLOWS_RUN, encode(message)))


class WorkflowQuery(Contract):
    """Which workflows to list."""

    status: WorkflowStatus | None = None
    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


@router.get(
    "",
    response_model=WorkflowPage,
    responses=answers(examples.WORKFLOW_PAGE, "A page of your workflows, newest first.", 401, 422),
    summary="List workflows",
)
async def list_workflows(request: Request, user: SignedIn, query: Annotated[WorkflowQuery, Query()]) -> Response:
    """Those that you started, with the status of every step."""
    message = ListWorkflows.model_construct(caller=caller_of(user), **dict(query))
    return await forward(request, WORKFLOWS_LIST, message)


@router.get(
    "/{id}",
    response_model=WorkflowView,
    responses=answers(examples.WORKFLOW, "The workflow as it is now.", 401, 404, 422),
    summary="See a workflow",
)
async def get_workflow(request: Request, user: SignedIn, workflow_id: WorkflowId) -> Response:
    """With every run of every step, what all of them cost together, and the results of the steps that nothing depends on.

    What any other step said is at `GET /api/executions/{execution_id}`.
    """
    return await forward(request, WORKFLOWS_GET, _ref(request, user, workflow_id))


@router.post(
    "/{id}/cancel",
    response_model=WorkflowView,
    responses=answers(examples.WORKFLOW, "The workflow; one that already ended stays as it ended.", 401, 404, 422),
    summary="Cancel a workflow",
)
async def cancel_workflow(request: Request, user: SignedIn, workflow_id: WorkflowId) -> Response:
    """Cancels the steps that run and skips the others. It can be resumed."""
    return await forward(request, WORKFLOWS_CANCEL, _ref(request, user, workflow_id))


@router.post(
    "/{id}/resume",
    status_code=202,
    response_model=WorkflowView,
    responses=answers(examples.WORKFLOW, _ACCEPTED, 401, 404, 409, 422, status=202),
    summary="Resume a workflow",
)
async def resume_workflow(request: Request, user: SignedIn, workflow_id: WorkflowId) -> Response:
    """Runs again what failed, was canceled or skipped. What succeeded is kept and not paid again.

    409 when nothing is left to do, or when what earlier steps said is not kept any more.
    """
    message = _ref(request, user, workflow_id)
    return _accepted(request, await gateway_of(request).bus.call_raw(WORKFLOWS_RESUME, encode(message)))


@router.get(
    "/{id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "The events of the workflow from behind `Last-Event-ID` to its end: `step` for every change of a "
            "step, `snapshot` (the whole, where events are missing), then exactly one `completed` (the workflow; also when "
            "it was canceled) or `failed` (a Problem). After a resume the numbers go on.",
            "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}, "example": examples.WORKFLOW_EVENTS}},
        },
        204: {"description": "You have seen the last event; a browser stops asking."},
        **documented([401, 404, 422, 500, 503, 504]),
    },
    summary="Follow a workflow",
)
async def follow_workflow(
    request: Request,
    user: SignedIn,
    workflow_id: WorkflowId,
    last_event_header: LastEventId = None,
    last_event_id: LastEventQuery = None,
) -> Response:
    """On any gateway; leaving never cancels it. What a step says while it runs is at `/api/executions/{id}/events`."""
    gateway, ref = gateway_of(request), _ref(request, user, workflow_id)
    view = await gateway.bus.call(WORKFLOWS_GET, ref)
    ended = view.status in ENDED_WORKFLOW
    after = sse.parse_event_id(last_event_header or last_event_id)
    if ended and after >= view.last_seq:
        return Response(status_code=204)
    client = Client(request.receive)
    chunks = gateway.runs.view_workflow(ref, client, after=after, begun_seq=view.begun_seq, ended=ended)
    return await streamed(client, chunks)


def _accepted(request: Request, view: bytes) -> Response:
    workflow_id = orjson.loads(view)["workflow_id"]
    note(request, workflow_id=workflow_id)
    headers = {"Location": f"/api/workflows/{workflow_id}"}
    return Response(view, status_code=202, headers=headers, media_type="application/json")


def _ref(request: Request, user: Identity, workflow_id: UUID) -> GetWorkflow:
    note(request, workflow_id=str(workflow_id))
    return GetWorkflow.model_construct(workflow_id=workflow_id, caller=caller_of(user))
