"""The registry makes sense by itself, and every service serves exactly what the registry says it owns."""

from __future__ import annotations

import base64
import importlib
import re
import types
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from contracts import subjects
from contracts.base import Contract
from contracts.document import members, message_models, stream_of
from contracts.errors import RETRYABLE, ErrorCode
from contracts.subjects import (
    EVENTS,
    FRAMES,
    JOBS,
    PREFIX,
    PUBLISHER,
    REGISTRY,
    RPCS,
    SERVICES,
    STREAMS,
    Event,
    Job,
    Rpc,
    as_publisher,
    frames_subject,
    publisher_of,
)
from services.runtime.identity import ExecutorIdentity
from tests.contract.source import PROCESS_NAMES, SERVICE_NAMES

SEED = base64.b64encode(bytes(range(32))).decode()
KEYRING = "k1:" + base64.b64encode(bytes(range(32))).decode()
ENVIRONMENT = {
    "NATS_URL": "nats://127.0.0.1:4222",
    "NATS_PASSWORD": "not-used",
    "POSTGRES_URL": "postgresql://127.0.0.1:5432/not_used",
    "MASTER_KEYS": KEYRING,
    "RESULT_KEYS": KEYRING,
    "EXECUTOR_IDENTITY": SEED,
    "EXECUTOR_IDENTITIES": ExecutorIdentity.parse(SEED).public_key,
    "MEDIA_NAME_SECRET": "not-used-but-long-enough-to-be-a-secret",
    "CATALOG_UPSTREAM_URL": "http://127.0.0.1:1/api/v1",
    "SANDBOX_URL": "http://127.0.0.1:1/api/v1",
    "HOST": "127.0.0.1",
    "PORT": "0",
    "PUBLIC_URL": "http://127.0.0.1:8402",
    "JWT_SECRET": "not-used-but-long-enough-to-be-a-secret",
    "JWT_ISSUER": "x402jobs-local",
    "JWT_AUDIENCE": "x402jobs",
}
SECRET_SETTING = re.compile(r"(password|secret|_keys|_identity|postgres_url)$")


def parties(entry: Rpc[Any, Any] | Event[Any] | Job[Any]) -> tuple[str, ...]:
    match entry:
        case Rpc():
            return entry.callers
        case Event():
            return entry.listeners
        case Job():
            return entry.publishers


def main_of(service: str) -> types.ModuleType:
    return importlib.import_module(f"services.{service}.main")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that any service must be told."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_names_are_unique_and_well_formed() -> None:
    names = [entry.name for entry in REGISTRY]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"(?:[a-z]+|\*)(?:\.(?:[a-z]+|\*))+", name), name


def test_every_entry_of_the_module_is_in_the_registry() -> None:
    defined = [value for value in vars(subjects).values() if isinstance(value, Rpc | Event | Job)]
    assert list(REGISTRY) == defined
    assert len(RPCS) + len(EVENTS) + len(JOBS) == len(REGISTRY)


@pytest.mark.parametrize("entry", REGISTRY, ids=lambda entry: entry.name)
def test_an_entry_says_all_that_is_needed(entry: Rpc[Any, Any] | Event[Any] | Job[Any]) -> None:
    assert entry.owner in SERVICES
    assert parties(entry), "somebody calls, hears or publishes it"
    assert set(parties(entry)) <= {*SERVICES, PUBLISHER}
    assert len(set(parties(entry))) == len(parties(entry))
    assert entry.doc[0].isupper()
    assert entry.doc.endswith("."), "a sentence ends with a period"
    assert entry.subject == PREFIX + entry.name


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_a_request_ends_in_time(rpc: Rpc[Any, Any]) -> None:
    assert 0 < rpc.timeout_s <= 660
    assert rpc.owner not in rpc.callers, "a service does not ask itself over the bus"


def test_every_message_is_a_contract_with_a_name_of_its_own() -> None:
    models = message_models()
    assert all(issubclass(model, Contract) for model in models)
    assert len({model.__name__ for model in models}) == len(models)
    assert all(members(rpc.reply) for rpc in RPCS)


def test_streams_capture_subjects_that_exist() -> None:
    known = {entry.subject for entry in REGISTRY}
    captured = [subject for stream in STREAMS for subject in stream.subjects]
    assert set(captured) <= known
    assert len(set(captured)) == len(captured), "a subject is captured once"
    for stream in STREAMS:
        assert stream.max_age_s > 0
        assert stream.max_bytes > 0
        assert stream.doc.endswith(".")
        assert stream.owner in SERVICES
    assert all(stream_of(job) for job in JOBS), "a job that no stream captures would be lost"


def test_subjects_of_publishers_and_frames_are_made_right() -> None:
    for entry in REGISTRY:
        if PUBLISHER in parties(entry) and entry is not FRAMES:
            concrete = as_publisher(entry.subject, "shop")
            assert "*" not in concrete
            assert concrete.split(".")[2:4] == ["as", "shop"]
            assert publisher_of(concrete) == "shop"
    assert frames_subject("shop", "x").count(".") == FRAMES.subject.count(".")
    assert frames_subject("*", "*") == FRAMES.subject


def test_error_codes_are_a_closed_set_in_lower_case() -> None:
    assert all(code.value == code.name.lower() for code in ErrorCode)
    assert set(ErrorCode) > RETRYABLE


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("service", SERVICE_NAMES)
def test_a_service_serves_exactly_what_it_owns(service: str) -> None:
    main = main_of(service)
    built = main.build(main.Settings())
    assert built.bus.served == {rpc.subject for rpc in RPCS if rpc.owner == service}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("service", SERVICE_NAMES)
def test_a_service_hears_what_it_is_meant_to_hear(service: str) -> None:
    main = main_of(service)
    heard = main.build(main.Settings()).bus.listened
    meant = {event for event in EVENTS if service in event.listeners}
    assert heard <= {event.subject for event in meant}
    # What a stream keeps is read from the stream, so that nothing is missed.
    assert heard >= {event.subject for event in meant if stream_of(event) is None}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("service", PROCESS_NAMES)
def test_secrets_among_settings_do_not_print_themselves(service: str) -> None:
    settings = main_of(service).Settings
    for name, field in settings.model_fields.items():
        if SECRET_SETTING.search(name):
            assert SecretStr in (field.annotation, *get_args(field.annotation)), f"{service}: {name} is a SecretStr"
    printed = repr(settings()) + settings().model_dump_json()
    for name in ("NATS_PASSWORD", "POSTGRES_URL", "MASTER_KEYS", "MEDIA_NAME_SECRET", "JWT_SECRET"):
        assert ENVIRONMENT[name] not in printed


@pytest.mark.parametrize("service", PROCESS_NAMES)
def test_a_service_starts_by_its_main(service: str) -> None:
    assert callable(main_of(service).main)
