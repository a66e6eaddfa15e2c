"""What building, opening and planning need of memory and threads as data grow; how full real rows get.

  python benchmarks/cache.py build --rows 100_000 300_000 1_000_000
  python benchmarks/cache.py languages --rows 200_000 --languages 1 10 50 100 200
  python benchmarks/cache.py fill --data ../shared/data

build: short made-up rows in twelve languages (words of the bundled rows, shuffled) through the real cache builder:
workers, hygiene and evaluation sets as by default. languages: as many rows in ever more languages; the cache is opened,
planned and loaded. Each size runs in a process of its own. Memory is anonymous memory (what a process holds beside files
that it maps), sampled ten times a second: its peak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import real

from mlit_jax.data import cache
from mlit_jax.data.hygiene import DEFAULTS, make_hygiene
from mlit_jax.data.parts import Recipe
from mlit_jax.data.rows import read_sources
from mlit_jax.data.sources import open_sources
from mlit_jax.data.tokenizer import Tokenizer

ASSETS = real.ROOT / "mlit_jax/assets"
SENTENCE = (2, 6)  # words


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("what", choices=("build", "languages", "fill"))
  parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
  parser.add_argument("--languages", type=int, nargs="+", default=[1, 10, 50, 100, 200])
  parser.add_argument("--data", type=Path, default=real.DATA)
  parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.what == "fill":
    fill(args.data)
  elif args.child:
    print(json.dumps(build(args.child) if args.what == "build" else languages(args)))
  else:
    for size in args.rows if args.what == "build" else args.languages:
      command = [sys.executable, __file__, args.what, "--child", str(size)]
      command += ["--rows", *map(str, args.rows)]
      found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
      print(found.stdout.splitlines()[-1], flush=True)


# --- a cache of many rows


def build(num_rows: int) -> dict:
  with tempfile.TemporaryDirectory() as folder:
    files = write_made_up(Path(folder), num_rows)
    held_out = read_sources(of_languages(ASSETS / "instructions12/eval")).conversations
    recipe = Recipe(
      tokenizer=Tokenizer.load(str(ASSETS / "tokenizer12")),
      max_length=2048,
      over_long="drop",
      drop_bad=False,
      hygiene=make_hygiene(DEFAULTS, held_out, languages=list(files)),
    )
    with Watch() as watch:
      began = time.perf_counter()
      encoded, _ = cache.open_cache(open_sources(files), recipe, Path(folder) / "cache")
      seconds = time.perf_counter() - began
    return {
      "rows": num_rows,
      "kept": len(encoded),
      "tokens": int(encoded.lengths.sum()),
      "seconds": round(seconds),
    } | watch.found()


def write_made_up(folder: Path, num_rows: int) -> dict[str, list[str]]:
  """{language: [file]}: rows of words of the bundled rows of a language, in random order."""
  rng, files = random.Random(0), {}
  sources = of_languages(ASSETS / "instructions12/train")
  for k, (lang, [path]) in enumerate(sources.items()):
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    words = sorted({w for row in rows for w in f"{row['prompt']} {row['completion']}".split()})
    mine = len(range(k, num_rows, len(sources)))
    with open(folder / f"{lang}.jsonl", "w", encoding="utf-8") as out:
      for _ in range(mine):
        question, answer = (" ".join(rng.choices(words, k=rng.randint(*SENTENCE))) for _ in "qa")
        out.write(json.dumps({"prompt": question, "completion": answer}, ensure_ascii=False) + "\n")
    files[lang] = [str(folder / f"{lang}.jsonl")]
  return files


def of_languages(folder: Path) -> dict[str, list[str]]:
  return {path.stem: [str(path)] for path in sorted(folder.glob("*.jsonl"))}


# --- many languages


def languages(args) -> dict:
  from mlit_jax.data.loader import load_batches
  from mlit_jax.data.plan import make_plan

  [num_rows], num_languages = args.rows, args.child
  with tempfile.TemporaryDirectory() as folder:
    write_cache(Path(folder), num_rows, num_languages)
    with Watch() as watch:
      began = time.perf_counter()
      encoded = cache.load(Path(folder))
      spec = {"temperature": 2, "total": num_rows // 2}
      plan = make_plan(encoded, spec, seed=0, rows_per_step=16, max_length=2048, epochs=1)
      planned = time.perf_counter() - began
      tokens = sum(int((b.segments > 0).sum()) for b in load_batches(encoded, plan, 0))
    assert tokens == int(encoded.lengths[plan.examples].sum())
    return {
      "languages": num_languages,
      "rows": num_rows,
      "open and plan, seconds": round(planned, 2),
    } | watch.found()


def write_cache(folder: Path, num_rows: int, num_languages: int) -> None:
  """A cache of random tokens in languages of falling size, each with a row at least."""
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(np.log(220), 1.0, num_rows).astype(int), 8, 2048)
  share = 1 / np.arange(1, num_languages + 1)
  language = rng.choice(num_languages, num_rows, p=share / share.sum())
  language[:num_languages] = np.arange(num_languages)
  arrays = {
    "tokens": rng.integers(0, 32_000, lengths.sum(), dtype=np.uint32),
    "trained": np.ones(lengths.sum(), np.uint8),
    "ids": rng.integers(0, 2**63, (num_rows, 2), dtype=np.uint64),
    "starts": np.cumsum(lengths) - lengths,
    "lengths": lengths,
    "trained_counts": lengths,
    "language": language,
  }
  zeros = np.zeros(num_rows, np.int64)
  for name, dtype in cache.FILES.items():
    np.ascontiguousarray(arrays.get(name, zeros), dtype).tofile(folder / f"{name}.bin")
  tables = {"rows_read": {}, "dropped": {}, "flagged": {}, "fingerprint": "benchmark"}
  names = [f"l{i:03}" for i in range(num_languages)]
  cache.write_meta(folder, tables | {"languages": names, "sources": ["rows"], "files": ["rows"]})


# --- real rows


def fill(data: Path) -> None:
  import measures

  from mlit_jax.data.plan import make_plan

  with tempfile.TemporaryDirectory() as folder:
    tokenizer = Tokenizer.load(str(ASSETS / "tokenizer12"))
    e = real.real_examples(Path(folder), tokenizer, 2048, data)
    for unit in ("examples", "tokens"):
      spec = {"temperature": 1, "total": int(e.sizes(unit).sum()), "unit": unit}
      plan = make_plan(e, spec, seed=0, rows_per_step=1, max_length=2048, epochs=1)
      print(
        f"ordered by {unit}: {len(plan.examples):,} examples in {plan.steps:,} rows of 2,048, "
        f"{e.lengths[plan.examples].sum() / (plan.steps * 2048):.2%} full"
      )
      rows = np.repeat(np.arange(plan.steps), np.diff(plan.row_starts))
      by_row = np.zeros((plan.steps, len(e.languages)))
      np.add.at(by_row, (rows, e.language[plan.examples]), e.sizes(unit, plan.examples))
      due = by_row.sum(axis=0) / by_row.sum()
      for k, lang in enumerate(e.languages):
        alone = np.stack([by_row[:, k], by_row.sum(axis=1) - by_row[:, k]], axis=1)
        worst, _ = measures.worst_prefix(alone, np.array([due[k], 1 - due[k]]))
        print(
          f"  {lang}: {by_row[:, k].sum():,.0f} {unit}, worst prefix {worst:,.1f} from its share"
        )


# --- memory and threads


class Watch(contextlib.AbstractContextManager):
  """The peaks of this process and of its children while it is open."""

  def __enter__(self):
    self.before = _status("self")["RssAnon"]
    self.own = self.workers = self.together = self.threads = self.num_workers = 0
    self.done = threading.Event()
    self.thread = threading.Thread(target=self._run, daemon=True)
    self.thread.start()
    return self

  def __exit__(self, *_):
    self._look()
    self.done.set()
    self.thread.join()

  def _run(self):
    while not self.done.wait(0.1):
      self._look()

  def _look(self):
    own = _status("self")
    children = [s["RssAnon"] for s in map(_status, _children()) if s.get("RssAnon")]
    self.own = max(self.own, own["RssAnon"])
    self.threads = max(self.threads, own["Threads"] - 1)  # without this one
    self.workers = max([self.workers, *children])
    self.num_workers = max(self.num_workers, len(children))
    self.together = max(self.together, own["RssAnon"] + sum(children))

  def found(self) -> dict:
    mib = {"before": self.before, "this process": self.own, "largest worker": self.workers}
    mib["all together"] = self.together
    out = {f"MiB, {name}": round(kib / 1024) for name, kib in mib.items()}
    return out | {"workers": self.num_workers, "threads": self.threads}


def _status(pid) -> dict[str, int]:
  """RssAnon (KiB) and Threads of a process; nothing where it has ended."""
  try:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
  except OSError:
    return {}
  pairs = (line.split(":", 1) for line in lines)
  return {k: int(v.split()[0]) for k, v in pairs if k in ("RssAnon", "Threads")}


def _children() -> list[str]:
  found = []
  for task in Path("/proc/self/task").iterdir():
    with contextlib.suppress(OSError):
      found += (task / "children").read_text().split()
  return found


if __name__ == "__main__":
  main()
