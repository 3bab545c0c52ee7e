"""What a process that holds secrets does before it reads them: nobody gets its memory written to a disk, and a secret that
came as a variable does not stay where other processes can read it.

Swap and a debugger run by root are out of reach from in here: the machine's business, as ARCHITECTURE.md says.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_PR_SET_DUMPABLE = 4


def deny_dumps() -> None:
    """No core dump, neither by limit nor through a handler; on Linux no other process of the same user may attach to this
    one or read its environment either.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not let this process turn core dumps off")


def forget_variable(name: str) -> None:
    """Remove an environment variable, also from the block that the kernel shows as /proc/<pid>/environ.

    `os.environ` is a copy and `unsetenv` only drops a pointer: the bytes that the process was started with stay. As
    settings are read, the case of the name does not matter.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    for spelled in [known for known in os.environ if known.upper() == name.upper()]:
        address = libc.getenv(os.fsencode(spelled))
        if address is not None:
            ctypes.memset(address, 0, len(ctypes.string_at(address)))
        del os.environ[spelled]
