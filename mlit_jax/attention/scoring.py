"""What every backend is told of the attention it computes."""

from __future__ import annotations

from typing import NamedTuple

import jax

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


def is_saved(primitive, *avals, **params) -> bool:
  """The policy of jax.checkpoint that keeps what the backward pass of attention needs."""
  if primitive.name.startswith(_SAVED_PRIMITIVE):
    return True
  return jax.checkpoint_policies.save_only_these_names(SAVED)(primitive, *avals, **params)
