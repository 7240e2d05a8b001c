"""What processes may say to one another: every message that there is, and nothing that runs."""

from __future__ import annotations

import os
import pickle
import zlib
from dataclasses import replace

import jax
import numpy as np
import pytest

from discojax import candidates, objectives
from discojax.config import Finetune, load
from discojax.data.pairs import Pairs
from discojax.policies.lora import LoraConfig
from discojax.policies.published import PUBLISHED
from discojax.population import hosts, operations
from discojax.population.checkpoint import Held
from discojax.population.lanes import Job, stack_jobs
from discojax.population.messages import pack, unpack
from discojax.population.step import StepConfig
from discojax.population.work import Work
from discojax.search import instruments, workbench
from discojax.search.planning import work_of
from discojax.tasks.types import Prompts, SamplingConfig


def called(module: str, name: str, *arguments: str) -> bytes:
    """A message that calls a function by its name, whatever pickle would make of that function."""

    def text(given: str) -> bytes:
        return b"\x8c" + bytes([len(given)]) + given.encode()

    given = b"(" + b"".join(map(text, arguments)) + b"t"
    return zlib.compress(b"\x80\x04" + text(module) + text(name) + b"\x93" + given + b"R.")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("discojax.population.hosts", "os.system"),  # what a module of ours imports
        ("discojax.population.hosts", "signal.raise_signal"),
        ("numpy.testing._private.utils", "runstring"),  # numpy runs text by exec
        ("numpy.testing", "rundocs"),
        ("discojax.launch", "main"),
        ("jax", "ShapeDtypeStruct.__init__"),
        ("builtins", "eval"),
    ],
)
def test_a_message_calls_nothing_that_runs(module, name, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    with pytest.raises(pickle.UnpicklingError, match=f"may not hold {module}.{name}"):
        unpack(called(module, name, "true"))
    assert ran == []


def test_of_types_it_names_that_of_none_alone():
    assert unpack(pack(type(None))) is type(None)
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        unpack(called("builtins", "type", "text"))


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b)


def test_every_message_arrives_as_it_was_sent():
    code = candidates.from_function(objectives.get("discopop")).code
    settings = stack_jobs([Job(code, 0.1, seed, 1e-3, 9) for seed in range(3)])
    some, many = np.array([True, False, True]), np.arange(3, dtype=np.int32)
    held = Held(("a", "", "b"), settings, many, np.zeros((3, 5)))
    shape = jax.ShapeDtypeStruct((2, 3), "bfloat16")
    pairs = Pairs(*(np.zeros((2, 3), np.int32),) * 5, np.zeros(2, np.float32), np.zeros(2, np.float32))
    goods = instruments._Goods(
        {"w": shape}, {}, pairs, pairs, {"search": Prompts(np.zeros((2, 3), np.int32), many[:2])}
    )
    work, _ = work_of(load(None, []), 1)
    design = instruments.Design(
        work.parts[0], work.step, SamplingConfig(5, 1), 3, 5, None, (1, 1, 1), margins=True
    )
    tuned = load(None, ["finetune.policy=gpt2", "finetune.data=rows.jsonl", "finetune.lora.rank=4"]).finetune
    assert isinstance(tuned, Finetune)
    sent = [
        operations.Begin(), operations.Reset(some), operations.Advance(settings),
        operations.Observe(some, many), operations.Save(held, True), operations.Restore(),
        hosts._Gift("task", goods, "content"), hosts._End(3),
        instruments.Open(design, "task", "search", 8, ("runs/x/checkpoints", 2), "identity"),
        instruments.Look("file"),
        workbench._Load(tuned, 0, "files"), workbench._Weigh(), workbench._Measure("pairs", 5),
        workbench._Prepare("pairs", 5, None, "identity"), workbench._Write("folder"),
    ]  # fmt: skip
    kinds = {type(message) for message in sent}
    assert kinds >= {*operations.Operation.__args__, *workbench.Order.__args__}, (
        "a new one is to be sent here"
    )
    for message in sent:
        arrived = unpack(pack(message))
        assert type(arrived) is type(message)
        if not isinstance(message, hosts._Gift):
            same(arrived, message)
    assert unpack(pack(sent[8])).design == design, "so that what is compiled is kept"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_policy_of_every_architecture_can_be_told_of(name):
    for scan, lora in ((True, None), (False, LoraConfig(2)), (True, LoraConfig(2, targets=(".*",)))):
        config = replace(PUBLISHED[name], layers=len(PUBLISHED[name].pattern), scan=scan, remat="block")
        work = Work(config, lora, StepConfig(dtype="bfloat16"), 1, 5, 6, 20)
        assert unpack(pack(work.parts[0])) == work.parts[0]
