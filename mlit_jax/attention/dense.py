"""Attention with all scores at once: the plain reference, on every platform, and what decoding uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mlit_jax.attention.scoring import SAVED, Rows, Scoring

NEVER = -1e30  # finite: a row of padding must not turn into NaN


def visible(q_positions, k_positions, q_segments, k_segments, window) -> jax.Array:
  """mask_BTS: same segment, not later, and within `window` tokens (0: any distance)."""
  distance_BTS = distance(q_positions, k_positions)
  same_BTS = q_segments[:, :, None] == k_segments[:, None, :]
  near_BTS = (distance_BTS < window) | (window == 0)
  return same_BTS & (distance_BTS >= 0) & near_BTS


def distance(q_positions, k_positions) -> jax.Array:
  """distance_BTS: by how many tokens a key lies before a query; meaningless between segments."""
  return q_positions[:, :, None] - k_positions[:, None, :]


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
  """Per head, what a token of distance costs its score (Press et al. 2022, ALiBi).

  2^(-8/n), 2^(-16/n), ... for n heads, n a power of two; the heads beyond the largest such n take every
  second slope of 2n heads, from the first on, as the authors' code and BLOOM do.
  """
  n = 1 << (num_heads.bit_length() - 1)
  first = [2.0 ** (-8.0 * i / n) for i in range(1, n + 1)]
  return tuple(first + [2.0 ** (-4.0 * i / n) for i in range(1, 2 * (num_heads - n), 2)])


def attend(
  q_BTNH,
  k_BSKH,
  v_BSKH,
  mask_BTS,
  *,
  scoring: Scoring,
  slopes_N=None,
  distance_BTS=None,
) -> jax.Array:
  """Grouped-query attention, o_BTNH. Scores and softmax are float32: bfloat16 loses the tail.

  With slopes a score is less by its head's slope times `distance_BTS` (ALiBi).

  Query head n reads kv head n // G, as in the Hugging Face implementations. Heads are brought to the
  front so that both products are plain batched matrix products, and the division by the softmax's sum
  comes after the second: 3 times as fast on CPU, forward and backward, as einsum on [B, T, N, H].
  """
  qkv = heads_first(q_BTNH, k_BSKH, v_BSKH, scoring.scale)
  return tokens_first(_attend(*qkv, mask_BTS, scoring, slopes_N, distance_BTS))


def attend_rows(
  q_BTNH, k_BSKH, v_BSKH, rows: Rows, window, scoring: Scoring, slopes_N=None, *, start=0, block=0
) -> jax.Array:
  """o_BTNH of packed rows. `rows` tells of the keys; of them the queries are T from `start` on.

  block: so many queries at a time with the keys up to them, where queries and keys are the same tokens; 0: all.
  """
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  of_keys = (rows.positions_BT, rows.segments_BT)
  of_queries = of_keys
  if T < S:
    of_queries = [jax.lax.dynamic_slice_in_dim(x, start, T, axis=1) for x in of_keys]
  q_BKGTH, k_BKSH, v_BKSH = heads_first(q_BTNH, k_BSKH, v_BSKH, scoring.scale)
  # Joined from parts, the keys up to a block have a gradient that is added up part by part, not over the whole row.
  step = block or T
  edges = list(range(step, T, step))
  k_parts, v_parts = (jnp.split(x, edges, axis=2) for x in (k_BKSH, v_BKSH))
  parts = []
  for i, begin in enumerate([0, *edges]):
    end = min(begin + step, T)
    k, v = (jnp.concatenate(x[: i + 1], axis=2) for x in (k_parts, v_parts))
    seen = k.shape[2]
    pairs = zip(of_queries, of_keys, strict=True)
    of_rows = [x for of_q, of_k in pairs for x in (of_q[:, begin:end], of_k[:, :seen])]
    distance_BTS = None if slopes_N is None else distance(*of_rows[:2])
    mask_BTS = visible(*of_rows, window)
    q = q_BKGTH[:, :, :, begin:end]
    parts.append(_attend(q, k, v, mask_BTS, scoring, slopes_N, distance_BTS))
  o_BKGTH = jnp.concatenate(parts, axis=3) if len(parts) > 1 else parts[0]
  return checkpoint_name(tokens_first(o_BKGTH), SAVED)


def heads_first(q_BTNH, k_BSKH, v_BSKH, scale: float):
  """q_BKGTH, scaled, k_BKSH, v_BKSH."""
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  q_BTKGH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H)
  k_BKSH, v_BKSH = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
  return q_BTKGH.transpose(0, 2, 3, 1, 4), k_BKSH, v_BKSH


def tokens_first(o_BKGTH):
  """o_BTNH."""
  B, K, G, T, H = o_BKGTH.shape
  return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def _attend(q_BKGTH, k_BKSH, v_BKSH, mask_BTS, scoring: Scoring, slopes_N, distance_BTS):
  """o_BKGTH; q is scaled."""
  B, K, G, T, H = q_BKGTH.shape
  S = k_BKSH.shape[2]
  q_BKRH = q_BKGTH.reshape(B, K, G * T, H)  # R rows: G heads, T positions
  scores_BKRS = jnp.matmul(q_BKRH, k_BKSH.swapaxes(2, 3), preferred_element_type=jnp.float32)
  if scoring.softcap is not None:
    scores_BKRS = scoring.softcap * jnp.tanh(scores_BKRS / scoring.softcap)
  bias_BTS = jnp.where(mask_BTS, 0.0, NEVER)  # NEVER swallows any score it is added to
  bias_BGTS = jnp.broadcast_to(bias_BTS[:, None], (B, G, T, S))
  scores_BKRS += bias_BGTS.reshape(B, 1, G * T, S)
  if slopes_N is not None:
    slopes_KG11 = slopes_N.astype(jnp.float32).reshape(K, G, 1, 1)
    cost_BKGTS = slopes_KG11[None] * distance_BTS[:, None, None].astype(jnp.float32)
    scores_BKRS -= cost_BKGTS.reshape(B, K, G * T, S)
  top_BKR1 = jax.lax.stop_gradient(jnp.max(scores_BKRS, axis=-1, keepdims=True))
  weights_BKRS = jnp.exp(scores_BKRS - top_BKR1)
  total_BKR1 = jnp.sum(weights_BKRS, axis=-1, keepdims=True)
  o_BKRH = jnp.matmul(weights_BKRS.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32)
  return (o_BKRH / total_BKR1).astype(v_BKSH.dtype).reshape(B, K, G, T, H)
