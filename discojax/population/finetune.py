"""One policy to its last step: a population of one lane that is kept on disk and goes on where it was.

The order of the data is a function of seed and step, so weights, moments and the step are all there
is to keep: on one device a run that was stopped ends with the bits that it would have had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from discojax.errors import UserError
from discojax.population.checkpoint import Held
from discojax.population.lanes import Job, LaneState, stack_jobs
from discojax.population.operations import Advance, Begin, Restore, Save, Station, perform
from discojax.population.stopping import Stopped, deferred

__all__ = ["Step", "Stopped", "finetune"]


class Step(NamedTuple):
    """What one call to the device did: the step it came to, and means over the steps it took."""

    step: int
    loss: float
    margin: float
    accuracy: float
    grad_norm: float


def finetune(
    station: Station,
    job: Job,
    *,
    every: int,
    report: Callable[[Step], None] = lambda step: None,
) -> LaneState:
    """Trains one policy, from where a former process left it if the station has a checkpoint of that.

    Args:
      station: of one lane, which begins `once`.
      job: what to train.
      every: steps between two times that it is kept.
      report: told after every call to the device.

    Raises:
      UserError: what is kept is of another run, or training diverged.
      Stopped: after Ctrl-C or SIGTERM, when the state has been kept.
    """
    state, step = _begun(station)
    settings = stack_jobs([job])
    with deferred() as deferral:
        while step < job.steps:
            state, advanced = perform(station, state, Advance(settings))
            before, step = step, int(advanced.step[0])
            if advanced.diverged[0]:
                raise UserError(
                    f"Training diverged at step {before}: its loss or gradient was not finite. Lower the "
                    "learning rate or beta; what was kept before it is in the run's folder."
                )
            report(Step(step, *(advanced.sums[1:5, 0] / max(step - before, 1)).tolist()))
            stop = deferral.asked()
            due = step // every > before // every or step >= job.steps
            if station.checkpoints is not None and (due or stop is not None):
                held = Held(("policy",), settings, advanced.step, advanced.sums.T)
                state, _ = perform(station, state, Save(held, last=stop is not None))
            if stop is not None:
                raise stop
    return state


def _begun(station: Station) -> tuple[LaneState, int]:
    """The state to go on from, and its step."""
    kept = station.checkpoints
    if kept is None or not kept.left():
        return perform(station, None, Begin())[0], 0
    state, held = perform(station, None, Restore())
    if held is not None:
        return state, int(held.step[0])
    if kept.foreign:
        raise UserError(
            f"What is kept in {kept.directory} is of other settings, data, weights or another objective than "
            "are given now: give the same ones, or another run.name."
        )
    return state, 0
