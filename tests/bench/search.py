"""How long a search of 650 models takes, through the gateway and the bus, at one connection.

The catalog is made up: as many models as OpenRouter lists of all modalities, with names that have words in common.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import httpx

MODELS = 650
QUERIES = (
    "",
    "q=maker3",
    "q=modl-42",  # a typing mistake
    "capability=tools&sort=price&min_context=32000",
    "q=model&facets=true&limit=20",
)
_FAMILIES = ("swift", "deep", "clear", "tiny", "grand")


def write_catalog(path: Path) -> None:
    """A list as upstream gives it."""
    path.write_text(json.dumps({"data": [_entry(number) for number in range(MODELS)]}), encoding="utf-8")


def _entry(number: int) -> dict[str, object]:
    maker, family = f"maker{number % 40}", _FAMILIES[number % len(_FAMILIES)]
    return {
        "id": f"{maker}/{family}-model-{number}",
        "canonical_slug": f"{maker}/{family}-model-{number}-20260101",
        "name": f"{maker.title()}: {family.title()} Model {number}",
        "created": 1_780_000_000 + number,
        "description": f"A {family} model for text and pictures, number {number} of its kind. " * 3,
        "context_length": 8_192 * (1 + number % 16),
        "architecture": {
            "input_modalities": ["text", "image"] if number % 2 else ["text"],
            "output_modalities": ["text"],
        },
        "pricing": {"prompt": f"0.000000{1 + number % 9}", "completion": f"0.00000{1 + number % 9}"},
        "top_provider": {"context_length": 8_192, "max_completion_tokens": 4_096},
        "supported_parameters": ["max_tokens", "temperature", *(["tools"] if number % 3 else [])],
    }


async def measure_searches(gateway_url: str, token: str, *, calls: int) -> None:
    """Prints a line per kind of search and the median over all of them."""
    headers = {"Authorization": f"Bearer {token}"}
    totals_ms: list[float] = []
    print(f"\n  Search of {MODELS} models through the gateway, one connection")
    async with httpx.AsyncClient(base_url=gateway_url, headers=headers, timeout=30) as client:
        for query in QUERIES:
            url, times_ms = f"/api/models?{query}", []
            for number in range(calls + 5):
                started = time.perf_counter()
                response = (await client.get(url)).raise_for_status()
                if number >= 5:
                    times_ms.append((time.perf_counter() - started) * 1000)
            found = response.json()["total"]
            print(f"    {query or '(everything)':<50} {found:>4} found   p50 {statistics.median(times_ms):6.2f} ms")
            totals_ms += times_ms
    print(f"  -> median {statistics.median(totals_ms):.2f} ms (wanted: under 20)")
