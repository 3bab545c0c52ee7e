"""Who may publish and hear what, read from the lists; `test_permissions_live.py` asks a real server."""

from __future__ import annotations

import pytest

from contracts.permissions import deployed_config, nats_config, publish_list, publisher_lists, subscribe_list
from contracts.subjects import (
    EVENTS,
    FRAMES,
    JOBS,
    KEYS_LEASE,
    PREFIX,
    RPCS,
    SERVICES,
    STREAMS,
    Service,
    as_publisher,
    frames_subject,
)
from tests.contract.source import ROOT


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject falls under a pattern, as NATS has it."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and all(
            one in ("*", other) for one, other in zip(wanted[:-1], given, strict=False)
        )
    return len(wanted) == len(given) and all(one in ("*", other) for one, other in zip(wanted, given, strict=True))


def may_publish(service: Service, subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in publish_list(service))


def test_deployed_configuration_is_up_to_date() -> None:
    committed = (ROOT / "deploy" / "nats.conf").read_text()
    assert committed == deployed_config(["demo"]), "run `python -m contracts.permissions` and commit deploy/nats.conf"


def test_only_the_executor_may_ask_for_a_key() -> None:
    assert [service for service in SERVICES if may_publish(service, KEYS_LEASE.subject)] == ["executor"]
    assert not any(matches(pattern, KEYS_LEASE.subject) for pattern in publisher_lists("demo")[0])


def test_only_the_gateway_may_name_a_caller() -> None:
    plain = [rpc.subject for rpc in RPCS if rpc.name.startswith("execution.")]
    assert len(plain) >= 5
    for subject in plain:
        assert [service for service in SERVICES if may_publish(service, subject)] == ["gateway"]
    for job in JOBS:
        if job.name.startswith("execution."):
            assert [service for service in SERVICES if may_publish(service, job.subject)] == ["gateway"]


def test_nobody_else_may_speak_as_a_publisher() -> None:
    subjects = [rpc.subject for rpc in RPCS] + [job.subject for job in JOBS]
    for subject in [subject for subject in subjects if subject.startswith(f"{PREFIX}as.")]:
        assert not [service for service in SERVICES if may_publish(service, as_publisher(subject, "demo"))]


def test_events_are_said_by_their_owner_alone() -> None:
    for event in EVENTS:
        subject = event.subject.replace("*", "x")
        assert [service for service in SERVICES if may_publish(service, subject)] == [event.owner], event.name


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_may_do_what_the_registry_asks_of_it(service: Service) -> None:
    heard = subscribe_list(service)
    for rpc in RPCS:
        assert (f"{rpc.subject} {rpc.owner}" in heard) == (rpc.owner == service)
        assert rpc.subject not in heard, "requests are heard in the queue group of their owner alone"
        assert may_publish(service, rpc.subject) == (service in rpc.callers)
    for event in EVENTS:
        if service in event.listeners:
            wanted = frames_subject(service, "*") if event is FRAMES else event.subject
            assert wanted in heard


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_hears_nobody_elses_inbox_and_never_everything(service: Service) -> None:
    heard = [entry.split(" ")[0] for entry in subscribe_list(service)]
    assert [subject for subject in heard if subject.startswith("_INBOX.")] == [f"_INBOX.{service}.>"]
    for subject in heard:
        assert subject.startswith((PREFIX, f"_INBOX.{service}."))
        assert not matches(subject, f"_INBOX.{'gateway' if service != 'gateway' else 'keys'}.x")
        assert not matches(subject, frames_subject("demo", "x"))


@pytest.mark.parametrize("service", SERVICES)
def test_jetstream_is_reached_for_named_streams_alone(service: Service) -> None:
    own = {stream.name for stream in STREAMS if service == stream.owner or service in stream.readers}
    for subject in publish_list(service):
        if subject.startswith("$JS."):
            assert any(stream in subject for stream in (*own, "OBJ_")), subject
            assert not subject.startswith("$JS.API.STREAM.DELETE"), "no service deletes a stream"


def test_a_publishers_lists_hold_its_own_name_alone() -> None:
    publish, subscribe = publisher_lists("shop")
    assert publish
    assert all(subject.startswith(f"{PREFIX}as.shop.") and "*" not in subject for subject in publish)
    for subject in subscribe:
        assert "shop" in subject.split(".")
        assert not matches(subject, frames_subject("demo", "x"))
        assert not matches(subject, "_INBOX.demo.x")
        assert subject.split(".")[0] in ("x402jobs", "_INBOX")
    assert not [subject for subject in publish if subject.startswith("$")], "no JetStream API for publishers"


def test_the_configuration_names_every_user_once() -> None:
    passwords = dict.fromkeys([*SERVICES, "demo", "other"], "secret-of-a-test")
    text = nats_config(passwords, ["demo", "other"])
    for user in passwords:
        assert text.count(f"user: {user}\n") == 1
    assert "observer" not in text
