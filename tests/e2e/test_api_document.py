"""The HTTP interface keeps to its own document: schemathesis reads `/openapi.json` and sends what it allows, and what is at its edges
and beyond, as somebody who may do everything. No answer is a failure of ours, and each is one of those that the document names."""

import asyncio
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.local.stack import Stack
from tests.e2e.client import connected

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.mark.timeout(900)
async def test_every_answer_is_one_that_the_document_names(stack: Stack, tmp_path: Path) -> None:
    async with connected(stack, f"fuzzer-{uuid4().hex[:8]}") as person:
        command = (
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{stack.gateway_url}/openapi.json"),
            *("--header", f"Authorization: Bearer {stack.token(person.name, admin=True)}"),
            *("--phases=coverage,fuzzing", "--max-examples=10", f"--checks={','.join(CHECKS)}"),
            # The same requests each time: what is new is found by raising the number, not by chance.
            *("--generation-deterministic", "--warnings=off", "--no-color"),
        )
        fuzzer = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        report = (await fuzzer.communicate())[0].decode()
    assert fuzzer.returncode == 0, report
    assert "Tested: " in report
