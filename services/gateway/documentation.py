"""What the OpenAPI document says beyond what the routes' signatures do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from contracts.execution import ExecutionAccepted
from services.gateway import examples
from services.gateway.problems import Problem, documented

TITLE = "x402jobs Instant Resources"
VERSION = "1"
DESCRIPTION = """
Turn any OpenRouter model into a published, priced API.

1. **Connect** your OpenRouter key. It is sealed before it leaves the gateway and never shown again.
2. **Choose** a model and **estimate** what a call costs.
3. **Create** a resource (model, prompt template, inputs, price), **preview** it with a real run, **publish** it.
4. Anybody signed in can **execute** it: plain, as a stream of server-sent events, or asynchronously.

**Credits.** Every run spends the OpenRouter credits of the resource's creator, and OpenRouter's terms decide what a
creator may offer to others.

**Amounts** are strings in US dollars, never floats. An amount that is not known is `null`, never zero.

**Problems** are `application/problem+json` (RFC 9457) with a `code` for programs and a `detail` for people. `retryable`
says whether the same request may succeed later, `Retry-After` when.

**A run is a durable job; a connection is only a view of it.** Send an `Idempotency-Key` and a broken connection costs
nothing: the same key gives the same run, billed once, and `GET /api/executions/{id}/events` with `Last-Event-ID` goes on
where the stream broke. Without a key, closing the connection cancels the run.
"""

TAGS = [
    {"name": "integrations", "description": "Your OpenRouter key."},
    {"name": "models", "description": "The catalog, and what a call would cost."},
    {"name": "resources", "description": "What you publish: a model, a prompt and a price."},
    {"name": "listings", "description": "What a buyer sees. No token needed."},
    {"name": "budgets", "description": "How much of your own money runs may cost in a day."},
    {"name": "execution", "description": "Running resources, and following runs."},
    {"name": "workflows", "description": "Steps that feed each other, each of them an ordinary run."},
    {"name": "media", "description": "Generated images, audio and files, without a token; and files that you send."},
    {"name": "administration", "description": "For administrators."},
    {"name": "operation", "description": "Health, metrics and machine-readable documents. No token needed."},
]


def answers(example: Any, description: str, *errors: int, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its success with an example, and the problems that it may answer."""
    success = {"description": description, "content": {"application/json": {"example": example}}}
    return {status: success, **documented([500, 503, 504, *errors])}


def run_answers() -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that runs something."""
    events = {"schema": {"type": "string"}, "example": examples.EVENTS}
    return {
        200: {
            "description": "The result, or, with `stream`, its events: any number of `started`, `text`, `reasoning`, `output` "
            "and `snapshot` (replace what you have), then exactly one `completed` (an ExecutionResult) or `failed` (a "
            "Problem). Lines that begin with a colon keep the connection awake. A repeated request whose output is not kept any "
            "more is answered with an ExecutionAccepted: `status`, `cost`, `output_expired: true`.",
            "content": {"application/json": {"example": examples.RESULT}, "text/event-stream": events},
        },
        202: {
            "description": "Accepted durably (`Prefer: respond-async`); `Location` is where to follow it.",
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "/api/executions/{id}"},
                "Preference-Applied": {"schema": {"type": "string"}, "description": "respond-async"},
            },
            "model": ExecutionAccepted,
            "content": {"application/json": {"example": examples.ACCEPTED}},
        },
        **documented([400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504]),
    }


def document(app: FastAPI, public_url: str) -> dict[str, Any]:
    """The OpenAPI document of the application."""
    schema = get_openapi(
        title=TITLE,
        version=VERSION,
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
        servers=[{"url": public_url}],
    )
    # FastAPI supposes that every route with parameters answers with its own kind of validation error.
    for operation in (each for path in schema["paths"].values() for each in path.values()):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schema["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
    return schema
