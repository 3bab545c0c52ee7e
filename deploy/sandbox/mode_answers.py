"""The content of the modes: what `sandbox/<mode>` says, before `scripts` decides how it travels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deploy.sandbox.answers import (
    LONG_CHUNKS,
    OVERSIZE_CHARS,
    SVG,
    Answer,
    Piece,
    audio_pieces,
    excerpt,
    fit,
    image_piece,
    offered_tool,
    reasoning_of,
    reasoning_pieces,
    split,
    text_pieces,
    tokens_of,
    tool_pieces,
)
from deploy.sandbox.media import data_url, png
from deploy.sandbox.requests import ChatRequest

CITED = ("https://example.com/one", "https://example.com/two")


def mode_answer(mode: str, request: ChatRequest) -> Answer:
    """The answer of a mode to a request, cut to the request's token limit."""
    build = _BUILDERS.get(mode)
    if build is not None:
        return build(request)
    if mode in ("echo", "flaky", "status-402-max-tokens"):
        return fit(Answer(text_pieces(split(request.prompt))), request.max_tokens)
    text = f"The sandbox answers in its mode {mode}. You wrote: {request.prompt}"
    return fit(Answer(text_pieces(split(text))), request.max_tokens)


def fast_answer(chunks: int) -> Answer:
    """The prebuilt answer of the benchmark modes."""
    return Answer(text_pieces([f"word{number:03d} " for number in range(chunks)]))


def _long(request: ChatRequest) -> Answer:
    return fit(fast_answer(LONG_CHUNKS), request.max_tokens)


def _drip(_: ChatRequest) -> Answer:
    return Answer(text_pieces([f"drop {number} " for number in range(1, 6)]))


def _empty(_: ChatRequest) -> Answer:
    return Answer([], "stop", None)


def _length(request: ChatRequest) -> Answer:
    text = f"This answer to “{excerpt(request)}” ends in the middle of a"
    return replace(fit(Answer(text_pieces(split(text))), request.max_tokens), finish="length", native_finish="length")


def _content_filter(_: ChatRequest) -> Answer:
    return Answer(text_pieces(["This part was ", "fine, but"]), "content_filter", "SAFETY")


def _refusal(_: ChatRequest) -> Answer:
    refusal = "I cannot help with that."
    return Answer([Piece({"content": None, "refusal": refusal}, "text", tokens_of(refusal))], message={"content": None})


def _thinking_only(request: ChatRequest) -> Answer:
    return Answer(reasoning_pieces(reasoning_of(request)), "length", "max_tokens")


def _reasoning(request: ChatRequest) -> Answer:
    text = f"After some thought about “{excerpt(request)}”: yes."
    return Answer([*reasoning_pieces(reasoning_of(request)), *text_pieces(split(text))])


def _content_list(request: ChatRequest) -> Answer:
    thought: dict[str, Any] = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see. "}]}
    text = f"You wrote: {excerpt(request)}"
    parts: list[dict[str, Any]] = [thought, {"type": "text", "text": text}]
    pieces = [
        Piece({"content": [thought]}, "reasoning", 3),
        Piece({"content": [parts[1]]}, "text", tokens_of(text)),
    ]
    return Answer(pieces, message={"content": parts})


def _citations(_: ChatRequest) -> Answer:
    text = "Two pages say so: one and two."
    annotations: list[dict[str, Any]] = [
        {"type": "url_citation", "url_citation": {"url": CITED[0], "title": "One", "start_index": 19, "end_index": 22}},
        {"type": "url_citation", "url_citation": {"url": CITED[1]}},
    ]
    pieces = [*text_pieces(split(text)), Piece({"content": "", "annotations": annotations}, "other", 0)]
    return Answer(pieces, web_searches=1)


def _tools(request: ChatRequest) -> Answer:
    return Answer(offered_tool(request), "tool_calls", "tool_calls")


def _tools_no_args(request: ChatRequest) -> Answer:
    names = [str(tool["function"].get("name")) for tool in request.tools]
    return Answer(tool_pieces((names or ["ping"])[0], None), "tool_calls", "tool_calls")


def _image(request: ChatRequest) -> Answer:
    return Answer([image_piece(data_url("image/png", png(request.prompt)))], native_finish="STOP")


def _image_two(request: ChatRequest) -> Answer:
    urls = [data_url("image/png", png(f"{request.prompt}\n{number}")) for number in range(2)]
    return Answer([*text_pieces(["Here are two."]), *(image_piece(url, index) for index, url in enumerate(urls))])


def _image_bad(_: ChatRequest) -> Answer:
    return Answer([image_piece(data_url("image/png", b"this is no picture"))])


def _svg_image(_: ChatRequest) -> Answer:
    return Answer([image_piece(data_url("image/svg+xml", SVG))])


def _audio(request: ChatRequest) -> Answer:
    return Answer(audio_pieces(request.prompt, f"You wrote: {excerpt(request)}", 3))


def _split_utf8(request: ChatRequest) -> Answer:
    return Answer(text_pieces(["Grüße, 世界! ", "🎉🎉 ", "naïve ", "señor: ", request.prompt]))


def _oversize(_: ChatRequest) -> Answer:
    return Answer(text_pieces(["0123456789abcdef" * (OVERSIZE_CHARS // 16)]))


_BUILDERS: dict[str, Callable[[ChatRequest], Answer]] = {
    "long": _long,
    "drip": _drip,
    "empty": _empty,
    "length": _length,
    "content-filter": _content_filter,
    "refusal": _refusal,
    "thinking-only": _thinking_only,
    "reasoning": _reasoning,
    "content-list": _content_list,
    "citations": _citations,
    "tools": _tools,
    "tools-no-args": _tools_no_args,
    "image": _image,
    "image-two": _image_two,
    "image-bad": _image_bad,
    "svg-image": _svg_image,
    "audio": _audio,
    "split-utf8": _split_utf8,
    "oversize": _oversize,
}
