"""Checkpoints that Orbax itself writes to `gs://`, on a server of that protocol."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
from etils import epath

from discojax.population.checkpoint import Checkpoints, Held
from discojax.population.lanes import stack_jobs

_spec = importlib.util.spec_from_file_location("buckets", Path(__file__).parents[1] / "buckets.py")
assert _spec and _spec.loader
buckets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(buckets)


def test_lanes_go_to_a_bucket_and_come_back(engine, job):
    state = engine.programs.fresh(engine.params)
    jobs = stack_jobs([job("dpo", steps=9)] * 4)
    held = Held(("a", "b", "c", "d"), jobs, np.asarray(state.step), np.zeros((4, 5)))
    told = []
    with buckets.gs() as bucket:
        directory = f"{bucket}/runs/one/checkpoints"
        writer = Checkpoints(directory, keep=2, say=told.append)
        for _ in range(3):
            writer.save(state, held, "this run", last=True)
        writer.close()
        assert sorted(path.name for path in epath.Path(directory).iterdir()) == ["1", "2"]
        reader = Checkpoints(directory, say=told.append)
        assert reader.left()
        found, known = reader.restore(engine, "this run")
        reader.clear()
        assert not Checkpoints(directory).left()
    assert not told and known.owners == held.owners
    assert jax.tree.all(jax.tree.map(np.array_equal, found, state))
