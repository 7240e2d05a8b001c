"""Checking processes that go wrong, one for each way. Started by test_checker, never by the product."""

import os
import signal
import time
from pathlib import Path

from discojax.candidates import worker


def _handler(request, enter):
    enter("numbers")
    what = request["source"]
    if what == "hang":
        while True:
            time.sleep(1.0)
    if what == "spin":
        while True:
            pass
    if what == "ignore the alarm":
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True:
            time.sleep(1.0)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
        os.abort()  # where seccomp refuses the kill
    if what == "exit":
        os._exit(3)
    if what == "eat memory":
        hoard = []
        while True:
            hoard.append(bytearray(32 * 2**20))
            for page in range(0, 32 * 2**20, 4096):
                hoard[-1][page] = 1
    if what == "memory error":
        return {"exhausted": "MemoryError"}
    if what == "print":
        print("noise on the standard output", flush=True)
        os.write(1, b"more noise\n")
        return {"accepted": False, "stage": "numbers", "line": 1, "reason": "printed"}
    if what == "environment":
        return {"accepted": False, "stage": "numbers", "line": None, "reason": " ".join(sorted(os.environ))}
    if what == "session":
        reason = f"{os.getpid()} {os.getsid(0)} {os.getpgid(0)}"
        return {"accepted": False, "stage": "numbers", "line": None, "reason": reason}
    if what.startswith("attempt to "):
        reason = _attempt(what.removeprefix("attempt to "))
        return {"accepted": False, "stage": "numbers", "line": None, "reason": reason}
    return {"accepted": False, "stage": "numbers", "line": None, "reason": str(os.getpid())}


def _attempt(what):
    """Tries to get out; the answer says how it went."""
    import socket
    import subprocess
    import threading

    attempts = {
        "read a secret": lambda: Path("/etc/passwd").read_text(),
        "read the environment of the parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "write a file": lambda: Path("/tmp/discojax-escape").write_text("x"),
        "write beside the package": lambda: Path(worker.__file__).with_name("escape").write_text("x"),
        "make a folder": lambda: os.mkdir("/tmp/discojax-escape"),
        "open a socket": lambda: socket.socket(),
        "open a local socket": lambda: socket.socketpair(),
        "start a program": lambda: subprocess.run(["/bin/true"]),
        "fork": lambda: os._exit(0) if os.fork() == 0 else "forked",
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "start a thread": lambda: (
            (t := threading.Thread(target=lambda: None), t.start(), t.join()) and "started"
        ),
        "read Python's own file": lambda: Path(os.__file__).read_text()[:1],
    }
    try:
        return f"done: {attempts[what]()!s:.20}"
    except (OSError, PermissionError) as error:
        return f"refused: {type(error).__name__}"


def main():
    worker.serve(lambda: (_handler, iter(())))
