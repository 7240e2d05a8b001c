#!/usr/bin/env bash
# A run on GKE: a JobSet over a TPU slice, made by xpk (https://github.com/AI-Hypercomputer/xpk).
#
#   DRY_RUN=1 bash launch/gke_xpk.sh                      # prints the commands and runs none
#   PROJECT=mine CLUSTER=mine RUNS=gs://my-bucket/runs bash launch/gke_xpk.sh
#
# Needs: `pip install xpk`, gcloud, kubectl and docker, logged in, and a bucket that the cluster's nodes may
# write. The cluster is made if it is not there; `xpk cluster delete` ends its costs.
# A node that is taken away is told (SIGTERM): the run saves, and all pods exit with 42, as they do where one
# is lost without a word. xpk starts the job again after that code and goes on; a mistake (2) ends it.
set -euo pipefail

PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-a}
CLUSTER=${CLUSTER:-discojax}
SLICE=${SLICE:-v5litepod-16}
NAME=${NAME:-discojax}
RUNS=${RUNS:-gs://my-bucket/runs}
LANES=${LANES:-512}
CONFIG=${CONFIG:-quickstart}
IMAGE=${IMAGE:-gcr.io/$PROJECT/discojax:tpu}

run() { # prints a command, and runs it unless this is a dry run
  printf '%q ' "$@" && echo
  [ -n "${DRY_RUN:-}" ] || "$@"
}
where=(--project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER")

# 1. Does it fit? Nothing is rented if not.
run python -m discojax.launch plan --config "$CONFIG" --topology "$SLICE" --quick "population.lanes=$LANES"

# 2. The image, from the root of the clone.
run docker build --file launch/docker/tpu.Dockerfile --tag "$IMAGE" .
run docker push "$IMAGE"

# 3. A cluster with one slice; does nothing to one that has it.
run xpk cluster create "${where[@]}" --tpu-type="$SLICE" --num-slices=1 --spot

# 4. One pod a host, each with the same command: a single one, so that SIGTERM reaches it. A minute is time to save.
command="python -m discojax.launch discover --config $CONFIG --resume-or-start --preemption-code 42 \
run.name=$NAME run.directory=$RUNS population.lanes=$LANES"
run xpk workload create "${where[@]}" --workload="$NAME" --tpu-type="$SLICE" --num-slices=1 \
  --docker-image="$IMAGE" --max-restarts=100 --termination-grace-period-seconds=60 \
  --command="$command"

# 5. What it says: `xpk workload list`, and the logs of the first pod.
run xpk workload list "${where[@]}"
