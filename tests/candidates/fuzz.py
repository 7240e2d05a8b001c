"""Fuzzes the gate with Hypothesis: `python tests/candidates/fuzz.py --inputs 200000 --seed 1`.

Every input goes through stages 1 to 3 in this process, watched by an audit hook; every program that
comes out is printed, read again and compared; and all that are new by their hash go through stages
4 and 5 in the confined process, up to `--full`. Anything but a program or a `CandidateError`, an
audit event of a file, a socket, a process or executed code, over 5 s of work, or a checking process
that hung (4 s) or crashed, ends the run with the input that did it. `docs/candidates.md` has the
figures of the last run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import strategies
from hypothesis import HealthCheck, Phase, given, seed, settings

from discojax import candidates
from discojax.candidates.checker import Checker
from discojax.candidates.gate import check

CHUNK = 5000  # Hypothesis remembers the inputs of one test; fresh ones keep that small


class Figures:
    def __init__(self, full: int):
        self.full = full
        self.kinds: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.slowest = {"stages 1-3, CPU": 0.0, "all stages, wall": 0.0}
        self.checked = 0

    def parse(self, source: object) -> candidates.Program | None:
        begin = time.process_time()
        with strategies.watched() as events:
            result = strategies.parsed(source)
        took = time.process_time() - begin
        assert events == [], events
        assert took < 5.0, took
        self.slowest["stages 1-3, CPU"] = max(self.slowest["stages 1-3, CPU"], took)
        self.kinds[type(source).__name__] += 1
        if isinstance(result, candidates.Program):
            return result
        assert len(str(result)) < 300, str(result)
        assert str(result).isprintable(), str(result)
        self.verdicts[f"rejected at {result.stage}"] += 1
        return None

    def read_back(self, program: candidates.Program) -> None:
        text = strategies.printed(program)
        if text is None:
            self.verdicts["too long to print"] += 1
        else:
            assert candidates.parse(text).hash == program.hash, text

    def whole_gate(self, source: str, program: candidates.Program, checker: Checker) -> None:
        if program.hash in self.seen or self.checked >= self.full:
            self.verdicts[
                "a program, not checked further" if program.hash not in self.seen else "a known program"
            ] += 1
            return
        self.seen.add(program.hash)
        self.checked += 1
        begin = time.monotonic()
        result = check(source, checker=checker)
        took = time.monotonic() - begin
        self.slowest["all stages, wall"] = max(self.slowest["all stages, wall"], took)
        assert "process" not in result.reason, result.reason
        assert result.accepted or len(str(result.error)) < 300
        self.verdicts["accepted" if result.accepted else f"rejected at {result.stage}"] += 1


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--inputs", type=int, default=200_000)
    arguments.add_argument(
        "--full", type=int, default=20_000, help="most programs checked through all stages"
    )
    arguments.add_argument("--seed", type=int, default=1)
    given_ = arguments.parse_args()
    figures, checker = Figures(given_.full), Checker()
    checker.warm()
    begin = time.monotonic()
    for chunk in range(-(-given_.inputs // CHUNK)):

        @seed(given_.seed * 100_000 + chunk)
        @settings(
            max_examples=CHUNK, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategies.untrusted)
        def attempt(source: object) -> None:
            program = figures.parse(source)
            if program is not None:
                figures.read_back(program)
                assert isinstance(source, str)
                figures.whole_gate(source, program, checker)

        attempt()
        done = sum(figures.kinds.values())
        print(f"{done} inputs in {time.monotonic() - begin:.0f} s: {dict(figures.verdicts)}", flush=True)
        if done >= given_.inputs:
            break
    checker.close()
    print(
        json.dumps(
            {
                "inputs": sum(figures.kinds.values()),
                "kinds": dict(figures.kinds),
                "verdicts": dict(sorted(figures.verdicts.items())),
                "checked through all stages": figures.checked,
                "slowest": {k: round(v, 3) for k, v in figures.slowest.items()},
                "seconds": round(time.monotonic() - begin),
                "seed": given_.seed,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
