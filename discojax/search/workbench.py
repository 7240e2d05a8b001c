"""One policy on the devices of all processes: read, measured, trained and written by all of them alike.

Each function here is done by every process at once. The one that leads tells the others of it, as
`population.operations` does, so it alone reads data, keeps a cache and decides what is next; the others
`follow` it. Weights are only ever divided: a host reads its own part of them, and has one tensor whole at
a time where they are hashed or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32

from discojax.config import Finetune
from discojax.data import cache, reference
from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.policies import peft, pretrained
from discojax.policies.decoder import Decoder
from discojax.policies.lora import LoraConfig, add_lora, merge_lora
from discojax.policies.partition import partition
from discojax.policies.pretrained.locating import locate
from discojax.policies.pretrained.reading import Pretrained
from discojax.population import hosts
from discojax.population.checkpoint import Checkpoints
from discojax.population.engine import make_engine, make_programs
from discojax.population.lanes import LaneState
from discojax.population.mesh import make_mesh
from discojax.population.operations import Operation, Station, perform
from discojax.population.placement import fetch, shardings
from discojax.population.step import cast
from discojax.search.instruments import reached
from discojax.search.steps import finetune_step, micro_batch

__all__ = ["Bench", "Order", "digests", "follow", "load", "logps", "make_one_mesh", "prepare", "write"]

Show = Callable[[int, int], None]


class _Load(NamedTuple):
    settings: Finetune
    seed: int
    files: str


class _Weigh(NamedTuple):
    pass


class _Measure(NamedTuple):
    pairs: str  # the name that they are given under
    tokens: int


class _Prepare(NamedTuple):
    pairs: str
    tokens: int
    kept: tuple[str, int] | None  # where checkpoints are, and how many
    identity: str


class _Write(NamedTuple):
    folder: str


Order: TypeAlias = _Load | _Weigh | _Measure | _Prepare | _Write


@dataclass(frozen=True)
class Bench:
    """A policy on the mesh, before and in training.

    Attributes:
      settings, seed: of the run.
      mesh: of all devices, all of one lane.
      loaded: the policy as it was read. Once it is prepared for training its weights are the engine's.
      graph: of the policy with its adapters, once it is prepared, and
      station: where it trains.
    """

    settings: Finetune
    seed: int
    mesh: Mesh
    loaded: Pretrained
    graph: nnx.GraphDef | None = None
    station: Station | None = None


def make_one_mesh(settings: Finetune) -> Mesh:
    """The mesh of one policy over the devices of all processes.

    Raises:
      UserError: the settings do not multiply to these, or have no equal share of a batch for each.
    """
    devices = jax.device_count()
    model = settings.model_devices or max(devices // settings.data_devices, 1)
    if settings.data_devices * model != devices:
        raise UserError(
            f"finetune.data_devices ({settings.data_devices}) times finetune.model_devices ({model}) is not "
            f"the {devices} devices that there are."
        )
    micro_batch(settings, devices)
    return make_mesh(1, settings.data_devices, model)


def load(settings: Finetune, seed: int, files: str | None = None) -> Bench:
    """Reads `settings.policy`; the adapters it will get are drawn from `seed`.

    Args:
      files: what the leader has of it, as it says itself.

    Raises:
      UserError: it cannot be had here, is no language model, or is another one than the leader's.
    """
    mesh, source = make_one_mesh(settings), locate(settings.policy, revision=settings.revision or None)
    here = _files(source)
    if files not in (None, here):
        raise UserError(f"{source} is not there what it is on the host of process 0: copy it from there.")
    hosts.tell(_Load(settings, seed, here))
    # Where all weights train they are float32 from the start; where they do not, as they compute.
    dtype = settings.dtype if settings.lora.rank else "float32"
    loaded = pretrained.load(
        source, dtype=dtype, sharding=lambda shapes: shardings(mesh, shapes), scan=True, remat=settings.remat,
        attention=settings.attention,
    )  # fmt: skip
    if not isinstance(loaded.policy, Decoder):
        raise UserError(f"{settings.policy} is a reward model, not a language model that can be trained.")
    return Bench(settings, seed, mesh, loaded)


def digests(bench: Bench) -> list[str]:
    """See `data.reference.digests`, of the policy as it was read."""
    hosts.tell(_Weigh())
    with hosts.guarded():
        return reference.digests(nnx.split(bench.loaded.policy)[1])


def logps(
    bench: Bench,
    state: LaneState | None,
    pairs: Pairs,
    tokens: int,
    progress: Show = lambda done, total: None,
) -> list[Float32[np.ndarray, " pairs"]]:
    """See `data.reference.pair_logps`, under the policy as it was read, or as it is in `state`."""
    if _leads():
        hosts.tell(_Measure(_given(pairs), tokens))
    graph, params = nnx.split(bench.loaded.policy)
    states: tuple[Any, ...] = (params,)
    if state is not None:
        assert bench.graph is not None and bench.station is not None
        graph, states = bench.graph, (_trained(bench, state), bench.station.engine.frozen)
    with hosts.guarded():
        return reference.pair_logps(
            pairs, graph, *states, tokens=tokens, dtype=bench.settings.dtype,
            rows=2 * micro_batch(bench.settings, bench.mesh.size) * bench.mesh.shape["model"],
            progress=progress,
        )  # fmt: skip


def prepare(bench: Bench, pairs: Pairs, tokens: int, checkpoints: Checkpoints | None, identity: str) -> Bench:
    """The bench with a station to train at, on pairs with reference log-probabilities.

    Args:
      tokens: the longest completion.
      checkpoints, identity: see `Station`.

    Raises:
      UserError: it does not fit into memory, or the adapters do not fit the policy.
    """
    if _leads():
        if checkpoints is not None and not reached(checkpoints):
            checkpoints = None
        kept = None if checkpoints is None else (checkpoints.directory, checkpoints.keep)
        hosts.tell(_Prepare(_given(pairs), tokens, kept, identity))
    graph, params, frozen = partition(_adapted(bench, bench.loaded.policy))
    programs = make_programs(
        graph, params, finetune_step(bench.settings, bench.mesh.size), lanes=1, tokens=tokens,
        prompts=int(pairs.prompt_length.max()), mesh=bench.mesh, frozen=frozen,
    )  # fmt: skip
    with _own_words():
        engine = make_engine(programs, params, pairs, frozen)
    station = Station(engine, checkpoints=checkpoints, identity=identity, once=True)
    loaded = replace(bench.loaded, policy=_shell(bench.loaded.policy))
    return replace(bench, loaded=loaded, graph=graph, station=station)


def write(bench: Bench, state: LaneState, folder: Path) -> None:
    """Writes the trained policy, or its adapters, as `settings.save` says.

    Raises:
      UserError: the folder cannot be written.
    """
    hosts.tell(_Write(str(folder)))
    assert bench.graph is not None and bench.station is not None
    loaded, trained, frozen = bench.loaded, _trained(bench, state), bench.station.engine.frozen
    with hosts.guarded():
        if bench.settings.save == "adapters":
            trained = fetch(trained)
            if jax.process_index() == 0:
                peft.save_adapters(replace(loaded, policy=nnx.merge(bench.graph, trained, frozen)), folder)
        elif bench.settings.lora.rank:
            # Onto the weights as they were stored, not as they were rounded to compute with.
            base = pretrained.load(
                loaded.source, sharding=lambda shapes: shardings(bench.mesh, shapes), scan=True
            )
            graph, _, frozen = partition(_adapted(bench, base.policy))
            merge = jax.jit(lambda *parts: nnx.split(merge_lora(nnx.merge(graph, *parts)))[1])
            shell = nnx.split(_shell(base.policy))[0]
            pretrained.save(replace(loaded, policy=nnx.merge(shell, merge(trained, frozen))), folder)
        else:
            stored = loaded.hf_config.get("dtype") or loaded.hf_config.get("torch_dtype") or "float32"
            policy = nnx.merge(bench.graph, cast(trained, str(stored)), frozen)
            pretrained.save(replace(loaded, policy=policy), folder)


def follow(
    bench: Bench | None,
    state: LaneState | None,
    message: Order | Operation,
    checkpoints: Callable[[tuple[str, int] | None], Checkpoints | None],
) -> tuple[Bench, LaneState | None]:
    """Does what the leader does; returns the bench and the state that there are then.

    Args:
      checkpoints: those of a place, of which there are so many.
    """
    if isinstance(message, _Load):
        return load(*message), None
    assert bench is not None
    with jax.set_mesh(bench.mesh):  # a program of another context is another program
        match message:
            case _Weigh():
                digests(bench)
            case _Measure(pairs, tokens):
                logps(bench, state, hosts.given(pairs), tokens)
            case _Prepare(pairs, tokens, kept, identity):
                return prepare(bench, hosts.given(pairs), tokens, checkpoints(kept), identity), None
            case _Write(folder):
                assert state is not None
                write(bench, state, Path(folder))
            case _:
                assert bench.station is not None
                state, _ = perform(bench.station, state, message)
    return bench, state


def _leads() -> bool:
    """Whether there are others, and this process tells them what to do."""
    return not hosts.alone() and jax.process_index() == 0


def _given(pairs: Pairs) -> str:
    """Gives the others these pairs; returns their name."""
    name = cache.content_hash(pairs._asdict())
    hosts.give(name, pairs)
    return name


def _files(source: Path) -> str:
    """Tells whether two hosts have the same policy, without reading all of it."""
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    config = source / "config.json"
    return cache.content_hash(
        {
            "config": config.read_bytes() if config.is_file() else b"",
            "sizes": [f.stat().st_size for f in files],
        }
    )


def _adapted(bench: Bench, policy: Any) -> Any:
    lora = bench.settings.lora
    if not lora.rank:
        return policy
    return add_lora(policy, LoraConfig(lora.rank, lora.alpha, lora.targets), nnx.Rngs(bench.seed))


def _shell(policy: Any) -> Any:
    return nnx.eval_shape(lambda: policy)


def _trained(bench: Bench, state: LaneState) -> Any:
    assert bench.station is not None
    places = jax.tree.map(lambda x: x.sharding, bench.station.engine.programs.params)
    return jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree), out_shardings=places)(state.params)


@contextmanager
def _own_words() -> Iterator[None]:
    """The engine advises a population; of one policy other settings are lowered."""
    try:
        yield
    except UserError as error:
        need, fault, _ = str(error).partition(" Not even one a device fits:")
        if not fault:
            raise
        raise UserError(
            f"{need.replace('1 lanes', 'One policy', 1)} Lower finetune.micro_batch or finetune.max_length, "
            "train adapters (finetune.lora.rank) in bfloat16, or divide it over more finetune.model_devices."
        ) from None
