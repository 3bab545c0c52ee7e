"""Signing in by an identity provider: a gateway that knows its keys, a console that sends people there, and a Chromium."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from deploy.local.ports import HOST, free_port
from deploy.local.process import Child, inherited_environment
from deploy.local.service import Service
from deploy.local.stack import ROOT, Stack
from tests.browser.browsing import WIDE, accessible, fits, picture, visiting
from tests.identity_provider import CLIENT_ID, IdentityProvider
from tests.waiting import until

SECRET = "the secret of the console"
DOWN = ("Failed to load resource: the server responded with a status of 503",)


@dataclass(frozen=True)
class House:
    """The provider, and the console and the gateway that go by it."""

    provider: IdentityProvider
    stack: Stack
    console_url: str
    gateway_url: str
    console_log: str

    def log(self) -> str:
        return (self.stack.directory / "logs" / self.console_log).read_text()


@pytest_asyncio.fixture(scope="module")
async def house(console_stack: Stack) -> AsyncIterator[House]:
    """One more gateway and one more console on the stack of the session."""
    gateway_port, console_port = free_port(), free_port()
    gateway_url, console_url = f"http://{HOST}:{gateway_port}", f"http://localhost:{console_port}"
    provider = IdentityProvider(client_secret=SECRET, callbacks=(f"{console_url}/sign-in/callback",))
    gateway = service(console_stack, "gateway", gateway_port, {
        "NATS_URL": console_stack.nats.url,
        "NATS_USER": "gateway",
        "NATS_PASSWORD": console_stack.credentials.nats_password("gateway"),
        "PUBLIC_URL": gateway_url,
        "JWKS_URL": provider.jwks_url,
        "JWT_ISSUER": provider.issuer,
        "JWT_AUDIENCE": CLIENT_ID,
    })  # fmt: skip
    console = service(console_stack, "console", console_port, {
        "GATEWAY_URL": gateway_url,
        "GATEWAY_PUBLIC_URL": gateway_url,
        "PUBLIC_URL": console_url,
        "OIDC_ISSUER": provider.issuer,
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": SECRET,
        "LOG_LEVEL": "DEBUG",
    })  # fmt: skip
    await gateway.start()
    # It comes up without its provider.
    await console.start()
    await provider.start()
    try:
        yield House(provider, console_stack, console_url, gateway_url, console.child.log.name)
    finally:
        await console.stop()
        await gateway.stop()
        await provider.stop()


def service(stack: Stack, kind: str, port: int, env: dict[str, str]) -> Service:
    metrics_port = free_port()
    own = {"HOST": HOST, "PORT": str(port), "METRICS_HOST": HOST, "METRICS_PORT": str(metrics_port), **env}
    child = Child(
        f"{kind}-oidc",
        [sys.executable, "-m", f"services.{kind}.main"],
        env={**inherited_environment(), "INSTANCE": f"{kind}-oidc", **own},
        log=stack.directory / "logs" / f"{kind}-oidc.log",
        cwd=ROOT,
    )
    return Service(child, url=f"http://{HOST}:{port}", metrics_url=f"http://{HOST}:{metrics_port}/metrics")


def at(
    browser: Browser, house: House, *, width: int = WIDE, theme: str = "light", expected: tuple[str, ...] = ()
) -> AbstractAsyncContextManager[Page]:
    """A browser of its own at this console; it may go to the provider."""
    return visiting(
        browser,
        house.stack,
        width=width,
        theme=theme,
        expected=expected,
        console_url=house.console_url,
        also=(house.provider.issuer,),
    )


async def go_on(page: Page) -> None:
    """From the sign-in page to the provider's."""
    await page.get_by_role("link", name="Continue with").click()


async def agree(page: Page, user: str) -> None:
    await page.get_by_label("Name").fill(user)
    await page.get_by_role("button", name="Agree").click()


async def sign_in(page: Page, user: str) -> None:
    await page.goto("/")
    await go_on(page)
    await agree(page, user)
    await page.wait_for_url("**/models")


async def cookies(context: BrowserContext, house: House) -> dict[str, str]:
    found = await context.cookies(house.console_url)
    assert {(cookie["httpOnly"], cookie["sameSite"]) for cookie in found} <= {(True, "Lax")}
    return {cookie["name"].removeprefix("x402jobs-"): cookie["value"] for cookie in found}


async def end_the_token(page: Page, house: House, user: str) -> None:
    """In place of the token that is kept comes one that has just ended."""
    name, token = f"x402jobs-{urlsplit(house.console_url).port}", house.provider.sign(user, lifetime_s=-1)
    await page.context.add_cookies([{"name": name, "value": token, "url": house.console_url}])


def someone() -> str:
    return f"oidc|{uuid4().hex[:8]}"


async def test_signing_in_and_out(browser: Browser, house: House) -> None:
    user, port = someone(), str(urlsplit(house.console_url).port)
    house.provider.people[user] = {"email": "ada@example.com"}
    async with at(browser, house) as page:
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        await page.goto("/sign-in")
        await accessible(page)
        await expect(page.get_by_label("Token")).not_to_be_visible()
        await sign_in(page, user)
        await expect(page.get_by_text("Signed in as ada@example.com")).to_be_visible()
        kept = await cookies(page.context, house)
        assert sorted(kept) == [port, f"{port}-provider"]
        assert await page.evaluate("document.cookie + JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"
        assert not [address for address in addresses if kept[port] in address]
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("status").filter(has_text="You are signed out here")).to_be_visible()
        await accessible(page)
        assert await cookies(page.context, house) == {}
        # The provider still knows who it is, until one signs out there as well.
        await go_on(page)
        await page.wait_for_url("**/models")
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("link", name="Sign out there too").click()
        await page.get_by_role("button", name="Yes").click()
        await page.wait_for_url(f"{house.console_url}/sign-in")
        await go_on(page)
        await expect(page.get_by_label("Name")).to_be_visible()
    asked = house.provider.requests[0]
    assert (asked["scope"], asked["code_challenge_method"]) == ("openid email", "S256")
    log = house.log()
    assert "/sign-in/callback" in log
    assert [
        told for told in (SECRET, *house.provider.secrets_told, asked["state"], asked["nonce"]) if told in log
    ] == []


async def test_one_comes_to_where_one_wanted_and_back_there_when_the_token_has_ended(
    browser: Browser, house: House
) -> None:
    user = someone()
    async with at(browser, house) as page:
        await page.goto("/models?q=claude&sort=price")
        await page.wait_for_url("**/sign-in?next=*")
        await go_on(page)
        await agree(page, user)
        await page.wait_for_url("**/models?q=claude&sort=price")
        await expect(page.get_by_label("Search models")).to_have_value("claude")
        await end_the_token(page, house, user)
        await page.goto("/settings/openrouter?from=there")
        await page.wait_for_url(f"{house.console_url}/settings/openrouter?from=there")
        await expect(page.get_by_text(f"Signed in as {user}")).to_be_visible()
        # Only pages that are opened go that way, and what a page fetches has it opened again.
        await page.goto("/models")
        await end_the_token(page, house, user)
        assert "/sign-in?next=" in await page.evaluate("fetch('/models').then(answer => answer.url)")
        await end_the_token(page, house, user)
        async with page.expect_response(lambda answer: "/sign-in/callback" in answer.url):
            await page.get_by_label("Search models").press("g")
        await expect(page.get_by_text(f"Signed in as {user}")).to_be_visible()


async def test_who_does_not_agree_is_not_signed_in_and_may_try_again(browser: Browser, house: House) -> None:
    async with at(browser, house) as page:
        await page.goto("/models?q=claude")
        await go_on(page)
        await page.get_by_role("button", name="Refuse").click()
        await expect(page.get_by_role("alert")).to_contain_text("You were not signed in")
        await accessible(page)
        assert await cookies(page.context, house) == {}
        await go_on(page)
        await agree(page, someone())
        await page.wait_for_url("**/models?q=claude")


async def test_a_sign_in_works_once_in_the_browser_that_began_it(browser: Browser, house: House) -> None:
    async with at(browser, house) as page:
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        await sign_in(page, someone())
        (callback,) = [address for address in addresses if "/sign-in/callback" in address]
        await page.goto(callback)
        await page.wait_for_url("**/models")  # nothing to do: one is signed in
        await page.get_by_role("button", name="Sign out").click()
        for address in (callback, f"{house.console_url}/sign-in/callback?state=made-up&code=made-up"):
            await page.goto(address)
            await expect(page.get_by_role("alert")).to_contain_text("That sign-in is over")
        begun = len(house.provider.secrets_told)
        await go_on(page)
        await page.wait_for_url("**/models")
        assert len(house.provider.secrets_told) == begun + 4, "what was not ours was never shown to the provider"
        await page.get_by_role("button", name="Sign out").click()
        # As good as any, but begun by somebody else.
        async with httpx.AsyncClient(base_url=house.console_url) as stranger:
            begun_elsewhere = await stranger.get("/sign-in/provider")
            state = parse_qs(urlsplit(begun_elsewhere.headers["location"]).query)["state"][0]
        await page.goto(f"/sign-in/callback?state={state}&code=made-up")
        await expect(page.get_by_role("alert")).to_contain_text("That sign-in is over")


async def test_two_tabs_sign_in_at_once(browser: Browser, house: House) -> None:
    user = someone()
    async with at(browser, house) as first:
        second = await first.context.new_page()
        for page, path in ((first, "/models?q=claude"), (second, "/settings/openrouter")):
            await page.goto(path)
            await go_on(page)
            await expect(page.get_by_label("Name")).to_be_visible()
        await agree(second, user)
        await second.wait_for_url("**/settings/openrouter")
        await agree(first, user)
        await first.wait_for_url("**/models?q=claude")
        for _ in range(7):  # given up, one after the other
            await first.request.get("/sign-in/provider", max_redirects=0)
        assert len([name for name in await cookies(first.context, house) if "attempt" in name]) == 5


async def test_a_provider_that_is_away_and_comes_back(browser: Browser, house: House) -> None:
    async def failed(wanted: str) -> bool | None:
        async with httpx.AsyncClient(base_url=house.console_url) as client:
            answer = await client.get("/sign-in/provider")
        said = parse_qs(urlsplit(answer.headers["location"]).query).get("failed", [""])
        return True if said == [wanted] else None

    await house.provider.stop()
    try:
        await until(lambda: failed("away"))
        async with at(browser, house, expected=DOWN) as page:
            await page.goto("/models?q=claude")
            await go_on(page)
            await expect(page.get_by_role("alert")).to_contain_text(
                f"{urlsplit(house.provider.issuer).netloc} cannot be"
            )
            await accessible(page)
            await house.provider.start()
            await until(lambda: failed(""))
            await go_on(page)
            await agree(page, someone())
            await page.wait_for_url("**/models?q=claude")
    finally:
        await house.provider.stop()
        await house.provider.start()


async def test_what_the_service_does_not_accept_and_what_no_browser_keeps(browser: Browser, house: House) -> None:
    house.provider.people["crowd"] = {"groups": ["a group with a long name"] * 200}
    for user, sentence, cause in (
        ("not a user id", "The service does not accept this sign-in", "sub is not usable as a user id"),
        ("crowd", "Your token is too long", "fit into a cookie"),
    ):
        async with at(browser, house) as page:
            await page.goto("/sign-in")
            await go_on(page)
            await agree(page, user)
            await expect(page.get_by_role("alert")).to_contain_text(sentence)
            assert await cookies(page.context, house) == {}
        assert cause in house.log()


async def test_a_role_makes_an_admin(browser: Browser, house: House) -> None:
    admin, user = someone(), someone()
    house.provider.people[admin] = {"role": "admin"}
    async with at(browser, house) as page:
        await sign_in(page, admin)
        token = (await cookies(page.context, house))[str(urlsplit(house.console_url).port)]
    statuses = []
    async with httpx.AsyncClient(base_url=house.gateway_url) as client:
        for each in (token, house.provider.sign(user)):
            answer = await client.get("/api/dead-letters", headers={"Authorization": f"Bearer {each}"})
            statuses.append(answer.status_code)
    assert statuses == [200, 403]


async def test_a_token_still_signs_in(browser: Browser, house: House) -> None:
    user = someone()
    async with at(browser, house) as page:
        await page.goto("/sign-in")
        await page.get_by_text("Sign in with a token").click()
        await page.get_by_label("Token").fill("nonsense")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("That is not a token")
        await page.get_by_label("Token").fill(house.provider.sign(user))
        await page.keyboard.press("Enter")
        await expect(page.get_by_text(f"Signed in as {user}")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await page.wait_for_url("**/sign-in")
        await page.goto("/sign-in#token=nonsense")
        await expect(page.get_by_role("alert")).to_contain_text("That is not a token")
        await page.evaluate("token => { location.hash = 'token=' + token }", house.provider.sign(user))
        await page.wait_for_url("**/models")


async def test_without_a_provider_there_is_only_the_token(console_stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=console_stack.console_url) as client:
        page = await client.get("/sign-in?left=true&failed=away")
        assert "Continue with" not in page.text
        assert "make token" in page.text
        for path in ("/sign-in/provider", "/sign-in/callback?state=a&code=b", "/sign-out/provider"):
            assert (await client.get(path)).status_code == 404


async def test_how_it_looks(browser: Browser, house: House) -> None:
    for theme, width in (("light", 1280), ("dark", 390)):
        async with at(browser, house, theme=theme, width=width, expected=DOWN) as page:
            for name in ("", "?left=true", "?failed=away"):
                await page.goto(f"/sign-in{name}")
                await fits(page)
                await picture(page, f"sign-in{name.replace('?', '-').partition('=')[0]}-{theme}-{width}")
            if theme == "dark":
                await accessible(page)
