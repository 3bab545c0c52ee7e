"""Refuses files that hold something like a provider key, a private key or a token: `python -m deploy.key_scan FILE…`.

The pre-commit hook calls it with the files of a commit. It names the file, the line and the kind, never the match.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PATTERNS = {
    "an OpenRouter key": re.compile(r"sk-or-v1-[0-9a-f]{64}"),
    "an OpenAI or Anthropic key": re.compile(r"sk-(?:proj-|ant-)?[A-Za-z0-9_-]{40,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"),
    "a JSON Web Token": re.compile(r"eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}"),
    "an AWS access key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
    "a NATS seed": re.compile(r"\bS[UAONC][A-Z2-7]{56}\b"),
}


def findings(text: str) -> list[tuple[int, str]]:
    """Line numbers and kinds of everything that looks like a secret."""
    return [
        (number, kind)
        for number, line in enumerate(text.splitlines(), start=1)
        for kind, pattern in PATTERNS.items()
        if pattern.search(line)
    ]


def main(names: list[str]) -> int:
    """Exit code 1 when any file holds something."""
    found = False
    for name in names:
        for number, kind in findings(Path(name).read_text(encoding="utf-8", errors="replace")):
            print(f"{name}:{number}: looks like {kind}; take it out, and revoke it if it was real")
            found = True
    return int(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
