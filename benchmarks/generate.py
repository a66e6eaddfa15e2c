"""Greedy decoding beside transformers.generate: same model, same prompts, same answers, batch of 32.

  python benchmarks/generate.py [--rounds 5] [--prompts 128] [--cores 1] [--size tiny12|100m]

Each side runs in a process of its own on the same cores, which stays warm; rounds go in turn. Prompts are
bundled questions in twelve languages. Two cases: answers of mixed length (log-normal, as real ones are;
both sides are told each prompt's), and all of one length. transformers gets its prompts sorted by length,
which is best for it, left-padded, with a stopping criterion per row, so that a batch ends with its longest.
Prints seconds, CPU seconds and ratios: median, and the range over the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ASSETS = ROOT / "mlit_jax" / "assets"
BATCH, LONGEST = 32, 128
MIDDLE, SPREAD = 30, 0.9  # of the mixed lengths: median, and standard deviation of the logarithm
EQUAL = 64
NO_STOP = 2**30
WIDE = dict(
  hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
  num_key_value_heads=4, head_dim=64, vocab_size=16384, tie_word_embeddings=True,
  max_position_embeddings=512,
)  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--prompts", type=int, default=128)
  parser.add_argument("--cores", type=int, default=1)
  parser.add_argument("--size", choices=("tiny12", "100m"), default="tiny12")
  parser.add_argument("--side", choices=("ours", "torch"), default="")
  parser.add_argument("--folder", default="")
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
  if args.side:
    serve({"ours": open_ours, "torch": open_torch}[args.side](Path(args.folder)))
    return
  with tempfile.TemporaryDirectory() as folder:
    write_inputs(Path(folder), args.size, args.prompts)
    sides = {side: child(side, folder, args.cores) for side in ("torch", "ours")}
    for case in ("mixed", "equal"):
      report(
        case, [{s: ask(p, case) for s, p in sides.items()} for _ in range(args.rounds + 1)][1:]
      )
    for process in sides.values():
      process.stdin.close()
      process.wait()


def report(case: str, rounds: list[dict]) -> None:
  for r in rounds:
    same = np.mean([a == b for a, b in zip(r["ours"]["tokens"], r["torch"]["tokens"], strict=True)])
  num = sum(map(len, rounds[0]["ours"]["tokens"]))
  print(
    f"{case}: {num} tokens in {len(rounds[0]['ours']['tokens'])} answers, {same:.1%} of them equal"
  )
  for unit in ("seconds", "cpu"):
    for side in ("torch", "ours"):
      values = [r[side][unit] for r in rounds]
      print(
        f"  {side:5} {unit:7} {np.median(values):7.2f} ({min(values):.2f} to {max(values):.2f})"
      )
    ratios = [r["torch"][unit] / r["ours"][unit] for r in rounds]
    print(f"  ratio {unit:7} {np.median(ratios):7.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def child(side: str, folder: str, cores: int) -> subprocess.Popen:
  command = [sys.executable, __file__, "--side", side, "--folder", folder, "--cores", str(cores)]
  return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen, case: str) -> dict:
  process.stdin.write(case + "\n")
  process.stdin.flush()
  return json.loads(process.stdout.readline())


def serve(run) -> None:
  """A case a line in, its figures a line out."""
  for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run(line.strip())
    took = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(took | {"tokens": tokens}), flush=True)


def write_inputs(folder: Path, size: str, num_prompts: int) -> None:
  """The model as a folder, prompts and lengths as JSON: both sides read the same files."""
  import shutil

  from mlit_jax.data.tokenizer import Tokenizer

  model = folder / "model"
  shutil.copytree(ASSETS / "tiny12", model)
  if size == "100m":
    write_wide(model)
  tokenizer = Tokenizer.load(model)
  prompts = []
  files = sorted((ASSETS / "instructions12" / "eval").glob("*.jsonl"))
  lines = [path.read_text(encoding="utf-8").splitlines() for path in files]
  for i in range(num_prompts):  # languages in turn
    row = json.loads(lines[i % len(files)][i // len(files)])
    text = tokenizer.template.prompt([{"role": "user", "content": row["prompt"]}])
    prompts.append(list(tokenizer.encode_text(text)))
  rng = np.random.default_rng(0)
  mixed = np.exp(np.log(MIDDLE) + SPREAD * rng.standard_normal(num_prompts)).round()
  mixed = np.clip(mixed, 1, LONGEST).astype(int).tolist()
  lengths = {"mixed": mixed, "equal": [EQUAL] * num_prompts}
  (folder / "inputs.json").write_text(json.dumps({"prompts": prompts, "lengths": lengths}))


def write_wide(model: Path) -> None:
  """Random weights of a larger size, in float32."""
  import jax

  from mlit_jax.model import decoder
  from mlit_jax.model.config import from_hf
  from mlit_jax.weights import save

  config = json.loads((model / "config.json").read_text()) | WIDE | {"dtype": "float32"}
  cfg = from_hf(config)
  files = {p.name: p.read_bytes() for p in model.iterdir() if p.suffix != ".safetensors"}
  files["config.json"] = json.dumps(config).encode()
  params = decoder.init_params(cfg, jax.random.key(0))
  for p in model.iterdir():
    p.unlink()
  model.rmdir()
  save.save_folder(params, cfg, model, files=files, dtypes="float32")


def open_ours(folder: Path):
  import jax.numpy as jnp

  from mlit_jax.evals.decoding import Generator
  from mlit_jax.evals.evaluator import buckets
  from mlit_jax.opening import open_model, whole_mesh
  from mlit_jax.training.console import Terminal

  inputs = json.loads((folder / "inputs.json").read_text())
  model = open_model(str(folder / "model"), whole_mesh(), Terminal(shown=False))
  generator = Generator(
    model.cfg,
    whole_mesh(),
    max_new_tokens=LONGEST,
    prompt_buckets=buckets(max(map(len, inputs["prompts"]))),
    rows=BATCH,
    dtype=jnp.float32,
  )

  def run(case: str) -> list[list[int]]:
    answers = generator.generate(
      model.params, inputs["prompts"], stop_ids=(), max_new_tokens=inputs["lengths"][case]
    )
    return [a.tokens for a in answers]

  return run


def open_torch(folder: Path):
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  inputs = json.loads((folder / "inputs.json").read_text())
  model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
  model.eval()

  def batch(index, prompts, lengths):
    """Answers of prompts `index`, left-padded; row r is done after its own number of tokens."""
    width = max(len(prompts[i]) for i in index)
    ids = torch.full((len(index), width), 3)
    for r, i in enumerate(index):
      ids[r, width - len(prompts[i]) :] = torch.tensor(prompts[i])
    limits = torch.tensor([lengths[i] for i in index])

    class Enough(transformers.StoppingCriteria):
      def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] - width >= limits

    # Left of the prompt is padding; the mask says so by place, as the prompt may hold token 3.
    mask = torch.arange(width)[None] >= width - torch.tensor([[len(prompts[i])] for i in index])
    out = model.generate(
      ids,
      attention_mask=mask.long(),
      max_new_tokens=int(limits.max()),
      do_sample=False,
      eos_token_id=NO_STOP,  # one must be named for finished rows to be padded
      pad_token_id=3,
      stopping_criteria=transformers.StoppingCriteriaList([Enough()]),
    )
    return [out[r, width : width + lengths[i]].tolist() for r, i in enumerate(index)]

  def run(case: str) -> list[list[int]]:
    prompts, lengths = inputs["prompts"], inputs["lengths"][case]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [[]] * len(prompts)
    for start in range(0, len(order), BATCH):
      index = order[start : start + BATCH]
      for i, answer in zip(index, batch(index, prompts, lengths), strict=True):
        answers[i] = answer
    return answers

  return run


if __name__ == "__main__":
  main()
