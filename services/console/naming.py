"""Names for the resources that runs speak of by their ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import UUID

from contracts.listings import Listing
from services.console.api import UNREACHABLE, ApiError
from services.console.session import Session


async def listings_by_id(session: Session, ids: Iterable[UUID | None]) -> dict[UUID, Listing]:
    """The listings of these resources; one that is deleted, or not offered any more, is left out."""
    wanted = list({each for each in ids if each is not None})
    found = await asyncio.gather(*(_listing(session, each) for each in wanted))
    return {listing.id: listing for listing in found if listing is not None}


async def _listing(session: Session, resource_id: UUID) -> Listing | None:
    try:
        return await session.api.get(f"/api/resources/{resource_id}", Listing, {"as": "buyer"})
    except ApiError as error:
        if error.problem is UNREACHABLE:
            raise
        return None
