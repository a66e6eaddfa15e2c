"""The train step beside a transformers + torch loop: same weights, examples, optimizer and precision.

  python benchmarks/step.py [--cases quickstart full512] [--rounds 5] [--turns 4] [--devices 1]

  full256, full512, full1024   13 M parameters, full rows of that many tokens, all trained; torch's own causal attention
  quickstart                   the quick start's packed rows; torch gets them packed too, with a mask
  short                        the same examples, each a row of its own in torch, padded to the longest of its batch

Each side is a process of its own, and they take turns of six steps, one waiting while the other works: what else the
machine does falls on both. The first two of a turn are not counted: what a process gives back while it waits, a
virtual machine may have to fetch again. Prints of every round (a new pair of processes) the median ratio of the
speeds of its pairs of turns, then the median of all pairs with its quartiles, and peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
LEARNING_RATE = 1e-3
FIRST, COUNTED = 2, 4  # steps of a turn: those that are not counted, and those that are
DEVICES = int(os.environ.get("JAX_NUM_CPU_DEVICES", "1"))
MARK = "step.py: "  # of lines between the processes; libraries may print others
CASES = ("full256", "full512", "full1024", "quickstart", "short")
PADDED_ROWS = (
  16  # of a forward pass of torch in the case `short`; their gradients add up to one step
)
SIZES = dict(d_model=320, num_layers=6, num_heads=5, num_kv_heads=5, d_ff=864, head_dim=64)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--turns", type=int, default=4, help="of each side in a round")
  parser.add_argument("--attention", default="auto", help="model.attention of our side")
  parser.add_argument("--devices", type=int, default=1, help="as which our side takes the CPU")
  parser.add_argument("--side", choices=("ours", "torch"), default="")
  parser.add_argument("--folder", default="")
  args = parser.parse_args()
  if args.side:
    run = {"ours": run_ours, "torch": run_torch}[args.side]
    run(args.cases[0], Path(args.folder), args.attention)
    return
  for case in args.cases:
    compare(case, args)


def compare(case: str, args) -> None:
  print(f"{case}:")
  with tempfile.TemporaryDirectory() as folder:
    write_inputs(case, Path(folder))
    rounds = [in_turn(case, folder, args, number) for number in range(args.rounds)]
  ratios = np.concatenate([speed_ratios(sides) for sides in rounds])
  low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
  each = ", ".join(f"{np.median(speed_ratios(sides)):.2f}" for sides in rounds)
  print(
    f"  trained tokens per second, ours / torch: {middle:.2f} ({low:.2f} to {high:.2f}; rounds {each})"
  )
  memory = np.median([sides["ours"].memory / sides["torch"].memory for sides in rounds])
  losses = {name: side.loss for name, side in rounds[0].items()}
  print(
    f"  peak memory, ours / torch: {memory:.2f}; loss after the same steps: "
    f"ours {losses['ours']:.4f}, torch {losses['torch']:.4f}",
    flush=True,
  )


def in_turn(case: str, folder: str, args, number: int) -> dict[str, Side]:
  """One round: a process of each, and their turns; who begins changes from turn to turn."""
  commands = {side: child_command(case, side, folder, args) for side in ("torch", "ours")}
  with contextlib.ExitStack() as stack:
    running = {}
    for side, command in commands.items():  # one is ready before the other begins
      running[side] = stack.enter_context(Running(command, environment(side, args.devices)))
    for turn in range(args.turns):
      for side in ("torch", "ours") if turn % 2 else ("ours", "torch"):
        running[side].take_turn()
    sides = {side: process.close() for side, process in running.items()}
  told = "; ".join(
    f"{name} {side.trained / np.median(side.seconds):,.0f} trained tokens/s, {side.memory / 2**20:,.0f} MiB"
    for name, side in sides.items()
  )
  print(f"  round {number + 1}: {np.median(speed_ratios(sides)):.2f}; {told}", flush=True)
  return sides


def speed_ratios(sides: dict[str, Side]) -> np.ndarray:
  """Of every pair of turns; both trained the same tokens."""
  return np.divide(sides["torch"].seconds, sides["ours"].seconds)


def child_command(case: str, side: str, folder: str, args) -> list[str]:
  return [
    sys.executable, __file__, "--cases", case, "--side", side, "--folder", folder,
    "--attention", args.attention,
  ]  # fmt: skip


def environment(side: str, devices: int) -> dict[str, str]:
  """Ours with large pages where `train` would have them; torch is no faster with them (docs/performance.md)."""
  from mlit_jax import large_pages

  wanted = side == "ours" and large_pages.would_help(os.environ)
  environ = large_pages.asking(os.environ) if wanted else dict(os.environ)
  return environ | {"JAX_NUM_CPU_DEVICES": str(devices)}


class Running:
  """A child that takes a turn for every line it is sent."""

  def __init__(self, command: list[str], environ: dict[str, str]):
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    )
    self.answer()  # ready, warm

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.wait()

  def take_turn(self) -> None:
    self.ask("turn")

  def close(self) -> Side:
    return Side(**json.loads(self.ask("end")))

  def ask(self, what: str) -> str:
    self.process.stdin.write(what + "\n")
    self.process.stdin.flush()
    return self.answer()

  def answer(self) -> str:
    while line := self.process.stdout.readline():
      if line.startswith(MARK):
        return line.removeprefix(MARK)
    raise SystemExit(f"{self.process.args}: ended with {self.process.wait()}")


def serve(take_step: Callable[[], float], trained: float) -> None:
  """Of a child: a step that compiles, then a turn for each line "turn"; "end" tells of them."""
  take_step()
  print(MARK + "ready", flush=True)
  loss, seconds = 0.0, []
  while sys.stdin.readline().strip() == "turn":
    for _ in range(FIRST):
      take_step()
    began = time.perf_counter()
    for _ in range(COUNTED):
      loss = take_step()
    seconds.append((time.perf_counter() - began) / COUNTED)
    print(MARK + "done", flush=True)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(MARK + json.dumps(dataclasses.asdict(Side(trained, seconds, memory, loss))), flush=True)


@dataclasses.dataclass
class Side:
  """What one process measured."""

  trained: float  # tokens of a step
  seconds: list[float]  # of a step, in each turn
  memory: float  # bytes at most
  loss: float  # per trained token, of the last step


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
  mesh = meshes.make_mesh(devices=jax.devices()[:DEVICES])
  stepping = make_stepping(c, cfg, mesh, total_steps=100, num_languages=num_languages)
  state = stepping.begin(decoder.init_params(cfg, jax.random.key(0)))
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


def run_ours(case: str, folder: Path, attention: str) -> None:
  import jax

  parts = make_parts(case, attention)
  trained, state = float(parts.host_batch.weights.sum()), parts.state

  def take_step() -> float:
    nonlocal state
    state, metrics = parts.train_step(state, parts.batch)
    jax.block_until_ready((state, metrics))
    return float(metrics.sums.nll.sum()) / trained

  with jax.set_mesh(parts.mesh):
    serve(take_step, trained)


def run_torch(case: str, folder: Path, _attention: str) -> None:
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
  trained = float(arrays["weights"].sum())
  make = {"quickstart": packed_input, "short": padded_inputs}.get(case, full_input)
  inputs = make(arrays)

  def take_step() -> float:
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
    return total / trained

  serve(take_step, trained)


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


if __name__ == "__main__":
  main()
