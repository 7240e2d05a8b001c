"""What `losses NAME` draws is the loss: its dots are read back and held against the formula."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from discojax.launch import main

BETA = 0.5
DOTS = [
    (0x40, 0, 0), (0x04, 0, 1), (0x02, 0, 2), (0x01, 0, 3),
    (0x80, 1, 0), (0x20, 1, 1), (0x10, 1, 2), (0x08, 1, 3),
]  # fmt: skip
"""Bits of a braille character, with their column and their row from the bottom."""


def sigmoid(u):
    return 1 / (1 + np.exp(-u))


def discopop(x):
    return sigmoid(-x / 0.05) * np.logaddexp(0, -x) + sigmoid(x / 0.05) * np.exp(-x)


def discopop_slope(x):
    gate, logistic, power = sigmoid(x / 0.05), np.logaddexp(0, -x), np.exp(-x)
    return -(1 - gate) * sigmoid(-x) - gate * power + gate * (1 - gate) / 0.05 * (power - logistic)


FORMULAS = {  # of x = beta * margin: the value, and its slope
    "dpo": (lambda x: np.logaddexp(0, -x), lambda x: -sigmoid(-x)),
    "slic": (lambda x: np.maximum(0, 1 - x), lambda x: -1.0 * (x < 1)),
    "exp": (lambda x: np.exp(-x), lambda x: -np.exp(-x)),
    "discopop": (discopop, discopop_slope),
}


def read(plot: str) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The margins and values of all dots of a printed plot, by the labels of its axes; and a dot's size."""
    rows = re.findall(r"^ *(-?[\d.]+) \| ([\u2800-\u28ff]+)", plot, re.MULTILINE)[::-1]  # from the bottom
    bottoms = [float(label) for label, _ in rows]
    ticks, labels = re.findall(r"^-+(\|.*)-> \(ρ\)$\n^ *(\|.*)$", plot, re.MULTILINE)[0]
    places = [match.start() - 2 for match in re.finditer(r"\|", ticks)][1:]
    margins = [float(label) for label in labels[1:].split()]
    across = (margins[-1] - margins[0]) / (places[-1] - places[0]) / 2
    up = (bottoms[-1] - bottoms[0]) / (len(rows) - 1) / 4
    found = []
    for number, (_, characters) in enumerate(rows):
        for place, character in enumerate(characters):
            for bit, right, above in DOTS:
                if ord(character) - 0x2800 & bit:
                    found.append((2 * (place - places[0]) + right, 4 * number + above))
    columns, heights = np.array(found).T
    return margins[0] + columns * across, bottoms[0] + heights * up, across, up


def wrong_dots(plot: str, function: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Dots that are not on the function's curve, and margins at which the curve has no dot."""
    margin, value, across, up = read(plot)
    columns, heights = np.round(margin / across), np.round(value / up)
    vertical = [c for c in set(columns) if len(set(heights[columns == c])) > 40]  # the axes go all the way
    horizontal = [h for h in set(heights) if len(set(columns[heights == h])) > 70]
    wrong = []
    for at in sorted(set(columns) - set(vertical)):
        near = function(BETA * across * np.linspace(at - 1, at + 1, 81))
        here = value[(columns == at) & ~np.isin(heights, horizontal)]
        beside = here[(here < near.min() - 1.5 * up) | (here > near.max() + 1.5 * up)]
        wrong += [f"a dot at {across * at:.2f}, {each:.3f}" for each in beside]
        expected = function(BETA * across * at)
        hidden = any(abs(expected - up * height) <= 1.5 * up for height in horizontal)
        covered = here.size and here.min() - 1.5 * up <= near.max() and near.min() <= here.max() + 1.5 * up
        if not hidden and not covered:
            wrong.append(f"no dot at {across * at:.2f}, {expected:.3f}")
    return wrong


@pytest.fixture(scope="module")
def drawn() -> Callable[[str], list[str]]:
    """The two plots that `losses NAME` prints in 80 columns: value and slope."""
    kept: dict[str, list[str]] = {}

    def draw(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
        if name not in kept:
            assert main(["losses", name, f"search.betas=[{BETA}]"]) == 0
            text = capsys.readouterr().out
            value, slope = text.index("(loss)"), text.index("(slope)")
            kept[name] = [text[value:slope], text[slope:]]
        return kept[name]

    return draw


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("name", FORMULAS)
def test_the_curve_in_the_terminal_is_the_loss(
    name: str, drawn: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    value, slope = drawn(name, capsys)
    function, derivative = FORMULAS[name]
    margin, *_ = read(value)
    assert margin.min() == pytest.approx(-4 / BETA) and margin.max() > 0.95 * 4 / BETA
    assert wrong_dots(value, function) == []
    assert wrong_dots(slope, lambda x: BETA * derivative(x)) == []


def test_another_curve_would_be_seen(
    drawn: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    value, slope = drawn("dpo", capsys)
    function, derivative = FORMULAS["dpo"]
    assert wrong_dots(value, FORMULAS["discopop"][0])
    assert wrong_dots(value, lambda x: function(x) + 0.3)  # higher
    assert wrong_dots(value, lambda x: function(x - 0.5))  # further to the right
    assert wrong_dots(value, lambda x: function(-x))  # mirrored
    assert wrong_dots(slope, derivative)  # the slope in x, not in the margin


def test_discopop_has_its_bump(drawn: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Between its two stationary points, x = -0.1186 and 0.0720, the slope is above zero, and only there."""
    _, slope = drawn("discopop", capsys)
    margin, value, across, up = read(slope)
    uphill = margin[(value > 2 * up) & (np.abs(margin) > across / 2)]
    assert uphill.size and -0.1186 / BETA - across < uphill.min() and uphill.max() < 0.0720 / BETA + across
