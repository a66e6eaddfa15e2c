"""Whole runs of the command on one GPU: time to the first step, and kill and resume; a part of benchmarks/gpu.py."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_material import NotMeasured

ROOT = Path(__file__).resolve().parent.parent
# Of about 1B parameters with the 6,144 words of the bundled tokenizer.
SIZES = dict(d_model=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, d_ff=8192)
TINY = dict(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64)
# The same program on the same numbers gives the same bits: no atomic sums, no choice of kernels by stopwatch.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_CONFIG = """from pathlib import Path

import mlit_jax
from configs import base

ASSETS = Path(mlit_jax.__file__).parent / "assets"


def get_config():
  c = base.get_config()
  c.steps = {steps}
  c.model.sizes = {sizes}
  c.tokenizer.path = str(ASSETS / "tokenizer12")
  c.data.train = {{lang: [str(ASSETS / "instructions12" / "train" / f"{{lang}}.jsonl")] for lang in ("en", "sw", "zh")}}
  c.data.mixture = {{"counts": {{"en": 120, "*": 40}}}}
  c.data.overlap = "off"
  c.batch.rows, c.batch.max_length = {rows}, {length}
  c.eval.at_start, c.eval.generate_rows = False, 0
  c.checkpoint.every_steps, c.checkpoint.keep_best = {save_every}, 0
  c.log.every_steps = 1
  return c
"""


def measure_start(spec: dict) -> dict:
  """From the command to the first step, twice: the cache of compiled programs empty, then full."""
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    sizes, rows, length = (TINY, 2, 256) if spec["tiny"] else (SIZES, 4, 4096)
    config = write_config(folder, sizes, rows=rows, length=length, steps=50, save_every=50)
    found = {"sizes": sizes, "rows": rows, "length": length}
    for name in ("cold", "warm"):
      found[name] = first_step(config, folder / name, folder / "compiled")
    return found


def write_config(folder: Path, sizes: dict, *, rows, length, steps, save_every) -> Path:
  path = folder / "config.py"
  path.write_text(
    _CONFIG.format(sizes=sizes, rows=rows, length=length, steps=steps, save_every=save_every)
  )
  return path


def start(config: Path, workdir: Path, compiled: Path, flags: str = "") -> subprocess.Popen:
  env = os.environ | {"MLIT_COMPILATION_CACHE": str(compiled)}
  env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flags}".strip()
  env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
  return subprocess.Popen(
    [sys.executable, "-m", "mlit_jax.train", "--config", str(config), "--workdir", str(workdir)],
    cwd=ROOT, env=env, stdout=open(f"{workdir}.log", "w"), stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def events(workdir: Path) -> list[dict]:
  path = workdir / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return [e for e in map(json.loads, lines) if "train/loss" in e]


def wait_for_step(process, workdir: Path, step: int) -> bool:
  while process.poll() is None:
    if any(e["step"] >= step for e in events(workdir)):
      return True
    time.sleep(0.005)
  return False


def said(workdir: Path) -> str:
  return Path(f"{workdir}.log").read_text()


def first_step(config: Path, workdir: Path, compiled: Path) -> dict:
  """Then it is killed: nothing of it is wanted, and a checkpoint of 12 GB takes long."""
  began = time.perf_counter()
  process = start(config, workdir, compiled)
  reached = wait_for_step(process, workdir, 1)
  outside = time.perf_counter() - began
  process.kill()
  process.wait()
  if not reached:
    raise NotMeasured(f"the run ended early: {said(workdir).strip().splitlines()[-1]}")
  line = re.search(r"first step after ([\d.,]+) s: (.*)", said(workdir))
  split = {k: v for k, v in events(workdir)[0].items() if k.startswith("time/")}
  return {
    "seconds": float(line[1].replace(",", "")),
    "shares": line[2],
    "split": split,
    "seconds_with_second_step_by_wall_clock": outside,
  }


def measure_resume(spec: dict) -> dict:
  """A short run killed and gone on with, beside one that nothing disturbed: parameters and moments bit by bit."""
  steps = 12
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    config = write_config(folder, TINY, rows=2, length=256, steps=steps, save_every=3)
    whole, killed = folder / "whole", folder / "killed"
    finish(config, whole, folder)
    process = start(config, killed, folder / "compiled", DETERMINISTIC)
    if not wait_for_step(process, killed, 7):
      raise NotMeasured(f"the run ended before it was killed: {said(killed)[-300:]}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(config, killed, folder)
    resumed = re.search(r"resumed at step (\d+)", said(killed))
    losses = [{e["step"]: e["train/loss"] for e in events(of)} for of in (whole, killed)]
    return {
      "flags": DETERMINISTIC,
      "resumed_at": int(resumed[1]) if resumed else 0,
      "losses_equal": losses[0] == losses[1],
      "arrays_that_differ": differing(whole, killed, steps),
    }


def finish(config: Path, workdir: Path, folder: Path) -> None:
  process = start(config, workdir, folder / "compiled", DETERMINISTIC)
  if code := process.wait():
    raise NotMeasured(f"a run ended with {code}: {said(workdir).strip().splitlines()[-1]}")


def differing(one: Path, other: Path, step: int) -> int:
  """Of the last checkpoints of two runs: how many arrays are not the same bits. None to compare is an error."""
  import jax
  import numpy as np

  from mlit_jax import mesh as meshes
  from mlit_jax.config import load_config
  from mlit_jax.opening import open_workdir
  from mlit_jax.stepping import make_stepping
  from mlit_jax.training.checkpoint import Checkpoints

  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  states = []
  for workdir in (one, other):
    cfg = open_workdir(workdir, "latest", mesh).cfg
    c = load_config(str(one.parent / "config.py"))
    shapes = make_stepping(c, cfg, mesh, total_steps=step, num_languages=1).state_shapes()
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
      state, _ = checkpoints.restore(step, shapes)
    states.append(jax.tree.leaves(jax.device_get(state)))
  pairs = list(zip(*states, strict=True))
  assert len(pairs) > 10, len(pairs)
  return sum(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in pairs)
