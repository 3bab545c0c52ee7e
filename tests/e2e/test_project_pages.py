"""The pages in front of the project say what is true: the commands of README.md run as they stand, its tables name what exists, all
of it and nothing else, and ARCHITECTURE.md and DECISIONS.md speak of files, tests and packages that are there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import httpx
import pytest
from pydantic_core import PydanticUndefined

from contracts.attachments import MAX_ATTACHED_BYTES, MAX_ATTACHMENT_BYTES, MAX_IMAGE_PIXELS, MAX_PDF_PAGES
from contracts.catalog import MAX_INPUT_BYTES, MAX_TEMPLATE_CHARS, Timeouts
from contracts.errors import ErrorCode
from contracts.execution import MAX_RESULT_BYTES
from contracts.subjects import FRAMES_STREAM, JOBS_STREAM, NOTICES_STREAM, RECEIPTS_STREAM, SERVICES
from contracts.workflows import MAX_STEPS
from deploy.local import settings as local_settings
from deploy.local.stack import Stack
from deploy.sandbox.modes import MODES
from services.executor.media import MAX_MEDIA_BYTES
from services.executor.retries import MAX_ATTEMPTS
from services.executor.uploads import MAX_BYTES_PER_CALLER
from services.executor.workflows import MAX_STARTS
from services.gateway.problems import STATUSES
from services.gateway.routing import MAX_BODY_BYTES
from services.gateway.uploads import MAX_RUN_BODY_BYTES
from services.keys.guards.limits import MOST, WINDOW
from services.keys.guards.oauth import LIFETIME
from services.keys.handlers import LEASE_S
from services.runtime.settings import ProcessSettings
from tests.stack import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PROCESSES: tuple[str, ...] = (*SERVICES, "console")
GROUPS: dict[str, tuple[str, ...]] = {"all": PROCESSES, "all on the bus": SERVICES}
PROBLEM = "urn:x402jobs:problem:"
BLOCK_MARK = "@@ block"
# The environment of this interpreter is the installed one, whoever made it: `make` must not install it anew meanwhile.
PRELUDE = """set -euo pipefail
make() { command make --old-file=.venv/.installed "$@"; }
"""


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found.group(1)


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def names(cell: str) -> list[str]:
    """Everything in a cell that is set as code."""
    return re.findall(r"`([^`]+)`", cell)


# The commands ---------------------------------------------------------------------------------------------------------


def test_the_two_commands_come_first() -> None:
    first = re.search(r"^```\w+\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first.group(1).splitlines()] == ["make run", "make test"]


def run_blocks(environment: dict[str, str]) -> list[str]:
    """All blocks in one bash, as somebody pastes them; what each of them printed."""
    script = PRELUDE + "".join(f"echo '{BLOCK_MARK}'\n{block}\n" for block in BLOCKS)
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    printed = done.stdout.split(BLOCK_MARK + "\n")[1:]
    failed = BLOCKS[len(printed) - 1] if printed else script
    assert done.returncode == 0, f"{failed}\n{printed[-1:]}\n{done.stderr}"
    assert "202 accepted" in done.stderr
    return printed


async def test_every_command_runs_as_it_stands(stack: Stack, tmp_path: Path) -> None:
    environment = {
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "GATEWAY": stack.gateway_url,
        "LOCAL_DIR": str(stack.directory),
    }
    printed = await asyncio.to_thread(run_blocks, environment)

    def output_of(piece: str) -> str:
        found = [text for block, text in zip(BLOCKS, printed, strict=True) if piece in block]
        assert len(found) == 1, piece
        return found[0]

    assert [PROBLEM in text for text in printed] == [False] * (len(printed) - 1) + [True]
    assert '"path":"input.topik"' in printed[-1]
    assert '"mode":"test"' in output_of('"api_key"')
    assert output_of("$RESOURCE/publish") == "published\n"
    assert '"cost":{"price_usd":"0.01"}' in output_of('"topic": "autumn"}}')
    counted, found = output_of("max_prompt_price").splitlines()[:2]
    assert '"anthropic": ' in counted
    assert found.startswith("openai/")
    assert '"ceiling_usd":"' in output_of("/api/models/estimate")
    assert '"status": "final"' in output_of('"cost_plus"')
    assert '"price_usd":"0.01"' in output_of("/api/listings")
    assert "haiku about" not in output_of("/api/listings").lower()
    expected, total, today = output_of("/api/budgets").splitlines()
    assert '"price_usd": "0.01"' in expected
    assert '"margin_usd": ' in total
    assert '"daily_usd": "5"' in today
    kinds = re.findall(r"^event: (\w+)$", output_of('"topic": "snow"'), re.MULTILINE)
    assert (kinds[0], kinds[-1], kinds.count("completed")) == ("started", "completed", 1)
    assert output_of("respond-async").startswith("succeeded\n")
    price, cost, receipt = output_of("field receipt").splitlines()
    assert price == '{"price_usd": "0.01"}'
    assert '"model_usd": "0.0' in cost
    assert '"revision": 1' in receipt
    numbers = [int(number) for number in re.findall(r"^id: (\d+)$", output_of("Last-Event-ID"), re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 3
    assert output_of("AGAIN=") == "the same run\n"
    flow = output_of("/api/workflows")
    assert re.findall(r"^event: (\w+)$", flow, re.MULTILINE) == ["step"] * 6 + ["completed"]
    assert [int(number) for number in re.findall(r"^id: (\d+)$", flow, re.MULTILINE)] == list(range(1, 8))
    price, picture = flow.splitlines()[-2:]
    assert price == "0.07"
    assert re.search(r"/media/\w+\.png$", picture)
    hint, accesses = output_of("/oauth/complete").splitlines()
    assert hint.startswith("sk-or-")
    assert '"action": "connect"' in accesses
    assert output_of("PHOTO=").count("What is in this picture?") == 1
    assert (tmp_path / "painted.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "DECISIONS.md", "CHANGELOG.md"])
def test_pages_speak_of_files_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    assert [target for target in targets if not (ROOT / target).exists()] == []
    ours = [path for folder in ("contracts", "services", "deploy", "tests") for path in (ROOT / folder).rglob("*.py")]
    files = {str(path) for path in ours}
    named = set(re.findall(r"`([\w/]+\.py)`", text)) | {f"{name}.py" for name in re.findall(r"`(test_\w+)`", text)}
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in files)] == []


def test_every_decision_has_its_number_and_its_four_parts() -> None:
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^### (\d+)\. ", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == len(re.findall(r"^### ", text, re.MULTILINE)) > 20
    for decision in re.split(r"^### \d+\. ", text, flags=re.MULTILINE)[1:]:
        parts = re.findall(r"\*\*(\w+)\.\*\*", decision)
        assert parts == ["Context", "Choice", "Rejected", "Consequence"], decision.splitlines()[0]


def test_every_package_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    packages = {re.split(r"[\[<>=~ ]", each)[0] for each in required}
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "DECISIONS.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for cell in table for name in names(cell)} == packages


# The tables -----------------------------------------------------------------------------------------------------------


def test_the_verbs_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    in_table = [names(row[0])[0].removeprefix("make").strip() for row in rows("Verbs")]
    assert {verb for verb in in_table if verb} == verbs - {"help"}
    assert set(re.findall(r"\bmake (?:-s )?([a-z]+(?:-[a-z]+)*)\b", "\n".join(re.findall(r"`[^`]+`", TEXT)))) <= verbs


def settings_of(service: str) -> type[ProcessSettings]:
    found: type[ProcessSettings] = import_module(f"services.{service}.main").Settings
    return found


def test_the_variables_of_services_are_those_of_their_settings() -> None:
    expected: dict[tuple[str, str], str] = {}
    for service in PROCESSES:
        for name, field in settings_of(service).model_fields.items():
            default = "required" if field.default is PydanticUndefined else str(field.default).lower() or "none"
            expected[service, name.upper()] = default
    stated: dict[tuple[str, str], str] = {}
    for name, services, default, _ in (row[:4] for row in rows("Variables of the services")):
        for of in GROUPS.get(services) or services.split(", "):
            stated[of, names(name)[0]] = (names(default) or [default])[0].lower()
    assert stated == expected


def test_the_variables_of_make_run_are_those_that_it_reads() -> None:
    sources = [
        (ROOT / "deploy" / "local" / name).read_text(encoding="utf-8") for name in ("__main__.py", "settings.py")
    ]
    reads = re.findall(r'(?:environ|environment)\.get\("([A-Z_]+)"|_number\("([A-Z_]+)"', "\n".join(sources))
    passed_on = {name for own in local_settings.OWN.values() for name in own} | set(local_settings.COMMON)
    sandbox = import_module("deploy.sandbox.__main__").__doc__ or ""
    expected = {a or b for a, b in reads} | passed_on | set(re.findall(r"^(SANDBOX_[A-Z_]+)", sandbox, re.MULTILINE))
    assert {name for row in rows("Variables of `make run`") for name in names(row[0])} == expected


async def test_the_routes_are_those_of_the_gateway(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.gateway_url) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    served = {
        (method.upper(), path): "security" not in entry for path, of in paths.items() for method, entry in of.items()
    }
    stated = {(row[0], names(row[1])[0]): row[2].startswith("∘") for row in rows("HTTP")}
    assert stated == served


def test_the_error_codes_are_all_there_with_their_statuses() -> None:
    stated = dict(re.findall(r"`(\w+)`\s+([45]\d\d)", section("HTTP")))
    assert {ErrorCode(code): int(status) for code, status in stated.items()} == STATUSES


def test_the_modes_are_those_of_the_sandbox() -> None:
    stated = [mode for row in rows("The sandbox") for mode in names(row[0])]
    assert sorted(stated) == sorted(MODES)


def exported(text: str) -> Iterator[str]:
    """Names of our own metrics in Prometheus text; those of FastStream and moments of creation left out."""
    for name in re.findall(r"^# TYPE (x402jobs_\w+) ", text, re.MULTILINE):
        if not name.startswith("x402jobs_bus_") and not name.endswith("_created"):
            yield name


@pytest.mark.parametrize("service", PROCESSES)
async def test_the_metrics_are_those_that_a_service_exports(stack: Stack, service: str) -> None:
    url = f"{stack.parts[service].metrics_url}"  # type: ignore[attr-defined]
    async with httpx.AsyncClient() as client:
        real = set(exported((await client.get(url)).text))
    stated = {
        name
        for row in rows("Metrics")
        if service in GROUPS.get(row[1].split(",")[0], row[1].split(", "))
        for name in names(row[0])
    }
    assert {name for name in stated if "…" not in name} == real


def test_the_figures_of_the_limits_are_those_of_the_code() -> None:
    mebibyte, day_s = 1024 * 1024, 86_400
    limits = {row[0]: row[1] for row in rows("Limits")}
    kept = {row[0]: row[1] for row in rows("What is kept, and how long")}
    timeouts = Timeouts()
    assert limits["body of a request, input of a run"] == (
        f"{MAX_BODY_BYTES // mebibyte} MiB, {MAX_INPUT_BYTES // mebibyte} MiB"
    )
    assert limits["a result as JSON (its text stands in it twice), one generated file"] == (
        f"{MAX_RESULT_BYTES / 1_000_000} MB, {MAX_MEDIA_BYTES // mebibyte} MiB"
    )
    assert (
        f"{MAX_TEMPLATE_CHARS:,} characters"
        in limits["template or system prompt, inputs, fallback models of a resource"]
    )
    assert limits["calls to the upstream per run"].startswith(f"{MAX_ATTEMPTS},")
    assert limits["steps of a workflow; how often an interrupted one begins"] == f"{MAX_STEPS}; {MAX_STARTS}"
    assert limits["first token, idle, total"].startswith(
        f"{timeouts.first_token_s:.0f}, {timeouts.idle_s:.0f}, {timeouts.total_s:.0f} s"
    )
    assert kept["events of a run, to resume from"] == f"{FRAMES_STREAM.max_age_s // 60} minutes"
    assert kept["`finished` messages, for services that were away"] == f"{RECEIPTS_STREAM.max_age_s // day_s} days"
    window_min = int(WINDOW.total_seconds()) // 60
    most = ", ".join(str(MOST[kind]) for kind in ("guess", "connect", "verify", "oauth"))
    counted = "keys that OpenRouter does not accept, connects, tests, authorizations begun"
    assert limits[f"per owner in {window_min} minutes: {counted}"].startswith(f"{most};")
    assert limits["an image, file or audio input, as declared"] == f"{MAX_ATTACHMENT_BYTES // mebibyte} MiB"
    assert limits["all files of a run; one in the body as a data URL; uploads kept per caller"] == (
        f"{MAX_ATTACHED_BYTES // mebibyte} MiB; a body of {MAX_RUN_BODY_BYTES // mebibyte} MiB; "
        f"{MAX_BYTES_PER_CALLER // mebibyte} MiB"
    )
    assert limits["a picture; a PDF"] == f"{MAX_IMAGE_PIXELS // 10**6} million pixels; {MAX_PDF_PAGES} pages"
    assert kept["an OAuth authorization that was begun"] == f"{int(LIFETIME.total_seconds()) // 60} minutes"
    assert kept["notices to creators, on the bus"] == f"{NOTICES_STREAM.max_age_s // day_s} days"
    assert kept["submitted jobs that nobody has taken yet"] == f"{JOBS_STREAM.max_age_s // day_s} days"
    assert kept["a leased key in an executor"] == f"{LEASE_S} seconds"
