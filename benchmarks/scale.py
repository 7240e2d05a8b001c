"""10,000 candidates on a v5e-256: the arithmetic of docs/scale.md.

    python -m benchmarks.scale              # prints the tables of that page
    python -m benchmarks.scale --measure    # first asks `plan` and this host again: minutes; the extra `tpu`

What was measured or printed is in scale.json beside this file; what is assumed stands below; the rest
is counted by the functions that the run itself goes by.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discojax.config import Config, load
from discojax.proposers.budget import price_of
from discojax.search.rungs import BASELINE, elite_trial, final_trial, lane_steps, rung_trial, shares

FILE = Path(__file__).with_name("scale.json")
SLICE = "v5litepod-256"
ADAPTERS = (
    "policy.pretrained=gpt2", "policy.lora.rank=8", "policy.remat=block", "population.dtype=bfloat16",
    "population.chunk=1", "task.prompt_tokens=64", "task.completion_tokens=64",
)  # fmt: skip
CASES = {  # settings that are planned
    "quickstart's policy": ("population.lanes=8192",),
    "GPT-2, adapters": ("population.lanes=1024", *ADAPTERS),
}
SEARCH = (
    "search.candidates=10000", "search.generations=4", "search.rungs=[[1,20,64],[2,40,64]]",
    "search.elites=[4,40,16]",
)  # fmt: skip


@dataclass(frozen=True)
class Assumed:
    """What nothing here measures.

    Attributes:
      mfu: of the chip's peak, for operations; the memory's bandwidth bounds a step besides.
      model: whose price is taken.
      accepted: share of proposals that the gate accepts.
      reply: tokens of a reply with its thinking.
      answer: seconds until a request is answered; they go one after the other.
    """

    mfu: float = 0.4
    model: str = "gemini-3.5-flash"
    accepted: float = 0.8
    reply: int = 5_000
    answer: float = 20.0


@dataclass(frozen=True)
class Bill:
    """What 10,000 candidates come to.

    Attributes:
      jobs: lanes that are trained and measured, one after another and side by side.
      lane_steps: optimisation steps over all of them.
      tokens: that they read.
      full: share of the lanes that have a job while the first rung of a generation trains.
      train, measure: seconds of the slice, the second by its operations over the first's.
      chips: dollars for both.
      requests, prompt, reply: of the language model, and tokens of all of them.
      model: dollars for it.
      answers: seconds until all requests are answered, one after the other.
      waiting: dollars for a slice that waits for them.
      gate, rewards: seconds of one core of the host.
      archive: bytes.
    """

    jobs: int
    lane_steps: int
    tokens: int
    full: float
    train: float
    measure: float
    chips: float
    requests: int
    prompt: int
    reply: int
    model: float
    answers: float
    waiting: float
    gate: float
    rewards: float
    archive: float

    @property
    def share(self) -> float:
        """Of the language model in what chips and it cost together."""
        return self.model / (self.model + self.chips)


def bill(config: Config, plan: dict[str, Any], host: dict[str, float], assumed: Assumed = Assumed()) -> Bill:
    """What a search comes to.

    Args:
      config: of the search.
      plan: what `plan --json` said of it.
      host: seconds of a core for a candidate and for a text, bytes of a measurement; see `scale.json`.
      assumed: see `Assumed`.
    """
    search, generations = config.search, shares(config)
    trials: list[tuple[Any, int]] = []
    for bracket in (len(search.library), *generations):
        for number, (_, _, keep) in enumerate(search.rungs):  # the baseline's lanes are measured once
            trials.append((rung_trial(config, number), min(bracket, keep) if number else bracket))
    keep, others = search.elites[2], len({*search.library} - {BASELINE})  # the library has places of its own
    trials.append((elite_trial(config), keep + min(keep, others) + 1))
    trials.append((final_trial(config), config.evaluation.finalists + len(config.evaluation.baselines)))
    jobs = sum(len(trial.betas) * len(trial.seeds) * count for trial, count in trials)
    texts = sum(len(trial.betas) * len(trial.seeds) * count * trial.prompts for trial, count in trials)
    steps = sum(lane_steps(trial, count) for trial, count in trials)

    lanes, seconds = plan["lanes"], plan["seconds_a_step"]["step"]
    first = len(search.betas) * search.rungs[0][0] * max(generations)
    full = first / (-(-first // lanes) * lanes)
    train = steps / lanes * seconds / full
    prompt, completion = plan["tokens"]["prompt"], plan["tokens"]["completion"]
    pair = prompt + 2 * (completion - 1)  # its prompt is read once
    # A lane-step is three passes over its pairs. A measured text is one pass that samples it, and one of
    # the policy and one of the reference that say its divergence.
    reads = texts * 3 * (prompt + completion - 1) / (3 * plan["batch"] * pair)
    measure = reads / lanes * seconds / full
    hour = plan["chips"] * plan["chip"]["dollars_an_hour"]

    proposals = search.candidates / assumed.accepted
    requests = round(proposals / config.proposer.candidates)
    asked, answered = requests * config.proposer.prompt_tokens, requests * assumed.reply
    price = price_of("gemini", assumed.model)
    assert price is not None, assumed.model
    answers = requests * assumed.answer
    return Bill(
        jobs, steps, steps * plan["batch"] * pair, full, train, measure, (train + measure) / 3600 * hour,
        requests, asked, answered, price.cost(asked, answered), answers,
        max(answers - train - measure, 0) / 3600 * hour, proposals * host["gate"], texts * host["text"],
        jobs * host["measurement"],
    )  # fmt: skip


def tables(kept: dict[str, Any], assumed: Assumed = Assumed()) -> str:
    """The tables of docs/scale.md, as Markdown."""
    bills = {}
    for name, settings in CASES.items():
        bills[name] = bill(load(None, [*SEARCH, *settings]), kept["plans"][name], kept["host"], assumed)
    return "\n".join([*_plans(kept["plans"]), "", *_bills(bills)])


def _plans(plans: dict[str, Any]) -> list[str]:
    rows = [f"| a step on {SLICE}, by `plan` | {' | '.join(plans)} |", f"|---|{'---|' * len(plans)}"]

    def row(what: str, of: Any) -> None:
        rows.append(f"| {what} | {' | '.join(of(plan) for plan in plans.values())} |")

    row("lanes, a chip", lambda p: f"{p['lanes']:,}, {p['lanes'] // p['mesh']['lane']}")
    row(
        "bytes a chip, of its HBM",
        lambda p: f"{_gib(p['bytes_a_chip']['total'])} of {_gib(p['chip']['memory'])}",
    )
    row(
        "while lanes are measured",
        lambda p: f"{_gib(p['measuring']['bytes'])}, on {p['measuring']['prompts']} prompts",
    )
    row("operations a step, a chip", lambda p: f"{p['flops_a_step'] / p['chips'] / 1e9:,.0f} GFLOP")
    row("at 40 % of the peak", lambda p: _ms(p["seconds_a_step"]["compute"]))
    row("HBM's traffic, at least", lambda p: _ms(p["seconds_a_step"]["memory"]))
    row("between chips", lambda p: _ms(p["seconds_a_step"]["network"]) if p["collectives"] else "nothing")
    row("lane-steps a second", lambda p: f"{p['lanes'] / p['seconds_a_step']['step']:,.0f}")
    return rows


def _bills(bills: dict[str, Bill]) -> list[str]:
    rows = [f"| 10,000 candidates | {' | '.join(bills)} |", f"|---|{'---|' * len(bills)}"]

    def row(what: str, of: Any) -> None:
        rows.append(f"| {what} | {' | '.join(of(each) for each in bills.values())} |")

    row("lanes trained, one after another and side by side", lambda b: f"{b.jobs:,}")
    row("lane-steps", lambda b: f"{b.lane_steps:,}")
    row("tokens read in training", lambda b: f"{b.tokens / 1e9:.2f} billion")
    row("lanes with a job while a generation's first rung trains", lambda b: f"{100 * b.full:.0f} %")
    row("the slice trains", lambda b: _duration(b.train))
    row("the slice measures", lambda b: _duration(b.measure))
    row("chips", lambda b: f"${b.chips:,.2f}")
    row("requests to the model", lambda b: f"{b.requests:,}")
    row("tokens of prompts, of replies", lambda b: f"{b.prompt / 1e6:.1f} M, {b.reply / 1e6:.1f} M")
    row("the model", lambda b: f"${b.model:,.2f}")
    row("the model's share of both", lambda b: f"{100 * b.share:.0f} %")
    row("the model answers, one request after another", lambda b: _duration(b.answers))
    row("a slice that waits for it", lambda b: f"${b.waiting:,.0f}")
    row("the gate, one core", lambda b: _duration(b.gate))
    row("rewards, one core", lambda b: _duration(b.rewards))
    row("the archive", lambda b: f"{b.archive / 2**20:,.0f} MiB")
    return rows


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def measure() -> dict[str, Any]:
    """Asks `plan` of every case, and this host how long a text takes; keeps the rest of what is there."""
    kept: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"plans": {}, "host": {}}
    for name, settings in CASES.items():
        words = ["plan", "--topology", SLICE, "--quick", "--json", *settings]
        command = [sys.executable, "-m", "discojax.launch", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: it does not fit, and the tables say so
            raise RuntimeError(done.stderr)
        kept["plans"][name] = json.loads(done.stdout)
        FILE.write_text(json.dumps(kept, indent=2) + "\n")
    kept["host"]["text"] = _seconds_a_text()
    FILE.write_text(json.dumps(kept, indent=2) + "\n")
    return kept


def _seconds_a_text() -> float:
    """Processor seconds of a reward model for a completion as long as the quickstart's."""
    from discojax.data import reviews
    from discojax.tasks import rewards

    some = reviews.load()
    model = rewards.train(some.texts[:2000], some.labels[:2000])
    texts = [" ".join(text.split()[:16]) for text in some.texts[:20_000]]
    model.score(texts[:100])
    begin = time.process_time()
    model.score(texts)
    return (time.process_time() - begin) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="ask `plan` and this host again")
    print(tables(measure() if parser.parse_args().measure else json.loads(FILE.read_text())))


if __name__ == "__main__":
    main()
