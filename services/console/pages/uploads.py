"""Files that forms take in, passed on as they come and never held here."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contracts.attachments import Upload
from services.console.forms import refused
from services.console.session import SignedIn

router = APIRouter()


@router.post("/uploads")
async def upload(request: Request, session: SignedIn) -> Response:
    """The body is the file; the answer is what it was found to be, with the address that stands for it in an input."""
    declared = request.headers.get("content-length", "")
    if not declared.isdecimal():
        raise refused("", "Choose a file first.")
    kept = await session.api.upload(request.stream(), Upload, size=int(declared))
    return Response(kept.model_dump_json(), status_code=201, media_type="application/json")
