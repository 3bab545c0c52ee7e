"""Nothing that looks like a key, a token or a private key is in the repository."""

from __future__ import annotations

import re

import pytest

from tests.contract.source import ROOT, tracked_files

PATTERNS = {
    "OpenRouter key": re.compile(rb"sk-or-v1-[0-9a-f]{24,}"),
    "OpenAI or Anthropic key": re.compile(rb"sk-(?:proj-|ant-|live-)?(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9]{24,}"),
    "private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "AWS access key": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36}\b"),
    "JWT": re.compile(rb"\beyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    "NATS seed": re.compile(rb"\bS[UAONC][A-Z2-7]{56}\b"),
    "password in an address": re.compile(rb"\b(?:postgres(?:ql)?|nats)://[A-Za-z0-9_]+:[A-Za-z0-9_]{16,}@"),
}
SAMPLES = {
    "OpenRouter key": "sk-or-" + "v1-" + "0123456789abcdef" * 4,
    "OpenAI or Anthropic key": "sk-" + "proj-" + "A1b2C3d4" * 5,
    "private key": "-----BEGIN EC " + "PRIVATE KEY-----",
    "AWS access key": "AKIA" + "ABCDEFGH12345678",
    "GitHub token": "ghp" + "_" + "a1B2" * 9,
    "JWT": ".".join(["eyJ" + "hbGciOiJIUzI1NiJ9", "eyJ" + "zdWIiOiJhbGljZSJ9", "c2lnbmF0dXJlLXNpZ24"]),
    "NATS seed": "SU" + "A2" * 28,
    "password in an address": "postgresql://x402" + ":" + "0123456789abcdef0123@localhost",
}


def test_no_file_holds_anything_like_a_secret() -> None:
    files = tracked_files()
    assert len(files) > 50
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name, pattern in PATTERNS.items()
        if pattern.search(path.read_bytes())
    ]
    assert found == [], "take it out, and revoke it if it was real"


@pytest.mark.parametrize("name", PATTERNS)
def test_a_secret_would_be_found(name: str) -> None:
    assert PATTERNS[name].search(f'value = "{SAMPLES[name]}"'.encode())


def test_no_private_file_is_in_the_repository() -> None:
    private = re.compile(r"(^|/)(\.env(\..*)?|secrets\.json|.*\.(pem|key|p12|pfx|creds|nk))$")
    assert [path.name for path in tracked_files() if private.search(path.relative_to(ROOT).as_posix())] == []
