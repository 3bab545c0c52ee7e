"""Connecting with OAuth and PKCE: two keys services, the real sandbox as the page where people agree, and an upstream that
answers the exchange as a test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from nats.aio.msg import Msg

from contracts.errors import ErrorCode, ServiceError
from contracts.keys import BeginOAuth, CompleteOAuth, KeyStatus, OAuthBegun
from contracts.subjects import KEYS_OAUTH_BEGIN, KEYS_OAUTH_COMPLETE
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.local.ports import HOST, free_port
from services.keys.guards import oauth
from services.keys.guards.limits import MOST
from tests.integration.keys.test_keys_process import everything_stored, forms_of, keys_process, started
from tests.integration.keys_parts import LIVE_KEY, Parties, keys_running, keys_settings, let_time_pass, parties_around
from tests.stack import Database, serving

CALLBACK = "http://localhost:8403/openrouter/callback?tab=keys"
MADE_KEY = "sk-or-v1-made-by-openrouter-0123456789"


def replica(
    database: Database, nats: Nats, credentials: Credentials, sandbox: str, instance: str = "keys-1", **changes: Any
) -> Any:
    values = {
        "openrouter_url": "http://127.0.0.1:1/api/v1",
        "openrouter_auth_url": sandbox.removesuffix("/api/v1") + "/auth",
        "sandbox_url": sandbox,
        "instance": instance,
        **changes,
    }
    return keys_running(keys_settings(database, nats, credentials, **values))


@pytest_asyncio.fixture
async def parties(
    database: Database, nats_server: Nats, credentials: Credentials, sandbox: str
) -> AsyncIterator[Parties]:
    async with (
        replica(database, nats_server, credentials, sandbox, "keys-1"),
        replica(database, nats_server, credentials, sandbox, "keys-2"),
        parties_around(nats_server, credentials) as around,
    ):
        yield around


async def begin(parties: Parties, owner: str, callback_url: str | None = CALLBACK) -> OAuthBegun:
    return await parties.gateway.call(KEYS_OAUTH_BEGIN, BeginOAuth(owner=owner, callback_url=callback_url))


async def complete(parties: Parties, owner: str, state: str, code: str) -> KeyStatus:
    return await parties.gateway.call(KEYS_OAUTH_COMPLETE, CompleteOAuth(owner=owner, state=state, code=code))


async def agree(begun: OAuthBegun) -> dict[str, list[str]]:
    """What a browser does: opens the page, is redirected; the parameters of the callback."""
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(begun.authorize_url)
    assert answer.status_code == 302
    back = urlsplit(answer.headers["Location"])
    assert f"{back.scheme}://{back.netloc}{back.path}" == CALLBACK.partition("?")[0]
    return parse_qs(back.query)


# The way it should go -------------------------------------------------------------------------------------------------


async def test_whoever_began_completes_and_gets_an_ordinary_key(parties: Parties) -> None:
    begun = await begin(parties, "alice")
    back = await agree(begun)
    assert set(back) == {"tab", "state", "code"}
    assert back["state"] == [begun.state]
    status = await complete(parties, "alice", begun.state, back["code"][0])
    assert (status.connected, status.mode, status.version, status.health) == (True, "test", 1, "ok")
    assert await parties.change() == ("alice", 1, "connected")
    assert parties.opened(await parties.lease("alice"), "alice").startswith("sk-or-test-oauth-")


async def test_it_replaces_a_key_as_any_other_connect_does(parties: Parties) -> None:
    await parties.connect("alice", "sk-or-test-the-former-one")
    begun = await begin(parties, "alice")
    status = await complete(parties, "alice", begun.state, (await agree(begun))["code"][0])
    assert status.version == 2
    assert [await parties.change() for _ in range(2)] == [("alice", 1, "connected"), ("alice", 2, "replaced")]


async def test_it_works_without_a_callback_by_copying_the_code(parties: Parties) -> None:
    begun = await begin(parties, "alice", None)
    assert "callback_url" not in begun.authorize_url
    async with httpx.AsyncClient() as browser:
        page = (await browser.get(begun.authorize_url)).text
    code = page.partition("<code>")[2].partition("</code>")[0]
    assert (await complete(parties, "alice", begun.state, code)).connected


async def test_it_survives_a_restart_of_the_keys_service(
    database: Database, nats_server: Nats, credentials: Credentials, sandbox: str
) -> None:
    async with parties_around(nats_server, credentials) as parties:
        async with replica(database, nats_server, credentials, sandbox, "keys-1"):
            begun = await begin(parties, "alice")
        back = await agree(begun)
        async with replica(database, nats_server, credentials, sandbox, "keys-2"):
            assert (await complete(parties, "alice", begun.state, back["code"][0])).connected


# Who must not ---------------------------------------------------------------------------------------------------------


async def test_nobody_binds_a_key_to_another_account(parties: Parties) -> None:
    begun = await begin(parties, "mallory")
    code = (await agree(begun))["code"][0]
    # The page of an attacker sends a signed-in victim to the callback: the victim's own bearer completes, or tries to.
    with pytest.raises(ServiceError, match="no such authorization of yours") as refused:
        await complete(parties, "victim", begun.state, code)
    assert refused.value.code is ErrorCode.NOT_FOUND
    assert not (await parties.status("victim")).connected
    # It has spent nothing: whoever began still can.
    assert (await complete(parties, "mallory", begun.state, code)).connected


async def test_a_stolen_code_is_worth_nothing_in_another_authorization(parties: Parties) -> None:
    victim = await begin(parties, "victim")
    stolen = (await agree(victim))["code"][0]
    mallory = await begin(parties, "mallory")
    with pytest.raises(ServiceError, match="does not take this code") as refused:
        await complete(parties, "mallory", mallory.state, stolen)
    assert refused.value.code is ErrorCode.INVALID
    for owner in ("victim", "mallory"):
        assert not (await parties.status(owner)).connected


async def test_a_state_works_once_over_all_replicas(parties: Parties) -> None:
    begun = await begin(parties, "alice")
    code = (await agree(begun))["code"][0]
    answers = await asyncio.gather(
        *(complete(parties, "alice", begun.state, code) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(answer, KeyStatus) for answer in answers) == 1
    assert {answer.code for answer in answers if isinstance(answer, ServiceError)} == {ErrorCode.NOT_FOUND}
    assert (await parties.status("alice")).version == 1


async def test_an_authorization_ends_after_ten_minutes(parties: Parties, database: Database) -> None:
    begun = await begin(parties, "alice")
    code = (await agree(begun))["code"][0]
    connection = await asyncpg.connect(database.superuser)
    try:
        left = await connection.fetchval("SELECT expires_at - now() FROM keys.oauth_attempts")
        assert 590 < left.total_seconds() <= 600
        await connection.execute("UPDATE keys.oauth_attempts SET expires_at = now() - interval '1 second'")
    finally:
        await connection.close()
    with pytest.raises(ServiceError) as refused:
        await complete(parties, "alice", begun.state, code)
    assert refused.value.code is ErrorCode.NOT_FOUND


async def test_what_is_kept_completes_nothing_for_whoever_reads_it(parties: Parties, database: Database) -> None:
    begun = await begin(parties, "alice")
    connection = await asyncpg.connect(database.superuser)
    try:
        row = str(await connection.fetchrow("SELECT t::text FROM keys.oauth_attempts AS t"))
        assert begun.state not in row
        # A row moved to another owner does not open as theirs.
        await connection.execute("UPDATE keys.oauth_attempts SET owner = 'mallory'")
    finally:
        await connection.close()
    with pytest.raises(ServiceError, match="cannot be completed any more"):
        await complete(parties, "mallory", begun.state, (await agree(begun))["code"][0])


async def test_begin_is_limited_and_refuses_foreign_callbacks_without_counting_them(parties: Parties) -> None:
    for _ in range(3):
        with pytest.raises(ServiceError) as refused:
            await begin(parties, "alice", "https://evil.example.com/")
        assert refused.value.code is ErrorCode.INVALID
    for _ in range(MOST["oauth"]):
        await begin(parties, "alice")
    with pytest.raises(ServiceError) as limited:
        await begin(parties, "alice")
    assert limited.value.code is ErrorCode.RATE_LIMITED


# What the exchange may answer -----------------------------------------------------------------------------------------


@dataclass
class Exchange:
    """Answers `POST /auth/keys` with a status and a body, `GET /key` with another status."""

    url: str
    status: int = 200
    body: bytes = b""
    key_status: int = 200
    management: bool = False
    hold: asyncio.Event | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def exchange(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        if self.hold is not None:
            await self.hold.wait()
        return web.Response(status=self.status, body=self.body)

    async def key(self, _: web.Request) -> web.Response:
        data = {"usage": 0, "limit": 2, "limit_remaining": 2, "is_management_key": self.management}
        return web.json_response({"data": data}, status=self.key_status)


@asynccontextmanager
async def answering() -> AsyncIterator[Exchange]:
    port = free_port()
    answers = Exchange(f"http://{HOST}:{port}/api/v1")
    app = web.Application()
    app.router.add_post("/api/v1/auth/keys", answers.exchange)
    app.router.add_get("/api/v1/key", answers.key)
    async with serving(app, port):
        yield answers


@asynccontextmanager
async def exchanging(
    database: Database, nats: Nats, credentials: Credentials
) -> AsyncIterator[tuple[Exchange, Parties]]:
    async with answering() as answers:
        settings = keys_settings(
            database, nats, credentials, openrouter_url=answers.url, openrouter_auth_url="https://openrouter.ai/auth",
            oauth_callback_origins="https://console.example.com, https://other.example.com/",
        )  # fmt: skip
        async with keys_running(settings), parties_around(nats, credentials) as parties:
            yield answers, parties


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error": {"code": 400, "message": "Invalid code"}}', ErrorCode.INVALID),
        (400, b'{"success": false, "error": {"name": "ZodError", "message": "[]"}}', ErrorCode.INVALID),
        (403, b'{"error": {"code": 403, "message": "Code expired"}}', ErrorCode.INVALID),
        (405, b"", ErrorCode.UPSTREAM),
        (429, b"", ErrorCode.UNAVAILABLE),
        (500, b"", ErrorCode.UNAVAILABLE),
        (200, b"", ErrorCode.UPSTREAM),
        (200, b"[]", ErrorCode.UPSTREAM),
        (200, b'{"key": null}', ErrorCode.UPSTREAM),
        (200, b'{"key": "no key of theirs"}', ErrorCode.UPSTREAM),
        (302, b"", ErrorCode.UPSTREAM),
    ],
)
async def test_nothing_is_connected_when_the_exchange_gives_no_key(
    database: Database, nats_server: Nats, credentials: Credentials, status: int, body: bytes, code: ErrorCode
) -> None:
    async with exchanging(database, nats_server, credentials) as (answers, parties):
        answers.status, answers.body = status, body
        begun = await begin(parties, "alice")
        with pytest.raises(ServiceError, match="Begin to connect again") as refused:
            await complete(parties, "alice", begun.state, "some-code")
        assert refused.value.code is code
        assert not refused.value.body.retryable
        assert not (await parties.status("alice")).connected


async def test_the_exchange_carries_the_verifier_of_the_challenge(
    database: Database, nats_server: Nats, credentials: Credentials
) -> None:
    async with exchanging(database, nats_server, credentials) as (answers, parties):
        answers.body = b'{"key": "' + MADE_KEY.encode() + b'", "user_id": "user_1"}'
        begun = await begin(parties, "alice", "https://console.example.com/cb")
        query = parse_qs(urlsplit(begun.authorize_url).query)
        assert begun.authorize_url.startswith("https://openrouter.ai/auth?")
        assert query["callback_url"] == [f"https://console.example.com/cb?state={begun.state}"]
        assert query["code_challenge_method"] == ["S256"]
        status = await complete(parties, "alice", begun.state, "the-code")
        assert answers.asked[0]["code"] == "the-code"
        assert oauth.challenge_of(answers.asked[0]["code_verifier"]) == query["code_challenge"][0]
        assert (status.mode, status.hint) == ("live", "sk-or-v1-…6789")
        assert parties.opened(await parties.lease("alice"), "alice") == MADE_KEY


@pytest.mark.parametrize(("key_status", "health"), [(401, "suspect"), (402, "exhausted"), (503, "suspect")])
async def test_a_key_that_was_made_is_kept_when_nothing_can_be_said_of_it_yet(
    database: Database, nats_server: Nats, credentials: Credentials, key_status: int, health: str
) -> None:
    async with exchanging(database, nats_server, credentials) as (answers, parties):
        answers.body, answers.key_status = b'{"key": "' + MADE_KEY.encode() + b'"}', key_status
        begun = await begin(parties, "alice")
        status = await complete(parties, "alice", begun.state, "the-code")
        assert (status.connected, status.limit_usd, status.health) == (True, None, health)
        assert (status.verified_at is None) == (health == "suspect")
        assert parties.opened(await parties.lease("alice"), "alice") == MADE_KEY
        connection = await asyncpg.connect(database.superuser)
        try:
            wait = await connection.fetchval("SELECT next_check_at - now() FROM keys.user_openrouter_integrations")
        finally:
            await connection.close()
        assert wait.total_seconds() < 20 * 60
        answers.key_status = 200
        known = await parties.verify("alice")
        assert known.health == "ok"
        assert known.limit_usd == 2
        assert known.verified_at is not None


async def test_a_key_that_was_never_accepted_is_no_witness_against_another(
    database: Database, nats_server: Nats, credentials: Credentials
) -> None:
    async with exchanging(database, nats_server, credentials) as (answers, parties):
        await parties.connect("alice", LIVE_KEY)
        answers.body, answers.key_status = b'{"key": "' + MADE_KEY.encode() + b'"}', 401
        await parties.verify("alice")
        begun = await begin(parties, "bob")
        await complete(parties, "bob", begun.state, "the-code")
        await let_time_pass(database, "alice", minutes=2)
        assert (await parties.verify("alice")).health == "suspect"


@pytest.mark.parametrize(
    ("key", "management", "code"),
    [(MADE_KEY, True, ErrorCode.KEY_REJECTED), ("sk-or-test-where-no-test-mode-is", False, ErrorCode.INVALID)],
)
async def test_a_key_that_was_made_but_can_run_nothing_here_is_not_stored(
    database: Database, nats_server: Nats, credentials: Credentials, key: str, management: bool, code: ErrorCode
) -> None:
    async with exchanging(database, nats_server, credentials) as (answers, parties):
        answers.body, answers.management = b'{"key": "' + key.encode() + b'"}', management
        begun = await begin(parties, "alice")
        with pytest.raises(ServiceError) as refused:
            await complete(parties, "alice", begun.state, "the-code")
        assert refused.value.code is code
        assert not (await parties.status("alice")).connected


async def test_a_silent_exchange_is_given_up(
    database: Database, nats_server: Nats, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "TIMEOUT_S", 0.2)
    async with exchanging(database, nats_server, credentials) as (answers, parties):
        answers.hold = asyncio.Event()
        begun = await begin(parties, "alice")
        with pytest.raises(ServiceError) as refused:
            await complete(parties, "alice", begun.state, "the-code")
        answers.hold.set()
        assert refused.value.code is ErrorCode.UNAVAILABLE


async def test_neither_verifier_nor_key_is_found_anywhere(
    database: Database, nats_server: Nats, credentials: Credentials, tmp_path: Path
) -> None:
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    async with answering() as answers, parties_around(nats_server, credentials) as parties:
        await parties.observer.nc.subscribe(">", cb=hear)
        await parties.observer.nc.flush()
        process = keys_process(
            database, nats_server, credentials, tmp_path / "keys.log",
            OPENROUTER_URL=answers.url, OPENROUTER_AUTH_URL="https://openrouter.ai/auth",
        )  # fmt: skip
        stored = ""
        async with started(process):
            for status, body in ((403, b""), (500, MADE_KEY.encode()), (200, b'{"key": "' + MADE_KEY.encode() + b'"}')):
                answers.status, answers.body = status, body
                begun = await begin(parties, "alice")
                stored += await everything_stored(database)
                with suppress(ServiceError):
                    await complete(parties, "alice", begun.state, "the-code")
            assert (await parties.status("alice")).connected
            stored += await everything_stored(database)
            await parties.observer.nc.flush()
        log = process.child.log.read_text()
    everything = "\n".join([log, stored, *(message.decode(errors="replace") for message in heard)])
    secrets = [MADE_KEY, *(asked["code_verifier"] for asked in answers.asked)]
    assert len(secrets) == 4
    for secret in secrets:
        for form in forms_of(secret):
            assert form.lower() not in everything.lower()
    assert begun.state not in stored
    assert begun.state not in log
