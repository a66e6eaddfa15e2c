"""Whether what saves memory still learns: the quick start with each choice, and its last losses beside AdamW's.

  python benchmarks/learning.py [--choices adamw adafactor ...] [--rates 1e-3 1.2e-3] [--devices 1]

Prints of every choice and rate the loss of training over the last epoch, its ratio to that of AdamW with everything
in float32 at the quick start's own rate, and the held-out loss at the end. Half a minute for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, STEPS, RATE = 12, 91, 1e-3  # of the quick start
LAST = -(-STEPS // EPOCHS)  # steps of its last epoch
FIRST = "adamw"
CHOICES = {
  "adamw": {},
  "adamw-bfloat16": {"optimizer.moments": "bfloat16"},
  "adamw-int8": {"optimizer.moments": "int8"},
  "rounded-adamw-bfloat16": {"model.param_dtype": "bfloat16", "optimizer.moments": "bfloat16"},
  "rounded-adamw-int8": {"model.param_dtype": "bfloat16", "optimizer.moments": "int8"},
  "adafactor": {"optimizer.name": "adafactor"},
  "rounded-adafactor": {"model.param_dtype": "bfloat16", "optimizer.name": "adafactor"},
  "muon": {"optimizer.name": "muon"},
  "rounded-muon-int8": {
    "model.param_dtype": "bfloat16", "optimizer.name": "muon", "optimizer.moments": "int8",
  },
}  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
  parser.add_argument("--rates", nargs="+", type=float, default=[RATE], help="learning rates")
  parser.add_argument("--devices", type=int, default=1, help="as which the CPU is taken")
  args = parser.parse_args()
  first = losses(CHOICES[FIRST], RATE, args.devices)
  print(f"{'choice':24} {'rate':>8} {'training':>9} {'ratio':>6} {'held-out':>9}")
  for choice in args.choices:
    for rate in args.rates:
      is_first = (choice, rate) == (FIRST, RATE)
      train, heldout = first if is_first else losses(CHOICES[choice], rate, args.devices)
      print(
        f"{choice:24} {rate:8.2e} {train:9.4f} {train / first[0]:6.3f} {heldout:9.4f}", flush=True
      )


def losses(keys: dict[str, str], rate: float, devices: int) -> tuple[float, float]:
  """(training loss per trained token, mean of the last epoch's steps; mean held-out loss at the end)."""
  with tempfile.TemporaryDirectory() as folder:
    given = keys | {
      "optimizer.learning_rate": rate, "log.every_steps": 1, "eval.generate_rows": 0,
      "eval.at_start": False, "eval.every_steps": 0, "checkpoint.every_steps": STEPS,
    }  # fmt: skip
    command = [
      sys.executable, "-m", "mlit_jax.train", "--config", str(ROOT / "configs" / "quickstart.py"),
      "--workdir", folder, *(f"--config.{name}={value}" for name, value in given.items()),
    ]  # fmt: skip
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if done.returncode:
      raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open()]
  by_step = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
  assert len(by_step) == STEPS, f"{len(by_step)} steps were logged and not {STEPS}"
  heldout = [row["eval/heldout/mean/loss"] for row in rows if "eval/heldout/mean/loss" in row]
  last = [by_step[step] for step in range(STEPS - LAST + 1, STEPS + 1)]
  return sum(last) / len(last), heldout[-1]


if __name__ == "__main__":
  main()
