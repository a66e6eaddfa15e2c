#!/usr/bin/env bash
#SBATCH --job-name=mlit_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=SIGTERM@120
#SBATCH --requeue
# One task per GPU; JAX reads the rest from SLURM.  sbatch launch/slurm.sh --config FILE --workdir DIR
set -uo pipefail
export MLIT_DISTRIBUTED=auto
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
srun --kill-on-bad-exit=1 python -m mlit_jax.train "$@"
status=$?
# 75: stopped by a signal after saving; put the job back in the queue.
if [ $status -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
