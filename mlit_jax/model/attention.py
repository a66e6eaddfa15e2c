"""Attention: the plain reference, on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEVER = -1e30  # finite: a row of padding must not turn into NaN


def visible(q_positions, k_positions, q_segments, k_segments, window) -> jax.Array:
  """mask_BTS: same segment, not later, and within `window` tokens (0: any distance)."""
  distance_BTS = q_positions[:, :, None] - k_positions[:, None, :]
  same_BTS = q_segments[:, :, None] == k_segments[:, None, :]
  near_BTS = (distance_BTS < window) | (window == 0)
  return same_BTS & (distance_BTS >= 0) & near_BTS


def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, scale: float, softcap: float | None) -> jax.Array:
  """Grouped-query attention, o_BTNH. Scores and softmax are float32: bfloat16 loses the tail.

  Query head n reads kv head n // G, as in the Hugging Face implementations.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * jnp.asarray(scale, q_BTNH.dtype)
  scores_BKGTS = jnp.einsum(
    "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
  )
  if softcap is not None:
    scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, NEVER)
  probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
  return jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS, v_BSKH).reshape(B, T, N, H)
