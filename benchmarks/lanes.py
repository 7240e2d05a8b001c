"""How busy the lanes are while candidates come late and unevenly.

    python benchmarks/lanes.py                      # simulated: 64 lanes, a slow and bursty language model
    python benchmarks/lanes.py --recorded           # the same, of one that was recorded
    python benchmarks/lanes.py --run runs/NAME      # a real run, from its metrics.jsonl
    python benchmarks/lanes.py --serve 0.3          # makes a real run first, minutes: runs/lanes

The simulation drives the real search: its schedule, brackets, prefetching, archive and gate, and the real
loop that gives lanes their jobs. Only the device is arithmetic (`tests/search/toy.py`): a call for a chunk
of steps takes as long for one lane as for all, as under `vmap`. `--serve` trains real policies while a
scripted server on this machine answers after recorded latencies, times the given factor. Replies come after
the latencies of `arrivals.json`, one request at a time, up to four candidates each. *Useful* is the share
of lane-steps, over all the time from the first job, in which a lane trained: until the last job was given
a lane, and to the end, when the last lanes drain and others have nothing left to do. *Load* is the time
the lanes need for the work against the time the requests take: below 1 no schedule could keep them busy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "search")]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

SCENARIO = (
    "search.candidates=192", "search.generations=12", "search.betas=[0.05, 0.1, 0.2, 0.5]",
    "search.rungs=[[1, 100, 64], [2, 200, 5], [2, 400, 2]]", "search.elites=[4, 400, 8]",
    "population.lanes=64", "population.chunk=32",
    "evaluation.bootstrap=100", "evaluation.search_prompts=64",
)  # fmt: skip
SERVED = (
    "search.proposer=openai", "proposer.candidates=4",
    "search.candidates=64", "search.generations=16", "search.betas=[0.1, 0.5]", "search.lag=2",
    "search.rungs=[[1, 200, 64], [1, 400, 3]]", "search.elites=[2, 400, 4]",
    "policy.layers=1", "policy.width=32", "policy.heads=2", "policy.vocab_size=512", "sft.steps=100",
    "task.pairs=256", "population.lanes=16", "population.batch=8", "population.chunk=25",
    "evaluation.prompts=32", "evaluation.search_prompts=32", "evaluation.seeds=2", "evaluation.finalists=1",
    "evaluation.baselines=[dpo]", "evaluation.bootstrap=100",
)  # fmt: skip
ARRIVALS = json.loads((ROOT / "benchmarks" / "arrivals.json").read_text())
LATENCIES: Sequence[float] = ARRIVALS["seconds"]


def simulate(
    overrides: Sequence[str], seconds: float, latencies: Sequence[float] = LATENCIES
) -> dict[str, float]:
    """One search; `seconds` is how long a step of all lanes takes."""
    import toy

    from discojax.config import load
    from discojax.population.training import chunk_for
    from discojax.search import archive as archives
    from discojax.search.rungs import chunk_budgets

    config = load("quickstart", [*SCENARIO, *overrides])
    lanes = config.population.lanes
    chunk = chunk_for(chunk_budgets(config), config.population.chunk)
    asked: list[float] = []

    def latency():
        for each in itertools.cycle(latencies):
            asked.append(each)
            yield each

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with archives.open_archive(folder / "archive.sqlite", "simulation") as archive:
            lab = toy.laboratory(archive, folder, lanes=lanes, chunk=chunk, seconds=seconds)
            slow = toy.Slow(toy.Drawn(), lab.clock, latency())
            with toy.racing(config, archive, folder, lab, lambda proposer: slow) as (race, _, timeline):
                race.begin()
                race.train()
    work = timeline.useful[-1] * seconds / lanes
    return {
        "lag": config.search.lag,
        "step": seconds,
        "load": work / sum(asked),  # with a control, of both searches' work
        "minutes": timeline.at[-1] / 60,
        "before the drain": timeline.utilisation(lanes, seconds, drain=False),
        "to the end": timeline.utilisation(lanes, seconds, drain=True),
    }


def serve(folder: Path, pace: float, overrides: Sequence[str]) -> None:
    """A run in `folder`, whose candidates a server here writes after recorded latencies times `pace`."""
    sys.path.insert(0, str(ROOT / "tests" / "proposers"))
    from server import MODELS, Server

    from discojax.launch import main as launch

    script = [f"ok:{pace * seconds:.3f}" for seconds in ARRIVALS["recorded"]]
    with Server(script=script) as server:
        launch(
            ["discover", *SERVED, f"proposer.models=[{MODELS[0]}]", f"proposer.base_url={server.url}/v1",
             f"run.directory={folder.parent}", f"run.name={folder.name}", *overrides]
        )  # fmt: skip


def of_run(folder: Path) -> list[tuple[str, float, float, float]]:
    """A run's phases: useful lane-steps before the drain and in all, and seconds without any job."""
    phases: dict[str, list[dict]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "progress":
            phase = f"rung {row['rung']}" if "rung" in row else "search"
            phases.setdefault(phase, []).append(row)
    found = []
    for phase, calls in phases.items():
        room = sum(call["room"] for call in calls)
        waited = sum(call["waited"] for call in calls)
        last = max((i for i, call in enumerate(calls) if call.get("queued")), default=len(calls) - 1)
        head = calls[: last + 1]
        before = sum(call["useful"] for call in head) / max(sum(call["room"] for call in head), 1)
        found.append((phase, before, sum(call["useful"] for call in calls) / max(room, 1), waited))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="the folder of a real run")
    parser.add_argument("--recorded", action="store_true", help="replies come as a real server's did")
    parser.add_argument("overrides", nargs="*", help="key=value, of the simulated run's config")
    parser.add_argument("--serve", type=float, metavar="FACTOR", help="make a real run first, in runs/lanes")
    options = parser.parse_args()
    console = Console()
    if options.serve:
        options.run = options.run or ROOT / "runs" / "lanes"
        serve(options.run, options.serve, options.overrides)
    if options.run:
        table = Table("phase", "useful, before the drain", "useful, to the end", "no job at all, s")
        for phase, before, whole, waited in of_run(options.run):
            table.add_row(phase, f"{before:.1%}", f"{whole:.1%}", f"{waited:.1f}")
        console.print(table)
        return
    table = Table("", "lag", "a step, s", "load", "minutes", "useful, before the drain", "useful, to the end")
    tuned = "search.controls=[tuned_baselines]"
    latencies = ARRIVALS["recorded"] if options.recorded else LATENCIES
    for what, lag, seconds, given in (
        ("no prefetching", 0, 1.0, ()),
        ("quick replies, or a slow device", 1, 1.0, ()),
        ("with a control to fill in", 1, 1.0, (tuned,)),
        ("half as slow a device", 1, 0.5, ()),
        ("with a control to fill in", 1, 0.5, (tuned,)),
        ("more device than replies", 2, 0.25, ()),
    ):
        row = simulate([f"search.lag={lag}", *given, *options.overrides], seconds, latencies)
        table.add_row(
            what, f"{lag}", f"{seconds:g}", f"{row['load']:.2f}", f"{row['minutes']:.0f}",
            f"{row['before the drain']:.1%}", f"{row['to the end']:.1%}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
