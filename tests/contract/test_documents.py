"""The generated documents are current, complete and whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from contracts import document
from contracts.execution import TERMINAL_FRAMES, FrameType
from contracts.subjects import JOBS, PREFIX, REGISTRY, RPCS, STREAMS


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(root: dict[str, Any], reference: str) -> Any:
    node: Any = root
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node


def test_documents_are_up_to_date() -> None:
    stale = list(document.out_of_date(document.files()))
    assert not stale, f"run `python -m contracts.document` and commit {[path.name for path in stale]}"


def test_a_change_and_a_leftover_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "SCHEMA_FOLDER", tmp_path)
    good, changed, leftover, missing = (
        tmp_path / f"{name}.json" for name in ("Good", "Changed", "Leftover", "Missing")
    )
    for path in (good, changed, leftover):
        path.write_text("{}\n")
    wanted = {good: "{}\n", changed: '{"type": "object"}\n', missing: "{}\n"}
    assert set(document.out_of_date(wanted)) == {changed, leftover, missing}


def test_the_command_advises_then_writes_then_is_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "contracts" / "schemas"
    folder.mkdir(parents=True)
    (folder / "Leftover.json").write_text("{}\n")
    monkeypatch.setattr(document, "FOLDER", tmp_path / "contracts")
    monkeypatch.setattr(document, "SCHEMA_FOLDER", folder)
    monkeypatch.setattr(document, "files", lambda: {folder / "New.json": "{}\n"})
    monkeypatch.setattr("sys.argv", ["document", "--check"])
    assert document.main() == 1
    assert "Run `python -m contracts.document`" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["document"])
    assert document.main() == 0
    assert [path.name for path in folder.iterdir()] == ["New.json"]
    monkeypatch.setattr("sys.argv", ["document", "--check"])
    assert document.main() == 0


def test_schemas_are_valid_and_name_themselves() -> None:
    for path in document.SCHEMA_FOLDER.glob("*.json"):
        schema = json.loads(path.read_text())
        Draft202012Validator.check_schema(schema)
        assert schema["$id"].endswith(f":{path.stem}")
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_reference_of_asyncapi_leads_somewhere() -> None:
    api = document.asyncapi()
    for reference in references(api):
        assert resolve(api, reference) is not None, reference


def test_asyncapi_has_a_channel_and_both_sides_for_every_entry() -> None:
    api = document.asyncapi()
    for entry in REGISTRY:
        channel = api["channels"][document.channel_id(entry)]
        assert "*" not in channel["address"]
        assert channel["address"].startswith(PREFIX)
        parameters = document.parameters_of(entry)
        assert set(channel.get("parameters", {})) == set(parameters)
        assert all(f"{{{name}}}" in channel["address"] for name in parameters)
        pointer = {"$ref": f"#/channels/{document.channel_id(entry)}"}
        sides = [operation["action"] for operation in api["operations"].values() if operation["channel"] == pointer]
        assert sorted(sides) == ["receive", "send"], entry.name


def test_every_rpc_can_answer_with_an_error() -> None:
    api = document.asyncapi()
    for rpc in RPCS:
        replies = api["channels"][f"{document.channel_id(rpc)}.reply"]["messages"]
        assert "ErrorBody.error" in replies
        assert len(replies) == 1 + len(document.members(rpc.reply))
    error = api["components"]["messages"]["ErrorBody.error"]
    assert resolve(api, error["headers"]["$ref"])["required"] == ["Nats-Service-Error", "Nats-Service-Error-Code"]


def test_streams_are_described_and_jobs_are_captured() -> None:
    api = document.asyncapi()
    assert [stream["name"] for stream in api["x-streams"]] == [stream.name for stream in STREAMS]
    for job in JOBS:
        assert api["channels"][document.channel_id(job)]["x-stream"]


def test_frame_data_names_every_type_of_frame() -> None:
    assert set(document.FRAME_DATA) == set(FrameType.__args__)  # type: ignore[attr-defined]
    assert set(document.FRAME_DATA) >= TERMINAL_FRAMES
