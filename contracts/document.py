"""Writes what the registry says as documents for other languages: one JSON Schema per message, and one AsyncAPI 3 document.

The files are generated, committed and verified: `python -m contracts.document` writes them, `--check` fails when they are
out of date. The AsyncAPI document describes the whole bus, both sides of every subject, and is also what
`compatibility.py` compares with an older one. Schemas say what a reader accepts: a field with a default may be missing,
and a field that a schema does not name is ignored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from contracts.base import Contract
from contracts.errors import ErrorBody
from contracts.execution import ExecutionResult, FrameType, OutputPart, Snapshot, Started, TextDelta
from contracts.subjects import (
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    FRAMES,
    MESSAGE_ID_HEADER,
    PREFIX,
    PUBLISHER,
    REGISTRY,
    STREAMS,
    TIMEOUT_HEADER,
    TRACE_HEADER,
    Event,
    Job,
    Rpc,
    Stream,
)
from contracts.workflows import StepProgress, WorkflowView

VERSION = PREFIX.split(".")[1]
FOLDER = Path(__file__).resolve().parent
SCHEMA_FOLDER = FOLDER / "schemas" / VERSION
ASYNCAPI_FILE = FOLDER / "asyncapi.json"

Entry = Rpc[Any, Any] | Event[Any] | Job[Any]
Json = dict[str, Any]


def members(annotation: Any) -> tuple[type[Contract], ...]:
    """The messages behind a type of the registry: itself, or each member of a union."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(model for part in get_args(annotation) for model in members(part))
    return (annotation,)


FRAME_DATA: dict[FrameType, tuple[type[Contract], ...]] = {
    "started": (Started,),
    "text": (TextDelta,),
    "reasoning": (TextDelta,),
    "output": members(get_args(OutputPart)[0]),
    "step": (StepProgress,),
    "snapshot": (Snapshot, WorkflowView),
    "completed": (ExecutionResult, WorkflowView),
    "failed": (ErrorBody,),
}
"""What `Frame.data` is, by the type of the frame."""


def message_models() -> tuple[type[Contract], ...]:
    """Every message type once, in the order of the registry; then errors and what frames carry."""
    found: dict[type[Contract], None] = {}
    for entry in REGISTRY:
        for part in (entry.request, entry.reply) if isinstance(entry, Rpc) else (entry.message,):
            found |= dict.fromkeys(members(part))
    found |= dict.fromkeys([ErrorBody, *(model for models in FRAME_DATA.values() for model in models)])
    return tuple(found)


class _Schema(GenerateJsonSchema):
    """Without what other tools stumble over: titles made from field names, and OpenAPI's form of `discriminator`."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the base class gives the name
        return False

    def tagged_union_schema(self, schema: Any) -> JsonSchemaValue:
        union = super().tagged_union_schema(schema)
        union.pop("discriminator", None)
        return union

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        model = super().model_schema(schema)
        if "description" in model:
            model["description"] = " ".join(model["description"].split())
        return model

    def generate(self, schema: Any, mode: Any = "validation") -> JsonSchemaValue:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}


def schemas() -> dict[str, Json]:
    """One JSON Schema (2020-12) per message type, by its name; each stands on its own."""
    return {
        model.__name__: {
            "$id": f"urn:x402jobs:{VERSION}:{model.__name__}",
            **model.model_json_schema(schema_generator=_Schema),
        }
        for model in message_models()
    }


# AsyncAPI -------------------------------------------------------------------------------------------------------------

_HEADERS: dict[str, Json] = {
    TIMEOUT_HEADER: {
        "type": "string",
        "pattern": "^[0-9]+$",
        "description": "How long the sender still waits, in milliseconds. Without it the timeout of the subject holds.",
    },
    TRACE_HEADER: {"type": "string", "description": "W3C Trace Context."},
    ERROR_HEADER: {"type": "string", "description": "The sentence of the error; also `message` in the body."},
    ERROR_CODE_HEADER: {"type": "string", "description": "The code of the error; also `code` in the body."},
    MESSAGE_ID_HEADER: {"type": "string", "description": "Given again with every redelivery: use it to count once."},
}


def _headers(*optional: str, required: tuple[str, ...] = ()) -> Json:
    names = [*required, *optional]
    schema: Json = {"type": "object", "properties": {name: _HEADERS[name] for name in names}}
    return {**schema, "required": list(required)} if required else schema


HEADERS: dict[str, Json] = {
    "request": _headers(TIMEOUT_HEADER, TRACE_HEADER),
    "reply": _headers(),
    "error": _headers(required=(ERROR_HEADER, ERROR_CODE_HEADER)),
    "event": _headers(TRACE_HEADER),
    "stored": _headers(TRACE_HEADER, required=(MESSAGE_ID_HEADER,)),
    "job": _headers(TRACE_HEADER, MESSAGE_ID_HEADER),
}
"""Headers by the role of a message; `stored` are events that a stream on disk keeps."""

_PARAMETERS = {
    "publisher": "The name of the outside service: its NATS user. It is the caller, whatever the body says.",
    "viewer": "Who may read: `gateway`, or the name of the publisher that asked for the run.",
    "execution_id": "The run, a UUIDv7.",
}


def parameters_of(entry: Entry) -> tuple[str, ...]:
    """What the wildcards of its subject stand for, in order."""
    return ("viewer", "execution_id") if entry is FRAMES else ("publisher",) * entry.name.count("*")


def _with_parameters(name: str, parameters: tuple[str, ...], form: str) -> str:
    for parameter in parameters:
        name = name.replace("*", form.format(parameter), 1)
    return name


def channel_id(entry: Entry) -> str:
    """The name of the entry with a word for each wildcard: `as.publisher.execution.run`."""
    return _with_parameters(entry.name, parameters_of(entry), "{}")


def stream_of(entry: Entry) -> Stream | None:
    """The stream that captures the entry's subject."""
    return next((stream for stream in STREAMS if entry.subject in stream.subjects), None)


def _message(model: type[Contract], role: str) -> tuple[str, Json]:
    return f"{model.__name__}.{role}", {
        "name": model.__name__,
        "contentType": "application/json",
        "headers": {"$ref": f"#/components/schemas/headers.{role}"},
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def _incoming(entry: Entry) -> tuple[type[Contract], str]:
    """The model that travels on the entry's own subject, and its role."""
    if isinstance(entry, Rpc):
        return entry.request, "request"
    if isinstance(entry, Job):
        return entry.message, "job"
    stream = stream_of(entry)
    return entry.message, "stored" if stream is not None and stream.storage == "file" else "event"


def _replies(entry: Rpc[Any, Any]) -> list[tuple[type[Contract], str]]:
    return [*((model, "reply") for model in members(entry.reply)), (ErrorBody, "error")]


def _facts(entry: Entry) -> Json:
    facts: Json = {"x-kind": type(entry).__name__.lower(), "x-owner": entry.owner}
    match entry:
        case Rpc():
            facts["x-callers"] = list(entry.callers)
            facts |= {"x-timeout-s": entry.timeout_s, "x-idempotent": entry.idempotent}
        case Job():
            facts["x-publishers"] = list(entry.publishers)
        case Event():
            facts["x-listeners"] = list(entry.listeners)
    stream = stream_of(entry)
    return {**facts, "x-stream": stream.name} if stream else facts


def _channel(address: str | None, messages: list[tuple[type[Contract], str]], **rest: Any) -> Json:
    keys = [_message(*message)[0] for message in messages]
    return {"address": address, "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in keys}, **rest}


def _channels() -> Json:
    channels: Json = {}
    for entry in REGISTRY:
        parameters = parameters_of(entry)
        more: Json = {"description": entry.doc, **_facts(entry)}
        if parameters:
            more["parameters"] = {name: {"description": _PARAMETERS[name]} for name in parameters}
        if entry is FRAMES:
            more["x-data"] = {
                kind: [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
                for kind, models in FRAME_DATA.items()
            }
        address = PREFIX + _with_parameters(entry.name, parameters, "{{{}}}")
        channels[channel_id(entry)] = _channel(address, [_incoming(entry)], **more)
        if isinstance(entry, Rpc):
            channels[f"{channel_id(entry)}.reply"] = _channel(
                None, _replies(entry), description="The reply subject of the request.", **{"x-kind": "reply"}
            )
    return channels


_VERBS = {Rpc: ("call", "serve"), Event: ("publish", "listen"), Job: ("submit", "take")}


def _operation(action: str, channel: str, messages: list[str], entry: Entry, who: Sequence[str]) -> Json:
    operation: Json = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": entry.doc,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{key}"} for key in messages],
        "x-by": list(who),
    }
    if action == "receive" and isinstance(entry, Rpc):
        operation["bindings"] = {"nats": {"queue": entry.owner, "bindingVersion": "0.1.0"}}
    if isinstance(entry, Rpc):
        keys = [_message(*message)[0] for message in _replies(entry)]
        operation["reply"] = {
            "channel": {"$ref": f"#/channels/{channel}.reply"},
            "messages": [{"$ref": f"#/channels/{channel}.reply/messages/{key}"} for key in keys],
        }
    return operation


def _operations() -> Json:
    operations: Json = {}
    senders: Sequence[str]
    receivers: Sequence[str]
    for entry in REGISTRY:
        channel, keys = channel_id(entry), [_message(*_incoming(entry))[0]]
        match entry:
            case Rpc():
                senders, receivers = entry.callers, (entry.owner,)
            case Job():
                senders, receivers = entry.publishers, (entry.owner,)
            case Event():
                senders, receivers = (entry.owner,), entry.listeners
        send, receive = _VERBS[type(entry)]
        operations[f"{channel}.{send}"] = _operation("send", channel, keys, entry, senders)
        operations[f"{channel}.{receive}"] = _operation("receive", channel, keys, entry, receivers)
    return operations


def _components() -> Json:
    messages: Json = {}
    for entry in REGISTRY:
        used = [_incoming(entry), *(_replies(entry) if isinstance(entry, Rpc) else [])]
        messages |= dict(_message(*message) for message in used)
    _, definitions = models_json_schema(
        [(model, "validation") for model in message_models()],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schema,
    )
    headers = {f"headers.{role}": schema for role, schema in HEADERS.items()}
    return {
        "messages": dict(sorted(messages.items())),
        "schemas": headers | dict(sorted(definitions["$defs"].items())),
        "securitySchemes": {
            "user": {"type": "userPassword", "description": "One NATS user per service and publisher."}
        },
    }


def _stream(stream: Stream) -> Json:
    return {
        "name": stream.name,
        "description": stream.doc,
        "subjects": list(stream.subjects),
        "owner": stream.owner,
        "readers": list(stream.readers),
        "storage": stream.storage,
        "retention": stream.retention,
        "max_age_s": stream.max_age_s,
        "max_bytes": stream.max_bytes,
    }


def asyncapi() -> Json:
    """The AsyncAPI 3.0.0 document of the whole bus."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "x402jobs Instant Resources",
            "version": VERSION,
            "description": "Everything that is said on the NATS bus. Within a major version changes are additive: ignore "
            "fields that you do not know, and take an unknown value of a closed set for a new one. An outside service is "
            f"a `{PUBLISHER}`; `x-owner`, `x-callers`, `x-listeners` and `x-publishers` say who may do what. "
            "A call has `x-timeout-s` seconds; one that is not `x-idempotent` must not be repeated blindly.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "{host}",
                "protocol": "nats",
                "description": "NATS with JetStream.",
                "variables": {"host": {"default": "127.0.0.1:4222", "description": "Host and port of the server."}},
                "security": [{"$ref": "#/components/securitySchemes/user"}],
            }
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": _components(),
        "x-streams": [_stream(stream) for stream in STREAMS],
    }


# Files ----------------------------------------------------------------------------------------------------------------


def _text(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Every generated file with what must stand in it."""
    return {
        **{SCHEMA_FOLDER / f"{name}.json": _text(schema) for name, schema in schemas().items()},
        ASYNCAPI_FILE: _text(asyncapi()),
    }


def out_of_date(wanted: Mapping[Path, str]) -> Iterator[Path]:
    """Files that are missing, differ, or belong to a message that is gone."""
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path
    yield from sorted(set(SCHEMA_FOLDER.glob("*.json")) - set(wanted))


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the JSON Schemas and the AsyncAPI document of the registry.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    check = parser.parse_args().check
    wanted = files()
    stale = list(out_of_date(wanted))
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(FOLDER.parent)}")
        if not check and path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        elif not check:
            path.unlink()
    if check and stale:
        print("Run `python -m contracts.document`, look at the difference, and commit it with your change.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
