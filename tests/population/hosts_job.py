"""One process of a job on this machine, which does what a scenario says.

python hosts_job.py SCENARIO [--coordinator HOST:PORT --processes N --process I]
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any


def act(message: Any) -> None:
    """The follower's side: works, fails, dies or hangs."""
    from discojax.errors import UserError
    from discojax.population import hosts

    match message:
        case ("share", name):
            devices_work(hosts.given(name))
        case ("fail",):
            raise UserError("its disk is full.")
        case ("die",):
            os.kill(os.getpid(), signal.SIGKILL)
        case ("hang",):
            time.sleep(600)
        case ("ask to stop",):
            os.kill(os.getpid(), signal.SIGTERM)


def devices_work(tree: Any) -> None:
    """Puts arrays over the devices of all processes, and has them whole again in each."""
    import jax
    import numpy as np

    from discojax.population.mesh import make_mesh, own_part
    from discojax.population.placement import fetch, put

    mesh = make_mesh()
    lanes = jax.NamedSharding(mesh, jax.P("lane"))
    placed = put(tree["lanes"], lanes)
    mine = [shard.index[0].start or 0 for shard in placed.addressable_shards]
    count = len(tree["lanes"]) // jax.process_count()
    assert mine == [count * jax.process_index()]  # a process has its own lanes, next to one another
    assert own_part(mesh).devices.ravel().tolist() == jax.local_devices()
    doubled = jax.jit(lambda x: 2 * x, out_shardings=lanes)(placed)
    back = fetch({"doubled": doubled, "text": "as it was", "whole": np.arange(3)})
    np.testing.assert_array_equal(back["doubled"], 2 * tree["lanes"])
    assert back["text"] == "as it was" and type(back["whole"]) is np.ndarray


def see() -> None:
    """Says which process it is of how many, with how many devices, and which GPUs it would take."""
    import jax
    from jax._src import xla_bridge

    visible = xla_bridge.CUDA_VISIBLE_DEVICES.value
    print(jax.process_index(), jax.process_count(), jax.local_device_count(), visible)


def look_late(hosts: Any) -> None:
    """Our own threads are late to see that the leader is gone."""
    deserted = hosts._deserted

    def late() -> None:
        if threading.current_thread().name in ("MainThread", "pulse"):
            time.sleep(60)
        deserted()

    hosts._deserted = late


def main() -> int:
    from discojax.errors import UserError
    from discojax.population import hosts
    from discojax.population.joining import join

    scenario, place = sys.argv[1], sys.argv[3::2]
    if scenario == "die":
        hosts._SILENCE = 4.0  # in the others nobody is lost, however slow the machine
    if scenario == "leader dies, as JAX sees first":
        look_late(hosts)
    process = join(*place)
    assert not hosts.alone()
    if scenario == "see":
        see()
    if process:
        return hosts.follow(act)
    try:
        lead(hosts, scenario)
    except UserError as error:
        print(error)
        hosts.finish(2)
        return 2
    hosts.finish(3 if scenario == "share" else 0)
    return 3 if scenario == "share" else 0


def lead(hosts: Any, scenario: str) -> None:
    import ml_dtypes
    import numpy as np

    tree = {
        "lanes": np.arange(8, dtype=np.float32).reshape(4, 2),
        "odd": np.array([-0.0, np.nan, 1e-45], np.float32),
        "half": np.arange(5).astype(ml_dtypes.bfloat16),
        "flags": np.array([True, False, True]),
        "one": np.int64(2**40),
    }
    if scenario == "share":
        for _ in range(2):  # given once, used twice
            hosts.give("content", tree)
            hosts.tell(("share", "content"))
            devices_work(tree)
        for number in range(150):  # more at once than anyone hears
            hosts.tell(("nothing", number))
        time.sleep(3)  # a leader may think; nobody's patience ends
        hosts.tell(("share", "content"))
        devices_work(tree)
    elif scenario == "ask to stop":
        hosts.tell((scenario,))
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("stopped here")))
            time.sleep(60)
        finally:
            hosts.finish(0)
    elif scenario == "see":
        hosts.tell((scenario,))
    elif scenario.startswith("leader dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif scenario == "hang":
        hosts.tell((scenario,))
        hosts.finish(0)
        raise AssertionError("it left without those that did not answer")
    else:
        hosts.tell((scenario,))
        if scenario == "die":
            hosts.tell(("share", "content"))
            devices_work(tree)  # alone, with a device that is not there any more
        for _ in range(600):
            time.sleep(0.1)
            hosts.tell(("nothing",))


if __name__ == "__main__":
    from discojax.population.stopping import Preempted, heeded

    try:
        with heeded():
            code = main()
    except Preempted:
        code = print("told to end")  # type: ignore[func-returns-value]
    sys.exit(code)
