"""Going on with a run that is there: where it is found, and the config that it was started with."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from discojax.command_line import PROGRAM
from discojax.config import Config, load
from discojax.errors import UserError, nearest
from discojax.places import is_remote, working_folder

__all__ = ["named", "resumed", "saved"]


def resumed(config: Config, options: argparse.Namespace) -> tuple[Config, bool]:
    """The config to go by, and whether its run is there and is to go on.

    Args:
      config: as it was asked for.
      options: `resume`, the run that is meant ("" for that of the config) or None; `resume_or_start`,
        whether the config's run goes on where there is one and else begins.

    Raises:
      UserError: there is no run to go on with, or where it lies cannot be reached.
    """
    if options.resume_or_start:
        from discojax.search import storage

        if options.resume is not None:
            raise UserError(
                "--resume goes on with a run, and --resume-or-start begins it where there is none: give one "
                "of them."
            )
        if storage.taken(config.run.path, config.run.remote):
            options.resume = ""
    return (config, False) if options.resume is None else (saved(config, options), True)


def named(config: Config, name: str) -> Config:
    """The config with that name for its run, if the user gave none."""
    given = config.run.name != type(config.run)().name
    return config if given else dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))


def saved(config: Config, options: argparse.Namespace) -> Config:
    """The config that a run was started with, with today's overrides; its folder is where it lies now."""
    directory = config.run.directory
    if is_remote(options.resume):
        directory, _, options.resume = options.resume.rstrip("/").rpartition("/")
    if is_remote(directory):
        return _fetched(directory, options.resume or config.run.name, options)
    folder = config.run.path
    if options.resume:
        folder = Path(options.resume)
        if not (folder / "config.yaml").is_file():
            folder = Path(config.run.directory) / options.resume
    if not (folder / "config.yaml").is_file():
        there = [file.parent.name for file in sorted(folder.parent.glob("*/config.yaml"))]
        hint = nearest(folder.name, there) or f" Start one with `{PROGRAM} discover`."
        raise UserError(f"There is no run to go on with in {str(folder)!r}.{hint}")
    saved = load(folder / "config.yaml", options.overrides)
    place = folder.resolve()
    directory = str(folder.parent) if folder.name == place.name else str(place.parent)
    return dataclasses.replace(
        saved, run=dataclasses.replace(saved.run, name=place.name, directory=directory)
    )


def _fetched(directory: str, name: str, options: argparse.Namespace) -> Config:
    """The config of a run in a bucket, which is brought to this machine."""
    from discojax.search import storage

    folder = working_folder(directory) / name
    if not storage.fetch(f"{directory}/{name}", folder):
        raise UserError(f"There is no run to go on with at {directory}/{name}.")
    saved = load(folder / "config.yaml", options.overrides)
    return dataclasses.replace(saved, run=dataclasses.replace(saved.run, name=name, directory=directory))
