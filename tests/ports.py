"""Ports that nothing else takes meanwhile."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

_RANGE = 20_000, 32_000  # below those that the system gives to whoever asks for any


def free_port() -> int:
    """A port of this machine that nobody listens on, nor will by chance: tests run side by side."""
    while True:
        port = random.SystemRandom().randrange(*_RANGE)
        with socket.socket() as tried:
            try:
                tried.bind(("localhost", port))
            except OSError:
                continue
            return port
