#!/usr/bin/env bash
# N processes on this machine, as a cluster would have them:  bash launch/local.sh 2 --config FILE --workdir DIR
# Where there are GPUs, each process gets its share of them. Signals reach every process; the exit status is the
# first that is not 0.
set -uo pipefail
processes=$1; shift
port=${PORT:-$((20000 + RANDOM % 12000))}  # below 32768: the system hands out the rest to others
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
if [ "$gpus" -gt 0 ] && [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
  if [ $((gpus % processes)) -ne 0 ]; then
    echo "error: $gpus GPUs cannot be shared by $processes processes alike; set CUDA_VISIBLE_DEVICES, or start another number" >&2
    exit 2
  fi
  share=$((gpus / processes))
fi
pids=()
pass_on() { kill -s "$1" "${pids[@]}" 2>/dev/null || true; }
for signal in TERM INT USR1; do trap "pass_on $signal" $signal; done
trap 'pass_on KILL' EXIT
for ((i = 0; i < processes; i++)); do
  if [ -n "${share:-}" ]; then export CUDA_VISIBLE_DEVICES=$(seq -s, $((i * share)) $((i * share + share - 1))); fi
  JAX_PROCESS_ID=$i ${PYTHON:-python} -m mlit_jax.train "$@" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  wait "$pid"; code=$?
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done  # a signal ended the wait, not the process
  if [ $status -eq 0 ]; then status=$code; fi
done
exit $status
