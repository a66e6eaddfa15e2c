#!/usr/bin/env bash
# The same command on every host of a TPU VM slice:  bash launch/tpu_vm.sh NAME ZONE --config FILE --workdir DIR
# The checkout must be at ~/mlit_jax on each host, with the environment in ~/mlit_jax/.venv (see BUILD.md).
set -euo pipefail
name=$1 zone=$2; shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "cd ~/mlit_jax && MLIT_DISTRIBUTED=auto .venv/bin/python -m mlit_jax.train $(printf '%q ' "$@")"
