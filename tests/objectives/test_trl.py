"""Ours against TRL's own trainer: value and gradient, for all of its loss types."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from discojax import objectives

HERE = Path(__file__).parent
SCRIPT = HERE / "trl_golden.py"
GOLDEN = json.loads((HERE / "trl_golden.json").read_text())
RESULTS = GOLDEN["results"]


def identity(result):
    settings = ",".join(f"{k}={v}" for k, v in result["trl_settings"].items())
    return f"{result['loss_type']}({settings})-{result['beta']}-{result['rows'].replace(' ', '-')}"


@pytest.mark.parametrize("result", RESULTS, ids=identity)
def test_agrees_with_trl(result, mean_and_gradient, x64):
    rows = GOLDEN["inputs"][result["rows"]]
    logps = objectives.LogProbs(*(np.asarray(rows[field]) for field in objectives.LogProbs._fields))
    objective = objectives.get(result["name"], **result["settings"])
    value, gradient = mean_and_gradient(objective, logps, result["beta"])
    # TRL holds EXO's label smoothing in float32.
    rtol = 1e-6 if result["loss_type"] == "exo_pair" else 1e-10
    np.testing.assert_allclose(value, result["loss"], rtol=rtol)
    np.testing.assert_allclose(gradient["policy_chosen"], result["chosen"], rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(gradient["policy_rejected"], result["rejected"], rtol=rtol, atol=1e-12)


def test_the_golden_file_is_of_this_script():
    script = runpy.run_path(str(SCRIPT))
    assert GOLDEN["inputs"] == script["INPUTS"]
    expected = {
        (loss_type, str(trl_settings), name, str(settings), beta, rows)
        for loss_type, trl_settings, name, settings in script["CASES"]
        for beta in script["BETAS"]
        for rows in script["INPUTS"]
    }
    recorded = {
        (r["loss_type"], str(r["trl_settings"]), r["name"], str(r["settings"]), r["beta"], r["rows"])
        for r in RESULTS
    }
    assert recorded == expected
    assert len({r["loss_type"] for r in RESULTS}) == 15


@pytest.mark.parity
def test_trl_still_gives_the_golden_values(tmp_path):
    """Runs TRL now, in this Python or in the one that `TRL_PYTHON` names."""
    python = os.environ.get("TRL_PYTHON", sys.executable)
    find = "import importlib.util as u, sys; sys.exit(not (u.find_spec('torch') and u.find_spec('trl')))"
    if subprocess.run([python, "-c", find]).returncode:
        pytest.skip("torch and trl are not installed; TRL_PYTHON may name a Python that has them")
    output = tmp_path / "golden.json"
    subprocess.run(
        [python, str(SCRIPT), "--output", str(output)], check=True, capture_output=True, timeout=300
    )
    live = json.loads(output.read_text())["results"]
    assert len(live) == len(RESULTS)
    for now, then in zip(live, RESULTS, strict=True):
        for field in ("loss", "chosen", "rejected"):
            np.testing.assert_allclose(now[field], then[field], rtol=1e-9, atol=1e-12, err_msg=identity(then))
