"""One policy to its last step: a population of one lane that is kept on disk and goes on where it was.

The order of the data is a function of seed and step, so weights, moments and the step are all there
is to keep: on one device a run that was stopped ends with the bits that it would have had.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from discojax.errors import UserError
from discojax.policies import weights
from discojax.population.engine import Engine
from discojax.population.lanes import Job, LaneState, stack_jobs
from discojax.population.placement import lane_shardings
from discojax.population.stopping import Stopped, deferred

__all__ = ["Step", "Stopped", "finetune", "load_state", "save_state"]


class Step(NamedTuple):
    """What one call to the device did: the step it came to, and means over the steps it took."""

    step: int
    loss: float
    margin: float
    accuracy: float
    grad_norm: float


def finetune(
    engine: Engine,
    job: Job,
    *,
    file: Path,
    identity: str,
    every: int,
    report: Callable[[Step], None] = lambda step: None,
) -> LaneState:
    """Trains one policy, from `file` on if it is there.

    Args:
      engine: of one lane. Its weights that train are given up once the lane has its own.
      job: what to train.
      file: where the state is kept.
      identity: the content hash of all that the state depends on; a file of another one is refused.
      every: steps between two times that it is kept.
      report: told after every call to the device.

    Raises:
      UserError: the file is of another run or cannot be read, or training diverged.
      Stopped: after Ctrl-C or SIGTERM, when the state has been kept.
    """
    programs = engine.programs
    settings = stack_jobs([job])
    state = load_state(engine, file, identity) if file.exists() else programs.fresh(engine.params)
    jax.tree.map(lambda x: x.delete(), engine.params)
    step, kept = int(state.step[0]), -1
    with deferred() as deferral:
        try:
            while step < job.steps:
                state, metrics = programs.advance(state, settings, engine.frozen, engine.data)
                before, step = step, int(state.step[0])
                if bool(state.diverged[0]):
                    raise UserError(
                        f"Training diverged at step {before}: its loss or gradient was not finite. Lower the "
                        "learning rate or beta; what was kept before it is in the run's folder."
                    )
                _, *means = (float(x[0]) / max(step - before, 1) for x in metrics[:-1])
                report(Step(step, *means))
                if step // every > before // every or step == job.steps:
                    save_state(state, file, identity)
                    kept = step
                if (stop := deferral.asked()) is not None:
                    raise stop
        except KeyboardInterrupt as stop:
            if kept != step:
                save_state(state, file, identity)
            raise (stop if isinstance(stop, Stopped) else Stopped()) from None
    return state


def save_state(state: LaneState, file: Path, identity: str) -> None:
    """Keeps a state in one safetensors file: the old one is there until the new one is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        weights.save({"state": state, "identity": np.frombuffer(identity.encode(), np.uint8)}, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(engine: Engine, file: Path, identity: str) -> LaneState:
    """A kept state, on the devices.

    Raises:
      UserError: it is of another run, or cannot be read.
    """
    like = jax.eval_shape(engine.programs.fresh, engine.programs.params)
    mark = np.frombuffer(identity.encode(), np.uint8)
    kept = weights.load({"state": like, "identity": jax.ShapeDtypeStruct(mark.shape, mark.dtype)}, file)
    if bytes(kept["identity"]) != identity.encode():
        raise UserError(
            f"{file} is of other settings, data, weights or another objective than are given now: "
            "give the same ones, or another run.name."
        )
    places = lane_shardings(engine.programs.mesh, like)
    state: LaneState = jax.tree.map(jax.device_put, kept["state"], places)
    return state
