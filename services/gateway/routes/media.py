"""Files: generated ones, which are public, unguessable and immutable, and those that callers send, which are their owner's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contracts.attachments import Upload
from contracts.errors import invalid
from contracts.media import StoredMedia, is_input_name, is_media_name, owner_of
from services.gateway import examples
from services.gateway.documentation import answers
from services.gateway.problems import documented, unsatisfiable
from services.gateway.ranges import (
    ByteRange,
    UnsatisfiableRangeError,
    matches_etag,
    parse_range,
    range_still_holds,
)
from services.gateway.routing import PublicRoute, SignedIn, SignedInRoute, caller_of, gateway_of
from services.runtime.bus import encode
from services.runtime.files import gone

router = APIRouter(tags=["media"], route_class=PublicRoute)
uploads = APIRouter(tags=["media"], route_class=SignedInRoute)

_BINARY = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_ACTIVE_IMAGES = frozenset({"image/svg+xml"})


def _is_shown(mime_type: str) -> bool:
    """Whether a browser may show it in place. What can hold scripts is downloaded: it would run as this site."""
    return mime_type.partition("/")[0] in {"image", "audio", "video"} and mime_type not in _ACTIVE_IMAGES


def _headers(name: str, media: StoredMedia, etag: str) -> dict[str, str]:
    return {
        "Content-Type": media.mime_type,
        "ETag": etag,
        # The name depends on the content, so it never changes; an input is to be asked for each time, with the owner's token.
        "Cache-Control": "private, no-cache" if is_input_name(name) else "public, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Content-Disposition": "inline" if _is_shown(media.mime_type) else f'attachment; filename="{name}"',
    }


def _requested_range(request: Request, etag: str, size: int) -> ByteRange | None:
    header = request.headers.get("range")
    if not range_still_holds(request.headers.get("if-range"), etag):
        return None
    try:
        return parse_range(header, size)
    except UnsatisfiableRangeError:
        raise unsatisfiable(size) from None


@router.get(
    "/media/{name}",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": _BINARY},
        206: {"description": "The range of the file that `Range` asks for.", "content": _BINARY},
        304: {"description": "You have it already (`If-None-Match`)."},
        **documented([401, 404, 416, 500, 503]),
    },
    summary="Get a file",
)
@router.head("/media/{name}", include_in_schema=False)
async def get_media(
    request: Request, name: Annotated[str, Path(description="As it stands in a result's `url`.")]
) -> Response:
    """Images, audio, video and other files that models made. They never change, so cache them for ever.

    What you have sent yourself is there for you alone: send your token.
    """
    media = await _find(request, name)
    etag = f'"{name.partition(".")[0]}"'
    headers = _headers(name, media, etag)
    if matches_etag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    wanted = _requested_range(request, etag, media.bytes)
    status = 200 if wanted is None else 206
    if wanted is not None:
        headers["Content-Range"] = f"bytes {wanted.first}-{wanted.last}/{media.bytes}"
    wanted = wanted or ByteRange(0, media.bytes - 1)
    headers["Content-Length"] = str(wanted.length)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    content = gateway_of(request).files.read(name, wanted.first, wanted.last)
    return StreamingResponse(content, status_code=status, headers=headers)


async def _find(request: Request, name: str) -> StoredMedia:
    """What is stored, for whoever may see it. Raises UNAUTHENTICATED for an input without a token, else NOT_FOUND."""
    if not is_media_name(name):
        raise gone()
    gateway = gateway_of(request)
    owner = None
    if is_input_name(name):
        identity = await gateway.verifier.identify(request.headers.get("authorization"))
        owner = owner_of("user", identity.user)
    media = await gateway.files.find(name)
    if media is None or media.owner != owner:
        raise gone()
    return media


@uploads.post(
    "/media",
    status_code=201,
    response_model=Upload,
    responses=answers(
        examples.UPLOAD, "It is kept; give `url` as the value of an input.", 401, 413, 422, 429, status=201
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "examples": {"file": {"summary": "The bytes of the file, as they are."}},
                }
            },
        }
    },
    summary="Upload a file for a run",
)
async def upload_media(request: Request, user: SignedIn) -> Response:
    """The body is the file: PNG, JPEG, WebP, GIF, PDF, WAV, MP3, OGG, FLAC, AAC or M4A, up to 20 MiB. Its content says what it is.

    Only you can read it and run something with it, and it is kept for a day.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise invalid("", "Send the file itself as the body, not a form: curl --data-binary @file.")
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else None
    upload = await gateway_of(request).uploads.receive(caller_of(user), request.stream(), size)
    return Response(encode(upload), status_code=201, headers={"Location": upload.url}, media_type="application/json")
