"""The train step beside a transformers + torch loop: same weights, examples, optimizer and precision.

  python benchmarks/step.py [--cases quickstart full512] [--rounds 5] [--steps 8] [--attention auto]

  full256, full512, full1024   13 M parameters, full rows of that many tokens, all trained; torch's own causal attention
  quickstart                   the quick start's packed rows; torch gets them packed too, with a mask
  short                        the same examples, each a row of its own in torch, padded to the longest of its batch

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
CASES = ("full256", "full512", "full1024", "quickstart", "short")
PADDED_ROWS = (
  16  # of a forward pass of torch in the case `short`; their gradients add up to one step
)
SIZES = dict(d_model=320, num_layers=6, num_heads=5, num_kv_heads=5, d_ff=864, head_dim=64)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=8)
  parser.add_argument("--attention", default="auto", help="model.attention of our side")
  parser.add_argument("--side", choices=("ours", "torch"), default="")
  parser.add_argument("--folder", default="")
  args = parser.parse_args()
  if args.side:
    run = {"ours": run_ours, "torch": run_torch}[args.side]
    print(json.dumps(run(args.cases[0], Path(args.folder), args.steps, args.attention)))
    return
  for case in args.cases:
    compare(case, args)


def compare(case: str, args) -> None:
  print(f"{case}:")
  with tempfile.TemporaryDirectory() as folder:
    write_inputs(case, Path(folder))
    rounds = []
    for number in range(args.rounds):
      figures = {side: child(case, side, folder, args) for side in ("torch", "ours")}
      rounds.append(figures)
      print(
        f"  round {number + 1}: " + "; ".join(describe(k, v) for k, v in figures.items()),
        flush=True,
      )
  for name, what in (("rate", "trained tokens per second"), ("memory", "peak memory")):
    ratios = [r["ours"][name] / r["torch"][name] for r in rounds]
    each = ", ".join(f"{r:.2f}" for r in ratios)
    print(f"  {what}, ours / torch: {np.median(ratios):.2f} (rounds {each})")
  ours, torch = (rounds[0][side]["loss"] for side in ("ours", "torch"))
  print(f"  loss after {args.steps} steps: ours {ours:.4f}, torch {torch:.4f}", flush=True)


def describe(side: str, figures: dict) -> str:
  return f"{side} {figures['rate']:,.0f} trained tokens/s, {figures['memory'] / 2**20:,.0f} MiB"


def child(case: str, side: str, folder: str, args) -> dict:
  command = [
    sys.executable, __file__, "--cases", case, "--side", side, "--folder", folder,
    "--steps", str(args.steps), "--attention", args.attention,
  ]  # fmt: skip
  out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
  return json.loads(out.strip().splitlines()[-1])


@dataclasses.dataclass
class Parts:
  """A model and a batch, ready to step."""

  cfg: object
  mesh: object
  state: object
  batch: object  # on the mesh
  host_batch: object
  train_step: object
  encoded: object = None  # of the quick start
  plan: object = None


def make_parts(case: str, attention: str = "auto") -> Parts:
  """The case's model with random parameters of seed 0, its batch and its step."""
  return quickstart_parts(attention=attention) if case in ("quickstart", "short") else full_parts(
    int(case.removeprefix("full")), attention
  )  # fmt: skip


def quickstart_parts(loss_chunk: int = 0, attention: str = "auto") -> Parts:
  """The quick start's data, model and step, with random parameters of seed 0."""
  from mlit_jax.config import load_config
  from mlit_jax.data.loader import gather_rows
  from mlit_jax.model.config import from_hf
  from mlit_jax.opening import open_data, open_tokenizer
  from mlit_jax.training.console import Terminal
  from mlit_jax.weights.source import read_source

  c = load_config(str(ROOT / "configs" / "quickstart.py"))
  c.epochs, c.model.loss_chunk, c.model.attention = 1, loss_chunk, attention
  base = read_source(c.model.path)
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = open_tokenizer(c, base.folder)
    encoded, plan, _ = open_data(c, tokenizer, [], Path(folder), Terminal(shown=False))
  host_batch = gather_rows(encoded, plan.rows(0), c.batch.max_length)
  parts = step_parts(c, from_hf(base.config), host_batch, len(encoded.languages))
  return dataclasses.replace(parts, encoded=encoded, plan=plan)


def full_parts(length: int, attention: str, rows: int = 8) -> Parts:
  """13 M parameters and rows that one example fills."""
  from configs import base
  from mlit_jax.batch import Batch
  from mlit_jax.model.config import from_scratch

  c = base.get_config()
  c.model.dtype, c.model.attention = "float32", attention
  c.model.remat, c.batch.rows, c.batch.max_length = "none", rows, length
  cfg = from_scratch(SIZES, 8192)
  shape, rng = (rows, length), np.random.default_rng(0)
  tokens = rng.integers(4, cfg.vocab_size, (rows, length + 1)).astype(np.int32)
  ones = np.ones(shape, np.int32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy()
  host_batch = Batch(
    tokens=tokens[:, :-1].copy(), targets=tokens[:, 1:].copy(), weights=np.ones(shape, np.float32),
    segments=ones, positions=positions, language=ones * 0,
  )  # fmt: skip
  return step_parts(c, cfg, host_batch, 1)


def step_parts(c, cfg, host_batch, num_languages: int) -> Parts:
  import jax

  from mlit_jax import mesh as meshes
  from mlit_jax.model import decoder
  from mlit_jax.stepping import make_stepping

  c.optimizer.schedule, c.optimizer.warmup_steps = "constant", 0
  c.optimizer.learning_rate, c.optimizer.weight_decay = LEARNING_RATE, 0.0
  c.optimizer.b2, c.optimizer.gradient_clip_norm = 0.999, 1.0
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  stepping = make_stepping(c, cfg, mesh, total_steps=100, num_languages=num_languages)
  state = stepping.first_state(decoder.init_params(cfg, jax.random.key(0)))
  batch = meshes.put_batch(host_batch, mesh, len(host_batch.tokens))
  return Parts(cfg, mesh, state, batch, host_batch, stepping.train_step)


def write_inputs(case: str, folder: Path) -> None:
  """The weights as a Hugging Face folder, the batch as an npz: both sides read the same files."""
  from mlit_jax.model.config import to_hf
  from mlit_jax.weights import save

  parts = make_parts(case)
  config = to_hf(parts.cfg, max_length=2048, bos_id=1, eos_id=2, pad_id=3)
  files = {"config.json": json.dumps(config).encode()}
  save.save_folder(parts.state.params, parts.cfg, folder / "model", files=files, dtypes="float32")
  np.savez(folder / "batch.npz", **dataclasses.asdict(parts.host_batch))


def run_ours(case: str, folder: Path, steps: int, attention: str) -> dict:
  import jax

  parts = make_parts(case, attention)
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


def run_torch(case: str, folder: Path, steps: int, _attention: str) -> dict:
  """The usual full-parameter step in transformers."""
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True
  )
  arrays = dict(np.load(folder / "batch.npz"))
  trained, seconds = float(arrays["weights"].sum()), []
  make = {"quickstart": packed_input, "short": padded_inputs}.get(case, full_input)
  inputs = make(arrays)
  for step in range(steps + 2):
    began = time.perf_counter()
    total = 0.0
    for keys, targets in inputs:
      logits = model(**keys, use_cache=False).logits
      loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100
      )
      (loss / trained).backward()
      total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step >= 2:
      seconds.append(time.perf_counter() - began)
  return figures(trained, seconds, total / trained)


def full_input(arrays: dict) -> list:
  """[(arguments of the model, targets)]; without a mask torch takes its fastest causal attention."""
  import torch

  return [({"input_ids": as_long(arrays["tokens"])}, torch.from_numpy(masked_targets(arrays)))]


def packed_input(arrays: dict) -> list:
  """The packed segments isolated by a mask."""
  import torch

  segments = torch.from_numpy(arrays["segments"])
  same = segments[:, :, None] == segments[:, None, :]
  causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
  mask = torch.where((same & causal)[:, None], 0.0, torch.finfo(torch.float32).min)
  keys = {"input_ids": as_long(arrays["tokens"]), "attention_mask": mask}
  keys["position_ids"] = as_long(arrays["positions"])
  return [(keys, torch.from_numpy(masked_targets(arrays)))]


def padded_inputs(arrays: dict) -> list:
  """Each example a row, in batches of PADDED_ROWS."""
  targets, examples = masked_targets(arrays), []
  for row, segments in enumerate(arrays["segments"]):
    for number in range(1, segments.max() + 1):
      at = segments == number
      examples.append((arrays["tokens"][row, at], targets[row, at]))
  batches = [examples[i : i + PADDED_ROWS] for i in range(0, len(examples), PADDED_ROWS)]
  padding = 1 - sum(len(t) for t, _ in examples) / sum(
    len(b) * max(len(t) for t, _ in b) for b in batches
  )
  print(f"{len(examples)} examples, {padding:.0%} padding", file=sys.stderr)
  return [padded(batch) for batch in batches]


def padded(batch: list) -> tuple:
  import torch

  length = max(len(tokens) for tokens, _ in batch)
  pad = lambda x, value: np.pad(x, (0, length - len(x)), constant_values=value)  # noqa: E731
  keys = {
    "input_ids": as_long(np.stack([pad(tokens, 0) for tokens, _ in batch])),
    "attention_mask": as_long(np.stack([pad(np.ones(len(t), int), 0) for t, _ in batch])),
  }
  return keys, torch.from_numpy(np.stack([pad(targets, -100) for _, targets in batch]))


def masked_targets(arrays: dict) -> np.ndarray:
  """-100 where nothing is trained."""
  return np.where(arrays["weights"] > 0, arrays["targets"], -100).astype(np.int64)


def as_long(x: np.ndarray):
  import torch

  return torch.from_numpy(x.astype(np.int64))


def figures(trained: float, seconds: list[float], loss: float) -> dict:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"rate": trained / float(np.median(seconds)), "memory": peak, "loss": loss}


if __name__ == "__main__":
  main()
