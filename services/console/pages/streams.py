"""What `static/run.js` asks of a run: its events as they come, how it ended in words, and to stop it. And the events of workflows.

A stream says `here` when the service is connected and `away` when it is not: a browser cannot tell that from a run that is over,
and `static/following.js` asks again. The words come from here, so that amounts, durations and problems look
as they do everywhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contracts.execution import ExecutionResult, ExecutionView
from services.console.api import ApiError, Event, Problem
from services.console.session import Session, SignedIn
from services.console.views import view

router = APIRouter()
_HERE = b"event: here\ndata: {}\n\n"
_AWAY = b"event: away\ndata: {}\n\n"
_STREAM_HEADERS = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}

LastEventId = Annotated[int | None, Header()]


@router.get("/executions/{execution_id}/events")
async def events(
    execution_id: UUID, session: SignedIn, after: int | None = None, last_event_id: LastEventId = None
) -> Response:
    """From behind `Last-Event-ID`, or `after`, to the end; 204 when the last one was seen, and the browser stops asking."""
    return await _passed_on(session, f"/api/executions/{execution_id}/events", after, last_event_id)


@router.get("/workflows/{workflow_id}/events")
async def workflow_events(
    workflow_id: UUID, session: SignedIn, after: int | None = None, last_event_id: LastEventId = None
) -> Response:
    """The same of a workflow."""
    return await _passed_on(session, f"/api/workflows/{workflow_id}/events", after, last_event_id)


async def _passed_on(session: Session, path: str, after: int | None, last_event_id: int | None) -> Response:
    seen = after if last_event_id is None else last_event_id
    async with AsyncExitStack() as opening:
        try:
            upstream = await opening.enter_async_context(session.api.follow(path, after=seen))
        except ApiError as error:
            if not error.problem.retryable:
                raise
            return Response(_AWAY, media_type="text/event-stream", headers=_STREAM_HEADERS)
        if upstream.status_code == 204:
            return Response(status_code=204)
        open_upstream = opening.pop_all()

    async def chunks() -> AsyncIterator[bytes]:
        yield _HERE
        # Broken off in the middle of an event, nothing may follow it: the browser drops what is not whole, and asks again.
        with suppress(ApiError):
            async with open_upstream:
                async for chunk in upstream.aiter_raw():
                    yield chunk

    return StreamingResponse(chunks(), media_type="text/event-stream", headers=_STREAM_HEADERS)


@router.get("/executions/{execution_id}/ended")
async def ended(request: Request, execution_id: UUID, session: SignedIn, after: int | None = None) -> Response:
    """How it ended, in words: what it cost, how long it took, or what went wrong. `after` is the last event but one."""
    run, last = await asyncio.gather(
        session.api.get(f"/api/executions/{execution_id}", ExecutionView), _last(session, execution_id, after)
    )
    # What it cost may have become known since it ended.
    result = ExecutionResult.model_validate(last.data) if last.kind == "completed" else None
    problem = Problem.model_validate({**last.data, "own": run.owner == session.user}) if last.kind == "failed" else None
    return await view(request, "run_ended.html", run=run, result=result, problem=problem)


async def _last(session: Session, execution_id: UUID, after: int | None) -> Event:
    async for event in session.api.events(str(execution_id), after=after):
        last = event
    return last


@router.post("/executions/{execution_id}/cancel")
async def cancel(_request: Request, execution_id: UUID, session: SignedIn) -> Response:
    """The stop button: the end arrives as the last event, like any other end."""
    await session.api.send("POST", f"/api/executions/{execution_id}/cancel", ExecutionView)
    return Response(status_code=204)
