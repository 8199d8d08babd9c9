"""Where processes of a test meet."""

import random
import socket

_OURS = range(20_000, 32_000)
"""Below those from which a system takes the ports of connections: else one could be taken by a
connection of another process before the first of ours listens."""


def free_port() -> int:
    for port in random.SystemRandom().sample(_OURS, 100):
        with socket.socket() as found:
            try:
                found.bind(("localhost", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")
