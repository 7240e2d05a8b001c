"""Runs that live in a bucket: `run.directory=gs://BUCKET/PATH`, `s3://BUCKET/PATH`.

SQLite needs a disk, so such a run is worked on in a folder of this machine (`config.Run.path`), and what
changes there is put into the bucket every while and at the end. The archive goes as a snapshot, one whole
file taken between two transactions. Checkpoints that are written on this machine go whole or not at all:
their mark of success goes last. (Those of a run on `gs://` Orbax writes there itself.)

Any bucket or file system that fsspec knows will do; these two have extras that install what it takes.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from discojax.errors import UserError, nearest

__all__ = ["Mirror", "checkpoints", "exists", "fetch", "mirrored", "snapshot", "taken"]

ARCHIVE, CHECKPOINTS, COMMITTED = "archive.sqlite", "checkpoints", "commit_success.txt"
_OF_A_RUN = (ARCHIVE, "config.yaml")  # one policy's training has no archive
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_WHOLE_AT_ONCE = ("gs", "s3")  # where an object is there only when all of it is


def checkpoints(folder: Path, url: str | None) -> str:
    """Where a run keeps its lanes in training: Orbax itself can write to disks and to `gs://`."""
    return f"{url}/{CHECKPOINTS}" if url and url.startswith("gs://") else str(folder / CHECKPOINTS)


def taken(folder: Path, url: str | None) -> bool:
    """Whether a run of this name is there already, on this machine or in its bucket."""
    return _here(folder) or (url is not None and exists(url))


def exists(url: str) -> bool:
    """Whether a run is there.

    Raises:
      UserError: the bucket cannot be reached.
    """
    with _explained(url):
        files, root = _open(url)
        return any(files.exists(f"{root}/{name}") for name in _OF_A_RUN)


def _here(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OF_A_RUN)


def fetch(url: str, folder: Path) -> bool:
    """Brings a run to this machine; what the folder has of it already, and newer, stays.

    Args:
      url: the run's, such as `gs://bucket/runs/NAME`.
      folder: where it is to be worked on.

    Returns:
      Whether there is a run.

    Raises:
      UserError: the bucket cannot be reached.
    """
    with _explained(url):
        files, root = _open(url)
        there = {path.removeprefix(root).lstrip("/"): path for path in files.find(root)}
        if not any(name in there for name in _OF_A_RUN):
            return _here(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if ARCHIVE in there and not _fetch_archive(files, there[ARCHIVE], folder):
            return True  # this machine worked on it last
        whole = {name.split("/")[1] for name in there if _is_mark(name)}
        for name, path in there.items():
            parts = name.split("/")
            elsewhere = parts[0] == CHECKPOINTS and (url.startswith("gs://") or parts[1] not in whole)
            kept = ARCHIVE not in there and (folder / name).exists()
            if name == ARCHIVE or elsewhere or kept:
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(folder / name))
        return True


def _fetch_archive(files: Any, path: str, folder: Path) -> bool:
    """Puts a bucket's archive into the folder, unless the one that is there has all that it has."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch") as temporary:
        arrived = Path(temporary) / ARCHIVE
        files.get_file(path, str(arrived))
        if _has_all_of(folder / ARCHIVE, arrived):
            return False
        for rest in folder.glob(f"{ARCHIVE}-*"):
            rest.unlink()
        arrived.replace(folder / ARCHIVE)
    return True


def snapshot(archive: Path, target: Path) -> None:
    """Copies an archive that may be being written: one whole file, as it was between two transactions."""
    with (
        contextlib.closing(sqlite3.connect(archive.absolute().as_uri() + "?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # no log beside it that belongs to it


class Mirror:
    """Puts what changes in a run's folder into its bucket.

    Args:
      folder: of the run, on this machine.
      url: of the run, in the bucket.

    Raises:
      UserError: the bucket cannot be reached.
    """

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        self._put: dict[str, tuple[int, ...]] = {}  # what is there, as it was when it was put
        self._turn = threading.Lock()
        with _explained(url):
            self._files, self._root = _open(url)
            self._files.exists(self._root)

    def sync(self) -> None:
        """Puts everything there that has changed since it was last called."""
        with self._turn:
            here = {name: _stamp(self.folder / name) for name in self._names()}
            # A checkpoint's mark goes last, and the first when it is deleted.
            for name in sorted(here, key=_is_mark):
                if self._put.get(name) != here[name] and (self.folder / name).exists():
                    self._send(self.folder / name, name)
                    self._put[name] = here[name]
            for name in sorted(self._put.keys() - here.keys() - {ARCHIVE}, key=lambda n: not _is_mark(n)):
                self._files.rm_file(f"{self._root}/{name}")
                del self._put[name]
            self._send_archive()

    def _names(self) -> Iterator[str]:
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            parts = name.split("/")
            hidden = any(part.startswith(".") or "orbax-checkpoint-tmp" in part for part in parts)
            unfinished = parts[0] == CHECKPOINTS and not (
                len(parts) > 1 and (self.folder / parts[0] / parts[1] / COMMITTED).exists()
            )
            if path.is_file() and not (hidden or unfinished or parts[0].startswith(ARCHIVE)):
                yield name

    def _send_archive(self) -> None:
        archive = self.folder / ARCHIVE
        if not archive.exists():
            return
        log = archive.with_name(f"{ARCHIVE}-wal")
        stamp = (*_stamp(archive), *(_stamp(log) if log.exists() else ()))
        if self._put.get(ARCHIVE) == stamp:
            return
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / ARCHIVE
            snapshot(archive, copy)
            self._send(copy, ARCHIVE)
        self._put[ARCHIVE] = stamp

    def _send(self, path: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        if self.url.startswith(_WHOLE_AT_ONCE):
            self._files.put_file(str(path), target)
            return
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(path), f"{target}.part")
        self._files.mv(f"{target}.part", target)


@contextlib.contextmanager
def mirrored(
    folder: Path, url: str | None, every: float = 60.0, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Mirrors a run's folder while the block runs, and once more at its end. Without a URL it does nothing.

    A bucket that cannot be written for a while is told, once, and tried again.

    Args:
      folder, url: see `Mirror`.
      every: seconds between two times.
      say: told in a sentence what the user should know.

    Raises:
      UserError: the bucket cannot be reached at the beginning, or at the end.
    """
    if url is None:
        yield
        return
    mirror, ended, told = Mirror(folder, url), threading.Event(), False

    def work() -> None:
        nonlocal told
        while not ended.wait(every):
            try:
                mirror.sync()
                told = False
            except Exception as error:
                if not told:
                    say(f"{url} cannot be written ({_short(error)}); it is tried again every {every:g} s.")
                told = True

    thread = threading.Thread(target=work, daemon=True, name="mirror")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            mirror.sync()
        except Exception as error:
            raise UserError(
                f"{url} cannot be written ({_short(error)}); all of the run is in {folder}."
            ) from error


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there."""
    scheme = url.partition("://")[0]
    try:
        import fsspec
        from fsspec.registry import known_implementations

        if scheme not in known_implementations:
            raise UserError(f"{url} is nowhere that is known.{nearest(scheme, list(_EXTRAS))}")
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        what = f"pip install 'discojax[{extra}]'" if extra else f"install what fsspec asks for ({error})"
        raise UserError(f"{url} takes a package that is not installed: {what}.") from None
    return files, str(root).rstrip("/")


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of the network, of credentials; every client has its own
        raise UserError(
            f"{url} cannot be reached ({_short(error)}): check its name, the network and your credentials."
        ) from error


def _has_all_of(mine: Path, other: Path) -> bool:
    """Whether an archive is the same run's as the other, and has every row that this has: none is deleted."""

    def extent(path: Path) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as archive:
            created = archive.execute("SELECT value FROM meta WHERE key = 'created'").fetchone()
            there = {row[0] for row in archive.execute("SELECT name FROM sqlite_master")}
            return [
                created,
                *(
                    archive.execute(f"SELECT count(*) FROM {table}").fetchone()[0] if table in there else 0
                    for table in ("attempts", "evaluations", "events", "requests")  # the last is newer
                ),
            ]

    try:
        here, there = extent(mine), extent(other)
    except sqlite3.Error:
        return False
    return here[0] == there[0] and all(a >= b for a, b in zip(here[1:], there[1:], strict=True))


def _is_mark(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[0] == CHECKPOINTS and parts[2] == COMMITTED


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_mtime_ns


def _short(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return text if len(text) < 160 else f"{text[:157]}..."
