"""Where things are kept: the user's cache, what stands on this machine for a bucket, and how runs go on."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from discojax.errors import UserError

__all__ = ["cache_root", "going_on", "is_remote", "taking_along", "working_folder"]


def cache_root() -> Path:
    """`$DISCOJAX_CACHE`, else `discojax` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    if chosen := os.environ.get("DISCOJAX_CACHE"):
        return Path(chosen).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # its specification says that a relative path is to be ignored
        return Path(xdg) / "discojax"
    try:
        return Path.home() / ".cache" / "discojax"
    except RuntimeError:
        raise UserError(
            "There is no home directory to cache in: set DISCOJAX_CACHE to a directory that you can write."
        ) from None


def is_remote(directory: str) -> bool:
    """Whether this is no folder of this machine, but such as `gs://bucket/runs`."""
    return "://" in directory


def working_folder(directory: str) -> Path:
    """The folder that a directory's runs are worked on in: itself, or for a remote one a local stand-in.

    >>> working_folder("runs").as_posix(), working_folder("gs://bucket/runs").parts[-2:]
    ('runs', ('runs', 'gs-bucket-runs'))
    """
    if not is_remote(directory):
        return Path(directory)
    return cache_root() / "runs" / re.sub(r"[^A-Za-z0-9_.]+", "-", directory).strip("-.")


def going_on(command: str, folder: Path) -> str:
    """What to type to go on with the run in a folder that `command` began."""
    if command == "transfer":  # it goes on by itself, beside the run that it is from
        return f"python -m discojax.launch transfer {folder.with_name(folder.name.removesuffix('-transfer'))}"
    return f"python -m discojax.launch {command} --resume {folder}"


def taking_along(objective: str, folder: Path) -> str:
    """What to type to have an objective of the run in a folder for PyTorch."""
    return shlex.join(
        ["python", "-m", "discojax.launch", "export", objective, "--run", str(folder), "--to", "torch"]
    )
