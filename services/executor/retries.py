"""When a failed call is made again: only while nothing was delivered and nothing is billed, three times at most, inside
the run's own deadline. Full jitter, or what upstream asked for."""

from __future__ import annotations

import random

from services.executor.faults import Fault

MAX_ATTEMPTS = 3
_BASE_S = 0.25
_LONGEST_S = 8.0
_MASKED = 500  # hides any cause, a lasting one too: worth one more try only


def delay_before_retry(fault: Fault, attempts_made: int, time_left_s: float) -> float | None:
    """Seconds to wait before the next attempt, or None for no further one."""
    if not fault.retry or (fault.upstream_status == _MASKED and attempts_made > 1):
        return None
    jitter_s = random.uniform(0, min(_LONGEST_S, _BASE_S * 2**attempts_made))  # noqa: S311 - spreads load, guards nothing
    delay_s = jitter_s if fault.retry_after_s is None else fault.retry_after_s + min(jitter_s, 0.1)
    # A hint beyond what a caller would wait for is theirs to follow: they are told the time.
    return delay_s if delay_s <= _LONGEST_S and delay_s < time_left_s else None
