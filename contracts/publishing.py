"""What people are told who want to publish on the bus themselves; for those of us who are not on it, and name no subject."""

from __future__ import annotations

from contracts.subjects import AS_RUN, as_publisher


def run_subject(publisher: str) -> str:
    """Where this publisher asks for a run."""
    return as_publisher(AS_RUN.subject, publisher)
