"""The catalog of models, what a call would cost, and the syncs that keep the catalog current."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from contracts.catalog import (
    Estimate,
    EstimateBody,
    EstimateCost,
    ListSyncs,
    ModelDetail,
    ModelPage,
    ModelRef,
    SearchModels,
    SyncCatalog,
    SyncList,
    SyncReport,
)
from contracts.providers import ModelProviders
from contracts.subjects import (
    CATALOG_SYNC,
    CATALOG_SYNCS,
    MODELS_ESTIMATE,
    MODELS_GET,
    MODELS_PROVIDERS,
    MODELS_SEARCH,
)
from services.gateway import examples
from services.gateway.documentation import answers
from services.gateway.routing import SignedIn, SignedInRoute, forward, refuse_unknown_fields, require_admin

router = APIRouter(route_class=SignedInRoute)

Author = Annotated[str, Path(max_length=100, examples=["openai"])]
Slug = Annotated[str, Path(max_length=150, examples=["gpt-4o-mini"])]


@router.get(
    "/api/models",
    response_model=ModelPage,
    responses=answers(examples.MODEL_PAGE, "A page of models.", 401, 422),
    summary="Search models",
    tags=["models"],
)
async def search_models(request: Request, _user: SignedIn, query: Annotated[SearchModels, Query()]) -> Response:
    """All filters must match. Prices are US dollars per token. Give `next_cursor` back as `cursor` for the next page: pages
    are of the list that the first one was of, also when the catalog changes meanwhile.

    `q` forgives typing mistakes. With `sort=popular` the best match comes first: the exact id, then the name, and among
    equals the most popular; with another sort that order holds. `facets=true` counts what each filter would find.
    """
    return await forward(request, MODELS_SEARCH, query)


@router.get(
    "/api/models/{author}/{slug}",
    response_model=ModelDetail,
    responses=answers(examples.MODEL_DETAIL, "The model.", 401, 404, 422),
    summary="See one model",
    tags=["models"],
)
async def get_model(request: Request, _user: SignedIn, author: Author, slug: Slug) -> Response:
    """Badges, prices with their tiers and history, and what to use instead once it is retired."""
    return await forward(request, MODELS_GET, ModelRef.model_construct(id=f"{author}/{slug}"))


@router.get(
    "/api/models/{author}/{slug}/providers",
    response_model=ModelProviders,
    responses=answers(examples.MODEL_PROVIDERS, "The providers, the cheapest first.", 401, 404, 422, 502),
    summary="See who serves a model",
    tags=["models"],
)
async def get_providers(request: Request, _user: SignedIn, author: Author, slug: Slug) -> Response:
    """Each with its prices (US dollars per token), limits, and how well and how fast it answers. OpenRouter chooses among
    them for every call unless `provider.order` names their `tag`s.

    OpenRouter is asked when somebody wants to know, at most every five minutes per model. Where it does not answer, the last
    answer is given with `stale` and its age, or a problem if there is none.
    """
    return await forward(request, MODELS_PROVIDERS, ModelRef.model_construct(id=f"{author}/{slug}"))


@router.post(
    "/api/models/estimate",
    response_model=Estimate,
    responses=answers(examples.ESTIMATE, "What it would cost.", 400, 401, 404, 413, 422),
    summary="Estimate the cost of a call",
    tags=["models"],
)
async def estimate_cost(
    request: Request,
    user: SignedIn,
    body: Annotated[EstimateBody, Body(openapi_examples={"haiku": {"value": examples.ESTIMATE_REQUEST}})],
) -> Response:
    """Low, expected and ceiling in US dollars, what was assumed, and the margin at your `price`.

    With the `resource_id` of a resource of yours, its prompt and its limits are taken where you give none, and once it
    has been run, what its runs took is what is expected of the next.
    """
    await refuse_unknown_fields(request, body)
    return await forward(request, MODELS_ESTIMATE, EstimateCost.model_construct(**dict(body), owner=user.user))


@router.post(
    "/api/catalog/sync",
    response_model=SyncReport,
    responses=answers(examples.SYNC_REPORT, "What the sync did.", 401, 403, 409, 422, 502),
    summary="Sync the catalog now",
    tags=["administration"],
)
async def sync_catalog(
    request: Request,
    user: SignedIn,
    force: Annotated[bool, Query(description="Take the list although it looks wrong.")] = False,
) -> Response:
    """Reads OpenRouter's list of models; the daily schedule runs the same.

    A list that looks wrong (fewer than half the models, prices gone or in another unit) is refused with the reason, and
    the old catalog stays. Who has looked and knows better repeats it with `force=true`; an empty list is never taken.
    """
    require_admin(user)
    return await forward(request, CATALOG_SYNC, SyncCatalog(requested_by=user.user, force=force))


@router.get(
    "/api/catalog/syncs",
    response_model=SyncList,
    responses=answers(examples.SYNC_LIST, "The latest syncs, newest first.", 401, 403, 422),
    summary="See the latest syncs",
    tags=["administration"],
)
async def list_syncs(request: Request, user: SignedIn, query: Annotated[ListSyncs, Query()]) -> Response:
    """What each sync changed, model by model with its name, which recommended models were missing, or why it was refused."""
    require_admin(user)
    return await forward(request, CATALOG_SYNCS, query)
