"""Memory and estimated speed of four sizes of model on pods: one table, compiled ahead of time, nothing run.

  python benchmarks/scale.py [--models 1b,8b] [--topologies h100:8,v5p:8x8x8] [--rows 1] [--out scale.jsonl]

Each plan is a process of its own; a line is kept of each in --out, and those that are there are not made again.
Sizes are those of published configs; rows of 4,096 tokens, one a device. Needs mlit_jax[plan-tpu,plan-gpu].
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPOLOGIES = ("h100:8", "h100:256", "v5e:16x16", "v5p:8x8x8", "v6e:16x16")
ROPE = {"rope_type": "default", "rope_theta": 500_000.0}
# As in the config.json of Llama-3.2-1B, Llama-3.1-8B, gemma-3-27b and Llama-3.1-70B, what a size depends on.
MODELS = {
  "1b": dict(
    model_type="llama", hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, vocab_size=128_256, tie_word_embeddings=True, rms_norm_eps=1e-5,
    hidden_act="silu", rope_parameters=ROPE,
  ),
  "8b": dict(
    model_type="llama", hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=128_256, tie_word_embeddings=False, rms_norm_eps=1e-5,
    hidden_act="silu", rope_parameters=ROPE,
  ),
  "27b": dict(
    model_type="gemma3_text", hidden_size=5376, intermediate_size=21_504, num_hidden_layers=62,
    num_attention_heads=32, num_key_value_heads=16, head_dim=128, vocab_size=262_208, rms_norm_eps=1e-6,
    hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=168, sliding_window=1024,
    sliding_window_pattern=6, rope_theta=1_000_000.0, rope_local_base_freq=10_000.0, tie_word_embeddings=True,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
  ),
  "70b": dict(
    model_type="llama", hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8, head_dim=128, vocab_size=128_256, tie_word_embeddings=False, rms_norm_eps=1e-5,
    hidden_act="silu", rope_parameters=ROPE,
  ),
}  # fmt: skip
CONFIG = """
from configs import base


def get_config():
  c = base.get_config()
  c.batch.max_length = {length}
  return c
"""


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--models", default=",".join(MODELS))
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  parser.add_argument("--rows", type=int, default=1, help="of a device")
  parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
  parser.add_argument("--out", default="scale.jsonl")
  args, more = parser.parse_known_args()  # --config.KEY=VALUE goes on to the plan
  out = Path(args.out)
  kept = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
  done = {(e["model"], e["topology"], e["rows"], e["length"], *e["more"]) for e in kept}
  for topology in args.topologies.split(","):
    for model in args.models.split(","):
      if (model, topology, args.rows, args.length, *more) in done:
        continue
      entry = {
        "model": model,
        "topology": topology,
        "rows": args.rows,
        "length": args.length,
        "more": more,
      }
      kept.append(entry | plan(model, topology, args.rows, args.length, more))
      with out.open("a") as file:
        file.write(json.dumps(kept[-1]) + "\n")
      print(row(kept[-1]), flush=True)
  print("\n" + table(kept))


def plan(model: str, topology: str, rows: int, length: int, more: list[str]) -> dict:
  """The figures of one plan, or what stopped it."""
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    sizes, config, figures = (Path(folder) / name for name in ("config.json", "c.py", "plan.json"))
    sizes.write_text(json.dumps(MODELS[model]))
    config.write_text(CONFIG.format(length=length))
    command = [
      sys.executable, "-m", "mlit_jax.plan", "--config", str(config), "--model", str(sizes), "--topology", topology,
      "--rows_per_device", str(rows), "--json", str(figures), *mesh(model, topology), *more,
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if ended.returncode:
      return {"error": ended.stderr.strip().split("\n")[-1], "seconds": seconds}
    return {"plan": json.loads(figures.read_text()), "seconds": seconds}


def mesh(model: str, topology: str) -> list[str]:
  """Split over as many devices as divide the width (5,376 of 512: 256), copies over the rest."""
  devices = math.prod(int(n) for n in topology.partition(":")[2].split("x"))
  return [f"--config.mesh.data={devices // math.gcd(MODELS[model]['hidden_size'], devices)}"]


def row(entry: dict) -> str:
  """One line of the table."""
  head = f"| {entry['model']} | {entry['topology']} | {entry['rows']} "
  if "error" in entry:
    return f"{head}| {entry['error']} | | | | | {entry['seconds']:.0f} |"
  p = entry["plan"]
  m, e = p["memory"], p["estimate"]
  state = (m["params"] + m["optimizer"]) / 2**30
  peak = f"{m['peak'] / 2**30:.1f}" if m["peak"] else "not said"
  verdict = "yes" if m["fits"] else "**no**"
  speed = " | "
  if e and m["fits"]:
    soon, late = (e[end] for end in ("overlapped", "serial"))
    rates = [end["tokens_per_second"] / p["devices"] for end in (soon, late)]
    speed = f"{soon['step_seconds']:.2f} to {late['step_seconds']:.2f} | {rates[1]:,.0f} to {rates[0]:,.0f}"
  return f"{head}| {state:.2f} | {peak} of {m['usable'] / 2**30:.1f} | {verdict} | {speed} | {entry['seconds']:.0f} |"


def table(entries: list[dict]) -> str:
  head = "| model | devices | rows a device | state GiB | peak GiB | fits | step s (estimate) | tokens/s a device (estimate) | s to plan |"
  return "\n".join([head, "|---" * 9 + "|", *(row(e) for e in entries)])


if __name__ == "__main__":
  main()
