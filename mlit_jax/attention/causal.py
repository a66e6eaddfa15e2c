"""Attention of all rows at once, a block of queries with the keys up to it: what a CPU's cores do fastest.

Keys after a block are never read, and two cores have work where row after row and tile after tile one and a third
had (docs/performance.md). Rows of up to KEPT tokens keep the softmax's weights for the
backward pass; of longer ones they are computed again (FlashAttention 2, Dao 2023), and keys before all that a block
of queries sees are left out.
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

KEPT, LONGEST = 1024, 2048  # tokens of a row


class _How(NamedTuple):
  scoring: Scoring
  block: int


def attend(
  q_BTNH, k_BTKH, v_BTKH, rows: Rows, window, scoring: Scoring, slopes_N=None
) -> jax.Array:
  """o_BTNH of packed rows. window: int32, 0 is none. slopes_N as dense.attend takes them."""
  T = q_BTNH.shape[1]
  if T <= KEPT:
    block = 64 if T <= 256 else 128
    return dense.attend_rows(q_BTNH, k_BTKH, v_BTKH, rows, window, scoring, slopes_N, block=block)
  return attend_long(q_BTNH, k_BTKH, v_BTKH, rows, window, scoring, slopes_N)


def attend_long(
  q_BTNH, k_BTKH, v_BTKH, rows: Rows, window, scoring: Scoring, slopes_N=None, *, block: int = 256
) -> jax.Array:
  """`attend` that keeps no weights and leaves keys out that no query of a block sees."""
  qkv = dense.heads_first(q_BTNH, k_BTKH, v_BTKH, scoring.scale)
  K, G = qkv[0].shape[1:3]
  window, start = jnp.asarray(window, jnp.int32), jnp.zeros((), jnp.int32)
  seen = Seen(rows.segments_BT, segment_starts(rows.segments_BT), window, start)
  slopes_KG = None if slopes_N is None else slopes_N.astype(jnp.float32).reshape(K, G)
  return dense.tokens_first(_attend(_How(scoring, block), *qkv, seen, slopes_KG))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: _How, q_BKGTH, k_BKTH, v_BKTH, seen: Seen, slopes_KG):
  return _forward(how, q_BKGTH, k_BKTH, v_BKTH, seen, slopes_KG)[0]


def _forward(how, q_BKGTH, k_BKTH, v_BKTH, seen, slopes_KG):
  def of_block(begin, end, first):
    """o_BKGQH, log_z_BKGQ of queries begin..end, which see keys first..end."""
    q_BKRH = _rows(q_BKGTH[:, :, :, begin:end])
    v_BKCH, Q = v_BKTH[:, :, first:end], end - begin
    scores_BKRC, _ = blocks.scores(
      how.scoring, slopes_KG, seen, q_BKRH, k_BKTH[:, :, first:end], (begin, first), Q
    )
    top_BKR1 = jnp.maximum(jnp.max(scores_BKRC, axis=-1, keepdims=True), LOWEST)
    weights_BKRC = jnp.exp(scores_BKRC - top_BKR1)
    total_BKR1 = jnp.sum(weights_BKRC, axis=-1, keepdims=True)
    o_BKRH = matmul(weights_BKRC.astype(v_BKCH.dtype), v_BKCH)
    o_BKRH, log_z_BKR1 = blocks.divided(o_BKRH, top_BKR1, total_BKR1)
    shape = (*q_BKGTH.shape[:3], Q)
    return o_BKRH.astype(v_BKTH.dtype).reshape(*shape, -1), log_z_BKR1.reshape(shape)

  found = _over_blocks(how, seen, q_BKGTH.shape[3], of_block)
  o_BKGTH, log_z_BKGT = (
    checkpoint_name(jnp.concatenate(x, axis=3), SAVED) for x in zip(*found, strict=True)
  )
  return o_BKGTH, (q_BKGTH, k_BKTH, v_BKTH, seen, slopes_KG, o_BKGTH, log_z_BKGT)


def _backward(how, kept, do_BKGTH):
  q_BKGTH, k_BKTH, v_BKTH, seen, slopes_KG, o_BKGTH, log_z_BKGT = kept
  shift_BKGT = blocks.shift_of(do_BKGTH, o_BKGTH)

  def of_block(begin, end, first):
    """dq_BKGQH of queries begin..end, and what they add to dk_BKCH and dv_BKCH of keys 0..end."""
    q_BKRH, do_BKRH = (_rows(x[:, :, :, begin:end]) for x in (q_BKGTH, do_BKGTH))
    log_z_BKR1, shift_BKR1 = (_rows(x[:, :, :, begin:end, None]) for x in (log_z_BKGT, shift_BKGT))
    k_BKCH, v_BKCH = k_BKTH[:, :, first:end], v_BKTH[:, :, first:end]
    scores = blocks.scores(
      how.scoring, slopes_KG, seen, q_BKRH, k_BKCH, (begin, first), end - begin
    )
    dq_BKRH, *of_keys = blocks.gradients(
      scores, q_BKRH, k_BKCH, v_BKCH, do_BKRH, log_z_BKR1, shift_BKR1
    )
    before = ((0, 0), (0, 0), (first, 0), (0, 0))
    dk_BKCH, dv_BKCH = (jnp.pad(x, before) for x in of_keys)
    dq_BKGQH = dq_BKRH.astype(q_BKGTH.dtype).reshape(*q_BKGTH.shape[:3], end - begin, -1)
    return dq_BKGQH, dk_BKCH, dv_BKCH

  dq, dk, dv = zip(*_over_blocks(how, seen, q_BKGTH.shape[3], of_block), strict=True)
  dk_BKTH = _added_up(dk, how.block).astype(k_BKTH.dtype)
  dv_BKTH = _added_up(dv, how.block).astype(v_BKTH.dtype)
  return jnp.concatenate(dq, axis=3), dk_BKTH, dv_BKTH, None, None


_attend.defvjp(_forward, _backward)


def _over_blocks(how: _How, seen: Seen, T: int, of_block) -> list:
  """`of_block(begin, end, first)` of every block of queries, all of them int.

  A compiled program knows no shapes of a length that is found while it runs. So there is one for one, two, four,
  ... blocks of keys, and one for all, and the shortest that holds what any row sees is taken.
  """
  first_i, _ = blocks.bounds(seen, T, how.block)
  found = []
  for i, begin in enumerate(range(0, T, how.block)):
    fewer = [i + 1 - 2**n for n in range(i.bit_length())]  # the first of 1, 2, 4, ... blocks
    firsts = [0, *reversed([at for at in fewer if at > 0])]
    end = min(begin + how.block, T)
    ways = [functools.partial(of_block, begin, end, at * how.block) for at in firsts]
    chosen = jnp.sum(first_i[i] >= jnp.asarray(firsts[1:], jnp.int32), dtype=jnp.int32)
    found.append(jax.lax.switch(chosen, ways) if len(ways) > 1 else ways[0]())
  return found


def _rows(x_BKGQH):
  """x_BKRH: the heads of a group one after the other."""
  B, K, _, _, H = x_BKGQH.shape
  return x_BKGQH.reshape(B, K, -1, H)


def _added_up(parts: tuple, block: int):
  """x_BKTH, of what every block of queries adds to the keys up to its end."""
  columns = range(0, parts[-1].shape[2], block)
  sums = [sum(x[:, :, at : at + block] for x in parts[i:]) for i, at in enumerate(columns)]
  return jnp.concatenate(sums, axis=2)
