"""Many steps with evaluation and saving: does memory, do threads, files or the time of a step grow?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import fault_material as material
import numpy as np

WARM = 0.2  # of the samples, at the beginning, are not looked at
LINES = (
  "c.eval.every_steps, c.checkpoint.every_steps, c.log.every_steps, c.log.batches = %d, %d, 20, False",
  "c.optimizer.learning_rate = 1e-4",
)


def run(folder: Path, steps: int, say: Callable[[str], None] = print) -> dict:
  """Slopes per 1,000 steps with their standard errors, and the first and last value of each."""
  every = max(1, steps // 40)
  config = material.write_config(folder, LINES[0] % (every, every), LINES[1], steps=steps)
  workdir = folder / "run"
  started = material.Started("train", ["--config", config, "--workdir", workdir], folder / "log")
  samples = []
  while started.poll() is None:
    time.sleep(max(0.05, min(2.0, steps / 10_000)))
    if (step := material.last_step_done(workdir)) > 0:
      found = of_process(started.pid)
      if found:
        samples.append((step, time.monotonic(), *found))
  if started.wait() != 0:
    return {"wrong": started.said()[-2000:]}
  return {"steps": steps, "samples": len(samples), **summarise(samples, workdir)}


def of_process(pid: int) -> tuple[float, int, int] | None:
  """(MiB of its own memory, threads, open files)."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return int(fields["RssAnon"].split()[0]) / 1024, int(fields["Threads"]), files
  except (OSError, KeyError, ValueError):
    return None


def summarise(samples: list[tuple], workdir: Path) -> dict:
  steps, _, memory, threads, files = (np.array(x, float) for x in zip(*samples, strict=True))
  late = steps > WARM * steps[-1]
  out = {}
  for name, values in (("MiB", memory), ("threads", threads), ("files", files)):
    out[name] = slope(steps[late], values[late])
  seconds = step_times(workdir)
  at, values = np.array([s for s, _ in seconds], float), np.array([t for _, t in seconds])
  late = at > WARM * at[-1]
  out["ms per step"] = slope(at[late], 1000 * values[late])
  return out


def step_times(workdir: Path) -> list[tuple[int, float]]:
  """(step, seconds of a training step since the line before) of every line of metrics.jsonl that tells."""
  import json

  found, before = [], 0
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    event = json.loads(line)
    if "time/step" in event:
      found.append((event["step"], event["time/step"] / max(1, event["step"] - before)))
      before = event["step"]
  return found


def slope(x: np.ndarray, y: np.ndarray) -> dict:
  """Least squares: change per 1,000 steps, its standard error, and means of the first and last tenth.

  Neighbouring samples hang together, so that the error is that of the means of twenty blocks.
  """
  blocks = min(20, len(x))
  parts = [part for part in np.array_split(np.arange(len(x)), blocks) if len(part)]
  bx, by = np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])
  design = np.stack([bx - bx.mean(), np.ones_like(bx)], axis=1)
  solution, *_ = np.linalg.lstsq(design, by, rcond=None)
  rest = by - design @ solution
  spread = ((bx - bx.mean()) ** 2).sum()
  error = np.sqrt((rest**2).sum() / max(1, len(bx) - 2) / spread) if spread else float("nan")
  tenth = max(1, len(y) // 10)
  return {
    "per 1,000 steps": float(1000 * solution[0]),
    "error": float(1000 * error),
    "first": float(y[:tenth].mean()),
    "last": float(y[-tenth:].mean()),
  }
