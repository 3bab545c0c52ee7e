"""Recorded HTTP answers of a folder, replayed byte for byte whatever endpoint they came from.

Every `<case>.meta.json` is a case; its body is the file named in `body_file`, else `<case>.body.*`, else empty. Framing
headers are dropped because they describe a connection that is gone, and a recorded content-length can be wrong.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

FRAMING = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "date",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
GENERATION_ID = re.compile(r"gen-[A-Za-z0-9_-]+")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Bill:
    """What a recording says a generation cost, in USD."""

    cost: Decimal
    is_byok: bool
    upstream_cost: Decimal | None
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str


@dataclass(frozen=True, slots=True)
class Recording:
    """One answer to replay, the generation ids in it, and the bill if it states one."""

    case: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    generation_ids: tuple[str, ...]
    bill: Bill | None
    looked_up: bool


def load_recordings(folder: Path) -> dict[str, Recording]:
    """All cases of a folder by name; a meta file that cannot be read is named on stderr and left out."""
    files = sorted(folder.iterdir())
    found = {}
    for file in files:
        case = file.name.removesuffix(".meta.json")
        if case == file.name or not case:
            continue
        try:
            meta = loads(file.read_bytes())
            found[case] = _recording(case, meta if isinstance(meta, dict) else {}, files)
        except (OSError, ValueError) as error:
            print(f"sandbox: {file.name} is not a recording: {type(error).__name__}", file=sys.stderr, flush=True)
    return found


def _recording(case: str, meta: dict[str, Any], files: list[Path]) -> Recording:
    body = _body(case, meta, files)
    headers = tuple(_headers(meta.get("headers")))
    status = meta.get("status")
    documents = list(_documents(body))
    ids = dict.fromkeys(
        [value for name, value in headers if name.lower() == "x-generation-id"]
        + [value for document in documents for value in _generation_ids(document)]
    )
    request = meta.get("request")
    path = str(request.get("path", "")) if isinstance(request, dict) else ""
    return Recording(
        case=case,
        status=status if isinstance(status, int) and 200 <= status <= 999 else 200,
        headers=headers,
        body=body,
        generation_ids=tuple(ids),
        bill=next((bill for document in reversed(documents) if (bill := _bill(document))), None),
        looked_up=path.partition("?")[0].endswith("/generation"),
    )


def _body(case: str, meta: dict[str, Any], files: list[Path]) -> bytes:
    named = meta.get("body_file")
    if isinstance(named, str):
        for file in files:
            if file.name == Path(named).name:
                return file.read_bytes()
    for file in files:
        if file.name == f"{case}.body" or file.name.startswith(f"{case}.body."):
            return file.read_bytes()
    return b""


def _headers(recorded: object) -> Iterator[tuple[str, str]]:
    pairs = recorded.items() if isinstance(recorded, dict) else recorded if isinstance(recorded, list) else ()
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            continue
        name, values = str(pair[0]), pair[1]
        for value in values if isinstance(values, list) else [values]:
            text = str(value)
            if name.lower() not in FRAMING and HEADER_NAME.fullmatch(name) and text.isprintable():
                yield name, text


def _documents(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a body, plain or SSE; what does not parse is not there."""
    text = body.decode("utf-8", "replace")
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")]
    for candidate in lines or [text]:
        try:
            document = loads(candidate, parse_float=Decimal)
        except (JSONDecodeError, RecursionError):
            continue
        if isinstance(document, dict):
            yield document


def _layers(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield document
    for key in ("data", "response"):
        if isinstance(document.get(key), dict):
            yield document[key]


def _generation_ids(document: dict[str, Any]) -> Iterator[str]:
    for layer in _layers(document):
        for key in ("id", "generation_id"):
            value = layer.get(key)
            if isinstance(value, str) and GENERATION_ID.fullmatch(value):
                yield value


def _bill(document: dict[str, Any]) -> Bill | None:
    for layer in _layers(document):
        usage = layer.get("usage")
        facts = usage if isinstance(usage, dict) else layer
        cost = _decimal(facts.get("cost", facts.get("total_cost")))
        if cost is None:
            continue
        details = facts.get("cost_details")
        upstream = details.get("upstream_inference_cost") if isinstance(details, dict) else None
        return Bill(
            cost=cost,
            is_byok=facts.get("is_byok") is True,
            upstream_cost=_decimal(upstream),
            prompt_tokens=_count(facts, "prompt_tokens", "input_tokens", "tokens_prompt"),
            completion_tokens=_count(facts, "completion_tokens", "output_tokens", "tokens_completion"),
            model=str(layer.get("model") or ""),
        )
    return None


def _decimal(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal, str)):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _count(facts: dict[str, Any], *names: str) -> int | None:
    return next((facts[name] for name in names if isinstance(facts.get(name), int)), None)
