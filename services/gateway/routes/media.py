"""Generated media: public, unguessable, immutable."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contracts.errors import ErrorCode, ServiceError
from contracts.media import StoredMedia, is_media_name
from services.gateway.problems import documented, unsatisfiable
from services.gateway.ranges import (
    ByteRange,
    UnsatisfiableRangeError,
    matches_etag,
    parse_range,
    range_still_holds,
)
from services.gateway.routing import PublicRoute, gateway_of

router = APIRouter(tags=["media"], route_class=PublicRoute)

_BINARY = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_ACTIVE_IMAGES = frozenset({"image/svg+xml"})


def _is_shown(mime_type: str) -> bool:
    """Whether a browser may show it in place. What can hold scripts is downloaded: it would run as this site."""
    return mime_type.partition("/")[0] in {"image", "audio", "video"} and mime_type not in _ACTIVE_IMAGES


def _headers(name: str, media: StoredMedia, etag: str) -> dict[str, str]:
    return {
        "Content-Type": media.mime_type,
        "ETag": etag,
        # The name depends on the content, so it never changes.
        "Cache-Control": "public, max-age=31536000, immutable",
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
        **documented([404, 416, 500, 503]),
    },
    summary="Get a generated file",
)
@router.head("/media/{name}", include_in_schema=False)
async def get_media(
    request: Request, name: Annotated[str, Path(description="As it stands in a result's `url`.")]
) -> Response:
    """Images, audio, video and other files that models made. They never change, so cache them for ever."""
    store = gateway_of(request).media
    media = await store.find(name) if is_media_name(name) else None
    if media is None:
        raise ServiceError(ErrorCode.NOT_FOUND, "There is no such file; generated files are kept for a limited time.")
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
    return StreamingResponse(store.read(name, wanted), status_code=status, headers=headers)
