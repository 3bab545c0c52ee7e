"""Picks ports on the loopback interface. Free ones are taken below Linux' ephemeral range: a port from inside it can
be grabbed by any outgoing connection between the moment it is picked and the moment its server listens."""

import random
import socket

HOST = "127.0.0.1"


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A server sets this as well: without it, closed connections of the previous run would look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port nobody listens on, and that was given to no process that still runs."""
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        if _pick(port):
            return port
    raise RuntimeError("no free port between 20000 and 32000 on 127.0.0.1")


def _pick(port: int) -> bool:
    """Whether nobody listens on this port, and this process is the first one to pick it.

    A stack picks all its ports before most of its servers listen. Who picks a TCP port keeps the UDP port of the same number, which
    nobody uses: so none is picked twice, by other processes either, and all are given back when this one ends.
    """
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind((HOST, port))
    except OSError:
        claim.close()
        return False
    claim.detach()
    return port_is_free(port)


def next_free_port(after: int, avoid: frozenset[int] = frozenset()) -> int:
    """The first port above `after` like those of `free_port`, and not in `avoid`."""
    return next(port for port in range(after + 1, 65_536) if port not in avoid and _pick(port))
