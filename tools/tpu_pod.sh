#!/usr/bin/env bash
# One run on all machines of a Cloud TPU slice. See docs/pods.md.
#
#   tools/tpu_pod.sh setup URL                                 clones the repository at URL and installs it on each machine
#   tools/tpu_pod.sh run --config=… --workdir=…                starts launch.py on each machine, in the background
#   tools/tpu_pod.sh log                                       what the machines said last
#   tools/tpu_pod.sh stop                                      SIGTERM: all save the same step and end
#
# The environment names the slice: TPU_NAME, ZONE, and PROJECT where gcloud's own default is not meant. --workdir, data
# and weights must be on a file system that all machines share.
set -euo pipefail

: "${TPU_NAME:?the name of the slice}" "${ZONE:?its zone}"
FOLDER=${FOLDER:-tljax}

# Runs a shell command on all machines at once; its words were quoted by the caller.
on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"} --worker=all --command="$1"
}

verb=${1:?"setup, run, log or stop"}
shift
case $verb in
  setup)
    on_all "set -e
      test -d $FOLDER || git clone $(printf %q "${1:?the URL of the repository}") $FOLDER
      cd $FOLDER
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --allow-existing --python 3.11 .venv
      python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.txt 'jax[tpu]'
      python3 -m uv pip install --quiet --python .venv/bin/python --no-deps --editable ."
    ;;
  run)
    arguments=$(printf ' %q' "$@")
    # Detached, since a broken connection would end the run; exec, so that the stored number is that of Python.
    on_all "cd $FOLDER
      nohup bash -c 'echo \$\$ > run.pid; exec .venv/bin/python launch.py \"\$@\"' launch$arguments > run.log 2>&1 < /dev/null &"
    ;;
  log)
    on_all "tail -n ${LINES_SHOWN:-20} $FOLDER/run.log"
    ;;
  stop)
    on_all "kill -TERM \$(cat $FOLDER/run.pid)"
    ;;
  *)
    echo "There is no verb $verb: setup, run, log or stop." >&2
    exit 2
    ;;
esac
