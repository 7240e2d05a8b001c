"""What checking the corpus asks of the system: `python tests/candidates/system_calls.py` (Linux, strace).

The checking process and this one, which runs stages 1 to 3, are traced while every text of the
corpus is checked. The table tells each kind of call, and each file that was opened; the exit
code is 1 if there was a file outside Python's own and the two that the parent's watch over memory
reads, a network call, a new process, or a change to the file system.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import corpus

from discojax.candidates.checker import Checker
from discojax.candidates.gate import check

PYTHONS_OWN = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[2] / "discojax")})
NETWORK = frozenset(
    "socket socketpair connect bind listen accept accept4 sendto sendmsg recvfrom recvmsg".split()  # noqa: SIM905
)
PROCESSES = frozenset(["execve", "execveat", "fork", "vfork", "kill", "ptrace"])
CHANGES = frozenset(
    ["mkdir", "mkdirat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
     "symlinkat", "truncate", "chmod", "fchmodat", "chown", "fchownat", "mknod", "mknodat", "creat"]
)  # fmt: skip


def trace(pid: int, output: Path) -> subprocess.Popen[bytes]:
    """strace, attached to a process and its threads."""
    command = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "200",
        "-e",
        "trace=%file,%network,%process,openat,kill",
        "-o",
        str(output),
    ]
    process = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.DEVNULL)
    for _ in range(100):
        status = Path(f"/proc/{pid}/status").read_text()
        if re.search(r"TracerPid:\s+[1-9]", status):
            return process
        time.sleep(0.05)
    raise SystemExit("strace could not attach: run as root, or set kernel.yama.ptrace_scope=0")


def read(output: Path, tracers: list[int]) -> tuple[Counter[str], Counter[str]]:
    """Calls by name, and opened files by path, without what this script does to its tracers."""
    calls: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for line in output.read_text(errors="replace").splitlines():
        match = re.match(r"\d+\s+(\w+)\((.*)", line)
        if match is None or "resumed>" in line:
            continue
        name, rest = match[1], match[2]
        if name in ("kill", "wait4") and rest.startswith(tuple(f"{pid}," for pid in tracers)):
            continue
        calls[name] += 1
        if name in ("open", "openat", "openat2"):
            path = re.search(r'"((?:[^"\\]|\\.)*)"', rest)
            files[path[1] if path else "?"] += 1
    return calls, files


def faults(calls: Counter[str], files: Counter[str], watched: int) -> list[str]:
    """What must not be there."""
    found = [f"{name} x{calls[name]}" for name in sorted((NETWORK | PROCESSES | CHANGES) & set(calls))]
    for path in files:
        own = path.startswith(PYTHONS_OWN) or path == ""  # the parser's search for an error's line
        if not own and path not in (f"/proc/{watched}/statm", f"/proc/{watched}/schedstat"):
            found.append(f"opened {path}")
    return found


def main() -> int:
    if shutil.which("strace") is None:
        print("strace is not installed: apt-get install strace")
        return 1
    entries = [*corpus.hostile(), *corpus.legal()]
    checker = Checker(seconds=60.0)  # a traced process is slow
    checker.warm()
    process = checker._current
    assert process is not None
    check(entries[-1].source, checker=checker)  # this process imports what it needs
    with tempfile.TemporaryDirectory() as folder:
        outputs = {"the checking process": Path(folder, "worker"), "the parent": Path(folder, "parent")}
        pids = {"the checking process": process.popen.pid, "the parent": os.getpid()}
        tracers = [trace(pids[name], outputs[name]) for name in outputs]
        wrong = [e.name for e in entries if (check(e.source, checker=checker).stage or "legal") != e.verdict]
        for tracer in tracers:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        bad = [f"wrong verdict: {name}" for name in wrong]
        print(f"{len(entries)} texts; confinement: {', '.join(checker.layers)}")
        for name, output in outputs.items():
            calls, files = read(output, [tracer.pid for tracer in tracers])
            files.pop(f"/proc/{os.getpid()}/status", None)  # read by `trace`
            watched = process.popen.pid if name == "the parent" else -1
            bad += [f"{name}: {fault}" for fault in faults(calls, files, watched)]
            print(f"\n{name}: {sum(calls.values())} calls of files, network and processes")
            for call, count in sorted(calls.items()):
                print(f"  {call}: {count}")
            for path, count in sorted(files.items()):
                print(f"  opened {path or '(the empty name, which is no file)'}: {count}")
    checker.close()
    print(
        "\n" + ("\n".join(bad) if bad else "No file outside Python's own, no network call, no new process.")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
