"""Runs in buckets, on real servers of both protocols: what is put there, when it counts, and coming back."""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import threading
from pathlib import Path

import fsspec
import pytest

from discojax.config import Run
from discojax.errors import UserError
from discojax.search import archive as archives
from discojax.search import storage
from discojax.search.storage import Mirror, exists, fetch, mirrored, snapshot

_path = Path(__file__).parents[1] / "buckets.py"
_spec = importlib.util.spec_from_file_location("buckets", _path)
assert _spec and _spec.loader
buckets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(buckets)


@pytest.fixture(params=["s3", "gs", "file"])
def url(request, tmp_path):
    with contextlib.ExitStack() as stack:
        if request.param == "file":
            root = f"file://{tmp_path}/bucket"
        else:
            root = stack.enter_context(getattr(buckets, request.param)())
        yield f"{root}/runs/one"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "work" / "one"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: one}\n")
    return folder


def events(path):
    with archives.open_archive(path) as archive:
        return [event["data"]["number"] for event in archives.events(archive)]


def names(url):
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {path.removeprefix(root.rstrip("/")).lstrip("/") for path in files.find(root)}


def checkpoint(folder, number, content=b"weights"):
    lanes = folder / "checkpoints" / str(number) / "lanes"
    lanes.mkdir(parents=True)
    (lanes / "data").write_bytes(content)
    (lanes.parent / storage.COMMITTED).write_text("")


def test_a_run_goes_there_and_comes_back_on_another_machine(url, folder, tmp_path):
    with archives.open_archive(folder / "archive.sqlite", "hash") as archive:
        assert not exists(url) and not fetch(url, tmp_path / "nothing")
        mirror = Mirror(folder, url)
        archives.add_event(archive, "test", number=1)
        (folder / "metrics.jsonl").write_text("{}\n")
        checkpoint(folder, 3)
        (folder / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
        (folder / "checkpoints" / "4.orbax-checkpoint-tmp" / "data").write_text("half")
        mirror.sync()
        assert names(url) == {
            "config.yaml", "metrics.jsonl", "archive.sqlite",
            "checkpoints/3/lanes/data", "checkpoints/3/commit_success.txt",
        }  # fmt: skip
        archives.add_event(archive, "test", number=2)  # in the log only, while the archive is open
        (folder / "metrics.jsonl").write_text("{}\n{}\n")
        mirror.sync()
        other = tmp_path / "other" / "one"
        assert exists(url) and fetch(url, other)
    assert events(other / "archive.sqlite") == [1, 2]
    assert (other / "metrics.jsonl").read_text() == "{}\n{}\n"
    local = not url.startswith("gs://")  # there Orbax reads checkpoints where they are
    assert (other / "checkpoints" / "3" / "lanes" / "data").exists() is local


def test_a_training_of_one_policy_has_no_archive_and_goes_there_too(url, folder, tmp_path):
    url = f"{url}-policy"  # the server remembers what other tests left
    (folder / "metrics.jsonl").write_text("{}\n")
    checkpoint(folder, 3)
    Mirror(folder, url).sync()
    other = tmp_path / "other" / "one"
    assert exists(url) and fetch(url, other)
    assert (other / "config.yaml").read_text() == "run: {name: one}\n"
    (folder / "metrics.jsonl").write_text("{}\n{}\n")  # it has gone on since
    assert fetch(url, folder) and (folder / "metrics.jsonl").read_text() == "{}\n{}\n"


def test_what_this_machine_has_and_newer_stays(url, folder, tmp_path):
    with archives.open_archive(folder / "archive.sqlite", "hash") as archive:
        archives.add_event(archive, "test", number=1)
        Mirror(folder, url).sync()
        archives.add_event(archive, "test", number=2)
    assert fetch(url, folder) and events(folder / "archive.sqlite") == [1, 2]
    # But another machine that went on with it has more.
    other = tmp_path / "other"
    fetch(url, other)
    with archives.open_archive(other / "archive.sqlite", "hash") as archive:
        for number in (3, 4, 5):
            archives.add_event(archive, "test", number=number)
    Mirror(other, url).sync()
    assert fetch(url, folder) and events(folder / "archive.sqlite") == [1, 3, 4, 5]


def test_a_checkpoint_counts_with_its_mark_which_comes_last_and_goes_first(folder, tmp_path):
    url = f"file://{tmp_path}/bucket/one"
    archives.close(archives.open_archive(folder / "archive.sqlite", "hash"))
    checkpoint(folder, 1)
    mirror = Mirror(folder, url)
    mirror.sync()
    order: list[str] = []
    send, remove = mirror._send, mirror._files.rm_file
    mirror._send = lambda path, name: (order.append(name), send(path, name))  # type: ignore[method-assign]
    checkpoint(folder, 2)
    mirror.sync()
    assert order[:2] == ["checkpoints/2/lanes/data", "checkpoints/2/commit_success.txt"]
    for file in ("lanes/data", "commit_success.txt"):
        (folder / "checkpoints" / "1" / file).unlink()
    order.clear()
    mirror._files = type("Files", (), {"rm_file": lambda self, path: (order.append(path), remove(path))})()
    mirror.sync()
    assert [path.rpartition("/")[2] for path in order] == ["commit_success.txt", "data"]
    # One whose mark is missing, because the machine died meanwhile, is not brought back.
    (Path(tmp_path) / "bucket/one/checkpoints/2/commit_success.txt").unlink()
    assert fetch(url, tmp_path / "other") and not (tmp_path / "other" / "checkpoints").exists()


def test_a_snapshot_is_whole_whatever_is_being_written(folder, tmp_path):
    with archives.open_archive(folder / "archive.sqlite", "hash") as archive:
        ended = threading.Event()

        def write():
            number = 0
            while not ended.is_set():
                with archives.transaction(archive) as connection:  # two rows, or none
                    for _ in range(2):
                        connection.execute("INSERT INTO events (created, kind, data) VALUES (0, 'x', '{}')")
                number += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for turn in range(10):
                copy = tmp_path / f"copy{turn}"
                snapshot(folder / "archive.sqlite", copy)
                with contextlib.closing(sqlite3.connect(copy)) as found:
                    assert found.execute("SELECT count(*) FROM events").fetchone()[0] % 2 == 0
                    assert found.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        finally:
            ended.set()
            thread.join()
    assert not list(tmp_path.glob("copy*-wal"))


def test_a_bucket_that_is_away_for_a_while_is_told_once_and_the_end_is_put_there(
    folder, tmp_path, monkeypatch
):
    said, away = [], threading.Event()
    sync = Mirror.sync
    calls = []

    def flaky(self):
        calls.append(self)
        if len(calls) < 4:
            raise OSError("no route to host")
        sync(self)
        away.set()

    monkeypatch.setattr(Mirror, "sync", flaky)
    with mirrored(folder, f"file://{tmp_path}/bucket/one", every=0.01, say=said.append):
        assert away.wait(30)
        (folder / "results.json").write_text("{}")
    assert len(said) == 1 and "no route to host" in said[0]
    assert (tmp_path / "bucket/one/results.json").exists()


def test_mistakes_are_a_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"gss://x/y is nowhere that is known. Did you mean"):
        Mirror(folder, "gss://x/y")
    with buckets.s3():
        wrong = "s3://there-is-no-such-bucket/one"
        with pytest.raises(UserError, match="cannot be written") as caught, mirrored(folder, wrong):
            pass
        assert str(folder) in str(caught.value)


def test_a_run_in_a_bucket_has_a_folder_here(monkeypatch, tmp_path):
    monkeypatch.setenv("DISCOJAX_CACHE", str(tmp_path))
    run = Run(name="one", directory="gs://bucket/team/runs/")
    assert run.remote == "gs://bucket/team/runs/one"
    assert run.path == tmp_path / "runs" / "gs-bucket-team-runs" / "one"
    assert Run(name="one", directory="s3://bucket/team/runs").path != run.path
    assert Run(name="one").remote is None and Run(name="one").path == Path("runs/one")
    assert storage.checkpoints(run.path, run.remote) == "gs://bucket/team/runs/one/checkpoints"
    assert storage.checkpoints(run.path, "s3://bucket/one") == str(run.path / "checkpoints")
