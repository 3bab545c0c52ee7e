"""The page for outside services names what exists, and its examples need nothing of ours."""

from __future__ import annotations

import ast
import re
import sys
from typing import get_args

import pytest

from contracts.document import SCHEMA_FOLDER
from contracts.errors import ErrorCode
from contracts.execution import FrameType
from contracts.subjects import (
    EVENTS,
    FRAMES,
    JOBS,
    MESSAGE_ID_HEADER,
    PUBLISHER,
    RPCS,
    TIMEOUT_HEADER,
    as_publisher,
    frames_subject,
)
from tests.contract.source import ROOT

TEXT = (ROOT / "contracts" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
# Codes that a publisher cannot get: it signs in at NATS, not here.
NOT_FOR_PUBLISHERS = {ErrorCode.UNAUTHENTICATED}


def for_publishers() -> set[str]:
    subjects = [rpc.subject for rpc in RPCS if PUBLISHER in rpc.callers]
    subjects += [job.subject for job in JOBS if PUBLISHER in job.publishers]
    subjects += [event.subject for event in EVENTS if PUBLISHER in event.listeners and event is not FRAMES]
    return {as_publisher(subject, "<name>") for subject in subjects} | {frames_subject("<name>", "<execution_id>")}


def test_the_table_has_every_subject_of_a_publisher_and_no_other() -> None:
    assert set(re.findall(r"^\| `(x402jobs\.[^`]+)`", TEXT, re.MULTILINE)) == for_publishers()


def test_every_subject_in_an_example_exists() -> None:
    known = {subject.replace("<name>", "@").replace("<execution_id>", "@") for subject in for_publishers()}
    used = re.findall(r'"(x402jobs\.v1\.[^"]+)"', TEXT)
    assert len(used) > 6
    for subject in used:
        assert re.sub(r"\{\w+\}|\$NAME|\*", "@", subject) in known, subject


def test_every_error_code_and_frame_type_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", TEXT))
    assert {code.value for code in ErrorCode} - explained <= NOT_FOR_PUBLISHERS
    assert set(get_args(FrameType)) <= explained


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (ROOT / "contracts" / target).exists(), target
    linked = set(re.findall(r"schemas/v1/(\w+)\.json", TEXT))
    assert linked <= {path.stem for path in SCHEMA_FOLDER.glob("*.json")}


def test_headers_are_the_real_ones() -> None:
    assert TIMEOUT_HEADER in TEXT
    assert MESSAGE_ID_HEADER in TEXT


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_is_plain_python_with_a_nats_client(block: str) -> None:
    tree = ast.parse(block)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported - set(sys.stdlib_module_names) == {"nats"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "_INBOX." in block


def test_there_are_examples_of_waiting_watching_and_handing_over() -> None:
    assert [
        sum(verb in block for block in BLOCKS) for verb in ("execution.run", "execution.frames", "execution.submit")
    ] == [2, 1, 1]
