"""How lanes are best laid over a device: one after another (`map`) or all at once (`vmap`).

    python -m benchmarks.implementations [--lanes 1,4,16,64] [--rounds 5]

The same lanes, losses and pairs in both forms, with the quickstart's policy, taking turns in one
process. A figure is milliseconds a lane-step; beside the clock's is the processor's, which other jobs on
the machine do not change. Both are medians over rounds, and so is the ratio. What this found on
a machine is in docs/population.md, and `population.backend.choose_implementation` follows it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from benchmarks.measuring import turns
from benchmarks.steps import population
from discojax.policies.decoder import DecoderConfig

POLICY = DecoderConfig(vocab_size=4096, layers=3, width=128, heads=4, max_length=32)
PAIRS, PROMPT, TOKENS = 16, 7, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lanes", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    console = Console(width=120)
    table = Table(
        "lanes", "map, ms", "vmap, ms", "vmap / map", "map, CPU ms", "vmap, CPU ms", "vmap / map, CPU"
    )
    with Live(table, console=console):  # a line as soon as it is known
        for lanes in map(int, options.lanes.split(",")):
            table.add_row(str(lanes), *compare(lanes, options.rounds))
    device = jax.devices()[0].device_kind
    console.print(f"jax {jax.__version__}, {jax.device_count()} x {device}, {options.rounds} rounds")


def compare(lanes: int, rounds: int) -> list[str]:
    """One row: both forms at this number of lanes."""
    subjects: dict[str, Callable[[], Any]] = {}
    for kind in ("map", "vmap"):
        call, work = population(
            lanes, implementation=kind, chunk=max(8 // lanes, 1),
            config=POLICY, pairs=PAIRS, prompt=PROMPT, tokens=TOKENS,
        )  # fmt: skip

        def ours(call=call, work=work) -> tuple[float, float]:
            clock, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            return (time.perf_counter() - clock) / work, (time.process_time() - processor) / work

        subjects[kind] = ours
    times = {kind: 1e3 * np.array(found) for kind, found in turns(subjects, rounds).items()}
    row = []
    for k in range(2):  # the clock's, then the processor's
        row += [f"{np.median(times[kind][:, k]):.1f}" for kind in ("map", "vmap")]
        row.append(f"{np.median(times['vmap'][:, k] / np.maximum(times['map'][:, k], 1e-9)):.2f}")
    return row


if __name__ == "__main__":
    main()
