"""The most that a run can cost, which daily limits hold while it is under way.

The catalog says what each thing is billed at most (`CostBound`); what goes in is counted here, on the very request that is
sent. No tokenizer makes more tokens of a text than it has bytes, and everything of the request that is text is counted:
prompts, tools, schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson

from contracts.catalog import CostBound, ResolvedResource
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller
from services.executor.access import is_creator
from services.executor.request import ModelRequest

_FRAME_TOKENS = 100
"""Role markers and a model's own preamble, on top of the text, at most."""
_TOOL_TOKENS = 1000
"""What providers say to a model about how to use tools."""
_LEAST_SOUND_BYTES_S = 750
"""Speech at 6 kbit/s, the leanest that anybody sends."""
_OWN_PROVIDER_KEY_FEE = Decimal("1.05")
"""OpenRouter adds up to five percent where the account has a key of its own at the provider."""


def ceiling(resource: ResolvedResource, request: ModelRequest, caller: Caller) -> Decimal:
    """USD that this request can cost at most. Raises CONFLICT, with what to set, where nobody can know."""
    bound = resource.most
    if bound is None:
        reason = resource.unbounded or "Nobody can say what a run of this resource may cost at most."
        raise ServiceError(
            ErrorCode.CONFLICT,
            f"{reason} While a daily limit concerns this resource, its runs need a known ceiling."
            if is_creator(resource.owner, caller)
            else "This resource cannot be run while its creator limits what a day may cost: what a run costs is not known.",
        )
    sound_bytes = sum(file.size for file in request.attachments if file.mime_type.startswith("audio/"))
    return cost_at_most(bound, request.body, sound_bytes)


def cost_at_most(bound: CostBound, body: Mapping[str, Any], sound_bytes: int = 0) -> Decimal:
    """What the bound makes of a request, rounded up to a trillionth of a dollar. `sound_bytes` is the size of all sound in
    it, which stands there as a mark."""
    pictures = documents = 0
    sounds_s = -(-sound_bytes // _LEAST_SOUND_BYTES_S)
    texts: list[Any] = [{name: value for name, value in body.items() if name != "messages"}]
    for part in _parts(body.get("messages")):
        kind = part.get("type")
        if kind == "image_url":
            pictures += 1
        elif kind == "file":
            documents += 1
        elif kind != "input_audio":
            texts.append(part)
    text = len(orjson.dumps(texts)) + _FRAME_TOKENS + (_TOOL_TOKENS if body.get("tools") else 0)
    if documents or bound.full_context:
        # What a document or a search becomes is limited by the context alone.
        text = max(text, bound.context_tokens)
    cost = (
        text * bound.token_in_usd
        + pictures * bound.picture_in_usd
        + sounds_s * bound.sound_in_s_usd
        + documents * bound.document_in_usd
        + bound.rest_usd
    )
    return (cost * _OWN_PROVIDER_KEY_FEE).quantize(Decimal("1e-12"), rounding=ROUND_CEILING)


def _parts(messages: Any) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for message in messages or []:
        content = message.get("content")
        parts += content if isinstance(content, list) else [{"text": content}]
    return parts
