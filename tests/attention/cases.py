"""Packed rows and what backends are asked of them, for the tests of all backends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax import mesh as meshes
from mlit_jax.attention import dense
from mlit_jax.attention.choice import BACKENDS, Choice, Needs, attend
from mlit_jax.attention.scoring import Rows, Scoring
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig


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


# length, mean length of examples, window, soft cap, slopes; for blocks of 16
MASKS = (
  (67, 9, 0, None, False),  # no multiple of anything; many segments a block
  (96, 40, 37, 3.0, False),  # a window over several blocks, soft-capped
  (9, 4, 3, 1.0, True),  # less than a block
  (150, 40, 3, 1.0, True),  # ten blocks
  (64, 64, 0, None, False),
  (96, 40, 5, None, False),  # a window within a block
  (40, 30, 0, 2.0, False),
  (50, 25, 0, None, True),
)


def assert_equals_plain(make_run, length, mean, window, softcap, slopes) -> None:
  """Forward and backward; `make_run(rows, window, needs, slopes_N)` is a run of (q, k, v)."""
  rows = packed_rows(3, length, mean)
  qkv = random_qkv(3, length, 6, 3, 8)
  slopes_N = jnp.asarray(dense.alibi_slopes(6)) if slopes else None
  needs = needs_of(*qkv[:2], softcap=softcap)
  expected = output_and_gradients(reference(rows, window, needs, slopes_N), qkv, rows)
  run = make_run(rows, jnp.int32(window), needs, slopes_N)
  found = jax.jit(lambda *qkv: output_and_gradients(run, qkv, rows))(*qkv)
  assert worst_difference(found, expected) < 2e-6


def assert_takes_heads(make_run, head_dim, groups) -> None:
  """As the plain one, with four query heads of this size and so many a kv head."""
  rows = packed_rows(1, 48, 20)
  qkv = random_qkv(1, 48, 4, 4 // groups, head_dim)
  needs = needs_of(*qkv[:2])
  expected = output_and_gradients(reference(rows, 0, needs), qkv, rows)
  found = output_and_gradients(make_run(rows, 0, needs), qkv, rows)
  assert worst_difference(found, expected) < 2e-6


def assert_rounds_as_bfloat16(make_run) -> None:
  """Beside float32 of the same numbers."""
  rows, qkv = packed_rows(2, 64, 20), random_qkv(2, 64, 4, 2, 16, dtype=jnp.bfloat16)
  needs = needs_of(*qkv[:2])
  in_float32 = [x.astype(jnp.float32) for x in qkv]
  exact = output_and_gradients(reference(rows, 0, needs), in_float32, rows)
  found = output_and_gradients(make_run(rows, 0, needs), qkv, rows)
  assert worst_difference(found, exact) < 2**-7


def assert_segments_apart(make_run) -> None:
  """Another segment's values change: outputs and gradients of all others keep their bits, padding left out."""
  rows = packed_rows(2, 80, 13)
  qkv = random_qkv(2, 80, 4, 2, 8)
  others = ~(rows.segments_BT == 3)[:, :, None, None]
  other_qkv = [jnp.where(others, x, 5 - x) for x in qkv]
  run = make_run(rows, 0, needs_of(*qkv[:2]))
  both = [output_and_gradients(run, of, rows) for of in (qkv, other_qkv)]
  for a, b in zip(*both, strict=True):
    np.testing.assert_array_equal(jnp.where(others, a, 0), jnp.where(others, b, 0))
    assert not jnp.array_equal(a, b)


def assert_padding_is_zero(make_run) -> None:
  """In the output and in the gradients, and all numbers are finite."""
  rows, qkv = packed_rows(2, 60, 15), random_qkv(2, 60, 2, 2, 8)
  run = make_run(rows, 0, needs_of(*qkv[:2]))
  o = run(*qkv)
  grads = jax.grad(lambda q, k, v: jnp.sum(run(q, k, v) ** 2), argnums=(0, 1, 2))(*qkv)
  padding = (rows.segments_BT == 0)[:, :, None, None]
  assert padding.any()
  for x in (o, *grads):
    np.testing.assert_array_equal(jnp.where(padding, x, 0), 0)
    assert jnp.isfinite(x).all()


def assert_no_leak(run, rows: Rows, qkv) -> None:
  """Another segment's values change: outputs and gradients of all others keep their bits; padding takes none."""
  others = (rows.segments_BT != 3)[:, :, None, None]
  padding = (rows.segments_BT == 0)[:, :, None, None]

  @jax.jit
  def all_of(*qkv):
    o, back = jax.vjp(run, *qkv)
    return o, *back(jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape))

  both = [all_of(*of) for of in (qkv, [jnp.where(others, x, 5 - x) for x in qkv])]
  for a, b in zip(*both, strict=True):
    np.testing.assert_array_equal(jnp.where(others, a, 0), jnp.where(others, b, 0))
    assert not jnp.array_equal(a, b)
    assert padding.any() and jnp.isfinite(a).all()
    np.testing.assert_array_equal(jnp.where(padding, a, 0), 0)


def traced_gradients(choice: Choice, *, length=256, dtype=jnp.bfloat16, head_dim=8, windows=()):
  """{model.remat: the traced gradient of a decoder of two layers}, for three of them."""
  cfg = DecoderConfig(
    "llama", vocab_size=32, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=head_dim,
    d_ff=16, windows=windows,
  )  # fmt: skip

  def loss(params, tokens, remat):
    ones = jnp.ones_like(tokens)
    at = jnp.cumsum(ones, axis=1) - 1
    logits = decoder.apply(
      params, cfg, tokens, at, ones, dtype=dtype, remat=remat, attention=choice
    )
    return jnp.sum(logits)

  tokens_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)
  traced = {}
  for remat in ("none", "attention_saved", "full"):
    grad = jax.jit(jax.grad(functools.partial(loss, remat=remat)))
    traced[remat] = grad.trace(decoder.param_shapes(cfg), tokens_BT).jaxpr
  return traced


def worst_difference(found, expected) -> float:
  """Largest difference over largest value, of each array; the worst of them."""
  return max(
    float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
    for a, b in zip(found, expected, strict=True)
  )


def compiled_gradient(name: str, mesh, rows, qkv) -> str:
  """The compiled module of attention's gradients, of rows that are cut as the mesh cuts them before and after."""
  needs, names = needs_of(*qkv[:2]), ("heads", "kv_heads", "kv_heads")
  cut = tuple(jax.NamedSharding(mesh, meshes.spec(("batch", "length", n, "head_dim"))) for n in names)  # fmt: skip

  def loss(q, k, v, rows):
    o = attend(BACKENDS[name], q, k, v, rows, 0, needs)
    return jnp.sum(meshes.constrain(o, "batch", "length", "heads", "head_dim") ** 2)

  step = jax.jit(
    jax.grad(loss, argnums=(0, 1, 2)),
    in_shardings=(*cut, jax.NamedSharding(mesh, meshes.BATCH_SPEC)),
    out_shardings=cut,
  )
  with jax.set_mesh(mesh):
    return step.lower(*qkv, rows).compile().as_text()
