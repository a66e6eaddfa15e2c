"""The train step beside a transformers + torch loop: same model, weights, packed batch, optimizer, precision.

  python benchmarks/step.py [--rounds 3] [--steps 8]

Each side runs in a process of its own, the two in turn; prints trained tokens per second, peak memory
and their ratios (median over the rounds, and each round).
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
LEARNING_RATE = 1e-3


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=8)
  parser.add_argument("--side", choices=("ours", "torch"), default="")
  parser.add_argument("--folder", default="")
  args = parser.parse_args()
  if args.side:
    print(
      json.dumps({"ours": run_ours, "torch": run_torch}[args.side](Path(args.folder), args.steps))
    )
    return
  with tempfile.TemporaryDirectory() as folder:
    write_inputs(Path(folder))
    rounds = []
    for number in range(args.rounds):
      figures = {side: child(side, folder, args.steps) for side in ("torch", "ours")}
      rounds.append(figures)
      print(f"round {number + 1}: " + "; ".join(describe(k, v) for k, v in figures.items()))
  for name, what in (("rate", "trained tokens per second"), ("memory", "peak memory")):
    ratios = [r["ours"][name] / r["torch"][name] for r in rounds]
    print(
      f"{what}, ours / torch: {np.median(ratios):.2f} (rounds {', '.join(f'{r:.2f}' for r in ratios)})"
    )
  print(
    f"loss after {args.steps} steps: ours {rounds[0]['ours']['loss']:.4f}, torch {rounds[0]['torch']['loss']:.4f}"
  )


def describe(side: str, figures: dict) -> str:
  return f"{side} {figures['rate']:,.0f} trained tokens/s, {figures['memory'] / 2**20:,.0f} MiB"


def child(side: str, folder: str, steps: int) -> dict:
  command = [sys.executable, __file__, "--side", side, "--folder", folder, "--steps", str(steps)]
  out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
  return json.loads(out.strip().splitlines()[-1])


@dataclasses.dataclass
class Parts:
  """The quick start, ready to step."""

  cfg: object
  mesh: object
  encoded: object
  plan: object
  state: object
  batch: object  # on the mesh
  host_batch: object
  train_step: object


def quickstart_parts(loss_chunk: int = 0) -> Parts:
  """The quick start's data, model and step, with random parameters of seed 0."""
  import jax
  import jax.numpy as jnp

  from mlit_jax import mesh as meshes
  from mlit_jax.config import load_config
  from mlit_jax.data.loader import gather_rows
  from mlit_jax.model import decoder
  from mlit_jax.model.config import from_hf
  from mlit_jax.opening import open_data, open_tokenizer
  from mlit_jax.training.console import Terminal
  from mlit_jax.training.optimizer import OptimizerConfig, make_optimizer
  from mlit_jax.training.step import State, make_train_step, state_shardings
  from mlit_jax.weights.source import read_source

  c = load_config(str(ROOT / "configs" / "quickstart.py"))
  c.epochs = 1
  base = read_source(c.model.path)
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = open_tokenizer(c, base.folder)
    encoded, plan, _ = open_data(c, tokenizer, [], Path(folder), Terminal(shown=False))
  cfg = from_hf(base.config)
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  optimizer = make_optimizer(
    OptimizerConfig(
      **dict(c.optimizer)
      | {"schedule": "constant", "warmup_steps": 0, "learning_rate": LEARNING_RATE}
    ),
    100,
  )
  specs = decoder.param_specs(cfg)
  shardings = state_shardings(
    optimizer, meshes.param_shardings(specs, mesh), decoder.param_shapes(cfg), mesh
  )
  params = decoder.init_params(cfg, jax.random.key(0))
  state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params))
  host_batch = gather_rows(encoded, plan.rows(0), c.batch.max_length)
  train_step = make_train_step(
    lambda p, *arrays: decoder.hidden(p, cfg, *arrays, remat=c.model.remat),
    optimizer,
    shardings,
    mesh,
    num_languages=len(encoded.languages),
    clip_norm=1.0,
    loss_chunk=loss_chunk,
  )
  batch = meshes.put_batch(host_batch, mesh, c.batch.rows)
  return Parts(cfg, mesh, encoded, plan, state, batch, host_batch, train_step)


def write_inputs(folder: Path) -> None:
  """The weights as a Hugging Face folder, the packed batch as an npz: both sides read the same files."""
  from mlit_jax.model.config import to_hf
  from mlit_jax.weights import save

  parts = quickstart_parts()
  config = to_hf(parts.cfg, max_length=2048, bos_id=1, eos_id=2, pad_id=3)
  files = {"config.json": json.dumps(config).encode()}
  save.save_folder(parts.state.params, parts.cfg, folder / "model", files=files, dtypes="float32")
  np.savez(folder / "batch.npz", **dataclasses.asdict(parts.host_batch))


def run_ours(folder: Path, steps: int) -> dict:
  import jax

  parts = quickstart_parts()
  state, seconds = parts.state, []
  with jax.set_mesh(parts.mesh):
    for step in range(steps + 2):
      began = time.perf_counter()
      state, metrics = parts.train_step(state, parts.batch)
      jax.block_until_ready(metrics)
      if step >= 2:  # the first compiles
        seconds.append(time.perf_counter() - began)
  trained = float(parts.host_batch.weights.sum())
  return figures(trained, seconds, float(metrics.sums.nll.sum()) / trained)


def run_torch(folder: Path, steps: int) -> dict:
  """Full-parameter step in eager transformers, the packed segments isolated by a dense mask."""
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True
  )
  arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "batch.npz").items()}
  tokens, segments = arrays["tokens"].long(), arrays["segments"]
  same = segments[:, :, None] == segments[:, None, :]
  causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
  mask = torch.where((same & causal)[:, None], 0.0, torch.finfo(torch.float32).min)
  targets = torch.where(arrays["weights"] > 0, arrays["targets"].long(), -100)
  trained, seconds = float(arrays["weights"].sum()), []
  for step in range(steps + 2):
    began = time.perf_counter()
    logits = model(
      input_ids=tokens,
      attention_mask=mask,
      position_ids=arrays["positions"].long(),
      use_cache=False,
    ).logits
    loss = (
      torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100
      )
      / trained
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step >= 2:
      seconds.append(time.perf_counter() - began)
  return figures(trained, seconds, float(loss.detach()))


def figures(trained: float, seconds: list[float], loss: float) -> dict:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"rate": trained / float(np.median(seconds)), "memory": peak, "loss": loss}


if __name__ == "__main__":
  main()
