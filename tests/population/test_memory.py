"""Lanes that do not fit are counted before anything is allocated."""

import re
from types import SimpleNamespace

import jax
import pytest

from discojax.errors import UserError
from discojax.population import make_engine
from discojax.population import memory as memories
from discojax.population.memory import available_memory, check_memory, needed_memory


@pytest.fixture(scope="module")
def needed(programs_of, setting):
    """Bytes of three and of four lanes, each asked of its own compiled step."""
    programs = programs_of()
    return {lanes: needed_memory(programs.of_lanes(lanes), setting.pairs) for lanes in (3, 4)}


def test_every_lane_takes_its_weights_and_moments_at_least(needed, setting):
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(setting.params))
    assert needed[4] - needed[3] >= 3 * weights
    assert needed[4] >= 4 * 3 * weights + weights  # and a gradient at least


def test_as_many_lanes_as_are_said_to_fit_do(needed, programs_of, setting):
    limit = needed[4] - 1
    with pytest.raises(UserError, match=r"4 lanes on 1 device\(s\) need .* MiB") as refused:
        check_memory(programs_of(), setting.pairs, limit)
    fitting = int(re.search(r"(\d+) would fit: set population.lanes=\1", str(refused.value))[1])
    assert fitting == 3 and needed[3] <= limit < needed[4]
    check_memory(programs_of(), setting.pairs, needed[4])


def test_lanes_that_are_said_to_fit_were_compiled_where_memory_is_no_line(monkeypatch, one_device):
    """GiB of a vmapped step, measured (vocabulary 50,257, 1,024 tokens a lane): six have shorter blocks."""
    needed = {1: 0.3, 2: 0.54, 3: 0.816, 4: 1.088, 5: 1.362, 6: 1.122, 7: 1.309, 8: 1.496}

    def of_lanes(lanes):
        return SimpleNamespace(lanes=lanes, mesh=one_device, of_lanes=of_lanes)

    monkeypatch.setattr(memories, "needed_memory", lambda programs, data: int(needed[programs.lanes] * 2**30))
    for gib, best in ((0.6, 2), (1.0, 3), (1.1, 4), (1.2, 6), (1.4, 7)):
        with pytest.raises(UserError, match="would fit") as refused:
            check_memory(of_lanes(8), None, int(gib * 2**30))
        fitting = int(re.search(r"(\d+) would fit", str(refused.value))[1])
        assert needed[fitting] <= gib and best - 1 <= fitting, gib


def test_where_not_one_fits_it_says_what_else_to_change(programs_of, setting):
    with pytest.raises(UserError, match=r"Not even one a device fits: lower population.batch, raise"):
        check_memory(programs_of(), setting.pairs, 2**16)


def test_nothing_is_allocated_before_lanes_are_refused(programs_of, setting):
    before = {id(array) for array in jax.live_arrays()}
    with pytest.raises(UserError, match="Not even one"):
        make_engine(programs_of(), setting.params, setting.pairs, memory=1000)
    assert {id(array) for array in jax.live_arrays()} <= before


def test_asking_compiles_nothing_that_training_would_not(programs_of, setting, run, job):
    """The step whose memory is asked is the one that trains."""
    programs = programs_of().of_lanes(2)
    compiled = []
    counting = True

    def listen(event, duration, **kwargs):
        if counting and "backend_compile" in event:
            compiled.append(kwargs.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run([job(steps=2)], programs)
    finally:
        counting = False
    assert sorted(name for name in compiled if "mapped" in name or "fresh" in name) == [
        "jit(fresh)",
        "jit(mapped)",
    ]


def test_an_accelerator_says_what_it_has():
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 123, "bytes_in_use": 5}

    class Mesh:
        local_devices = (Device(), Device())

    assert available_memory(Mesh()) == 123


def test_simulated_devices_share_the_machine(one_device):
    class Mesh:
        local_devices = one_device.local_devices * 8

    alone, shared = available_memory(one_device), available_memory(Mesh())
    assert 2**24 < shared < alone / 4


@pytest.mark.parametrize(("limit", "expected"), [("1000\n", 1000 - 700 + 100), ("600\n", 0), ("max\n", None)])
def test_a_container_may_have_less(tmp_path, limit, expected):
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert memories._free_in_group(tmp_path) == expected
    assert memories._free_in_group(tmp_path / "none") is None
