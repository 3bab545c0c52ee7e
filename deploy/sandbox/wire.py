"""An answer as bytes: the SSE frames of a stream, or the document of a plain request, as OpenRouter writes them.

The usage chunk comes in three shapes; which one a model uses hangs on its name, so that each stays the same and all occur.
Costs go in as raw JSON numbers made from Decimal, because a float would not be what was billed.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from deploy.sandbox.answers import Answer, Piece
from deploy.sandbox.pricing import ZERO, Prices

PROCESSING = b": OPENROUTER PROCESSING\n\n"
PADDING = b"\n         \n"
DONE = b"data: [DONE]\n\n"
SEARCH_COST = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes to write after a wait, and what they add to the bill when the client leaves after them."""

    data: bytes
    wait_s: float = 0.0
    tokens: int = 0
    cost: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Composition:
    """An answer with everything that its bytes need."""

    answer: Answer
    generation_id: str
    created: int
    requested: str
    model: str
    prompt_tokens: int
    prices: Prices
    is_byok: bool = False
    with_usage: bool = True

    def tokens(self, kind: str) -> int:
        """Output tokens of one kind."""
        return sum(piece.tokens for piece in self.answer.pieces if piece.kind == kind)

    @property
    def completion_tokens(self) -> int:
        """All output tokens."""
        return sum(piece.tokens for piece in self.answer.pieces)

    @property
    def prompt_cost(self) -> Decimal:
        """USD for the prompt, and for what is charged per answer."""
        return self.prompt_tokens * self.prices.prompt + self.prices.flat

    @property
    def inference_cost(self) -> Decimal:
        """USD that the provider charges; nothing where nothing was generated."""
        if not self.completion_tokens:
            return ZERO
        return self.prompt_cost + sum((self.piece_cost(piece) for piece in self.answer.pieces), ZERO)

    @property
    def cost(self) -> Decimal:
        """USD charged to the account."""
        return ZERO if self.is_byok else self.inference_cost + SEARCH_COST * self.answer.web_searches

    def piece_cost(self, piece: Piece) -> Decimal:
        """USD for the tokens of one piece."""
        return piece.tokens * self.prices.of(piece.kind)


def number(value: Decimal) -> orjson.Fragment:
    """A Decimal as a JSON number without exponent."""
    return orjson.Fragment(format(value.normalize(), "f"))


def usage(made: Composition) -> dict[str, Any]:
    """The usage object of a finished answer."""
    completion_tokens = made.completion_tokens
    inference = made.inference_cost
    prompt_cost = made.prompt_cost if inference else ZERO
    facts: dict[str, Any] = {
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": made.prompt_tokens + completion_tokens,
        "cost": number(made.cost),
        "is_byok": made.is_byok,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0, "video_tokens": 0},
        "cost_details": {
            "upstream_inference_cost": number(inference),
            "upstream_inference_prompt_cost": number(prompt_cost),
            "upstream_inference_completions_cost": number(inference - prompt_cost),
        },
        "completion_tokens_details": {
            "reasoning_tokens": made.tokens("reasoning"),
            "image_tokens": made.tokens("image"),
            "audio_tokens": made.tokens("audio"),
        },
    }
    if made.answer.web_searches:
        facts["server_tool_use_details"] = {"web_search_requests": made.answer.web_searches}
    return facts


def event(document: Any) -> bytes:
    """One SSE event."""
    return b"data: " + orjson.dumps(document) + b"\n\n"


def chunk(made: Composition, choices: Any, **more: Any) -> dict[str, Any]:
    """One chunk of a stream."""
    return {
        "id": made.generation_id,
        "object": "chat.completion.chunk",
        "created": made.created,
        "model": made.model,
        "provider": "Sandbox",
        "choices": choices,
        **more,
    }


def choice(delta: dict[str, Any], finish: str | None, native: str | None) -> dict[str, Any]:
    """The one choice of a chunk."""
    delta = {"role": "assistant", **delta}
    return {"index": 0, "delta": delta, "finish_reason": finish, "native_finish_reason": native, "logprobs": None}


def comments(made: Composition) -> bytes:
    """One to three comments, as many as the model's name says."""
    return PROCESSING * (1 + zlib.crc32(made.requested.encode()) % 3)


def piece_frames(made: Composition) -> Iterator[Frame]:
    """A frame for every piece."""
    for piece in made.answer.pieces:
        data = event(chunk(made, [choice(piece.delta, None, None)]))
        yield Frame(data, tokens=piece.tokens, cost=made.piece_cost(piece))


def finish_frames(made: Composition) -> list[Frame]:
    """The finish chunk, then the usage chunk in the model's shape."""
    answer = made.answer
    frames = [Frame(event(chunk(made, [choice({"content": ""}, answer.finish, answer.native_finish)])))]
    if made.with_usage:
        shape = zlib.crc32(made.requested.encode()) % 3
        repeated = (answer.finish, answer.native_finish) if shape == 1 else (None, None)
        choices = [] if shape == 0 else [choice({"content": ""}, *repeated)]
        frames.append(Frame(event(chunk(made, choices, usage=usage(made)))))
    return frames


def stream_frames(made: Composition) -> list[Frame]:
    """A whole good stream."""
    return [Frame(comments(made)), *piece_frames(made), *finish_frames(made), Frame(DONE)]


def document(made: Composition, **more: Any) -> dict[str, Any]:
    """The plain answer: the pieces put together; `more` goes into the choice."""
    answer = made.answer
    first = {
        "index": 0,
        "logprobs": None,
        "finish_reason": answer.finish,
        "native_finish_reason": answer.native_finish,
        "message": _message(answer) | answer.message,
        **more,
    }
    whole: dict[str, Any] = {
        "id": made.generation_id,
        "object": "chat.completion",
        "created": made.created,
        "model": made.model,
        "provider": "Sandbox",
        "system_fingerprint": None,
        "choices": [first],
    }
    return whole | {"usage": usage(made)} if made.with_usage else whole


def _message(answer: Answer) -> dict[str, Any]:
    deltas = [piece.delta for piece in answer.pieces]
    texts = [delta["content"] for delta in deltas if isinstance(delta.get("content"), str)]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None, "reasoning": None}
    for delta in deltas:
        for key in ("images", "annotations"):
            if key in delta:
                message.setdefault(key, []).extend(delta[key])
        if delta.get("refusal"):
            message["refusal"] = delta["refusal"]
        if "audio" in delta:
            audio = message.setdefault("audio", {"data": ""})
            audio |= delta["audio"] | {"data": audio["data"] + delta["audio"]["data"]}
        _add_tool_calls(message, delta.get("tool_calls") or ())
    thought = "".join(delta.get("reasoning", "") for delta in deltas)
    if thought:
        message["reasoning"] = thought
        message["reasoning_details"] = [{"type": "reasoning.text", "text": thought, "format": "unknown", "index": 0}]
    return message


def _add_tool_calls(message: dict[str, Any], calls: Any) -> None:
    for call in calls:
        if "id" in call:
            message["content"] = None
            message.setdefault("tool_calls", []).append({**call, "function": dict(call["function"])})
        else:
            message["tool_calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
