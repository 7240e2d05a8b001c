"""Candidates are parsed and arrays are read in several threads at once."""

import io
import sys
import threading

import numpy as np
import pytest

from discojax import candidates, objectives
from discojax.search.records import unpack


@pytest.fixture
def many_turns():
    """Threads take turns so often that two are sure to meet inside the parser."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("many_turns")
def test_parsing_in_several_threads_fails_in_none():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, reward=np.zeros(3), kl=np.ones(3))
    source = objectives.get("discopop").source
    failed = []

    def repeat(function):
        try:
            for _ in range(300):
                function()
        except BaseException as error:  # a SystemError, where the lock is not held
            failed.append(error)

    work = [lambda: unpack(buffer.getvalue()), lambda: candidates.parse(source)] * 2
    threads = [threading.Thread(target=repeat, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
