"""How to call a resource, ready to copy: with values that fit its inputs, so that what stands there runs as it is.

The token comes from the environment (`X402JOBS_TOKEN`), and never stands in a page. A file has to be uploaded first; the examples
take one of that name from the folder they run in.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from contracts.attachments import SENDABLE
from contracts.catalog import InputField
from contracts.media import EXTENSIONS
from contracts.publishing import run_subject

_TEXT = "Write something here"
_WHO = "X402JOBS_TOKEN holds your token; on your own machine, `make token` prints one."
_NATS_NEEDS = (
    "The nats command, and a user on the bus: NATS_URL, NATS_USER and NATS_PASSWORD say which. Files by their address."
)


class Snippet(NamedTuple):
    """One way to call it: its name, what it needs, and the code."""

    title: str
    needs: str
    code: str


def snippets(gateway_url: str, resource: str, inputs: Sequence[InputField]) -> list[Snippet]:
    """Every way to call `owner/slug` at the gateway that callers reach at this address."""
    return [
        Snippet("curl", f"A shell with curl. {_WHO}", _curl(gateway_url, resource, inputs)),
        Snippet(
            "curl, as it is written",
            f"The same as a stream of events, the text piece by piece. {_WHO}",
            _curl(gateway_url, resource, inputs, stream=True),
        ),
        Snippet("Python", f"Python 3 and nothing else. {_WHO}", _python(gateway_url, resource, inputs)),
        Snippet(
            "JavaScript",
            f"Node 18 or newer, as a module (call.mjs). {_WHO}",
            _javascript(gateway_url, resource, inputs),
        ),
        Snippet("NATS", _NATS_NEEDS, _nats(resource, inputs)),
    ]


def _is_file(field: InputField) -> bool:
    return field.type in SENDABLE


def _file_name(field: InputField) -> str:
    mime_type = (field.accept or SENDABLE[field.type])[0]
    return f"{field.name}.{EXTENSIONS.get(mime_type, 'bin')}"


def _sample(field: InputField) -> JsonValue:
    """A value that the input takes."""
    if field.default is not None:
        return field.default
    match field.type:
        case "boolean":
            return True
        case "choice":
            return (field.choices or [""])[0]
        case "number":
            low, high = field.minimum, field.maximum
            value = (
                1.0 if (low is None or low <= 1) and (high is None or high >= 1) else low if low is not None else high
            )
            return int(value) if value is not None and float(value).is_integer() else value
        case _:
            return _TEXT[: field.max_length]


def _shown(inputs: Sequence[InputField]) -> list[InputField]:
    """What an example fills in: what must be, and what has no default to show."""
    return [field for field in inputs if field.required or not _is_file(field)]


def _values(inputs: Sequence[InputField], of_file: Callable[[InputField], JsonValue]) -> dict[str, JsonValue]:
    return {field.name: of_file(field) if _is_file(field) else _sample(field) for field in _shown(inputs)}


def _files(inputs: Sequence[InputField]) -> list[InputField]:
    return [field for field in _shown(inputs) if _is_file(field)]


def _curl(gateway_url: str, resource: str, inputs: Sequence[InputField], *, stream: bool = False) -> str:
    bearer = '-H "Authorization: Bearer $X402JOBS_TOKEN"'
    lines = [
        f"{field.name.upper()}_URL=$(curl -sS {gateway_url}/media {bearer} \\\n"
        f"""  --data-binary @{_file_name(field)} | sed -E 's/.*"url":"([^"]+)".*/\\1/')"""
        for field in _files(inputs)
    ]
    body: dict[str, JsonValue] = {
        "resource": resource,
        "input": _values(inputs, lambda field: f"${field.name.upper()}_URL"),
        **({"stream": True} if stream else {}),
    }
    quoted = shlex.quote(json.dumps(body, ensure_ascii=False))
    for field in _files(inputs):
        variable = f'"${field.name.upper()}_URL"'
        quoted = quoted.replace(variable, '"' + f"'{variable}'" + '"')
    call = f"curl -sS{'N' if stream else ''} {gateway_url}/api/execute {bearer}"
    lines.append(f"{call} \\\n  -H 'Content-Type: application/json' \\\n  -d {quoted}")
    return "\n".join(lines)


def _python(gateway_url: str, resource: str, inputs: Sequence[InputField]) -> str:
    upload = [
        "",
        "",
        "def upload(name):",
        '    return ask("/media", open(name, "rb").read())["url"]',
    ]
    lines = [
        "import json",
        "import os",
        "import urllib.error",
        "import urllib.request",
        "",
        f"GATEWAY = {gateway_url!r}",
        'HEADERS = {"Authorization": "Bearer " + os.environ["X402JOBS_TOKEN"], "Content-Type": "application/json"}',
        "",
        "",
        "def ask(path, body):",
        "    request = urllib.request.Request(GATEWAY + path, data=body, headers=HEADERS)",
        "    try:",
        "        return json.load(urllib.request.urlopen(request, timeout=620))",
        "    except urllib.error.HTTPError as error:",
        '        raise SystemExit(json.load(error)["detail"])',
        *(upload if _files(inputs) else []),
        "",
        "",
        f"values = {_values(inputs, lambda _: None)!r}",
        *(f"values[{field.name!r}] = upload({_file_name(field)!r})" for field in _files(inputs)),
        f'result = ask("/api/execute", json.dumps({{"resource": {resource!r}, "input": values}}).encode())',
        'print(result["text"])',
        'print([part["url"] for part in result["outputs"] if "mime_type" in part])',
        'print(result["cost"]["price_usd"], "US dollars")',
    ]
    return "\n".join(lines)


def _javascript(gateway_url: str, resource: str, inputs: Sequence[InputField]) -> str:
    values = _values(inputs, lambda _: None)
    files = _files(inputs)
    lines = [
        *(['import { readFile } from "node:fs/promises";', ""] if files else []),
        f"const gateway = {json.dumps(gateway_url)};",
        'const headers = { Authorization: `Bearer ${process.env.X402JOBS_TOKEN}`, "Content-Type": "application/json" };',
        "",
        "async function ask(path, body) {",
        '  const answer = await fetch(gateway + path, { method: "POST", headers, body });',
        "  if (!answer.ok) throw new Error((await answer.json()).detail);",
        "  return answer.json();",
        "}",
        "",
        f"const input = {json.dumps(values, ensure_ascii=False)};",
        *(
            f'input.{field.name} = (await ask("/media", await readFile({json.dumps(_file_name(field))}))).url;'
            for field in files
        ),
        f'const result = await ask("/api/execute", JSON.stringify({{ resource: {json.dumps(resource)}, input }}));',
        "console.log(result.text);",
        'console.log(result.outputs.filter((part) => "mime_type" in part).map((part) => part.url));',
        'console.log(result.cost.price_usd, "US dollars");',
    ]
    return "\n".join(lines)


def _nats(resource: str, inputs: Sequence[InputField]) -> str:
    body = {"resource": resource, "input": _values(inputs, lambda _: "the address of your upload")}
    subject = run_subject("$NATS_USER")
    return (
        f'nats request "{subject}" {shlex.quote(json.dumps(body, ensure_ascii=False))} \\\n'
        '  --inbox-prefix "_INBOX.$NATS_USER" --timeout 600s'
    )
