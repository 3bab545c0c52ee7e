"""What an answer says: deterministic prose about the prompt, or the peculiar content of a mode. No bytes and no time here.

An answer is a list of pieces in the order in which a stream would bring them; a plain answer is the same pieces put together.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from deploy.sandbox.catalog import output_modalities
from deploy.sandbox.media import data_url, png, wav
from deploy.sandbox.requests import ChatRequest

MAX_TEXT_PIECES = 400
IMAGE_TOKENS = 1290
AUDIO_TOKENS = 50
CHARS_PER_TOKEN = 4
FAST_CHUNKS = 20
LONG_CHUNKS = 200
OVERSIZE_CHARS = 6_000_000

Kind = Literal["text", "reasoning", "image", "audio", "tool", "other"]

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><script>alert(1)</script><rect width="8" height="8"/></svg>'
SENTENCES = (
    "No model ran for this, so nothing here is knowledge, but the shape of the answer is the real one.",
    "The words arrive in pieces, as they do from a real model, and the bill at the end follows the catalog's prices.",
    "Put a real key in place of the test key and the same prompt goes to the real model.",
    "The same prompt always gets the same answer here, so that a test can rely on it.",
    "A different prompt gets a different choice of sentences.",
    "Prompts, pictures and files stay on this machine.",
    "Everything after this line would be the model's own work.",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One delta: the fields it sets, what kind of tokens it costs and how many."""

    delta: dict[str, Any]
    kind: Kind
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything an answer holds; `message` overrides fields of a plain answer (content as a list of parts, or null)."""

    pieces: list[Piece]
    finish: str = "stop"
    native_finish: str | None = "stop"
    message: dict[str, Any] = field(default_factory=dict)
    web_searches: int = 0


def tokens_of(text: str) -> int:
    """The sandbox's tokenizer: four characters are a token."""
    return -(-len(text) // CHARS_PER_TOKEN)


def split(text: str, most: int = MAX_TEXT_PIECES) -> list[str]:
    """Words with the white space before them, several together where there would be more than `most` pieces."""
    words = re.findall(r"\s*\S+(?:\s+\Z)?|\s+\Z", text)
    size = -(-len(words) // most) or 1
    return ["".join(words[at : at + size]) for at in range(0, len(words), size)]


def text_pieces(texts: list[str]) -> list[Piece]:
    """A piece for each text; their tokens add up to those of the whole."""
    return _counted(texts, "text", lambda text: {"content": text})


def reasoning_pieces(text: str) -> list[Piece]:
    """Reasoning in both forms that OpenRouter sends at once."""

    def delta(part: str) -> dict[str, Any]:
        detail = {"type": "reasoning.text", "text": part, "format": "unknown", "index": 0}
        return {"content": "", "reasoning": part, "reasoning_details": [detail]}

    return _counted(split(text), "reasoning", delta)


def _counted(texts: list[str], kind: Kind, delta: Any) -> list[Piece]:
    pieces, characters = [], 0
    for text in texts:
        before = -(-characters // CHARS_PER_TOKEN)
        characters += len(text)
        pieces.append(Piece(delta(text), kind, -(-characters // CHARS_PER_TOKEN) - before))
    return pieces


def image_piece(url: str, index: int = 0) -> Piece:
    """A picture as chat answers carry it."""
    image = {"type": "image_url", "image_url": {"url": url}, "index": index}
    return Piece({"content": "", "images": [image]}, "image", IMAGE_TOKENS)


def audio_pieces(seed: str, transcript: str, parts: int) -> list[Piece]:
    """A WAV cut into base64 parts that may be joined or decoded one by one, with its transcript in the first."""
    sound = wav(seed)
    size = -(-len(sound) // (3 * parts)) * 3
    pieces = []
    for at in range(0, len(sound), size):
        audio: dict[str, Any] = {"data": base64.b64encode(sound[at : at + size]).decode()}
        if at == 0:
            audio |= {"id": f"audio_{_digest(seed)[:12]}", "transcript": transcript, "expires_at": 4_102_444_800}
        pieces.append(Piece({"content": "", "audio": audio}, "audio", AUDIO_TOKENS))
    return pieces


def tool_pieces(name: str, arguments: str | None) -> list[Piece]:
    """A tool call: first its name, then its arguments in two halves; None leaves the arguments out altogether."""
    function: dict[str, Any] = {"name": name}
    if arguments is not None:
        function["arguments"] = ""
    call = {"index": 0, "id": f"call_{_digest(name)[:16]}", "type": "function", "function": function}
    pieces = [Piece({"content": None, "tool_calls": [call]}, "tool", tokens_of(name))]
    middle = len(arguments or "") // 2
    for part in (arguments[:middle], arguments[middle:]) if arguments else ():
        delta = {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": part}}]}
        pieces.append(Piece(delta, "tool", tokens_of(part)))
    return pieces


def ordinary_answer(request: ChatRequest, model: dict[str, Any]) -> Answer:
    """The answer of a model of the catalog: what the request asks for, as far as the model can give it."""
    outputs = request.modalities.intersection(output_modalities(model))
    seed = f"{model['id']}\n{request.prompt}"
    pieces = reasoning_pieces(reasoning_of(request)) if reasons(request, model) else []
    if "image" in outputs:
        pieces.append(image_piece(data_url("image/png", png(seed))))
        return Answer(pieces, native_finish="STOP")
    if "audio" in outputs:
        parts = 1 if model["id"].startswith("google/lyria") else 3
        return Answer([*pieces, *audio_pieces(seed, f"A sound for: {excerpt(request)}", parts)])
    if request.tools and request.tool_choice != "none" and request.last_role != "tool":
        return Answer([*pieces, *offered_tool(request)], "tool_calls", "tool_calls")
    limits = (request.max_tokens, (model.get("top_provider") or {}).get("max_completion_tokens"))
    limit = min((number for number in limits if number), default=None)
    return fit(Answer([*pieces, *text_pieces(split(prose(request, model)))]), limit)


def reasons(request: ChatRequest, model: dict[str, Any]) -> bool:
    """Whether the model shows its reasoning for this request."""
    facts = model.get("reasoning")
    wish = request.reasoning
    if not facts or wish.get("exclude") is True:
        return False
    if wish.get("effort") == "none" or wish.get("enabled") is False:
        return bool(facts.get("mandatory"))
    asked = bool(wish.get("effort") or wish.get("max_tokens") or wish.get("enabled"))
    return asked or bool(facts.get("mandatory") or facts.get("default_enabled"))


def reasoning_of(request: ChatRequest) -> str:
    """What a model is said to have thought."""
    return f"The user asks: {excerpt(request)} I repeat the question, so that it can be recognised, and answer it."


def excerpt(request: ChatRequest) -> str:
    """The beginning of the prompt on one line."""
    line = " ".join(request.prompt.split())
    return line if len(line) <= 80 else f"{line[:79]}…"


def prose(request: ChatRequest, model: dict[str, Any]) -> str:
    """Sentences chosen by prompt and model, with the user's words in them; JSON where JSON was asked for."""
    kind = request.response_format.get("type")
    if kind == "json_schema":
        schema = request.response_format.get("json_schema")
        return orjson.dumps(sample(schema.get("schema") if isinstance(schema, dict) else {}, excerpt(request))).decode()
    if kind == "json_object":
        return orjson.dumps({"answer": excerpt(request), "model": model["id"]}).decode()
    digest = hashlib.sha256(f"{model['id']}\n{request.prompt}".encode()).digest()
    chosen = dict.fromkeys(SENTENCES[byte % len(SENTENCES)] for byte in digest[:5])
    name = model.get("name", model["id"])
    return f"You wrote: “{request.prompt}”\n\nThis is the sandbox, standing in for {name}. {' '.join(chosen)}"


def sample(schema: Any, text: str, depth: int = 0) -> Any:
    """A small value that fits a JSON Schema, as far as types, enums, consts and properties go."""
    if not isinstance(schema, dict) or depth > 8:
        return text
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return sample(schema[key][0], text, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: sample(inner, text, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        return [sample(schema.get("items"), text, depth + 1) for _ in range(schema.get("minItems", 1))]
    simple: dict[Any, Any] = {
        "integer": schema.get("minimum", 1),
        "number": schema.get("minimum", 1.5),
        "boolean": True,
    }
    return None if kind == "null" else simple.get(kind, text)


def offered_tool(request: ChatRequest) -> list[Piece]:
    """A call of the tool that the request insists on, else of the first one offered."""
    functions = [tool["function"] for tool in request.tools] or [{"name": "get_weather", "parameters": WEATHER}]
    choice = request.tool_choice
    wanted = (choice.get("function") or {}).get("name") if isinstance(choice, dict) else None
    function = next((function for function in functions if function.get("name") == wanted), functions[0])
    arguments = sample(function.get("parameters") or {"type": "object"}, excerpt(request) or "Berlin")
    return tool_pieces(str(function.get("name")), orjson.dumps(arguments).decode())


WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}


def fit(answer: Answer, max_tokens: int | None) -> Answer:
    """The answer cut off at `max_tokens`, with finish reason `length` where that took something away."""
    if max_tokens is None or sum(piece.tokens for piece in answer.pieces) <= max_tokens:
        return answer
    kept: list[Piece] = []
    left = max_tokens
    for piece in answer.pieces:
        if piece.tokens > left:
            if piece.kind == "text" and left:
                kept.extend(text_pieces([piece.delta["content"][: left * CHARS_PER_TOKEN]]))
            break
        kept.append(piece)
        left -= piece.tokens
    return replace(answer, pieces=kept, finish="length", native_finish="max_tokens")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
