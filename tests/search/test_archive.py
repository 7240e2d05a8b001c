"""What the archive promises, each promise broken on purpose: kill -9, a full disk, a second writer."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from discojax.errors import UserError
from discojax.search import schema
from discojax.search.archive import (
    Attempt,
    Evaluation,
    EvaluationKey,
    add_attempts,
    add_evaluations,
    add_event,
    attempts,
    close,
    evaluations,
    events,
    export_rows,
    get_evaluation,
    get_meta,
    open_archive,
    set_meta,
)

CONFIG = "c0ffee"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "night" / "archive.sqlite"


@pytest.fixture
def archive(path):
    with open_archive(path, CONFIG) as opened:
        yield opened


def lane(seed=0, beta=0.05, **changes) -> Evaluation:
    rng = np.random.default_rng(seed)
    per_prompt = {"reward": rng.random(16, np.float32), "kl": rng.random(16, np.float32) * 9}
    key = EvaluationKey("hash-a", "first", "rotten", "search", 0, beta, seed, 100, 5e-4)
    evaluation = Evaluation(
        key,
        "ok",
        float(per_prompt["reward"].mean()),
        float(per_prompt["kl"].mean()),
        0.02,
        31.5,
        per_prompt,
        created=12.0,
    )
    return replace(evaluation, **changes)


ACCEPTED = Attempt(
    0,
    0,
    "first",
    "fresh",
    "accepted",
    source="def loss...",
    hash="hash-a",
    tokens_in=10,
    cost=0.25,
    created=1.5,
)
REJECTED = Attempt(
    1,
    0,
    "second",
    "mutate",
    "rejected",
    (0,),
    "because",
    stage="syntax",
    reason="a loop",
    raw_reply="```\u03b2```",
    created=2.5,
)


def test_what_is_added_comes_back(archive, path):
    assert add_attempts(archive, [ACCEPTED, REJECTED]) == [1, 2]
    measured = [
        lane(0),
        lane(1, beta=0.1),
        Evaluation(lane(2).key, "diverged", reason="NaN at step 3", created=1.0),
    ]
    add_evaluations(archive, measured)
    add_event(archive, "rung", survivors=["first"])
    set_meta(archive, "spent", {"dollars": 1.5})
    close(archive)

    with open_archive(path) as back:  # for reading
        assert back.config_hash == CONFIG
        assert attempts(back) == [replace(ACCEPTED, id=1), replace(REJECTED, id=2)]
        assert attempts(back, status="rejected") == [replace(REJECTED, id=2)]
        for expected, got in zip(measured, evaluations(back), strict=True):
            assert replace(got, per_prompt={}) == replace(expected, per_prompt={})
            assert set(got.per_prompt) == set(expected.per_prompt)
            for name, array in expected.per_prompt.items():
                np.testing.assert_array_equal(got.per_prompt[name], array)
                assert got.per_prompt[name].dtype == array.dtype
        assert get_evaluation(back, lane(1, beta=0.1).key).reward == measured[1].reward
        assert get_evaluation(back, replace(lane(1).key, rung=1)) is None
        assert [e.key.seed for e in evaluations(back, seed=[0, 2])] == [0, 2]
        assert events(back)[0]["data"] == {"survivors": ["first"]}
        assert get_meta(back, "spent") == {"dollars": 1.5}
        assert get_meta(back, "versions")["numpy"] == np.__version__
        assert get_meta(back, "nothing", "default") == "default"
        with pytest.raises(ValueError, match="reading only"):
            add_event(back, "rung")


def test_nothing_is_scored_twice_and_a_rung_is_whole_or_absent(archive):
    add_evaluations(archive, [lane(0)])
    with pytest.raises(ValueError, match="UNIQUE"):
        add_evaluations(archive, [lane(1), lane(2), lane(0)])
    assert [e.key.seed for e in evaluations(archive)] == [0]
    # The same lane with numpy's numbers is the same lane.
    key = lane(0).key
    alike = replace(key, seed=np.int64(key.seed), beta=np.float64(key.beta))
    assert get_evaluation(archive, alike) is not None
    with pytest.raises(ValueError, match="UNIQUE"):
        add_evaluations(archive, [lane(0, key=alike)])


@pytest.mark.parametrize(
    "bad",
    [
        lane(reward=float("nan")),
        lane(reward=None),
        lane(kl=float("inf")),
        lane(length=None),
        lane(per_prompt={}),
        lane(per_prompt={"reward": np.array([0.5, np.nan]), "kl": np.zeros(2)}),
        lane(status="diverged"),
        lane(status="failed", reward=0.0, kl=None, length=None, kl_per_token_reference=None, per_prompt={}),
        lane(status="great"),
    ],
)
def test_a_failure_is_a_status_and_never_a_number(archive, bad):
    with pytest.raises(ValueError):
        add_evaluations(archive, [lane(5), bad])
    assert evaluations(archive) == []


@pytest.mark.parametrize(
    "bad",
    [
        replace(ACCEPTED, hash=None),
        replace(REJECTED, reason=None),
        replace(ACCEPTED, cost=-1.0),
        replace(ACCEPTED, status="maybe"),
    ],
)
def test_proposals_that_contradict_themselves(archive, bad):
    with pytest.raises(ValueError, match="CHECK"):
        add_attempts(archive, [replace(ACCEPTED, number=7), bad])
    assert attempts(archive) == []


def test_a_number_is_proposed_once(archive):
    add_attempts(archive, [ACCEPTED])
    with pytest.raises(ValueError, match="number"):
        add_attempts(archive, [replace(REJECTED, number=0)])


def test_views_for_sqlite3_and_pandas(archive, path):
    add_attempts(archive, [ACCEPTED, REJECTED])
    add_evaluations(archive, [lane(0), Evaluation(lane(1).key, "failed", reason="out of memory")])
    assert [r["status"] for r in export_rows(archive, "proposals")] == ["accepted", "rejected"]
    scores = export_rows(archive, "scores")
    assert [(r["objective"], r["operator"], r["status"]) for r in scores] == [
        ("first", "fresh", "ok"),
        ("first", "fresh", "failed"),
    ]
    assert {r["kind"]: r["reason"] for r in export_rows(archive, "failures")} == {
        "proposal": "a loop",
        "lane": "out of memory",
    }
    with pytest.raises(ValueError, match="scores"):
        export_rows(archive, "meta; DROP TABLE meta")
    with pytest.raises(ValueError, match="no column"):
        evaluations(archive, **{"1=1 --": 0})
    # Another program reads while the run is open for writing.
    other = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert other.execute("SELECT count(*), avg(reward) FROM scores WHERE status = 'ok'").fetchone()[0] == 1
    other.close()


def test_another_configuration(path):
    open_archive(path, CONFIG).__exit__()
    with pytest.raises(UserError, match="another configuration"):
        open_archive(path, "decaf")
    open_archive(path, CONFIG).__exit__()  # the refusal left no lock behind


def test_one_writer_at_a_time(path, archive):
    with pytest.raises(UserError, match="'night' is being written"):
        open_archive(path, CONFIG)
    code = f"from discojax.search.archive import open_archive; open_archive({str(path)!r}, {CONFIG!r})"
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode != 0 and "being written by another process" in second.stderr
    with open_archive(path) as reader:  # readers are welcome
        assert attempts(reader) == []
    close(archive)
    close(open_archive(path, CONFIG))


def test_threads_take_turns(archive):
    def write(start):
        for i in range(start, start + 20):
            add_attempts(archive, [replace(ACCEPTED, number=i)])

    threads = [threading.Thread(target=write, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts(archive)) == 80


def test_old_files_are_brought_up_to_date(path):
    path.parent.mkdir()
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(f"BEGIN; {schema.MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;")
    old.execute("INSERT INTO meta VALUES ('config_hash', ?)", (f'"{CONFIG}"',))
    old.execute("INSERT INTO events (created, kind, data) VALUES (1, 'kept', '{}')")
    old.close()
    with open_archive(path, CONFIG) as archive:
        assert export_rows(archive, "scores") == []
        assert events(archive)[0]["kind"] == "kept"
        version = archive.connection.execute("PRAGMA user_version").fetchone()[0]
    assert version == len(schema.MIGRATIONS)


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    close(open_archive(path, CONFIG))
    broken = "CREATE TABLE half (x); CREATE TABLE attempts (x);"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(UserError, match="already exists"):
            open_archive(path, CONFIG)
    with open_archive(path, CONFIG) as archive:
        names = {r[0] for r in archive.connection.execute("SELECT name FROM sqlite_master")}
    assert "half" not in names


def test_files_of_the_future_and_of_others(path):
    close(open_archive(path, CONFIG))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="newer discojax"):
        open_archive(path, CONFIG)
    foreign = path.with_name("foreign.sqlite")
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE photos (x)")
    connection.close()
    with pytest.raises(UserError, match="another program"):
        open_archive(foreign, CONFIG)
    with pytest.raises(UserError, match="no such table"):
        open_archive(foreign)


@pytest.mark.parametrize("damage", ["text", "middle", "cut"])
def test_a_damaged_file(path, damage):
    with open_archive(path, CONFIG) as archive:
        add_attempts(archive, [replace(ACCEPTED, number=i, raw_reply="x" * 3000) for i in range(300)])
    data = path.read_bytes()
    size = len(data)
    path.write_bytes(
        {
            "text": b"not a database at all\n" * 500,
            "middle": data[: size // 4] + b"\xff" * (size // 2) + data[3 * size // 4 :],
            "cut": data[: size // 2],
        }[damage]
    )
    with pytest.raises(UserError, match="damaged.*move it away"):
        open_archive(path, CONFIG)


def test_a_full_disk(path):
    with open_archive(path, CONFIG) as archive:
        add_attempts(archive, [ACCEPTED])
        pages = archive.connection.execute("PRAGMA page_count").fetchone()[0]
        archive.connection.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own SQLITE_FULL
        with pytest.raises(UserError, match="disk is full.*resume"):
            add_attempts(archive, [replace(REJECTED, number=1 + i, raw_reply="x" * 9000) for i in range(9)])
        assert len(attempts(archive)) == 1
        archive.connection.execute("PRAGMA max_page_count = 1000000")
        add_attempts(archive, [REJECTED])
    with open_archive(path) as back:
        assert len(attempts(back)) == 2


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another place"):
        open_archive(tmp_path / "file" / "run" / "archive.sqlite", CONFIG)
    with pytest.raises(UserError, match="no archive at"):
        open_archive(tmp_path / "none.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(UserError, match="cannot be opened"):
        open_archive(tmp_path / "folder.sqlite", CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(path):
    close(open_archive(path, CONFIG))
    path.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permissions"):
            open_archive(path, CONFIG)
        with open_archive(path) as reader:
            assert attempts(reader) == []
    finally:
        path.parent.chmod(0o700)


WRITER = """
import itertools, sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
from test_archive import ACCEPTED, CONFIG, lane
from discojax.search.archive import add_attempts, add_evaluations, attempts, open_archive
archive = open_archive({path!r}, CONFIG)
start = len(attempts(archive))
print("ready", flush=True)
for i in itertools.count(start, 7):
    add_attempts(archive, [replace(ACCEPTED, number=i + j, raw_reply="x" * 5000) for j in range(7)])
    add_evaluations(archive, [lane(seed=i + j) for j in range(7)])
"""


def test_kill_9_leaves_whole_transactions_only(path):
    rng = np.random.default_rng(0)
    code = WRITER.format(tests=os.path.dirname(__file__), path=str(path))
    seen = 0
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(float(rng.uniform(0.05, 0.3)))
            writer.send_signal(signal.SIGKILL)
        with open_archive(path, CONFIG) as archive:  # the lock died with its owner
            proposed, scored = attempts(archive), evaluations(archive)
            assert archive.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            # The run dies between its two transactions too; the resumed one would score what is missing.
            missing = [lane(seed=a.number) for a in proposed[len(scored) :]]
            assert len(proposed) % 7 == 0 and len(scored) % 7 == 0 and len(missing) in (0, 7)
            add_evaluations(archive, missing)
            assert len(proposed) >= seen  # what was committed before the kill is still there
            seen = len(proposed)
    assert seen > 7
    assert [a.number for a in proposed] == list(range(seen))


def test_the_thousandth_proposal_is_as_cheap_as_the_first(archive):
    """In instructions of SQLite's machine, which would grow with the table if anything searched it."""
    steps = [0] * 10
    for i in range(1000):

        def tick(hundred=i // 100):
            steps[hundred] += 1

        archive.connection.set_progress_handler(tick, 1)
        add_attempts(archive, [replace(ACCEPTED, number=i, raw_reply="x" * 2000)])
    archive.connection.set_progress_handler(None, 1)
    assert len(attempts(archive)) == 1000
    assert 0 < steps[-1] < 1.2 * steps[0]
