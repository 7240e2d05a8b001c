"""Checkpoints of lanes: what they hold, what damages them, and devices other than those that wrote them."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ports import free_port

from discojax.population import make_engine
from discojax.population.checkpoint import Checkpoints, Held, fingerprint
from discojax.population.lanes import idle_settings, stack_jobs
from discojax.population.order import batch_indices


@pytest.fixture(scope="module")
def jobs(job):
    """Four lanes' jobs; the last one diverges at once."""
    return [
        job("dpo", steps=9),
        job("ipo", seed=1, steps=9),
        job("slic", seed=2, steps=4),
        job("nan_at_half"),
    ]


@pytest.fixture(scope="module")
def trained(engine, jobs):
    """The state after two calls, what the host knows of it, and the state after a third."""
    programs, settings = engine.programs, stack_jobs(jobs)
    state = programs.fresh(engine.params)
    for _ in range(2):
        state, _ = programs.advance(state, settings, engine.frozen, engine.data)
    early = jax.tree.map(np.array, state)
    totals = np.arange(20.0).reshape(4, 5)
    held = Held(("a", "b", "", "d"), settings, np.asarray(early.step), totals)
    state, _ = programs.advance(state, settings, engine.frozen, engine.data)
    return early, held, jax.tree.map(np.array, state)


@pytest.fixture
def put(engine):
    return lambda state: jax.device_put(state, jax.tree.map(lambda x: x.sharding, _state(engine)))


def _state(engine):
    return engine.programs.fresh(engine.params)


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


class Said(list):
    def __call__(self, text):
        self.append(text)


def test_lanes_come_back_with_every_bit_and_go_on_as_they_would_have(engine, trained, put, tmp_path):
    early, held, late = trained
    writer = Checkpoints(str(tmp_path / "checkpoints"))
    state = put(early)
    writer.save(state, held, "this run")
    # The lanes' memory is used again while the checkpoint is being written.
    state, _ = engine.programs.advance(state, held.settings, engine.frozen, engine.data)
    writer.close()
    found, known = Checkpoints(str(tmp_path / "checkpoints")).restore(engine, "this run")
    assert equal(found, early) and jax.tree.structure(found) == jax.tree.structure(early)
    assert equal(known, held) and known.owners == held.owners and known.totals.dtype == np.float64
    assert [x.sharding for x in jax.tree.leaves(found)] == [x.sharding for x in jax.tree.leaves(state)]
    found, _ = engine.programs.advance(found, known.settings, engine.frozen, engine.data)
    assert equal(found, late) and equal(state, late)


def test_there_is_no_cursor_to_keep_for_the_order_is_a_function_of_seed_and_step(engine, trained, put):
    """What a lane takes with it is all that the next step reads: from equal bits the same pairs follow."""
    early, held, late = trained
    moved = np.roll(np.arange(4), 1)  # every lane goes on as another one
    state = put(jax.tree.map(lambda x: x[moved], early))
    settings = jax.tree.map(lambda x: x[moved], held.settings)
    state, _ = engine.programs.advance(state, settings, engine.frozen, engine.data)
    assert equal(state, jax.tree.map(lambda x: x[moved], late))
    orders = [batch_indices(np.int32(3), np.int32(s), pairs=22, batch=4) for s in (7, 8, 7)]
    assert np.array_equal(orders[0], orders[2]) and not np.array_equal(orders[0], orders[1])


def test_the_last_two_are_kept_and_other_work_is_not_taken_up(engine, trained, put, tmp_path):
    early, held, _ = trained
    writer = Checkpoints(str(tmp_path), keep=2)
    for number in range(4):
        writer.save(put(early), held._replace(totals=held.totals + number), "this run", last=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert not writer.left() and Checkpoints(str(tmp_path)).left(), "what this process wrote it has"
    assert Checkpoints(str(tmp_path)).restore(engine, "another run") is None
    _, known = Checkpoints(str(tmp_path)).restore(engine, "this run")
    assert np.array_equal(known.totals, held.totals + 3)
    Checkpoints(str(tmp_path)).clear()
    assert not tmp_path.exists() and not Checkpoints(str(tmp_path)).left()


@pytest.mark.parametrize(
    ("lanes", "rows"), [(6, [0, 1, 2, 3, -1, -1]), pytest.param(2, [0, 1], marks=pytest.mark.slow)]
)
def test_another_number_of_lanes_takes_those_that_have_come_furthest(
    lanes, rows, setting, programs_of, trained, two
):
    """The lanes of the fixture have come to 9, 9, 4 and 5 steps, and the third is nobody's."""
    _, held, late = trained
    engine = make_engine(programs_of().of_lanes(lanes), setting.params, setting.pairs)
    found, known = Checkpoints(str(two)).restore(engine, "this run")
    kept = [row for row in rows if row >= 0]
    assert equal(jax.tree.map(lambda x: x[: len(kept)], found), jax.tree.map(lambda x: x[kept], late))
    assert known.owners == tuple(held.owners[row] if row >= 0 else "" for row in rows)
    assert not np.any(found.step[len(kept) :]) and not known.settings.steps[len(kept) :].any()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: Path, every: int = 0) -> None:
    data = bytearray(file.read_bytes())
    for place in range(0, len(data), every) if every else [len(data) // 2]:
        data[place] ^= 16
    file.write_bytes(bytes(data))


def _largest(folder: Path, part: str) -> Path:
    return max((f for f in (folder / part).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


DAMAGE = {
    "weights cut": lambda folder: _truncate(_largest(folder, "lanes")),
    "a bit of the weights": lambda folder: _flip(_largest(folder, "lanes")),
    "no weights": lambda folder: _largest(folder, "lanes").unlink(),
    # In one place it may be a date that nothing reads: the host's part is a ZIP archive.
    "bits of the host's part": lambda folder: _flip(_largest(folder, "host"), every=32),
    "no host's part": lambda folder: shutil.rmtree(folder / "host"),
    "no manifest": lambda folder: (folder / "lanes" / "manifest.ocdbt").unlink(),
    "empty": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.fixture(scope="module")
def two(engine, trained, tmp_path_factory):
    """A folder with two checkpoints."""
    early, held, late = trained
    folder = tmp_path_factory.mktemp("two")
    writer = Checkpoints(str(folder))
    places = jax.tree.map(lambda x: x.sharding, _state(engine))
    writer.save(jax.device_put(early, places), held, "this run", last=True)
    writer.save(jax.device_put(late, places), held, "this run", last=True)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_that_is_said(
    damage, engine, trained, two, tmp_path
):
    early, held, late = trained
    folder = shutil.copytree(two, tmp_path / "run")
    told = Said()
    found, _ = Checkpoints(str(folder), say=told).restore(engine, "this run")
    assert equal(found, late) and not told
    DAMAGE[damage](folder / "1")
    reader = Checkpoints(str(folder), say=told)
    found, known = reader.restore(engine, "this run")
    assert equal(found, early) and equal(known, held)
    assert len(told) == 1 and "Checkpoint 1" in told[0] and "the one before it" in told[0]
    DAMAGE[damage](folder / "0")
    assert Checkpoints(str(folder), say=told).restore(engine, "this run") is None
    # And the next one is written all the same.
    reader.save(found, held, "this run", last=True)
    found, _ = Checkpoints(str(folder), say=told).restore(engine, "this run")
    assert equal(found, early)


def test_what_was_not_finished_is_no_checkpoint(engine, trained, two, tmp_path):
    early, _, _ = trained
    folder = shutil.copytree(two, tmp_path / "run")
    shutil.move(folder / "1", folder / "1.orbax-checkpoint-tmp")
    told = Said()
    found, _ = Checkpoints(str(folder), say=told).restore(engine, "this run")
    assert equal(found, early) and not told
    assert [p.name for p in folder.iterdir()] == ["0"], "it is cleared away"


def test_a_checkpoint_that_cannot_be_written_is_told_and_no_more(engine, trained, put, tmp_path):
    early, held, _ = trained
    (tmp_path / "file").write_text("in the way")
    told = Said()
    writer = Checkpoints(str(tmp_path / "file" / "checkpoints"), say=told)
    for _ in range(2):
        writer.save(put(early), held, "this run", last=True)
    writer.close()
    assert len(told) == 1 and "cannot be kept" in told[0]


def test_the_fingerprint_sees_every_bit_of_its_lane_alone(trained):
    early, _, _ = trained
    look = jax.jit(fingerprint)
    before = np.asarray(look(early))
    rng = np.random.default_rng(0)
    leaves = jax.tree.leaves(early)
    for _ in range(40):
        place = int(rng.integers(len(leaves)))
        changed = [np.array(leaf) for leaf in leaves]
        lane = int(rng.integers(4))
        if changed[place].dtype == bool:
            changed[place][lane] ^= True
        else:
            words = changed[place][lane : lane + 1].view(np.uint32).reshape(-1)
            words[rng.integers(len(words))] ^= np.uint32(1 << rng.integers(32))
        after = np.asarray(look(jax.tree.unflatten(jax.tree.structure(early), changed)))
        assert list(np.flatnonzero(after != before)) == [lane]


def test_a_time_to_save_comes_with_the_interval_and_never_while_one_is_written(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr("discojax.population.checkpoint.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(str(tmp_path), interval=60)
    never = Checkpoints(str(tmp_path), interval=0)
    assert not checkpoints.due()
    now[0] = 61.0
    assert checkpoints.due() and not never.due()
    assert "orbax" not in str(checkpoints._orbax)  # nothing was opened to find that out


class Disk:
    """In Orbax's place: holds lanes up for a while, and then writes in the background for another."""

    checkpoints = ()

    def __init__(self, clock, holding, writing):
        self.clock, self.holding, self.writing = clock, holding, writing
        self.begun, self.whole, self.latest = [], [], None

    def is_saving_in_progress(self):
        return bool(self.whole) and self.clock[0] < self.whole[-1]

    def save_checkpointables_async(self, number, parts, force):
        assert not self.is_saving_in_progress()
        self.begun.append(self.clock[0])
        self.clock[0] += self.holding
        self.whole.append(self.clock[0] + self.writing)

    def kept(self):
        """When the lanes of the newest whole checkpoint were taken."""
        return max(
            (t for t, end in zip(self.begun, self.whole, strict=True) if end <= self.clock[0]), default=0
        )


@pytest.mark.parametrize(
    ("interval", "holding", "writing"), [(60, 0.5, 3), (60, 0.5, 0), (5, 0.5, 2), (5, 3, 2), (5, 0.1, 20)]
)
def test_what_a_kill_can_lose_is_an_interval_and_what_writing_takes(
    interval, holding, writing, monkeypatch, tmp_path
):
    clock, call = [0.0], 0.25
    monkeypatch.setattr("discojax.population.checkpoint.time.monotonic", lambda: clock[0])
    disk = Disk(clock, holding, writing)
    checkpoints = Checkpoints(str(tmp_path), interval=interval)
    checkpoints._orbax = disk
    state = {"w": np.zeros((2, 3), np.float32)}
    held = Held(("a", "b"), idle_settings(2), np.zeros(2, np.int32), np.zeros((2, 5)))
    lost = []
    while clock[0] < 2000:
        clock[0] += call
        lost.append(clock[0] - disk.kept())  # were it killed now
        if checkpoints.due():
            checkpoints.save(state, held, "this run")
    apart = max(interval, 10 * holding, holding + writing)
    assert max(lost) <= apart + holding + writing + 2 * call
    assert len(disk.begun) >= 2000 / (apart + 2 * call) - 2
    assert holding * (len(disk.begun) - 1) <= 0.1 * clock[0], "a tenth of the time at most"


# Runs in a process of its own, since the number of devices is decided when JAX starts.
SCRIPT = """
import pickle, sys
import jax, numpy as np
from discojax.population import make_engine, make_mesh, make_programs
from discojax.population.checkpoint import Checkpoints, Held
from discojax.population.lanes import stack_jobs

given, folder, result, train = sys.argv[1:]
with open(given, "rb") as file:
    graph, params, pairs, tokens, config, jobs = pickle.load(file)
settings = stack_jobs(jobs)

def engine_on(lanes, *sizes):
    mesh = make_mesh(*sizes)
    programs = make_programs(graph, params, config, lanes=lanes, tokens=tokens, mesh=mesh)
    return make_engine(programs, params, pairs)

def numpy(state):
    return tuple(jax.tree.map(np.asarray, state))

def noise(leaf):
    rng = np.random.default_rng(leaf.size)
    bits = rng.integers(0, 2, leaf.shape) if leaf.dtype == bool else rng.uniform(0, 99, leaf.shape)
    return jax.device_put(bits.astype(leaf.dtype), leaf.sharding)

found = {}
if jax.device_count() == 8:
    engine = engine_on(8, 8, 1, 1)
    state = engine.programs.fresh(engine.params)
    if train == "train":
        state, _ = engine.programs.advance(state, settings, engine.frozen, engine.data)
    else:
        state = jax.tree.map(noise, state)
    held = Held(tuple(f"job {i}" for i in range(8)), settings, np.asarray(state.step), np.zeros((8, 5)))
    Checkpoints(folder).save(state, held, "run", last=True)
    found["saved"] = numpy(state), held
    cases = {"4x2": (8, 4, 2, 1), "2x2x2": (8, 2, 2, 2), "more lanes": (16, 8, 1, 1)}
else:
    cases = {"one device": (8, 1, 1, 1), "five lanes": (5, 1, 1, 1)}
for name, (lanes, *sizes) in cases.items():
    engine = engine_on(lanes, *sizes)
    state, held = Checkpoints(folder).restore(engine, "run")
    places = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state)}
    restored = numpy(state)
    if train == "train":
        state, _ = engine.programs.advance(state, held.settings, engine.frozen, engine.data)
    found[name] = restored, held, numpy(state), places
with open(result, "wb") as file:
    pickle.dump(found, file)
"""


@pytest.fixture(scope="module")
def elsewhere(setting, job, tmp_path_factory):
    """What two processes found: one of eight devices that saved and restored, one of a single device."""

    def run(train):
        folder = tmp_path_factory.mktemp("elsewhere")
        jobs = [job("dpo", seed=i, steps=3 if i % 3 else 9) for i in range(8)]
        given = folder / "given"
        given.write_bytes(
            pickle.dumps((setting.graph, setting.params, setting.pairs, setting.tokens, setting.config, jobs))
        )
        found = {}
        for devices in (8, 1):
            flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
            flags += " " + os.environ.get("XLA_FLAGS", "")
            result = folder / f"result{devices}"
            arguments = (given, folder / "checkpoints", result, train)
            subprocess.run(
                [sys.executable, "-c", SCRIPT, *map(str, arguments)],
                env={**os.environ, "XLA_FLAGS": flags},
                check=True,
            )
            found |= pickle.loads(result.read_bytes())
        return found

    return run


@pytest.fixture(scope="module")
def moved(elsewhere):
    return elsewhere("only move")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4x2", "2x2x2", "more lanes", "one device", "five lanes"])
def test_lanes_are_restored_onto_other_devices_and_other_numbers_of_lanes(name, moved):
    saved, held = moved["saved"]
    restored, known, _, places = moved[name]
    assert any("lane" in place for place in places)
    if name == "five lanes":  # those that have come furthest
        rows = np.argsort(-held.step, kind="stable")[:5]
        assert known.owners == tuple(held.owners[row] for row in rows)
    else:
        rows = np.arange(8)
        assert known.owners == held.owners + ("",) * (len(known.owners) - 8)
    lanes = len(rows)
    assert equal(jax.tree.map(lambda x: x[:lanes], restored), jax.tree.map(lambda x: x[rows], saved))
    assert equal(known.settings.seed[:lanes], held.settings.seed[rows])
    if name == "more lanes":
        _, fresh_moments, step, diverged = jax.tree.map(lambda x: x[8:], restored)
        assert not step.any() and not diverged.any()
        assert all(not leaf.any() for leaf in jax.tree.leaves(fresh_moments))
        assert not np.any(known.settings.steps[8:])


# One of two processes that save together.
TOGETHER = """
import pickle, sys
given, folder, result, port, process = sys.argv[1:]
import jax, numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_enable_preemption_service", False)  # as population.joining has it
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from discojax.population import make_engine, make_mesh, make_programs
from discojax.population.checkpoint import Checkpoints, Held
from discojax.population.lanes import stack_jobs

with open(given, "rb") as file:
    graph, params, pairs, tokens, config, jobs = pickle.load(file)
mesh = make_mesh()
assert mesh.shape["lane"] == 4 and jax.local_device_count() == 2
programs = make_programs(graph, params, config, lanes=8, tokens=tokens, mesh=mesh)
state = programs.fresh(make_engine(programs, params, pairs).params)

def noise(leaf):
    rng = np.random.default_rng(leaf.size)
    bits = rng.integers(0, 2, leaf.shape) if leaf.dtype == bool else rng.uniform(0, 99, leaf.shape)
    return bits.astype(leaf.dtype)

whole = jax.tree.map(noise, state)
spread = lambda x, y: jax.make_array_from_callback(x.shape, x.sharding, lambda i: y[i])
state = jax.tree.map(spread, state, whole)
held = Held(tuple(f"job {i}" for i in range(8)), stack_jobs(jobs), whole.step, np.zeros((8, 5)))
Checkpoints(folder).save(state, held, "run", last=True)
if process == "0":
    with open(result, "wb") as file:
        pickle.dump((tuple(whole), held), file)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_lanes_that_two_processes_saved_are_restored_by_one(setting, job, tmp_path):
    jobs = [job("dpo", seed=i, steps=9) for i in range(8)]
    given, folder = tmp_path / "given", tmp_path / "checkpoints"
    given.write_bytes(
        pickle.dumps((setting.graph, setting.params, setting.pairs, setting.tokens, setting.config, jobs))
    )
    port = free_port()
    flags = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "XLA_FLAGS": flags}
    together = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                TOGETHER,
                str(given),
                str(folder),
                str(tmp_path / "saved"),
                str(port),
                str(i),
            ],
            env=environment,
        )
        for i in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in together] == [0, 0]
    finally:
        for process in together:
            process.kill()
    arguments = (given, folder, tmp_path / "result", "only move")
    flags = flags.replace("count=2", "count=1")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
    )
    saved, held = pickle.loads((tmp_path / "saved").read_bytes())
    restored, known, *_ = pickle.loads((tmp_path / "result").read_bytes())["one device"]
    assert equal(restored, saved) and known.owners == held.owners and equal(known.settings, held.settings)


@pytest.mark.slow
def test_restored_lanes_train_on_alike_on_every_mesh(elsewhere):
    found = elsewhere("train")
    *_, one, _ = found["one device"]
    assert one[2].tolist() == [6 if i % 3 == 0 else 3 for i in range(8)]
    for name in ("4x2", "2x2x2", "more lanes"):
        after = jax.tree.map(lambda x: x[:8], found[name][2])
        assert np.array_equal(after[2], one[2])
        for a, b in zip(jax.tree.leaves(after[0]), jax.tree.leaves(one[0]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)
