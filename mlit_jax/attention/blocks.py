"""What attention in blocks shares: which keys a block of queries sees, and the scores of the two."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlit_jax.attention.scoring import Scoring

# Finite, as inf - inf is nan; and a masked score lies below any maximum that a block begins with.
MASKED, LOWEST = -2e30, -1e30


class Seen(NamedTuple):
  """Which keys the queries see; int32."""

  segments_BS: jax.Array
  first_BS: jax.Array  # where the segment of each token begins
  window: jax.Array  # 0: none
  start: jax.Array  # which token of the row is the first query


def bounds(seen: Seen, T: int, block: int):
  """first_i, last_i: the blocks of keys that each block of T queries sees, in any of the rows."""
  S = seen.segments_BS.shape[1]
  at_T = seen.start + jnp.arange(T, dtype=jnp.int32)
  segments_BT, first_BT = (
    jax.lax.dynamic_slice_in_dim(x, seen.start, T, axis=1)
    for x in (seen.segments_BS, seen.first_BS)
  )
  begins_T = jnp.where(seen.window > 0, at_T - seen.window + 1, 0)
  is_live_BT = segments_BT > 0
  from_BT = jnp.where(is_live_BT, jnp.maximum(first_BT, begins_T[None]), S)
  to_BT = jnp.where(is_live_BT, at_T[None] + 1, 0)
  short = ((0, 0), (0, -T % block))
  from_BT, to_BT = jnp.pad(from_BT, short, constant_values=S), jnp.pad(to_BT, short)
  from_i = jnp.min(from_BT.reshape(len(from_BT), -1, block), axis=(0, 2))
  to_i = jnp.max(to_BT.reshape(len(to_BT), -1, block), axis=(0, 2))
  return from_i // block, -(-to_i // block)


def scores(scoring: Scoring, slopes_KG, seen: Seen, q_BKRH, k_BKCH, at: tuple, Q: int):
  """scores_BKRC, and by how much a score grows with what is inside the soft cap; None without one.

  R: G query heads of each kv head, times Q queries. at: which query, and which token of the row, is the first.
  """
  B, K, R, _ = q_BKRH.shape
  C, softcap, (q_at, k_at) = k_BKCH.shape[2], scoring.softcap, at
  scores_BKRC, growth_BKRC = matmul(q_BKRH, k_BKCH.swapaxes(2, 3)), None
  if softcap is not None:
    bent_BKRC = jnp.tanh(scores_BKRC / softcap)
    scores_BKRC, growth_BKRC = softcap * bent_BKRC, 1 - jnp.square(bent_BKRC)
  at_Q, at_C = jnp.arange(Q, dtype=jnp.int32), jnp.arange(C, dtype=jnp.int32)
  distance_QC = (seen.start + q_at + at_Q)[:, None] - (k_at + at_C)[None]
  near_QC = (distance_QC >= 0) & ((distance_QC < seen.window) | (seen.window == 0))
  of_q_BQ = jax.lax.dynamic_slice_in_dim(seen.segments_BS, seen.start + q_at, Q, axis=1)
  of_k_BC = jax.lax.dynamic_slice_in_dim(seen.segments_BS, k_at, C, axis=1)
  is_live_BQ = of_q_BQ > 0  # of the same segment is then no padding either
  sees_BQC = near_QC[None] & (of_q_BQ[:, :, None] == of_k_BC[:, None]) & is_live_BQ[:, :, None]
  if slopes_KG is not None:
    cost_QC = distance_QC.astype(jnp.float32)
    cost_KGQC = slopes_KG[:, :, None, None] * cost_QC[None, None]
    scores_BKRC -= cost_KGQC.reshape(1, K, R, C)
  # Any score that is added to MASKED is MASKED.
  bias_BGQC = jnp.broadcast_to(jnp.where(sees_BQC, 0.0, MASKED)[:, None], (B, R // Q, Q, C))
  return scores_BKRC + bias_BGQC.reshape(B, 1, R, C), growth_BKRC


def divided(o_BKRH, top_BKR1, total_BKR1):
  """o_BKRH, log_z_BKR1 of weighted values, the highest score and the sum of the weights; 0 where nothing is seen."""
  sees_BKR1 = total_BKR1 != 0  # what is no number stays none
  o_BKRH = jnp.where(sees_BKR1, o_BKRH / jnp.where(sees_BKR1, total_BKR1, 1.0), 0.0)
  return o_BKRH, jnp.where(sees_BKR1, top_BKR1 + jnp.log(total_BKR1), -LOWEST)


def shift_of(do_BKGTH, o_BKGTH) -> jax.Array:
  """shift_BKGT: what the softmax's division adds to every gradient of a score (FlashAttention 2, algorithm 2, D)."""
  return jnp.sum(do_BKGTH.astype(jnp.float32) * o_BKGTH.astype(jnp.float32), axis=-1)


def gradients(found: tuple, q_BKRH, k_BKCH, v_BKCH, do_BKRH, log_z_BKR1, shift_BKR1):
  """dq_BKRH, dk_BKCH, dv_BKCH in float32, of what `scores` gave of these queries and keys."""
  scores_BKRC, growth_BKRC = found
  weights_BKRC = jnp.exp(scores_BKRC - log_z_BKR1)
  dscores_BKRC = weights_BKRC * (matmul(do_BKRH, v_BKCH.swapaxes(2, 3)) - shift_BKR1)
  if growth_BKRC is not None:
    dscores_BKRC *= growth_BKRC
  dscores_BKRC = dscores_BKRC.astype(q_BKRH.dtype)
  weights_BKRC = weights_BKRC.astype(do_BKRH.dtype)
  dk_BKCH = matmul(dscores_BKRC.swapaxes(2, 3), q_BKRH)
  return matmul(dscores_BKRC, k_BKCH), dk_BKCH, matmul(weights_BKRC.swapaxes(2, 3), do_BKRH)


def matmul(a, b):
  """In float32, whatever they are of."""
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)
