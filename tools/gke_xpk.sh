#!/usr/bin/env bash
# One run on TPU slices of a GKE cluster, by xpk. See docs/pods.md.
#
#   tools/gke_xpk.sh NAME --config=… --workdir=…
#
# The environment names the rest: CLUSTER, ZONE, PROJECT, TPU_TYPE (v6e-16), IMAGE (a Docker image with this repository in
# its working folder and jax[tpu]), and STORAGE, a storage that `xpk storage attach` gave the cluster; --workdir, data and
# weights are below its mount point. SLICES (1) and RESTARTS (50) have defaults.
set -euo pipefail

: "${CLUSTER:?the cluster}" "${ZONE:?its zone}" "${PROJECT:?its project}"
: "${TPU_TYPE:?the kind of slice, such as v6e-16}" "${IMAGE:?the Docker image}" "${STORAGE:?a storage of the cluster}"
name=${1:?"a name for the workload"}
shift

# exec: xpk hands SIGTERM to the shell that runs the command, and this makes Python that process.
command="exec python launch.py$(printf ' %q' "$@")"
# By default xpk restarts a workload that ends by a signal (143: stopped after saving; 134: another process was lost). 3 is
# a run or place that failed, such as another process that was lost; a user's mistake, 2, is not tried again.
xpk workload create \
  --workload="$name" --cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT" \
  --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" --storage="$STORAGE" \
  --max-restarts="${RESTARTS:-50}" --restart-on-exit-codes=3 --termination-grace-period-seconds=300 \
  --command="$command"
