"""What is the same for every route: who asks, how much a body may hold, how it is read, how an error leaves.

`SignedInRoute` knows the identity before it reads a body. Bodies are read as JSON whatever their content type says: the
only credential is a bearer token, which no foreign page can make a browser send, and `curl -d` sends a form's type.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any
from uuid import uuid4

import orjson
import structlog
from fastapi import Depends, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from contracts.errors import ErrorBody, ErrorCode, FieldProblem, ServiceError
from contracts.execution import Caller
from contracts.subjects import Rpc
from services.gateway.auth import Identity, Verifier
from services.gateway.problems import not_json, problem_response, too_large
from services.gateway.recipients import Recipients
from services.gateway.runs import ClientGoneError, Runs
from services.gateway.uploads import Uploads
from services.runtime.bus import Bus, encode
from services.runtime.edge import CLIENT_GONE, note, pseudonym
from services.runtime.files import Files
from services.runtime.health import Health
from services.runtime.wrong_values import wrong_value

log = structlog.get_logger()

MAX_BODY_BYTES = 2 * 1024 * 1024
_IDENTITY = "x402jobs.identity"
_JSON = (b"content-type", b"application/json")
_KEY_PREFIX = "sk-"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Gateway:
    """What routes work with; at `request.app.state.gateway`."""

    bus: Bus
    verifier: Verifier
    runs: Runs
    recipients: Recipients
    files: Files
    uploads: Uploads
    health: Health


def gateway_of(request: Request) -> Gateway:
    """The parts behind the routes."""
    gateway: Gateway = request.app.state.gateway
    return gateway


_bearer = HTTPBearer(
    auto_error=False, bearerFormat="JWT", description="A JWT of your identity provider; `make token` signs one locally."
)


def identity_of(request: Request) -> Identity:
    """Who is signed in."""
    identity: Identity = request.scope[_IDENTITY]
    return identity


async def _identity(
    request: Request, _token: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Identity:
    return identity_of(request)


SignedIn = Annotated[Identity, Depends(_identity)]


def require_admin(identity: Identity) -> None:
    """Raises FORBIDDEN for everybody but administrators."""
    if not identity.admin:
        raise ServiceError(ErrorCode.FORBIDDEN, "Only administrators may do this; sign in as one.")


def caller_of(identity: Identity) -> Caller:
    """The identity as executors know it."""
    return Caller.model_construct(kind="user", id=identity.user)


async def forward(request: Request, rpc: Rpc[Any, Any], message: BaseModel, *, status: int = 200) -> Response:
    """Asks over the bus and passes the reply on as it is."""
    reply = await gateway_of(request).bus.call_raw(rpc, encode(message))
    return Response(reply, status_code=status, media_type="application/json")


class JsonRequest(Request):
    """A request whose body has been read, within the limit, and is JSON for everybody who looks."""

    def __init__(self, request: Request, body: bytes) -> None:
        headers = [header for header in request.scope["headers"] if header[0] != b"content-type"]
        super().__init__({**request.scope, "headers": [*headers, _JSON]}, request.receive)
        self._body = body
        self._json = parse_json(body)


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN, no second document. Raises 400."""
    if not body:
        raise not_json("The request has no body; send JSON.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise not_json(f"The body is not JSON; it breaks at character {error.pos}.") from None


async def read_body(request: Request) -> bytes:
    """The body. Raises 413 before more than the limit is held."""
    declared = request.headers.get("content-length", "")
    chunks, size = [], int(declared) if declared.isdecimal() else 0
    if size <= MAX_BODY_BYTES:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                break
            chunks.append(chunk)
    if size > MAX_BODY_BYTES:
        raise too_large("The body is too large; send at most 2 MiB.")
    return b"".join(chunks)


def invalid_request(errors: Iterable[Mapping[str, Any]]) -> ServiceError:
    """Errors of FastAPI or pydantic as ours: every wrong field by path, nothing of what was sent."""
    fields = [
        FieldProblem(path=_named(str(part) for part in item["loc"] if part != "body"), message=wrong_value(item))
        for item in islice(errors, 20)
    ]
    where = f"{fields[0].path}: " if fields[0].path else ""
    sentence = f"The request is not valid. {where}{fields[0].message.rstrip('.')}."
    return ServiceError(ErrorCode.INVALID, sentence, fields=fields)


def _named(parts: Iterable[str]) -> str:
    """The path of a field. Names are what somebody sent: a key pasted into the place of one must not come back."""
    return ".".join("…" if _KEY_PREFIX in part else part for part in parts)[:100]


def unknown_fields(sent: Any, read: Any, path: str = "") -> list[str]:
    """Paths of what was sent and not understood: `sent` is the JSON, `read` the dump of the model it became."""
    if isinstance(sent, list) and isinstance(read, list):
        pairs = [(f"{path}{number}", a, b) for number, (a, b) in enumerate(zip(sent, read, strict=False))]
    elif isinstance(sent, dict) and isinstance(read, dict):
        pairs = [(f"{path}{key}", value, read[key]) for key, value in sent.items() if key in read]
    else:
        return []
    strange = [f"{path}{key}" for key in sent if key not in read] if isinstance(sent, dict) else []
    return strange + [found for inner, a, b in pairs for found in unknown_fields(a, b, f"{inner}.")]


async def refuse_unknown_fields(request: Request, body: BaseModel) -> None:
    """Raises INVALID where the body holds fields that mean nothing here: a typo must not be dropped in silence."""
    strange = unknown_fields(await request.json(), body.model_dump(exclude_unset=True))[:20]
    if strange:
        fields = [FieldProblem(path=_named(path.split(".")), message="There is no such field.") for path in strange]
        raise ServiceError(
            ErrorCode.INVALID, "The request holds fields that do not exist here; errors names them.", fields=fields
        )


class PublicRoute(APIRoute):
    """A route that needs no token; every error that a route raises becomes a problem here."""

    def inner_handler(self) -> Handler:
        """What FastAPI makes of the signature: parameters in, endpoint, response out."""
        return super().get_route_handler()

    async def read(self, request: Request) -> Request:
        """The request with its body, which is JSON."""
        return JsonRequest(request, await read_body(request))

    def get_route_handler(self) -> Handler:
        handle = self.inner_handler()
        takes_body = self.body_field is not None

        async def answer(request: Request) -> Response:
            try:
                await self.admit(request)
                return await handle(await self.read(request) if takes_body else request)
            except ServiceError as error:
                note(request, code=error.code.value, **_run_of(error.body))
                return problem_response(error)
            except RequestValidationError as error:
                note(request, code=ErrorCode.INVALID.value)
                return problem_response(invalid_request(error.errors()))
            except (ClientDisconnect, ClientGoneError):
                return Response(status_code=CLIENT_GONE)
            except Exception as error:
                reference = uuid4().hex[:12]
                log.exception("request_failed", reference=reference, error=type(error).__name__)
                note(request, code=ErrorCode.INTERNAL.value, reference=reference)
                return problem_response(_our_fault(reference))

        return answer

    async def admit(self, request: Request) -> None:
        """Nothing to check."""


class SignedInRoute(PublicRoute):
    """A route for users."""

    async def admit(self, request: Request) -> None:
        """Who asks, or UNAUTHENTICATED, before anything else is looked at."""
        identity = await gateway_of(request).verifier.identify(request.headers.get("authorization"))
        request.scope[_IDENTITY] = identity
        note(request, user=pseudonym(identity.user))


def _run_of(body: ErrorBody) -> dict[str, str]:
    return {} if body.execution_id is None else {"execution_id": str(body.execution_id)}


def _our_fault(reference: str) -> ServiceError:
    return ServiceError(
        ErrorCode.INTERNAL, f"Something went wrong on our side; try again, and if it lasts, report it as {reference}."
    )
