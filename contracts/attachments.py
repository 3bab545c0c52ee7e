"""Files that go into a run: what may be sent, how large it may be, what reading it costs, and how a gateway keeps one.

The bytes never cross the bus. A gateway says what it has received and gets a name; then it writes the file under that name
into the object store, where executors read it. The executor's index has its row before the first byte is stored, so that
nothing lies in the store that nobody knows of.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

from pydantic import Field, JsonValue

from contracts.base import Contract, Utc
from contracts.catalog import Model, OpenRouterConfig
from contracts.execution import Caller

MAX_ATTACHMENT_BYTES = 20 * 1024 * 1024
MAX_ATTACHED_BYTES = 2 * MAX_ATTACHMENT_BYTES
"""All files of one run together."""
MAX_IMAGE_PIXELS = 50_000_000
MAX_PDF_PAGES = 200

SENDABLE: Mapping[str, tuple[str, ...]] = {
    "image": ("image/png", "image/jpeg", "image/webp", "image/gif"),
    "file": ("application/pdf",),
    "audio": ("audio/wav", "audio/mpeg", "audio/ogg", "audio/flac", "audio/aac", "audio/mp4"),
}
"""The media types that upstream takes, by the type of the input."""

# What OpenRouter charges for reading a page, on top of the model's tokens.
PDF_PAGE_USD: Mapping[str, Decimal] = {
    "native": Decimal(0),
    "cloudflare-ai": Decimal(0),
    "mistral-ocr": Decimal("0.002"),
}


def pdf_engine(config: OpenRouterConfig, model: Model) -> str:
    """Which engine reads the PDFs of a run: the creator's choice, else one that costs nothing.

    Upstream's own default for models that cannot read PDFs is the one that is billed by the page.
    """
    chosen = _chosen_engine(config.parameters.get("plugins"))
    if chosen is not None:
        return chosen
    # A fallback model may not read PDFs itself.
    return "native" if "file" in model.input_modalities and not config.fallback_models else "cloudflare-ai"


def _chosen_engine(plugins: JsonValue) -> str | None:
    for plugin in plugins if isinstance(plugins, list) else []:
        if isinstance(plugin, dict) and plugin.get("id") == "file-parser" and plugin.get("enabled") is not False:
            pdf = plugin.get("pdf")
            engine = pdf.get("engine") if isinstance(pdf, dict) else None
            return engine if isinstance(engine, str) else None
    return None


class ClaimMedia(Contract):
    """A gateway has received a file and is about to store it. What it is was read from its content."""

    caller: Caller = Field(description="Whose it is; nobody else can read it or run anything with it.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    mime_type: Literal[
        "image/png", "image/jpeg", "image/webp", "image/gif", "application/pdf", "audio/wav", "audio/mpeg", "audio/ogg",
        "audio/flac", "audio/aac", "audio/mp4",
    ]  # fmt: skip
    bytes: int = Field(ge=1, le=MAX_ATTACHMENT_BYTES)
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    pages: int | None = Field(default=None, ge=0)


class MediaClaimed(Contract):
    """The name to store it under. The same content of the same caller has the same name."""

    name: str
    expires_at: Utc = Field(description="Until then it is kept; longer while a queued or running run needs it.")


class Upload(Contract):
    """A file that is kept for you. Give `url` as the value of an image, file or audio input."""

    url: str
    mime_type: str = Field(description="As its content says.")
    bytes: int
    width: int | None = Field(default=None, description="Pixels, of a picture.")
    height: int | None = None
    pages: int | None = Field(default=None, description="Of a PDF.")
    expires_at: Utc = Field(description="Until then it is kept; longer while a queued or running run needs it.")
