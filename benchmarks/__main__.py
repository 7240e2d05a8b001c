"""The population engine's benchmarks: one command, one table.

    python -m benchmarks [--only steps,swap,...] [--quick] [--save FILE.md]

Ratios are of both sides in one run, taking turns; above 1 is better than the peer. PyTorch's side
runs in this Python if it has torch and trl (`pip install -e '.[torch]'`), or in the one that
`DISCOJAX_TORCH_PYTHON` names; without either the lines that need it are left out, and said to be.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from discojax.errors import UserError, nearest
from discojax.population.backend import configure_backend

PARTS = (
    "steps", "order", "swap", "sampling", "head", "utilisation", "growth", "compile", "checkpoint", "replay",
    "report",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: is everything in order?")
    parser.add_argument("--save", type=Path, help="where the table is written too, as Markdown")
    options = parser.parse_args()
    wanted = options.only.split(",")
    for name in wanted:
        if name not in PARTS:
            raise UserError(f"There is no part {name!r}.{nearest(name, PARTS)} Parts are {', '.join(PARTS)}.")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # PyTorch is on the same GPU
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # compiling is a part of what is measured
    configure_backend()

    from rich.console import Console
    from rich.table import Table

    from benchmarks import checkpoint, depth, head, order, replay, report, sampling, steps, swap, utilisation
    from benchmarks.measuring import Row
    from benchmarks.peers import open_peer

    console = Console()
    rows: list[Row] = []
    with open_peer() as peer:
        quick = options.quick
        parts: dict[str, Callable[[], list[Row]]] = {
            "steps": lambda: steps.rows(peer, quick=quick),
            "order": lambda: order.rows(quick=quick),
            "swap": lambda: swap.rows(quick=quick),
            "sampling": lambda: sampling.rows(peer, quick=quick),
            "head": lambda: head.rows(quick=quick),
            "utilisation": lambda: utilisation.rows(quick=quick),
            "growth": lambda: utilisation.growth(quick=quick),
            "compile": lambda: depth.rows(quick=quick),
            "checkpoint": lambda: checkpoint.rows(quick=quick),
            "replay": lambda: replay.rows(quick=quick),
            "report": lambda: report.rows(quick=quick),
        }
        for name in PARTS:
            if name in wanted:
                with console.status(f"{name} ..."):
                    rows += parts[name]()
        facts = _facts(peer.facts if peer else None)
    table = Table("what", "ours", "peer", "ratio", "in")
    for row in rows:
        table.add_row(row.what, row.ours, row.peer, "" if row.ratio is None else f"{row.ratio:.3g}", row.note)
    console.print(table)
    console.print(facts)
    if options.save:
        options.save.write_text(_markdown(rows, facts), encoding="utf-8")
    return 0


def _facts(peer: dict | None) -> str:
    import jax

    device = jax.devices()[0]
    processor = _processor() if device.platform == "cpu" else device.device_kind
    cores = f", {len(os.sched_getaffinity(0))} cores" if device.platform == "cpu" else ""
    torch = (
        f"PyTorch {peer['torch']} on {peer['device']} ({peer['threads']} threads)"
        if peer
        else "no PyTorch: its lines are left out"
    )
    return (
        f"{jax.device_count()} x {processor}{cores}; jax {jax.__version__}, "
        f"Python {platform.python_version()}; {torch}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def _markdown(rows, facts: str) -> str:
    lines = ["| what | ours | peer | ratio | in |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        lines.append(f"| {row.what} | {row.ours} | {row.peer} | {ratio} | {row.note} |")
    return "\n".join([*lines, "", facts, ""])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
