"""Signing in: by link, by form, and again where a token has ended; and that the token is nowhere but in its cookie."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import jwt
import pytest
from playwright.async_api import Browser, expect

from deploy.local.stack import Stack
from deploy.local.tokens import AUDIENCE, ISSUER
from tests.browser.browsing import accessible, visiting


def someone() -> str:
    return f"user-{uuid4().hex[:8]}"


def short_token(stack: Stack, user: str, lifetime_s: int) -> str:
    end = datetime.now(UTC) + timedelta(seconds=lifetime_s)
    claims = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "exp": end}
    return jwt.encode(claims, stack.credentials.jwt_secret, algorithm="HS256")


async def test_the_link_signs_in_and_leaves_the_token_in_its_cookie_alone(
    browser: Browser, console_stack: Stack
) -> None:
    user = someone()
    token = console_stack.token(user)
    async with visiting(browser, console_stack) as page:
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        await page.goto(f"/sign-in#token={token}")
        await page.wait_for_url("**/models")
        await expect(page.get_by_text(f"Signed in as {user}")).to_be_visible()
        cookies = await page.context.cookies()
        assert [(cookie["value"] == token, cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [
            (True, True, "Lax")
        ]
        assert await page.evaluate("document.cookie + JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"
        assert not [address for address in addresses if token[-20:] in address.split("#")[0]]
        await page.go_back()
        assert token[-20:] not in page.url
    log = (console_stack.directory / "logs" / "console.log").read_text()
    assert "/sign-in" in log
    assert token[-20:] not in log


async def test_a_link_that_is_pasted_over_the_sign_in_page_works_too(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack) as page:
        await page.goto("/sign-in")
        await page.evaluate("token => { location.hash = 'token=' + token }", console_stack.token(someone()))
        await page.wait_for_url("**/models")


async def test_the_form_takes_a_token_and_refuses_what_is_none(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack) as page:
        await page.goto("/")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await accessible(page)
        for wrong, sentence in (("nonsense", "That is not a token"), ("e30.eyJleHAiOjF9.x", "A valid token is needed")):
            await page.get_by_label("Token").fill(wrong)
            await page.get_by_role("button", name="Sign in").click()
            await expect(page.get_by_role("alert")).to_contain_text(sentence)
        await page.get_by_label("Token").fill(console_stack.token(someone()))
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/models")
        await page.get_by_role("button", name="Sign out").click()
        await page.wait_for_url("**/sign-in")
        assert await page.context.cookies() == []


async def test_a_token_that_has_ended_leads_back_to_where_one_was(browser: Browser, console_stack: Stack) -> None:
    user = someone()
    async with visiting(browser, console_stack) as page:
        until = time.time() + 3
        await page.goto(f"/sign-in#token={short_token(console_stack, user, 3)}")
        await page.wait_for_url("**/models")
        await page.wait_for_timeout(max(0, until - time.time()) * 1000 + 500)
        await page.goto("/models?q=claude&sort=price")
        await page.wait_for_url("**/sign-in?next=*")
        await page.get_by_label("Token").fill(console_stack.token(user))
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/models?q=claude&sort=price")
        await expect(page.get_by_label("Search models")).to_have_value("claude")


async def test_what_was_typed_stays_when_the_token_has_ended(browser: Browser, console_stack: Stack) -> None:
    async with visiting(browser, console_stack, someone()) as page:
        await page.goto("/settings/openrouter")
        await page.context.clear_cookies()
        await page.get_by_label("All runs together").fill("12.50")
        await page.get_by_role("button", name="Save the limits").click()
        await expect(page.get_by_role("alert")).to_contain_text("You are not signed in any more")
        await expect(page.get_by_role("link", name="Sign in again")).to_be_visible()
        await expect(page.get_by_label("All runs together")).to_have_value("12.50")


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
async def test_signing_in_leads_nowhere_else(console_stack: Stack, target: str) -> None:
    form = {"token": console_stack.token(someone()), "next": target}
    async with httpx.AsyncClient(base_url=console_stack.console_url) as client:
        answer = await client.post("/sign-in", data=form, headers={"Origin": console_stack.console_url})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://localhost:1"])
async def test_what_another_site_sends_changes_nothing(console_stack: Stack, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    async with httpx.AsyncClient(base_url=console_stack.console_url, headers=headers) as client:
        answer = await client.post("/sign-in", data={"token": console_stack.token(someone())})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


async def test_every_page_says_what_it_may_load(console_stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=console_stack.console_url) as client:
        for path in ("/sign-in", "/nowhere", "/static/console.js"):
            answer = await client.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
