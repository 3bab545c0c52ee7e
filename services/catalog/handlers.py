"""The catalog's side of the bus: each handler reads a request, asks the modules that decide, and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal
from uuid import UUID, uuid4

from contracts import subjects
from contracts.base import Empty
from contracts.catalog import (
    CatalogSynced,
    CreateResource,
    Estimate,
    EstimateCost,
    ListResources,
    ListSyncs,
    Model,
    ModelDetail,
    ModelPage,
    ModelRef,
    ResolvedResource,
    ResolveResource,
    Resource,
    ResourceChanged,
    ResourceDraft,
    ResourcePage,
    ResourceRef,
    SearchModels,
    SyncCatalog,
    SyncList,
    SyncReport,
    UpdateResource,
)
from contracts.drafts import CheckDraft, DraftReview, ReviewDraft
from contracts.errors import ErrorCode, ServiceError, invalid
from contracts.listings import Listing, ListingPage, ListingRef, SearchListings
from contracts.providers import ModelProviders
from services.catalog import views
from services.catalog.cursors import decode_place, encode_place
from services.catalog.estimates import estimate
from services.catalog.guard import Guard
from services.catalog.index import LiveIndex
from services.catalog.models import CatalogModel
from services.catalog.resources import (
    FIND_A_MODEL,
    apply_patch,
    check_draft,
    named_models,
    no_such_resource,
    own_resource,
    refuse_retired,
)
from services.catalog.serving import Serving
from services.catalog.showing import Showing
from services.catalog.sizes import fill_from_resource, searches_the_web, size_of_resource
from services.catalog.store import ResourceChange, Store, StoredResource
from services.catalog.sync import CatalogSync
from services.catalog.versions import changes_between
from services.runtime.bus import Bus

Validation = Callable[[ResourceChange, StoredResource], Awaitable[None]]
Change = Literal["created", "updated", "published", "paused", "deleted"]


class Handlers:
    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        index: LiveIndex,
        sync: CatalogSync,
        serving: Serving,
        showing: Showing,
        guard: Guard,
    ) -> None:
        self._bus = bus
        self._store = store
        self._index = index
        self._sync = sync
        self._serving = serving
        self._showing = showing
        self._guard = guard

    def register(self) -> None:
        """Serve every request that the registry gives to the catalog; call before the bus starts."""
        serve = self._bus.serve
        serve(subjects.MODELS_SEARCH, self.search_models)
        serve(subjects.MODELS_GET, self.get_model)
        serve(subjects.MODELS_PROVIDERS, self.get_providers)
        serve(subjects.MODELS_ESTIMATE, self.estimate_cost)
        serve(subjects.CATALOG_SYNC, self.sync_catalog)
        serve(subjects.CATALOG_SYNCS, self.list_syncs)
        serve(subjects.RESOURCES_CREATE, self.create_resource)
        serve(subjects.RESOURCES_UPDATE, self.update_resource)
        serve(subjects.RESOURCES_GET, self.get_resource)
        serve(subjects.RESOURCES_LIST, self.list_resources)
        serve(subjects.RESOURCES_PUBLISH, self.publish_resource)
        serve(subjects.RESOURCES_PAUSE, self.pause_resource)
        serve(subjects.RESOURCES_DELETE, self.delete_resource)
        serve(subjects.DRAFTS_CHECK, self.check_draft)
        serve(subjects.DRAFTS_REVIEW, self.review_draft)
        serve(subjects.RESOURCES_RESOLVE, self.resolve_resource)
        serve(subjects.LISTINGS_SEARCH, self.search_listings)
        serve(subjects.LISTINGS_GET, self.get_listing)
        self._bus.listen(subjects.CATALOG_SYNCED, self.hear_synced)
        self._bus.on_reconnect(self._index.reload)
        self._bus.on_reconnect(self._sync.announce)

    # Models -----------------------------------------------------------------------------------------------------------

    async def search_models(self, request: SearchModels) -> ModelPage:
        return await self._index.search(request)

    async def get_model(self, request: ModelRef) -> ModelDetail:
        row = await self._known_model(request.id)
        history = await self._store.price_history(row.id)
        return views.model_detail(self._showing.model(row), row, self._index.replacement_for(row), history)

    async def get_providers(self, request: ModelRef) -> ModelProviders:
        return await self._serving.providers(await self._known_model(request.id))

    async def estimate_cost(self, request: EstimateCost) -> Estimate:
        row = await self._model_row(request.model_id)
        if row is None:
            raise invalid("model_id", f"There is no such model in the catalog. {FIND_A_MODEL}")
        model = self._showing.model(row)
        if request.resource_id is None:
            return estimate(request, model)
        if request.owner is None:
            raise no_such_resource()
        own = own_resource(await self._store.resource(request.resource_id), request.owner)
        size = None
        if request.prompt is None and request.prompt_tokens is None:
            size = size_of_resource(own.draft, model)
        measured = (await self._store.measured_tokens([own.id])).get(own.id)
        filled, searching = fill_from_resource(request, own.draft), searches_the_web(own.draft)
        return estimate(filled, model, size=size, measured=measured, searching=searching)

    async def sync_catalog(self, request: SyncCatalog) -> SyncReport:
        return await self._sync.run(request.requested_by, force=request.force)

    async def list_syncs(self, request: ListSyncs) -> SyncList:
        return SyncList(items=await self._store.syncs(request.limit))

    async def hear_synced(self, _: CatalogSynced) -> None:
        """Some replica synced."""
        await self._index.reload()
        self._guard.look()

    # Resources --------------------------------------------------------------------------------------------------------

    async def create_resource(self, request: CreateResource) -> Resource:
        models = await self._showing.models([request.draft])
        check_draft(request.draft, models)
        refuse_retired(models[request.draft.openrouter_config.model_id])
        stored = await self._store.create_resource(uuid4(), request.owner, request.draft)
        await self._announce(stored, "created")
        return await self._showing.resource(stored)

    async def update_resource(self, request: UpdateResource) -> Resource:
        async with self._store.changing(request.id) as change:
            current = own_resource(change.current, request.owner)
            expected = request.patch.expected_version
            if expected is not None and expected != current.version:
                raise ServiceError(
                    ErrorCode.CONFLICT,
                    f"The resource is at version {current.version}: somebody edited it. Read it again and repeat your change.",
                )
            draft = apply_patch(current.draft, request.patch)
            stored = await self._save(change, draft) if changes_between(current.draft, draft) else current
        if stored is not current:
            await self._announce(stored, "updated")
        return await self._showing.resource(stored)

    async def _save(self, change: ResourceChange, draft: ResourceDraft) -> StoredResource:
        models = await self._models_within(change, draft)
        check_draft(draft, models)
        # Whoever only edits a resource whose model went away may do so; whoever chooses a model chooses a living one.
        if change.current is None or draft.openrouter_config.model_id != change.current.model.id:
            refuse_retired(models[draft.openrouter_config.model_id])
        return await change.save(draft)

    async def get_resource(self, request: ResourceRef) -> Resource:
        return await self._showing.resource(own_resource(await self._store.resource(request.id), request.owner))

    async def list_resources(self, request: ListResources) -> ResourcePage:
        question = f"resources:{request.owner}:{request.status}"
        after = decode_place(question, request.cursor)
        # One more than asked for tells whether there is a next page.
        rows, total = await self._store.resources_of(request.owner, request.status, after, request.limit + 1)
        page = rows[: request.limit]
        return ResourcePage(
            items=await self._showing.resources(page),
            total=total,
            next_cursor=_next_cursor(question, rows, page),
        )

    async def publish_resource(self, request: ResourceRef) -> Resource:
        async def validate(change: ResourceChange, current: StoredResource) -> None:
            models = await self._models_within(change, current.draft)
            check_draft(current.draft, models)
            refuse_retired(models[current.model.id])

        return await self._set_status(request, "published", validate)

    async def pause_resource(self, request: ResourceRef) -> Resource:
        async def validate(_: ResourceChange, current: StoredResource) -> None:
            if current.status == "draft":
                raise ServiceError(ErrorCode.CONFLICT, "A draft is not on the market; publish it before you pause it.")

        return await self._set_status(request, "paused", validate)

    async def delete_resource(self, request: ResourceRef) -> Empty:
        async with self._store.changing(request.id) as change:
            if change.current is not None and change.current.deleted and change.current.owner == request.owner:
                return Empty()
            deleted = own_resource(change.current, request.owner)
            await change.delete()
        await self._announce(deleted, "deleted")
        return Empty()

    async def check_draft(self, request: CheckDraft) -> ResolvedResource:
        models = await self._showing.models([request.draft])
        check_draft(request.draft, models)
        refuse_retired(models[request.draft.openrouter_config.model_id])
        return await self._showing.resolved_draft(request.owner, request.draft, models)

    async def review_draft(self, request: ReviewDraft) -> DraftReview:
        draft, measured = request.draft, None
        models = await self._showing.models([draft])
        check_draft(draft, models)
        if request.resource_id is not None:
            own = own_resource(await self._store.resource(request.resource_id), request.owner)
            measured = (await self._store.measured_tokens([own.id])).get(own.id)
        return views.draft_review(draft, [models[name] for name in named_models(draft.openrouter_config)], measured)

    async def resolve_resource(self, request: ResolveResource) -> ResolvedResource:
        stored = await self._find(request.ref)
        if stored is None or stored.deleted:
            raise ServiceError(ErrorCode.NOT_FOUND, "There is no such resource; GET /api/listings shows what there is.")
        return await self._showing.resolved(stored)

    # Listings ---------------------------------------------------------------------------------------------------------

    async def search_listings(self, request: SearchListings) -> ListingPage:
        words = (request.q or "").replace("\0", " ").lower().split()
        question = f"listings:{' '.join(words)}"
        after = decode_place(question, request.cursor)
        rows, total = await self._store.listings(words, after, request.limit + 1)
        page = rows[: request.limit]
        return ListingPage(
            items=await self._showing.listings(page),
            total=total,
            next_cursor=_next_cursor(question, rows, page),
        )

    async def get_listing(self, request: ListingRef) -> Listing:
        stored = await self._find(f"{request.owner}/{request.slug}")
        if stored is None or stored.status != "published":
            raise ServiceError(ErrorCode.NOT_FOUND, "There is no such listing; GET /api/listings shows what there is.")
        return await self._showing.listing(stored)

    # ------------------------------------------------------------------------------------------------------------------

    async def _known_model(self, model_id: str) -> CatalogModel:
        row = await self._model_row(model_id)
        if row is None:
            raise ServiceError(ErrorCode.NOT_FOUND, f"There is no such model in the catalog. {FIND_A_MODEL}")
        return row

    async def _model_row(self, model_id: str) -> CatalogModel | None:
        if "\0" in model_id:
            return None
        return (await self._store.models_by_id([model_id])).get(model_id)

    async def _models_within(self, change: ResourceChange, draft: ResourceDraft) -> Mapping[str, Model]:
        ids = [model_id for model_id in named_models(draft.openrouter_config) if "\0" not in model_id]
        rows = await change.models_by_id(ids)
        return {model_id: self._showing.model(row) for model_id, row in rows.items()}

    async def _find(self, ref: str) -> StoredResource | None:
        if "\0" in ref:
            return None
        owner, slash, slug = ref.rpartition("/")
        if slash:
            return await self._store.resource_by_slug(owner, slug)
        try:
            return await self._store.resource(UUID(ref))
        except ValueError:
            return None

    async def _set_status(
        self, request: ResourceRef, status: Literal["published", "paused"], validate: Validation
    ) -> Resource:
        async with self._store.changing(request.id) as change:
            current = own_resource(change.current, request.owner)
            stored = current
            if current.status != status:
                await validate(change, current)
                stored = await change.set_status(status)
        if stored is not current:
            await self._announce(stored, status)
        return await self._showing.resource(stored)

    async def _announce(self, stored: StoredResource, change: Change) -> None:
        await self._bus.publish(
            subjects.RESOURCE_CHANGED,
            ResourceChanged(
                resource_id=stored.id, owner=stored.owner, slug=stored.draft.slug, version=stored.version, change=change
            ),
        )


def _next_cursor(question: str, rows: list[StoredResource], page: list[StoredResource]) -> str | None:
    return encode_place(question, page[-1].created_at, page[-1].id) if len(rows) > len(page) else None
