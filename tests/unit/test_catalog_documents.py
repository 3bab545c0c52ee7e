"""What reading PDFs costs: the engine that is used, said and billed by the page, in estimates and breakdowns."""

from decimal import Decimal
from typing import Any

import pytest

from contracts.attachments import MAX_PDF_PAGES
from contracts.catalog import EstimateCost, ResourceDraft
from services.catalog.breakdown import breakdown
from services.catalog.documents import LIKELY_PAGES, PAGE_TOKENS_EXPECTED
from services.catalog.estimates import IMAGE_IN_MOST, LIKELY_SOUND_S, SOUND_IN_EXPECTED, estimate
from tests.unit.catalog_parts import model

PAGE = Decimal("0.002")
SEEN = model(context_length=100_000)
NATIVE = model(
    context_length=100_000, architecture={"input_modalities": ["text", "file"], "output_modalities": ["text"]}
)


def draft(inputs: list[dict[str, Any]], **config: Any) -> ResourceDraft:
    return ResourceDraft.model_validate(
        {
            "resource_type": "openrouter_instant",
            "name": "Reader",
            "slug": "reader",
            "openrouter_config": {"model_id": SEEN.id, "prompt_template": "Sum up.", "max_tokens": 10, **config},
            "inputs": inputs,
            "pricing": {"mode": "fixed", "price_usd": "1"},
        }
    )


PAPER = {"name": "paper", "type": "file"}
OCR = {"plugins": [{"id": "file-parser", "pdf": {"engine": "mistral-ocr"}}]}


def test_pages_are_billed_on_top_of_tokens_where_the_engine_bills_them() -> None:
    asked = {"model_id": SEEN.id, "prompt_tokens": 10, "max_tokens": 10, "pdf_pages": 40}
    free = estimate(EstimateCost.model_validate(asked), SEEN)
    billed = estimate(EstimateCost.model_validate({**asked, "pdf_engine": "mistral-ocr"}), SEEN)
    for name in ("low_usd", "expected_usd", "ceiling_usd"):
        assert getattr(billed, name) - getattr(free, name) == 40 * PAGE
    assert free.prompt_tokens == 10 + 40 * PAGE_TOKENS_EXPECTED
    assert (free.pdf and free.pdf.engine, billed.pdf and billed.pdf.usd_per_page) == ("cloudflare-ai", PAGE)
    assert any("mistral-ocr, which bills 0.002 USD a page" in said for said in billed.assumptions)
    without = estimate(EstimateCost.model_validate({**asked, "pdf_pages": 0}), SEEN)
    assert without.pdf is None
    assert without.expected_usd is not None
    assert free.expected_usd is not None
    assert without.expected_usd < free.expected_usd


def test_the_breakdown_of_a_resource_shows_what_reading_costs() -> None:
    free, billed = (breakdown(draft([PAPER], parameters=parameters), [SEEN], None) for parameters in ({}, OCR))
    assert free.pdf is not None
    assert billed.pdf is not None
    assert (free.pdf.engine, free.pdf.usd_per_page) == ("cloudflare-ai", Decimal(0))
    assert (billed.pdf.low_pages, billed.pdf.expected_pages, billed.pdf.most_pages) == (1, LIKELY_PAGES, MAX_PDF_PAGES)
    for name, pages in (("low", 1), ("expected", LIKELY_PAGES), ("ceiling", MAX_PDF_PAGES)):
        assert getattr(billed, name).model_usd - getattr(free, name).model_usd == pages * PAGE
    optional = breakdown(draft([{**PAPER, "required": False}], parameters=OCR), [SEEN], None)
    assert optional.pdf is not None
    assert optional.pdf.low_pages == 0
    assert breakdown(draft([]), [SEEN], None).pdf is None


@pytest.mark.parametrize(
    ("parameters", "seen", "engine"),
    [({}, SEEN, "cloudflare-ai"), ({}, NATIVE, "native"), (OCR, NATIVE, "mistral-ocr")],
)
def test_the_engine_is_the_one_that_runs_use(parameters: dict[str, Any], seen: Any, engine: str) -> None:
    shown = breakdown(draft([PAPER], parameters=parameters), [seen], None).pdf
    assert shown is not None
    assert shown.engine == engine


def test_an_engine_of_which_nobody_knows_the_price_makes_the_cost_unknown() -> None:
    strange = {"plugins": [{"id": "file-parser", "pdf": {"engine": "tomorrow"}}]}
    shown = breakdown(draft([PAPER], parameters=strange), [SEEN], None)
    assert shown.pdf is not None
    assert (shown.pdf.usd_per_page, shown.expected.model_usd, shown.ceiling.model_usd) == (None, None, None)


def test_recordings_and_pictures_are_counted() -> None:
    with_sound = breakdown(draft([{"name": "song", "type": "audio"}]), [SEEN], None)
    plain = breakdown(draft([]), [SEEN], None)
    with_picture = breakdown(draft([{"name": "photo", "type": "image"}]), [SEEN], None)
    prompt_usd = Decimal(SEEN.pricing.prompt)
    assert with_sound.expected.model_usd is not None
    assert plain.expected.model_usd is not None
    assert with_sound.expected.model_usd - plain.expected.model_usd == LIKELY_SOUND_S * SOUND_IN_EXPECTED * prompt_usd
    assert with_picture.ceiling.model_usd is not None
    assert plain.ceiling.model_usd is not None
    assert with_picture.ceiling.model_usd - plain.ceiling.model_usd == IMAGE_IN_MOST * prompt_usd
