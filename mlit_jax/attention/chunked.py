"""Attention block by block, in plain XLA: scores of a few queries and keys at a time, never of a whole row.

Blocks of keys that no query of a block sees are not visited: those after it, before its segments, outside
its window. So packed rows of short examples cost what the examples cost (as FlashAttention 2 with variable
lengths, Dao 2023, of whose forward and backward passes these are written down).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mlit_jax.attention import blocks, dense
from mlit_jax.attention.blocks import LOWEST, Seen, matmul
from mlit_jax.attention.scoring import SAVED, Rows, Scoring, segment_starts
from mlit_jax.loops import run_loop


class _How(NamedTuple):
  scoring: Scoring
  block: int
  by_row: bool  # row after row, each with its own bounds; else all rows in step


def attend(
  q_BTNH,
  k_BSKH,
  v_BSKH,
  rows: Rows,
  window,
  scoring: Scoring,
  slopes_N=None,
  *,
  block: int,
  by_row: bool,
  start=0,
) -> jax.Array:
  """o_BTNH. window: int32, 0 is none. `rows` tells of the keys; of them the queries are T from `start` on.

  slopes_N: per head, what a token of distance costs (ALiBi). No gradient goes to them.
  """
  T, N = q_BTNH.shape[1:3]
  S, K = k_BSKH.shape[1:3]
  block = min(block, -(-T // 8) * 8)
  how = _How(scoring, block, by_row)
  q_BKGTH, *kv = dense.heads_first(q_BTNH, k_BSKH, v_BSKH, scoring.scale)
  q_BKGTH = _pad(q_BKGTH, 3, block)
  k_BKSH, v_BKSH = (_pad(x, 2, block) for x in kv)
  # Of queries that are a part, what they are padded with may lie beyond the row.
  segments_BS = _pad(rows.segments_BT, 1, block, extra=0 if T == S else block)
  window, start = jnp.asarray(window, jnp.int32), jnp.asarray(start, jnp.int32)
  seen = Seen(segments_BS, segment_starts(segments_BS), window, start)
  slopes_KG = None if slopes_N is None else slopes_N.astype(jnp.float32).reshape(K, N // K)
  o_BKGTH = _attend(how, q_BKGTH, k_BKSH, v_BKSH, seen, slopes_KG)
  return dense.tokens_first(o_BKGTH[:, :, :, :T])


def _pad(x, axis: int, block: int, extra: int = 0):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % block + extra)
  return jnp.pad(x, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: _How, q_BKGTH, k_BKSH, v_BKSH, seen: Seen, slopes_KG):
  return _forward(how, q_BKGTH, k_BKSH, v_BKSH, seen, slopes_KG)[0]


def _forward(how, q_BKGTH, k_BKSH, v_BKSH, seen, slopes_KG):
  run = functools.partial(_forward_rows, how, slopes_KG)
  found = _over_rows(how, run, seen, (q_BKGTH, k_BKSH, v_BKSH))
  o_BKGTH, log_z_BKGT = (checkpoint_name(x, SAVED) for x in found)
  return o_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, seen, slopes_KG, o_BKGTH, log_z_BKGT)


def _backward(how, kept, do_BKGTH):
  q_BKGTH, k_BKSH, v_BKSH, seen, slopes_KG, o_BKGTH, log_z_BKGT = kept
  shift_BKGT = blocks.shift_of(do_BKGTH, o_BKGTH)
  run = functools.partial(_backward_rows, how, slopes_KG)
  rows = (q_BKGTH, k_BKSH, v_BKSH, do_BKGTH, log_z_BKGT, shift_BKGT)
  return (*_over_rows(how, run, seen, rows), None, None)


_attend.defvjp(_forward, _backward)


def _over_rows(how: _How, run, seen: Seen, arrays):
  """`run(seen, *arrays)`; or of one row after the other, where a processor has no use for more at once."""
  if not how.by_row or len(arrays[0]) == 1:
    return run(seen, *arrays)

  def one(row):
    of_row, arrays = jax.tree.map(lambda x: x[None], row)
    return jax.tree.map(lambda x: x[0], run(seen._replace(**of_row), *arrays))

  of_rows = {"segments_BS": seen.segments_BS, "first_BS": seen.first_BS}
  return jax.lax.map(one, (of_rows, arrays))


def _forward_rows(how: _How, slopes_KG, seen: Seen, q_BKGTH, k_BKSH, v_BKSH):
  B, K, G, T, H = q_BKGTH.shape
  first, last = blocks.bounds(seen, T, how.block)

  def queries(_, i):
    q_BKRH = _block(q_BKGTH, i, how.block, 3).reshape(B, K, -1, H)

    def keys(j, carry):
      o_BKRH, top_BKR1, total_BKR1 = carry
      k_BKCH, v_BKCH = (_block(x, j, how.block, 2) for x in (k_BKSH, v_BKSH))
      scores_BKRC, _ = _scores(how, slopes_KG, seen, q_BKRH, k_BKCH, i, j)
      new_top_BKR1 = jnp.maximum(top_BKR1, jnp.max(scores_BKRC, axis=-1, keepdims=True))
      weights_BKRC = jnp.exp(scores_BKRC - new_top_BKR1)
      shrink_BKR1 = jnp.exp(top_BKR1 - new_top_BKR1)
      o_BKRH = o_BKRH * shrink_BKR1 + matmul(weights_BKRC.astype(v_BKCH.dtype), v_BKCH)
      total_BKR1 = total_BKR1 * shrink_BKR1 + jnp.sum(weights_BKRC, axis=-1, keepdims=True)
      return o_BKRH, new_top_BKR1, total_BKR1

    column = (B, K, G * how.block, 1)
    empty = jnp.zeros((*column[:-1], H)), jnp.full(column, LOWEST), jnp.zeros(column)
    o_BKRH, top_BKR1, total_BKR1 = run_loop(
      first[i], last[i], keys, empty, about=_about(k_BKSH, how.block)
    )
    o_BKRH, log_z_BKR1 = blocks.divided(o_BKRH, top_BKR1, total_BKR1)
    shape = (B, K, G, how.block)
    return None, (o_BKRH.astype(v_BKSH.dtype).reshape(*shape, H), log_z_BKR1.reshape(shape))

  _, (o_iBKGCH, log_z_iBKGC) = jax.lax.scan(queries, None, jnp.arange(T // how.block))
  return _join(o_iBKGCH), _join(log_z_iBKGC)


def _backward_rows(
  how: _How, slopes_KG, seen: Seen, q_BKGTH, k_BKSH, v_BKSH, do_BKGTH, log_z_BKGT, shift_BKGT
):
  B, K, G, T, H = q_BKGTH.shape
  first, last = blocks.bounds(seen, T, how.block)

  def queries(carry, i):
    q_BKRH, do_BKRH = (_block(x, i, how.block, 3).reshape(B, K, -1, H) for x in (q_BKGTH, do_BKGTH))
    log_z_BKR1, shift_BKR1 = (
      _block(x, i, how.block, 3).reshape(B, K, -1, 1) for x in (log_z_BKGT, shift_BKGT)
    )

    def keys(j, carry):
      dq_BKRH, dk_BKSH, dv_BKSH = carry
      k_BKCH, v_BKCH = (_block(x, j, how.block, 2) for x in (k_BKSH, v_BKSH))
      found = _scores(how, slopes_KG, seen, q_BKRH, k_BKCH, i, j)
      dq, dk_BKCH, dv_BKCH = blocks.gradients(
        found, q_BKRH, k_BKCH, v_BKCH, do_BKRH, log_z_BKR1, shift_BKR1
      )
      return dq_BKRH + dq, _add(dk_BKSH, dk_BKCH, j), _add(dv_BKSH, dv_BKCH, j)

    empty = (jnp.zeros(q_BKRH.shape), *carry)
    dq_BKRH, *carry = run_loop(first[i], last[i], keys, empty, about=_about(k_BKSH, how.block))
    return tuple(carry), dq_BKRH.astype(q_BKGTH.dtype).reshape(B, K, G, how.block, H)

  none = jnp.zeros(k_BKSH.shape), jnp.zeros(v_BKSH.shape)
  (dk_BKSH, dv_BKSH), dq_iBKGCH = jax.lax.scan(queries, none, jnp.arange(T // how.block))
  return _join(dq_iBKGCH), dk_BKSH.astype(k_BKSH.dtype), dv_BKSH.astype(v_BKSH.dtype)


def _scores(how: _How, slopes_KG, seen: Seen, q_BKRH, k_BKCH, i, j):
  """Of block i of the queries and block j of the keys (blocks.scores)."""
  C = how.block
  return blocks.scores(how.scoring, slopes_KG, seen, q_BKRH, k_BKCH, (i * C, j * C), C)


def _about(k_BKSH, block: int) -> float:
  """Blocks of keys that a block of queries sees on average in a row of one segment."""
  return (k_BKSH.shape[2] // block + 1) / 2


def _block(x, i, block: int, axis: int):
  return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=axis)


def _add(x_BKSH, x_BKCH, j):
  """In place."""
  at, size = j * x_BKCH.shape[2], x_BKCH.shape[2]
  old_BKCH = jax.lax.dynamic_slice_in_dim(x_BKSH, at, size, axis=2)
  return jax.lax.dynamic_update_slice_in_dim(x_BKSH, old_BKCH + x_BKCH, at, axis=2)


def _join(x_iBKGC):
  """[blocks, B, K, G, block, ...] -> [B, K, G, T, ...]"""
  x_BKGiC = jnp.moveaxis(x_iBKGC, 0, 3)
  return x_BKGiC.reshape(*x_BKGiC.shape[:3], -1, *x_BKGiC.shape[5:])
