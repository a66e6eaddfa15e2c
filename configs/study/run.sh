#!/usr/bin/env bash
# The study from beginning to end: rows, all runs, report. Run again, it does what is left.
#   bash configs/study/run.sh [folder of the public data]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
$python configs/study/make_rows.py --data "${1:-../shared/data}" --out runs/study/rows
$python -m mlit_jax.sweep --config configs/study/pinch.py --workdir runs/study/pinch --jobs "${JOBS:-2}"
$python -m mlit_jax.evaluate --model mlit_jax/assets/tiny12 --suite 'runs/study/rows/eval/*.jsonl' \
  --generate_rows 48 --max_new_tokens 56 --max_length 192 --out runs/study/base
