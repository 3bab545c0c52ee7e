"""The catalog: models typed by hand (or a file in the raw form of `GET /models`), the modes, and the recordings.

Objects of a file are served unchanged. The file may be replaced while the sandbox runs; a file that does not parse leaves
the models that were there. `sandbox/…` and `recorded/…` never come from a file.
"""

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

Model = dict[str, Any]

MODALITIES = ("text", "image", "embeddings", "audio", "video", "rerank", "speech", "transcription", "decisions")
DYNAMIC_VARIANTS = (":nitro", ":floor", ":exacto", ":online")
EPOCH_OF_MODES = 1_672_531_200

PARAMETERS = [
    "frequency_penalty",
    "include_reasoning",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "parallel_tool_calls",
    "presence_penalty",
    "reasoning",
    "reasoning_effort",
    "repetition_penalty",
    "response_format",
    "seed",
    "stop",
    "structured_outputs",
    "temperature",
    "tool_choice",
    "tools",
    "top_a",
    "top_k",
    "top_logprobs",
    "top_p",
    "verbosity",
    "web_search_options",
]


def raw_form(fact: Model) -> Model:
    """One line of `models.json` as OpenRouter would serve it."""
    canonical = fact.get("canonical_slug", fact["id"])
    context, completion, moderated = fact["top_provider"]
    model = {
        "id": fact["id"],
        "canonical_slug": canonical,
        "hugging_face_id": None,
        "name": fact["name"],
        "created": fact["created"],
        "description": fact["description"],
        "context_length": fact["context_length"],
        "architecture": {
            "modality": "+".join(fact["input"]) + "->" + "+".join(fact["output"]),
            "input_modalities": fact["input"],
            "output_modalities": fact["output"],
            "tokenizer": fact["tokenizer"],
            "instruct_type": None,
        },
        "pricing": fact["pricing"],
        "top_provider": {
            "context_length": context,
            "max_completion_tokens": completion,
            "is_moderated": moderated,
        },
        "per_request_limits": None,
        "supported_parameters": fact["parameters"],
        "default_parameters": {},
        "supported_voices": fact.get("supported_voices"),
        "knowledge_cutoff": fact.get("knowledge_cutoff"),
        "expiration_date": fact.get("expiration_date"),
        "links": {"details": f"/api/v1/models/{canonical}/endpoints"},
    }
    return model | {key: fact[key] for key in ("reasoning", "alias_target") if key in fact}


def made_up(model_id: str, name: str, description: str, age: int) -> Model:
    """The entry of a mode or a recording: everything goes in and out, at small prices; older ones come later."""
    return raw_form(
        {
            "id": model_id,
            "name": name,
            "created": EPOCH_OF_MODES - age,
            "description": description,
            "context_length": 1_000_000,
            "input": ["text", "image", "file", "audio"],
            "output": ["text", "image", "audio"],
            "tokenizer": "Other",
            "pricing": {
                "prompt": "0.0000001",
                "completion": "0.0000004",
                "image_output": "0.000003",
                "audio_output": "0.000001",
            },
            "top_provider": [1_000_000, 65_536, False],
            "parameters": PARAMETERS,
        }
    )


def load_typed() -> list[Model]:
    """The models of `models.json` in order of popularity."""
    facts = orjson.loads((Path(__file__).parent / "models.json").read_bytes())
    return [raw_form(fact) for fact in facts]


@dataclass
class Catalog:
    """All models by id, and the listings made of them, until the file changes."""

    file: Path | None
    extra: list[Model]
    version: int = 0
    models: dict[str, Model] = field(default_factory=dict)
    _stamp: tuple[int, int, int] | None = None  # of the file that was read last, good or bad

    def __post_init__(self) -> None:
        self._typed = load_typed()
        self._ranks = {model["id"]: rank for rank, model in enumerate(self._typed)}
        self._take(self._typed)

    def _take(self, models: list[Model]) -> None:
        entries = sorted(models, key=lambda model: -int(model.get("created") or 0)) if models is self._typed else models
        self.models = {model["id"]: model for model in [*entries, *self.extra]}
        self.version += 1

    def refresh(self) -> None:
        """Read the file again when it was replaced or rewritten."""
        if self.file is None:
            return
        try:
            stat = self.file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            document = orjson.loads(self.file.read_bytes())
            models = document["data"] if isinstance(document, dict) else document
            self._take([model for model in models if isinstance(model, dict) and "id" in model])
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"sandbox: catalog file not read: {type(error).__name__}", file=sys.stderr, flush=True)

    def listing(self, wanted: frozenset[str] | None, sort: str | None) -> list[Model]:
        """The models that give out one of the wanted kinds (None: all of them), sorted as OpenRouter's `sort` says."""
        models = [
            model for model in self.models.values() if wanted is None or not wanted.isdisjoint(output_modalities(model))
        ]
        if sort in ("most-popular", "top-weekly"):
            models.sort(key=self._popularity)
        elif sort in ("pricing-low-to-high", "pricing-high-to-low"):
            models.sort(key=_prompt_price, reverse=sort == "pricing-high-to-low")
        elif sort == "context-high-to-low":
            models.sort(key=lambda model: -(model.get("context_length") or 0))
        return models

    def _popularity(self, model: Model) -> tuple[bool, int, str]:
        # A file has no ranks, so a hash stands in for those we have not typed: any order will do that stays.
        model_id = model["id"]
        made = model_id.startswith(("sandbox/", "recorded/"))
        digest = hashlib.sha256(model_id.encode()).hexdigest()
        return made, self._ranks.get(model_id, len(self._ranks)), digest

    def find(self, model_id: str) -> Model | None:
        """The entry that a call of `model_id` uses; dynamic variants of an entry are that entry."""
        model = self.models.get(model_id)
        if model is None and model_id.endswith(DYNAMIC_VARIANTS):
            model = self.models.get(model_id.rpartition(":")[0])
        return model

    def served(self, model: Model) -> Model:
        """The entry that answers when `model` is called: aliases and routers lead elsewhere."""
        target = self.models.get((model.get("alias_target") or {}).get("slug", ""))
        if target is not None:
            return target
        if _prompt_price(model) < 0:
            return min(filter(_is_ordinary, self.models.values()), key=_prompt_price, default=model)
        return model


def output_modalities(model: Model) -> list[str]:
    """What the model gives out; an entry that does not say gives out text."""
    found: list[str] = (model.get("architecture") or {}).get("output_modalities") or ["text"]
    return found


def is_free(model: Model) -> bool:
    """Whether calls cost nothing: a price of zero alone does not say so."""
    return bool(model["id"].endswith(":free") or model["id"] == "openrouter/free")


def _prompt_price(model: Model) -> float:
    return float((model.get("pricing") or {}).get("prompt") or 0)


def _is_ordinary(model: Model) -> bool:
    named = model["id"].startswith(("sandbox/", "recorded/", "~")) or model["id"].endswith(":batch")
    return not named and output_modalities(model) == ["text"] and _prompt_price(model) > 0
