"""From a request to something that can be run: resolved, allowed, filled in, and with the creator's key at hand.

Everything that can be refused is refused here, before a row is written or a slot is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import orjson
from pydantic import JsonValue

from contracts.base import new_execution_id
from contracts.catalog import InputField, ResolvedResource
from contracts.drafts import CheckDraft
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Execute
from contracts.subjects import DRAFTS_CHECK
from services.executor.access import check_run, error_for_caller
from services.executor.attachments import Attachments
from services.executor.ceilings import ceiling
from services.executor.leases import KeyLeases, Lease
from services.executor.limits import Hold, hold_of, is_limited
from services.executor.request import ModelRequest, build_request, pseudonym, render_inputs
from services.executor.resolutions import Resolutions
from services.executor.store import NewExecution
from services.runtime.bus import Bus


@dataclass(frozen=True)
class Prepared:
    """A run that may begin."""

    id: UUID
    execute: Execute
    resource: ResolvedResource
    request: ModelRequest
    lease: Lease
    received_at: datetime
    hold: Hold | None = None
    """What admission holds of daily limits; None where none concerns the run, and once a run has been accepted."""
    result_needed: bool = False
    """A workflow goes on with its result."""

    def as_row(self) -> NewExecution:
        return NewExecution(
            id=self.id,
            owner=self.resource.owner,
            caller_kind=self.execute.caller.kind,
            caller_id=self.execute.caller.id,
            viewer=self.execute.viewer,
            resource_id=self.resource.resource_id,
            resource_version=self.resource.version,
            model_id=self.resource.config.model_id,
            pricing=self.resource.pricing.model_dump(mode="json"),
            idempotency_key=self.execute.idempotency_key,
            request_hash=request_hash(self.execute),
            media=tuple({file.name for file in self.request.attachments if file.name is not None}),
        )


def request_hash(execute: Execute) -> bytes:
    """What must be the same for a repeated request to be the same request; who asks and its id are compared apart."""
    meaning = execute.model_dump(
        mode="json", include={"resource", "draft", "input", "max_price_usd", "expected_version"}
    )
    return hashlib.sha256(orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS)).digest()


class Preparation:
    """Asks the catalog and the keys service what a run needs."""

    def __init__(
        self,
        bus: Bus,
        resolutions: Resolutions,
        leases: KeyLeases,
        attachments: Attachments,
        *,
        pseudonym_secret: bytes,
    ) -> None:
        self._bus = bus
        self._resolutions = resolutions
        self._leases = leases
        self._attachments = attachments
        self._pseudonym_secret = pseudonym_secret

    async def prepare(self, execute: Execute) -> Prepared:
        """Raises ServiceError for every reason not to run."""
        received_at = datetime.now(UTC)
        resource = await self._resource(execute)
        check_run(resource, execute.caller, execute)
        try:
            prepared = await self.resume(execute, resource, received_at)
        except ServiceError as error:
            raise ServiceError.from_body(error_for_caller(error.body, resource.owner, execute.caller)) from None
        if not is_limited(resource.budgets, resource.owner, execute.caller):
            return prepared
        most_usd = ceiling(resource, prepared.request, execute.caller)
        return replace(prepared, hold=hold_of(resource, execute.caller, most_usd))

    async def foresee(
        self, execute: Execute, known: Callable[[ResolvedResource], tuple[list[InputField], dict[str, JsonValue]]]
    ) -> ResolvedResource:
        """The resource of a run that is to be made later. Raises ServiceError for every reason that shows already.

        `known` are the declared inputs and the values of which something can be said today.
        """
        resource = await self._resource(execute)
        check_run(resource, execute.caller, execute)
        fields, values = known(resource)
        render_inputs(fields, values, await self._attachments.of(execute.caller, fields, values))
        try:
            await self._leases.get(resource.owner)
        except ServiceError as error:
            raise ServiceError.from_body(error_for_caller(error.body, resource.owner, execute.caller)) from None
        return resource

    async def resume(self, execute: Execute, resource: ResolvedResource, received_at: datetime) -> Prepared:
        """As `prepare`, for a run whose resource was resolved and allowed when it was accepted."""
        given = await self._attachments.of(execute.caller, resource.inputs, execute.input)
        user = pseudonym(self._pseudonym_secret, execute.caller)
        request = build_request(resource, execute.input, user=user, given=given)
        lease = await self._leases.get(resource.owner)
        return Prepared(
            id=execute.execution_id or new_execution_id(),
            execute=execute,
            resource=resource,
            request=request,
            lease=lease,
            received_at=received_at,
        )

    async def _resource(self, execute: Execute) -> ResolvedResource:
        if execute.draft is not None:
            if execute.caller.kind != "user":
                raise ServiceError(ErrorCode.FORBIDDEN, "Only a creator may run an unsaved resource.")
            return await self._bus.call(DRAFTS_CHECK, CheckDraft(owner=execute.caller.id, draft=execute.draft))
        if execute.resource is None:
            raise ServiceError(ErrorCode.INVALID, "Name the resource to run, by id or as owner/slug.")
        return await self._resolutions.get(execute.resource)
