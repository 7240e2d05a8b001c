"""Checkpoints of lanes in training, so that a run that is stopped loses no more than the last minute.

A checkpoint holds what lanes are (weights, optimisers, steps) and what the host knows of them: whose
job each is in, its orders, the sums of its metrics. Which pairs a lane sees next is a function of its
seed and step, and nothing else is random, so there is no cursor and no generator to keep.

It only ever saves work. Which results there are the archive says: a job that it lacks is asked for
again, and goes on in the lane that was in it (`population.seating`); a lane nobody asks for is free. So
the two agree after any crash, whichever of them is the newer.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jaxtyping import Float, Int, UInt32

from discojax.population.engine import Engine
from discojax.population.lanes import LaneSettings, LaneState, idle_settings
from discojax.population.placement import fetch, lane_shardings

__all__ = ["Checkpoints", "Held", "fingerprint"]

_BUSY = 9  # a save that blocked for a second is followed by at least nine without one


class Held(NamedTuple):
    """What the host knows of every lane.

    Attributes:
      owners: the name of the job that each lane is in; "" for a free one.
      settings: their orders.
      step: steps taken.
      totals: sums of `StepMetrics` since each one's job began.
    """

    owners: tuple[str, ...]
    settings: LaneSettings
    step: Int[np.ndarray, " lanes"]
    totals: Float[np.ndarray, "lanes metrics"]


class Checkpoints:
    """The checkpoints of a run, written in the background by Orbax while lanes train on.

    In a job of many processes all of them make the same calls in the same order, and see one folder.

    Args:
      directory: where they are: a path, or gs://BUCKET/PATH.
      interval: seconds between two, or ten times as long as one holds lanes up, where that is more; 0 keeps
        lanes only when the run is stopped.
      keep: how many there are; older ones are deleted.
      say: told in a sentence what the user should know.

    Attributes:
      foreign: whether `restore` found checkpoints of another identity.
    """

    def __init__(
        self, directory: str, *, interval: float = 60.0, keep: int = 2, say: Callable[[str], None] = print
    ):
        self.directory = directory if "://" in directory else os.path.abspath(directory)
        self.interval, self.keep, self.say = interval, keep, say
        self._next = time.monotonic() + interval
        self._orbax: Any = None
        self._hopeless = False
        self.foreign = False  # whether what is there was found to be of other work
        self._spent = False  # whether what a former process left has been made use of

    def left(self) -> bool:
        """Whether there may be lanes that a former process left, and nothing has been made of them."""
        return not self._spent and self._exist()

    def due(self) -> bool:
        """Whether it is time for the next one. False while one is being written."""
        if not self.interval or time.monotonic() < self._next:
            return False
        return self._orbax is None or not self._orbax.is_saving_in_progress()

    def save(self, state: LaneState, held: Held, identity: str, *, last: bool = False) -> None:
        """Starts to write a checkpoint, and returns as soon as `state` may change again.

        One that cannot be written is told, and training goes on without.

        Args:
          state: of the lanes.
          held: what else there is to know of them.
          identity: of all that the lanes' work depends on and their jobs do not say.
          last: whether the process is about to end; it returns when everything is written.
        """
        started = time.monotonic()
        self._spent = True
        orbax = self._open()
        if orbax is None:
            return
        marks = fetch(_fingerprint(state))
        try:
            parts = {"lanes": _named(state), "host": _pack(held, identity, marks)}
            number = 1 + (orbax.latest.step if orbax.latest else -1)
            orbax.save_checkpointables_async(number, parts, force=True)
            if last:
                orbax.wait()
        except Exception as error:  # a full disk, a network that is away
            self.say(f"The lanes in training could not be kept in {self.directory} ({_short(error)}).")
        # From one to the next the interval is, however long the first held lanes up, but for its share.
        now = time.monotonic()
        self._next = max(started + self.interval, now + _BUSY * (now - started))

    def restore(self, engine: Engine, identity: str) -> tuple[LaneState, Held] | None:
        """The lanes of the newest whole checkpoint that a former process left, on this one's devices.

        They may have been saved on another mesh, by another number of processes, as another number of
        lanes. Where there are fewer lanes now, those that have come furthest are kept. What cannot be
        read, or is not what was written, is told, and the one before it is taken.

        Returns:
          None if there is none with this identity.
        """
        orbax = self._open()
        if orbax is None:
            return None
        for checkpoint in reversed(orbax.checkpoints):
            try:
                found = _load(str(checkpoint.path), engine, identity)
            except Exception as error:  # Orbax, TensorStore, zipfile and JSON each have their own
                self.say(
                    f"Checkpoint {checkpoint.step} in {self.directory} is damaged ({_short(error)}); "
                    "the one before it is taken, if there is one."
                )
                continue
            if found is not None:
                self._spent = True
                return found
            self.foreign = True
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        if self._orbax is None:
            return
        orbax, self._orbax = self._orbax, None
        try:
            orbax.close()
        except Exception as error:
            self.say(f"The lanes in training could not be kept in {self.directory} ({_short(error)}).")

    def clear(self) -> None:
        """Deletes all of them, once nothing is in training any more."""
        self.close()
        if self._exist() and jax.process_index() == 0:
            from etils import epath

            epath.Path(self.directory).rmtree(missing_ok=True)

    def _exist(self) -> bool:
        from etils import epath

        return bool(epath.Path(self.directory).exists())

    def _open(self) -> Any:
        """Orbax, imported only by a run that is long enough to need it; None where it cannot work."""
        if self._orbax is None and not self._hopeless:
            from orbax.checkpoint import v1 as orbax

            training, context = orbax.training, orbax.Context()
            context.array.saving.use_compression = False  # weights hardly shrink, and lanes need the cores
            try:
                self._orbax = training.Checkpointer(
                    self.directory,
                    context=context,
                    save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
                    preservation_policy=training.preservation_policies.LatestN(self.keep),
                    cleanup_tmp_directories=True,
                )
            except Exception as error:
                self._hopeless = True
                self.say(f"Lanes in training cannot be kept in {self.directory} ({_short(error)}).")
        return self._orbax


def fingerprint(state: LaneState) -> UInt32[Array, " lanes"]:
    """A number for each lane that changes with any bit of it, the same on every mesh.

    Sums modulo 2^32 of all bits, weighted by their place: in whatever order devices add, it is equal.
    """

    def one(place: int, leaf: Array) -> UInt32[Array, " lanes"]:
        words = f"uint{8 * leaf.dtype.itemsize}"
        bits = leaf if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, words)
        weight, stride = jnp.uint32(place), 1
        for axis in range(leaf.ndim - 1, 0, -1):
            weight = weight + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
            stride = (stride * leaf.shape[axis]) & 0xFFFFFFFF
        weight = weight * jnp.uint32(2654435761) | jnp.uint32(1)  # odd: no bit is multiplied away
        return (bits.astype(jnp.uint32) * weight).sum(tuple(range(1, leaf.ndim)), dtype=jnp.uint32)

    leaves = jax.tree.leaves(state)
    return sum((one(7919 * i, leaf) for i, leaf in enumerate(leaves)), jnp.zeros((), jnp.uint32))


_fingerprint = jax.jit(fingerprint)


def _load(path: str, engine: Engine, identity: str) -> tuple[LaneState, Held] | None:
    """A checkpoint's lanes on the engine's devices; None if it is of something else.

    Raises:
      ValueError: it is not what was written. Orbax raises its own errors besides.
    """
    held, known, marks = _unpack(_read(path, {"host": None})["host"])
    if known != identity:
        return None
    programs, lanes = engine.programs, len(held.owners)
    fresh = jax.eval_shape(programs.fresh, programs.params)
    places = lane_shardings(programs.mesh, fresh)
    # As many lanes as were written, and so many empty ones that the devices divide them.
    shards = programs.mesh.shape["lane"]
    room = -(-lanes // shards) * shards
    like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct((room, *x.shape[1:]), x.dtype, sharding=place), fresh, places
    )
    parts = _read(path, {"lanes": _named(like)}, padded=room != lanes)
    state: LaneState = jax.tree.unflatten(
        jax.tree.structure(like), [parts["lanes"][name] for name in _named(like)]
    )
    if not np.array_equal(fetch(_fingerprint(state))[:lanes], marks):
        raise ValueError("its content is not what was written")
    rows = _rows(held, programs.lanes)
    if room == programs.lanes and np.array_equal(rows, np.arange(lanes)):
        return state, held
    return _take(engine, places)(state, engine.params, rows), _seated(held, rows)


def _rows(held: Held, lanes: int) -> Int[np.ndarray, " lanes"]:
    """The lane of the checkpoint that each lane is to be; -1 for none."""
    saved = len(held.owners)
    if saved <= lanes:
        return np.concatenate([np.arange(saved), np.full(lanes - saved, -1)]).astype(np.int32)
    busy = [lane for lane in range(saved) if held.owners[lane]]
    busy.sort(key=lambda lane: -held.step[lane])
    return np.asarray((busy + [-1] * lanes)[:lanes], np.int32)


def _take(engine: Engine, places: Any) -> Callable[[LaneState, Any, Any], LaneState]:
    def take(state: LaneState, params: Any, rows: Array) -> LaneState:
        def choose(old, new):
            known = (rows >= 0).reshape(-1, *(1,) * (old.ndim - 1))
            return jnp.where(known, jnp.take(old, jnp.maximum(rows, 0), axis=0), new)

        return jax.tree.map(choose, state, engine.programs.fresh(params))

    everywhere = NamedSharding(engine.programs.mesh, jax.P())
    weights = jax.tree.map(lambda x: x.sharding, engine.programs.params)
    return jax.jit(take, in_shardings=(places, weights, everywhere), out_shardings=places)


def _seated(held: Held, rows: Int[np.ndarray, " lanes"]) -> Held:
    def choose(old, new):
        known = (rows >= 0).reshape(-1, *(1,) * (old.ndim - 1))
        return np.where(known, old[rows], new)

    return Held(
        tuple(held.owners[row] if row >= 0 else "" for row in rows),
        jax.tree.map(choose, held.settings, idle_settings(len(rows))),
        choose(held.step, np.int32(0)),
        choose(held.totals, 0.0),
    )


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, which Orbax's own tools show too."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _read(path: str, parts: dict[str, Any], *, padded: bool = False) -> dict[str, Any]:
    from orbax.checkpoint import v1 as orbax

    context = orbax.Context()
    context.array.loading.enable_padding_and_truncation = padded
    with context:
        return orbax.load_checkpointables(path, parts)


def _pack(held: Held, identity: str, marks: UInt32[np.ndarray, " lanes"]) -> dict[str, np.ndarray]:
    """What the host knows, as one array of bytes; a zip file, which knows when it is damaged."""
    buffer = io.BytesIO()
    settings = {f"settings{i}": leaf for i, leaf in enumerate(jax.tree.leaves(held.settings))}
    np.savez_compressed(
        buffer, owners=np.asarray(held.owners), identity=np.asarray(identity), marks=marks,
        step=held.step, totals=held.totals, **settings,
    )  # fmt: skip
    return {"npz": np.frombuffer(buffer.getvalue(), np.uint8)}


def _unpack(packed: dict[str, np.ndarray]) -> tuple[Held, str, UInt32[np.ndarray, " lanes"]]:
    with np.load(io.BytesIO(np.asarray(packed["npz"]).tobytes()), allow_pickle=False) as file:
        arrays = dict(file)
    leaves, shape = jax.tree.flatten(idle_settings(1))
    settings = jax.tree.unflatten(shape, [arrays[f"settings{i}"] for i in range(len(leaves))])
    owners = tuple(str(owner) for owner in arrays["owners"])
    return Held(owners, settings, arrays["step"], arrays["totals"]), str(arrays["identity"]), arrays["marks"]


def _short(error: Exception) -> str:
    """An error's first line, as part of a sentence."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return text if len(text) < 160 else f"{text[:157]}..."
