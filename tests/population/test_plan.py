"""Plans without libtpu: the arithmetic, and the search for the most lanes, on a CPU's own programs."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from discojax.config import load
from discojax.policies.architecture import DecoderConfig
from discojax.policies.lora import LoraConfig
from discojax.policies.published import PUBLISHED
from discojax.population import memory, plan_costs
from discojax.population import plan as plans
from discojax.population.memory import Usage
from discojax.population.mesh import make_mesh
from discojax.population.plan import Measured, suggest_mesh
from discojax.population.plan_costs import Time
from discojax.population.step import StepConfig
from discojax.population.topology import CHIPS, Topology, find_topology
from discojax.population.work import Work
from discojax.search import planning

TINY = Work(
    DecoderConfig(vocab_size=64, layers=2, width=32, heads=2, max_length=16, attention="xla"),
    None, StepConfig(batch=4, chunk=2, implementation="map"), lanes=4, prompts=5, tokens=6, pairs=20,
)  # fmt: skip
GEMMA = Work(
    replace(PUBLISHED["google/gemma-7b"], scan=True, remat="block", attention="xla"),
    LoraConfig(rank=16), StepConfig(batch=16, chunk=1, implementation="vmap", dtype="bfloat16"),
    lanes=8, prompts=257, tokens=256, pairs=2000,
)  # fmt: skip


def test_a_plan_takes_shapes_and_no_weights():
    before = {id(array) for array in jax.live_arrays()}
    assert GEMMA.frozen == 8_537_680_896 and GEMMA.trained == 28 * 16 * (3072 + 4096) * 2
    assert GEMMA.data.chosen_ids.shape == (2000, 513)
    assert {id(array) for array in jax.live_arrays()} <= before


@pytest.mark.parametrize(
    ("work", "topology", "mesh", "reason"),
    [
        (replace(TINY, lanes=512), "v5e-16", (16, 1, 1), "says nothing to another"),
        # Eight lanes on sixty-four chips of 95 GiB, which hold the base whole.
        (GEMMA, "v5p-128", (8, 8, 1), "8 chips share a lane's batch"),
        (GEMMA, "v5e-16", (4, 1, 4), "`model` divides them"),
        (replace(GEMMA, lora=None), "v5p-128", (8, 2, 4), "more than half of it"),
        (replace(GEMMA, lora=None, lanes=64), "v5e-16", (1, 1, 16), "fewer lanes, or a larger slice"),
        # A batch of four pairs is divided over four devices and no more, so lanes have the others.
        (replace(TINY, lanes=1), "v5e-4", (1, 4, 1), "fewer lanes than chips"),
    ],
)
def test_the_mesh_that_is_suggested_divides_no_more_than_it_must(work, topology, mesh, reason):
    suggestion = suggest_mesh(work, find_topology(topology))
    assert tuple(suggestion.mesh.values()) == mesh
    assert reason in suggestion.reason


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, targets=(".*",))], ids=["all", "adapters"])
def test_operations_are_the_compilers_where_nothing_loops(lora):
    work = replace(TINY, policy=replace(TINY.policy, width=128, heads=4, layers=3), lora=lora)
    ours = work.flops(causal=False, sharing=False)
    # It counts norms, activations, softmax and the optimiser too, and leaves out what no gradient needs:
    # with adapters that of the lowest layer's input.
    assert 0.98 <= plan_costs.compiler_flops(work) / ours < 1.25
    assert work.flops() < ours


def test_a_prompt_that_two_completions_share_is_counted_once():
    work = replace(TINY, prompts=9)
    alone = replace(work, tokens=1)  # its one completion token is predicted and never read
    assert 2 * alone.flops() == pytest.approx(alone.flops(sharing=False), rel=0.15)
    saved = work.flops(sharing=False) - work.flops()
    assert saved == 3 * work.step.batch * (2 * 9 * 2 * 12 * 32 * 32 + 2 * 4 * 32 * (9 * 10 // 2))


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that takes no time: `compiler(bytes_of)(limit)` is the most lanes of it."""

    def stand_in(bytes_of, measured_of=None, shards=2, lanes=8):
        def compile_step(programs, data):
            needed = bytes_of(programs.lanes // shards)
            return None if needed is None else (None, Usage(needed, 0, 0, 0))

        def measuring_memory(programs, data, measuring, prompts):
            return measured_of(programs.lanes // shards)

        monkeypatch.setattr(plans, "measuring_memory", measuring_memory)
        monkeypatch.setattr(plans, "compile_step", compile_step)
        monkeypatch.setattr(memory, "compile_step", compile_step)

        def of_lanes(lanes):
            return SimpleNamespace(
                lanes=lanes, of_lanes=of_lanes, mesh=SimpleNamespace(shape={"lane": shards})
            )

        programs = of_lanes(lanes)
        found = compile_step(programs, None)
        measured = measuring = None
        if measured_of is not None:
            measured, measuring = Measured(12, measured_of(lanes // shards)), (None, 12)
        return lambda limit: plans._most(
            programs, None, limit, found and found[1], measured, measuring, lambda doing: None
        )

    return stand_in


@pytest.mark.parametrize(
    ("bytes_of", "limit", "most", "refused"),
    [
        # Beyond the eight asked for, at 97 % of the limit; fewer than those; none.
        (lambda lanes: 1000 + 100 * lanes, 9800, 170, None),
        (lambda lanes: 1000 + 100 * lanes, 1350, 6, 8),
        (lambda lanes: 1000 + 100 * lanes, 1050, 0, 8),
        # Above the line that few lanes are on: the guess is refused, and the next one is not.
        (lambda lanes: 1000 + 100 * lanes + 4 * lanes**2, 20_000, 58, 296),
        # What takes too much the compiler refuses without saying how much.
        (lambda lanes: 1000 + 100 * lanes if lanes < 80 else None, 9800, 152, 170),
    ],
)
def test_the_most_lanes_are_found_and_compiled(compiler, bytes_of, limit, most, refused):
    found = compiler(bytes_of)(limit)
    assert (found.lanes, found.refused) == (most, refused)
    assert found.lanes == 0 or bytes_of(found.lanes // 2) == found.usage.total <= limit
    assert found.lanes % 2 == 0
    if refused is None:
        assert found.refused is None
    else:
        more = bytes_of(found.refused // 2)
        assert more is None or more > limit


@pytest.mark.parametrize(
    ("measured_of", "most", "refused"),
    [
        (lambda lanes: 500 + 100 * lanes, 170, None),  # less than what training takes
        (lambda lanes: 200 * lanes, 92, 170),  # more: of 85 lanes a shard 46 are measured
        (lambda lanes: 200 * lanes if lanes < 60 else None, 88, 170),  # refused without a number
        (lambda lanes: 3000 * lanes, 6, 8),  # not even those that were asked for
        (lambda lanes: None, 0, 2),
    ],
)
def test_no_more_lanes_are_promised_than_can_be_measured(compiler, measured_of, most, refused):
    limit = 9800
    found = compiler(lambda lanes: 1000 + 100 * lanes, measured_of)(limit)
    assert (found.lanes, found.refused) == (most, refused)
    assert found.measured == (measured_of(most // 2) if most else None)
    if most:
        assert found.measured <= limit and found.usage.total <= limit


def test_where_no_lane_was_compiled_yet_there_is_none(compiler):
    assert compiler(lambda lanes: None)(10**6) == plans.Most(0, None, 8)


@pytest.mark.slow
def test_the_most_lanes_that_fit_are_found_with_a_real_compiler():
    programs = TINY.programs(make_mesh(1, among=jax.devices()[:1]))
    needed = {lanes: memory.needed_memory(programs.of_lanes(lanes), TINY.data) for lanes in (4, 9)}
    limit = int(needed[9] / plans._AIM) + 1
    told = []
    most = plans._most(programs, TINY.data, limit, Usage(needed[4], 0, 0, 0), None, None, told.append)
    assert most.lanes == 9 and most.usage.total == needed[9] <= limit
    assert told[-1] == "compiling 9 lanes, the most that should fit"


def test_a_plan_says_what_the_compiled_program_takes(monkeypatch):
    """The whole of it, for a chip that is this machine's processor with a little memory."""
    monkeypatch.setattr(plans, "compile_devices", lambda topology: jax.devices()[:1])
    chip = replace(CHIPS[1], memory=2**20)
    work = replace(TINY, step=replace(TINY.step, implementation="vmap"))  # without a loop to look into
    found = plans.plan(work, Topology(chip, (1, 1)), (0, 1, 1), mfu=0.5, most=False)
    assert not found.fits and found.usage.total > 2**20 and found.mesh == {"lane": 1, "data": 1, "model": 1}
    assert replace(found, topology=Topology(CHIPS[1], (1, 1))).fits
    state = 3 * 4 * TINY.trained * TINY.lanes
    assert state < found.usage.arguments < 1.2 * state
    assert found.traffic == () and found.most is None and "no mesh of this slice" in found.suggestion.reason
    assert found.flops == 4 * TINY.flops()
    assert found.time.compute == found.flops / (0.5 * 197e12) and found.time.network == 0
    assert found.time.memory > state / chip.bandwidth
    assert found.dollars == pytest.approx(1e6 / 4 * found.time.step / 3600 * 1.20)


@pytest.mark.slow
def test_a_plan_asks_what_measuring_takes_and_a_slice_without_room_for_it_does_not_fit(monkeypatch):
    monkeypatch.setattr(plans, "compile_devices", lambda topology: jax.devices()[:1])
    config = load(None, ["policy.layers=1", "policy.width=32", "policy.heads=2", "policy.vocab_size=256",
                         "population.lanes=2", "population.chunk=1", "task.pairs=64",
                         "task.completion_tokens=4", "evaluation.prompts=2048"])  # fmt: skip
    work, sizes = planning.work_of(config, 1)
    measuring = planning._measuring(config, work)
    assert measuring[1] == 2048

    def on(memory):
        chip = replace(CHIPS[1], memory=memory)
        return plans.plan(work, Topology(chip, (1, 1)), sizes, measuring=measuring, most=False)

    roomy = on(2**40)
    assert roomy.fits and roomy.measured.prompts == 2048
    assert roomy.measured.bytes > 2 * 4 * 2 * work.trained, "two moments of each lane are beside it"
    assert roomy.measured.bytes > roomy.usage.total, "so many prompts take more than a step"
    tight = on(roomy.measured.bytes - 1)
    assert tight.usage == roomy.usage and not tight.fits
    assert on(roomy.usage.total - 1).measured is None, "what cannot be trained need not be measured"


def test_a_step_takes_as_long_as_what_takes_longest():
    time = Time(compute=1.0, memory=3.0, network=2.0)
    assert (time.step, time.bound) == (3.0, "memory")
