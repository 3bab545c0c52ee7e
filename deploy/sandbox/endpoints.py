"""Who serves a model, made up from its entry in the catalog: always the same for the same id, in the shapes of OpenRouter's
`GET /models/{author}/{slug}/endpoints`.

The first provider has the catalog's prices and limits, as OpenRouter's has; others are dearer, cheaper, smaller, or in
trouble. Nobody serves routers and batch models; `sandbox/status-…` models refuse here too.
"""

import zlib
from decimal import Decimal
from typing import Any

from deploy.sandbox.catalog import Model, is_free
from deploy.sandbox.wire import number

_NAMES = ("Sandbox", "Sandbox Harbour", "Sandbox Meadow", "Sandbox Summit", "Sandbox Delta")
_QUANTIZATIONS = ("unknown", "fp8", "bf16", "int4", "fp8")
_FACTORS = tuple(Decimal(factor) for factor in ("1", "1.2", "0.8", "1.65", "0.95"))
_DISCOUNTED, _TROUBLED, _UNMEASURED = 2, 3, 4
_PERCENTILES = ("p50", "p75", "p90", "p99")


def with_endpoints(model: Model, *, authenticated: bool) -> dict[str, Any]:
    """The document of a model. Only who sends a key is told latency and throughput."""
    seed = zlib.crc32(model["id"].encode())
    endpoints = [_endpoint(model, place, seed, authenticated=authenticated) for place in range(_count(model, seed))]
    return {key: model.get(key) for key in ("id", "name", "created", "description", "architecture")} | {
        "endpoints": endpoints
    }


def _count(model: Model, seed: int) -> int:
    model_id = model["id"]
    if Decimal(str(model["pricing"].get("prompt", "0"))) < 0 or model_id.endswith(":batch"):
        return 0
    if is_free(model) or model_id.startswith(("sandbox/", "recorded/")):
        return 1
    return 1 + seed % len(_NAMES)


def _endpoint(model: Model, place: int, seed: int, *, authenticated: bool) -> dict[str, Any]:
    top = model.get("top_provider") or {}
    context = top.get("context_length") or model.get("context_length")
    parameters = model.get("supported_parameters") or []
    name, quantization = _NAMES[place], _QUANTIZATIONS[place]
    tag = name.lower().replace(" ", "-")
    troubled, measured = place == _TROUBLED, authenticated and place != _UNMEASURED
    return {
        "name": f"{name} | {model.get('canonical_slug', model['id'])}",
        "model_id": model["id"],
        "model_name": model.get("name"),
        "context_length": context if place < 2 or not context else context // 2,
        "pricing": _times(model["pricing"], _FACTORS[place])
        | {"discount": number(Decimal("0.25")) if place == _DISCOUNTED else 0},
        "provider_name": name,
        "tag": tag if quantization == "unknown" else f"{tag}/{quantization}",
        "quantization": quantization,
        "max_completion_tokens": top.get("max_completion_tokens"),
        "max_prompt_tokens": None,
        "supported_parameters": parameters if place < 2 else parameters[::2],
        "status": -2 if troubled else 0,
        "uptime_last_30m": None if place == _UNMEASURED else 71.43 if troubled else 100,
        "uptime_last_5m": None,
        "uptime_last_1d": 88.2 if troubled else round(100 - (seed >> place) % 97 / 100, 2),
        "supports_implicit_caching": place == 0,
        "supports_voice_cloning": False,
        "supports_multiple_audio_references": False,
        "supports_image_reference": False,
        "supports_tool_choice": dict.fromkeys(("none", "auto", "required", "function"), "tool_choice" in parameters),
        "native_tools": {},
        "latency_last_30m": _spread(300 + seed % 700 * (place + 1), "1.4") if measured else None,
        "throughput_last_30m": _spread(25 + (seed >> place) % 120, "0.7") if measured else None,
    }


def _times(pricing: dict[str, Any], factor: Decimal) -> dict[str, Any]:
    """All prices of an entry, tiers included, that many times as high."""
    return {key: _scaled(key, value, factor) for key, value in pricing.items()}


def _scaled(key: str, value: Any, factor: Decimal) -> Any:
    if key == "overrides":
        return [_times(override, factor) for override in value]
    # Conditions of a tier are no strings, or times of day.
    if not isinstance(value, str) or key.startswith("utc_"):
        return value
    return format((Decimal(value) * factor).normalize(), "f")


def _spread(median: int, factor: str) -> dict[str, Any]:
    return {name: number(median * Decimal(factor) ** power) for power, name in enumerate(_PERCENTILES)}
