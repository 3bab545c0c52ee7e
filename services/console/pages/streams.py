"""The events of a run, passed on as they come, for the `EventSource` of a page: it reconnects by itself and says what it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contracts.execution import ExecutionView
from services.console.session import SignedIn

router = APIRouter()


@router.get("/executions/{execution_id}/events")
async def events(
    execution_id: UUID, session: SignedIn, last_event_id: Annotated[int | None, Header()] = None
) -> Response:
    """From behind `Last-Event-ID` to the end; 204 when the last one was seen, and the browser stops asking."""
    async with AsyncExitStack() as opening:
        upstream = await opening.enter_async_context(session.api.follow(str(execution_id), after=last_event_id))
        if upstream.status_code == 204:
            return Response(status_code=204)
        open_upstream = opening.pop_all()

    async def chunks() -> AsyncIterator[bytes]:
        async with open_upstream:
            async for chunk in upstream.aiter_raw():
                yield chunk

    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return StreamingResponse(chunks(), media_type="text/event-stream", headers=headers)


@router.post("/executions/{execution_id}/cancel")
async def cancel(_request: Request, execution_id: UUID, session: SignedIn) -> Response:
    """The stop button: the end arrives as the last event, like any other end."""
    await session.api.send("POST", f"/api/executions/{execution_id}/cancel", ExecutionView)
    return Response(status_code=204)
