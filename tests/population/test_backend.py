"""Which form of the step a machine is given."""

import jax
import pytest

from discojax.population.backend import choose_implementation


@pytest.mark.parametrize("wanted", ["map", "vmap"])
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_what_the_user_chose_is_taken(wanted, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert choose_implementation(wanted) == wanted


@pytest.mark.parametrize(("backend", "best"), [("cpu", "map"), ("gpu", "vmap"), ("tpu", "vmap")])
def test_otherwise_lanes_take_turns_on_a_cpu_and_go_together_elsewhere(backend, best, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert choose_implementation("auto") == best


def test_this_machine_is_asked_what_it_is():
    assert choose_implementation("auto") == ("map" if jax.devices()[0].platform == "cpu" else "vmap")
