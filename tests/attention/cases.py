"""Packed rows and what backends are asked of them, for the tests of all backends."""

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax.attention import dense
from mlit_jax.attention.choice import Needs
from mlit_jax.attention.scoring import Rows, Scoring


def packed_rows(batch: int, length: int, mean: int, seed: int = 0) -> Rows:
  """Examples of 1 to 2 * mean - 1 tokens; rows of odd number end in padding."""
  rng = np.random.default_rng(seed)
  segments, positions = np.zeros((2, batch, length), np.int32)
  for b in range(batch):
    at, number, end = 0, 1, length - (length // 5) * (b % 2)
    while at < end:
      size = min(int(rng.integers(1, 2 * mean)), end - at)
      segments[b, at : at + size] = number
      positions[b, at : at + size] = np.arange(size)
      at, number = at + size, number + 1
  return Rows(jnp.asarray(positions), jnp.asarray(segments))


def needs_of(q, k, *, platform="cpu", softcap=None, windows=(0,), slopes_N=None, **rest) -> Needs:
  """Of these queries and keys."""
  scoring = Scoring(q.shape[-1] ** -0.5, softcap)
  return Needs(
    platform, q.dtype, q.shape[1], q.shape[2], k.shape[2], q.shape[3], scoring, windows,
    slopes_N is not None, **rest,
  )  # fmt: skip


def random_qkv(batch, length, heads, kv_heads, head_dim, *, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  sizes = (heads, kv_heads, kv_heads)
  return tuple(jnp.asarray(rng.standard_normal((batch, length, n, head_dim)), dtype) for n in sizes)


def output_and_gradients(run, qkv, rows: Rows):
  """o and dq, dk, dv of a sum of o with random weights that leaves padding out."""
  q = qkv[0]
  weights = jnp.asarray(np.random.default_rng(9).standard_normal(q.shape), jnp.float32)
  live = (rows.segments_BT > 0)[:, :, None, None]

  def loss(q, k, v):
    o = run(q, k, v)
    return jnp.sum(jnp.where(live, o.astype(jnp.float32) * weights, 0.0)), o

  (_, o), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*qkv)
  return jnp.where(live, o, 0), *grads


def reference(rows: Rows, window: int, needs: Needs, slopes_N=None):
  """`run` of the plain attention."""
  return lambda q, k, v: dense.attend_rows(q, k, v, rows, window, needs.scoring, slopes_N)


def worst_difference(found, expected) -> float:
  """Largest difference over largest value, of each array; the worst of them."""
  return max(
    float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
    for a, b in zip(found, expected, strict=True)
  )
