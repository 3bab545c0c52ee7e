"""Results, queued jobs and workflows at rest: locked under the executor's own keyring with their id as additional data, so that a
row copied to another one does not open, and a database dump shows nobody's text."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import orjson
import structlog

from contracts.catalog import ResolvedResource
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Cost, Execute, ExecutionResult
from contracts.workflows import WorkflowRequest
from services.executor.store import Execution
from services.executor.workflow_store import Workflow
from services.runtime.bus import encode
from services.runtime.sealing import Keyring, Locked

log = structlog.get_logger()

_A_MOMENT = timedelta(seconds=1)


class Results:
    """`keep` is how long a result stays, zero for not at all; receipts stay for ever."""

    def __init__(self, keyring: Keyring, keep: timedelta) -> None:
        self._keyring = keyring
        self.keep = keep

    def lock(self, result: ExecutionResult, keep: timedelta) -> Locked | None:
        """None for a result that is not to be kept: it is delivered, and written nowhere."""
        return self._keyring.encrypt(encode(result), result.execution_id.bytes) if keep else None

    def open(self, row: Execution) -> ExecutionResult | None:
        """The whole result with its cost as it is known today; None when the output is not kept any more."""
        if row.result is None or row.result_key_id is None:
            return None
        if row.result_key_id not in self._keyring:
            log.error("result_key_missing", key_id=row.result_key_id, execution_id=str(row.id))
            return None
        result = ExecutionResult.model_validate_json(self._keyring.decrypt(row.result_key_id, row.result, row.id.bytes))
        return result.model_copy(update={"cost": cost_of_row(row)})

    def keep_of(self, *, needed: bool) -> timedelta:
        """How long a result stays. One that a workflow needs is written at all events: what deletes results spares it."""
        return max(self.keep, _A_MOMENT) if needed else self.keep

    def lock_job(self, execution_id: UUID, execute: Execute, resource: ResolvedResource, *, needed: bool) -> Locked:
        """What a queued run needs: the request, and the resource with its price as they were when it was accepted. `needed`: a
        workflow goes on with its result."""
        job = {
            "execute": execute.model_dump(mode="json"),
            "resource": resource.model_dump(mode="json"),
            "needed": needed,
        }
        return self._keyring.encrypt(orjson.dumps(job), execution_id.bytes)

    def open_job(self, row: Execution) -> tuple[Execute, ResolvedResource, bool]:
        """What was locked. Raises INTERNAL for a job that does not open, or that this version cannot read."""
        plain = self._open(row.id, row.job_key_id, row.job)
        try:
            job = orjson.loads(plain)
            execute, resource = Execute.model_validate(job["execute"]), ResolvedResource.model_validate(job["resource"])
        except (ValueError, KeyError):
            raise ServiceError(ErrorCode.INTERNAL, "This version cannot read the stored request.") from None
        return execute, resource, job.get("needed") is True

    def lock_message(self, letter_id: UUID, payload: bytes) -> Locked:
        """A message that could not become a job yet."""
        return self._keyring.encrypt(payload, letter_id.bytes)

    def open_message(self, letter_id: UUID, key_id: str | None, blob: bytes | None) -> bytes:
        """Raises INTERNAL for one that does not open."""
        return self._open(letter_id, key_id, blob)

    def _open(self, what: UUID, key_id: str | None, blob: bytes | None) -> bytes:
        if key_id is None or blob is None:
            raise ServiceError(ErrorCode.INTERNAL, "The stored request is not there.")
        if key_id not in self._keyring:
            raise ServiceError(ErrorCode.INTERNAL, f"The stored request needs the key {key_id!r} in RESULT_KEYS.")
        try:
            return self._keyring.decrypt(key_id, blob, what.bytes)
        except ValueError:
            raise ServiceError(ErrorCode.INTERNAL, "The stored request does not open: it was changed.") from None

    def lock_workflow(self, workflow_id: UUID, definition: WorkflowRequest) -> Locked:
        """What the steps of a workflow need."""
        return self._keyring.encrypt(encode(definition), workflow_id.bytes)

    def open_workflow(self, workflow: Workflow) -> WorkflowRequest | None:
        """None when it is not kept any more. Raises KeyError when it is locked under a key that we were not given."""
        if workflow.definition is None or workflow.definition_key_id is None:
            return None
        plaintext = self._keyring.decrypt(workflow.definition_key_id, workflow.definition, workflow.id.bytes)
        return WorkflowRequest.model_validate_json(plaintext)


def cost_of_row(row: Execution) -> Cost:
    """The cost as the row has it: a cost that was looked up after the end is newer than the stored result."""
    known = row.price_usd is not None and row.cost_usd is not None
    return Cost(
        model_usd=row.cost_usd,
        markup_usd=row.price_usd - row.cost_usd if known else None,  # type: ignore[operator]
        price_usd=row.price_usd,
        status=row.cost_status or "unknown",
    )
