"""The sandbox's page and exchange of OAuth answer as OpenRouter's do."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import pytest_asyncio

from deploy.sandbox.app import Settings, running

VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with running(Settings()) as url, aiohttp.ClientSession(url) as session:
        yield session


async def code_of(http: aiohttp.ClientSession, **query: str) -> str:
    asked = {"callback_url": "http://localhost:1/cb?state=s", "code_challenge": CHALLENGE, **query}
    async with http.get("/auth", params=asked, allow_redirects=False) as answer:
        assert answer.status == 302
        back = parse_qs(urlsplit(answer.headers["Location"]).query)
    assert back["state"] == ["s"]
    return back["code"][0]


async def exchange(http: aiohttp.ClientSession, body: Any) -> tuple[int, dict[str, Any]]:
    async with http.post("/api/v1/auth/keys", json=body) as answer:
        return answer.status, await answer.json()


async def test_a_code_and_its_verifier_make_a_key_that_works_once(http: aiohttp.ClientSession) -> None:
    code = await code_of(http, code_challenge_method="S256")
    body = {"code": code, "code_verifier": VERIFIER, "code_challenge_method": "S256"}
    status, made = await exchange(http, body)
    assert (status, set(made)) == (200, {"key", "user_id"})
    async with http.get("/api/v1/key", headers={"Authorization": f"Bearer {made['key']}"}) as answer:
        assert answer.status == 200
    assert (await exchange(http, body))[0] == 400


async def test_plain_challenges_are_compared_as_they_are(http: aiohttp.ClientSession) -> None:
    code = await code_of(http, code_challenge=VERIFIER, code_challenge_method="plain")
    body = {"code": code, "code_verifier": VERIFIER, "code_challenge_method": "plain"}
    assert (await exchange(http, body))[0] == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"code_verifier": "another"}, 403),
        ({"code_verifier": CHALLENGE, "code_challenge_method": "plain"}, 403),
        ({"code_challenge_method": "S512"}, 400),
        ({"code": "unknown"}, 400),
    ],
)
async def test_what_does_not_fit_is_refused(http: aiohttp.ClientSession, change: dict[str, str], status: int) -> None:
    body = {"code": await code_of(http), "code_verifier": VERIFIER, **change}
    answered, error = await exchange(http, body)
    assert (answered, error["error"]["code"]) == (status, status)


async def test_a_body_that_is_none_gets_the_second_envelope(http: aiohttp.ClientSession) -> None:
    bodies: list[Any] = [{}, [], "code"]
    for body in bodies:
        status, error = await exchange(http, body)
        assert (status, error["error"]["name"]) == (400, "ZodError")


async def test_codes_end_after_ten_minutes(http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    code = await code_of(http)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert (await exchange(http, {"code": code, "code_verifier": VERIFIER}))[0] == 403


async def test_the_page_shows_the_code_without_a_callback_and_refuses_foreign_ones(http: aiohttp.ClientSession) -> None:
    async with http.get("/auth", params={"code_challenge": CHALLENGE}) as answer:
        code = (await answer.text()).partition("<code>")[2].partition("</code>")[0]
    assert (await exchange(http, {"code": code, "code_verifier": VERIFIER}))[0] == 200
    for query in ({}, {"code_challenge": "x", "code_challenge_method": "S512"},
                  {"code_challenge": "x", "callback_url": "http://evil.example.com/"}):  # fmt: skip
        async with http.get("/auth", params=query, allow_redirects=False) as answer:
            assert answer.status == 400
