"""The pictures exist, show what they were given, and take what real runs give them."""

import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from discojax.report.plots import Curve, Series, curves_png, frontier_png

BLACK, BLUE = (0, 0, 0), (0x00, 0x72, 0xB2)


def series(name, rise, n=4):
    kl = np.array([1.0, 4.0, 9.0, 17.0])[:n]
    reward = 0.5 + rise * (1 - np.exp(-kl / 6))
    return Series(name, np.array([0.5, 0.2, 0.1, 0.05])[:n], kl, reward, reward - 0.02, reward + 0.02)


def pixels(path, colour):
    image = np.round(imread(path)[..., :3] * 255)
    return np.argwhere((np.abs(image - np.array(colour)) < 8).all(-1))


def test_the_better_frontier_is_drawn_above(tmp_path):
    path = tmp_path / "frontier.png"
    frontier_png(path, [series("new", 0.3), series("dpo", 0.1)], sft_reward=0.5, budget=10.0, title="task")
    image = imread(path)
    assert image.shape[0] > 500 and image.shape[1] > 900
    # In the right half of the axes, where both are: rows count from the top.
    columns = slice(int(0.45 * image.shape[1]), int(0.75 * image.shape[1]))
    above = [p[0] for p in pixels(path, BLUE) if columns.start < p[1] < columns.stop]
    below = [p[0] for p in pixels(path, BLACK) if columns.start < p[1] < columns.stop and p[0] < 600]
    assert np.median(above) < np.median(below) - 50


def test_same_input_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        frontier_png(tmp_path / name, [series("dpo", 0.2)], sft_reward=0.5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "items",
    [
        [],
        [series("one", 0.2, n=1)],
        [series("worse", -0.2), series("dpo", 0.0)],
        [series("x" * 60, 0.2), *(series(str(i), 0.2) for i in range(14))],
        [Series("nan", *np.full((5, 3), np.nan))],
        [Series("part", np.ones(2), *np.array([[1.0, np.nan], [0.6, np.nan], [0.5, np.nan], [0.7, np.nan]]))],
        [Series("none", *np.zeros((5, 0)))],
        [series("$x_1^$", 0.2)],
    ],
)
def test_frontiers_that_runs_really_give(tmp_path, items):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frontier_png(tmp_path / "f.png", items, sft_reward=0.5, budget=10.0)
    assert imread(tmp_path / "f.png").std() > 0


MARGIN = np.linspace(-60, 60, 241)


def curve(name, f):
    with np.errstate(all="ignore"):
        return Curve(name, MARGIN, f(MARGIN), np.gradient(f(MARGIN), MARGIN))


DPO = curve("dpo", lambda m: np.logaddexp(0, -0.05 * m))


def test_an_exploding_loss_does_not_flatten_the_baseline(tmp_path):
    path = tmp_path / "c.png"
    curves_png(path, [curve("huge", lambda m: np.exp(-2 * m)), DPO], title="β = 0.05")
    rows = pixels(path, BLACK)
    value_panel = rows[(rows[:, 1] > 130) & (rows[:, 1] < 600) & (rows[:, 0] < 560)]
    assert np.ptp(value_panel[:, 0]) > 80


@pytest.mark.parametrize(
    "items",
    [
        [],
        [DPO],
        [curve("ipo", lambda m: (m - 10) ** 2)],
        [curve("flat", np.zeros_like), DPO],
        [curve("bad", lambda m: np.full_like(m, np.nan)), DPO],
        [curve("inf", lambda m: np.where(m < -20, np.inf, -m)), DPO],
        [curve(f"c{i}", lambda m: np.maximum(0, 1 - 0.05 * m)) for i in range(12)],
    ],
)
def test_curves_that_proposers_really_write(tmp_path, items):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves_png(tmp_path / "c.png", items)
    assert imread(tmp_path / "c.png").std() > 0
