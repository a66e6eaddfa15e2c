#!/usr/bin/env bash
# N processes on this machine, as a cluster would have them:  bash launch/localhost.sh 2 --config FILE --workdir DIR
set -euo pipefail
processes=$1; shift
port=${PORT:-$((20000 + RANDOM % 20000))}
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < processes; i++)); do
  JAX_PROCESS_ID=$i ${PYTHON:-python} -m mlit_jax.train "$@" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
