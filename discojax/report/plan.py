"""How a plan is shown: in the terminal, and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from json import dumps
from typing import Any

from rich.console import Console
from rich.table import Table

from discojax.config import Config
from discojax.population.memory import Usage, written
from discojax.population.plan import Plan
from discojax.population.topology import PRICES_OF
from discojax.search import planning

__all__ = ["answer", "as_json", "show"]


def answer(config: Config, topology: str | None, mfu: str | None, *, quick: bool, json: bool) -> int:
    """Plans a config's run, prints the plan; its progress goes to the standard error.

    Args:
      config: of the run.
      topology, mfu: as they were typed; see `search.planning.asked`.
      quick: not to look for the most lanes that fit.
      json: to print JSON.

    Returns:
      The exit code: 0 if it fits, 1 if not.
    """
    found = planning.plan_run(
        config,
        *planning.asked(topology, mfu),
        most=not quick,
        report=lambda doing: print(f"{doing} ...", file=sys.stderr, flush=True),
    )
    print(as_json(found)) if json else show(found)
    return 0 if found.fits else 1


def show(plan: Plan, *, console: Console | None = None) -> None:
    """Prints it: what fits, in bytes; what a step costs; what chips say to one another; the mesh."""
    console = console or Console(highlight=False)
    chip, work = plan.topology.chip, plan.work
    console.print(
        f"[bold]{plan.topology.name}[/bold] ({plan.topology.cloud}): {plan.topology.chips} chips of "
        f"{written(chip.memory)}, mesh {_mesh(plan.mesh)}; {work.lanes} lanes, "
        f"{-(-work.lanes // plan.mesh['lane'])} a chip, {work.trained:,} parameters of each train"
        + (f", {work.frozen:,} are shared." if work.frozen else ".")
    )
    console.print(_memory(plan))
    for line in _costs(plan):
        console.print(line)
    console.print(_traffic(plan))
    for line in _advice(plan):
        console.print(line)


def _memory(plan: Plan) -> Table:
    table = Table("a chip holds", "bytes", "of its HBM", box=None, pad_edge=False)
    limit = plan.topology.chip.memory
    if plan.usage is None:
        table.add_row("more than the compiler lets pass", f"> {written(limit)}", "> 100 %")
        return table
    named = {
        "arguments (weights, moments, data)": plan.usage.arguments,
        "temporaries (activations, gradients)": plan.usage.temporaries,
        "results beside them": plan.usage.results,
        "program": plan.usage.program,
        "in all": plan.usage.total,
    }
    for name, size in named.items():
        if size >= 2**16:
            table.add_row(name, written(size), f"{100 * size / limit:.1f} %")
    if plan.measured is not None:
        name, much = f"while they are measured on {plan.measured.prompts} prompts", plan.measured.bytes
        if much is None:
            table.add_row(name, f"> {written(limit)}", "> 100 %")
        else:
            table.add_row(name, written(much), f"{100 * much / limit:.1f} %")
    return table


def _costs(plan: Plan) -> Iterator[str]:
    chip, lanes = plan.topology.chip, plan.work.lanes
    each = _count(plan.flops / plan.topology.chips)
    yield (
        f"A step of all lanes takes {_count(plan.flops)}FLOP, {each}FLOP a chip, counted from the shape; "
        f"the compiler, without loops, counts {plan.compiler_flops:.2f} times that."
    )
    if plan.time is None or plan.dollars is None:
        return
    compute, memory, network = plan.time
    yield (
        f"Estimated: {_seconds(plan.time.step)} a step, {lanes / plan.time.step:,.0f} lane-steps a second, "
        f"bound by {plan.time.bound}: {_seconds(compute)} for operations at {100 * plan.mfu:g} % of "
        f"{chip.flops / 1e12:g} TFLOP/s, {_seconds(memory)} for HBM, {_seconds(network)} of links."
    )
    yield (
        f"A million lane-steps: ${plan.dollars:,.2f} at ${chip.dollars:.2f} a chip-hour "
        f"(list price of {PRICES_OF}, on demand)."
    )


def _traffic(plan: Plan) -> str | Table:
    if plan.usage is None:
        return ""
    if not plan.traffic:
        return "Chips say nothing to one another: no collective along any axis."
    table = Table("along", "collective", "a step", "bytes a chip, a step", box=None, pad_edge=False)
    for each in plan.traffic:
        table.add_row(each.axes, each.kind, f"{each.times:g}", written(int(each.bytes)))
    silent = [axis for axis, size in plan.mesh.items() if size > 1 and _says_nothing(plan, axis)]
    table.caption = f"Nothing along {', '.join(silent)}." if silent else None
    table.caption_justify = "left"
    return table


def _says_nothing(plan: Plan, axis: str) -> bool:
    return all(axis not in each.axes.split("+") for each in plan.traffic)


def _advice(plan: Plan) -> Iterator[str]:
    limit = plan.topology.chip.memory
    if plan.fits:
        yield f"[green]It fits.[/green]{_bound(plan.measured is not None, plan.memory_bound)}"
    else:
        yield "[red]It does not fit.[/red]"
        if plan.usage is not None and plan.usage.total <= limit:
            yield "It could be trained, but not measured: lower population.lanes or evaluation.prompts."
    most = plan.most
    if most is not None and most.lanes and most.usage is not None:
        refused = f"; {most.refused} did not fit" if most.refused else ""
        measured = f" to train, {written(most.measured)} to measure" if most.measured is not None else ""
        yield (
            f"Most lanes: {most.lanes}, compiled: {_of(most.usage, limit)}{measured}{refused} "
            f"(population.lanes={most.lanes}).{_bound(most.measured is not None, most.bound)}"
        )
    elif most is not None:
        yield "Not even one lane a chip fits: lower population.batch or raise population.accumulate."
    mesh = plan.suggestion.mesh
    if mesh == plan.mesh:
        yield f"The mesh is the one that would be suggested: {plan.suggestion.reason}."
        return
    usage = plan.suggestion.usage
    proved = "" if usage is None else f" Compiled for it: {_of(usage, limit)}."
    yield f"Suggested: 'population.mesh={_mesh(mesh)}': {plan.suggestion.reason}.{proved}"


def _bound(measured: bool, kind: str) -> str:
    return f" Memory is bound by {kind} them." if measured else ""


def _of(usage: Usage, limit: int) -> str:
    return f"{written(usage.total)} of {written(limit)}"


def _mesh(mesh: dict[str, int]) -> str:
    return "{" + ", ".join(f"{axis}: {size}" for axis, size in mesh.items()) + "}"


def _count(number: float) -> str:
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e6:.3g} M"


def _seconds(time: float) -> str:
    return f"{time:.3g} s" if time >= 1 else f"{1e3 * time:.3g} ms"


def as_json(plan: Plan) -> str:
    """All of it as a JSON object: bytes, operations and seconds as plain numbers."""
    chip, work = plan.topology.chip, plan.work

    def usage(of: Usage | None) -> Any:
        return None if of is None else {**of._asdict(), "total": of.total}

    most, suggestion = plan.most, plan.suggestion
    said = {
        "topology": plan.topology.name,
        "accelerator_type": plan.topology.cloud,
        "chips": plan.topology.chips,
        "mesh": plan.mesh,
        "lanes": work.lanes,
        "parameters": {"trained": work.trained, "frozen": work.frozen},
        "batch": work.step.batch,
        "tokens": {"prompt": work.prompts, "completion": work.tokens},
        "chip": {"memory": chip.memory, "flops": chip.flops, "dollars_an_hour": chip.dollars},
        "prices_of": PRICES_OF,
        "fits": plan.fits,
        "bytes_a_chip": usage(plan.usage),
        "measuring": None if plan.measured is None else plan.measured._asdict(),
        "memory_bound": plan.memory_bound,
        "flops_a_step": plan.flops,
        "compiler_flops_over_ours": plan.compiler_flops,
        "compiler_flops_a_chip": plan.compiled_flops,
        "mfu": plan.mfu,
        "seconds_a_step": None if plan.time is None else {**plan.time._asdict(), "step": plan.time.step},
        "bound": None if plan.time is None else plan.time.bound,
        "dollars_a_million_lane_steps": plan.dollars,
        "collectives": [each._asdict() for each in plan.traffic],
        "most": None
        if most is None
        else {
            "lanes": most.lanes,
            "bytes_a_chip": usage(most.usage),
            "measuring": most.measured,
            "memory_bound": most.bound,
        },
        "suggestion": {**suggestion._asdict(), "usage": usage(suggestion.usage)},
    }
    return dumps(said, indent=2)
