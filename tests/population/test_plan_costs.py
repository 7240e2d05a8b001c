"""What a loop's body reads and writes counts as often as the loop turns."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from discojax.policies.architecture import DecoderConfig
from discojax.policies.lora import LoraConfig
from discojax.population import memory, plan_costs
from discojax.population.mesh import make_mesh
from discojax.population.step import StepConfig
from discojax.population.work import Work

PLAIN = Work(
    DecoderConfig(vocab_size=64, layers=4, width=32, heads=2, max_length=16, attention="xla"),
    None, StepConfig(batch=16, chunk=1, implementation="vmap"), lanes=6, prompts=5, tokens=6, pairs=20,
)  # fmt: skip
MESH = SimpleNamespace(shape={"lane": 2, "data": 2, "model": 1})
WEIGHTS, ROW, LOGIT, WHOLE = 10**6, 10**4, 50_000, 7  # bytes of a layer, of its pair, of a token, and once


def reads(work, *, whole=False):
    """Bytes of a step on a chip of MESH, of a program that reads what it says and counts a body once."""
    looped = not whole
    step = work.step
    rows, lanes = step.batch // (2 * step.accumulate), work.lanes // 2
    tokens = 2 * work.tokens * rows
    layers = 1 if looped and work.policy.scan else work.policy.layers
    logits = min(tokens, step.block or tokens) if looped else tokens
    part = layers * (WEIGHTS + ROW * rows) + LOGIT * logits + WHOLE
    lanes = 1 if looped and step.implementation == "map" else lanes
    return lanes * ((1 if looped else step.accumulate) * part + plan_costs._UPDATE * work.trained)


def refusing(work):
    return None


@pytest.fixture
def compiler(monkeypatch):
    """`compiler(work)`: what is said to be moved, and how many programs were compiled to say it."""

    def stand_in(work, usual=reads):
        asked = []

        def analysed(bytes_accessed):
            return SimpleNamespace(cost_analysis=lambda: {"bytes accessed": bytes_accessed})

        def compile_step(programs, data):
            asked.append(programs.work)
            found = usual(programs.work)
            return None if found is None else (analysed(found), None)

        monkeypatch.setattr(
            Work,
            "programs",
            lambda self, mesh: SimpleNamespace(work=self, mesh=mesh, config=self.step, lanes=self.lanes),
        )
        monkeypatch.setattr(plan_costs, "compile_step", compile_step)
        found = plan_costs.moved(work, work.programs(MESH), analysed(reads(work)), lambda doing: None)
        return found, asked

    return stand_in


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        ({"scan": True}, {}),
        ({}, {"implementation": "map"}),
        ({}, {"accumulate": 4}),
        ({"scan": True}, {"accumulate": 2, "implementation": "map"}),
        ({}, {"block": 8}),
        ({"vocab_size": 2**20, "scan": True}, {"block": 8}),  # so few pairs' logits are had at once
    ],
    ids=["layers", "lanes", "parts", "three of them", "logits", "many logits"],
)
def test_a_loop_reads_and_writes_as_often_as_it_goes_round(compiler, policy, step):
    work = replace(PLAIN, policy=replace(PLAIN.policy, **policy), step=replace(PLAIN.step, **step))
    truth = reads(work, whole=True)
    found, asked = compiler(work)
    assert asked and truth - reads(work) > WEIGHTS, "the compiler's own count is too low"
    assert found == pytest.approx(truth, rel=1e-9)
    for each in asked:  # no program whose logits are too many
        held = 4 * each.policy.vocab_size * each.step.block * each.lanes // 2
        assert held <= plan_costs._LOGITS or each.step.batch == 2 * 2 * each.step.accumulate


def test_without_a_loop_nothing_more_is_compiled(compiler):
    assert compiler(PLAIN) == (reads(PLAIN), [])
    assert reads(PLAIN) == reads(PLAIN, whole=True)


def test_adapters_are_updated_once_and_not_their_base(compiler):
    work = replace(PLAIN, lora=LoraConfig(rank=4), step=replace(PLAIN.step, accumulate=4))
    assert work.trained < PLAIN.trained
    assert compiler(work)[0] == pytest.approx(reads(work, whole=True), rel=1e-9)


def test_where_the_compiler_refuses_to_be_without_loops_the_compiled_count_stands(compiler):
    work = replace(PLAIN, policy=replace(PLAIN.policy, scan=True))
    found, asked = compiler(work, refusing)
    assert asked and found == reads(work)


@pytest.mark.slow
def test_a_real_compilers_count_of_a_loop_over_layers_is_that_without():
    counted = {}
    for scan in (True, False):
        step = replace(PLAIN.step, batch=4)
        work = replace(PLAIN, policy=replace(PLAIN.policy, scan=scan), step=step, lanes=1)
        programs = work.programs(make_mesh(1, among=jax.devices()[:1]))
        compiled, _ = memory.compile_step(programs, work.data)
        moved = plan_costs.moved(work, programs, compiled, lambda doing: None)
        counted[scan] = compiled.cost_analysis()["bytes accessed"], moved
    loop, plain = counted[True], counted[False]
    assert plain[0] == plain[1] and loop[0] < 0.9 * plain[0]  # weights and moments are most of it
    assert loop[1] == pytest.approx(plain[0], rel=0.05)
