"""The pieces that answers are made of: exact decoding, files in any of their shapes, and parts that grow over chunks.

Upstream JSON is a stranger's: numbers may be too big for any encoder, text may hold half of a character, and a file may
stand under a dozen names. Everything that leaves here can be encoded again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import orjson

from contracts.execution import OtherPart, RefusalPart, ToolCallPart, Usage
from contracts.money import exact_decimal

MediaKind = Literal["image", "audio", "video", "file"]

MAX_ID_CHARS = 200
MEDIA_KINDS: dict[str, MediaKind] = {
    "image_url": "image", "image": "image", "output_image": "image", "input_image": "image", "video_url": "video",
    "video": "video", "audio": "audio", "input_audio": "audio", "output_audio": "audio", "file": "file",
}  # fmt: skip
_MAX_OTHER_BYTES = 64 * 1024
_BEYOND_FLOATS = Decimal("1e308")


@dataclass(slots=True, eq=False)
class RawMedia:
    """A finished file as it arrived: base64 in pieces, with what the model claims it is. Equal only to itself.

    The pieces are gone once it is stored.
    """

    kind: MediaKind
    pieces: tuple[str, ...]
    declared_mime: str | None = None
    transcript: str | None = None
    filename: str | None = None


# Decoding -------------------------------------------------------------------------------------------------------------


def decode(payload: bytes) -> Any:
    """The JSON value of a payload, or raises ValueError. Numbers in anything that may hold money are exact Decimals."""
    if b'"usage"' not in payload and b'"cost"' not in payload:
        try:
            return orjson.loads(payload)
        except orjson.JSONDecodeError:
            # Models cut characters between tokens, and numbers may be too big: the standard library keeps either.
            pass
    return decode_exactly(payload)


def decode_exactly(payload: bytes) -> Any:
    """The JSON value with every fraction as a Decimal, or raises ValueError."""
    try:
        return json.loads(payload, parse_float=Decimal, parse_constant=lambda _name: None)
    except (RecursionError, ArithmeticError):
        raise ValueError("nested too deeply, or a number beyond all bounds") from None


def clean(text: str) -> str:
    """The text with surrogate pairs joined and lone halves replaced, so that it can be encoded."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def short_name(text: str) -> str:
    """A name or an id as receipts keep it; Postgres takes no NUL character in text."""
    return clean(text)[:MAX_ID_CHARS].replace("\0", "\ufffd")


def safe_json(value: Any, depth: int = 0) -> Any:
    """A value that any JSON encoder takes: no Decimal, no huge integer, no lone surrogate, not endlessly deep."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Decimal):
        return float(value) if abs(value) < _BEYOND_FLOATS else str(value)[:MAX_ID_CHARS]
    if isinstance(value, int) and abs(value) > 2**53:
        return str(value)[:MAX_ID_CHARS]
    if depth > 30:
        return None
    if isinstance(value, dict):
        return {clean(key): safe_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [safe_json(item, depth + 1) for item in value]
    return value


def other_part(kind: object, value: Any) -> OtherPart:
    """Something unknown, passed through; a large one only by its size, because files never travel in messages."""
    data = safe_json(value)
    name = clean(kind)[:80] if isinstance(kind, str) and kind else "unknown"
    size = len(orjson.dumps(data))
    return OtherPart(kind=name, data=data if size <= _MAX_OTHER_BYTES else {"omitted_bytes": size})


def size_of(value: Any) -> int:
    """Bytes that a value takes in a message, where a character may take up to six; text without its quotes, so that pieces
    add up to the whole."""
    if isinstance(value, str):
        return len(orjson.dumps(clean(value))) - 2
    return len(orjson.dumps(safe_json(value))) if value is not None else 0


def string_of(value: object) -> str | None:
    return clean(value) if isinstance(value, str) and value else None


def count_of(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _amount(value: object) -> Decimal | None:
    """A price as upstream prints it; anything that is no sensible amount counts as not said."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        return None
    try:
        amount = exact_decimal(value)
    except ValueError:
        return None
    if amount < 0 or (amount and amount.adjusted() < -24):
        return None
    return amount or Decimal(0)


def cost_of_usage(usage: Mapping[str, Any]) -> Decimal | None:
    """What the creator really spends, or None where the usage does not say.

    OpenRouter's own charge, and with a provider key stored at OpenRouter what that provider charges on top. Summing both
    in the ordinary case would double it.
    """
    charged = _amount(usage.get("cost"))
    details = usage.get("cost_details")
    upstream = _amount(details.get("upstream_inference_cost")) if isinstance(details, dict) else None
    if charged is None:
        return None
    if usage.get("is_byok") is True:
        return None if upstream is None else charged + upstream
    # Nothing charged for something that cost something, and no word on whose key it was: not known.
    if usage.get("is_byok") is None and not charged and upstream:
        return None
    return charged


def usage_of(usage: Mapping[str, Any]) -> Usage:
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return Usage(
        prompt_tokens=count_of(usage.get("prompt_tokens")),
        completion_tokens=count_of(usage.get("completion_tokens")),
        reasoning_tokens=count_of(completion.get("reasoning_tokens")) if isinstance(completion, dict) else None,
        cached_tokens=count_of(prompt.get("cached_tokens")) if isinstance(prompt, dict) else None,
    )


# Things that grow over several chunks ---------------------------------------------------------------------------------


class ToolDraft:
    """A tool call as it arrives; its arguments may be missing, null, an object, or text in pieces that never parses."""

    __slots__ = ("arguments", "id", "index", "name")

    def __init__(self, index: int | None, call_id: str | None) -> None:
        self.index = index
        self.id = call_id
        self.name = ""
        self.arguments: list[str] = []

    def add(self, function: Mapping[str, Any]) -> None:
        """One more piece of the call."""
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and name and name != self.name:
            self.name += name
        if isinstance(arguments, str):
            self.arguments.append(arguments)
        elif arguments is not None:
            self.arguments.append(orjson.dumps(safe_json(arguments)).decode())

    def is_whole(self) -> bool:
        """Whether the arguments so far are a JSON object already."""
        try:
            return isinstance(orjson.loads("".join(self.arguments)), dict)
        except orjson.JSONDecodeError:
            return False

    def part(self, number: int) -> ToolCallPart:
        text = clean("".join(self.arguments))
        parsed: Any = {}
        if text.strip():
            try:
                parsed = safe_json(decode(text.encode()))
            except ValueError:
                parsed = None
        return ToolCallPart(
            id=self.id or f"call_{number}", name=clean(self.name), arguments=parsed, arguments_text=text
        )  # fmt: skip


def open_tool(
    tools: list[ToolDraft], call_id: str | None, index: int | None, function: Mapping[str, Any]
) -> ToolDraft | None:
    """The call that a piece of a stream continues, or None where it begins a new one.

    A new id is a new call whatever its index says; so is a second name after whole arguments, because ids repeat as well.
    A piece without an id continues the latest call of its index, or the latest of all.
    """
    named, filled = bool(function.get("name")), bool(function.get("arguments"))
    if call_id is None and index is None:
        latest = tools[-1] if tools else None
        return None if latest is not None and named and latest.name else latest
    found = next((tool for tool in reversed(tools) if tool.index == index and call_id in (None, tool.id)), None)
    if found is None and call_id is not None and index is not None:
        # A name may come before the id of the same call.
        found = next((tool for tool in reversed(tools) if tool.index == index and tool.id is None), None)
        if found is not None:
            found.id = call_id
    if found is not None and named and filled and found.is_whole():
        return None
    return found


class AudioDraft:
    """Sound in pieces, with its transcript."""

    __slots__ = ("pieces", "transcript")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.transcript: list[str] = []

    def media(self, declared_format: str | None) -> RawMedia:
        mime = f"audio/{declared_format}" if declared_format else None
        return RawMedia("audio", tuple(self.pieces), mime, clean("".join(self.transcript)) or None)


class UnknownDraft:
    """A field that nobody knows, over all chunks: text joined, lists appended, of anything else the last. A large one is
    told by its size, and not even kept."""

    __slots__ = ("size", "values")

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.size = 0

    def add(self, value: Any) -> int:
        """One more piece; answers by how many bytes the part grows."""
        grown = size_of(value)
        self.size += grown
        if self.size > _MAX_OTHER_BYTES:
            self.values.clear()
            return 0
        self.values.append(value)
        return grown

    def part(self, kind: str) -> OtherPart:
        values = self.values
        if self.size > _MAX_OTHER_BYTES:
            return other_part(kind, {"omitted_bytes": self.size})
        if all(isinstance(value, str) for value in values):
            return other_part(kind, "".join(values))
        if all(isinstance(value, list) for value in values):
            return other_part(kind, [item for value in values for item in value])
        return other_part(kind, values[-1])


class RefusalDraft:
    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def part(self) -> RefusalPart:
        return RefusalPart(text=clean("".join(self.pieces)))


# Files ----------------------------------------------------------------------------------------------------------------


def entries_of(value: Any) -> list[Any]:
    """What should be a list and sometimes is one thing, or null."""
    if isinstance(value, list):
        return value
    return [] if value is None or value == "" else [value]


def media_of(entry: Any, kind: MediaKind) -> RawMedia | OtherPart:
    """A file out of any of the shapes it comes in. A stranger's URL is passed on, never fetched."""
    if not isinstance(entry, dict):
        return other_part(f"invalid_{kind}", None) if isinstance(entry, str) else other_part(kind, entry)
    holder: Any = next((entry[key] for key in ("image_url", "video_url", "input_audio", "audio", "file", "source")
                        if entry.get(key)), entry)  # fmt: skip
    if isinstance(holder, str):
        holder = {"url": holder}
    if not isinstance(holder, dict):
        return other_part(kind, entry)
    filename = string_of(holder.get("filename") or entry.get("filename"))
    data = next(
        (holder[key] for key in ("b64_json", "data", "file_data", "base64") if string_of(holder.get(key))), None
    )
    url = data if isinstance(data, str) and data.startswith("data:") else holder.get("url")
    if isinstance(url, str) and url[:5].lower() == "data:":
        return _of_data_url(url, kind, filename)
    if isinstance(data, str):
        mime = string_of(holder.get("media_type") or holder.get("mime_type") or entry.get("media_type"))
        form = string_of(holder.get("format"))
        declared = mime or (f"{kind}/{form}" if form else None)
        return RawMedia(kind, (data,), declared[:MAX_ID_CHARS] if declared else None, None, filename)
    if isinstance(url, str) and url[:8].lower().startswith(("http://", "https://")):
        return other_part(f"{kind}_url", {"url": url})
    return other_part(f"invalid_{kind}" if isinstance(url, str) else kind, None if isinstance(url, str) else entry)


def _of_data_url(url: str, kind: MediaKind, filename: str | None) -> RawMedia | OtherPart:
    head, comma, data = url.partition(",")
    words = head[5:].split(";")
    if not comma or not data:
        return other_part(f"invalid_{kind}", None)
    if words[-1].strip().lower() != "base64":
        data = base64.b64encode(unquote_to_bytes(clean(data))).decode()
    return RawMedia(kind, (data,), string_of(words[0].strip().lower()[:MAX_ID_CHARS]), None, filename)
