"""Workflows: those that somebody started, one of them as it goes on, and starting one from its JSON."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Literal
from uuid import UUID, uuid4

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.catalog import ResourcePage
from contracts.execution import ExecutionResult, ExecutionView
from contracts.workflows import StepView, WorkflowPage, WorkflowStatus, WorkflowView
from services.console.api import ApiError, problem_of
from services.console.forms import form_of, refused
from services.console.naming import listings_by_id
from services.console.navigation import Entry
from services.console.session import Session, SignedIn
from services.console.views import go_to, view

router = APIRouter()
PATH = "/workflows"
ENTRY = Entry("Workflows", PATH, "workflows", 60)

_PAGE = 30


class Search(Contract):
    """What the filter holds."""

    status: WorkflowStatus | Literal[""] = ""
    cursor: str = ""


@router.get(PATH)
async def list_workflows(request: Request, session: SignedIn, search: Annotated[Search, Query()]) -> Response:
    """Newest first; the script asks for `results` when the filter changes, and for `more` at the end."""
    page = await session.api.get("/api/workflows", WorkflowPage, {**search.model_dump(), "limit": _PAGE})
    return await view(request, "workflows.html", search=search, page=page)


@router.get(PATH + "/new")
async def new_workflow(request: Request, session: SignedIn) -> Response:
    """A form with an example of two steps, with a resource of one's own where there is one."""
    own = await session.api.get("/api/resources", ResourcePage, {"limit": 1, "status": "published"})
    return await view(request, "workflow_new.html", example=_example(own), once=uuid4().hex)


def _example(own: ResourcePage) -> str:
    resource, name = "owner/slug", "text"
    if own.items:
        resource = f"{own.items[0].owner}/{own.items[0].slug}"
        name = own.items[0].inputs[0].name if own.items[0].inputs else name
    workflow = {
        "input": {"topic": "rain"},
        "steps": [
            {"name": "draft", "resource": resource, "input": {name: "{{input.topic}}"}},
            {"name": "answer", "resource": resource, "input": {name: "An answer to this: {{steps.draft.text}}"}},
        ],
    }
    return orjson.dumps(workflow, option=orjson.OPT_INDENT_2).decode()


@router.post(PATH)
async def start_workflow(request: Request, session: SignedIn) -> Response:
    """Starts what the form describes. Sent twice from one page it is the same workflow, and paid for once."""
    form = await form_of(request)
    try:
        definition = orjson.loads(form["definition"])
    except orjson.JSONDecodeError as error:
        raise refused(
            "definition", f"This is no JSON: line {error.lineno}, column {error.colno} cannot be read."
        ) from None
    if not isinstance(definition, dict):
        raise refused("definition", 'Write an object with `steps`, as in {"steps": […]}.')
    # The key is the page's together with what stands in it: what was changed since is another workflow.
    key = f"{form['once']}-{hashlib.sha256(form['definition'].encode()).hexdigest()[:32]}"
    headers = {"Idempotency-Key": key}
    begun = await session.api.send("POST", "/api/workflows", WorkflowView, body=definition, headers=headers)
    return go_to(request, f"{PATH}/{begun.workflow_id}")


@router.get(PATH + "/{workflow_id}")
async def one_workflow(request: Request, session: SignedIn, workflow_id: UUID) -> Response:
    """Its steps with what they said; the script asks for `state` whenever a step has changed."""
    workflow = await session.api.get(f"/api/workflows/{workflow_id}", WorkflowView)
    results, names = await asyncio.gather(_results(session, workflow), listings_by_id(session, _ids(workflow)))
    return await view(
        request,
        "workflow.html",
        workflow=workflow,
        results=results,
        names={str(listing.id): listing for listing in names.values()},
        problems={step.name: problem_of(step.error) for step in workflow.steps if step.error is not None},
        done=sum(step.status == "succeeded" for step in workflow.steps),
    )


def _ids(workflow: WorkflowView) -> list[UUID]:
    """The resources that are named by their ids, and not as `owner/slug`."""
    return [UUID(step.resource) for step in workflow.steps if "/" not in step.resource]


async def _results(session: Session, workflow: WorkflowView) -> dict[str, ExecutionResult | None]:
    """What each finished step said; None where that is not kept any more."""
    finished = [step for step in workflow.steps if step.status == "succeeded"]
    results = await asyncio.gather(*(_result(session, step) for step in finished))
    return {step.name: result for step, result in zip(finished, results, strict=True)}


async def _result(session: Session, step: StepView) -> ExecutionResult | None:
    if step.result is not None or step.execution_id is None:
        return step.result
    try:
        return (await session.api.get(f"/api/executions/{step.execution_id}", ExecutionView)).result
    except ApiError as error:
        if error.problem.retryable:
            raise
        return None


@router.post(PATH + "/{workflow_id}/cancel")
async def cancel(request: Request, session: SignedIn, workflow_id: UUID) -> Response:
    """Stops the steps that run and skips the others."""
    await session.api.send("POST", f"/api/workflows/{workflow_id}/cancel", WorkflowView)
    return go_to(request, f"{PATH}/{workflow_id}", say="The workflow was stopped. You can resume it.")


@router.post(PATH + "/{workflow_id}/resume")
async def resume(request: Request, session: SignedIn, workflow_id: UUID) -> Response:
    """Runs again what did not succeed."""
    await session.api.send("POST", f"/api/workflows/{workflow_id}/resume", WorkflowView)
    return go_to(request, f"{PATH}/{workflow_id}", say="It goes on. What had succeeded is kept and not paid again.")
