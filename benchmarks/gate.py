"""How fast the gate is: `python benchmarks/gate.py`. Prints a table for docs/candidates.md.

Texts are the legal corpus of the tests, each also with other constants, so that no text is seen twice.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "candidates"))

import corpus
import jax

from discojax import candidates
from discojax.candidates.checker import Checker
from discojax.candidates.gate import check, check_many
from discojax.candidates.syntax import check_syntax
from discojax.candidates.text import check_text


def cpu_seconds(checker: Checker) -> float:
    """CPU time of this process and of the checking process, which a busy machine does not stretch."""
    assert checker._current is not None
    fields = Path(f"/proc/{checker._current.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return time.process_time() + sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def rate(action: Callable[[str], object], texts: list[str]) -> float:
    begin = time.perf_counter()
    for text in texts:
        action(text)
    return len(texts) / (time.perf_counter() - begin)


def variants(count: int) -> list[str]:
    """`count` different legal programs: the corpus, with a further term of its own weight."""
    programs = [candidates.parse(entry.source) for entry in corpus.legal()]
    texts = []
    for number in range(count):
        program = programs[number % len(programs)]
        term = candidates.apply("multiply", candidates.Argument("policy_chosen_logps"), -1e-6 * (number + 1))
        texts.append(candidates.from_graph(candidates.apply("add", program.graph, term)).source)
    return texts


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--many", type=int, default=1000)
    many = arguments.parse_args().many
    texts = [entry.source for entry in corpus.legal()]
    broken = [entry.source for entry in corpus.hostile() if entry.verdict != "numbers"]
    rows = [
        ("text and syntax stages, legal", f"{rate(lambda t: check_syntax(check_text(t)), texts * 3):.0f} /s"),
        ("stages 1 to 3, legal", f"{rate(candidates.parse, texts * 3):.0f} /s"),
        ("stages 1 to 3, hostile", f"{rate(lambda t: check(t).stage, broken):.0f} /s"),
    ]
    checker = Checker()
    begin = time.perf_counter()
    checker.warm()
    process = checker._current
    assert process is not None
    rows.append(("the checking process, until ready", f"{time.perf_counter() - begin:.1f} s"))
    rows.append(("its memory when ready", f"{process.resident() / 2**20:.0f} MB"))
    time.sleep(15)  # it compiles operators while it is idle
    for title, sources in (("first time", texts), ("again", texts)):
        times = []
        for source in sources:
            begin = time.perf_counter()
            check(source, checker=checker)
            times.append(time.perf_counter() - begin)
        times.sort()
        median, high = statistics.median(times), times[int(0.95 * len(times))]
        rows.append(
            (
                f"all five stages, legal, {title}: median / 95 % / slowest",
                f"{1e3 * median:.0f} / {1e3 * high:.0f} / {1e3 * times[-1]:.0f} ms",
            )
        )
    sources = variants(many)
    begin, worked = time.perf_counter(), cpu_seconds(checker)
    accepted = sum(result.accepted for result in check_many(sources, checker))
    seconds = time.perf_counter() - begin
    worked = cpu_seconds(checker) - worked
    rows.append((f"`check_many`, {many} new programs, {accepted} accepted", f"{seconds:.1f} s"))
    rows.append(("CPU time of each of these, both processes", f"{1e3 * worked / many:.0f} ms"))
    rows.append(("its memory afterwards", f"{process.resident() / 2**20:.0f} MB"))
    rows.append(("confinement", ", ".join(checker.layers)))
    checker.close()
    print(f"Python {platform.python_version()}, jax {jax.__version__}\n\n| what | figure |\n|---|---|")
    for what, figure in rows:
        print(f"| {what} | {figure} |")


if __name__ == "__main__":
    main()
