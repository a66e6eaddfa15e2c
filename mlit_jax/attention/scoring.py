"""What every backend is told of the attention it computes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# What a layer keeps of attention when the rest is computed again in the backward pass (model.decoder.REMAT):
# arrays of this name, and the results of primitives whose name begins so, as no name can be put in them.
SAVED = "attn_out"
_SAVED_PRIMITIVE = "dot_product_attention_fwd"  # cuDNN


class Scoring(NamedTuple):
  """What becomes of q . k: times scale, then softcap * tanh(score / softcap) where there is one (Gemma 2)."""

  scale: float
  softcap: float | None = None


class Rows(NamedTuple):
  """Packed rows. A segment is a stretch of tokens at positions 0, 1, ...; segment 0 is padding.

  What a backend gives for padding means nothing, but is finite.
  """

  positions_BT: jax.Array
  segments_BT: jax.Array


def segment_starts(segments_BT) -> jax.Array:
  """Of each token, where in the row its segment begins; int32."""
  at_BT = jnp.broadcast_to(jnp.arange(segments_BT.shape[1], dtype=jnp.int32), segments_BT.shape)
  begins_BT = jnp.pad(
    segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True
  )
  return jax.lax.cummax(jnp.where(begins_BT, at_BT, 0), axis=1)


def is_saved(primitive, *avals, **params) -> bool:
  """The policy of jax.checkpoint that keeps what the backward pass of attention needs."""
  if primitive.name.startswith(_SAVED_PRIMITIVE):
    return True
  return jax.checkpoint_policies.save_only_these_names(SAVED)(primitive, *avals, **params)
