"""What SIGTERM does to a command that has no lanes to keep."""

import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("words", [["plan", "--topology", "v5e:4x4"], ["check", "-"]], ids=["plan", "check"])
def test_sigterm_ends_what_trains_nothing_at_once(words: list[str]) -> None:
    """As in the compiler, where no handler of Python's is heard: here in a sleep that takes no exception."""
    script = f"""
import os, signal, discojax.launch as launch

def compiling(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("it went on", flush=True)

command = launch._COMMANDS[{words[0]!r}]
launch._COMMANDS[{words[0]!r}] = command._replace(handler=compiling)
launch.main({words!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stdout == done.stderr == ""
