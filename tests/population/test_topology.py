"""Slices by both of their names, and devices of them on a machine that has none."""

import importlib.util

import pytest

from discojax.errors import UserError
from discojax.population import topology as slices
from discojax.population.mesh import make_mesh
from discojax.population.topology import compile_devices, find_topology, topologies


@pytest.mark.parametrize(
    ("name", "expected", "chips"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v6e-8", "v6e:2x4", 8),
        ("V5P-128", "v5p:4x4x4", 64),  # the cloud counts cores there
        ("v4-8", "v4:2x2x1", 4),
    ],
)
def test_a_slice_is_found_by_either_name(name, expected, chips):
    found = find_topology(name)
    assert (found.name, found.chips) == (expected, chips)
    assert find_topology(found.name) == find_topology(found.cloud) == found


@pytest.mark.parametrize(
    ("name", "nearest"), [("v5e:4x5", "v5e:4x4"), ("v5litpod-16", "v5litepod-16"), ("v5p-127", "v5p-128")]
)
def test_a_name_that_is_none_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"There is no TPU slice '{name}'\. Did you mean '{nearest}'\?"):
        find_topology(name)


def test_no_two_slices_have_one_name():
    known = topologies()
    assert len({x.name for x in known}) == len({x.cloud for x in known}) == len(known)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"takes libtpu, though no TPU: run `pip install 'jax\[tpu\]'`"):
        compile_devices(find_topology("v5e:4x4"))


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", [f"{chip.name}-{16 * chip.cores}" for chip in slices.CHIPS])
def test_libtpu_has_as_many_devices_as_a_slice_has_chips(name):
    pytest.importorskip("libtpu")
    topology = find_topology(name)
    devices = compile_devices(topology)
    assert len(devices) == topology.chips
    mesh = make_mesh(2, 1, 8, among=devices)  # in 3D it takes a part of one of the slice's own axes
    assert mesh.size == 16 and len({device.id for device in mesh.devices.flat}) == 16


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", slices.CHIPS, ids=lambda chip: chip.name)
def test_a_chip_has_the_memory_that_the_compiler_gives_it(chip):
    pytest.importorskip("libtpu")
    import jax

    device = compile_devices(slices.Topology(chip, chip.layout[1]))[0]
    mesh = jax.sharding.Mesh([device], ("x",))
    large = jax.ShapeDtypeStruct(
        (2**18, 2**18), "float32", sharding=jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED") as refused:
        jax.jit(lambda x: x + 1).lower(large).compile()
    assert f"({chip.memory / 2**30:.2f}G)" in str(refused.value)
