"""Attention backends on one GPU: time, arithmetic, memory, error and leaks; a part of benchmarks/gpu.py."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from gpu_material import NotMeasured

from mlit_jax import mesh as meshes
from mlit_jax.attention.choice import BACKENDS, Choice, Needs
from mlit_jax.attention.scoring import Rows, Scoring

HEADS = {64: (32, 8), 128: (24, 8)}  # query and key heads: Llama 3.2's at 1B and 3B
TOKENS = 16_384  # of a call
MEANS = (256, 512, 2048, 0)  # tokens of a segment; 0: the whole row is one


def measure(spec: dict) -> dict:
  """Every shape of one backend, and whether its numbers are right."""
  name = spec["backend"]
  if name not in BACKENDS:
    raise NotMeasured(f"no backend of this name in this version; there are {', '.join(BACKENDS)}")
  lengths = (256, 512) if spec["tiny"] else (4096, 8192)
  heads = {16: (4, 2)} if spec["tiny"] else HEADS
  dtype = jnp.dtype("bfloat16")
  probe = needs_of(lengths[0], *next(iter(heads.items())), dtype, 0)
  if reason := BACKENDS[name].refusal(probe):
    raise NotMeasured(reason)
  out = {"device": jax.devices()[0].device_kind, "shapes": [], "numerics": numerics(name)}
  for head_dim, of_kinds in heads.items():
    for length in lengths:
      out["shapes"] += shapes(name, length, head_dim, of_kinds, dtype, spec["tiny"])
  return out


def needs_of(length: int, head_dim: int, heads: tuple, dtype, max_segments: int) -> Needs:
  choice = Choice.on(meshes.make_mesh(devices=jax.devices()[:1]))
  return Needs(
    choice.platform, dtype, length, *heads, head_dim, Scoring(head_dim**-0.5),
    max_segments=max_segments, capability=choice.capability,
  )  # fmt: skip


def rows_of(batch: int, length: int, mean: int, seed: int = 0) -> Rows:
  """Full rows of segments of 1 to 2 * mean - 1 tokens."""
  rng = np.random.default_rng(seed)
  segments, positions = np.zeros((2, batch, length), np.int32)
  for b in range(batch):
    at, number = 0, 1
    while at < length:
      size = min(int(rng.integers(1, 2 * mean)), length - at) if mean else length
      segments[b, at : at + size] = number
      positions[b, at : at + size] = np.arange(size)
      at, number = at + size, number + 1
  return Rows(jnp.asarray(positions), jnp.asarray(segments))


def forward_backward(name: str, needs: Needs):
  """(q, k, v, do, rows) -> o, dq, dk, dv."""
  backend = BACKENDS[name]

  def run(q, k, v, do, rows):
    prepared = backend.prepare(rows, needs)
    window = jnp.int32(0)
    o, pull = jax.vjp(lambda *x: backend.run(*x, prepared, window, needs, None), q, k, v)
    return o, *pull(do)

  return jax.jit(run)


def random_arrays(batch: int, length: int, heads: tuple, head_dim: int, dtype):
  keys = jax.random.split(jax.random.key(0), 4)
  sizes = (heads[0], heads[1], heads[1], heads[0])
  return [
    jax.random.normal(key, (batch, length, n, head_dim), dtype)
    for key, n in zip(keys, sizes, strict=True)
  ]


def shapes(name, length, head_dim, heads, dtype, tiny) -> list[dict]:
  """One compilation, all lengths of segments: those are data."""
  batch = max(1, (1024 if tiny else TOKENS) // length)
  patterns = {mean: rows_of(batch, length, mean) for mean in MEANS}
  most = max(int(rows.segments_BT.max()) for rows in patterns.values())
  needs = needs_of(length, head_dim, heads, dtype, most)
  at = {"length": length, "head_dim": head_dim, "heads": heads, "rows": batch}
  try:
    arrays = random_arrays(batch, length, heads, head_dim, dtype)
    compiled = forward_backward(name, needs).lower(*arrays, patterns[0]).compile()
    memory = compiled.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes
    return [at | timed(compiled, arrays, rows, mean, peak) for mean, rows in patterns.items()]
  except Exception as e:  # one shape is too large, say; the others are measured
    return [at | {"reason": f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"}]


def timed(compiled, arrays, rows, mean, peak) -> dict:
  jax.block_until_ready(compiled(*arrays, rows))
  began = time.perf_counter()
  jax.block_until_ready(compiled(*arrays, rows))
  once = time.perf_counter() - began
  repeats, rounds = max(1, min(20, int(0.1 / once))), []
  for _ in range(5):
    began = time.perf_counter()
    for _ in range(repeats):
      found = compiled(*arrays, rows)
    jax.block_until_ready(found)
    rounds.append((time.perf_counter() - began) / repeats)
  seconds = float(np.median(rounds))
  sizes = np.concatenate([np.bincount(row)[1:] for row in np.asarray(rows.segments_BT)])
  heads, head_dim = arrays[0].shape[2:]
  # As training/flops.py counts: the causal half, forward and backward, nothing computed twice.
  useful = 6.0 * heads * head_dim * float(np.sum(sizes.astype(float) ** 2))
  return {
    "mean": mean, "ms": seconds * 1e3, "ms_spread": [min(rounds) * 1e3, max(rounds) * 1e3],
    "tflops": useful / seconds / 1e12, "planned_gib": peak / 2**30,
  }  # fmt: skip


def numerics(name: str) -> dict:
  """Error beside float64, by its largest value; and what another segment's numbers change."""
  length, heads, head_dim = 256, (4, 2), 64
  rows = rows_of(2, length, 40)
  needs = needs_of(length, head_dim, heads, jnp.dtype("bfloat16"), int(rows.segments_BT.max()))
  arrays = random_arrays(2, length, heads, head_dim, jnp.bfloat16)
  run = forward_backward(name, needs)
  found, again = run(*arrays, rows), run(*arrays, rows)
  exact = dense_float64(*(np.asarray(x, np.float64) for x in arrays), np.asarray(rows.segments_BT))
  errors = {
    key: float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max())
    for key, a, b in zip(("o", "dq", "dk", "dv"), found, exact, strict=True)
  }
  others = (np.asarray(rows.segments_BT) != 3)[:, :, None, None]
  changed = [jnp.where(others, x, 5 - x) for x in arrays[:3]]
  leaked = run(*changed, arrays[3], rows)
  return {
    "error": errors,
    "repeats_bitwise": all(bool(jnp.array_equal(a, b)) for a, b in zip(found, again, strict=True)),
    "largest_leak": max(
      float(
        np.abs(np.where(others, np.asarray(a, np.float32) - np.asarray(b, np.float32), 0)).max()
      )
      for a, b in zip(found, leaked, strict=True)
    ),
    "segment_changed_itself": not bool(jnp.array_equal(found[0], leaked[0])),
  }


def dense_float64(q, k, v, do, segments) -> tuple:
  """o, dq, dk, dv of causal attention within segments, written out in numpy."""
  groups, (length, head_dim) = q.shape[2] // k.shape[2], (q.shape[1], q.shape[3])
  repeat = functools.partial(np.repeat, repeats=groups, axis=2)
  kk, vv, scale = repeat(k), repeat(v), head_dim**-0.5
  seen = (segments[:, :, None] == segments[:, None, :]) & np.tril(np.ones((length, length), bool))
  scores = np.where(seen[:, None], np.einsum("btnh,bsnh->bnts", q, kk) * scale, -np.inf)
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  o = np.einsum("bnts,bsnh->btnh", p, vv)
  dp = np.einsum("btnh,bsnh->bnts", do, vv)
  ds = p * (dp - np.sum(p * dp, -1, keepdims=True)) * scale
  fold = lambda x: x.reshape(*x.shape[:2], -1, groups, head_dim).sum(3)  # noqa: E731
  dq = np.einsum("bnts,bsnh->btnh", ds, kk)
  dk, dv = (np.einsum("bnts,btnh->bsnh", a, b) for a, b in ((ds, q), (p, do)))
  return o, dq, fold(dk), fold(dv)
