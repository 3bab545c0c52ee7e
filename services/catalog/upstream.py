"""Reads the upstream's catalog over HTTP. No decision is made here; what it returns is upstream's own JSON.

Two calls make a sync: the list itself, conditional on the ETag of the last reading, and the same list sorted by
popularity, which is worth having but not worth failing for. Who serves a model is a call of its own, made on demand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx
import stamina
import structlog
from pydantic import SecretStr

log = structlog.get_logger()

_MAX_PAGES = 100
_PAGE_SIZE = 1_000
_MAX_BODY_BYTES = 64 * 1024 * 1024
_TIMEOUT = httpx.Timeout(20, connect=5)
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_KEY_REFUSED = frozenset({401, 403})


class UpstreamError(Exception):
    """The list could not be read; the message is a sentence of ours and holds nothing of upstream's body."""

    def __init__(self, message: str, *, passing: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.passing = passing
        self.status = status


@dataclass(frozen=True, slots=True)
class UpstreamList:
    """`entries` is None when upstream says that nothing changed since `etag`."""

    entries: list[Any] | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    url: str
    not_modified: bool
    etag: str | None
    body: bytes


def _is_passing(error: Exception) -> bool:
    return isinstance(error, UpstreamError) and error.passing


class Upstream:
    """`url` is the base including `/api/v1`. With `key` upstream also tells how fast providers are."""

    def __init__(self, url: str, key: SecretStr | None = None) -> None:
        self.source = url.rstrip("/")
        self._key = key if key is not None and key.get_secret_value() else None
        self._client = httpx.AsyncClient(
            timeout=_TIMEOUT, follow_redirects=False, headers={"Accept": "application/json"}
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def read_models(self, etag: str | None) -> UpstreamList:
        """Every model of every modality. Raises UpstreamError."""
        first = await self._get(f"{self.source}/models?output_modalities=all", etag)
        if first.not_modified:
            return UpstreamList(None, etag)
        entries, pages = await self._all_pages(first)
        # An ETag speaks for one page only.
        return UpstreamList(entries, first.etag if pages == 1 else None)

    async def read_ranks(self) -> dict[str, int] | None:
        """Place by popularity, from 1, by model id; None where upstream does not say today."""
        try:
            first = await self._get(f"{self.source}/models?output_modalities=all&sort=most-popular", None)
            entries, _ = await self._all_pages(first)
        except UpstreamError as error:
            log.warning("popularity_unknown", reason=str(error))
            return None
        ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        return {model_id: rank for rank, model_id in enumerate(ids, 1) if isinstance(model_id, str)}

    async def read_endpoints(self, model_id: str) -> list[Any]:
        """Who serves the model; nobody where upstream does not know it. Raises UpstreamError."""
        url = f"{self.source}/models/{'/'.join(quote(part, safe='') for part in model_id.split('/'))}/endpoints"
        try:
            try:
                answer = await self._get(url, None, self._key)
            except UpstreamError as error:
                if self._key is None or error.status not in _KEY_REFUSED:
                    raise
                log.warning("catalog_key_refused", status=error.status)
                answer = await self._get(url, None)
        except UpstreamError as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise
            return []
        data = _document(answer).get("data")
        endpoints = data.get("endpoints") if isinstance(data, dict) else None
        if not isinstance(endpoints, list):
            raise UpstreamError("Upstream's answer has no list of providers.")
        return endpoints

    async def _all_pages(self, first: _Answer) -> tuple[list[Any], int]:
        document = _parse(first)
        entries = list(document["data"])
        pages, url = 1, self._next_url(first.url, document, len(entries))
        while url is not None:
            if pages == _MAX_PAGES:
                raise UpstreamError("Upstream's list has more pages than we are willing to read.")
            document = _parse(await self._get(url, None))
            if not document["data"]:
                break
            entries += document["data"]
            pages, url = pages + 1, self._next_url(url, document, len(entries))
        return entries, pages

    def _next_url(self, current: str, document: dict[str, Any], read: int) -> str | None:
        links = document.get("links")
        following = links.get("next") if isinstance(links, dict) else None
        if isinstance(following, str) and following:
            url = urljoin(current, following)
            # Nobody outside decides what this service connects to.
            if urlsplit(url)[:2] != urlsplit(self.source)[:2]:
                raise UpstreamError("Upstream's next page is on another host.")
            return url
        total = document.get("total_count")
        if isinstance(total, int) and read < total and read > 0 and "next" not in (links or {}):
            parameters = httpx.URL(current).params.merge({"offset": str(read), "limit": str(_PAGE_SIZE)})
            return str(httpx.URL(current).copy_with(params=parameters))
        return None

    @stamina.retry(on=_is_passing, attempts=3, timeout=60, wait_initial=0.3, wait_max=5)
    async def _get(self, url: str, etag: str | None, key: SecretStr | None = None) -> _Answer:
        # Retries are logged with the arguments: the key must not be a plain one.
        headers = {"If-None-Match": etag} if etag else {}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        try:
            async with self._client.stream("GET", url, headers=headers) as response:
                body = await _read_bounded(response)
        except httpx.HTTPError as error:
            raise UpstreamError(f"Upstream cannot be reached ({type(error).__name__}).", passing=True) from None
        not_modified = etag is not None and response.status_code == httpx.codes.NOT_MODIFIED
        if response.status_code == httpx.codes.OK or not_modified:
            return _Answer(url, not_modified, response.headers.get("ETag"), body)
        status = response.status_code
        raise UpstreamError(
            f"Upstream answered with status {status}.", passing=status in _RETRIED_STATUSES, status=status
        )


async def _read_bounded(response: httpx.Response) -> bytes:
    """The body, unless it is larger than any list could be."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise UpstreamError("Upstream's list is larger than we are willing to read.")
    return bytes(body)


def _parse(answer: _Answer) -> dict[str, Any]:
    """A page of the list. Raises UpstreamError when it is none."""
    document = _document(answer)
    if not isinstance(document.get("data"), list):
        raise UpstreamError("Upstream's answer has no list of models.")
    return document


def _document(answer: _Answer) -> dict[str, Any]:
    """A JSON object, its numbers exact. Raises UpstreamError when it is none."""
    try:
        document = json.loads(answer.body, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise UpstreamError("Upstream's answer is not JSON.") from None
    if not isinstance(document, dict):
        raise UpstreamError("Upstream's answer is not a JSON object.")
    return document


def _no_number(_: str) -> None:
    """`NaN` and its like, which are no JSON: not known."""
