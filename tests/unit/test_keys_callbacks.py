"""Where OpenRouter may send people back to, and what the address then looks like."""

from urllib.parse import parse_qs, urlsplit

import pytest

from contracts.errors import ErrorCode, ServiceError
from services.keys.guards.oauth import callback_with, challenge_of, exchange_base

ALLOWED = frozenset({"https://console.example.com", "https://other.example.com:8443"})


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8403/openrouter/callback",
        "http://localhost",
        "http://127.0.0.1:1/x?tab=keys",
        "http://[::1]:8403/",
        "https://console.example.com/openrouter/callback",
        "https://CONSOLE.example.com/",
        "https://other.example.com:8443/a?b=c&d=",
    ],
)
def test_callback_keeps_its_address_and_gets_the_state(url: str) -> None:
    before, after = urlsplit(url), urlsplit(callback_with("s-t_ate", url, ALLOWED))
    assert (after.scheme, after.netloc, after.path) == (before.scheme, before.netloc, before.path)
    kept = parse_qs(before.query, keep_blank_values=True)
    assert parse_qs(after.query, keep_blank_values=True) == {**kept, "state": ["s-t_ate"]}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8403",
        "//console.example.com/",
        "http://console.example.com/",
        "https://evil.example.com/",
        "https://console.example.com.evil.example/",
        "https://console.example.com:444/",
        "https://console.example.com@evil.example/",
        "https://user:secret@console.example.com/",
        "https://console.example.com/#fragment",
        "https://console.example.com\\@evil.example/",
        "https://console.example.com/\r\nSet-Cookie: a=b",
        "https://console.example.com/ with space",
        "https://cönsole.example.com/",
        "http://localhost.evil.example/",
        "http://localhost:99999/",
        "http://[::1/",
        "javascript:alert(1)//localhost",
        "ftp://localhost/",
        "https://localhost/",
        "http://localhost/?state=mine",
        "http://localhost/?code=mine",
    ],
)
def test_callback_is_refused_anywhere_else(url: str) -> None:
    with pytest.raises(ServiceError) as refused:
        callback_with("state", url, ALLOWED)
    assert refused.value.code is ErrorCode.INVALID
    assert refused.value.body.fields[0].path == "callback_url"


def test_challenge_is_that_of_the_rfc() -> None:
    assert challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


@pytest.mark.parametrize(
    ("auth_url", "base"),
    [
        ("https://openrouter.ai/auth", "https://openrouter.ai/api/v1"),
        ("http://127.0.0.1:9000/auth", "http://127.0.0.1:9000/api/v1"),
        ("http://127.0.0.1:9001/auth", "https://openrouter.ai/api/v1"),
    ],
)
def test_codes_are_exchanged_where_they_come_from(auth_url: str, base: str) -> None:
    assert exchange_base(auth_url, "https://openrouter.ai/api/v1/", "http://127.0.0.1:9000/api/v1/") == base
