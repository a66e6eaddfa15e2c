"""How long planning takes and what memory it needs.

  python benchmarks/plan.py --examples 10_000_000 --languages 100

One core, made-up examples with natural lengths (log-normal, median 220) in languages of falling size.
"""

import argparse
import os
import resource
import time

import numpy as np

from mlit_jax.data.encoded import Encoded
from mlit_jax.data.plan import make_plan


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--examples", type=int, default=10_000_000)
  parser.add_argument("--languages", type=int, default=100)
  parser.add_argument("--unit", default="examples")
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
  encoded = made_up(args.examples, args.languages)
  total = args.examples
  if args.unit != "examples":
    total = int(encoded.trained_counts.sum()) // 2
  spec = {"temperature": 1, "total": total, "unit": args.unit}
  before, began = peak_mib(), time.perf_counter()
  plan = make_plan(encoded, spec, seed=0, rows_per_step=64, max_length=2048, epochs=1)
  seconds = time.perf_counter() - began
  fill = encoded.lengths[plan.examples].sum() / (plan.steps * 64 * 2048)
  print(
    f"{len(plan.examples):,} examples of {args.languages} languages planned in {seconds:.1f} s, rows {fill:.2%} full, "
    f"peak {peak_mib():,.0f} MiB ({before:,.0f} MiB before)"
  )


def made_up(examples: int, languages: int) -> Encoded:
  rng = np.random.default_rng(0)
  size = 1 / np.arange(1, languages + 1)
  lengths = np.clip(rng.lognormal(np.log(220), 1.0, examples), 8, 2048).astype(np.int32)
  zeros = np.zeros(examples, np.int32)
  return Encoded(
    tokens=np.zeros(0, np.uint32),
    trained=np.zeros(0, np.uint8),
    starts=np.zeros(examples, np.int64),
    lengths=lengths,
    trained_counts=(lengths * 0.7).astype(np.int32),
    language=rng.choice(languages, examples, p=size / size.sum()).astype(np.int32),
    source=zeros,
    file=zeros,
    row=np.arange(examples),
    ids=rng.integers(0, 2**64, (examples, 2), dtype=np.uint64),
    groups=np.zeros(examples, np.uint64),
    answer_bytes=zeros,
    text_bytes=zeros,
    truncated=np.zeros(examples, np.uint8),
    languages=tuple(f"l{i:03}" for i in range(languages)),
    sources=("rows",),
    files=("rows",),
    rows_read={},
    dropped={},
    flagged={},
    language_judged={},
    language_judged_every=0,
    fingerprint="made up",
  )


def peak_mib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
  main()
