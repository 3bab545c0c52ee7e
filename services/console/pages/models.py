"""Models: searching more than four hundred of them while typing, and one of them in full."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.catalog import Model, ModelDetail, ModelPage, ModelSort
from contracts.providers import ModelProviders
from services.console import prices
from services.console.api import ApiError, Problem
from services.console.navigation import Entry
from services.console.session import Session, SignedIn
from services.console.views import view

router = APIRouter()
ENTRY = Entry("Models", "/models", "models", 10)

_PAGE = 60
_RECOMMENDED = 6
_MILLION = 1_000_000


class Search(Contract):
    """What the search form holds. Empty fields come along with a form, so all of them may be empty."""

    q: str = ""
    provider: str = ""
    input_modality: str = ""
    output_modality: str = ""
    capability: str = ""
    max_price: str = Field(default="", pattern=r"^(\d{1,9}(\.\d{1,9})?)?$", description="USD per million tokens.")
    min_context: str = Field(default="", pattern=r"^\d{0,9}$")
    curated: str = ""
    sort: ModelSort = "popular"
    cursor: str = ""

    @property
    def begins(self) -> bool:
        """Whether this is what somebody sees who has not searched for anything: then the recommended models come first."""
        return self.sort == "popular" and not (self.q or self.max_price or self.min_context or self.curated)

    def asked(self) -> dict[str, str | None]:
        """The same in the words of the interface."""
        per_token = f"{Decimal(self.max_price) / _MILLION:f}" if self.max_price else None
        return {
            **self.model_dump(exclude={"max_price"}),
            "max_prompt_price": per_token,
        }


async def _found(session: Session, search: Search) -> tuple[ModelPage, list[Model]]:
    """The page that was asked for, and the recommended models where they stand before it."""
    asked = search.asked()
    first = not search.cursor
    page = session.api.get("/api/models", ModelPage, {**asked, "limit": _PAGE, "facets": first})
    if not (search.begins and first):
        return await page, []
    wanted = {**asked, "curated": True, "limit": _RECOMMENDED}
    found, recommended = await asyncio.gather(page, session.api.get("/api/models", ModelPage, wanted))
    return found, recommended.items


@router.get("/models")
async def search_models(request: Request, session: SignedIn, search: Annotated[Search, Query()]) -> Response:
    """The search; its script asks for `results` while somebody types, and for `more` at the end of the list."""
    page, recommended = await _found(session, search)
    shown_above = {model.id for model in recommended}
    return await view(
        request,
        "models.html",
        search=search,
        page=page,
        recommended=recommended,
        models=[model for model in page.items if model.id not in shown_above],
    )


@router.get("/models/{author}/{slug}")
async def one_model(
    request: Request,
    session: SignedIn,
    author: str,
    slug: str,
    providers: Annotated[bool, Query(description="Ask OpenRouter who serves it.")] = False,
) -> Response:
    """Everything that is known of one model. Its script asks for `providers` once the page is there: that may take a while."""
    path = f"/api/models/{quote(author, safe='')}/{quote(slug, safe='')}"
    model = await session.api.get(path, ModelDetail)
    served = await _served(session, path) if providers else None
    changes = sorted(model.price_history, key=lambda change: change.since)
    return await view(
        request,
        "model.html",
        model=model,
        prices=prices,
        history=prices.history(changes, datetime.now(UTC)),
        served=served,
    )


async def _served(session: Session, path: str) -> ModelProviders | Problem:
    """Who serves the model, or why that is not known: the page has more to say than this."""
    try:
        return await session.api.get(f"{path}/providers", ModelProviders)
    except ApiError as error:
        return error.problem
