"""What the commands of this folder tell whoever runs them: plain lines, at once. The service itself writes logs."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """A line on the terminal, also when that is a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
