"""What is on the market, for everybody: finding a resource and reading what it does, needs and costs. No sign-in is needed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.base import Contract
from contracts.listings import Listing, ListingPage
from services.console.api import Api
from services.console.navigation import Entry
from services.console.session import console_of, session_in
from services.console.snippets import snippets
from services.console.views import view

router = APIRouter()
PATH = "/listings"
ENTRY = Entry("Listings", PATH, "listings", 40)

_PAGE = 30


class Search(Contract):
    """What the search form holds."""

    q: str = ""
    cursor: str = ""


def _api(request: Request) -> Api:
    session = session_in(request)
    return session.api if session else console_of(request).gateway.as_user(None)


@router.get(PATH)
async def search_listings(request: Request, search: Annotated[Search, Query()]) -> Response:
    """Published resources; the script asks for `results` while somebody types, and for `more` at the end."""
    page = await _api(request).get("/api/listings", ListingPage, {**search.model_dump(), "limit": _PAGE})
    return await view(request, "listings.html", search=search, page=page)


@router.get(PATH + "/{owner}/{slug}")
async def one_listing(request: Request, owner: str, slug: str) -> Response:
    """One resource as a buyer sees it, with how to call it."""
    listing = await _api(request).get(f"/api/listings/{owner}/{slug}", Listing)
    console = console_of(request)
    return await view(
        request,
        "listing.html",
        listing=listing,
        address=f"{console.public_url}{PATH}/{owner}/{slug}",
        ways=snippets(console.gateway_public_url, f"{owner}/{slug}", listing.inputs),
    )
