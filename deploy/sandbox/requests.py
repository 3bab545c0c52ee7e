"""A chat request as far as the sandbox cares: who asked what, how long the answer may be, and which kinds go in and out."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from deploy.sandbox.errors import Refusal, refuse

MEDIA_TOKENS = 258
LIMITS = ("max_tokens", "max_completion_tokens")
KINDS = {
    "image_url": "image",
    "file": "file",
    "input_audio": "audio",
    "video_url": "video",
    "input_video": "video",
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed body of POST /chat/completions; `models` is in the order to try."""

    models: tuple[str, ...]
    stream: bool
    prompt: str
    last_role: str
    prompt_tokens: int
    input_kinds: frozenset[str]
    max_tokens: int | None
    max_completion_tokens: int | None
    modalities: frozenset[str]
    tools: tuple[dict[str, Any], ...]
    tool_choice: Any
    reasoning: dict[str, Any]
    response_format: dict[str, Any]
    provider: dict[str, Any]
    files: tuple[dict[str, Any], ...]
    pdf_engine: str | None


def parse_request(content: bytes) -> ChatRequest | Refusal:
    """The request in a body, or the 400 that OpenRouter gives for it."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return refuse(400, "Invalid JSON in request body", {"error_type": "invalid_request"})
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return refuse(400, 'Input required: specify "messages"', {"error_type": "invalid_request"})
    reasoning = _object(body, "reasoning")
    if "reasoning_effort" in body:
        if reasoning.get("effort", body["reasoning_effort"]) != body["reasoning_effort"]:
            return refuse(400, "reasoning_effort must not differ from reasoning.effort")
        reasoning = reasoning | {"effort": body["reasoning_effort"]}
    limits = {name: body.get(name) for name in LIMITS}
    for name, limit in limits.items():
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            return refuse(400, f"{name} must be at least 1", {"error_type": "invalid_request"})
    texts, kinds = _contents(messages)
    users = [message for message in messages if message.get("role") == "user"]
    first = body.get("model") or "openrouter/auto"
    return ChatRequest(
        models=tuple(dict.fromkeys(str(model) for model in [first, *_list(body, "models")])),
        stream=body.get("stream") is True,
        prompt="\n".join(_contents(users[-1:])[0]),
        last_role=str(messages[-1].get("role")),
        prompt_tokens=max(1, -(-sum(map(len, texts)) // 4)) + MEDIA_TOKENS * len(kinds),
        input_kinds=frozenset(kinds),
        **limits,
        modalities=frozenset(map(str, _list(body, "modalities") or ["text"])),
        tools=tuple(
            tool for tool in _list(body, "tools") if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
        ),
        tool_choice=body.get("tool_choice"),
        reasoning=reasoning,
        response_format=_object(body, "response_format"),
        provider=_object(body, "provider"),
        files=tuple(_files(messages)),
        pdf_engine=_pdf_engine(_list(body, "plugins")),
    )


def limited_for(request: ChatRequest, supported: Collection[str]) -> ChatRequest:
    """The request as a model gets it that supports these parameters: its limit under one name, the others dropped.

    Silently, as OpenRouter does; the newer name wins where both are supported.
    """
    limits = (getattr(request, name) for name in reversed(LIMITS) if name in supported)
    limit = next((limit for limit in limits if limit is not None), None)
    return replace(request, max_tokens=limit, max_completion_tokens=None)


def _object(body: dict[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key)
    return value if isinstance(value, dict) else {}


def _list(body: dict[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    return value if isinstance(value, list) else []


def _contents(messages: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """All texts, and the kind of every media part."""
    texts: list[str] = []
    kinds: list[str] = []
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, dict) and part.get("type") in KINDS:
                kinds.append(KINDS[part["type"]])
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                texts.append(part["text"])
    return texts, kinds


def _files(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every media part as the ledger names it: what was sent, by its hash, and never the content."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, dict) or part.get("type") not in KINDS:
                continue
            inner = part.get(str(part["type"]))
            inner = inner if isinstance(inner, dict) else {}
            data = next((inner[key] for key in ("url", "file_data", "data") if isinstance(inner.get(key), str)), "")
            yield {
                "kind": KINDS[part["type"]],
                "sha256": hashlib.sha256(data.encode()).hexdigest(),
                "chars": len(data),
                "head": data[:40].partition(",")[0] if data.startswith("data:") else None,
                "filename": inner.get("filename"),
                "format": inner.get("format"),
            }


def _pdf_engine(plugins: list[Any]) -> str | None:
    for plugin in plugins:
        if isinstance(plugin, dict) and plugin.get("id") == "file-parser" and isinstance(plugin.get("pdf"), dict):
            return str(plugin["pdf"].get("engine"))
    return None
