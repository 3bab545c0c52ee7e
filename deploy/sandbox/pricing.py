"""What a call costs at the catalog's prices, tiers included: Decimal all the way, USD per token as OpenRouter states them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from deploy.sandbox.catalog import Model, is_free, output_modalities

ZERO = Decimal(0)
PRICE_PER_CLIP = Decimal("0.04")


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per token of each kind that an answer can hold, and a price per answer."""

    prompt: Decimal
    text: Decimal
    image: Decimal
    audio: Decimal
    flat: Decimal

    def of(self, kind: str) -> Decimal:
        """The price of one output token; reasoning is billed as text."""
        if kind == "image":
            return self.image
        return self.audio if kind == "audio" else self.text


def prices_of(model: Model, prompt_tokens: int, now: datetime | None = None) -> Prices:
    """The prices for a prompt of this size, at this time of day (UTC) where a tier depends on it."""
    stated = dict(model.get("pricing") or {})
    for override in stated.pop("overrides", None) or ():
        if _applies(override, prompt_tokens, now or datetime.now(UTC)):
            stated.update(override)
    if is_free(model):
        stated = {}
    completion = _price(stated, "completion") or ZERO
    prompt = _price(stated, "prompt") or ZERO
    flat = _price(stated, "request") or ZERO
    # Music shows 0/0 in the catalog and bills per clip: the recorded price of one stands for all of them.
    if not is_free(model) and not prompt and not completion and "audio" in output_modalities(model):
        flat = PRICE_PER_CLIP
    image, audio = _price(stated, "image_output"), _price(stated, "audio_output")
    return Prices(
        prompt=prompt,
        text=completion,
        image=completion if image is None else image,
        audio=completion if audio is None else audio,
        flat=flat,
    )


def _price(stated: dict[str, Any], key: str) -> Decimal | None:
    value = stated.get(key)
    return None if value is None else max(Decimal(str(value)), ZERO)


def _applies(override: dict[str, Any], prompt_tokens: int, now: datetime) -> bool:
    if prompt_tokens <= override.get("min_prompt_tokens", -1):
        return False
    if "utc_start" not in override:
        return True
    clock = now.hour * 100 + now.minute
    start, end = int(override["utc_start"]), int(override["utc_end"])
    return start <= clock < end if start <= end else clock >= start or clock < end
