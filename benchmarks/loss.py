"""The loss fused with the head beside the plain one: value and gradients, peak memory and time.

  python benchmarks/loss.py [--vocab 262144] [--width 640] [--tokens 4096] [--trained 1.0 0.3] [--rounds 3]
  python benchmarks/loss.py --quickstart [--chunk 256 512] [--rounds 9]     whole train steps of the quick start

Both in turn in one process; prints each round, the median ratio and the largest relative difference of the
gradients. Memory is what the compiler plans for temporary values, peak; on an accelerator that is what the device will hold.
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlit_jax.head import Head
from mlit_jax.training.head_loss import PLAIN, head_loss
from mlit_jax.training.loss import plain_loss

AXES = {"tied": ("vocab", "embed"), "untied": ("embed", "vocab")}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--vocab", type=int, default=262_144)
  parser.add_argument("--width", type=int, default=640)
  parser.add_argument("--tokens", type=int, default=4096)
  parser.add_argument(
    "--trained", type=float, nargs="+", default=[1.0, 0.3], help="shares of tokens"
  )
  parser.add_argument("--chunk", type=int, nargs="+", default=[256], help="tokens")
  parser.add_argument("--head", choices=AXES, default="tied")
  parser.add_argument("--softcap", type=float, default=0.0)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--no-plain", action="store_true", help="where its logits do not fit")
  parser.add_argument("--quickstart", action="store_true")
  args = parser.parse_args()
  if args.quickstart:
    compare_steps([PLAIN, *args.chunk], args.rounds)
    return
  losses = {} if args.no_plain else {"plain": plain_loss}
  for chunk in args.chunk:
    losses[f"fused, chunk {chunk}"] = functools.partial(head_loss, chunk=chunk)
  x_BTD, head, targets_BT = inputs(args)
  print(f"{jax.devices()[0].device_kind}, {args}")
  for share in args.trained:
    weights_BT = np.zeros(args.tokens, np.float32)
    weights_BT[np.random.default_rng(1).permutation(args.tokens)[: int(share * args.tokens)]] = 1
    compare(losses, x_BTD, head, targets_BT, jnp.asarray(weights_BT[None]), share, args.rounds)


def inputs(args):
  keys = jax.random.split(jax.random.key(0), 3)
  axes = AXES[args.head]
  sizes = {"vocab": args.vocab, "embed": args.width}
  kernel = jax.random.normal(keys[0], [sizes[axis] for axis in axes]) * args.width**-0.5
  x_BTD = jax.random.normal(keys[1], (1, args.tokens, args.width), args.dtype)
  targets_BT = jax.random.randint(keys[2], (1, args.tokens), 0, args.vocab, jnp.int32)
  return x_BTD, Head(kernel, axes, softcap=args.softcap or None), targets_BT


def compare(losses, x_BTD, head, targets_BT, weights_BT, share, rounds):
  steps, memory, seconds, results = {}, {}, {name: [] for name in losses}, {}
  arrays = (x_BTD, head, targets_BT, weights_BT)
  for name, loss in losses.items():
    # The hidden states' and the head's gradient, as a step wants them; nll too, for the sums per language.
    grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    steps[name] = jax.jit(grad).lower(*arrays).compile()
    memory[name] = peak(steps[name].memory_analysis())
  for number in range(rounds + 1):
    for name, step in steps.items():
      began = time.perf_counter()
      (loss, _), (dx, dhead) = jax.block_until_ready(step(*arrays))
      took = time.perf_counter() - began
      if number:  # the first round warms up
        seconds[name].append(took)
      else:
        results[name] = float(loss), np.asarray(dx, np.float32), np.asarray(dhead.kernel)
      del dx, dhead
  base = next(iter(losses))
  for name in losses:
    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    print(
      f"{share:.0%} trained, {name}: {memory[name] / 2**20:,.0f} MiB ({memory[name] / memory[base]:.1%}), "
      f"{np.median(seconds[name]):.2f} s, {np.median(ratios):.2f} x "
      f"(rounds {', '.join(f'{r:.2f}' for r in ratios)}), differs by {differs(results[name], results[base]):.1e}"
    )


def compare_steps(chunks, rounds):
  from step import quickstart_parts

  parts = {chunk: quickstart_parts(chunk) for chunk in chunks}
  states = {chunk: p.state for chunk, p in parts.items()}
  seconds = {chunk: [] for chunk in chunks}
  weights = parts[PLAIN].host_batch.weights
  print(f"{weights.sum():,.0f} of {weights.size:,} tokens are trained")
  for number in range(rounds + 1):
    for chunk, p in parts.items():
      with jax.set_mesh(p.mesh):
        for timed in range(4):
          began = time.perf_counter()
          states[chunk], metrics = p.train_step(states[chunk], p.batch)
          jax.block_until_ready(metrics)
          if number and timed:
            seconds[chunk].append(time.perf_counter() - began)
  for chunk in chunks:
    ratios = [a / b for a, b in zip(seconds[chunk], seconds[PLAIN], strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(
      f"chunk {chunk}: {np.median(seconds[chunk]) * 1e3:.0f} ms, {middle:.2f} x plain ({low:.2f} to {high:.2f}, "
      f"quartiles of {len(ratios)}), nll {float(metrics.sums.nll.sum()):.1f}"
    )


def peak(analysis) -> int:
  """Temporary values and results: the gradient of the head is one of these, and no one can do without."""
  return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def differs(a, b) -> float:
  loss = abs(a[0] - b[0]) / abs(b[0])
  return max(
    loss, *(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(a[1:], b[1:], strict=True))
  )


if __name__ == "__main__":
  main()
