"""PDFs that go into a run: which engine reads them, how many pages that may be, and what reading them costs. Pure.

OpenRouter bills some engines by the page, beside the model's tokens; the tokens of a page are guessed here as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from contracts.attachments import MAX_PDF_PAGES, PDF_PAGE_USD
from contracts.catalog import CostRange, EstimateCost, Model
from contracts.market import PdfReading
from services.catalog.sizes import PromptSize

LIKELY_PAGES = 5
PAGE_TOKENS_LOW, PAGE_TOKENS_EXPECTED = 100, 800


def pdf_reading(request: EstimateCost, size: PromptSize, model: Model) -> PdfReading | None:
    """What reading the PDFs of a call takes; None where there are none."""
    if request.pdf_pages:
        low = expected = most = request.pdf_pages
    elif size.pdfs:
        low, expected, most = size.pdfs_required, size.pdfs * LIKELY_PAGES, size.pdfs * MAX_PDF_PAGES
    else:
        return None
    default = "native" if "file" in model.input_modalities else "cloudflare-ai"
    engine = request.pdf_engine or size.pdf_engine or default
    return PdfReading(
        engine=engine,
        usd_per_page=PDF_PAGE_USD.get(engine),
        low_pages=low,
        expected_pages=expected,
        most_pages=most,
    )


def with_pages(size: PromptSize, pdf: PdfReading | None, model: Model) -> PromptSize:
    """The prompt with the text of its pages. Nothing but the context limits how much a page says."""
    if pdf is None:
        return size
    return replace(
        size,
        low=size.low + pdf.low_pages * PAGE_TOKENS_LOW,
        expected=size.expected + pdf.expected_pages * PAGE_TOKENS_EXPECTED,
        most=None if size.most is None or model.context_length is None else max(size.most, model.context_length),
    )


def with_reading(costs: CostRange, pdf: PdfReading | None) -> CostRange:
    """The costs with what the engine bills; unknown where nobody knows that."""
    if pdf is None:
        return costs

    def total(cost: Decimal | None, pages: int) -> Decimal | None:
        return None if cost is None or pdf.usd_per_page is None else cost + pages * pdf.usd_per_page

    return CostRange(
        low_usd=total(costs.low_usd, pdf.low_pages),
        expected_usd=total(costs.expected_usd, pdf.expected_pages),
        ceiling_usd=total(costs.ceiling_usd, pdf.most_pages),
    )


def said_of(pdf: PdfReading | None) -> Iterable[str]:
    """What the estimate supposes of PDFs."""
    if pdf is None:
        return
    pages = f"{pdf.expected_pages} pages are expected, at most {pdf.most_pages}"
    if pdf.usd_per_page is None:
        yield f"PDFs are read by {pdf.engine}, and nobody here knows what that bills; {pages}."
    else:
        bills = f"bills {pdf.usd_per_page} USD a page" if pdf.usd_per_page else "bills nothing itself"
        yield f"PDFs are read by {pdf.engine}, which {bills}; {pages}, of about {PAGE_TOKENS_EXPECTED} tokens each."
