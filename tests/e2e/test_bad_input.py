"""Everything that a person or a program can get wrong: the right code, a sentence that says what to do, nothing written,
nothing leaked. `MARK` stands in what is sent, and must never stand in an answer."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
import pytest_asyncio

from deploy.local.stack import Stack
from deploy.local.tokens import AUDIENCE, ISSUER
from tests.e2e.client import (
    KEY_PATH,
    MARK,
    Person,
    connected,
    draft,
    leaks_nothing,
    nothing_written,
    problem,
    signed_in,
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alice(stack: Stack) -> AsyncIterator[Person]:
    """A creator."""
    async with connected(stack, "alice") as person:
        yield person


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bob(stack: Stack) -> AsyncIterator[Person]:
    """Somebody else, without a key."""
    async with signed_in(stack, "bob") as person:
        yield person


# Tokens ---------------------------------------------------------------------------------------------------------------


def token_of(secret: str, algorithm: str = "HS256", **changes: Any) -> str:
    """A token that is good apart from the changes; a claim of None is left out."""
    claims = {
        "sub": MARK,
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": datetime.now(UTC) + timedelta(hours=1),
        "role": "admin",
        **changes,
    }
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, secret, algorithm=algorithm)


def bad_authorizations(secret: str) -> dict[str, str | None]:
    """Everything that signs nobody in, by name."""
    good = token_of(secret)
    head, body, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    foreign = "a secret of somebody else, which is long enough"
    return {
        "missing": None,
        "empty": "",
        "bare": good,
        "basic": f"Basic {base64.b64encode(MARK.encode()).decode()}",
        "no token": "Bearer",
        "nonsense": f"Bearer {MARK}",
        "three parts of nonsense": f"Bearer {MARK}.{MARK}.{MARK}",
        "cut": f"Bearer {head}.{body}",
        "signature changed": f"Bearer {head}.{body}.{signature[::-1]}",
        "not signed": f"Bearer {none}.{body}.",
        "foreign": f"Bearer {token_of(foreign)}",
        "other algorithm": f"Bearer {token_of(secret * 2, 'HS512')}",
        "expired": f"Bearer {token_of(secret, exp=hour_ago)}",
        "not yet valid": f"Bearer {token_of(secret, nbf=datetime.now(UTC) + timedelta(hours=1))}",
        "other issuer": f"Bearer {token_of(secret, iss='https://elsewhere.example')}",
        "other audience": f"Bearer {token_of(secret, aud='others')}",
        "no issuer": f"Bearer {token_of(secret, iss=None)}",
        "no audience": f"Bearer {token_of(secret, aud=None)}",
        "no expiry": f"Bearer {token_of(secret, exp=None)}",
        "nobody": f"Bearer {token_of(secret, sub=None)}",
        "empty user": f"Bearer {token_of(secret, sub='')}",
        "user with spaces": f"Bearer {token_of(secret, sub='a b')}",
        "user with a slash": f"Bearer {token_of(secret, sub='a/b')}",
    }


async def test_nobody_gets_in_when_the_token_is_bad(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.gateway_url) as http, nothing_written(stack):
        for name, authorization in bad_authorizations(stack.credentials.jwt_secret).items():
            headers = {} if authorization is None else {"Authorization": authorization}
            answer = await http.post("/api/resources", json=draft(), headers=headers)
            body = problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer"), name
            assert any(word in body["detail"].lower() for word in ("token", "sign in", "bearer")), (
                name,
                body["detail"],
            )
            leaks_nothing(answer)


async def test_every_private_route_asks_who_is_there_when_nobody_is_signed_in(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.gateway_url) as http, nothing_written(stack):
        routes = (await http.get("/openapi.json")).json()["paths"]
        private = [(m, path) for path, verbs in routes.items() for m, verb in verbs.items() if verb.get("security")]
        assert len(private) > 20
        for method, path in private:
            url = path.replace("{id}", str(uuid4())).replace("{author}", "a").replace("{slug}", "b")
            # Not even whether the body makes sense is told to nobody.
            answer = await http.request(method, url, content=b"{not json")
            problem(answer, 401, "unauthenticated")


# Resources of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [False, True])
async def test_resource_of_somebody_else_stays_as_it_is_when_touched(
    stack: Stack, alice: Person, bob: Person, published: bool
) -> None:
    config = {"prompt_template": f"{MARK} {{{{text}}}}"}
    mine = await (alice.publish(config=config) if published else alice.create(config=config))
    path = f"/api/resources/{mine['id']}"
    status, code = (403, "forbidden") if published else (404, "not_found")
    async with nothing_written(stack):
        for answer in (
            await bob.http.get(path),
            await bob.http.patch(path, json={"name": "Mine now"}),
            await bob.http.post(f"{path}/publish"),
            await bob.http.post(f"{path}/pause"),
            await bob.http.delete(path),
        ):
            problem(answer, status, code)
            leaks_nothing(answer)
        if not published:
            for ref in (mine["id"], f"{alice.name}/{mine['slug']}"):
                for headers in ({}, {"Prefer": "respond-async"}):
                    answer = await bob.execute(ref, headers=headers)
                    problem(answer, 404, "not_found")
                    leaks_nothing(answer)
                streamed = await bob.execute(ref, stream=True)
                problem(streamed, 404, "not_found")
    assert await alice.get(path) == mine


async def test_ids_that_lead_nowhere_are_not_found_when_used(stack: Stack, alice: Person) -> None:
    async with nothing_written(stack):
        for method, path in (
            ("GET", f"/api/resources/{uuid4()}"),
            ("DELETE", f"/api/resources/{uuid4()}"),
            ("POST", f"/api/resources/{uuid4()}/publish"),
            ("GET", f"/api/executions/{uuid4()}"),
            ("GET", f"/api/executions/{uuid4()}/events"),
            ("POST", f"/api/executions/{uuid4()}/cancel"),
            ("GET", f"/api/listings/nobody/{MARK}"),
            ("GET", f"/api/models/nobody/{MARK}"),
            ("GET", f"/media/{MARK}.png"),
            ("GET", f"/api/{MARK}"),
            ("GET", "/media/" + "0" * 64 + ".png"),
        ):
            answer = await alice.http.request(method, path)
            problem(answer, 404, "not_found")
            leaks_nothing(answer)
        for path in (f"/api/resources/{MARK}", f"/api/executions/{MARK}", f"/api/executions/{MARK}/events"):
            answer = await alice.http.get(path)
            problem(answer, 422, "invalid")
            leaks_nothing(answer)
        for ref in (
            str(uuid4()),
            f"nobody/{MARK}",
            MARK,
            "a/b/c",
            "/",
            "//",
            "..",
            "a\0b",
            "a/b\0",
            "é/ü",
            " ",
            "x" * 300,
        ):
            answer = await alice.execute(ref)
            assert answer.status_code in {404, 422}, (ref, answer.text)
            problem(answer, answer.status_code, "not_found" if answer.status_code == 404 else "invalid")
            leaks_nothing(answer)


# Inputs of a run ------------------------------------------------------------------------------------------------------

DECLARED = [
    {"name": "text", "type": "text", "max_length": 20},
    {"name": "times", "type": "number", "minimum": 1, "maximum": 5, "required": False},
    {"name": "loud", "type": "boolean", "required": False},
    {"name": "tone", "type": "choice", "choices": ["dry", "warm"], "required": False},
]
BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "missing": ({}, "input.text"),
    "null": ({"text": None}, "input.text"),
    "unknown": ({"text": "a", "other": MARK}, "input.other"),
    "unknown and odd": ({"text": "a", f"{MARK} <script>": 1}, "input"),
    "number for text": ({"text": 77412}, "input.text"),
    "list for text": ({"text": [MARK]}, "input.text"),
    "too long": ({"text": MARK * 5}, "input.text"),
    "text for a number": ({"text": "a", "times": MARK}, "input.times"),
    "boolean for a number": ({"text": "a", "times": True}, "input.times"),
    "below": ({"text": "a", "times": 0}, "input.times"),
    "above": ({"text": "a", "times": 6}, "input.times"),
    "text for a boolean": ({"text": "a", "loud": MARK}, "input.loud"),
    "other choice": ({"text": "a", "tone": MARK}, "input.tone"),
    "not an object": ([MARK], "input"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
async def test_bad_input_is_refused_when_executed(stack: Stack, alice: Person, bob: Person, name: str) -> None:
    values, path = BAD_INPUTS[name]
    template = "{{text}} {{times}} {{loud}} {{tone}}"
    resource = await alice.publish(inputs=DECLARED, config={"prompt_template": template})
    key = str(uuid4())
    async with nothing_written(stack):
        for options in ({}, {"stream": True}, {"headers": {"Prefer": "respond-async"}}):
            answer = await bob.execute(resource["id"], input=values, **options)
            refused = problem(answer, 422, "invalid")
            assert path in [error["path"] for error in refused["errors"]], refused
            leaks_nothing(answer)
        problem(await bob.execute(resource["id"], input=values, headers={"Idempotency-Key": key}), 422, "invalid")
    # A refusal binds no key.
    good = await bob.execute(resource["id"], input={"text": "a"}, headers={"Idempotency-Key": key})
    assert good.status_code == 200


async def test_input_is_refused_when_it_is_larger_than_a_mebibyte(stack: Stack, alice: Person) -> None:
    resource = await alice.create(inputs=[{"name": "text", "type": "text"}])
    async with nothing_written(stack):
        answer = await alice.execute(resource["id"], input={"text": MARK * 90_000})
        problem(answer, 413, "invalid")
        leaks_nothing(answer)
        answer = await alice.http.post("/api/execute", content=b" " * 3_000_000)
        problem(answer, 413, "invalid")


async def test_odd_characters_reach_the_model_unchanged_when_sent(alice: Person) -> None:
    resource = await alice.create()
    said = "a\0b \u202e \U0001f600 {{text}} {{other}} <script> '; DROP TABLE x; -- \ufffe"
    assert (await alice.result(resource["id"], input={"text": said}))["text"] == said


# Requests that are no requests ----------------------------------------------------------------------------------------

BAD_BODIES = {
    "empty": b"",
    "text": MARK.encode(),
    "half": b'{"resource": "zq-mark-7741',
    "form": b"resource=zq-mark-7741",
    "not utf-8": b'{"resource": "\xff\xfe"}',
    "comma": b'{"resource": "a",}',
    "not a number": b'{"resource": NaN}',
    "lone surrogate": b'{"resource": "\\ud800"}',
    "deep": b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_body_is_refused_when_it_is_not_json(stack: Stack, alice: Person, name: str) -> None:
    async with nothing_written(stack):
        for method, path in (
            ("POST", "/api/execute"),
            ("POST", "/api/resources"),
            ("POST", "/api/resources/preview"),
            ("POST", "/api/models/estimate"),
            ("PUT", KEY_PATH),
        ):
            answer = await alice.http.request(method, path, content=BAD_BODIES[name])
            refused = problem(answer, 400, "invalid")
            assert "JSON" in refused["detail"]
            leaks_nothing(answer)


async def test_body_is_refused_when_it_is_json_of_another_shape(stack: Stack, alice: Person) -> None:
    async with nothing_written(stack):
        for body in (b"null", b"[]", b'"zq-mark-7741"', b"7", b'{"zq-mark-7741": 1}', b'{"resource": 5}'):
            for method, path in (("POST", "/api/execute"), ("POST", "/api/resources"), ("PUT", KEY_PATH)):
                answer = await alice.http.request(method, path, content=body)
                problem(answer, 422, "invalid")
                assert MARK not in answer.json()["detail"]


async def test_query_is_refused_when_a_value_makes_no_sense(alice: Person) -> None:
    for path, query in (
        ("/api/models", {"limit": "0"}),
        ("/api/models", {"limit": "1000"}),
        ("/api/models", {"sort": MARK}),
        ("/api/models", {"status": MARK}),
        ("/api/models", {"max_prompt_price": MARK}),
        ("/api/models", {"min_context": "-1"}),
        ("/api/models", {"curated": MARK}),
        ("/api/models", {"cursor": MARK}),
        ("/api/resources", {"cursor": MARK}),
        ("/api/resources", {"status": MARK}),
        ("/api/executions", {"cursor": MARK}),
        ("/api/executions", {"role": MARK}),
        ("/api/executions", {"resource_id": MARK}),
        ("/api/listings", {"cursor": MARK}),
        ("/api/listings", {"q": "x" * 300}),
    ):
        answer = await alice.http.get(path, params=query)
        refused = problem(answer, 422, "invalid")
        assert next(iter(query)) in json.dumps(refused), refused
        leaks_nothing(answer)


async def test_method_and_address_are_named_when_they_do_not_fit(alice: Person) -> None:
    answer = await alice.http.put("/api/execute", json={})
    problem(answer, 405, "invalid")
    assert "POST" in answer.headers["allow"]
    problem(await alice.http.get("/nowhere"), 404, "not_found")


async def test_idempotency_key_is_refused_when_it_is_empty_or_endless(stack: Stack, alice: Person) -> None:
    resource = await alice.create()
    async with nothing_written(stack):
        for key in ("", "x" * 201):
            answer = await alice.execute(resource["id"], headers={"Idempotency-Key": key})
            problem(answer, 422, "invalid")


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "code", "word"),
    [
        (f"sk-or-test-dead-{MARK}", "key_rejected", "not accept"),
        (f"sk-or-test-mgmt-{MARK}", "key_rejected", "management"),
        (f"sk-ant-{MARK}", "invalid", "OpenRouter"),
        (MARK, "invalid", "OpenRouter"),
        ("", "invalid", "key"),
        ("   ", "invalid", "key"),
        (f"sk-or-test-{MARK} {MARK}", "invalid", "key"),
        (f"sk-or-test-{MARK}\nHost: evil", "invalid", "key"),
        (f"sk-or-test-{MARK}-é", "invalid", "key"),
        (f"sk-or-test-{MARK}" * 60, "invalid", "key"),
        (12345, "invalid", "key"),
        (None, "invalid", "key"),
    ],
)
async def test_key_is_refused_when_it_cannot_be_used(
    stack: Stack, alice: Person, bob: Person, key: Any, code: str, word: str
) -> None:
    before = await alice.get(KEY_PATH)
    async with nothing_written(stack):
        for person in (alice, bob):
            answer = await person.http.put(KEY_PATH, json={"api_key": key})
            refused = problem(answer, 422, code)
            assert word.lower() in json.dumps(refused).lower()
            leaks_nothing(answer)
    assert await alice.get(KEY_PATH) == before
    assert (await bob.get(KEY_PATH))["connected"] is False


async def test_key_is_not_repeated_when_it_stands_in_the_wrong_place(stack: Stack, bob: Person) -> None:
    key = f"sk-or-v1-{MARK}"
    async with nothing_written(stack):
        for body in ({"key": key}, {"api_key": {"value": key}}, {"api_key": [key]}, {key: "api_key"}, key):
            answer = await bob.http.put(KEY_PATH, json=body)
            problem(answer, 422, "invalid")
            leaks_nothing(answer)
        for body in ({**draft(), "api_key": key}, {**draft(), key: 1}):
            answer = await bob.http.post("/api/resources", json=body)
            problem(answer, 422, "invalid")
            leaks_nothing(answer)


async def test_run_needs_a_key_when_none_is_connected(stack: Stack, bob: Person) -> None:
    resource = await bob.create()
    async with nothing_written(stack):
        for answer in (
            await bob.execute(resource["id"]),
            await bob.execute(resource["id"], stream=True),
            await bob.execute(resource["id"], headers={"Prefer": "respond-async"}),
            await bob.http.post("/api/resources/preview", json={**draft(), "input": {"text": MARK}}),
            await bob.http.post(f"{KEY_PATH}/test"),
        ):
            refused = problem(answer, 409, "key_missing")
            assert "connect" in refused["detail"].lower()
            leaks_nothing(answer)
