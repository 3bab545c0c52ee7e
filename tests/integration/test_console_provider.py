"""What the console demands of an identity provider, against a real one that does it well, badly, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import ValidationError

from services.console.main import Settings
from services.console.oidc import Attempt, Failure, Provider, SignInError, _About
from tests.identity_provider import CLIENT_ID, IdentityProvider
from tests.waiting import until

CALLBACK = "http://localhost:1/sign-in/callback"
SECRET = "a secret with : and ü and %20"


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[IdentityProvider]:
    """A provider that knows the console by a secret."""
    running = IdentityProvider(client_secret=SECRET, callbacks=(CALLBACK,))
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def console_of(issuer: IdentityProvider, **changes: Any) -> AsyncIterator[Provider]:
    told: dict[str, Any] = {"client_secret": SECRET, "audience": None, "scopes": "openid", **changes}
    provider = Provider(issuer=issuer.issuer, client_id=CLIENT_ID, callback=CALLBACK, **told)
    try:
        yield provider
    finally:
        await provider.close()


async def agreed(provider: Provider, user: str = "ada") -> tuple[Attempt, str]:
    """What the browser comes back with."""
    url, attempt = await provider.begin("/there")
    async with httpx.AsyncClient() as browser:
        assert "Agree" in (await browser.get(url)).text
        answer = await browser.post(url, data={"user": user, "does": "agree"})
    said = parse_qs(urlsplit(answer.headers["location"]).query)
    assert said["state"] == [attempt.state]
    return attempt, said["code"][0]


async def signed_in(provider: Provider) -> dict[str, Any]:
    """Claims of the token that the gateway would get."""
    claims: dict[str, Any] = jwt.decode(
        await provider.complete(*await agreed(provider)), options={"verify_signature": False}
    )
    return claims


async def failure(provider: Provider) -> tuple[Failure, str]:
    with pytest.raises(SignInError) as caught:
        await signed_in(provider)
    return caught.value.failure, caught.value.cause


async def test_without_an_audience_the_gateway_gets_the_id_token(issuer: IdentityProvider) -> None:
    async with console_of(issuer) as provider:
        claims = await signed_in(provider)
    assert (claims["sub"], claims["aud"], claims["nonce"]) == ("ada", CLIENT_ID, issuer.requests[0]["nonce"])
    assert "audience" not in issuer.requests[0]


async def test_with_an_audience_it_gets_the_access_token(issuer: IdentityProvider) -> None:
    async with console_of(issuer, audience="the-interface", scopes="openid email") as provider:
        claims = await signed_in(provider)
        assert (claims["sub"], claims["aud"]) == ("ada", "the-interface")
        assert "nonce" not in claims
        assert issuer.requests[0]["scope"] == "openid email"
        issuer.opaque_access_tokens = True
        assert await failure(provider) == (Failure.SETTINGS, "the access token is no JWT")


BASIC, POST = "client_secret_basic", "client_secret_post"


@pytest.mark.parametrize(
    ("told", "takes"),
    [
        ([POST, BASIC], (BASIC,)),
        ([BASIC, POST], (POST,)),
        ([POST], (POST,)),
        (None, (BASIC,)),
        (["private_key_jwt"], (BASIC,)),
    ],
)
async def test_the_secret_goes_the_way_it_is_taken(
    issuer: IdentityProvider, told: list[str] | None, takes: tuple[str, ...]
) -> None:
    issuer.description = {} if told is None else {"token_endpoint_auth_methods_supported": told}
    issuer.takes_secrets = takes
    async with console_of(issuer) as provider:
        assert (await signed_in(provider))["sub"] == "ada"
    async with console_of(issuer, client_secret="another") as stranger:
        assert await failure(stranger) == (Failure.SETTINGS, "invalid_client")


async def test_a_client_without_a_secret_is_proved_by_pkce(issuer: IdentityProvider) -> None:
    issuer.client_secret = None
    async with console_of(issuer, client_secret=None) as provider:
        assert (await signed_in(provider))["sub"] == "ada"
        attempt, code = await agreed(provider)
        with pytest.raises(SignInError) as caught:
            await provider.complete(attempt.model_copy(update={"verifier": "x" * 43}), code)
    assert caught.value.failure is Failure.LOST


@pytest.mark.parametrize(
    ("claims", "cause"),
    [
        ({"nonce": "of another sign-in"}, "InvalidClaimError nonce"),
        ({"aud": "another-client"}, "InvalidClaimError aud"),
        ({"aud": [CLIENT_ID, "another"], "azp": "another"}, "InvalidClaimError azp"),
        ({"iss": "http://elsewhere.example"}, "InvalidClaimError iss"),
        ({"exp": 1_700_000_000}, "ExpiredTokenError"),
        ({"at_hash": "bm90IHRoYXQgb25lISE"}, "InvalidClaimError at_hash"),
    ],
)
async def test_an_id_token_that_is_not_for_this_sign_in(
    issuer: IdentityProvider, claims: dict[str, Any], cause: str
) -> None:
    issuer.in_id_token = claims
    async with console_of(issuer) as provider:
        why, said = await failure(provider)
    assert why is Failure.SETTINGS
    assert cause in said


def forged(tokens: dict[str, Any]) -> web.Response:
    head, body, signature = tokens["id_token"].split(".")
    return web.json_response({**tokens, "id_token": f"{head}.{body}.{signature[:-8]}AAAAAAAA"})


def by_the_secret(tokens: dict[str, Any]) -> web.Response:
    claims = jwt.decode(tokens["id_token"], options={"verify_signature": False})
    return web.json_response({**tokens, "id_token": jwt.encode(claims, SECRET * 2, algorithm="HS256")})


def unsigned(tokens: dict[str, Any]) -> web.Response:
    claims = jwt.decode(tokens["id_token"], options={"verify_signature": False})
    return web.json_response({**tokens, "id_token": jwt.encode(claims, "", algorithm="none")})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (forged, Failure.SETTINGS),
        (by_the_secret, Failure.SETTINGS),
        (unsigned, Failure.SETTINGS),
        (lambda tokens: web.json_response({"access_token": tokens["access_token"]}), Failure.SETTINGS),
        (lambda tokens: web.json_response({**tokens, "id_token": "nonsense"}), Failure.SETTINGS),
        (lambda tokens: web.json_response({**tokens, "id_token": 7}), Failure.SETTINGS),
        (lambda tokens: web.json_response([tokens]), Failure.SETTINGS),
        (lambda _: web.Response(text="<html>", content_type="text/html"), Failure.SETTINGS),
        (lambda _: web.Response(status=403, text="<html>"), Failure.SETTINGS),
        (lambda _: web.Response(status=502, text="<html>"), Failure.AWAY),
        (lambda _: web.json_response({"error": "temporarily_unavailable"}, status=400), Failure.AWAY),
        (lambda _: web.json_response({"error": "<script>" * 20}, status=400), Failure.SETTINGS),
    ],
)
async def test_an_answer_that_is_none(
    issuer: IdentityProvider, answer: Callable[[dict[str, Any]], web.Response], why: Failure
) -> None:
    issuer.answer = answer
    async with console_of(issuer) as provider:
        found, cause = await failure(provider)
    assert found is why
    assert not [told for told in issuer.secrets_told if told in cause]
    assert "<" not in cause


async def test_a_key_that_the_provider_changed_is_asked_for(issuer: IdentityProvider) -> None:
    async with console_of(issuer) as provider:
        await signed_in(provider)
        issuer.change_key()

        async def with_the_new_key() -> bool | None:
            try:
                return bool(await signed_in(provider))
            except SignInError:
                return None

        assert await until(with_the_new_key)
    assert issuer.asked["keys"] == 2


async def test_many_visitors_are_one_question(issuer: IdentityProvider) -> None:
    async with console_of(issuer) as provider:
        begun = await asyncio.gather(*(provider.begin("/") for _ in range(20)))
        assert len({attempt.state for _, attempt in begun}) == 20
        assert issuer.asked["description"] == 1
        await issuer.stop()

        async def away() -> bool | None:
            try:
                await provider.begin("/")
            except SignInError as error:
                return error.failure is Failure.AWAY
            return None

        assert await until(away)
        await issuer.start()

        async def back() -> bool | None:
            try:
                return bool(await provider.begin("/"))
            except SignInError:
                return None

        assert await until(back)


@pytest.mark.parametrize(
    "description",
    [{"issuer": "http://elsewhere.example"}, {"token_endpoint": "ftp://elsewhere.example"}, {"jwks_uri": None}],
)
async def test_a_description_that_cannot_be_used(issuer: IdentityProvider, description: dict[str, Any]) -> None:
    issuer.description = description
    async with console_of(issuer) as provider:
        with pytest.raises(SignInError) as caught:
            await provider.begin("/")
    assert caught.value.failure is Failure.SETTINGS


def test_an_https_provider_leads_nowhere_else() -> None:
    addresses = {
        name: f"https://id.example/{name}" for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")
    }
    assert not _About(issuer="https://id.example", **addresses).insecure
    for name in addresses:
        assert _About(issuer="https://id.example", **{**addresses, name: "http://id.example/"}).insecure


async def test_signing_out_there(issuer: IdentityProvider) -> None:
    issuer.description = {"end_session_endpoint": f"{issuer.issuer}/sign-out?tenant=7"}
    async with console_of(issuer) as provider:
        url = await provider.sign_out_url("http://localhost:1/sign-in")
    assert parse_qs(urlsplit(str(url)).query) == {
        "tenant": ["7"],
        "client_id": [CLIENT_ID],
        "post_logout_redirect_uri": ["http://localhost:1/sign-in"],
    }
    issuer.description = {"end_session_endpoint": None}
    async with console_of(issuer) as provider:
        assert await provider.sign_out_url("http://localhost:1/sign-in") is None


@pytest.mark.parametrize(
    "environment",
    [
        {"oidc_issuer": "https://id.example"},
        {"oidc_client_id": "console"},
        {"oidc_issuer": "id.example", "oidc_client_id": "console"},
        {"oidc_issuer": "https://id.example", "oidc_client_id": "console", "oidc_scopes": "email"},
    ],
)
def test_settings_that_cannot_be_meant(environment: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(environment)
