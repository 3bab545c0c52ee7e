"""Turns whatever OpenRouter answers into one normal form: ordered typed parts, reasoning apart, usage, exact cost.

Streams and plain documents go through the same code: a plain completion is a stream of one chunk. Nothing that arrives
makes it raise; what cannot be understood becomes an `other` part, and an answer that is no completion becomes a fault.
Easy to get wrong: a finish is not the end (usage follows, and sometimes an error), indexes and ids of tool calls repeat,
and the same reasoning arrives under up to three names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from contracts.execution import MAX_RESULT_BYTES, CitationPart, FinishReason, OtherPart, RefusalPart, TextPart
from services.executor import faults, refusals
from services.executor.answer import Answer, Delta, Output, Reasoning, Text
from services.executor.faults import Fault
from services.executor.lines import DONE
from services.executor.parts import (
    MAX_ID_CHARS,
    MEDIA_KINDS,
    AudioDraft,
    MediaKind,
    RawMedia,
    RefusalDraft,
    ToolDraft,
    UnknownDraft,
    clean,
    cost_of_usage,
    count_of,
    decode,
    entries_of,
    media_of,
    open_tool,
    other_part,
    short_name,
    size_of,
    string_of,
    usage_of,
)

__all__ = ["Answer", "Delta", "Normaliser", "Output", "RawMedia", "Reasoning", "Text"]

_MAX_PARTS = 1000
_PART_BYTES = 400  # what a part takes beside what upstream said: names of fields, the address of a file
_MAX_UNKNOWN_KEYS = 20
_REASONING_NAMES = ("reasoning", "reasoning_content", "reasoning_details")


_FINISH: dict[str, FinishReason] = {
    "stop": "stop", "end_turn": "stop", "completed": "stop", "complete": "stop", "eos": "stop", "stop_sequence": "stop",
    "length": "length", "max_tokens": "length", "max_output_tokens": "length",
    "tool_calls": "tool_calls", "tool_use": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter", "safety": "content_filter", "error": "error",
}  # fmt: skip

_Slot = Output | ToolDraft | AudioDraft | RefusalDraft

_KNOWN_KEYS = frozenset({
    "role", "content", "refusal", "reasoning", "reasoning_content", "reasoning_details", "tool_calls", "images",
    "videos", "audio", "annotations", "name", "logprobs", "index", "prefix",
})  # fmt: skip
_PLAIN_KEYS = frozenset({"role", "content", *_REASONING_NAMES})


class Normaliser:
    """The state of one answer. `feed` every payload, then `finish`, whatever happened."""

    def __init__(self, audio_format: str | None = None) -> None:
        self.generation_id: str | None = None
        self.served: str | None = None
        self.provider: str | None = None
        self.text_seen = False
        self.delivered = False
        self.done = False
        self._audio_format = audio_format
        self._fault: Fault | None = None
        self._finish: str | None = None
        self._native_finish: str | None = None
        self._usage: dict[str, Any] = {}
        self._choice_index: object = None
        self._choice_seen = False
        self._plain = False
        self._streamed = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._result_bytes = 0
        self._reasoning_name: str | None = None
        self._half_character = ""
        self._slots: list[_Slot] = []
        self._tools: list[ToolDraft] = []
        self._audio: AudioDraft | None = None
        self._refusal: RefusalDraft | None = None
        self._files: set[int] = set()  # hashes of their base64, which may be long
        self._citations: set[tuple[object, ...]] = set()
        self._unknown: dict[str, UnknownDraft] = {}
        self._deltas: list[Delta] = []
        self._answer: Answer | None = None

    @property
    def ended(self) -> bool:
        """A finish or an error was seen: what can still come is the usage."""
        return self._finish is not None or self._fault is not None

    def feed(self, payload: bytes) -> list[Delta]:
        """One payload of the splitter. What became known with it, in order; never raises."""
        # Nothing after the end is read, also where it came in the same packet.
        if self.done or payload == DONE:
            self.done = True
            return []
        try:
            chunk = decode(payload)
        except ValueError:
            # After the finish only the usage is lost, which can be looked up; before it the answer is.
            if not self.ended:
                self._fault = faults.broken_frame(delivered=self.delivered)
            return []
        return self.take(chunk)

    def take(self, chunk: Any) -> list[Delta]:
        """One decoded chunk, or a whole completion."""
        if not isinstance(chunk, dict):
            return []
        nested = chunk.get("provider")
        if isinstance(nested, dict) and "choices" not in chunk and "choices" in nested:
            chunk = {**chunk, "provider": None, **nested}
        self._read_head(chunk)
        choice = self._choice(chunk.get("choices"))
        # What comes after a fault is no part of the answer any more, except what it cost.
        if choice is not None and self._fault is None:
            self._read_choice(choice)
        error = chunk.get("error")
        if not error and choice is not None:
            error = choice.get("error")
        if error or (self._finish or "").lower() == "error":
            self._fail(error)
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> Answer:
        """The answer as far as it came, also after a cancel or a broken connection. Nothing is read after it."""
        if self._answer is None:
            self._answer = self._close()
        return self._answer

    def _close(self) -> Answer:
        self._flush_half_character()
        outputs = [self._closed(slot) for slot in self._slots]
        unknown = [draft.part(key) for key, draft in self._unknown.items()]
        self._deltas += unknown
        outputs += unknown
        text = "".join(self._text)
        reasoning = "".join(self._reasoning) or None
        finish = self._mapped_finish()
        cost = cost_of_usage(self._usage)
        fault = self._fault or self._ending_fault()
        if fault is not None and cost:
            fault = replace(fault, billed="maybe", retry=False)
        elif fault is not None and cost is not None and self._fault is None and not self.delivered:
            # It just ended, before anything came, and upstream says that it costs nothing: so does asking again.
            fault = replace(fault, billed="no", retry=True)
        has_output = bool(text or outputs)
        return Answer(
            text=text,
            outputs=(TextPart(text=text), *outputs) if text else tuple(outputs),
            reasoning=reasoning,
            finish_reason=finish,
            native_finish_reason=self._native_finish,
            served=self.served,
            provider=self.provider,
            generation_id=self.generation_id,
            usage=usage_of(self._usage),
            cost_usd=cost,
            truncated=(fault is not None and has_output)
            or finish == "length"
            or (finish == "content_filter" and has_output),
            complete=fault is None,
            empty=not has_output and reasoning is None,
            fault=fault,
            deltas=tuple(self._deltas),
        )

    # What a chunk says about the answer as a whole ---------------------------------------------------------------------

    def _read_head(self, chunk: dict[str, Any]) -> None:
        identity, model, provider = chunk.get("id"), chunk.get("model"), chunk.get("provider")
        if self.generation_id is None and isinstance(identity, str) and 0 < len(identity) <= MAX_ID_CHARS:
            self.generation_id = short_name(identity)
        if isinstance(model, str) and model:
            self.served = short_name(model)
        if isinstance(provider, str) and provider:
            self.provider = short_name(provider)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage.update({key: value for key, value in usage.items() if value is not None})

    def _choice(self, choices: Any) -> dict[str, Any] | None:
        """The choice that we follow: the first ever seen. Others exist only where somebody asked for several."""
        if not isinstance(choices, list):
            return None
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            if not self._choice_seen:
                self._choice_seen, self._choice_index = True, index
            if index == self._choice_index or index is None or self._choice_index is None:
                return choice
        return None

    def _read_choice(self, choice: dict[str, Any]) -> None:
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, dict):
            self._streamed = True
            self._read_message(delta)
        elif isinstance(message, dict) and not self._streamed:
            self._plain = True
            self._read_message(message)
        elif isinstance(choice.get("text"), str):
            self._add_text(choice["text"])
        finish, native = choice.get("finish_reason"), choice.get("native_finish_reason")
        if isinstance(finish, str) and finish and (self._finish is None or finish == "error"):
            self._finish = finish
        if isinstance(native, str) and native:
            self._native_finish = short_name(native)

    def _fail(self, error: object) -> None:
        """An error inside a 200. The first one is the cause; usage may still follow it."""
        if self._fault is None:
            self._fault = refusals.from_error(error, delivered=self.delivered)

    def _mapped_finish(self) -> FinishReason | None:
        if self._finish is None:
            return "tool_calls" if self._tools else None
        return _FINISH.get(self._finish.lower(), "other")

    def _ending_fault(self) -> Fault | None:
        """Whether the answer is whole: it finished, or it came in one piece, or its end mark came after some output."""
        if not self._choice_seen:
            return faults.not_a_completion()
        has_output = bool(self._text or self._slots or self._reasoning or self._unknown)
        if self._finish is not None or (self._plain and has_output) or (self.done and has_output):
            return None
        return faults.cut_off(delivered=self.delivered)

    # What the message holds --------------------------------------------------------------------------------------------

    def _read_message(self, message: dict[str, Any]) -> None:
        self._read_reasoning(message)
        for part in entries_of(message.get("content")):
            self._read_content_part(part)
        # Nearly every chunk of a stream ends here.
        if not message.keys() <= _PLAIN_KEYS:
            self._read_beside_content(message)

    def _read_beside_content(self, message: dict[str, Any]) -> None:
        self._read_refusal(message.get("refusal"))
        for entry in entries_of(message.get("tool_calls")):
            self._read_tool_call(entry)
        for entry in entries_of(message.get("images")):
            self._read_media(entry, "image")
        for entry in entries_of(message.get("videos")):
            self._read_media(entry, "video")
        if message.get("audio"):
            self._read_audio(message["audio"])
        for entry in entries_of(message.get("annotations")):
            self._read_annotation(entry)
        for key in message:
            if key not in _KNOWN_KEYS and message[key]:
                self._read_unknown(key, message[key])

    def _read_refusal(self, refusal: Any) -> None:
        if not isinstance(refusal, str) or not refusal or not self._fits(size_of(refusal)):
            return
        if self._refusal is None:
            draft = RefusalDraft()
            if not self._append(draft):
                return
            self._refusal = draft
        self._refusal.pieces.append(refusal)
        self.delivered = True

    def _read_unknown(self, key: str, value: Any) -> None:
        if key not in self._unknown:
            if len(self._unknown) == _MAX_UNKNOWN_KEYS or not self._fits(_PART_BYTES):
                return
            self._unknown[key] = UnknownDraft()
        self._fits(self._unknown[key].add(value))

    def _read_reasoning(self, message: dict[str, Any]) -> None:
        """The first of three names that has any: OpenRouter repeats the same words under the others, also in later chunks."""
        for name in (self._reasoning_name,) if self._reasoning_name else _REASONING_NAMES:
            for detail in entries_of(message.get(name)):
                text = (detail.get("text") or detail.get("summary")) if isinstance(detail, dict) else detail
                if isinstance(text, str) and text and text != "[REDACTED]":
                    self._reasoning_name = name
                    self._add_reasoning(text)
            if self._reasoning_name:
                return

    def _read_content_part(self, part: Any) -> None:
        if isinstance(part, str):
            self._add_text(part)
            return
        if not isinstance(part, dict):
            self._add_output(other_part("content", part))
            return
        kind = part.get("type")
        if kind in ("text", "output_text") or (kind is None and isinstance(part.get("text"), str)):
            text = part.get("text")
            if isinstance(text, str):
                self._add_text(text)
        elif kind in ("thinking", "reasoning"):
            self._add_thoughts(part.get("thinking") or part.get("text") or part.get("reasoning"))
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            self._add_output(RefusalPart(text=clean(part["refusal"])), size_of(part["refusal"]))
        elif isinstance(kind, str) and kind in MEDIA_KINDS:
            self._read_media(part, MEDIA_KINDS[kind])
        else:
            self._add_output(other_part(kind, part))

    def _add_thoughts(self, thoughts: Any) -> None:
        for thought in entries_of(thoughts) if not isinstance(thoughts, str) else [thoughts]:
            text = thought.get("text") if isinstance(thought, dict) else thought
            if isinstance(text, str) and text:
                self._add_reasoning(text)

    def _read_tool_call(self, entry: Any) -> None:
        if not isinstance(entry, dict):
            self._add_output(other_part("tool_call", entry))
            return
        function = entry.get("function")
        if not isinstance(function, dict):
            if entry.get("type") not in (None, "function"):
                self._add_output(other_part(entry["type"], entry))
                return
            function = entry
        # The arguments of a call stand in the result twice: as they were written, and parsed.
        if not self._fits(size_of(function.get("name")) + 2 * size_of(function.get("arguments"))):
            return
        draft = self._tool_draft(entry, function)
        if draft is not None:
            draft.add(function)
            self.delivered = True

    def _tool_draft(self, entry: dict[str, Any], function: dict[str, Any]) -> ToolDraft | None:
        """The call that an entry belongs to, or a new one. None where it repeats what is finished, or there are too many."""
        if self._finish is not None and not self._plain:
            return None
        call_id, index = (string_of(entry.get("id")) or "")[:MAX_ID_CHARS] or None, count_of(entry.get("index"))
        # A call in a plain answer is always whole and its own.
        found = None if self._plain else open_tool(self._tools, call_id, index, function)
        if found is not None:
            return found
        draft = ToolDraft(index, call_id)
        if not self._append(draft):
            return None
        self._tools.append(draft)
        return draft

    def _read_media(self, entry: Any, kind: MediaKind) -> None:
        media = media_of(entry, kind)
        if isinstance(media, RawMedia):
            # Some providers repeat every image in the last chunk.
            if (seen := hash(media.pieces[0])) in self._files:
                return
            self._files.add(seen)
            self._add_output(media, size_of(media.filename))
            return
        self._add_output(media)

    def _read_audio(self, audio: Any) -> None:
        if not isinstance(audio, dict):
            self._add_output(other_part("audio", audio))
            return
        data, transcript = audio.get("data"), audio.get("transcript")
        if not isinstance(data, str) and not isinstance(transcript, str):
            return
        if not self._fits(size_of(transcript)):
            return
        if self._audio is None:
            draft = AudioDraft()
            if not self._append(draft):
                return
            self._audio = draft
        if isinstance(data, str) and data:
            self._audio.pieces.append(data)
        if isinstance(transcript, str):
            self._audio.transcript.append(transcript)
        self.delivered = True

    def _read_annotation(self, entry: Any) -> None:
        citation = entry.get("url_citation") if isinstance(entry, dict) else None
        url = string_of(citation.get("url")) if isinstance(citation, dict) else None
        if citation is None or url is None:
            kind = entry.get("type") if isinstance(entry, dict) else None
            self._add_output(other_part(kind or "annotation", entry))
            return
        start, end = count_of(citation.get("start_index")), count_of(citation.get("end_index"))
        if (url, start, end) in self._citations:
            return
        self._citations.add((url, start, end))
        title, text = string_of(citation.get("title")), string_of(citation.get("content"))
        part = CitationPart(url=url, title=title, text=text, start_index=start, end_index=end)
        self._add_output(part, size_of(url) + size_of(title) + size_of(text))

    # Adding ------------------------------------------------------------------------------------------------------------

    def _add_text(self, text: str) -> None:
        text = self._half_character + text
        self._half_character = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half_character = text[:-1], text[-1]
        text = clean(text)
        # The text of an answer stands in the result twice: by itself, and as the first of the parts.
        if text and self._fits(2 * size_of(text)):
            self._text.append(text)
            self.text_seen = self.delivered = True
            self._deltas.append(Text(text))

    def _flush_half_character(self) -> None:
        half, self._half_character = self._half_character, ""
        if half:
            self._text.append(clean(half))
            self._deltas.append(Text(clean(half)))

    def _add_reasoning(self, text: str) -> None:
        text = clean(text)
        if self._fits(size_of(text)):
            self._reasoning.append(text)
            self.delivered = True
            self._deltas.append(Reasoning(text))

    def _fits(self, size: int) -> bool:
        """Whether this many bytes more still fit into one message, as the result has to. Where not, the answer ends here,
        and nothing that comes after is taken, however small: a hole in the middle would be worse than an end."""
        self._result_bytes += size
        if self._result_bytes <= MAX_RESULT_BYTES:
            return True
        self._end_as_too_large()
        return False

    def _end_as_too_large(self) -> None:
        self._result_bytes = MAX_RESULT_BYTES
        self.done = True
        if self._fault is None:
            self._fault = faults.too_large(delivered=self.delivered)

    def _append(self, slot: _Slot) -> bool:
        if len(self._slots) == _MAX_PARTS:
            self._end_as_too_large()
            return False
        if not self._fits(_PART_BYTES):
            return False
        self._slots.append(slot)
        return True

    def _add_output(self, part: Output, size: int = 0) -> None:
        if isinstance(part, OtherPart):
            size = size_of(part.kind) + size_of(part.data)
        if self._fits(size) and self._append(part):
            self._deltas.append(part)
            self.delivered = True

    def _closed(self, slot: _Slot) -> Output:
        """A finished part; what grew until now is announced now."""
        if isinstance(slot, ToolDraft):
            part: Output = slot.part(self._tools.index(slot))
        elif isinstance(slot, AudioDraft):
            part = slot.media(self._audio_format) if slot.pieces else other_part("transcript", "".join(slot.transcript))
        elif isinstance(slot, RefusalDraft):
            part = slot.part()
        else:
            return slot
        self._deltas.append(part)
        return part
