#!/usr/bin/env bash
# A run on one machine with NVIDIA GPUs: one process, all of them.
#
#   DRY_RUN=1 bash launch/gpu_server.sh                   # prints the commands and runs none
#   bash launch/gpu_server.sh                             # from the root of the clone
#
# Needs: Python 3.11 or newer and a driver; the rest of CUDA comes with JAX. With Docker, and a driver of 580 or
# newer, instead:
#   docker build --file launch/docker/cuda.Dockerfile --tag discojax:cuda . &&
#   docker run --gpus all --volume "$PWD/runs:/discojax/runs" discojax:cuda discover
# Ctrl-C and SIGTERM save. Run this again: it goes on.
set -euo pipefail

NAME=${NAME:-discojax}
RUNS=${RUNS:-runs}
LANES=${LANES:-64}
CONFIG=${CONFIG:-quickstart}

run() { # prints a command, and runs it unless this is a dry run
  printf '%q ' "$@" && echo
  [ -n "${DRY_RUN:-}" ] || "$@"
}

run python3 -m venv .venv
extra='.[cuda]' # CUDA 13, for a driver of 580 or newer
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null || true)
case ${driver%%.*} in
  4[0-9][0-9] | 5[0-7][0-9]) extra='.[cuda12]' ;;
esac
run .venv/bin/pip install -q -e "$extra"

# Lanes are divided over the GPUs by themselves (population.mesh.lane=0). Before anything is trained the run
# says whether they fit, and how many would.
run .venv/bin/python -m discojax.launch discover --config "$CONFIG" --resume-or-start \
  "run.name=$NAME" "run.directory=$RUNS" "population.lanes=$LANES"
