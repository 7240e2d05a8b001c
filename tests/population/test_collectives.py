"""The texts are lines of real programs of both rows of jax, and of a TPU's."""

import jax
import numpy as np
import pytest

from discojax.population.collectives import Collective, collectives


@pytest.fixture(scope="module")
def mesh():
    devices = np.array([jax.devices()[0]] * 8).reshape(2, 2, 2)  # only its shape matters here

    class Mesh:
        axis_names, size = ("lane", "data", "model"), 8

    mesh = Mesh()
    mesh.devices = devices
    return mesh


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%psum.8 = f32[16,8]{1,0} all-reduce(%dot.12), channel_id=1, "
            "replica_groups={{0,2},{1,3},{4,6},{5,7}}, use_global_device_ids=true, to_apply=%region_5.5",
            ("all-reduce", {"data"}, 512),
        ),
        (
            "%all-reduce.6 = f32[4,16]{1,0} all-reduce(%ynn_fusion.1), channel_id=2, "
            "replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add.clone",
            ("all-reduce", {"model"}, 256),
        ),
        (
            "ROOT %a.1 = (f32[3]{0}, bf16[2,2]{1,0}) all-reduce(%x, %y), replica_groups=[2,4]<=[4,2]T(1,0)",
            ("all-reduce", {"lane", "data"}, 20),
        ),
        (
            "%all_gather.4 = f32[8]{0} all-gather(%m), channel_id=1, "
            "replica_groups=mesh['lane'=2,'data'=2,'model'=2] {'data'}, dimensions={0}",
            ("all-gather", {"data"}, 32),
        ),
        (
            "%all-gather.13 = f32[8,64]{0,1} all-gather(%w), replica_groups=mesh['axis_0'=2,'axis_1'=2,"
            "'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={1}",
            ("all-gather", {"model"}, 2048),
        ),
        (
            "%s = (f32[2]{0}, f32[4]{0:T(128)S(1)}) all-gather-start(%p), "
            "replica_groups={{0,4},{1,5},{2,6},{3,7}}",
            ("all-gather", {"lane"}, 16),
        ),
        (
            "%c = pred[6]{0} collective-permute(%p), channel_id=3, "
            "source_target_pairs={{0,1},{1,0},{2,3},{3,2}}",
            ("collective-permute", {"model"}, 6),
        ),
        (
            "%r = s32[] all-reduce(%p), replica_groups={}, to_apply=%add",
            ("all-reduce", {"lane", "data", "model"}, 4),
        ),
    ],
)
def test_a_collective_is_read_from_its_line(mesh, line, expected):
    kind, axes, size = expected
    assert collectives(f"HloModule m\n  {line}\n", mesh) == [Collective(kind, frozenset(axes), size)]


def test_what_waits_for_a_collective_or_only_names_one_is_none(mesh):
    text = """
      %d = f32[4]{0} all-gather-done(%s)
      %f = f32[4]{0} fusion(%all-reduce.6), kind=kLoop, calls=%fused
    """
    assert collectives(text, mesh) == []


LOOPS = """HloModule jit_step

%cond.1 (p.1: (s32[], f32[4])) -> pred[] {
  %p.1 = (s32[], f32[4]{0}) parameter(0)
  %constant.3 = s32[]{:T(128)} constant(12)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %compare.2 = pred[]{:T(512)} compare(%i.1, %constant.3), direction=LT
}

%until_done (p.2: (s32[], f32[4])) -> pred[] {
  %p.2 = (s32[], f32[4]{0}) parameter(0)
  ROOT %done = pred[] get-tuple-element(%p.2), index=1
}

%layer (p.3: (s32[], f32[4])) -> (s32[], f32[4]) {
  %inner = (s32[], f32[4]{0}) while(%p.3), condition=%until_done, body=%search
  %gather = f32[4]{0} all-gather(%w), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
}

%search (p.4: (s32[], f32[4])) -> (s32[], f32[4]) {
  %sum = f32[] all-reduce(%x), replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]{0}) while(%start), condition=%cond.1, body=%layer
  %once = f32[2]{0} all-reduce(%y), replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add
}
"""


def test_what_is_in_a_loop_is_met_at_every_turn_that_the_text_tells_of(mesh):
    found = {(each.kind, each.bytes): each.times for each in collectives(LOOPS, mesh)}
    assert found == {("all-gather", 16): 12, ("all-reduce", 4): 12, ("all-reduce", 8): 1}
