"""A content-addressed cache of what a run builds once: tokenizers, reward models, weights, pairs.

An entry is a directory named by what it was built from, so a changed input is another entry and
nothing goes stale. An entry is used only if every file has the size and the SHA-256 that its
manifest says: one that is half-written, truncated or edited is rebuilt, never used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from discojax.errors import UserError
from discojax.places import cache_root as default_root

try:
    import fcntl
except ImportError:  # Windows: two builders do the work twice, and the first to rename wins
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "build",
    "content_hash",
    "default_root",
    "find",
    "load_arrays",
    "save_arrays",
    "write_bytes",
    "write_json",
]

MANIFEST = "manifest.json"
FORMAT = 1  # part of every key: raise it when the layout of an entry changes

_log = logging.getLogger(__name__)
_SPACE = {errno.ENOSPC, errno.EDQUOT}
_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def content_hash(obj: Any) -> str:
    """SHA-256, in hex, of a value built of numbers, strings, bytes, arrays, sequences and mappings.

    The order of a mapping's keys does not matter, a list equals a tuple, and an array counts with
    its dtype and shape. Raises TypeError for anything else, whose text might change between runs.
    """
    digest = hashlib.sha256()
    _update(digest, obj)
    return digest.hexdigest()


def _update(digest: Any, obj: Any) -> None:
    if isinstance(obj, np.generic):
        obj = obj.item()
    if obj is None or isinstance(obj, bool | int | float | str | bytes):
        data = obj if isinstance(obj, bytes) else repr(obj).encode()
        digest.update(f"{type(obj).__name__}:{len(data)}:".encode() + data)
    elif isinstance(obj, Mapping):
        digest.update(f"map:{len(obj)}:".encode())
        for key in sorted(obj):  # strings: a mapping of mixed keys has no order and fails here
            _update(digest, key)
            _update(digest, obj[key])
    elif isinstance(obj, list | tuple):
        digest.update(f"seq:{len(obj)}:".encode())
        for item in obj:
            _update(digest, item)
    elif hasattr(obj, "__array__") and hasattr(obj, "dtype"):
        array = np.asarray(obj)
        if array.dtype.hasobject:
            raise TypeError("an array of Python objects has no content hash")
        digest.update(f"array:{array.dtype.name}:{array.shape}:".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    else:
        raise TypeError(f"{type(obj).__name__} has no content hash")


def find(kind: str, inputs: Mapping[str, Any], root: Path | str | None = None) -> Path | None:
    """The directory of an entry that is there and whole, else None. Builds and writes nothing."""
    directory = _directory(kind, inputs, root)
    return directory if _fault(directory, inputs) is None else None


def build(
    kind: str,
    inputs: Mapping[str, Any],
    make: Callable[[Path], None],
    root: Path | str | None = None,
) -> Path:
    """The directory of an entry, which `make(directory)` fills if it is not there or not whole.

    Args:
      kind: what is built, such as `"tokenizer"`: the beginning of the directory's name.
      inputs: everything that decides the result, as JSON: settings, the content hashes of what it
        is made from, and a version of the code that makes it.
      make: writes the entry's files (no sub-directories) into the directory it is given. It may
        run twice at once in two processes; one result is kept.
      root: the cache's directory, by default `default_root()`.

    Raises:
      UserError: the disk is full or the directory cannot be written.
    """
    directory = _directory(kind, inputs, root)
    if (fault := _fault(directory, inputs)) is None:
        return directory
    with _explained(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.parent / f".{directory.name}.lock") as alone:
            if alone and (fault := _fault(directory, inputs)) is None:
                return directory  # another process built it while we waited for the lock
            if fault:
                _log.warning("cache entry %s is %s; building it again", directory, fault)
            if alone:  # what a killed builder left behind
                for left in directory.parent.glob(f".{directory.name}.tmp-*"):
                    shutil.rmtree(left, ignore_errors=True)
            _fill(directory, kind, inputs, make)
    return directory


def _directory(kind: str, inputs: Mapping[str, Any], root: Path | str | None) -> Path:
    name = f"{kind}-{content_hash({'format': FORMAT, 'kind': kind, 'inputs': _plain(inputs)})[:20]}"
    return (default_root() if root is None else Path(root)).absolute() / name


def _plain(inputs: Mapping[str, Any]) -> Any:
    """`inputs` as JSON reads it back. Raises TypeError or ValueError if it is not JSON."""
    return json.loads(json.dumps(dict(inputs), allow_nan=False))


def _fault(directory: Path, inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry: None if whole, an empty string if simply absent."""
    if not directory.exists():
        return ""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        files = manifest["files"]
        if manifest["inputs"] != _plain(inputs):
            return "of other inputs"
        for name, expected in files.items():
            path = directory / name
            if path.stat().st_size != expected["bytes"]:
                return f"truncated or changed ({name} has another size than when it was written)"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"corrupt ({name} has other content than when it was written)"
    except FileNotFoundError as error:
        return f"incomplete (no {Path(error.filename).name})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "unreadable"
    return None


def _fill(directory: Path, kind: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> None:
    """Builds into a sibling and renames it into place, so that an entry is whole or absent."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=directory.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp's 0700 would keep a shared cache from being shared
        make(temporary)
        files = {}
        for path in sorted(temporary.iterdir()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
        write_json(temporary / MANIFEST, {"kind": kind, "inputs": _plain(inputs), "files": files})
        if directory.exists() and _fault(directory, inputs) is not None:
            broken = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=directory.parent))
            # Renamed before it is deleted: nobody sees an entry half-deleted.
            with contextlib.suppress(FileNotFoundError):
                directory.replace(broken / "entry")
            shutil.rmtree(broken, ignore_errors=True)
        try:
            temporary.replace(directory)
        except OSError:
            if _fault(directory, inputs) is not None:
                raise
            # Another process, without our lock, was first; its entry is as good as ours.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Waits for an advisory lock, which dies with its process; False where there is none."""
    if fcntl is None:
        yield False
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:  # some network file systems have no locks; the rename still decides
            alone = False
        yield alone


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turns a full disk or a directory that cannot be written into a sentence for the user."""
    try:
        yield
    except OSError as error:
        path = str(error.filename or root)
        # Ours are the entries in the root, the root, and the parents that it needs.
        ours = path.startswith(str(root)) or str(root).startswith(path)
        if error.errno in _SPACE:
            problem, remedy = "No space left", "free some, or set DISCOJAX_CACHE to a directory with room"
        elif error.errno in _ACCESS and ours:
            problem, remedy = "Cannot write", "set DISCOJAX_CACHE to a directory that you can write"
        else:
            raise
        raise UserError(f"{problem} in the cache at {root} ({error.strerror}): {remedy}.") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file so that a reader finds the old content or the new, never a part."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of JSON, with sorted keys, so that equal values are equal files."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves arrays as an uncompressed `.npz` without pickle; equal arrays give equal files.

    Raises TypeError for a dtype that NumPy would read back as another (objects, bfloat16).
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.kind in "OV":
            raise TypeError(f"{name} is of dtype {np.asarray(array).dtype}, which .npz does not keep")
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file (those named, or all); never unpickles."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in (file.files if names is None else names)}
