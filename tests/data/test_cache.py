import errno
import json
import logging
import multiprocessing
import os
import time

import numpy as np
import pytest

from discojax.data import cache
from discojax.errors import UserError


def make_text(text):
    return lambda directory: cache.write_bytes(directory / "text", text.encode())


def never(directory):
    raise AssertionError("built although it was there")


def whole(directory):
    (directory / "text").write_text("some text")
    cache.save_arrays(directory / "arrays.npz", {"w": np.arange(1000)})


def test_is_built_once_and_found_afterwards(tmp_path):
    inputs = {"size": 3, "of": ["a", "b"], "rate": 0.1}
    assert cache.find("thing", inputs, tmp_path) is None
    directory = cache.build("thing", inputs, make_text("hello"), tmp_path)
    assert (directory / "text").read_text() == "hello"
    assert directory.name.startswith("thing-")
    assert cache.build("thing", dict(reversed(inputs.items())), never, tmp_path) == directory
    assert cache.find("thing", inputs, tmp_path) == directory


@pytest.mark.parametrize("other", [{"size": 4}, {"size": 3, "more": None}, {"size": "3"}, {"size": [3]}])
def test_another_input_is_another_entry(tmp_path, other):
    first = cache.build("thing", {"size": 3}, make_text("first"), tmp_path)
    second = cache.build("thing", other, make_text("second"), tmp_path)
    assert first != second
    assert (first / "text").read_text() == "first"


def test_inputs_that_are_not_json_are_refused(tmp_path):
    with pytest.raises(TypeError):
        cache.build("thing", {"size": object()}, never, tmp_path)
    with pytest.raises(ValueError):
        cache.build("thing", {"size": float("nan")}, never, tmp_path)


def truncate(directory):
    os.truncate(directory / "arrays.npz", 100)


def flip_a_bit(directory):
    data = bytearray((directory / "arrays.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (directory / "arrays.npz").write_bytes(data)


def lose_a_file(directory):
    (directory / "text").unlink()


def lose_the_manifest(directory):
    (directory / cache.MANIFEST).unlink()


def halve_the_manifest(directory):
    path = directory / cache.MANIFEST
    os.truncate(path, path.stat().st_size // 2)


def change_the_inputs(directory):
    path = directory / cache.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {"size": 9}}))


def empty_the_manifest(directory):
    (directory / cache.MANIFEST).write_text("[]")


def become_a_file(directory):
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    directory.write_text("not a directory")


@pytest.mark.parametrize(
    "breaking",
    [
        truncate,
        flip_a_bit,
        lose_a_file,
        lose_the_manifest,
        halve_the_manifest,
        change_the_inputs,
        empty_the_manifest,
        become_a_file,
    ],
)
def test_a_broken_entry_is_said_and_rebuilt_never_used(tmp_path, breaking, caplog):
    directory = cache.build("thing", {"size": 3}, whole, tmp_path)
    breaking(directory)
    assert cache.find("thing", {"size": 3}, tmp_path) is None
    with caplog.at_level(logging.WARNING):
        assert cache.build("thing", {"size": 3}, whole, tmp_path) == directory
    assert len(caplog.records) == 1
    assert str(directory) in caplog.text
    np.testing.assert_array_equal(cache.load_arrays(directory / "arrays.npz")["w"], np.arange(1000))
    assert (directory / "text").read_text() == "some text"
    caplog.clear()
    cache.build("thing", {"size": 3}, never, tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_build_that_stops_leaves_nothing(tmp_path, stop):
    def stopped(directory):
        (directory / "half").write_text("half")
        raise stop

    with pytest.raises(stop):
        cache.build("thing", {}, stopped, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert cache.find("thing", {}, tmp_path) is None


def die(root):
    def dying(directory):
        (directory / "half").write_text("half")
        os._exit(9)

    cache.build("thing", {}, dying, root)


def slow(root, name, barrier):
    def writing(directory):
        for i in range(20):
            (directory / f"{i}").write_text(name)
            time.sleep(0.005)
        with open(root / "builds", "a") as log:
            log.write(name)

    barrier.wait()
    cache.build("thing", {}, writing, root)


def test_a_builder_that_was_killed_leaves_no_entry_and_its_rest_is_removed(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [path for path in tmp_path.iterdir() if path.is_dir()]
    directory = cache.build("thing", {}, make_text("whole"), tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [directory]


def race(root):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=slow, args=(root, name, barrier)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    directory = cache.find("thing", {}, root)
    assert directory is not None
    assert len({(directory / f"{i}").read_text() for i in range(20)}) == 1  # all files of one builder
    assert [path for path in root.iterdir() if path.is_dir()] == [directory]


def test_concurrent_builders_build_once(tmp_path):
    race(tmp_path)
    if cache.fcntl is not None:
        assert len((tmp_path / "builds").read_text()) == 1


def test_of_builders_without_locks_the_first_to_rename_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "fcntl", None)

    def overtaken(directory):
        make_text("slow")(directory)
        cache.build("thing", {}, make_text("fast"), tmp_path)

    directory = cache.build("thing", {}, overtaken, tmp_path)
    assert (directory / "text").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_explained(tmp_path):
    def filling(directory):
        with open("/dev/full", "wb") as file:
            file.write(b"x")

    with pytest.raises(UserError, match="No space left.*DISCOJAX_CACHE") as caught:
        cache.build("thing", {}, filling, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert cache.find("thing", {}, tmp_path) is None


def test_a_root_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="Cannot write.*DISCOJAX_CACHE") as caught:
            cache.build("thing", {}, never, root)
        assert str(root) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_root_is_explained_but_serves_what_it_has(tmp_path):
    directory = cache.build("thing", {}, make_text("there"), tmp_path)
    tmp_path.chmod(0o555)
    try:
        assert cache.build("thing", {}, never, tmp_path) == directory
        with pytest.raises(UserError, match="DISCOJAX_CACHE"):
            cache.build("thing", {"another": 1}, never, tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_errors_that_are_not_the_caches_stay_what_they_are(tmp_path):
    def failing(directory):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")

    with pytest.raises(PermissionError):
        cache.build("thing", {}, failing, tmp_path)


def test_the_root_is_the_users_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DISCOJAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.default_root() == tmp_path / "home" / ".cache" / "discojax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_root() == tmp_path / "xdg" / "discojax"
    monkeypatch.setenv("DISCOJAX_CACHE", str(tmp_path / "mine"))
    assert cache.build("thing", {}, make_text("x")).parent == tmp_path / "mine"


def test_content_hash_tells_values_apart():
    values = [
        None,
        False,
        0,
        0.0,
        "",
        "0",
        b"",
        [],
        {},
        [[]],
        ["a", "b"],
        ["ab"],
        ["a", ["b"]],
        {"a": "b"},
        np.zeros(2, np.int32),
        np.zeros(2, np.float32),
        np.zeros((2, 1), np.float32),
        np.zeros((1, 2), np.float32),
        np.array(["a", "b"]),
    ]
    assert len({cache.content_hash(value) for value in values}) == len(values)


def test_content_hash_is_of_content():
    array = np.arange(6).reshape(2, 3)
    assert cache.content_hash(array) == cache.content_hash(np.asfortranarray(array))
    assert cache.content_hash({"a": 1, "b": (2,)}) == cache.content_hash({"b": [2], "a": np.int64(1)})
    # Of every process and every machine: a changed value here rebuilds everybody's cache.
    assert cache.content_hash(["text", 1, None]).startswith("22096a05")
    for value in (object(), {1, 2}, np.array([object()])):
        with pytest.raises(TypeError):
            cache.content_hash(value)


def test_arrays_are_saved_without_pickle_and_come_back_the_same(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.int32), "b": np.array(["x", "yz"]), "c": np.float32(2)}
    cache.save_arrays(tmp_path / "a.npz", arrays)
    cache.save_arrays(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = cache.load_arrays(tmp_path / "a.npz")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == np.asarray(array).dtype
    assert cache.load_arrays(tmp_path / "a.npz", ["a"]).keys() == {"a"}
    with pytest.raises(TypeError, match="b is of dtype"):
        cache.save_arrays(tmp_path / "c.npz", {"b": np.array([None])})
    np.savez(tmp_path / "d.npz", a=np.array([None]))
    with pytest.raises(ValueError, match="allow_pickle"):
        cache.load_arrays(tmp_path / "d.npz")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    cache.write_json(path, {"b": 1, "a": "é"})
    assert json.loads(path.read_text()) == {"a": "é", "b": 1}
    with pytest.raises(TypeError):
        cache.write_bytes(path, "not bytes")
    assert json.loads(path.read_text()) == {"a": "é", "b": 1}
    assert list(tmp_path.iterdir()) == [path]
