#!/usr/bin/env bash
# A run on a TPU VM slice: asks for it in Google Cloud's queue, installs, runs, and gives it back.
#
#   DRY_RUN=1 bash launch/tpu_vm.sh                       # prints the commands and runs none
#   PROJECT=mine RUNS=gs://my-bucket/runs SOURCE=https://github.com/me/discojax bash launch/tpu_vm.sh
#
# Needs: gcloud, logged in (`gcloud auth login`), TPU quota in ZONE, and a bucket that the TPU's service
# account may write; SOURCE is what the hosts clone. For the first command: `pip install -e '.[tpu]'` here; it
# takes no TPU.
# Spot slices cost less and may be taken away at any time. Run this again then: it goes on.
set -euo pipefail

PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-a}
SLICE=${SLICE:-v5litepod-16}          # as `plan --topology` and gcloud name it
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # v4: tpu-ubuntu2204-base; v5p: v2-alpha-tpuv5; v6e: v2-alpha-tpuv6e
NAME=${NAME:-discojax}                # of the slice and of the run
RUNS=${RUNS:-gs://my-bucket/runs}
LANES=${LANES:-512}
CONFIG=${CONFIG:-quickstart}
SOURCE=${SOURCE:-https://github.com/YOUR_ACCOUNT/discojax}

run() { # prints a command, and runs it unless this is a dry run
  printf '%q ' "$@" && echo
  [ -n "${DRY_RUN:-}" ] || "$@"
}
where=(--project="$PROJECT" --zone="$ZONE")
everywhere() { run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"; }

# 1. Does it fit? Nothing is rented if not.
run python -m discojax.launch plan --config "$CONFIG" --topology "$SLICE" --quick "population.lanes=$LANES"

# 2. Into the queue, and wait for our turn. An old request of this name, such as a preempted one, goes first.
release() { run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet || true; }
release
trap release EXIT # however this ends: nobody pays for a slice that does nothing
run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
  --accelerator-type="$SLICE" --runtime-version="$RUNTIME" --spot
state=(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" '--format=value(state.state)')
run "${state[@]}"
until [ -n "${DRY_RUN:-}" ]; do
  case $("${state[@]}") in
    ACTIVE) break ;;
    FAILED | SUSPENDED) echo "The request failed: see \`gcloud compute tpus queued-resources describe\`." >&2 && exit 1 ;;
  esac
  sleep 30
done

# 3. The same on every host: a Python of its own (the image's is too old), the code, what it needs.
uv="\$HOME/.local/bin/uv" # of the host
everywhere "{ test -d discojax || git clone --depth 1 $SOURCE discojax; } && cd discojax \
&& curl -LsSf https://astral.sh/uv/install.sh | sh && $uv venv --allow-existing --python 3.12 \
&& $uv pip install -e '.[tpu,gcs]'"

# 4. One command on every host: they find one another, and the first leads.
everywhere "cd discojax && .venv/bin/python -m discojax.launch discover --config $CONFIG --resume-or-start \
run.name=$NAME run.directory=$RUNS population.lanes=$LANES"
