"""Negative log likelihood fused with the head: the logits of a few tokens at a time, never of all.

  loss, nll_BT = head_loss(x_BTD, head, targets_BT, weights_BT)

Each device brings the trained tokens of its rows to the front and walks them in chunks; what is left, the
untrained ones, costs nothing. Its share of the head is gathered once before, in the compute dtype, and the
gradient of the head, summed in float32, is spread out once after. A pass gives the gradients of the hidden
states and of the head along with the loss, so that no logits are kept or computed again.

`custom_vjp` stands outside and `shard_map` inside: the other way round the transposition of shard_map
divides the head's gradient among devices along `tensor`, which each hold the gradient of their own words.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh
from mlit_jax.head import Head, multiply, scale_and_cap
from mlit_jax.loops import run_loop

# Besides a number of tokens, what a chunk may be for whoever calls: usual_chunk, or the plain loss.
AUTOMATIC, PLAIN = 0, -1
_TOKEN_AXES = ("batch", "length")
_LEAST, _MOST = 1024, 4096  # tokens of a chunk on GPU and TPU


def head_loss(
  x_BTD, head: Head, targets_BT, weights_BT, *, chunk: int, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Sum over tokens of weight * (nll + z_loss * log Z ** 2), and nll_BT without z; both float32.

  Differentiable by x_BTD and the kernel through the sum alone. nll is 0 where the weight is. chunk: tokens
  whose logits a device holds at a time. z_loss pulls Z, the sum of the exponents of the logits, to 1.
  """
  head = _width_first(head)
  how = _how(x_BTD, head, chunk, z_loss)
  loss, nll_BT = _loss(how, x_BTD, head.kernel, targets_BT, jax.lax.stop_gradient(weights_BT))
  return loss, jax.lax.stop_gradient(nll_BT)


def head_scores(
  x_BTD, head: Head, targets_BT, weights_BT, *, chunk: int, best: bool = False
) -> tuple[jax.Array, jax.Array | None]:
  """nll_BT, float32, and with `best` the likeliest tokens best_BT; 0 where the weight is. No gradient."""
  head = _width_first(head)
  how = _how(x_BTD, head, chunk)._replace(best=best)
  out = _spread(how, x_BTD, head.kernel, targets_BT, weights_BT, _score_tokens)
  return out.nll_BT, out.best_BT


def usual_chunk(platform: str, tokens: int = 0) -> int:
  """Tokens of a chunk on "cpu", "gpu" or "tpu", where a device has so many at a time.

  Each chunk reads and writes the float32 gradient of the head once: 8 bytes for 2 * chunk operations. An
  H100 or a TPU does some 240 operations per byte (a v6e 560), so with fewer than 960 tokens that would be its
  limit. With many tokens a chunk of a sixteenth needs less than a layer does in the backward pass: the peak stays.
  On CPU logits that stay in the cache are worth more, see docs/performance.md.
  """
  if platform == "cpu":
    return 256
  return min(max(tokens // 16 // _LEAST * _LEAST, _LEAST), _MOST)


def _width_first(head: Head) -> Head:
  """A tied head whose width is cut over devices, turned: along its first axis it is gathered and spread in place.

  Along its second, TPUs keep turned copies: 1.1 GiB more at 262,144 words and a width of 1,152.
  """
  cut = dict(zip(head.axes, mesh.spread(head.axes, head.kernel.shape), strict=True))
  if head.axes == ("embed", "vocab") or not cut["embed"]:
    return head
  return dataclasses.replace(head, kernel=head.kernel.T, axes=("embed", "vocab"))


class _How(NamedTuple):
  """All that is known before the arrays are; hashable."""

  chunk: int
  z_loss: float
  axes: tuple[str, str]  # of the kernel, and what lies where on the mesh:
  scale: float
  softcap: float | None
  tokens: tuple[str, ...]  # mesh axes over which tokens are spread
  vocab: tuple[str, ...]
  embed: tuple[str, ...]
  x_spec: P
  kernel_spec: P
  best: bool = False  # whether the likeliest words are asked for


def _how(x_BTD, head: Head, chunk: int, z_loss: float = 0.0) -> _How:
  assert chunk > 0, chunk
  by_token = mesh.spread((*_TOKEN_AXES, "width"), x_BTD.shape)
  by_kernel = dict(zip(head.axes, mesh.spread(head.axes, head.kernel.shape), strict=True))
  tokens = by_token[0] + by_token[1]
  assert not by_token[2] and not set(by_kernel["vocab"]) & set(tokens), (by_token, by_kernel)
  chunk = min(chunk, math.prod(x_BTD.shape[:2]) // mesh.shards(tokens))
  x_spec, kernel_spec = P(*by_token), P(*(by_kernel[axis] for axis in head.axes))
  return _How(
    chunk, z_loss, head.axes, head.scale, head.softcap, tokens, **by_kernel,
    x_spec=x_spec, kernel_spec=kernel_spec,
  )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(how: _How, x_BTD, kernel, targets_BT, weights_BT):
  out = _spread(how, x_BTD, kernel, targets_BT, weights_BT, _score_tokens)
  return out.loss, out.nll_BT


def _loss_forward(how, x_BTD, kernel, targets_BT, weights_BT):
  out = _spread(how, x_BTD, kernel, targets_BT, weights_BT, _differentiate)
  return (out.loss, out.nll_BT), (out.dx_BTD, out.dkernel)


def _loss_backward(how, gradients, cotangents):
  scale, _ = cotangents  # that of nll is cut off in head_loss
  dx_BTD, dkernel = ((g * scale).astype(g.dtype) for g in gradients)
  return dx_BTD, dkernel, None, None


_loss.defvjp(_loss_forward, _loss_backward)


class _Scores(NamedTuple):
  loss: jax.Array
  nll_BT: jax.Array
  best_BT: jax.Array | None


class _Gradients(NamedTuple):
  loss: jax.Array
  nll_BT: jax.Array
  dx_BTD: jax.Array
  dkernel: jax.Array


def _spread(how: _How, x_BTD, kernel, targets_BT, weights_BT, run):
  """`run` on every device for its own tokens and words."""
  tokens = P(*how.x_spec[:2])
  specs = _Scores(P(), tokens, tokens if how.best else None)
  if run is _differentiate:
    specs = _Gradients(P(), tokens, how.x_spec, how.kernel_spec)
  in_specs = (how.x_spec, how.kernel_spec, tokens, tokens)
  spread = mesh.on_each(functools.partial(run, how), in_specs, specs)
  return spread(x_BTD, kernel, targets_BT, weights_BT)


class _Chunks(NamedTuple):
  """The tokens of a device, the trained ones first; N is a multiple of the chunk."""

  order_N: jax.Array  # which token stands at each place
  place: jax.Array  # at which place each token stands
  trained: jax.Array  # how many are
  loops: jax.Array  # chunks that hold a trained one


def _chunks(how: _How, weights) -> _Chunks:
  is_trained = weights.reshape(-1) != 0
  order = jnp.argsort(~is_trained, stable=True).astype(jnp.int32)
  trained = jnp.sum(is_trained, dtype=jnp.int32)
  # Where devices meet inside the loop, all walk as many chunks: they wait for each other after it anyway.
  most = _max_over(how.tokens, trained) if how.vocab else trained
  padded = jnp.pad(order, (0, -len(order) % how.chunk))
  return _Chunks(padded, jnp.argsort(order), trained, -(-most // how.chunk))


def _differentiate(how: _How, x_BTD, kernel, targets_BT, weights_BT) -> _Gradients:
  whole = _gather(how, kernel.astype(x_BTD.dtype))
  chunks = _chunks(how, weights_BT)
  N, D = len(chunks.order_N), x_BTD.shape[-1]

  def add(i, carry):
    loss, nll_N, dx_ND, dkernel = carry
    x_CD, weight_C, logits_CV, is_target_CV = _logits(
      how, whole, chunks, i, x_BTD, targets_BT, weights_BT
    )
    log_z_C, nll_C = _log_z_and_nll(how, logits_CV, is_target_CV)
    d_CV = jnp.exp(logits_CV - log_z_C[:, None])
    d_CV = d_CV * (1 + 2 * how.z_loss * log_z_C)[:, None] - is_target_CV
    if how.softcap is not None:
      d_CV *= 1 - jnp.square(logits_CV / how.softcap)
    d_CV = (d_CV * (how.scale * weight_C)[:, None]).astype(x_CD.dtype)
    dx_CD = _sum_over(how.vocab, multiply(d_CV, whole, how.axes[::-1]))  # by the kernel transposed
    left, right = (d_CV, x_CD) if how.axes == ("vocab", "embed") else (x_CD, d_CV)
    dkernel += jnp.matmul(left.T, right, preferred_element_type=jnp.float32)
    loss += _sum(how, log_z_C, nll_C, weight_C)
    return loss, _put(nll_N, nll_C, i), _put(dx_ND, dx_CD.astype(x_CD.dtype), i), dkernel

  zeros = (
    jnp.zeros(()),
    jnp.zeros(N),
    jnp.zeros((N, D), x_BTD.dtype),
    jnp.zeros(whole.shape, jnp.float32),
  )
  loss, nll_N, dx_ND, dkernel = run_loop(0, chunks.loops, add, zeros, about=N // how.chunk)
  return _Gradients(
    _sum_over(how.tokens, loss),
    _put_back(chunks, nll_N, weights_BT),
    dx_ND[chunks.place].reshape(x_BTD.shape),
    _scatter(how, dkernel).astype(kernel.dtype),
  )


def _score_tokens(how: _How, x_BTD, kernel, targets_BT, weights_BT) -> _Scores:
  whole = _gather(how, kernel.astype(x_BTD.dtype))
  chunks = _chunks(how, weights_BT)
  N = len(chunks.order_N)

  def add(i, carry):
    loss, nll_N, best_N = carry
    _, weight_C, logits_CV, is_target_CV = _logits(
      how, whole, chunks, i, x_BTD, targets_BT, weights_BT
    )
    log_z_C, nll_C = _log_z_and_nll(how, logits_CV, is_target_CV)
    loss += _sum(how, log_z_C, nll_C, weight_C)
    if how.best:
      best_N = _put(best_N, _best(how, logits_CV), i)
    return loss, _put(nll_N, nll_C, i), best_N

  zeros = jnp.zeros(()), jnp.zeros(N), jnp.zeros(N, jnp.int32) if how.best else None
  loss, nll_N, best_N = run_loop(0, chunks.loops, add, zeros, about=N // how.chunk)
  best_BT = _put_back(chunks, best_N, weights_BT) if how.best else None
  return _Scores(_sum_over(how.tokens, loss), _put_back(chunks, nll_N, weights_BT), best_BT)


def _logits(how: _How, whole, chunks: _Chunks, i, x_BTD, targets_BT, weights_BT):
  """The i-th chunk: x_CD, weight_C, logits_CV, and which of those are the target's; untrained x are 0."""
  at_C = jax.lax.dynamic_slice(chunks.order_N, (i * how.chunk,), (how.chunk,))
  live_C = i * how.chunk + jnp.arange(how.chunk) < chunks.trained
  x_CD = jnp.where(live_C[:, None], x_BTD.reshape(-1, x_BTD.shape[-1])[at_C], 0)
  weight_C = jnp.where(live_C, weights_BT.reshape(-1)[at_C], 0.0)
  logits_CV = scale_and_cap(multiply(x_CD, whole, how.axes), how.scale, how.softcap)
  own_C = targets_BT.reshape(-1)[at_C] - _first_word(how, logits_CV)
  is_target_CV = own_C[:, None] == jnp.arange(logits_CV.shape[1])[None]
  return x_CD, weight_C, logits_CV, is_target_CV


def _log_z_and_nll(how: _How, logits_CV, is_target_CV):
  gold_CV = jnp.where(is_target_CV, logits_CV, 0.0)
  peak_C, z_C, gold_C = jax.lax.platform_dependent(
    logits_CV, gold_CV, cuda=_sums_in_one_pass, default=_sums
  )
  top_C = _max_over(how.vocab, peak_C)
  z_C, gold_C = _sum_over(how.vocab, (z_C * jnp.exp(peak_C - top_C), gold_C))
  log_z_C = top_C + jnp.log(z_C)
  return log_z_C, log_z_C - gold_C


def _sums(logits_CV, gold_CV):
  """Of each token the highest logit of these words, the sum of exp(logit - highest), and that of `gold`."""
  peak_C = jnp.max(logits_CV, axis=1)
  peak_C = jnp.where(jnp.isfinite(peak_C), peak_C, 0.0)
  z_C = jnp.sum(jnp.exp(logits_CV - peak_C[:, None]), axis=1)
  return peak_C, z_C, jnp.sum(gold_CV, axis=1)


def _sums_in_one_pass(logits_CV, gold_CV):
  """The same, reading the logits once (Milakov & Gimelshein 2018): XLA for GPUs reads them for each sum otherwise."""

  def join(a, b):
    (peak_a, z_a, gold_a), (peak_b, z_b, gold_b) = a, b
    peak = jnp.maximum(peak_a, peak_b)
    return peak, z_a * jnp.exp(peak_a - peak) + z_b * jnp.exp(peak_b - peak), gold_a + gold_b

  lowest = jnp.finfo(jnp.float32).min  # -inf - -inf would be no number
  nothing = jnp.float32(lowest), jnp.float32(0), jnp.float32(0)
  each = logits_CV, jnp.ones_like(logits_CV), gold_CV
  return jax.lax.reduce(each, nothing, join, (1,))


def _best(how: _How, logits_CV) -> jax.Array:
  """The likeliest word, the first where several are."""
  own_C = _first_word(how, logits_CV) + jnp.argmax(logits_CV, axis=1).astype(jnp.int32)
  if not how.vocab:
    return own_C
  own_max_C = jnp.max(logits_CV, axis=1)
  is_max_C = own_max_C == _max_over(how.vocab, own_max_C)
  return jax.lax.pmin(jnp.where(is_max_C, own_C, jnp.iinfo(jnp.int32).max), how.vocab)


def _first_word(how: _How, logits_CV):
  """The number of this device's first word."""
  return jax.lax.axis_index(how.vocab) * logits_CV.shape[1] if how.vocab else 0


def _sum(how: _How, log_z_C, nll_C, weight_C) -> jax.Array:
  loss_C = nll_C + how.z_loss * jnp.square(log_z_C) if how.z_loss else nll_C
  return jnp.sum(jnp.where(weight_C != 0, weight_C * loss_C, 0.0))  # inf * 0 is nan


def _put(x_N, x_C, i) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(x_N, x_C, i * len(x_C), axis=0)


def _put_back(chunks: _Chunks, x_N, weights_BT) -> jax.Array:
  """In the order of the batch, 0 where nothing is trained."""
  return jnp.where(weights_BT != 0, x_N[chunks.place].reshape(weights_BT.shape), 0)


def _gather(how: _How, kernel) -> jax.Array:
  if not how.embed:
    return kernel
  return jax.lax.all_gather(kernel, how.embed, axis=how.axes.index("embed"), tiled=True)


def _scatter(how: _How, dkernel) -> jax.Array:
  """This device's part of the sum over all tokens."""
  axis, rest = how.axes.index("embed"), how.tokens
  if how.embed and set(how.embed) <= set(how.tokens):
    dkernel = jax.lax.psum_scatter(dkernel, how.embed, scatter_dimension=axis, tiled=True)
    rest = tuple(name for name in how.tokens if name not in how.embed)
  elif how.embed:  # all devices along it have the same tokens
    size = dkernel.shape[axis] // mesh.shards(how.embed)
    start = jax.lax.axis_index(how.embed) * size
    dkernel = jax.lax.dynamic_slice_in_dim(dkernel, start, size, axis)
  return _sum_over(rest, dkernel)


def _sum_over(names: tuple[str, ...], x):
  return jax.lax.psum(x, names) if names else x


def _max_over(names: tuple[str, ...], x):
  return jax.lax.pmax(x, names) if names else x
