"""Large blocks of memory go back to the system as soon as they are freed.

The C library of most Linux systems raises the size from which it does that to that of the largest block ever freed: after one
picture of 20 MB a process keeps, and scatters, all that come after it. Measured with two at a time: 221 MB more than before
the first of them, and 131 MB with a fixed size.
"""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD = -3
_LARGE_BYTES = 256 * 1024


def give_large_blocks_back() -> None:
    """Call it first. Does nothing where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
