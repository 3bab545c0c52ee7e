"""Files that callers send: the gateway says what it has received, and is given the name to store it under."""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta

from contracts.attachments import ClaimMedia, MediaClaimed
from contracts.errors import ErrorCode, ServiceError
from contracts.media import EXTENSIONS, INPUT_PREFIX, owner_of
from services.executor.media_store import IndexedFile, MediaIndex
from services.executor.metrics import ExecutorMetrics

MAX_BYTES_PER_CALLER = 1024 * 1024 * 1024
_FULL_RETRY_S = 3600.0


class Uploads:
    """`keep` is how long an upload stays that no run needs."""

    def __init__(self, index: MediaIndex, metrics: ExecutorMetrics, name_secret: bytes, keep: timedelta) -> None:
        self._index = index
        self._metrics = metrics
        self._name_secret = name_secret
        self._keep = keep

    async def claim(self, request: ClaimMedia) -> MediaClaimed:
        """The row of a file before the file. Raises RATE_LIMITED where the caller keeps too much already."""
        name = self._name_of(request)
        if await self._index.bytes_of(request.caller, besides=name) + request.bytes > MAX_BYTES_PER_CALLER:
            raise ServiceError(
                ErrorCode.RATE_LIMITED,
                f"You may keep {MAX_BYTES_PER_CALLER // 1024**2} MiB of uploads at a time; wait until older ones are gone.",
                retry_after_s=_FULL_RETRY_S,
                scope="caller",
            )
        facts = request.model_dump(include={"mime_type", "bytes", "width", "height", "pages"})
        kept_until, new = await self._index.claim(IndexedFile(name, owner=request.caller, **facts), self._keep)
        if new:
            self._metrics.media_bytes.inc(request.bytes)
        return MediaClaimed(name=name, expires_at=kept_until)

    def _name_of(self, request: ClaimMedia) -> str:
        """Of the content and its owner: nobody can tell by a name whether somebody else has sent the same."""
        owner = owner_of(request.caller.kind, request.caller.id)
        digest = hmac.new(self._name_secret, f"input\n{owner}\n{request.sha256}".encode(), hashlib.sha256).hexdigest()
        return f"{INPUT_PREFIX}{digest}.{EXTENSIONS[request.mime_type]}"
