"""What the checker says of every kind of change it knows, that it admits what it does not know, and that it reads git."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from contracts import compatibility
from contracts.compatibility import Finding, First, compare, compare_documents, contradictions
from contracts.document import asyncapi
from tests.contract.source import ROOT

Json = dict[str, Any]
BREAKS: First | None = None


def fields(required: tuple[str, ...] = (), **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
INTEGER: Json = {"type": "integer"}
NOTHING: Json = {"type": "null"}
ONE = fields(a=TEXT)
TAGGED_A = fields(("kind",), kind={"const": "a"}, x=TEXT)
TAGGED_B = fields(("kind",), kind={"const": "b"}, x=TEXT)

# case, old, new, then who goes first for a request, a reply and an event; BREAKS where nobody can
CASES: list[tuple[str, Json, Json, First | None, First | None, First | None]] = [
    ("optional field added", ONE, fields(a=TEXT, b=TEXT), "owner", "either", "either"),
    ("required field added", ONE, fields(("b",), a=TEXT, b=TEXT), BREAKS, "owner", BREAKS),
    ("field becomes required", ONE, fields(("a",), a=TEXT), BREAKS, "owner", BREAKS),
    ("field becomes optional", fields(("a",), a=TEXT), ONE, "owner", "others", "others"),
    ("optional field removed", fields(a=TEXT, b=TEXT), ONE, "others", "others", "others"),
    ("required field removed", fields(("b",), a=TEXT, b=TEXT), ONE, "owner", BREAKS, BREAKS),
    ("type changes", fields(a=TEXT), fields(a=INTEGER), BREAKS, BREAKS, BREAKS),
    ("integer widens to number", fields(a=INTEGER), fields(a=NUMBER), "owner", "others", "others"),
    ("number narrows to integer", fields(a=NUMBER), fields(a=INTEGER), BREAKS, "owner", BREAKS),
    ("enum value added", {"enum": ["x"]}, {"enum": ["x", "y"]}, "owner", "others", "others"),
    ("enum value removed", {"enum": ["x", "y"]}, {"enum": ["x"]}, BREAKS, "owner", BREAKS),
    ("constant becomes a choice", {"const": "x"}, {"enum": ["x", "y"]}, "owner", "others", "others"),
    ("closed set opens", {"enum": ["x"], **TEXT}, TEXT, "owner", "others", "others"),
    ("open set closes", TEXT, {"enum": ["x"], **TEXT}, BREAKS, "owner", BREAKS),
    ("null allowed", TEXT, {"anyOf": [TEXT, NOTHING]}, "owner", "others", "others"),
    ("null refused", {"anyOf": [TEXT, NOTHING]}, TEXT, BREAKS, "owner", BREAKS),
    (
        "kind of object joins a union",
        {"oneOf": [TAGGED_A]},
        {"oneOf": [TAGGED_A, TAGGED_B]},
        "owner",
        "others",
        "others",
    ),
    ("kind of object leaves a union", {"oneOf": [TAGGED_A, TAGGED_B]}, {"oneOf": [TAGGED_B]}, BREAKS, "owner", BREAKS),
    ("longer text", {"maxLength": 5}, {"maxLength": 9}, "owner", "others", "others"),
    ("shorter text", {"maxLength": 9}, {"maxLength": 5}, BREAKS, "owner", BREAKS),
    ("limit appears", TEXT, {**TEXT, "maxLength": 5}, BREAKS, "owner", BREAKS),
    ("limit goes", {**TEXT, "maxLength": 5}, TEXT, "owner", "others", "others"),
    ("lower minimum", {"minimum": 5}, {"minimum": 1}, "owner", "others", "others"),
    ("higher minimum", {"minimum": 1}, {"minimum": 5}, BREAKS, "owner", BREAKS),
    ("pattern changes", {"pattern": "^a"}, {"pattern": "^b"}, BREAKS, BREAKS, BREAKS),
    ("pattern appears", TEXT, {**TEXT, "pattern": "^b"}, BREAKS, "owner", BREAKS),
    ("format goes", {**TEXT, "format": "uuid"}, TEXT, "owner", "others", "others"),
    ("anything allowed", fields(a=TEXT), fields(a={}), "owner", "others", "others"),
    ("no longer anything", fields(a={}), fields(a=TEXT), BREAKS, "owner", BREAKS),
    ("items change", {"items": TEXT}, {"items": INTEGER}, BREAKS, BREAKS, BREAKS),
    ("items closed off", {"items": {"enum": ["x", "y"]}}, {"items": {"enum": ["x"]}}, BREAKS, "owner", BREAKS),
    ("further fields limited", {}, {"additionalProperties": False}, BREAKS, "owner", BREAKS),
    ("further fields typed", {"additionalProperties": TEXT}, {"additionalProperties": INTEGER}, BREAKS, BREAKS, BREAKS),
    ("default changes", {"default": 1}, {"default": 2}, "either", "either", "either"),
    ("wording changes", {"description": "x"}, {"description": "y"}, "either", "either", "either"),
    ("unknown keyword", {"multipleOf": 2}, {"multipleOf": 3}, BREAKS, BREAKS, BREAKS),
    ("unknown keyword appears", TEXT, {**TEXT, "contentEncoding": "base64"}, BREAKS, BREAKS, BREAKS),
]


@pytest.mark.parametrize(("case", "old", "new", "request_first", "reply_first", "event_first"), CASES)
def test_one_change_is_judged_for_each_direction(
    case: str, old: Json, new: Json, request_first: First | None, reply_first: First | None, event_first: First | None
) -> None:
    found = {direction: compare(old, new, direction) for direction in compatibility._COLUMNS}
    assert all(len(changes) == 1 for changes in found.values()), found
    judged = tuple(found[direction][0].first for direction in ("request", "reply", "event"))
    assert judged == (request_first, reply_first, event_first)


def test_every_kind_of_change_has_a_case() -> None:
    shown = {change.kind for _, old, new, *_ in CASES for change in compare(old, new, "request")}
    assert shown == set(compatibility._RULES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_the_same_twice_is_no_change(case: tuple[str, Json, Json]) -> None:
    for schema in case[1:3]:
        assert compare(schema, copy.deepcopy(schema), "request") == []


def test_a_reference_is_followed_and_a_renamed_model_is_the_same() -> None:
    old = {"$ref": "#/$defs/Old", "$defs": {"Old": fields(a=TEXT)}}
    new = {"$ref": "#/$defs/New", "$defs": {"New": fields(a=TEXT)}}
    assert compare(old, new, "request") == []
    new["$defs"] = {"New": fields(("b",), a=TEXT, b=TEXT)}
    (change,) = compare(old, new, "request")
    assert (change.where, change.breaks) == ("b", True)


def test_a_model_that_holds_itself_ends() -> None:
    node = fields(next={"$ref": "#/$defs/Node"})
    old = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    new = {"$ref": "#/$defs/Node", "$defs": {"Node": fields(("v",), next={"$ref": "#/$defs/Node"}, v=TEXT)}}
    assert [change.where for change in compare(old, new, "request")] == ["v"]


def test_a_change_deep_inside_names_its_place() -> None:
    old = fields(items={"type": "array", "items": {"anyOf": [fields(price=TEXT), NOTHING]}})
    new = fields(items={"type": "array", "items": {"anyOf": [fields(price=NUMBER), NOTHING]}})
    assert [change.where for change in compare(old, new, "reply")] == ["items[]<object>.price"]


# The registry ---------------------------------------------------------------------------------------------------------


def changed(change: Callable[[Json], object]) -> list[Finding]:
    old = asyncapi()
    new = copy.deepcopy(old)
    change(new)
    return compare_documents(old, new)


def set_field(api: Json, model: str, name: str, schema: Json) -> None:
    api["components"]["schemas"][model]["properties"][name] = schema


REGISTRY_CASES: list[tuple[str, Callable[[Json], object], str, First | None]] = [
    ("subject gone", lambda api: api["channels"].pop("keys.status"), "keys.status", BREAKS),
    ("owner changes", lambda api: api["channels"]["keys.status"].update({"x-owner": "catalog"}), "keys.status", BREAKS),
    ("address changes", lambda api: api["channels"]["keys.status"].update(address="y"), "keys.status", BREAKS),
    ("caller joins", lambda api: api["channels"]["keys.status"]["x-callers"].append("catalog"), "keys.status", "owner"),
    ("caller leaves", lambda api: api["channels"]["keys.status"]["x-callers"].pop(), "keys.status", "others"),
    (
        "publishers leave",
        lambda api: api["channels"]["as.publisher.execution.get"]["x-callers"].pop(),
        "as.publisher.execution.get",
        BREAKS,
    ),
    (
        "no longer idempotent",
        lambda api: api["channels"]["keys.status"].update({"x-idempotent": False}),
        "keys.status",
        BREAKS,
    ),
    ("timeout", lambda api: api["channels"]["keys.status"].update({"x-timeout-s": 9}), "keys.status", "either"),
    ("wording", lambda api: api["channels"]["keys.status"].update(description="y"), "keys.status", "either"),
    ("unknown fact", lambda api: api["channels"]["keys.status"].update({"x-new": 1}), "keys.status", BREAKS),
    ("stream gone", lambda api: api["x-streams"].pop(0), "X402JOBS_JOBS", BREAKS),
    ("stream storage", lambda api: api["x-streams"][0].update(storage="memory"), "X402JOBS_JOBS", BREAKS),
    ("stream keeps longer", lambda api: api["x-streams"][0].update(max_age_s=1), "X402JOBS_JOBS", "either"),
    ("unknown fact of a stream", lambda api: api["x-streams"][0].update(replicas=3), "X402JOBS_JOBS", BREAKS),
]


@pytest.mark.parametrize(("case", "change", "subject", "first"), REGISTRY_CASES)
def test_a_change_of_the_registry_is_judged(
    case: str, change: Callable[[Json], object], subject: str, first: First | None
) -> None:
    (finding,) = changed(change)
    assert (finding.subject, finding.change.first) == (subject, first)


def test_nothing_changed_is_nothing_found() -> None:
    assert changed(lambda _: None) == []


def test_a_new_subject_is_served_before_it_is_called() -> None:
    old = asyncapi()
    old["channels"] = {name: channel for name, channel in old["channels"].items() if not name.startswith("keys.lease")}
    (finding,) = compare_documents(old, asyncapi())
    assert (finding.subject, finding.change.first) == ("keys.lease", "owner")


def test_a_new_request_field_wants_the_owner_first_and_says_who() -> None:
    (finding,) = changed(lambda api: set_field(api, "ConnectKey", "label", TEXT))
    assert finding.before == (("keys", "gateway"),)
    assert "deploy keys first" in str(finding)


def test_what_publishers_would_have_to_do_first_breaks() -> None:
    def let_go(api: Json) -> None:
        api["components"]["schemas"]["CallerReceipt"]["required"].remove("price_usd")

    (finding,) = changed(let_go)
    assert finding.subject == "as.publisher.execution.finished"
    assert finding.change.breaks


def test_publishers_were_told_that_a_closed_set_may_grow() -> None:
    def grow(api: Json) -> None:
        api["components"]["schemas"]["CallerReceipt"]["properties"]["status"]["enum"].append("refunded")

    (finding,) = changed(grow)
    assert finding.change.first == "others"


def test_a_change_of_what_frames_carry_is_seen() -> None:
    findings = changed(lambda api: set_field(api, "TextDelta", "text", INTEGER))
    assert {(finding.part, finding.change.breaks) for finding in findings} == {
        ("text data", True),
        ("reasoning data", True),
    }


def test_a_changed_error_header_breaks_every_rpc() -> None:
    def rename(api: Json) -> None:
        headers = api["components"]["schemas"]["headers.error"]
        headers["properties"]["X-Code"] = headers["properties"].pop("Nats-Service-Error-Code")
        headers["required"] = ["Nats-Service-Error", "X-Code"]

    broken = {finding.subject for finding in changed(rename) if finding.change.breaks}
    assert {"keys.connect", "execution.run", "as.publisher.execution.run"} <= broken


def test_orders_that_contradict_each_other_are_named() -> None:
    def both(api: Json) -> None:
        set_field(api, "ConnectKey", "label", TEXT)
        api["components"]["schemas"]["KeyStatus"]["required"].remove("connected")

    assert contradictions(changed(both)) == [("gateway", "keys")]


def test_the_command_reads_git_and_refuses_what_is_no_revision() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "contracts.compatibility", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    empty = subprocess.run(
        ["git", "hash-object", "-t", "tree", "/dev/null"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert compatibility.document_at(empty) is None
    refused = run("--base", "no-such-revision")
    assert refused.returncode == 1
    assert "not a revision" in refused.stdout
    judged = run("--base", "HEAD")
    assert "Compared with HEAD" in judged.stdout or "nothing to compare with" in judged.stdout
    assert judged.stderr == ""


def test_the_command_fails_with_advice_when_something_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = asyncapi()
    set_field(old, "ConnectKey", "label", TEXT)
    old["components"]["schemas"]["KeyStatus"]["required"].append("hint")
    old["components"]["schemas"]["KeyStatus"]["properties"]["mode"]["anyOf"][0]["enum"].append("dry")
    old["components"]["schemas"]["OwnerRef"]["properties"]["owner"]["multipleOf"] = 3
    monkeypatch.setattr(compatibility, "document_at", lambda _: old)
    monkeypatch.setattr(sys, "argv", ["compatibility", "--base", "HEAD"])
    assert compatibility.main() == 1
    said = capsys.readouterr().out
    assert "teach contracts/compatibility.py" in said
    assert "deploy gateway first" in said
    assert "deploy keys first" in said
    assert "make two releases" in said
