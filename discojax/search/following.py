"""The processes that another one leads: they do the device work that it tells them of, until it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from discojax.population import hosts
from discojax.population.checkpoint import Checkpoints
from discojax.population.lanes import LaneState
from discojax.population.operations import Station, perform
from discojax.search import workbench
from discojax.search.instruments import Instruments, Look, Open, opened

__all__ = ["follow"]


def follow() -> int:
    """Does the device work of a run that another process leads, until it ends; returns the exit code."""
    instruments: Instruments | None = None
    station: Station | None = None
    bench: workbench.Bench | None = None
    state: LaneState | None = None
    checkpoints: dict[tuple[str, int], Checkpoints] = {}

    def kept(place: tuple[str, int] | None) -> Checkpoints | None:
        if place is None:
            return None
        if place not in checkpoints:
            # When there is a time to save, and what to say, is the leader's.
            checkpoints[place] = Checkpoints(place[0], interval=0, keep=place[1], say=lambda _: None)
        return checkpoints[place]

    def act(message: Any) -> None:
        nonlocal instruments, station, bench, state
        if isinstance(message, Look):
            hosts.all_see(message.file)
        elif isinstance(message, Open):
            state = station = None  # their memory is needed
            instruments, station = opened(instruments, message)
            station = replace(station, checkpoints=kept(message.kept))
        elif bench is not None or isinstance(message, workbench.Order):
            bench, state = workbench.follow(bench, state, message, kept)
        else:
            assert station is not None
            state, _ = perform(station, state, message)

    try:
        return hosts.follow(act)
    finally:
        for each in checkpoints.values():
            each.close()
